//! Session files: the state of a sequence on disk.
//!
//! ```text
//! header   64 bytes   magic, byte order, version, fingerprint of the model, tokens, length of the body, checksum
//! numbers  10 * u64   see `Numbers`
//! tokens   u32 each
//! arrays              as `SequenceImage` writes them
//! trail    f32        hidden states that the prediction head has not read
//! trailer  u64        checksum of everything after the header
//! ```
//! A file is written beside its place, flushed to the disk and then renamed, so that there is always a whole one: the
//! old or the new. Lengths follow from the numbers and are compared with the file before anything is allocated.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use zerocopy::IntoBytes;

use super::checksum::{BUFFER, Checksum, Reader, Writer};
use super::drafts::Trail;
use crate::state::memory::{KvType, StateType};
use crate::state::snapshot::{ImageError, ImageShape, SequenceImage, Sink, Source};
use crate::state::{FoldPolicy, StateLayout};

const MAGIC: [u8; 8] = *b"MILLPOND";
const BYTE_ORDER: u32 = 0x0A0B_0C0D;
const VERSION: u32 = 2;
const HEADER: usize = 64;
const EXTENSION: &str = "session";

/// Why a session could not be saved, loaded or deleted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SessionError {
    /// The engine was started without a folder for sessions.
    #[error("no folder for sessions is set up")]
    NoFolder,
    /// A name that could lead out of the folder or that some system does not take.
    #[error("'{0}' is no name for a session: 1 to 64 letters, digits, '-', '_' and inner '.' are")]
    Name(String),
    /// No session of that name.
    #[error("there is no session '{0}'")]
    Unknown(String),
    /// Another process is saving under the same name.
    #[error("session '{0}' is being saved by somebody else")]
    Busy(String),
    /// The file is of another model.
    #[error(
        "session '{name}' was saved with another model (fingerprint {found:016x}, this one's is {expected:016x})"
    )]
    OtherModel {
        /// The session.
        name: String,
        /// Fingerprint in the file.
        found: u64,
        /// Fingerprint of the model.
        expected: u64,
    },
    /// The file is damaged, or no session file at all.
    #[error("session '{name}' cannot be read: {reason}")]
    Damaged {
        /// The session.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// The system refused.
    #[error("session '{name}': {source}")]
    Io {
        /// The session.
        name: String,
        /// What it said.
        source: io::Error,
    },
    /// The engine could not take or give the state.
    #[error("session '{name}': {reason}")]
    Engine {
        /// The session.
        name: String,
        /// What it said.
        reason: String,
    },
    /// The engine has been stopped.
    #[error("the engine has been stopped")]
    Stopped,
}

/// A saved session, by its header alone.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SessionInfo {
    /// Its name.
    pub name: String,
    /// Tokens whose state it holds.
    pub tokens: usize,
    /// Bytes of its file.
    pub bytes: u64,
    /// [`crate::model::ModelInfo::fingerprint`] of its model.
    pub fingerprint: u64,
    /// When it was saved, where the system says.
    pub modified: Option<std::time::SystemTime>,
}

/// The state of a sequence with everything that belongs to it.
#[derive(Debug)]
pub(crate) struct Session {
    pub(super) tokens: Vec<u32>,
    pub(super) image: SequenceImage,
    pub(super) trail: Trail,
    pub(super) prefilled: bool,
}

/// The fixed numbers before the arrays, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Numbers {
    shape: ImageShape,
    prefilled: bool,
    trail_filled: usize,
    trail_values: usize,
    /// Hash of the layout of the model's state.
    layout: u64,
}

const NUMBERS: usize = 10;

impl Numbers {
    fn encode(&self) -> [u64; NUMBERS] {
        let shape = &self.shape;
        [
            shape.position as u64,
            shape.base as u64,
            shape.reach_back as u64,
            shape.conv_rows as u64,
            match shape.kv_type {
                KvType::Q8 => 1,
                KvType::F16 => 2,
                KvType::F32 => 4,
            },
            u64::from(self.prefilled),
            self.trail_filled as u64,
            self.trail_values as u64,
            self.layout,
            shape.state_type.bytes() as u64,
        ]
    }

