//! Opening the files of a model: a GGUF file and its shards, or a folder of safetensors files.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;

use super::error::LoadError;
use super::progress::Opener;
use super::store::TensorStore;
use crate::file::gguf::Gguf;
use crate::file::packed::{MAGIC, Packed};
use crate::file::safetensors::{IndexError, SafetensorsFile, find_checkpoint};
use crate::weights::ByteSource;

/// Most shards a GGUF model may have.
const MAX_SHARDS: i128 = 10_000;
/// Longest configuration file in bytes.
const MAX_CONFIG: u64 = 16 << 20;

/// An opened GGUF model.
pub(crate) struct OpenGguf {
    /// The first file: metadata of all.
    pub(crate) head: Gguf,
    pub(crate) store: TensorStore,
}

/// An opened checkpoint folder.
pub(crate) struct OpenFolder {
    pub(crate) config: Value,
    pub(crate) config_path: PathBuf,
    pub(crate) store: TensorStore,
}

/// Whether a file begins as a packed file does. Anything but a regular file is none: reading it could block.
pub(crate) fn is_packed(path: &Path) -> Result<bool, LoadError> {
    let failed = |source| LoadError::Io { path: path.to_owned(), source };
    if !std::fs::metadata(path).map_err(failed)?.is_file() {
        return Ok(false);
    }
    let mut start = Vec::new();
    let file = File::open(path).map_err(failed)?;
    file.take(MAGIC.len() as u64).read_to_end(&mut start).map_err(failed)?;
    Ok(Packed::is_packed(&start))
}

fn parse_gguf(path: &Path, source: Arc<dyn ByteSource>) -> Result<Gguf, LoadError> {
    Gguf::parse(source).map_err(|source| LoadError::Gguf { path: path.to_owned(), source })
}

/// Opens a GGUF file and, if it is the first of several, the others.
pub(crate) fn open_gguf(path: &Path, opener: &Opener<'_>) -> Result<OpenGguf, LoadError> {
    let head = parse_gguf(path, opener.open(path)?)?;
    let mut store = TensorStore::default();
    store.add_gguf(path, &head)?;
    let shards = shard_field(path, &head, "split.count")?.unwrap_or(1);
    if shards > 1 {
        let own = shard_field(path, &head, "split.no")?.unwrap_or(0);
        let paths = shard_paths(path, own, shards)?;
        for (number, path) in paths.iter().enumerate().skip(1) {
            let shard = parse_gguf(path, opener.open(path)?)?;
            check_shard(path, &shard, number as i128, shards, &head)?;
            store.add_gguf(path, &shard)?;
        }
    }
    check_tensor_count(path, &head, &store)?;
    Ok(OpenGguf { head, store })
}

/// Opens a GGUF file that is already in memory.
pub(crate) fn open_gguf_bytes(path: &Path, source: Arc<dyn ByteSource>) -> Result<OpenGguf, LoadError> {
    let head = parse_gguf(path, source)?;
    let mut store = TensorStore::default();
    store.add_gguf(path, &head)?;
    if shard_field(path, &head, "split.count")?.unwrap_or(1) > 1 {
        return Err(shards_error(path, "one of several files, but only this one is at hand".to_owned()));
    }
    Ok(OpenGguf { head, store })
}

fn shards_error(path: &Path, message: String) -> LoadError {
    LoadError::Shards { path: path.to_owned(), message }
}

fn shard_field(path: &Path, gguf: &Gguf, key: &str) -> Result<Option<i128>, LoadError> {
    gguf.integer(key).map_err(|source| LoadError::Gguf { path: path.to_owned(), source })
}

/// The paths of all shards, from that of the first, which ends in `-00001-of-0000N.gguf`.
fn shard_paths(path: &Path, own: i128, shards: i128) -> Result<Vec<PathBuf>, LoadError> {
    if shards > MAX_SHARDS {
        let message = format!("`split.count` is {shards}; at most {MAX_SHARDS} expected");
        return Err(shards_error(path, message));
    }
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let of = |number: i128| format!("-{:05}-of-{shards:05}.gguf", number + 1);
    let Some(stem) = name.strip_suffix(&of(own)) else {
        let message = format!("`split.count` is {shards}, so a name that ends in `{}` is expected", of(own));
        return Err(shards_error(path, message));
    };
    if own != 0 {
        let message = format!("shard {} of {shards}; open the first, `{stem}{}`", own + 1, of(0));
        return Err(shards_error(path, message));
    }
    Ok((0..shards).map(|number| path.with_file_name(format!("{stem}{}", of(number)))).collect())
}

fn check_shard(path: &Path, shard: &Gguf, number: i128, shards: i128, head: &Gguf) -> Result<(), LoadError> {
    for (key, expected) in [("split.no", number), ("split.count", shards)] {
        let found = shard_field(path, shard, key)?;
        if found != Some(expected) {
            let found = found.map_or("missing".to_owned(), |found| found.to_string());
            return Err(shards_error(path, format!("`{key}` is {found}; {expected} expected")));
        }
    }
    const ARCHITECTURE: &str = "general.architecture";
    let (own, expected) = (shard.value(ARCHITECTURE), head.value(ARCHITECTURE));
    match own.is_none() || own == expected {
        true => Ok(()),
        false => Err(shards_error(path, format!("`{ARCHITECTURE}` is not that of the first shard"))),
    }
}

fn check_tensor_count(path: &Path, head: &Gguf, store: &TensorStore) -> Result<(), LoadError> {
    let found = store.tensors.len() as i128;
    match shard_field(path, head, "split.tensors.count")? {
        Some(expected) if expected != found => {
            let message = format!("the shards hold {found} tensors; `split.tensors.count` is {expected}");
            Err(shards_error(path, message))
        }
        _ => Ok(()),
    }
}

/// Opens the checkpoint in a folder.
pub(crate) fn open_folder(folder: &Path, opener: &Opener<'_>) -> Result<OpenFolder, LoadError> {
    let config_path = folder.join("config.json");
    let config = read_json(&config_path)?;
    let checkpoint = find_checkpoint(folder)?;
    let mut store = TensorStore::default();
    for path in &checkpoint.files {
        let opened = SafetensorsFile::parse(opener.open(path)?)
            .map_err(|source| LoadError::Safetensors { path: path.clone(), source })?;
        store.add_safetensors(path, &opened)?;
    }
    for (tensor, &file) in &checkpoint.index {
        if store.tensors.get(tensor).is_none_or(|stored| stored.file != file) {
            let file = checkpoint.files[file].file_name().unwrap_or_default().to_string_lossy().into_owned();
            let absent =
                IndexError::Absent { path: checkpoint.index_path.clone(), tensor: tensor.clone(), file };
            return Err(absent.into());
        }
    }
    Ok(OpenFolder { config, config_path, store })
}

/// A small JSON file.
pub(crate) fn read_json(path: &Path) -> Result<Value, LoadError> {
    let failed = |source| LoadError::Io { path: path.to_owned(), source };
    let metadata = std::fs::metadata(path).map_err(failed)?;
    let refused = |message: String| LoadError::Json { path: path.to_owned(), message };
    if !metadata.is_file() || metadata.len() > MAX_CONFIG {
        return Err(refused(format!("a regular file of at most {MAX_CONFIG} bytes expected")));
    }
    let text = std::fs::read_to_string(path).map_err(failed)?;
    serde_json::from_str(&text).map_err(|error| refused(format!("not JSON: {error}")))
}
