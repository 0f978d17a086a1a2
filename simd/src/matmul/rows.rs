//! One or two activation rows: weights are read once, straight from the file, and bound by memory. Each lane of a vector
//! holds the chain of one output.
//!
//! Memory is quickest for a reader that goes through it in order, as the processor then foresees what is needed next. So
//! blocks of 256 are read one row after the other and leave their integers in a scratch; then the chains of sixteen
//! outputs advance over the blocks. Blocks of 32 would leave as much behind as they take: four rows are read side by
//! side, and those after them asked for in the order of addresses. Sixteen side by side, which panels are made of,
//! would be less work but a sixth slower.

use std::mem::MaybeUninit;

use super::Product;
use super::activations::RowPointers;
use super::formats::Format256;
use super::formats_32::Format32;
use super::simd::Simd;
use super::tile::OutTile;
use crate::LANES;

/// How far ahead of the block of 256 in work memory is asked for.
const PREFETCH: usize = 4096;
/// How far ahead of blocks of 32 memory is asked for at least.
const PREFETCH_32: usize = 12 * 1024;
/// Rows of blocks of 32 that are read side by side.
const ROWS: usize = 4;
/// Blocks of 256 whose integers are kept at a time.
const CHUNK: usize = 32;

/// What the rows leave behind: for each block, the sixteen rows side by side.
struct Scratch {
    products: [[i32; LANES]; CHUNK],
    offsets: [[i32; LANES]; CHUNK],
    scales: [[u16; LANES]; CHUNK],
    mins: [[u16; LANES]; CHUNK],
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

/// The activation rows.
#[inline(always)]
fn activations<const R: usize>(product: &Product<'_>) -> [RowPointers; R] {
    let start = product.x.row_pointers(product.x_rows.start);
    let mut x = [start; R];
    for r in 1..R {
        x[r] = start.step(product.x.row_steps(), r);
    }
    x
}

/// Weight rows `j ..`; those past the last one repeat it.
#[inline(always)]
fn weights(product: &Product<'_>, j: usize, outputs: usize) -> [*const u8; ROWS] {
    let start = product.weights.as_ptr().wrapping_add(j * product.row_bytes);
    let mut rows = [start; ROWS];
    for (row, place) in rows.iter_mut().enumerate() {
        *place = start.wrapping_add(row.min(outputs - j - 1) * product.row_bytes);
    }
    rows
}

/// The same place in each row.
#[inline(always)]
fn blocks(rows: [*const u8; ROWS], at: usize) -> [*const u8; ROWS] {
    let mut blocks = rows;
    for block in &mut blocks {
        *block = block.wrapping_add(at);
    }
    blocks
}

/// Stores the outputs of weight rows `j ..`.
///
/// # Safety
/// See [`Simd`]; the output has `R` rows and column `j`.
#[inline(always)]
unsafe fn store<S: Simd, const R: usize>(out: &mut OutTile<'_>, j: usize, chains: [S::Four; R]) {
    let count = ROWS.min(out.cols() - j);
    for (r, chain) in chains.into_iter().enumerate() {
        let mut four = [0.0; ROWS];
        // SAFETY: four floats, of which the output has room for `count`.
        unsafe {
            S::store_four(four.as_mut_ptr(), chain);
            std::ptr::copy_nonoverlapping(four.as_ptr(), out.element(r, j), count);
        }
    }
}

/// The product with `R` activation rows for weights in blocks of 32.
///
/// # Safety
/// As for [`blocks_of_256`]; the output has `R` rows.
#[inline(always)]
pub(super) unsafe fn blocks_of_32<S: Simd, F: Format32<S>, const R: usize>(
    product: &Product<'_>,
    out: &mut OutTile<'_>,
) {
    debug_assert_eq!(product.format, F::FORMAT);
    let bytes = F::FORMAT.block_bytes();
    let x = activations::<R>(product);
    let count = product.cols / 32;
    for j in (0..out.cols()).step_by(ROWS) {
        let rows = weights(product, j, out.cols());
        let mut next = rows[0].wrapping_add(PREFETCH_32.max(ROWS * product.row_bytes));
        // SAFETY: as in `blocks_of_256`. The last block of an odd number takes the place of the one after it too, where
        // a cache line of activations is readable.
        unsafe {
            let mut chains = [S::four(0.0); R];
            for b in (0..count / 2 * 2).step_by(2) {
                prefetch::<S>(next, ROWS * 2 * bytes);
                next = next.wrapping_add(ROWS * 2 * bytes);
                let (first, second) = (blocks(rows, b * bytes), blocks(rows, (b + 1) * bytes));
                let sums = pairs_of_32::<S, F, R>(first, second, &x, b);
                advance_32::<S, F, R>(first, &x, b, sums.map(|[sums, _]| sums), &mut chains);
                advance_32::<S, F, R>(second, &x, b + 1, sums.map(|[_, sums]| sums), &mut chains);
            }
            if !count.is_multiple_of(2) {
                let last = blocks(rows, (count - 1) * bytes);
                let sums = pairs_of_32::<S, F, R>(last, last, &x, count - 1);
                advance_32::<S, F, R>(last, &x, count - 1, sums.map(|[sums, _]| sums), &mut chains);
            }
            store::<S, R>(out, j, chains);
        }
    }
}

/// The products of two blocks of each of four weight rows with blocks `b` and `b + 1` of the activations.
///
/// # Safety
/// As for [`blocks_of_32`]; these are whole blocks, the activations have block `b`.
#[inline(always)]
unsafe fn pairs_of_32<S: Simd, F: Format32<S>, const R: usize>(
    first: [*const u8; ROWS],
    second: [*const u8; ROWS],
    x: &[RowPointers; R],
    b: usize,
) -> [[S::FourInts; 2]; R] {
    // SAFETY: the caller's promise.
    unsafe {
        let mut dots = [[S::zero(); ROWS]; R];
        for row in 0..ROWS {
            let w = F::pair(first[row], second[row]);
            for r in 0..R {
                let quants = S::load(x[r].quants.add(32 * b).cast());
                dots[r][row] = if F::WIDE {
                    S::dot::<true>(S::zero(), w, quants)
                } else {
                    S::dot::<false>(S::zero(), w, quants)
                };
            }
        }
        let mut sums = [S::totals_by_half(dots[0]); R];
        for r in 1..R {
            sums[r] = S::totals_by_half(dots[r]);
        }
        sums
    }
}

/// One step of the chains over block `b` of four weight rows, whose products are `sums`, weights above their values as
/// they are.
///
/// # Safety
/// As for [`blocks_of_32`]; these are whole blocks, the activations have block `b`.
#[inline(always)]
unsafe fn advance_32<S: Simd, F: Format32<S>, const R: usize>(
    blocks_b: [*const u8; ROWS],
    x: &[RowPointers; R],
    b: usize,
    sums: [S::FourInts; R],
    chains: &mut [S::Four; R],
) {
    // SAFETY: the caller's promise.
    unsafe {
        let scales = F::four_scales(blocks_b);
        for r in 0..R {
            let (x_scale, x_sum) = (*x[r].scales.add(b), *x[r].sums.add(b));
            let products = match F::OFFSET {
                0 => sums[r],
                offset => S::add_four(sums[r], S::four_ints(x_sum.wrapping_mul(-offset))),
            };
            chains[r] = S::chain(chains[r], products, scales, x_scale);
            if F::MINS {
                // These offsets are stored as what is added.
                let mins = S::four_halves(blocks(blocks_b, 2));
                chains[r] = S::chain(chains[r], S::four_ints(x_sum), mins, x_scale);
            }
        }
    }
}
