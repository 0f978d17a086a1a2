//! A model's files seen as the keys and tensors of a GGUF file, whatever they are.

mod folder;
mod gguf;
mod keys;
mod text;

use std::ops::Range;
use std::path::{Path, PathBuf};

use millpond_models::names::Transform;
use millpond_simd::quant::{QFormat, dequantize_row};

use super::error::QuantizeError;
use crate::file::gguf_write::OwnedValue;
use crate::load::progress::Opener;
use crate::load::{self, open};
use crate::text::GgufVocabulary;
use crate::weights::Matrix;

/// A model as a GGUF file would hold it.
pub(crate) struct Source {
    /// Architecture, as in `general.architecture`.
    pub(crate) arch: String,
    /// Layers, prediction layers included.
    pub(crate) blocks: usize,
    pub(crate) tied_head: bool,
    pub(crate) keys: Vec<(String, OwnedValue)>,
    /// Its tokenizer, which `keys` hold as well.
    pub(crate) vocabulary: Option<GgufVocabulary>,
    /// Rows of the embedding.
    pub(crate) vocab: usize,
    pub(crate) tensors: Vec<SourceTensor>,
    /// The files it is read from.
    pub(crate) files: Vec<PathBuf>,
    /// Whether text is brought to Unicode's composed form before it is cut; `None` where the files cannot say.
    pub(crate) composes_text: Option<bool>,
}

impl Source {
    /// Opens a GGUF file or a checkpoint folder, checking that it is a model.
    ///
    /// # Errors
    /// [`QuantizeError`] naming what is wrong.
    pub(crate) fn open(path: &Path) -> Result<Source, QuantizeError> {
        match load::folder_of(path)? {
            Some(folder) => {
                let opened = open::open_folder(&folder, &Opener::quiet())?;
                let model = load::load_folder(&folder, &opened)?;
                folder::source(&folder, &opened, &model)
            }
            None => {
                let opened = open::open_gguf(path, &Opener::quiet())?;
                let model = load::load_gguf(path, &opened)?;
                gguf::source(&opened, &model)
            }
        }
    }

    /// Values in all tensors.
    pub(crate) fn values(&self) -> u64 {
        self.tensors.iter().map(|tensor| tensor.rows() as u64 * tensor.cols as u64).sum()
    }
}

/// A tensor put together from rows of one or several tensors of the files.
#[derive(Debug)]
pub(crate) struct SourceTensor {
    pub(crate) name: String,
    /// Dimensions, the outermost first.
    pub(crate) shape: Vec<usize>,
    /// Values of a row.
    pub(crate) cols: usize,
    /// The format it is kept in if no other is wanted.
    pub(crate) format: QFormat,
    /// Rows in order; all parts have `cols` columns.
    parts: Vec<Matrix>,
    /// The first row of each part, and the number of all rows.
    starts: Vec<usize>,
    /// Pieces of a row in their new order; empty where the order stays.
    columns: Vec<Range<usize>>,
    transform: Transform,
}

impl SourceTensor {
    /// A tensor made of the rows of `parts`, which are at least one and of one width.
    fn new(name: String, shape: Vec<usize>, parts: Vec<Matrix>) -> SourceTensor {
        let mut starts = vec![0];
        for part in &parts {
            starts.push(starts[starts.len() - 1] + part.rows());
        }
        let (cols, format) = parts.first().map_or((0, QFormat::F32), |part| (part.cols(), part.format()));
        let (columns, transform) = (Vec::new(), Transform::Keep);
        SourceTensor { name, shape, cols, format, parts, starts, columns, transform }
    }

    pub(crate) fn rows(&self) -> usize {
        self.starts[self.starts.len() - 1]
    }

    /// Bytes in a format whose blocks fit its rows.
    pub(crate) fn bytes_in(&self, format: QFormat) -> u64 {
        self.rows() as u64 * (self.cols / format.block_len() * format.block_bytes()) as u64
    }

    /// Whether its bytes in `format` are bytes of the files, in their order.
    pub(crate) fn is_stored_as(&self, format: QFormat) -> bool {
        self.columns.is_empty()
            && self.transform == Transform::Keep
            && self.parts.iter().all(|part| part.format() == format)
    }

    /// The bytes of rows that [`SourceTensor::is_stored_as`] says are stored, in pieces.
    pub(crate) fn stored(&self) -> impl Iterator<Item = &[u8]> {
        self.parts.iter().map(Matrix::bytes)
    }

    /// Reads rows as floats. `out` holds whole rows, starting with row `first`.
    ///
    /// # Errors
    /// [`QuantizeError::Tensor`] when there are no such rows.
    pub(crate) fn read(&self, first: usize, out: &mut [f32]) -> Result<(), QuantizeError> {
        let failed = |message: String| QuantizeError::Tensor { name: self.name.clone(), message };
        let mut ordered = vec![0.0; if self.columns.is_empty() { 0 } else { self.cols }];
        let mut part = self.starts.partition_point(|&start| start <= first).saturating_sub(1);
        for (row, values) in (first..).zip(out.chunks_exact_mut(self.cols.max(1))) {
            while self.starts.get(part + 1).is_some_and(|&end| end <= row) {
                part += 1;
            }
            let Some(matrix) = self.parts.get(part) else {
                return Err(failed(format!("has {} rows, not {}", self.rows(), row + 1)));
            };
            let at = row - self.starts[part];
            dequantize_row(matrix.format(), matrix.row_range(at..at + 1), values)
                .map_err(|error| failed(error.to_string()))?;
            if !self.columns.is_empty() {
                ordered.clear();
                self.columns.iter().for_each(|piece| ordered.extend_from_slice(&values[piece.clone()]));
                values.copy_from_slice(&ordered);
            }
            match self.transform {
                Transform::Keep => {}
                Transform::AddOne => values.iter_mut().for_each(|value| *value += 1.0),
                Transform::NegExp => values.iter_mut().for_each(|value| *value = -value.exp()),
            }
        }
        Ok(())
    }
}
