//! Files into the cache: resumed where a try ended, checked before they get their name.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest, Sha256};
use ureq::http::header::{CONTENT_RANGE, RETRY_AFTER};

use super::client::{Client, HubFile};
use super::error::HubError;
use super::pull::Watcher;

/// Tries in a row that may bring next to nothing.
const TRIES: u32 = 4;
/// Bytes from which a try counts as worth it.
const WORTHWHILE: u64 = 1 << 20;
/// Bytes moved at once.
const CHUNK: usize = 1 << 18;
/// Longest pause that a hub can ask for.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Fetches a file to `place`, by way of a file beside it that a later try goes on with.
///
/// # Errors
/// [`HubError`]; what came is kept, unless it is wrong.
pub(super) fn fetch(
    client: &Client,
    url: &str,
    file: &HubFile,
    place: &Path,
    watcher: &mut dyn Watcher,
) -> Result<(), HubError> {
    let mut partial = Partial::open(place, file)?;
    let mut tries = 0;
    while partial.bytes < file.size || tries == 0 {
        let before = partial.bytes;
        match partial.go_on(client, url, file, watcher) {
            Ok(()) => {}
            Err(Stop::Final(error)) => return Err(error),
            Err(Stop::Later(error, pause)) => {
                tries = if partial.bytes >= before + WORTHWHILE { 1 } else { tries + 1 };
                if tries >= TRIES {
                    return Err(error);
                }
                tracing::info!(%error, tries, "trying again");
                wait(pause.unwrap_or(Duration::from_millis(250 << tries)), watcher)?;
                continue;
            }
        }
        tries += 1;
    }
    partial.finish(file, place)
}

/// Waits, and looks for the user's wish to stop meanwhile.
fn wait(time: Duration, watcher: &mut dyn Watcher) -> Result<(), HubError> {
    let step = Duration::from_millis(50);
    let mut left = time.min(LONGEST_PAUSE);
    while !left.is_zero() {
        if watcher.is_stopped() {
            return Err(HubError::Interrupted);
        }
        std::thread::sleep(step.min(left));
        left = left.saturating_sub(step);
    }
    Ok(())
}

/// Why a try ended before the file did.
enum Stop {
    /// Another try would end alike.
    Final(HubError),
    /// Another may go on, after a pause if the hub asked for one.
    Later(HubError, Option<Duration>),
}

/// What has come of a file.
struct Partial {
    path: PathBuf,
    file: File,
    bytes: u64,
    hash: Sha256,
}

impl Partial {
    /// What an earlier try left, with its hash, or nothing.
    fn open(place: &Path, wanted: &HubFile) -> Result<Partial, HubError> {
        let mut path = place.as_os_str().to_owned();
        path.push(".incomplete");
        let path = PathBuf::from(path);
        let failed = || HubError::io(&path);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(failed())?;
        let mut hash = Sha256::new();
        let mut bytes = file.metadata().map_err(failed())?.len();
        // Without a hash nobody would notice a start that belongs to something else.
        if bytes > wanted.size || wanted.sha256.is_none() {
            file.set_len(0).map_err(failed())?;
            bytes = 0;
        }
        let mut chunk = vec![0; CHUNK];
        let mut left = bytes;
        while left > 0 {
            let count = file.read(&mut chunk).map_err(failed())?;
            if count == 0 {
                break;
            }
            hash.update(&chunk[..count]);
            left = left.saturating_sub(count as u64);
        }
        file.seek(SeekFrom::Start(bytes)).map_err(failed())?;
        Ok(Partial { path, file, bytes, hash })
    }

    fn restart(&mut self) -> Result<(), HubError> {
        let failed = || HubError::io(&self.path);
        self.file.set_len(0).map_err(failed())?;
        self.file.seek(SeekFrom::Start(0)).map_err(failed())?;
        self.bytes = 0;
        self.hash = Sha256::new();
        Ok(())
    }

