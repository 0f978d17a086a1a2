//! Tensors from one format to another, a few rows at a time.

use std::io;

use millpond_simd::quant::{QFormat, quantize_row};
use rayon::prelude::*;

use super::error::QuantizeError;
use super::source::SourceTensor;
use crate::par::Team;

/// Values that a thread works on at once: a quarter megabyte of floats, more only where a single row has more.
const CHUNK_VALUES: usize = 1 << 16;
/// Chunks for each thread between writes: enough to even out their work.
const CHUNKS_PER_THREAD: usize = 4;
/// Bytes that are copied at once.
const COPY_BYTES: usize = 4 << 20;

/// Takes a part of a tensor's bytes and the number of values it stands for.
pub(super) type WritePart<'a> = &'a mut dyn FnMut(&[u8], u64) -> Result<(), QuantizeError>;

/// Formats that hold the values of another without rounding.
fn may_convert(stored: QFormat, wished: QFormat) -> bool {
    let is_float = matches!(stored, QFormat::F32 | QFormat::F16 | QFormat::BF16);
    is_float || stored == wished
}

/// Encodes tensors with a team of threads. What is held in memory does not grow with the tensors.
pub(super) struct Encoder<'a> {
    pub(super) team: &'a Team,
    /// Whether tensors that are quantised already may be quantised again.
    pub(super) requantize: bool,
}

impl Encoder<'_> {
    /// Hands the bytes of a tensor in `format` to `write`, in parts and in order; the second argument says how many values
    /// the part stands for. A tensor without values is one empty part.
    ///
    /// # Errors
    /// Values that do not fit, tensors that are quantised already, what `write` says.
    pub(super) fn encode(
        &self,
        tensor: &SourceTensor,
        format: QFormat,
        write: WritePart<'_>,
    ) -> Result<(), QuantizeError> {
        if tensor.rows() == 0 || tensor.cols == 0 {
            return write(&[], 0);
        }
        if tensor.is_stored_as(format) {
            return copy(tensor, format, write);
        }
        if !self.requantize && !may_convert(tensor.format, format) {
            let (name, found) = (tensor.name.clone(), tensor.format.name());
            return Err(QuantizeError::AlreadyQuantized { name, found });
        }
        let chunk_rows = (CHUNK_VALUES / tensor.cols).max(1);
        let batch_rows = chunk_rows * CHUNKS_PER_THREAD * self.team.threads();
        for first in (0..tensor.rows()).step_by(batch_rows) {
            let end = (first + batch_rows).min(tensor.rows());
            let starts: Vec<usize> = (first..end).step_by(chunk_rows).collect();
            let chunk = |&start: &usize| encode_rows(tensor, format, start, (start + chunk_rows).min(end));
            let chunks: Vec<Result<Vec<u8>, QuantizeError>> =
                self.team.install(|| starts.par_iter().map(chunk).collect());
            for (start, chunk) in starts.iter().zip(chunks) {
                let rows = chunk_rows.min(end - start);
                write(&chunk?, (rows * tensor.cols) as u64)?;
            }
        }
        Ok(())
    }
}

fn copy(tensor: &SourceTensor, format: QFormat, write: WritePart<'_>) -> Result<(), QuantizeError> {
    for part in tensor.stored() {
        for piece in part.chunks(COPY_BYTES - COPY_BYTES % format.block_bytes()) {
            write(piece, (piece.len() / format.block_bytes() * format.block_len()) as u64)?;
        }
    }
    Ok(())
}

fn encode_rows(
    tensor: &SourceTensor,
    format: QFormat,
    first: usize,
    end: usize,
) -> Result<Vec<u8>, QuantizeError> {
    let failed = |message: String| QuantizeError::Tensor { name: tensor.name.clone(), message };
    let row_bytes = format.row_bytes(tensor.cols).ok_or_else(|| {
        failed(format!("{} columns are no whole number of blocks of {}", tensor.cols, format.name()))
    })?;
    let mut values = vec![0.0; (end - first) * tensor.cols];
    tensor.read(first, &mut values)?;
    let mut out = vec![0; (end - first) * row_bytes];
    let rows = values.chunks_exact(tensor.cols).zip(out.chunks_exact_mut(row_bytes));
    for (row, (values, out)) in (first..).zip(rows) {
        quantize_row(format, values, out).map_err(|source| QuantizeError::Values {
            name: tensor.name.clone(),
            row,
            source,
        })?;
    }
    Ok(out)
}

/// The path of an output named in an error.
pub(super) fn write_error(path: &std::path::Path) -> impl Fn(io::Error) -> QuantizeError + Copy + '_ {
    |source| QuantizeError::Io { path: path.to_owned(), source }
}
