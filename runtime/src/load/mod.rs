//! From a path to a model: specification, weights, and where its tokenizer is.

mod build;
mod error;
mod inspect;
mod metadata;
pub(crate) mod open;
mod packed;
pub(crate) mod progress;
pub(crate) mod store;
mod tokenizer;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use millpond_models::names::Names;
use millpond_models::{ModelSpec, SpecError, registry};

use self::build::Builder;
use self::open::{OpenFolder, OpenGguf};
use self::progress::Opener;
use self::store::TensorStore;
use crate::file::file_type_name;
use crate::file::gguf::Gguf;
use crate::file::mmap::{self, Access};
use crate::file::packed::Packed;
use crate::weights::{ByteSource, ModelWeights};

pub use error::LoadError;
pub use inspect::{Inspection, ModelSummary, TensorSummary, TypeSummary, inspect, inspect_built_in, verify};
pub use progress::{Loaded, Progress};
pub use tokenizer::{FolderText, GgufText, TablesText, TokenizerSource};

/// How to load a model.
#[derive(Clone, Debug, Default)]
pub struct LoadOptions {
    /// How the bytes of the files come into reach.
    pub access: Access,
    /// A GGUF file with the multi-token-prediction head of a model that was published without it (`mtp-*.gguf`). It goes
    /// before a head in the model's own files.
    pub mtp: Option<PathBuf>,
    /// Read every page of a mapped file at once, so that the first prompt need not wait for the disk.
    pub preload: bool,
    /// Told how far loading is.
    pub progress: Option<Progress>,
}

/// A loaded model.
#[derive(Clone, Debug)]
pub struct LoadedModel {
    /// What it is.
    pub spec: ModelSpec,
    /// Its weights: large ones are views into the files.
    pub weights: ModelWeights,
    /// Where its tokenizer is.
    pub tokenizer: TokenizerSource,
    /// The files it came from.
    pub files: Vec<FileInfo>,
    /// `general.name` of a GGUF file, or the name of the folder.
    pub name: Option<String>,
    /// What a GGUF or packed file calls its mixture of formats: the name of its `general.file_type`.
    pub file_type: Option<&'static str>,
}

/// A file a model came from.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct FileInfo {
    /// Its path.
    pub path: PathBuf,
    /// Its length.
    pub bytes: u64,
}

/// Loads a model from a GGUF file (the first, if there are several), a packed file, or a Hugging Face folder; a file of
/// that folder will do as well.
///
/// The files must not be shortened while the model is in use, unless they were read into memory
/// ([`Access::Read`]): what is mapped is read when it is needed.
///
/// # Errors
/// [`LoadError`] naming the file, key or tensor, what was found and what was expected.
pub fn load_model(path: &Path, options: &LoadOptions) -> Result<LoadedModel, LoadError> {
    let folder = folder_of(path)?;
    let opener = Opener::new(path, folder.as_deref(), options)?;
    let mut model = match folder {
        Some(folder) => load_folder(&folder, &open::open_folder(&folder, &opener)?)?,
        None if open::is_packed(path)? => packed::load(path, &packed::open(path, opener.open(path)?)?)?,
        None => {
            let opened = open::open_gguf(path, &opener)?;
            load_gguf(path, &opened)?
        }
    };
    if let Some(mtp) = &options.mtp {
        attach_mtp(&mut model, mtp, &opener)?;
    }
    Ok(model)
}

/// Loads a GGUF model that is part of the binary.
///
/// # Errors
/// As [`load_model`].
pub fn load_built_in(bytes: &'static [u8]) -> Result<LoadedModel, LoadError> {
    load_bytes(mmap::built_in(bytes), "built-in model")
}

/// Loads a GGUF or packed model whose bytes are at hand; messages call it `label`.
///
/// # Errors
/// As [`load_model`].
pub fn load_bytes(source: Arc<dyn ByteSource>, label: &str) -> Result<LoadedModel, LoadError> {
    let path = Path::new(label);
    match Packed::is_packed(source.bytes()) {
        true => packed::load(path, &packed::open(path, source)?),
        false => load_gguf(path, &open::open_gguf_bytes(path, source)?),
    }
}

/// The checkpoint folder that a path means; `None` for anything else.
pub(crate) fn folder_of(path: &Path) -> Result<Option<PathBuf>, LoadError> {
    let metadata =
        std::fs::metadata(path).map_err(|source| LoadError::Io { path: path.to_owned(), source })?;
    if metadata.is_dir() {
        return match path.join("config.json").exists() {
            true => Ok(Some(path.to_owned())),
            false => Err(LoadError::UnknownKind { path: path.to_owned() }),
        };
    }
    let extension = path.extension().and_then(|extension| extension.to_str());
    match extension {
        Some("safetensors" | "json") => match path.parent() {
            Some(folder) if folder.as_os_str().is_empty() => Ok(Some(PathBuf::from("."))),
            folder => Ok(folder.map(Path::to_owned)),
        },
        _ => Ok(None),
    }
}

