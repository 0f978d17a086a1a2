//! Why a model cannot be had.

use std::path::PathBuf;

/// Why a model cannot be had from the hub or from its cache.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the messages say what the fields are
pub enum HubError {
    #[error("'{0}' names no model of a hub; ORG/NAME or ORG/NAME:QUANT expected")]
    Reference(String),
    #[error("the hub's address '{address}' cannot be used: {reason}")]
    Endpoint { address: String, reason: String },
    #[error("refused to go to {host}: the hub and its redirects may lead to {allowed} only")]
    ForeignHost { host: String, allowed: String },
    #[error("{url}: more than {limit} redirects")]
    Redirects { url: String, limit: usize },
    #[error("{url}: {reason}")]
    Http { url: String, reason: String },
    #[error("{url}: the hub answered with {status}")]
    Status { url: String, status: u16 },
    #[error("there is no model {0} on the hub, or it is private: HF_TOKEN may hold a token for it")]
    NotFound(String),
    #[error("the hub wants a token that may read {0}: HF_TOKEN may hold one")]
    Forbidden(String),
    #[error("the hub's list of files of {model} cannot be used: {reason}")]
    Listing { model: String, reason: String },
    #[error("there is no model {0} on this machine; `millpond list` shows what there is")]
    NotHere(String),
    #[error("{model} has no {wanted}; there is {there}")]
    NoFile { model: String, wanted: String, there: String },
    #[error(
        "{file}: only {found} of {expected} bytes came; what came is kept, and the next try goes on from there"
    )]
    Truncated { file: String, found: u64, expected: u64 },
    #[error("{file}: more than the {expected} bytes that the hub announced")]
    TooLong { file: String, expected: u64 },
    #[error("{file}: the SHA-256 is {found}; {expected} expected. What came was deleted")]
    Hash { file: String, found: String, expected: String },
    #[error("{0} is being downloaded by another process")]
    Busy(String),
    #[error("{0} is not on this machine, and --offline forbids to fetch it")]
    Offline(String),
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error("there is no folder for models: neither HF_HOME nor HOME is set")]
    NoFolder,
    #[error("https needs {0}; HF_ENDPOINT may name a hub that is reached over http")]
    NoTls(&'static str),
    #[error("interrupted; what came is kept")]
    Interrupted,
}

impl HubError {
    /// Something the system said about a path.
    pub(super) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> HubError {
        let path = path.into();
        move |source| HubError::Io { path, source }
    }
}
