//! Packed files (`.mill`): a model that is used where it lies.
//!
//! Everything is little-endian. A page of 4096 bytes comes first:
//!
//! | at | what |
//! |---|---|
//! | 0 | `MILLPACK` |
//! | 8 | u32 version: 1 |
//! | 12 | u32 layout of the weights: 0, rows of GGUF blocks |
//! | 16 | u64 length of the file |
//! | 24 | u32 number of sections, at most 64 |
//! | 28 | u32 zero |
//! | 32 | for each section: u32 kind, u32 zero, u64 offset, u64 length, u64 checksum |
//! | 4088 | u64 checksum of the 4088 bytes before |
//!
//! What is not mentioned is zero. Sections follow in order, each at a multiple of 4096; checksums are XXH64 with seed 0.
//!
//! | kind | section |
//! |---|---|
//! | 1 | keys: a GGUF file without tensors. It describes the model as a GGUF file's metadata does, chat template included, without the tables of the tokenizer |
//! | 2 | tensors: u64 count, then for each: u32 length of the name, the name, u32 type id of GGUF, u32 number of dimensions, u64 each dimension (the outermost first), u64 offset in the weights, u64 length |
//! | 3 | tokenizer: see [`crate::text::tables`]; absent from models that came without one |
//! | 4 | weights: the tensors, each at a multiple of 64 |
//!
//! Sections of other kinds are left alone, so that later versions may add some. The checksums of the page and of the small
//! sections are compared when a file is opened; that of the weights only by [`Packed::verify`], as it takes reading them
//! all.
//!
//! Panels of several interleaved rows would be another layout (the number is kept for that). They are not used: the kernels
//! read rows of GGUF blocks at the speed of memory, and unpack panels for many rows of activations as they go.

mod checksum;
mod error;
mod read;
mod write;

use std::ops::Range;
use std::sync::Arc;

use super::ggml_type::GgmlType;
use super::gguf::Gguf;
use crate::weights::ByteSource;

pub use checksum::Checksum;
pub use error::PackedError;
pub use write::{PackedWriter, WeightsWriter};

/// The first bytes of a packed file.
pub const MAGIC: &[u8; 8] = b"MILLPACK";
/// The version that is written and read.
pub const VERSION: u32 = 1;
/// Alignment of sections, and the size of the page before them.
pub const PAGE: usize = 4096;
/// Alignment of tensors.
pub const TENSOR_ALIGNMENT: usize = 64;
/// Most sections of a file.
pub const MAX_SECTIONS: usize = 64;

/// Layout of weights: rows of GGUF blocks.
const GGUF_ROWS: u32 = 0;
/// Where sections are listed.
const SECTIONS_AT: usize = 32;
/// Bytes of a section in the list.
const SECTION_ENTRY: usize = 32;

/// Kinds of sections.
const KEYS: u32 = 1;
const TENSORS: u32 = 2;
const TOKENIZER: u32 = 3;
const WEIGHTS: u32 = 4;

/// A section of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Section {
    /// What it holds.
    pub kind: u32,
    /// Its bytes in the file.
    pub range: Range<usize>,
    /// Their checksum, as the file says.
    pub checksum: u64,
}

impl Section {
    /// The name of its kind.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self.kind {
            KEYS => "keys",
            TENSORS => "tensors",
            TOKENIZER => "tokenizer",
            WEIGHTS => "weights",
            _ => "of unknown kind",
        }
    }
}

/// A tensor of a packed file.
#[derive(Clone, Debug, PartialEq)]
pub struct PackedTensor {
    /// Its name.
    pub name: String,
    /// Its type.
    pub kind: GgmlType,
    /// Dimensions, the outermost first.
    pub shape: Vec<usize>,
    /// Its bytes in the file.
    pub range: Range<usize>,
}

/// An open packed file.
pub struct Packed {
    source: Arc<dyn ByteSource>,
    sections: Vec<Section>,
    keys: Gguf,
    tensors: Vec<PackedTensor>,
}

impl std::fmt::Debug for Packed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Packed({} sections, {} tensors)", self.sections.len(), self.tensors.len())
    }
}

impl Packed {
    /// Whether bytes begin as a packed file does.
    #[must_use]
    pub fn is_packed(bytes: &[u8]) -> bool {
        bytes.starts_with(MAGIC)
    }

    /// The bytes of the whole file.
    pub fn source(&self) -> &Arc<dyn ByteSource> {
        &self.source
    }

    /// The sections in the order of the file.
    pub fn sections(&self) -> &[Section] {
        &self.sections
    }

    /// What describes the model: keys as in a GGUF file.
    pub fn keys(&self) -> &Gguf {
        &self.keys
    }

    /// The tensors in the order of the file.
    pub fn tensors(&self) -> &[PackedTensor] {
        &self.tensors
    }

    /// Where the tokenizer's tables are.
    pub fn tokenizer(&self) -> Option<Range<usize>> {
        self.section(TOKENIZER).map(|section| section.range.clone())
    }

    fn section(&self, kind: u32) -> Option<&Section> {
        self.sections.iter().find(|section| section.kind == kind)
    }

    /// Compares the checksums of all sections, which reads the whole file.
    ///
    /// # Errors
    /// [`PackedError::Checksum`] naming the first section that has other bytes.
    pub fn verify(&self) -> Result<(), PackedError> {
        self.sections.iter().try_for_each(|section| read::check_sum(self.source.bytes(), section))
    }
}
