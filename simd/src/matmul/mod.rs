//! Products of weight rows, read in place from their file, with prepared activations.
//!
//! `out[i][j] = sum over k of weights[j][k] * x[i][k]`. Every instruction set gives the same bits, and an output
//! depends on its weight row and its activation row alone: not on the other rows of the call, nor on how a caller
//! divides the work. (Where a result is not a number, that it is not is all that is promised.)
//!
//! # The order of operations
//!
//! **Activations.** In a block (32 or 256 values, [`ActivationKind`]) let `m = max |x|`. The integers are
//! `q = round_to_even(x * (127 / m))`, the scale is `m / 127`, both in f32; so `|q| <= 127`. A block with
//! `m < 127 * 2^-126` is zero. A block that holds a NaN or an infinity has scale NaN, and so have the outputs that
//! read it.
//!
//! **Block formats.** With the numbers of [`Block`](crate::quant::Block) and `s_j`, `m_j` the sub-scale and
//! sub-offset of 16 values, each block has two integers
//!
//! ```text
//! product = sum over j of s_j * (sum over the 16 values of w * q)      offset = sum over j of m_j * (sum of q)
//! ```
//!
//! and an output is one chain of f32 fused multiply-adds over the blocks in ascending order:
//!
//! ```text
//! chain = fma(f32(product), scale * x_scale, chain)
//! chain = fma(f32(offset), -(min * x_scale), chain)        only for Q4_1, Q5_1, Q2_K, Q4_K, Q5_K
//! ```
//!
//! The integers are exact, so the order of their sums is free; `f32(..)` rounds once, to nearest even. The largest
//! magnitudes, with `|q| <= 127`, show that 32 bits suffice even when the weights are kept unsigned (shifted by `z`)
//! and `z * s_j * (sum of q)` is subtracted afterwards:
//!
//! | format | unsigned weight, z | sub-scale | product, unsigned |
//! |---|---|---|---|
//! | Q8_0, IQ4_NL | 255, 128 | 1 | 32 * 255 * 127 = 1.0e6 |
//! | Q4_K, Q5_K | 31, 0 | 63 | 256 * 31 * 127 * 63 = 6.3e7 |
//! | Q6_K | 63, 32 | 128 | 256 * 63 * 127 * 128 = 2.6e8 |
//! | IQ4_XS | 255, 128 | 32 | 256 * 255 * 127 * 32 = 2.7e8 |
//!
//! **Float formats.** Weights are widened exactly. Lane `l` of sixteen is the chain of `fma(w, x, lane)` over the
//! values `l, l + 16, ..` in ascending order, where both are zero beyond the end up to a multiple of 16; then lane `i` takes lane `i + 8`, then `i + 4`, `i + 2`, `i + 1`.

mod activations;
#[cfg(target_arch = "aarch64")]
mod arm;
mod buffer;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod floats;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod formats;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod formats_32;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod level;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod panels;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod rows;
mod scalar;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod simd;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod thin;
mod tile;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod unpack;
#[cfg(target_arch = "x86_64")]
mod x86;

use std::ops::Range;

pub use activations::{ActivationKind, ActivationWriter, Activations};
pub use tile::OutTile;

use crate::isa::Isa;
use crate::quant::QFormat;
use activations::{ActivationRow, ActivationRowMut};

/// The operands of one call, checked.
pub(crate) struct Product<'a> {
    format: QFormat,
    weights: &'a [u8],
    row_bytes: usize,
    cols: usize,
    x: &'a Activations,
    x_rows: Range<usize>,
}

impl<'a> Product<'a> {
    /// The activations of output row `i`.
    fn row(&self, i: usize) -> ActivationRow<'a> {
        self.x.row(self.x_rows.start + i)
    }
}

/// The products of one instruction set.
pub struct MatmulKernels {
    isa: Isa,
    /// Callable only where `isa` is available.
    prepare_row: unsafe fn(ActivationKind, &[f32], ActivationRowMut<'_>),
    /// Callable only where `isa` is available.
    matmul: unsafe fn(&Product<'_>, &mut OutTile<'_>),
}

static SCALAR: MatmulKernels =
    MatmulKernels { isa: Isa::Scalar, prepare_row: scalar::prepare_row, matmul: scalar::matmul };

impl MatmulKernels {
    /// The kernels of a level; `None` if this processor lacks it.
    pub fn for_isa(isa: Isa) -> Option<&'static MatmulKernels> {
        if !isa.is_available() {
            return None;
        }
        Some(match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => &x86::avx2_level::KERNELS,
            #[cfg(target_arch = "x86_64")]
            Isa::AvxVnni => &x86::avxvnni_level::KERNELS,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => &x86::avx512_level::KERNELS,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni => &x86::avx512vnni_level::KERNELS,
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => &arm::neon_level::KERNELS,
            #[cfg(target_arch = "aarch64")]
            Isa::NeonDot => &arm::neondot_level::KERNELS,
            #[cfg(target_arch = "aarch64")]
            Isa::NeonI8mm => &arm::neoni8mm_level::KERNELS,
            _ => &SCALAR,
        })
    }

    /// The level the kernels are written for.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    fn prepare_row(&self, kind: ActivationKind, x: &[f32], place: ActivationRowMut<'_>) {
        // SAFETY: `for_isa` hands kernels out only where their instruction set is available.
        unsafe { (self.prepare_row)(kind, x, place) }
    }

    /// Writes `out[i][j] = weights[j] . x[x_rows.start + i]` for `w_rows` consecutive weight rows of `cols` values.
    ///
    /// # Panics
    /// If the sizes do not fit each other: `weights` is `w_rows` rows of the format, `x` is of the format's
    /// [`QFormat::activation_kind`] with `cols` values a row, `x_rows` lies in it, `out` is `[x_rows][w_rows]`.
    pub fn matmul(
        &self,
        format: QFormat,
        weights: &[u8],
        w_rows: usize,
        cols: usize,
        x: &Activations,
        x_rows: Range<usize>,
        mut out: OutTile<'_>,
    ) {
        let row_bytes = format.row_bytes(cols).expect("a row is a whole number of blocks");
        assert_eq!(Some(weights.len()), row_bytes.checked_mul(w_rows), "weights are [w_rows][cols]");
        assert_eq!((x.kind(), x.cols()), (format.activation_kind(), cols), "activations fit the weights");
        assert!(x_rows.start <= x_rows.end && x_rows.end <= x.rows(), "activations have rows {x_rows:?}");
        assert_eq!((out.rows(), out.cols()), (x_rows.len(), w_rows), "out is [x_rows][w_rows]");
        if w_rows == 0 || x_rows.is_empty() {
            return;
        }
        if cols == 0 {
            for i in 0..x_rows.len() {
                out.row_mut(i).fill(0.0);
            }
            return;
        }
        let product = Product { format, weights, row_bytes, cols, x, x_rows };
        // SAFETY: `for_isa` hands kernels out only where their instruction set is available.
        unsafe { (self.matmul)(&product, &mut out) }
    }
}
