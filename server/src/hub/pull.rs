//! A model from a hub into the cache.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

use super::cache::Cache;
use super::client::{Client, HubFile};
use super::error::HubError;
use super::reference::ModelRef;
use super::{download, select};

/// Follows a download, and may end it.
pub trait Watcher {
    /// A file of so many bytes begins; it is one of `count`.
    fn begins(&mut self, path: &str, bytes: u64, number: usize, count: usize);
    /// So many bytes of it are there.
    fn at(&mut self, bytes: u64);
    /// Whether the user wants to stop.
    fn is_stopped(&self) -> bool;
}

/// A model that is on this machine now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pulled {
    /// What to load: a GGUF file, or a folder.
    pub path: PathBuf,
    /// Files that had to be fetched.
    pub fetched: usize,
    /// Bytes of all its files.
    pub bytes: u64,
    /// The revision.
    pub commit: String,
}

/// The revision that is pulled.
const REVISION: &str = "main";

/// Makes the current revision of a model available in the cache; files that are there already are not fetched again.
///
/// # Errors
/// [`HubError`].
pub fn pull(
    client: &Client,
    cache: &Cache,
    model: &ModelRef,
    file: Option<&str>,
    watcher: &mut dyn Watcher,
) -> Result<Pulled, HubError> {
    let listing = client.list(model, REVISION)?;
    let names: Vec<String> = listing.files.iter().map(|file| file.path.clone()).collect();
    let selection = select::choose(&names, model.quant.as_deref(), file).ok_or_else(|| HubError::NoFile {
        model: model.repository(),
        wanted: file.or(model.quant.as_deref()).unwrap_or("model").to_owned(),
        there: select::choices(&names),
    })?;
    let files: Vec<&HubFile> = selection
        .files
        .iter()
        .filter_map(|path| listing.files.iter().find(|file| file.path == *path))
        .collect();
    let mut fetched = 0;
    for (number, file) in files.iter().enumerate() {
        let place = cache.blob(model, &file.etag);
        make_folder_of(&place)?;
        let _lock = lock(&cache.lock(model, &file.etag), &file.path)?;
        if !is_whole(&place, file) {
            watcher.begins(&file.path, file.size, number + 1, files.len());
            let url = client.file_url(model, &listing.commit, &file.path);
            download::fetch(client, &url, file, &place, watcher)?;
            fetched += 1;
        }
        cache.link(model, &listing.commit, &file.path, &file.etag)?;
    }
    // Last, so that whoever reads it finds everything it stands for.
    cache.set_revision(model, REVISION, &listing.commit)?;
    let snapshot = cache.snapshot(model, &listing.commit);
    let path = if selection.is_folder { snapshot } else { snapshot.join(&selection.files[0]) };
    let bytes = files.iter().map(|file| file.size).sum();
    Ok(Pulled { path, fetched, bytes, commit: listing.commit })
}

/// Whether a file is there with all its bytes; its hash was checked when it came.
fn is_whole(place: &Path, file: &HubFile) -> bool {
    std::fs::metadata(place).is_ok_and(|metadata| metadata.is_file() && metadata.len() == file.size)
}

fn make_folder_of(path: &Path) -> Result<(), HubError> {
    match path.parent() {
        Some(folder) => std::fs::create_dir_all(folder).map_err(HubError::io(folder)),
        None => Ok(()),
    }
}

/// Keeps other processes from fetching the same file, for as long as the lock is held.
fn lock(path: &Path, file: &str) -> Result<File, HubError> {
    make_folder_of(path)?;
    let lock =
        File::options().create(true).truncate(false).write(true).open(path).map_err(HubError::io(path))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(HubError::Busy(file.to_owned())),
        Err(TryLockError::Error(error)) => Err(HubError::io(path)(error)),
    }
}
