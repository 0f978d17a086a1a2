//! One activation row: weights are read once, straight from the file, and bound by memory. Sixteen weight rows at a
//! time, so that each lane of a vector holds the chain of one output.
//!
//! Blocks of 256 are read one row after the other, in the order of memory, and leave their integers in a scratch; then
//! the chains advance over the blocks. Blocks of 32 of sixteen rows are read side by side, a row to a lane.

use std::cell::RefCell;
use std::mem::MaybeUninit;

use super::Product;
use super::activations::RowPointers;
use super::buffer::AlignedBuffer;
use super::formats::Format256;
use super::formats_32::Format32;
use super::panels::{Rows, weight_rows};
use super::simd::Simd;
use super::tile::OutTile;
use crate::LANES;

/// How far ahead of the block in work memory is asked for.
const PREFETCH: usize = 4096;
/// Blocks of 256 whose integers are kept at a time.
const CHUNK: usize = 32;

/// What the rows leave behind: for each block, the sixteen rows side by side.
struct Scratch {
    products: [[i32; LANES]; CHUNK],
    offsets: [[i32; LANES]; CHUNK],
    scales: [[u16; LANES]; CHUNK],
    mins: [[u16; LANES]; CHUNK],
}

thread_local! {
    /// The last rows of a matrix, filled up to sixteen.
    static LAST_ROWS: RefCell<AlignedBuffer<u8>> = const { RefCell::new(AlignedBuffer::new()) };
}

/// The two bytes at `p`.
///
/// # Safety
/// They are readable.
#[inline(always)]
unsafe fn half_bits(p: *const u8) -> u16 {
    // SAFETY: the caller's promise; the read is unaligned.
    u16::from_le(unsafe { p.cast::<u16>().read_unaligned() })
}

/// Asks for `bytes` bytes of memory from `p`, for soon.
#[inline(always)]
unsafe fn prefetch<S: Simd>(p: *const u8, bytes: usize) {
    let mut line = 0;
    while line < bytes {
        // SAFETY: as for the caller; prefetching reads nothing.
        unsafe { S::prefetch(p.wrapping_add(line)) };
        line += 64;
    }
}

/// Asks for `bytes` bytes of memory from `p`, for later.
#[inline(always)]
unsafe fn prefetch_far<S: Simd>(p: *const u8, bytes: usize) {
    let mut line = 0;
    while line < bytes {
        // SAFETY: as for the caller; prefetching reads nothing.
        unsafe { S::prefetch_far(p.wrapping_add(line)) };
        line += 64;
    }
}

/// The product with one activation row for weights in blocks of 256.
///
/// # Safety
/// The processor has the instruction set `S`, whose features the caller is compiled with.
#[inline(always)]
pub(super) unsafe fn blocks_of_256<S: Simd, F: Format256<S>>(product: &Product<'_>, out: &mut OutTile<'_>) {
    debug_assert_eq!(product.format, F::FORMAT);
    let bytes = F::FORMAT.block_bytes();
    let x = product.x.row_pointers(product.x_rows.start);
    let blocks = product.cols / 256;
    let mut scratch = MaybeUninit::<Scratch>::uninit();
    let scratch = scratch.as_mut_ptr();
    for j in (0..out.cols()).step_by(LANES) {
        let rows = LANES.min(out.cols() - j);
        // SAFETY: `Product` holds whole rows of whole blocks of weights and, for each block, the activations'
        // numbers; the scratch is written before it is read, as rows that are missing are zeroed.
        unsafe {
            if rows < LANES {
                scratch.write_bytes(0, 1);
            }
            let mut chains = S::splat(0.0);
            for start in (0..blocks).step_by(CHUNK) {
                let count = CHUNK.min(blocks - start);
                for row in 0..rows {
                    let weights = product.weights.as_ptr().add((j + row) * product.row_bytes + start * bytes);
                    for b in 0..count {
                        let block = weights.add(b * bytes);
                        prefetch::<S>(block.wrapping_add(PREFETCH), bytes);
                        block_of_256::<S, F>(block, x, start + b, scratch, b, row);
                    }
                }
                for b in 0..count {
                    let x_scale = S::splat(*x.scales.add(start + b));
                    let scales = S::load_f16((&raw const (*scratch).scales[b]).cast());
                    let products = S::load((&raw const (*scratch).products[b]).cast());
                    chains = S::fma(S::to_floats(products), S::product(scales, x_scale), chains);
                    if F::MINS {
                        let mins = S::load_f16((&raw const (*scratch).mins[b]).cast());
                        let offsets = S::load((&raw const (*scratch).offsets[b]).cast());
                        chains = S::negated_fma(S::to_floats(offsets), S::product(mins, x_scale), chains);
                    }
                }
            }
            S::store_first(out.element(0, j), chains, rows);
        }
    }
}

