//! Why bytes are no GGUF file.

use super::{MAX_ALIGNMENT, MAX_DIMS};

/// Why bytes are no GGUF file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // the messages say what the fields are
#[non_exhaustive]
pub enum GgufError {
    #[error("not a GGUF file: it does not begin with \"GGUF\"")]
    Magic,
    #[error("GGUF version {version} is not supported; 2 and 3 are")]
    Version { version: u32 },
    #[error("big-endian GGUF is not supported")]
    BigEndian,
    #[error("the file ends after {len} bytes, inside {what}")]
    Truncated { what: String, len: usize },
    #[error("{count} {what} cannot fit into the {available} bytes that follow")]
    Count { what: &'static str, count: u64, available: usize },
    #[error("metadata entry {index}: the key {problem}")]
    Key { index: usize, problem: &'static str },
    #[error("metadata key `{key}` occurs twice")]
    DuplicateKey { key: String },
    #[error("metadata key `{key}` has unknown value type {id}")]
    ValueType { key: String, id: u32 },
    #[error("metadata key `{key}` is an array of arrays, which no model uses")]
    NestedArray { key: String },
    #[error("metadata key `{key}` is a boolean with value {value}; 0 or 1 expected")]
    Bool { key: String, value: u8 },
    #[error("metadata key `{key}` is {found}; {expected} expected")]
    Mistyped { key: String, found: String, expected: &'static str },
    #[error("metadata key `{key}` is not UTF-8{}", .element.map(|i| format!(" at element {i}")).unwrap_or_default())]
    Utf8 { key: String, element: Option<usize> },
    #[error("metadata key `general.alignment` is {found}; a power of two up to {MAX_ALIGNMENT} expected")]
    Alignment { found: u64 },
    #[error("tensor entry {index}: the name {problem}")]
    Name { index: usize, problem: &'static str },
    #[error("tensor `{name}` occurs twice")]
    DuplicateTensor { name: String },
    #[error("tensor `{name}` has {count} dimensions; 1 to {MAX_DIMS} expected")]
    Dimensions { name: String, count: u32 },
    #[error("tensor `{name}` has unknown type {id}")]
    Type { name: String, id: u32 },
    #[error("tensor `{name}` of {format} has impossible dimensions {dims:?}")]
    Size { name: String, format: &'static str, dims: Vec<u64> },
    #[error("tensor `{name}` begins at offset {offset}, no multiple of the alignment {alignment}")]
    Misaligned { name: String, offset: u64, alignment: usize },
    #[error("tensor `{name}` needs {bytes} bytes from offset {offset} of the data, which has {available}")]
    OutOfFile { name: String, offset: u64, bytes: u64, available: usize },
    #[error("tensors `{name}` and `{other}` share bytes")]
    Overlap { name: String, other: String },
}