    fn decode(words: &[u64; NUMBERS]) -> Option<Numbers> {
        let size = |at: usize| usize::try_from(words[at]).ok();
        let kv_type = match words[4] {
            1 => KvType::Q8,
            2 => KvType::F16,
            4 => KvType::F32,
            _ => return None,
        };
        let state_type = match words[9] {
            2 => StateType::Bf16,
            4 => StateType::F32,
            _ => return None,
        };
        let shape = ImageShape {
            position: size(0)?,
            base: size(1)?,
            reach_back: size(2)?,
            conv_rows: size(3)?,
            kv_type,
            state_type,
        };
        let prefilled = match words[5] {
            0 => false,
            1 => true,
            _ => return None,
        };
        Some(Numbers { shape, prefilled, trail_filled: size(6)?, trail_values: size(7)?, layout: words[8] })
    }

    /// Bytes of the body: numbers, tokens, arrays, trail, trailer.
    fn body(&self, layout: &StateLayout) -> Option<usize> {
        let tokens = self.shape.position.checked_mul(4)?;
        let trail = self.trail_values.checked_mul(4)?;
        let fixed = NUMBERS * 8 + 8;
        self.shape.bytes(layout)?.checked_add(tokens)?.checked_add(trail)?.checked_add(fixed)
    }
}

/// Tells layouts apart that a fingerprint of the weights does not. The type of the state is not part of it: a file says
/// its own, and is converted.
fn layout_hash(layout: &StateLayout) -> u64 {
    let mut checksum = Checksum::new();
    let layout = layout.clone().with_state_type(StateType::F32);
    checksum.add(format!("{layout:?}").as_bytes());
    checksum.value()
}

struct Header {
    fingerprint: u64,
    tokens: u64,
    body: u64,
}

impl Header {
    fn encode(&self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&BYTE_ORDER.to_ne_bytes());
        bytes[12..16].copy_from_slice(&VERSION.to_ne_bytes());
        for (i, word) in [self.fingerprint, self.tokens, self.body].into_iter().enumerate() {
            bytes[16 + i * 8..24 + i * 8].copy_from_slice(&word.to_ne_bytes());
        }
        let mut checksum = Checksum::new();
        checksum.add(&bytes[..56]);
        bytes[56..].copy_from_slice(&checksum.value().to_ne_bytes());
        bytes
    }

    fn decode(bytes: &[u8; HEADER]) -> Result<Header, String> {
        let word = |at: usize| u64::from_ne_bytes(std::array::from_fn(|i| bytes[at + i]));
        let half = |at: usize| u32::from_ne_bytes(std::array::from_fn(|i| bytes[at + i]));
        if bytes[..8] != MAGIC {
            return Err("it is no session file".to_owned());
        }
        if half(8) != BYTE_ORDER {
            return Err("it comes from a machine of another byte order".to_owned());
        }
        if half(12) != VERSION {
            return Err(format!("it is of version {}, this program reads version {VERSION}", half(12)));
        }
        let mut checksum = Checksum::new();
        checksum.add(&bytes[..56]);
        if checksum.value() != word(56) {
            return Err("its header is damaged".to_owned());
        }
        Ok(Header { fingerprint: word(16), tokens: word(24), body: word(32) })
    }
}

/// What a session is read for.
pub(crate) struct Expected<'a> {
    pub(super) layout: &'a StateLayout,
    pub(super) fingerprint: u64,
    /// Width of a hidden state.
    pub(super) hidden: usize,
    /// Most tokens of a sequence.
    pub(super) context: usize,
    /// Size of the vocabulary.
    pub(super) vocab: usize,
}

/// Writes a session.
pub(super) fn encode(
    session: &Session,
    layout: &StateLayout,
    fingerprint: u64,
    to: &mut dyn Write,
) -> io::Result<()> {
    let numbers = Numbers {
        shape: session.image.shape(),
        prefilled: session.prefilled,
        trail_filled: session.trail.filled,
        trail_values: session.trail.hidden.len(),
        layout: layout_hash(layout),
    };
    let body = numbers.body(layout).ok_or_else(|| io::Error::other("the session is too large"))?;
    let header = Header { fingerprint, tokens: session.tokens.len() as u64, body: body as u64 };
    to.write_all(&header.encode())?;
    let mut writer = Writer { to, checksum: Checksum::new() };
    writer.put(numbers.encode().as_bytes())?;
    writer.put(session.tokens.as_bytes())?;
    session.image.write(layout, &mut writer)?;
    writer.put(session.trail.hidden.as_bytes())?;
    let checksum = writer.checksum.value();
    writer.to.write_all(&checksum.to_ne_bytes())
}

