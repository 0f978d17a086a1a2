//! A few activation rows, for instruction sets of many registers: sixteen weight rows are unpacked in registers, as for
//! a panel, and multiplied at once. Panels would be written, read once or twice and thrown away.
//!
//! Order of operations, and how memory is asked for, are those of panels.

use std::mem::MaybeUninit;

use super::Product;
use super::activations::RowPointers;
use super::buffer::AlignedBuffer;
use super::formats_32::Format32;
use super::panels::{Ahead, LINE, Layout, Rows, asked_for, splat_at, weight_rows};
use super::simd::Simd;
use super::tile::OutTile;
use super::unpack::Unpack;
use crate::LANES;

/// Activation rows at most: their sums, those of a sub-block and its weights are in registers.
const MOST: usize = 8;

/// How far ahead of the rows in work memory is asked for at least.
const AHEAD: usize = 24 * 1024;

/// A format of 256-value blocks that unpacks in four parts.
///
/// # Safety
/// As for [`Unpack`].
pub(super) trait Parts<S: Simd>: Unpack<S> {
    /// Vectors with one sub-scale.
    const STEPS: usize;

    /// Writes what a panel has before the weights.
    unsafe fn header(blocks: Rows, panel: *mut u8);

    /// The vectors of four weights of part `PART`, one sub-scale after the other.
    unsafe fn part<const PART: usize>(blocks: Rows) -> [S::Vector; 16];

    /// Which sub-scale the vectors from `STEPS * i` of a part have: one after the other, where parts lie in that order.
    #[inline(always)]
    fn sub(part: usize, i: usize) -> usize {
        16 / Self::STEPS * part + i
    }
}

/// What a block has beside its weights: the most that any layout needs.
#[repr(align(64))]
struct Header(MaybeUninit<[u8; 26 * LINE]>);

/// The operands of one pass: up to [`MOST`] activation rows by the sixteen weight rows from `j`.
struct Pass<'a, 'p, 'o> {
    product: &'a Product<'p>,
    out: &'a mut OutTile<'o>,
    weights: Rows,
    j: usize,
    ahead: Ahead,
}

impl Pass<'_, '_, '_> {
    /// The activation rows; past the last, the last again.
    #[inline(always)]
    fn inputs<const R: usize>(&self) -> [RowPointers; R] {
        let first = self.product.x.row_pointers(self.product.x_rows.start);
        let mut x = [first; R];
        for r in 0..R {
            x[r] = first.step(self.product.x.row_steps(), r.min(self.out.rows() - 1));
        }
        x
    }

    /// Stores the chains.
    ///
    /// # Safety
    /// See [`Simd`]; the output has the rows and columns.
    #[inline(always)]
    unsafe fn store<S: Simd, const R: usize>(&mut self, chains: [S::Floats; R]) {
        let width = LANES.min(self.out.cols() - self.j);
        for r in 0..R {
            if r < self.out.rows() {
                // SAFETY: the caller's promise.
                unsafe { S::store_first(self.out.element(r, self.j), chains[r], width) }
            }
        }
    }
}

/// Goes through weight rows by sixteen. Macro, because a pass has its activation rows as a constant.
macro_rules! passes {
    ($product:expr, $out:expr, $pass:ident::<$($generic:ty),*>) => {
        let (product, out): (&Product<'_>, &mut OutTile<'_>) = ($product, $out);
        let mut copy = AlignedBuffer::default();
        let blocks = product.row_bytes / product.format.block_bytes();
        let distance = AHEAD.div_ceil(product.row_bytes).next_multiple_of(LANES);
        asked_for(product, distance, out.cols());
        for j in (0..out.cols()).step_by(LANES) {
            let weights = weight_rows(product, j, 0, product.row_bytes, &mut copy);
            let ahead = Ahead::group(product, j + distance, LANES, blocks);
            let pass = Pass { product, out: &mut *out, weights, j, ahead };
            match pass.out.rows() {
                1 | 2 => $pass::<$($generic,)* 2>(pass),
                3 | 4 => $pass::<$($generic,)* 4>(pass),
                5 | 6 => $pass::<$($generic,)* 6>(pass),
                _ => $pass::<$($generic,)* MOST>(pass),
            }
        }
    };
}

/// The product for weights in blocks of 256, with up to [`MOST`] activation rows.
///
/// # Safety
/// The processor has the instruction set `S`, whose features the caller is compiled with.
#[inline(always)]
pub(super) unsafe fn blocks_of_256<S: Simd, F: Parts<S>>(product: &Product<'_>, out: &mut OutTile<'_>) {
    debug_assert!(out.rows() <= MOST);
    // SAFETY: the caller's promise.
    unsafe {
        passes!(product, out, sixteen_of_256::<S, F>);
    }
}