    /// One request for the rest of the file.
    fn go_on(
        &mut self,
        client: &Client,
        url: &str,
        wanted: &HubFile,
        watcher: &mut dyn Watcher,
    ) -> Result<(), Stop> {
        watcher.at(self.bytes);
        if self.bytes == wanted.size && wanted.size > 0 {
            return Ok(());
        }
        let response =
            client.get(url, (self.bytes > 0).then_some(self.bytes)).map_err(|error| match error {
                HubError::Http { .. } => Stop::Later(error, None),
                other => Stop::Final(other),
            })?;
        let status = response.status().as_u16();
        match status {
            206 if self.bytes > 0 && goes_on(&response, self.bytes, wanted.size) => {}
            // The whole file, or another part of it than was asked for.
            200 => self.restart().map_err(Stop::Final)?,
            206 | 416 if self.bytes > 0 => {
                self.restart().map_err(Stop::Final)?;
                return Err(Stop::Later(
                    HubError::Status { url: url.to_owned(), status },
                    Some(Duration::ZERO),
                ));
            }
            401 | 403 => return Err(Stop::Final(HubError::Forbidden(wanted.path.clone()))),
            408 | 425 | 429 | 500..=599 => {
                let pause =
                    response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
                let error = HubError::Status { url: url.to_owned(), status };
                return Err(Stop::Later(error, pause.map(Duration::from_secs)));
            }
            _ => return Err(Stop::Final(HubError::Status { url: url.to_owned(), status })),
        }
        self.take(response.into_body().into_reader(), wanted, watcher)
    }

    /// Writes what comes, and not a byte more than was announced.
    fn take(&mut self, mut body: impl Read, wanted: &HubFile, watcher: &mut dyn Watcher) -> Result<(), Stop> {
        let mut chunk = vec![0; CHUNK];
        loop {
            if watcher.is_stopped() {
                return Err(Stop::Final(HubError::Interrupted));
            }
            let count = match body.read(&mut chunk) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) => {
                    tracing::debug!(%error, "the connection broke");
                    break;
                }
            };
            if self.bytes + count as u64 > wanted.size {
                self.restart().map_err(Stop::Final)?;
                return Err(Stop::Final(HubError::TooLong {
                    file: wanted.path.clone(),
                    expected: wanted.size,
                }));
            }
            self.file.write_all(&chunk[..count]).map_err(HubError::io(&self.path)).map_err(Stop::Final)?;
            self.hash.update(&chunk[..count]);
            self.bytes += count as u64;
            watcher.at(self.bytes);
        }
        if self.bytes < wanted.size {
            let (found, expected) = (self.bytes, wanted.size);
            return Err(Stop::Later(
                HubError::Truncated { file: wanted.path.clone(), found, expected },
                None,
            ));
        }
        Ok(())
    }

    /// Checks the whole and gives it its name.
    fn finish(self, wanted: &HubFile, place: &Path) -> Result<(), HubError> {
        if let Some(expected) = &wanted.sha256 {
            let found = hexadecimal(&self.hash.finalize());
            if found != *expected {
                std::fs::remove_file(&self.path).map_err(HubError::io(&self.path))?;
                return Err(HubError::Hash { file: wanted.path.clone(), found, expected: expected.clone() });
            }
        }
        self.file.sync_all().map_err(HubError::io(&self.path))?;
        std::fs::rename(&self.path, place).map_err(HubError::io(place))
    }
}

/// Whether a part of a file is the rest that was asked for: `bytes 5-9/10`.
fn goes_on(response: &ureq::http::Response<ureq::Body>, from: u64, size: u64) -> bool {
    let range = response.headers().get(CONTENT_RANGE).and_then(|range| range.to_str().ok());
    let Some((part, total)) =
        range.and_then(|range| range.strip_prefix("bytes ")).and_then(|range| range.split_once('/'))
    else {
        return false;
    };
    let start = part.split_once('-').and_then(|(start, _)| start.parse::<u64>().ok());
    start == Some(from) && (total == "*" || total.parse() == Ok(size))
}

/// The SHA-256 of a file, in hexadecimal digits.
///
/// # Errors
/// What the system says.
pub(super) fn hash_of(path: &Path) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let mut hash = Sha256::new();
    let mut chunk = vec![0; CHUNK];
    loop {
        match file.read(&mut chunk)? {
            0 => return Ok(hexadecimal(&hash.finalize())),
            count => hash.update(&chunk[..count]),
        }
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_those_of_the_standard() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("abc");
        std::fs::write(&path, b"abc").unwrap();
        // FIPS 180-4's example.
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(hash_of(&path).unwrap(), expected);
    }
}