/// What it means that a file cannot be read on.
fn unread(name: &str, source: io::Error) -> SessionError {
    let name = name.to_owned();
    match source.kind() {
        io::ErrorKind::UnexpectedEof => {
            SessionError::Damaged { name, reason: "it ends too early".to_owned() }
        }
        _ => SessionError::Io { name, source },
    }
}

/// Reads header, numbers and tokens.
fn begin<R: Read>(
    name: &str,
    mut from: R,
    length: u64,
    expected: &Expected<'_>,
) -> Result<(Reader<R>, Numbers, Vec<u32>), SessionError> {
    let damaged = |reason: String| SessionError::Damaged { name: name.to_owned(), reason };
    let failed = |source: io::Error| unread(name, source);
    let mut bytes = [0; HEADER];
    from.read_exact(&mut bytes).map_err(failed)?;
    let header = Header::decode(&bytes).map_err(damaged)?;
    if header.fingerprint != expected.fingerprint {
        let (found, expected) = (header.fingerprint, expected.fingerprint);
        return Err(SessionError::OtherModel { name: name.to_owned(), found, expected });
    }
    let mut reader = Reader { from, checksum: Checksum::new() };
    let mut words = [0u64; NUMBERS];
    reader.take(words.as_mut_bytes()).map_err(failed)?;
    let numbers = Numbers::decode(&words).ok_or_else(|| damaged("its numbers make no sense".to_owned()))?;
    check(&header, &numbers, length, expected).map_err(damaged)?;
    let mut tokens = vec![0u32; numbers.shape.position];
    reader.take(tokens.as_mut_bytes()).map_err(failed)?;
    Ok((reader, numbers, tokens))
}

/// Reads a session of a file that is `length` bytes long. `policy` yields the fold policy of a sequence by its first
/// token.
pub(super) fn decode(
    name: &str,
    from: &mut dyn Read,
    length: u64,
    expected: &Expected<'_>,
    policy: impl Fn(u32) -> FoldPolicy,
) -> Result<Session, SessionError> {
    let damaged = |reason: String| SessionError::Damaged { name: name.to_owned(), reason };
    let failed = |source: io::Error| unread(name, source);
    let (mut reader, numbers, tokens) = begin(name, from, length, expected)?;
    let first = tokens.first().copied().unwrap_or_default();
    let image = SequenceImage::read(expected.layout, &numbers.shape, policy(first), &mut reader);
    let image = image.map_err(|error| match error {
        ImageError::Io(error) => failed(error),
        ImageError::Memory(error) => {
            SessionError::Engine { name: name.to_owned(), reason: error.to_string() }
        }
    })?;
    let mut hidden = vec![0.0f32; numbers.trail_values];
    reader.take(hidden.as_mut_bytes()).map_err(failed)?;
    let checksum = reader.checksum.value();
    let mut trailer = [0; 8];
    reader.from.read_exact(&mut trailer).map_err(failed)?;
    if u64::from_ne_bytes(trailer) != checksum {
        return Err(damaged("its checksum is wrong".to_owned()));
    }
    if let Some(token) = tokens.iter().find(|&&token| token as usize >= expected.vocab) {
        return Err(damaged(format!("token {token} is not in the vocabulary of {}", expected.vocab)));
    }
    let trail = Trail { filled: numbers.trail_filled, hidden };
    Ok(Session { tokens, image, trail, prefilled: numbers.prefilled })
}

