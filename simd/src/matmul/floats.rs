//! Float weights: read in place, widened on the way, a few weight rows at a time, which stay close while all
//! activation rows pass.

use super::Product;
use super::simd::Simd;
use super::tile::OutTile;
use crate::LANES;
use crate::quant::QFormat;

/// How far ahead of the weights in work memory is asked for at least, where it is asked for in order.
const PREFETCH: usize = 4096;

/// Bytes of a weight row of which a few still fit the first cache level together with what is asked for.
const SHORT_ROW: usize = 4096;

/// A float format.
///
/// # Safety
/// The pointers name sixteen readable weights; see [`Simd`] for the rest.
pub(super) trait FloatFormat<S: Simd> {
    const FORMAT: QFormat;

    /// Sixteen weights.
    unsafe fn load(p: *const u8) -> S::Floats;
}

macro_rules! float_format {
    ($name:ident, $format:expr, $load:ident) => {
        pub(super) struct $name;

        impl<S: Simd> FloatFormat<S> for $name {
            const FORMAT: QFormat = $format;

            #[inline(always)]
            unsafe fn load(p: *const u8) -> S::Floats {
                // SAFETY: the trait's promise.
                unsafe { S::$load(p.cast()) }
            }
        }
    };
}
float_format!(F32, QFormat::F32, load_floats);
float_format!(F16, QFormat::F16, load_f16);
float_format!(BF16, QFormat::BF16, load_bf16);

/// The product, in tiles of `W` weight rows by `R` activation rows or, for what is left of these, two or one.
///
/// # Safety
/// The processor has the instruction set `S`, whose features the caller is compiled with.
#[inline(always)]
pub(super) unsafe fn matmul<S: Simd, F: FloatFormat<S>, const W: usize, const R: usize>(
    product: &Product<'_>,
    out: &mut OutTile<'_>,
) {
    debug_assert_eq!(product.format, F::FORMAT);
    let short = product.row_bytes <= SHORT_ROW;
    for j in (0..out.cols()).step_by(W) {
        let mut i = 0;
        while i < out.rows() {
            // SAFETY: the caller's promise.
            unsafe {
                i += match out.rows() - i {
                    1 if i == 0 && short => tile::<S, F, W, 1, true>(product, out, i, j),
                    2 if i == 0 && short => tile::<S, F, W, 2, true>(product, out, i, j),
                    left if left >= R => tile::<S, F, W, R, false>(product, out, i, j),
                    1 => tile::<S, F, W, 1, false>(product, out, i, j),
                    _ => tile::<S, F, W, 2, false>(product, out, i, j),
                };
            }
        }
    }
}

/// Outputs `(i .., j ..)`, `R` rows of them; returns `R`. Weight rows past the last are replaced by the last.
///
/// The weight rows after these are asked for: `IN_ORDER` of addresses, which is the fastest way through memory while
/// activations leave it room in the first cache level, or at the place in work of each.
///
/// # Safety
/// As for [`matmul`]; the output has `R` rows from `i`.
#[inline(always)]
unsafe fn tile<S: Simd, F: FloatFormat<S>, const W: usize, const R: usize, const IN_ORDER: bool>(
    product: &Product<'_>,
    out: &mut OutTile<'_>,
    i: usize,
    j: usize,
) -> usize {
    let bytes = F::FORMAT.block_bytes();
    let whole = product.cols - product.cols % LANES;
    let rows = W.min(out.cols() - j);
    let mut weights = [product.weights.as_ptr(); W];
    for (row, weights) in weights.iter_mut().enumerate() {
        *weights = weights.wrapping_add((j + row.min(rows - 1)) * product.row_bytes);
    }
    let mut x = [std::ptr::null(); R];
    for (r, x) in x.iter_mut().enumerate() {
        *x = product.x.row_pointers(product.x_rows.start + i + r).floats;
    }
    let next = W * product.row_bytes;
    let mut in_order =
        product.weights.as_ptr().wrapping_add(j * product.row_bytes).wrapping_add(PREFETCH.max(next));
    // SAFETY: `Product` holds whole rows of weights and activations padded to a multiple of 16.
    unsafe {
        let mut sums = [[S::splat(0.0); R]; W];
        for k in (0..whole).step_by(LANES) {
            if IN_ORDER {
                for line in 0..(W * LANES * bytes).div_ceil(64) {
                    S::prefetch(in_order.wrapping_add(64 * line));
                }
                in_order = in_order.wrapping_add(W * LANES * bytes);
            }
            for row in 0..W {
                let p = weights[row].add(k * bytes);
                if !IN_ORDER {
                    S::prefetch(p.wrapping_add(next));
                }
                let w = F::load(p);
                for r in 0..R {
                    sums[row][r] = S::fma(w, S::load_floats(x[r].add(k)), sums[row][r]);
                }
            }
        }
        if whole < product.cols {
            for row in 0..W {
                let mut tail = [0u8; 4 * LANES];
                let left = (product.cols - whole) * bytes;
                std::ptr::copy_nonoverlapping(weights[row].add(whole * bytes), tail.as_mut_ptr(), left);
                let w = F::load(tail.as_ptr());
                for r in 0..R {
                    sums[row][r] = S::fma(w, S::load_floats(x[r].add(whole)), sums[row][r]);
                }
            }
        }
        // Bounds known when compiling keep the sums in registers.
        for r in 0..R {
            for row in 0..W {
                if row < rows {
                    *out.element(i + r, j + row) = S::tree_sum(sums[row][r]);
                }
            }
        }
    }
    R
}