/// One pass over blocks of 256.
///
/// # Safety
/// As for [`blocks_of_256`].
#[inline(always)]
unsafe fn sixteen_of_256<S: Simd, F: Parts<S>, const R: usize>(mut pass: Pass<'_, '_, '_>) {
    let layout: Layout = <F as Unpack<S>>::LAYOUT;
    let x = pass.inputs::<R>();
    let mut header = Header(MaybeUninit::uninit());
    let header: *mut u8 = header.0.as_mut_ptr().cast();
    const { assert!(<F as Unpack<S>>::LAYOUT.weights_at() <= size_of::<Header>()) };
    // SAFETY: the caller's promise; the rows have the blocks, the activations the same blocks.
    unsafe {
        let mut chains = [S::splat(0.0); R];
        for b in 0..pass.product.cols / 256 {
            let start = pass.weights.start.wrapping_add(b * F::FORMAT.block_bytes());
            let blocks = Rows { start, ..pass.weights };
            let ahead = pass.ahead.after(b);
            F::header(blocks, header);
            let mut offsets = [S::zero(); R];
            for pair in 0..layout.pairs() {
                let words = S::load(header.add(layout.pairs_at() + LINE * pair));
                for r in 0..R {
                    let sums = if layout.subs == 8 { x[r].sums32 } else { x[r].sums16 };
                    let sums = splat_at::<S, i16>(sums.add(layout.subs * b + 2 * pair));
                    offsets[r] = S::dot_words(offsets[r], words, sums);
                }
            }
            let mut sums = if layout.mins { [S::zero(); R] } else { offsets };
            macro_rules! parts {
                ($($part:literal)*) => {
                    $(ahead.part::<S>($part, 4);
                    let weights = F::part::<$part>(blocks);
                    for i in 0..16 / F::STEPS {
                        let sub = F::sub($part, i);
                        let k = 256 * b + 4 * F::STEPS * sub;
                        let mut dots = [S::zero(); R];
                        for step in 0..F::STEPS {
                            for r in 0..R {
                                let x = splat_at::<S, i8>(x[r].quants.add(k + 4 * step));
                                dots[r] = S::dot::<false>(dots[r], weights[F::STEPS * i + step], x);
                            }
                        }
                        let scale = S::load(header.add(layout.subs_at() + LINE * sub));
                        for r in 0..R {
                            sums[r] = S::add(sums[r], S::multiply(dots[r], scale));
                        }
                    })*
                };
            }
            parts!(0 1 2 3);
            let scales = S::load_floats(header.cast());
            let mins = S::load_floats(header.add(LINE * layout.mins as usize).cast());
            for r in 0..R {
                let x_scale = S::splat(*x[r].scales.add(b));
                chains[r] = S::fma(S::to_floats(sums[r]), S::product(scales, x_scale), chains[r]);
                if layout.mins {
                    let offsets = S::to_floats(offsets[r]);
                    chains[r] = S::negated_fma(offsets, S::product(mins, x_scale), chains[r]);
                }
            }
        }
        pass.store::<S, R>(chains);
    }
}

/// The product for weights in blocks of 32.
///
/// # Safety
/// As for [`blocks_of_256`].
#[inline(always)]
pub(super) unsafe fn blocks_of_32<S: Simd, F: Format32<S>>(product: &Product<'_>, out: &mut OutTile<'_>) {
    debug_assert!(out.rows() <= MOST);
    // SAFETY: the caller's promise.
    unsafe {
        passes!(product, out, sixteen_of_32::<S, F>);
    }
}

/// One pass over blocks of 32.
///
/// # Safety
/// As for [`blocks_of_256`].
#[inline(always)]
unsafe fn sixteen_of_32<S: Simd, F: Format32<S>, const R: usize>(mut pass: Pass<'_, '_, '_>) {
    let x = pass.inputs::<R>();
    // SAFETY: the caller's promise; the rows have the blocks, the activations the same blocks.
    unsafe {
        let mut chains = [S::splat(0.0); R];
        for b in 0..pass.product.cols / 32 {
            let start = pass.weights.start.wrapping_add(b * F::FORMAT.block_bytes());
            let blocks = Rows { start, ..pass.weights };
            pass.ahead.after(b).part::<S>(0, 1);
            let weights = F::weights(blocks);
            let mut dots = [S::zero(); R];
            if F::OFFSET != 0 {
                for r in 0..R {
                    let x_sum = splat_at::<S, i32>(x[r].sums.add(b));
                    dots[r] = S::multiply(x_sum, S::splat_int(-F::OFFSET));
                }
            }
            for step in 0..8 {
                for r in 0..R {
                    let x = splat_at::<S, i8>(x[r].quants.add(32 * b + 4 * step));
                    dots[r] = if F::WIDE {
                        S::dot::<true>(dots[r], weights[step], x)
                    } else {
                        S::dot::<false>(dots[r], weights[step], x)
                    };
                }
            }
            let scales = F::scales(blocks);
            let mins = if F::MINS { F::mins(blocks) } else { scales };
            for r in 0..R {
                let x_scale = S::splat(*x[r].scales.add(b));
                chains[r] = S::fma(S::to_floats(dots[r]), S::product(scales, x_scale), chains[r]);
                if F::MINS {
                    let x_sum = S::to_floats(splat_at::<S, i32>(x[r].sums.add(b)));
                    chains[r] = S::negated_fma(x_sum, S::product(mins, x_scale), chains[r]);
                }
            }
        }
        pass.store::<S, R>(chains);
    }
}