/// Whether a file holds a multi-token-prediction head ([`LoadOptions::mtp`]) and no layers of a model besides.
///
/// # Errors
/// As [`load_model`]; a folder is no such file.
pub fn is_prediction_head(path: &Path) -> Result<bool, LoadError> {
    if folder_of(path)?.is_some() || open::is_packed(path)? {
        return Ok(false);
    }
    let opened = open::open_gguf(path, &Opener::quiet())?;
    let names = opened.store.tensors.keys();
    let (head, layers) = names.fold((false, false), |(head, layers), name| {
        (head || name.contains(".nextn."), layers || name.starts_with("blk.0."))
    });
    Ok(head && !layers)
}

pub(crate) fn load_gguf(path: &Path, opened: &OpenGguf) -> Result<LoadedModel, LoadError> {
    let OpenGguf { head, store } = opened;
    let spec = gguf_spec(path, opened)?;
    let names = Names::Gguf { layers: spec.layers.len() };
    let weights = Builder { spec: &spec, store, names: &names }.model()?;
    let tokenizer = TokenizerSource::of_gguf(path, head, spec.vocab)?;
    let name = head.text("general.name").unwrap_or_default().map(str::to_owned);
    Ok(LoadedModel { spec, weights, tokenizer, files: file_list(store), name, file_type: file_type_of(head) })
}

/// The name of a file's mixture of formats, where it has one that is known.
pub(crate) fn file_type_of(keys: &Gguf) -> Option<&'static str> {
    let number = keys.integer("general.file_type").ok()??;
    file_type_name(u32::try_from(number).ok()?)
}

fn gguf_spec(path: &Path, opened: &OpenGguf) -> Result<ModelSpec, LoadError> {
    registry::from_gguf(&opened.head, &|name| opened.store.has(name))
        .map_err(|source| spec_error(path, source))
}

fn spec_error(path: &Path, source: SpecError) -> LoadError {
    LoadError::Spec { path: path.to_owned(), source }
}

pub(crate) fn load_folder(folder: &Path, opened: &OpenFolder) -> Result<LoadedModel, LoadError> {
    let has = |name: &str| opened.store.has(name);
    let spec = registry::from_config(&opened.config, &has)
        .map_err(|source| spec_error(&opened.config_path, source))?;
    let names = Names::hugging_face(&has);
    let weights = Builder { spec: &spec, store: &opened.store, names: &names }.model()?;
    let tokenizer = TokenizerSource::of_folder(folder, &opened.config, spec.vocab)?;
    let name = folder.file_name().map(|name| name.to_string_lossy().into_owned());
    Ok(LoadedModel { spec, weights, tokenizer, files: file_list(&opened.store), name, file_type: None })
}

/// Takes the multi-token-prediction head from a file of its own.
fn attach_mtp(model: &mut LoadedModel, path: &Path, opener: &Opener<'_>) -> Result<(), LoadError> {
    let opened = open::open_gguf(path, opener)?;
    let spec = gguf_spec(path, &opened)?;
    let same: [(&'static str, usize, usize); 3] = [
        ("embedding_length", spec.hidden, model.spec.hidden),
        ("vocabulary", spec.vocab, model.spec.vocab),
        ("block_count", spec.layers.len(), model.spec.layers.len()),
    ];
    for (key, found, expected) in same {
        if found != expected {
            let (found, expected) = (found.to_string(), expected.to_string());
            return Err(LoadError::MtpMismatch { path: path.to_owned(), key, found, expected });
        }
    }
    let Some(mtp) = &spec.mtp else { return Err(LoadError::NoMtp { path: path.to_owned() }) };
    let names = Names::Gguf { layers: spec.layers.len() };
    let builder = Builder { spec: &spec, store: &opened.store, names: &names };
    model.weights.mtp = Some(builder.mtp(mtp, &model.weights)?);
    model.spec.mtp = Some(mtp.clone());
    model.files.extend(file_list(&opened.store));
    Ok(())
}

fn file_list(store: &TensorStore) -> Vec<FileInfo> {
    let info = |file: &store::OpenFile| FileInfo {
        path: file.path.clone(),
        bytes: file.source.bytes().len() as u64,
    };
    store.files.iter().map(info).collect()
}