/// Compares the numbers of a file with its length and with what the engine takes, before anything is allocated.
fn check(header: &Header, numbers: &Numbers, length: u64, expected: &Expected<'_>) -> Result<(), String> {
    let shape = &numbers.shape;
    if numbers.layout != layout_hash(expected.layout) {
        return Err("its state has another layout".to_owned());
    }
    if shape.position == 0 || shape.position as u64 != header.tokens || !shape.is_sound(expected.layout) {
        return Err("its numbers contradict each other".to_owned());
    }
    if shape.position > expected.context {
        return Err(format!("its {} tokens exceed the context of {}", shape.position, expected.context));
    }
    let rows = numbers.trail_values / expected.hidden.max(1);
    let whole = rows * expected.hidden == numbers.trail_values;
    if !whole || numbers.trail_filled > shape.position || rows > shape.position - numbers.trail_filled {
        return Err("its hidden states do not belong to its tokens".to_owned());
    }
    let body = numbers.body(expected.layout).map(|body| body as u64);
    if body != Some(header.body) || header.body.checked_add(HEADER as u64) != Some(length) {
        return Err(format!("it has {length} bytes, its numbers ask for another length"));
    }
    Ok(())
}

/// Checks a name: it must stay inside the folder on every system.
fn check_name(name: &str) -> Result<(), SessionError> {
    const DEVICES: [&str; 6] = ["con", "prn", "aux", "nul", "com", "lpt"];
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let stem = name.split('.').next().unwrap_or_default().to_ascii_lowercase();
    let device = DEVICES.iter().any(|device| {
        stem.strip_prefix(device)
            .is_some_and(|rest| rest.chars().all(|c| c.is_ascii_digit()) && rest.len() < 2)
    });
    let good = !name.is_empty()
        && name.len() <= 64
        && name.chars().all(plain)
        && !name.starts_with('.')
        && !name.ends_with('.')
        && !device;
    if good { Ok(()) } else { Err(SessionError::Name(name.chars().take(80).collect())) }
}

/// A folder of session files, for whoever has no engine at hand: what is in it can be told and deleted without a model.
#[derive(Clone, Debug)]
pub struct SessionFolder {
    path: PathBuf,
}

impl SessionFolder {
    /// The folder at a path; it need not exist yet.
    #[must_use]
    pub fn new(path: PathBuf) -> SessionFolder {
        SessionFolder { path }
    }

    fn file(&self, name: &str) -> Result<PathBuf, SessionError> {
        check_name(name)?;
        Ok(self.path.join(format!("{name}.{EXTENSION}")))
    }

    /// Saves a session: the old file or the new one is there at any time, whole.
    pub(super) fn save(
        &self,
        name: &str,
        session: &Session,
        layout: &StateLayout,
        fingerprint: u64,
    ) -> Result<SessionInfo, SessionError> {
        let place = self.file(name)?;
        let failed = |source| SessionError::Io { name: name.to_owned(), source };
        fs::create_dir_all(&self.path).map_err(failed)?;
        let beside = self.path.join(format!(".{name}.saving"));
        let Some(file) = claim(&beside).map_err(failed)? else {
            return Err(SessionError::Busy(name.to_owned()));
        };
        let written =
            write_whole(&file, session, layout, fingerprint).and_then(|()| fs::rename(&beside, &place));
        if let Err(error) = written {
            if let Err(left) = fs::remove_file(&beside) {
                tracing::warn!(error = %left, "an unfinished session file stays behind");
            }
            return Err(failed(error));
        }
        flush_folder(&self.path).map_err(failed)?;
        self.info(name)
    }

    /// Loads a session.
    pub(super) fn load(
        &self,
        name: &str,
        expected: &Expected<'_>,
        policy: impl Fn(u32) -> FoldPolicy,
    ) -> Result<Session, SessionError> {
        let (file, length) = self.open(name)?;
        decode(name, &mut BufReader::with_capacity(BUFFER, file), length, expected, policy)
    }

    /// The tokens of a session. The rest of its file, and so its checksum, is left unread.
    pub(super) fn tokens(&self, name: &str, expected: &Expected<'_>) -> Result<Vec<u32>, SessionError> {
        let (file, length) = self.open(name)?;
        let (_, _, tokens) = begin(name, BufReader::new(file), length, expected)?;
        Ok(tokens)
    }

