//! Block formats of weights, laid out as GGUF files hold them.
//!
//! Layouts follow the GGUF specification and ggml's block definitions; every decoder here is plain scalar code and
//! serves as the truth that faster paths are compared with.

mod block;
mod codebook;
mod format;
mod k_quants;
mod legacy;
mod quantize;

pub use block::Block;
pub(crate) use codebook::half_power_of_two;
pub use codebook::{FP4_LEVELS, IQ4_LEVELS};
pub use format::QFormat;
pub use quantize::{QuantizeError, can_quantize, quantize_row};

use half::{bf16, f16};

/// A row whose bytes do not fit its values.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{cols} values of {} take {expected:?} bytes, not {found}", format.name())]
pub struct RowSizeError {
    /// Format of the row.
    pub format: QFormat,
    /// Values asked for.
    pub cols: usize,
    /// Bytes these take; `None` when they are no whole number of blocks.
    pub expected: Option<usize>,
    /// Bytes given.
    pub found: usize,
}

/// Takes apart one block of a block format.
///
/// # Panics
/// If `bytes` is not exactly one block or `format` is a float format.
pub fn unpack_block(format: QFormat, bytes: &[u8], block: &mut Block) {
    *block = Block::ZERO;
    match format {
        QFormat::Q4_0 => legacy::q4_0(exactly(bytes), block),
        QFormat::Q4_1 => legacy::q4_1(exactly(bytes), block),
        QFormat::Q5_0 => legacy::q5_0(exactly(bytes), block),
        QFormat::Q5_1 => legacy::q5_1(exactly(bytes), block),
        QFormat::Q8_0 => legacy::q8_0(exactly(bytes), block),
        QFormat::Q2K => k_quants::q2_k(exactly(bytes), block),
        QFormat::Q3K => k_quants::q3_k(exactly(bytes), block),
        QFormat::Q4K => k_quants::q4_k(exactly(bytes), block),
        QFormat::Q5K => k_quants::q5_k(exactly(bytes), block),
        QFormat::Q6K => k_quants::q6_k(exactly(bytes), block),
        QFormat::IQ4NL => codebook::iq4_nl(exactly(bytes), block),
        QFormat::IQ4XS => codebook::iq4_xs(exactly(bytes), block),
        QFormat::MXFP4 => codebook::mxfp4(exactly(bytes), block),
        QFormat::F32 | QFormat::F16 | QFormat::BF16 => panic!("{} has no blocks", format.name()),
    }
}

fn exactly<const N: usize>(bytes: &[u8]) -> &[u8; N] {
    bytes.try_into().expect("the caller passes one block")
}

/// Writes the float values of a row of `out.len()` weights. Float formats widen exactly; block formats give the
/// values of [`Block`], the same as ggml's own.
///
/// # Errors
/// If `bytes` is not the size of such a row.
pub fn dequantize_row(format: QFormat, bytes: &[u8], out: &mut [f32]) -> Result<(), RowSizeError> {
    check_row(format, out.len(), bytes.len())?;
    match format {
        QFormat::F32 => {
            for (value, chunk) in out.iter_mut().zip(bytes.chunks_exact(4)) {
                *value = f32::from_le_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]);
            }
        }
        QFormat::F16 => {
            for (value, chunk) in out.iter_mut().zip(bytes.chunks_exact(2)) {
                *value = f16::from_le_bytes([chunk[0], chunk[1]]).to_f32();
            }
        }
        QFormat::BF16 => {
            for (value, chunk) in out.iter_mut().zip(bytes.chunks_exact(2)) {
                *value = bf16::from_le_bytes([chunk[0], chunk[1]]).to_f32();
            }
        }
        _ => {
            let mut block = Block::ZERO;
            let blocks = bytes.chunks_exact(format.block_bytes());
            for (values, bytes) in out.chunks_exact_mut(format.block_len()).zip(blocks) {
                unpack_block(format, bytes, &mut block);
                block.values(values);
            }
        }
    }
    Ok(())
}

fn check_row(format: QFormat, cols: usize, found: usize) -> Result<(), RowSizeError> {
    let expected = format.row_bytes(cols);
    if expected == Some(found) { Ok(()) } else { Err(RowSizeError { format, cols, expected, found }) }
}
