//! Files that appear whole or not at all.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// Bytes collected before the system is asked to write.
const BUFFER: usize = 1 << 20;
/// Names tried for the temporary file.
const ATTEMPTS: u32 = 100;

/// A file that is written beside its final name and takes that name only when [`OutputFile::finish`] is called. Dropped
/// before that, it leaves nothing behind and an older file of the name untouched.
#[derive(Debug)]
pub struct OutputFile {
    path: PathBuf,
    temporary: PathBuf,
    /// Taken by `finish`.
    file: Option<BufWriter<File>>,
}

impl OutputFile {
    /// Starts a file that will be called `path`.
    ///
    /// # Errors
    /// What the system says; [`io::ErrorKind::InvalidInput`] for a path without a name, or of something that is there
    /// and no regular file: a folder, a device.
    pub fn create(path: &Path) -> io::Result<OutputFile> {
        let refused = |message| Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        let Some(name) = path.file_name() else { return refused("no file name") };
        // A link stays a link: what it points to is replaced.
        let path = match path.canonicalize() {
            Ok(target) if !target.is_file() => return refused("not a regular file"),
            Ok(target) => target,
            Err(_) => path.to_owned(),
        };
        for attempt in 0..ATTEMPTS {
            let mut beside = OsString::from(".");
            beside.push(name);
            beside.push(format!(".{}-{attempt}.part", std::process::id()));
            let temporary = path.with_file_name(beside);
            match OpenOptions::new().write(true).create_new(true).open(&temporary) {
                Ok(file) => {
                    let file = Some(BufWriter::with_capacity(BUFFER, file));
                    return Ok(OutputFile { path, temporary, file });
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::Error::new(io::ErrorKind::AlreadyExists, "no free name for a temporary file"))
    }

    /// Writes over bytes that were written before, and goes on behind the last one.
    ///
    /// # Errors
    /// What the system says.
    pub fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let file = self.open()?;
        file.seek(SeekFrom::Start(offset))?;
        file.write_all(bytes)?;
        file.seek(SeekFrom::End(0))?;
        Ok(())
    }

    /// Brings everything to the disk and gives the file its name.
    ///
    /// # Errors
    /// What the system says; nothing is left behind then.
    pub fn finish(mut self) -> io::Result<()> {
        if let Some(file) = self.file.take() {
            let file = file.into_inner().map_err(io::IntoInnerError::into_error)?;
            file.sync_all()?;
        }
        std::fs::rename(&self.temporary, &self.path)?;
        self.temporary.clear();
        Ok(())
    }

    fn open(&mut self) -> io::Result<&mut BufWriter<File>> {
        self.file.as_mut().ok_or_else(|| io::Error::other("the file is finished"))
    }
}

impl Write for OutputFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.open()?.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.open()?.flush()
    }
}

impl Drop for OutputFile {
    fn drop(&mut self) {
        if !self.temporary.as_os_str().is_empty() {
            // Bytes that are thrown away need not be flushed first.
            if let Some(file) = self.file.take() {
                drop(file.into_parts());
            }
            if let Err(error) = std::fs::remove_file(&self.temporary) {
                tracing::warn!("cannot remove {}: {error}", self.temporary.display());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_appears_when_it_is_finished() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out");
        std::fs::write(&path, b"old").unwrap();
        let mut out = OutputFile::create(&path).unwrap();
        out.write_all(b"new bytes").unwrap();
        out.write_at(0, b"N").unwrap();
        out.write_all(b"!").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        out.finish().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"New bytes!");
        assert_eq!(names(folder.path()), ["out"]);
    }

    #[test]
    fn a_file_given_up_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out");
        let mut out = OutputFile::create(&path).unwrap();
        out.write_all(b"half").unwrap();
        drop(out);
        assert!(names(folder.path()).is_empty());
    }

    #[test]
    fn folders_are_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        assert!(OutputFile::create(folder.path()).is_err());
        assert!(OutputFile::create(&folder.path().join("absent").join("out")).is_err());
        assert!(OutputFile::create(Path::new("..")).is_err());
    }
}
