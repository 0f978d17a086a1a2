//! Why a model could not be loaded.

use std::path::PathBuf;

use millpond_models::SpecError;

use crate::file::gguf::GgufError;
use crate::file::packed::PackedError;
use crate::file::safetensors::{IndexError, SafetensorsError};
use crate::text::TablesError;
use crate::weights::MatrixError;

/// Why a model could not be loaded. Each message names the file or tensor, what was found and what was expected.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the messages say what the fields are
pub enum LoadError {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error("{}: {source}", path.display())]
    Gguf { path: PathBuf, source: GgufError },
    #[error("{}: {source}", path.display())]
    Packed { path: PathBuf, source: PackedError },
    #[error("{}: {source}", path.display())]
    Tables { path: PathBuf, source: TablesError },
    #[error("{}: a tokenizer of {found} tokens for a model of {vocab}", path.display())]
    Tokens { path: PathBuf, found: usize, vocab: usize },
    #[error("{}: {source}", path.display())]
    Safetensors { path: PathBuf, source: SafetensorsError },
    #[error(transparent)]
    Index(#[from] IndexError),
    #[error("{}: {source}", path.display())]
    Spec { path: PathBuf, source: SpecError },
    #[error("{}: {message}", path.display())]
    Json { path: PathBuf, message: String },
    #[error("{}: neither a GGUF or packed file nor a folder with config.json and safetensors files", path.display())]
    UnknownKind { path: PathBuf },
    #[error("{}: {message}", path.display())]
    Shards { path: PathBuf, message: String },
    #[error("tensor `{name}` is in two files, {} and {}", first.display(), second.display())]
    DuplicateTensor { name: String, first: PathBuf, second: PathBuf },
    #[error("tensor `{name}` is missing; shape {expected:?} expected")]
    MissingTensor { name: String, expected: Vec<usize> },
    #[error("tensor `{name}` has shape {found:?}; {expected:?} expected")]
    Shape { name: String, found: Vec<usize>, expected: Vec<usize> },
    #[error("tensor `{name}` is of type {found}; {expected} expected")]
    Format { name: String, found: String, expected: String },
    #[error("tensor `{name}`: {source}")]
    Matrix { name: String, source: MatrixError },
    #[error("tensor `{name}` has the value {value} at position {index}; finite numbers expected")]
    NotFinite { name: String, index: usize, value: f32 },
    #[error("tensor `{name}` belongs to no part of {arch} that this program computes")]
    ExtraTensor { name: String, arch: String },
    #[error("{}: `{key}` is {found}, but the model's is {expected}", path.display())]
    MtpMismatch { path: PathBuf, key: &'static str, found: String, expected: String },
    #[error("{}: no multi-token-prediction block", path.display())]
    NoMtp { path: PathBuf },
    #[error("{}: `{key}` is {found}, outside the vocabulary of {vocab}", path.display())]
    TokenId { path: PathBuf, key: String, found: i128, vocab: usize },
    #[error("loading was cancelled")]
    Cancelled,
}
