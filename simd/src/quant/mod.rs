//! Block formats of weights, laid out as GGUF files hold them.

mod format;

pub use format::QFormat;