    /// Opens a session's file, if it is a file.
    fn open(&self, name: &str) -> Result<(File, u64), SessionError> {
        let path = self.file(name)?;
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::NotFound => SessionError::Unknown(name.to_owned()),
            _ => SessionError::Io { name: name.to_owned(), source },
        };
        // A link could lead out of the folder, and a pipe would never end.
        if !fs::symlink_metadata(&path).map_err(failed)?.is_file() {
            return Err(SessionError::Unknown(name.to_owned()));
        }
        let file = File::open(&path).map_err(failed)?;
        let length = file.metadata().map_err(failed)?.len();
        Ok((file, length))
    }

    /// What the header of a session says.
    ///
    /// # Errors
    /// [`SessionError`] when there is none or it is damaged.
    pub fn info(&self, name: &str) -> Result<SessionInfo, SessionError> {
        let (mut file, length) = self.open(name)?;
        let failed = |reason: String| SessionError::Damaged { name: name.to_owned(), reason };
        let mut bytes = [0; HEADER];
        file.read_exact(&mut bytes).map_err(|error| failed(error.to_string()))?;
        let header = Header::decode(&bytes).map_err(failed)?;
        if header.body.checked_add(HEADER as u64) != Some(length) {
            return Err(failed(format!("it has {length} bytes, its header asks for another length")));
        }
        let modified = file.metadata().and_then(|metadata| metadata.modified()).ok();
        let tokens = usize::try_from(header.tokens).map_err(|error| failed(error.to_string()))?;
        let fingerprint = header.fingerprint;
        Ok(SessionInfo { name: name.to_owned(), tokens, bytes: length, fingerprint, modified })
    }

    /// All sessions whose headers are whole, by name.
    ///
    /// # Errors
    /// [`SessionError`] when the folder cannot be read.
    pub fn list(&self) -> Result<Vec<SessionInfo>, SessionError> {
        let entries = match fs::read_dir(&self.path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(SessionError::Io { name: String::new(), source }),
        };
        let mut sessions = Vec::new();
        for entry in entries.flatten() {
            let file_name = entry.file_name();
            let name = file_name.to_str().and_then(|name| name.strip_suffix(&format!(".{EXTENSION}")));
            if let Some(name) = name.filter(|name| check_name(name).is_ok()) {
                match self.info(name) {
                    Ok(info) => sessions.push(info),
                    Err(error) => tracing::debug!(%error, "a file is not listed"),
                }
            }
        }
        sessions.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(sessions)
    }

    /// Deletes a session's file.
    ///
    /// # Errors
    /// [`SessionError`] when there is none or the system refuses.
    pub fn delete(&self, name: &str) -> Result<(), SessionError> {
        match fs::remove_file(self.file(name)?) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(SessionError::Unknown(name.to_owned()))
            }
            Err(source) => Err(SessionError::Io { name: name.to_owned(), source }),
        }
    }
}

/// Opens the file beside the place for this process alone; what an earlier process left there is overwritten. `None`
/// while another process writes it.
fn claim(beside: &Path) -> io::Result<Option<File>> {
    let file = OpenOptions::new().write(true).create(true).truncate(false).open(beside)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(fs::TryLockError::WouldBlock) => return Ok(None),
        Err(fs::TryLockError::Error(error)) => return Err(error),
    }
    // Between opening and locking, another process may have finished the file and moved it to its place.
    if !is_same(&file, beside)? {
        return Ok(None);
    }
    file.set_len(0)?;
    Ok(Some(file))
}

#[cfg(unix)]
fn is_same(file: &File, path: &Path) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    let id = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
    match fs::symlink_metadata(path) {
        Ok(metadata) => Ok(id(metadata) == id(file.metadata()?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(not(unix))]
fn is_same(_file: &File, path: &Path) -> io::Result<bool> {
    path.try_exists()
}

fn write_whole(file: &File, session: &Session, layout: &StateLayout, fingerprint: u64) -> io::Result<()> {
    let mut writer = BufWriter::with_capacity(BUFFER, file);
    encode(session, layout, fingerprint, &mut writer)?;
    writer.flush()?;
    drop(writer);
    file.sync_all()
}

/// Makes a rename last. Where folders cannot be opened, the system takes care of it or nobody can.
fn flush_folder(path: &Path) -> io::Result<()> {
    if cfg!(unix) { File::open(path)?.sync_all() } else { Ok(()) }
}