/// The integers of one block with block `x_block` of the activations.
///
/// # Safety
/// As for [`blocks_of_256`]; `block` is a whole block, and the activations have block `x_block`.
#[inline(always)]
unsafe fn block_of_256<S: Simd, F: Format256<S>>(
    block: *const u8,
    x: RowPointers,
    x_block: usize,
    scratch: *mut Scratch,
    b: usize,
    row: usize,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let scales = F::scales(block);
        let mut sums = S::zero();
        macro_rules! groups {
            ($($group:literal)*) => {
                $(let w = F::group::<$group>(block);
                let spread = S::spread::<$group>(scales);
                let quants = S::load(x.quants.add(256 * x_block + 64 * $group).cast());
                sums = if F::WIDE {
                    let dots = S::dot::<true>(S::zero(), w, quants);
                    S::add(sums, S::multiply(dots, S::upper_words(spread)))
                } else {
                    S::dot_scaled(sums, w, quants, spread)
                };)*
            };
        }
        groups!(0 1 2 3);
        (*scratch).scales[b][row] = half_bits(block.add(F::SCALE_AT));
        let x_sums = S::load_half(x.sums16.add(16 * x_block).cast());
        let (total, offset) = S::totals(sums, S::dot_words_half(F::mins(block), x_sums));
        if F::MINS {
            (*scratch).mins[b][row] = half_bits(block.add(F::MIN_AT));
            (*scratch).products[b][row] = total;
            (*scratch).offsets[b][row] = offset;
        } else {
            (*scratch).products[b][row] = total.wrapping_sub(F::OFFSET.wrapping_mul(offset));
        }
    }
}

/// The product with one activation row for weights in blocks of 32.
///
/// # Safety
/// The processor has the instruction set `S`, whose features the caller is compiled with.
#[inline(always)]
pub(super) unsafe fn blocks_of_32<S: Simd, F: Format32<S>>(product: &Product<'_>, out: &mut OutTile<'_>) {
    debug_assert_eq!(product.format, F::FORMAT);
    let x = product.x.row_pointers(product.x_rows.start);
    let mut copy = LAST_ROWS.take();
    for j in (0..out.cols()).step_by(LANES) {
        let rows = weight_rows(product, j, 0, product.row_bytes, &mut copy);
        // SAFETY: these are sixteen rows of `cols / 32` blocks, and so are the activations.
        unsafe {
            let chains = sixteen_rows::<S, F>(rows, x, product.cols / 32);
            S::store_first(out.element(0, j), chains, LANES.min(out.cols() - j));
        }
    }
    LAST_ROWS.set(copy);
}

/// Sixteen outputs. Asks for the memory of the next sixteen rows on the way.
///
/// # Safety
/// As for [`blocks_of_32`]; weights and activations have the blocks.
#[inline(always)]
unsafe fn sixteen_rows<S: Simd, F: Format32<S>>(rows: Rows, x: RowPointers, blocks: usize) -> S::Floats {
    let bytes = F::FORMAT.block_bytes();
    let mut next = rows.start.wrapping_add(LANES * rows.stride);
    // SAFETY: the caller's promise.
    unsafe {
        let mut chains = S::splat(0.0);
        for b in 0..blocks {
            prefetch_far::<S>(next, LANES * bytes);
            next = next.wrapping_add(LANES * bytes);
            let block = Rows { start: rows.start.add(b * bytes), ..rows };
            let weights = F::weights(block);
            // Two chains of integers, as one would wait for itself.
            let offset = (*x.sums.add(b)).wrapping_mul(-F::OFFSET);
            let mut dots = [S::splat_int(offset), S::zero()];
            for i in 0..8 {
                let quants = S::splat_int(x.quants.add(32 * b + 4 * i).cast::<i32>().read_unaligned());
                dots[i % 2] = dot::<S>(F::WIDE, dots[i % 2], weights[i], quants);
            }
            let x_scale = S::splat(*x.scales.add(b));
            let scale = S::product(F::scales(block), x_scale);
            chains = S::fma(S::to_floats(S::add(dots[0], dots[1])), scale, chains);
            if F::MINS {
                let x_sum = S::to_floats(S::splat_int(*x.sums.add(b)));
                chains = S::negated_fma(x_sum, S::product(F::mins(block), x_scale), chains);
            }
        }
        chains
    }
}

/// Adds the dot products of four bytes; `wide` is known when compiling.
///
/// # Safety
/// See [`Simd`].
#[inline(always)]
unsafe fn dot<S: Simd>(wide: bool, sum: S::Vector, w: S::Vector, x: S::Vector) -> S::Vector {
    // SAFETY: the caller's promise.
    unsafe { if wide { S::dot::<true>(sum, w, x) } else { S::dot::<false>(sum, w, x) } }
}
