//! Why a model could not be quantised or packed.

use std::path::PathBuf;

use millpond_simd::quant::QuantizeError as RowError;

use crate::load::LoadError;
use crate::par::TeamError;
use crate::text::TokenizerError;

/// Why a model could not be quantised or packed. Nothing is left of the output then.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the messages say what the fields are
#[non_exhaustive]
pub enum QuantizeError {
    /// The input is no model.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// Its tokenizer cannot be written down.
    #[error("tokenizer: {0}")]
    Tokenizer(#[from] TokenizerError),
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    /// Quantising twice adds the errors of both.
    #[error("tensor `{name}` is in {found} already; a model in F32, F16 or BF16 expected")]
    AlreadyQuantized { name: String, found: &'static str },
    #[error("tensor `{name}`, row {row}: {source}")]
    Values { name: String, row: usize, source: RowError },
    #[error("tensor `{name}`: {message}")]
    Tensor { name: String, message: String },
    #[error("{}: is the input as well", path.display())]
    SameFile { path: PathBuf },
    #[error(transparent)]
    Team(#[from] TeamError),
    /// The caller's progress function said stop.
    #[error("interrupted")]
    Interrupted,
}
