//! Telling a host how far loading is, and being told to stop.

use std::cell::Cell;
use std::fmt;
use std::hint::black_box;
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::LoadOptions;
use super::error::LoadError;
use crate::file::mmap::{self, Access};
use crate::file::safetensors::find_checkpoint;
use crate::weights::ByteSource;

/// How far loading is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Loaded {
    /// Bytes of the files that are within reach.
    pub done: u64,
    /// Bytes of all files.
    pub total: u64,
}

type Callback = dyn Fn(Loaded) -> ControlFlow<()> + Send + Sync;

/// Called while a model is loaded, on the thread that loads it; [`ControlFlow::Break`] gives up with
/// [`LoadError::Cancelled`].
///
/// ```
/// use std::ops::ControlFlow;
/// use millpond::model::{LoadOptions, Model, Progress};
///
/// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../server/assets/delta-48m-Q4_K_M.gguf");
/// let cancelled = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
/// let asked = cancelled.clone();
/// let progress = Progress::new(move |loaded| {
///     let _share = loaded.done as f64 / loaded.total as f64; // for a progress bar
///     match asked.load(std::sync::atomic::Ordering::Relaxed) {
///         true => ControlFlow::Break(()),
///         false => ControlFlow::Continue(()),
///     }
/// });
/// // Without `preload`, a mapped file is within reach at once and read when it is needed.
/// let options = LoadOptions { preload: true, progress: Some(progress), ..LoadOptions::default() };
/// let model = Model::load(path.as_ref(), &options)?;
/// # Ok::<(), millpond::model::ModelError>(())
/// ```
#[derive(Clone)]
pub struct Progress(Arc<Callback>);

impl Progress {
    /// A callback.
    pub fn new(callback: impl Fn(Loaded) -> ControlFlow<()> + Send + Sync + 'static) -> Progress {
        Progress(Arc::new(callback))
    }
}

impl fmt::Debug for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Progress")
    }
}

/// Bytes between two calls.
const STEP: usize = 16 << 20;
/// Bytes of the smallest page of memory in use.
const PAGE: usize = 4096;

/// Opens the files of one model and reports how far it is.
pub(crate) struct Opener<'a> {
    access: Access,
    preload: bool,
    progress: Option<&'a Progress>,
    done: Cell<u64>,
    total: u64,
}

impl<'a> Opener<'a> {
    /// For a model at `path`: a GGUF file, or the folder `folder`.
    pub(super) fn new(
        path: &Path,
        folder: Option<&Path>,
        options: &'a LoadOptions,
    ) -> Result<Opener<'a>, LoadError> {
        let mut total = 0;
        if options.progress.is_some() {
            let mut files = match folder {
                Some(folder) => find_checkpoint(folder)?.files,
                None => shards_by_name(path),
            };
            files.extend(options.mtp.clone());
            // A file that is missing is reported when it is opened.
            total = files.iter().filter_map(|file| std::fs::metadata(file).ok()).map(|file| file.len()).sum();
        }
        let LoadOptions { access, preload, .. } = *options;
        Ok(Opener { access, preload, progress: options.progress.as_ref(), done: Cell::new(0), total })
    }

    /// Maps files and tells nobody.
    pub(crate) fn quiet() -> Opener<'static> {
        Opener { access: Access::Map, preload: false, progress: None, done: Cell::new(0), total: 0 }
    }

    /// The bytes of a file.
    pub(crate) fn open(&self, path: &Path) -> Result<Arc<dyn ByteSource>, LoadError> {
        let failed = |source: io::Error| match source.kind() {
            // Reads that a signal interrupts are taken up again below: this is the callback's doing.
            io::ErrorKind::Interrupted => LoadError::Cancelled,
            _ => LoadError::Io { path: path.to_owned(), source },
        };
        match self.access {
            Access::Read => mmap::read_in_steps(path, STEP, &mut |bytes| self.advance(bytes)).map_err(failed),
            access => {
                let source = mmap::open(path, access).map_err(failed)?;
                // What is locked has been read.
                if self.preload && access == Access::Map {
                    for step in source.bytes().chunks(STEP) {
                        touch(step);
                        self.advance(step.len()).map_err(failed)?;
                    }
                } else {
                    self.advance(source.bytes().len()).map_err(failed)?;
                }
                Ok(source)
            }
        }
    }

    fn advance(&self, bytes: usize) -> io::Result<()> {
        let Some(Progress(callback)) = self.progress else { return Ok(()) };
        let done = self.done.get() + bytes as u64;
        self.done.set(done);
        // A file may have grown since its size was asked for.
        match callback(Loaded { done, total: self.total.max(done) }) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(io::ErrorKind::Interrupted.into()),
        }
    }
}

/// Reads a byte of each page, which brings it into memory.
fn touch(bytes: &[u8]) {
    for page in bytes.chunks(PAGE) {
        black_box(page[0]);
    }
}

/// The shards of a GGUF model by the name of the first, `-00001-of-0000N.gguf`; the file alone if it has no such name.
fn shards_by_name(path: &Path) -> Vec<PathBuf> {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let count = name.strip_suffix(".gguf").and_then(|stem| {
        let (rest, count) = stem.rsplit_once("-of-")?;
        let stem = rest.strip_suffix("-00001")?;
        Some((stem, count.parse::<u32>().ok().filter(|count| count.to_string().len() <= 5)?))
    });
    match count {
        Some((stem, count)) => {
            let shard = |number| path.with_file_name(format!("{stem}-{number:05}-of-{count:05}.gguf"));
            (1..=count).map(shard).collect()
        }
        None => vec![path.to_owned()],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_are_found_by_their_names() {
        let names = |path: &str| -> Vec<String> {
            shards_by_name(Path::new(path)).iter().map(|path| path.display().to_string()).collect()
        };
        assert_eq!(names("a/b.gguf"), ["a/b.gguf"]);
        assert_eq!(names("a/b-00001-of-00002.gguf"), ["a/b-00001-of-00002.gguf", "a/b-00002-of-00002.gguf"]);
        for single in ["b-00002-of-00002.gguf", "b-00001-of-many.gguf", "b-00001-of-999999.gguf", ".."] {
            assert_eq!(names(single), [single]);
        }
    }
}
