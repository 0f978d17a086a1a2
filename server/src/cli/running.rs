//! Servers tell of themselves in a small file each, so that `ps` finds them.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::folders;

/// Longest such file, in bytes.
const MAX_FILE: u64 = 64 << 10;
/// Most of them that are looked at.
const MAX_FILES: usize = 1000;

/// A running server, in its own words.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub(crate) struct Running {
    /// Its process.
    pub(crate) process: u32,
    /// Where it listens: `http://host:port`, or the path of a socket.
    pub(crate) address: String,
    /// Its model.
    pub(crate) model: String,
    /// When it started, in seconds since 1970.
    pub(crate) started: u64,
}

/// The file of this process, removed when this is dropped.
#[derive(Debug)]
pub(crate) struct RunFile(PathBuf);

impl RunFile {
    /// Tells of a server. `None` where there is no place for that: `ps` will not list it.
    #[must_use]
    pub(crate) fn write(running: &Running) -> Option<RunFile> {
        let folder = folders::running()?;
        let path = folder.join(format!("{}.json", running.process));
        let written = std::fs::create_dir_all(&folder)
            .and_then(|()| Ok(serde_json::to_vec(running)?))
            .and_then(|text| std::fs::write(&path, text));
        match written {
            Ok(()) => Some(RunFile(path)),
            Err(error) => {
                tracing::info!(%error, path = %path.display(), "`ps` will not list this server");
                None
            }
        }
    }
}

impl Drop for RunFile {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.0) {
            tracing::debug!(%error, path = %self.0.display(), "a run file stays behind");
        }
    }
}

/// What servers have told of themselves, with the files: they may be gone since.
#[must_use]
pub(crate) fn told() -> Vec<(PathBuf, Running)> {
    let Some(folder) = folders::running() else { return Vec::new() };
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut told: Vec<(PathBuf, Running)> = entries
        .flatten()
        .take(MAX_FILES)
        .map(|entry| entry.path())
        .filter_map(|path| read(&path).map(|running| (path, running)))
        .collect();
    told.sort_by_key(|(_, running)| running.started);
    told
}

fn read(path: &Path) -> Option<Running> {
    let metadata = std::fs::metadata(path).ok()?;
    if !metadata.is_file() || metadata.len() > MAX_FILE {
        return None;
    }
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}
