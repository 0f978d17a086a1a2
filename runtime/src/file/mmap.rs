//! Files as bytes: mapped read-only, read into memory, or built into the binary.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use memmap2::Mmap;

use crate::weights::ByteSource;

/// How the bytes of a file come into reach.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Access {
    /// Mapped: nothing is read before it is used, pages are shared between processes and can be evicted.
    #[default]
    Map,
    /// Mapped, read at once, and kept in memory until the last view is gone.
    Locked,
    /// Read into memory once; immune to later changes of the file.
    Read,
}

/// The system does not let a file be kept in memory: the cause of the error that [`open`] returns then.
#[derive(Debug, thiserror::Error)]
#[error("{bytes} bytes cannot be locked in memory: {source}")]
pub struct LockError {
    /// Bytes of the file.
    pub bytes: u64,
    /// What the system said.
    pub source: std::io::Error,
}

/// A read-only map of a whole file.
struct MappedFile(Mmap);

impl ByteSource for MappedFile {
    fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// Bytes that are part of the binary.
struct BuiltIn(&'static [u8]);

impl ByteSource for BuiltIn {
    fn bytes(&self) -> &[u8] {
        self.0
    }
}

/// The bytes of the regular file at `path` (a link to one counts).
///
/// # Errors
/// What the system says, and [`std::io::ErrorKind::InvalidInput`] for anything but a regular file: reading a pipe or a
/// device could block for ever.
pub fn open(path: &Path, access: Access) -> std::io::Result<Arc<dyn ByteSource>> {
    match access {
        Access::Map => Ok(Arc::new(map(&regular(path)?)?)),
        Access::Locked => locked(map(&regular(path)?)?),
        Access::Read => read_in_steps(path, usize::MAX, &mut |_| Ok(())),
    }
}

fn regular(path: &Path) -> std::io::Result<File> {
    match std::fs::metadata(path)?.is_file() {
        true => File::open(path),
        false => Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, "not a regular file")),
    }
}

/// [`open`] with [`Access::Read`] in steps of at most `step` bytes. After each, `advance` is told how many it brought; its
/// error ends the reading.
pub(crate) fn read_in_steps(
    path: &Path,
    step: usize,
    advance: &mut dyn FnMut(usize) -> std::io::Result<()>,
) -> std::io::Result<Arc<dyn ByteSource>> {
    let mut file = regular(path)?;
    let length = usize::try_from(file.metadata()?.len())
        .map_err(|_| std::io::Error::new(std::io::ErrorKind::OutOfMemory, "larger than the address space"))?;
    let mut bytes = Vec::new();
    bytes
        .try_reserve_exact(length)
        .map_err(|error| std::io::Error::new(std::io::ErrorKind::OutOfMemory, error.to_string()))?;
    // At most the length seen at open, whatever happens to the file meanwhile.
    while bytes.len() < length {
        let wanted = step.min(length - bytes.len());
        match (&mut file).take(wanted as u64).read_to_end(&mut bytes)? {
            0 => break,
            read => advance(read)?,
        }
    }
    Ok(Arc::new(bytes))
}

/// A source over bytes built into the binary.
pub fn built_in(bytes: &'static [u8]) -> Arc<dyn ByteSource> {
    Arc::new(BuiltIn(bytes))
}

fn locked(file: MappedFile) -> std::io::Result<Arc<dyn ByteSource>> {
    // The system refuses to lock nothing.
    if !file.0.is_empty()
        && let Err(source) = file.0.lock()
    {
        let (kind, bytes) = (source.kind(), file.0.len() as u64);
        return Err(std::io::Error::new(kind, LockError { bytes, source }));
    }
    Ok(Arc::new(file))
}

fn map(file: &File) -> std::io::Result<MappedFile> {
    // SAFETY: the map is private and read-only and its length is the file's length at this moment, so every byte of it
    // exists. Another process that shortens or rewrites the file while it is mapped is outside what a program can
    // prevent; the documentation says so and `Access::Read` is the way around it.
    let map = unsafe { Mmap::map(file)? };
    // Where the file system caches files in large pieces, what is read through this map comes in huge pages: a file that
    // was not cached loads in a third of the time, and a cached one takes hundreds of page faults instead of thousands.
    // It takes no memory beyond the cache's.
    #[cfg(target_os = "linux")]
    if let Err(error) = map.advise(memmap2::Advice::HugePage) {
        tracing::debug!(%error, "huge pages are not available for the model file");
    }
    Ok(MappedFile(map))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_give_the_same_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, b"some bytes").unwrap();
        for access in [Access::Map, Access::Locked, Access::Read] {
            assert_eq!(open(&path, access).unwrap().bytes(), b"some bytes");
        }
    }

    #[test]
    fn an_empty_file_is_no_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, b"").unwrap();
        for access in [Access::Map, Access::Locked, Access::Read] {
            assert!(open(&path, access).unwrap().bytes().is_empty());
        }
    }

    #[test]
    fn a_folder_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        for access in [Access::Map, Access::Locked, Access::Read] {
            let error = open(folder.path(), access).err().unwrap();
            assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput);
        }
    }
}
