//! Float weights with many activation rows: a few weight rows are widened once and stay close.

use std::cell::RefCell;

use super::Product;
use super::buffer::AlignedBuffer;
use super::rows::FloatFormat;
use super::simd::Simd;
use super::tile::OutTile;
use crate::LANES;

thread_local! {
    /// The thread's widened weight rows.
    static WIDENED: RefCell<AlignedBuffer<f32>> = const { RefCell::new(AlignedBuffer::new()) };
}

/// The whole product, in tiles of `R` activation rows by `W` weight rows.
///
/// # Safety
/// The processor has the instruction set `S`, whose features the caller is compiled with.
#[inline(always)]
pub(super) unsafe fn matmul<S: Simd, F: FloatFormat<S>, const R: usize, const W: usize>(
    product: &Product<'_>,
    out: &mut OutTile<'_>,
) {
    let mut buffer = WIDENED.take();
    let padded = product.cols.next_multiple_of(LANES);
    buffer.resize(W * padded);
    let widened = buffer.as_mut_slice();
    for j in (0..out.cols()).step_by(W) {
        for (w, widened) in widened.chunks_exact_mut(padded).enumerate() {
            let row = (j + w).min(out.cols() - 1);
            let weights = &product.weights[row * product.row_bytes..(row + 1) * product.row_bytes];
            // SAFETY: the caller's promise.
            unsafe { widen::<S, F>(weights, product.cols, widened) }
        }
        for i in (0..out.rows()).step_by(R) {
            // SAFETY: the caller's promise.
            unsafe { tile::<S, R, W>(product, widened.as_ptr(), padded, out, i, j) }
        }
    }
    WIDENED.set(buffer);
}

/// Widens a row, zeros behind it.
///
/// # Safety
/// See [`Simd`].
#[inline(always)]
unsafe fn widen<S: Simd, F: FloatFormat<S>>(weights: &[u8], cols: usize, widened: &mut [f32]) {
    let bytes = F::FORMAT.block_bytes();
    let whole = cols - cols % LANES;
    // SAFETY: sixteen weights are readable at each step, sixteen floats writable.
    unsafe {
        for k in (0..whole).step_by(LANES) {
            let p = weights.as_ptr().add(k * bytes);
            S::prefetch_far(p.wrapping_add(4 * weights.len()));
            S::store_floats(widened.as_mut_ptr().add(k), F::load(p));
        }
        if whole < cols {
            let mut tail = [0u8; 4 * LANES];
            tail[..(cols - whole) * bytes].copy_from_slice(&weights[whole * bytes..]);
            S::store_floats(widened.as_mut_ptr().add(whole), F::load(tail.as_ptr()));
        }
    }
}

/// Outputs `(i .., j ..)`; rows and columns past the last are computed from the last and not stored.
///
/// # Safety
/// `widened` has `W` rows of `padded` floats; see [`Simd`].
#[inline(always)]
unsafe fn tile<S: Simd, const R: usize, const W: usize>(
    product: &Product<'_>,
    widened: *const f32,
    padded: usize,
    out: &mut OutTile<'_>,
    i: usize,
    j: usize,
) {
    let (rows, cols) = (R.min(out.rows() - i), W.min(out.cols() - j));
    let mut x = [std::ptr::null(); R];
    for (r, x) in x.iter_mut().enumerate() {
        *x = product.x.row_pointers(product.x_rows.start + i + r.min(rows - 1)).floats;
    }
    // SAFETY: activations and widened rows are padded to a multiple of 16.
    unsafe {
        let mut sums = [[S::splat(0.0); W]; R];
        for k in (0..padded).step_by(LANES) {
            let mut weights = [S::splat(0.0); W];
            for w in 0..W {
                weights[w] = S::load_floats(widened.add(w * padded + k));
            }
            for r in 0..R {
                let x = S::load_floats(x[r].add(k));
                for w in 0..W {
                    sums[r][w] = S::fma(weights[w], x, sums[r][w]);
                }
            }
        }
        // Bounds known when compiling keep the sums in registers.
        for r in 0..R {
            for w in 0..W {
                if r < rows && w < cols {
                    *out.element(i + r, j + w) = S::tree_sum(sums[r][w]);
                }
            }
        }
    }
}
