//! Why bytes are no packed file.

use crate::file::gguf::GgufError;

/// Why bytes are no packed file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // the messages say what the fields are
#[non_exhaustive]
pub enum PackedError {
    #[error("not a packed file: it starts with other bytes than MILLPACK")]
    Magic,
    #[error("ends within {what}, after {len} bytes")]
    Truncated { what: &'static str, len: usize },
    #[error("packed file of version {found}; version {expected} expected (pack the model again)")]
    Version { found: u32, expected: u32 },
    #[error("weights are laid out in way {found}, which is not known; 0 expected")]
    Layout { found: u32 },
    #[error("{found} bytes long; {expected} expected")]
    Length { found: u64, expected: u64 },
    #[error("{found} sections; at most {most} expected")]
    SectionCount { found: u32, most: usize },
    #[error("section {index} of kind {kind}, bytes {offset} and {length} more: {problem}")]
    Section { index: usize, kind: u32, offset: u64, length: u64, problem: &'static str },
    #[error("no section with the {name}")]
    MissingSection { name: &'static str },
    #[error("{name}: checksum {found:016x}, {expected:016x} expected: the file is damaged")]
    Checksum { name: &'static str, found: u64, expected: u64 },
    #[error("keys: {0}")]
    Keys(#[from] GgufError),
    #[error("the section of keys holds tensors")]
    KeysWithTensors,
    #[error("{count} tensors cannot be described in {available} bytes")]
    TensorCount { count: u64, available: usize },
    #[error("tensor {index}: its name {problem}")]
    Name { index: usize, problem: &'static str },
    #[error("tensor `{name}` has {count} dimensions; 1 to 4 expected")]
    Dimensions { name: String, count: u32 },
    #[error("tensor `{name}` has unknown type {id}")]
    Type { name: String, id: u32 },
    #[error("tensor `{name}` of {kind} with shape {shape:?} is not of {bytes} bytes")]
    Size { name: String, kind: &'static str, shape: Vec<u64>, bytes: u64 },
    #[error("tensor `{name}` at {offset} of the weights is not at a multiple of 64")]
    Misaligned { name: String, offset: u64 },
    #[error("tensor `{name}`, bytes {offset} and {bytes} more, does not lie in {available} bytes of weights")]
    OutOfFile { name: String, offset: u64, bytes: u64, available: usize },
    #[error("tensors `{name}` and `{other}` share bytes")]
    Overlap { name: String, other: String },
    #[error("two tensors are called `{name}`")]
    DuplicateTensor { name: String },
    #[error("{0} bytes follow the last tensor's description")]
    Trailing(usize),
}
