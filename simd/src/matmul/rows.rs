//! Few activation rows: weights are read once, straight from the file, and bound by memory. Each lane of a vector holds
//! the chain of one output.
//!
//! Memory is quickest for a reader that goes through it in order, as the processor then foresees what is needed next. So
//! blocks of 256 are read one row after the other and leave their integers in a scratch; then the chains of sixteen
//! outputs advance over the blocks. Blocks of 32 would leave as much behind as they take: four rows are read side by
//! side, and those after them asked for in the order of addresses. Sixteen side by side, which panels are made of,
//! would be less work but a sixth slower.

use std::mem::MaybeUninit;

use super::Product;
use super::activations::{RowPointers, RowSteps};
use super::formats::Format256;
use super::formats_32::Format32;
use super::panels::Rows;
use super::simd::Simd;
use super::tile::OutTile;
use crate::LANES;

/// How far ahead of the block of 256 in work memory is asked for.
const PREFETCH: usize = 4096;
/// How far ahead of blocks of 32 memory is asked for at least.
const PREFETCH_32: usize = 12 * 1024;
/// Activation rows of a pass at most: as many sums as the registers hold beside the weights.
const MOST: usize = 4;
/// Rows of blocks of 32 that are read side by side.
const ROWS: usize = 4;
/// Blocks of 256 whose integers are kept at a time for one activation row; for several, half as many.
const CHUNK: usize = 32;

/// Ints that `R` activation rows leave behind for each weight row: its product, or, of several, up to four of them.
const fn ints(rows: usize) -> usize {
    if rows == 1 { 1 } else { 4 }
}

/// What the weight rows leave behind: for each block, the sixteen rows side by side. Two activation rows have their
/// offsets behind their products.
struct Scratch {
    products: [i32; 2 * CHUNK * LANES],
    offsets: [i32; 2 * CHUNK * LANES],
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

/// Takes the activation rows of a product in passes of up to four, as even as can be. Macro, because a pass has its
/// rows as a constant.
macro_rules! passes {
    ($rows:expr, $pass:ident::<$($generic:ty),*>($($argument:expr),*)) => {
        let mut i = 0;
        while i < $rows {
            let left: usize = $rows - i;
            let rows = left.div_ceil(left.div_ceil(MOST));
            match rows {
                1 => $pass::<$($generic,)* 1>($($argument,)* i),
                2 => $pass::<$($generic,)* 2>($($argument,)* i),
                3 => $pass::<$($generic,)* 3>($($argument,)* i),
                _ => $pass::<$($generic,)* MOST>($($argument,)* i),
            }
            i += rows;
        }
    };
}

/// The product for weights in blocks of 256. Later passes over the activation rows find the weights in the cache.
///
/// # Safety
/// The processor has the instruction set `S`, whose features the caller is compiled with.
#[inline(always)]
pub(super) unsafe fn blocks_of_256<S: Simd, F: Format256<S>>(product: &Product<'_>, out: &mut OutTile<'_>) {
    debug_assert_eq!(product.format, F::FORMAT);
    let mut scratch = MaybeUninit::<Scratch>::uninit();
    let scratch = scratch.as_mut_ptr();
    let inputs = Inputs::of(product);
    for j in (0..out.cols()).step_by(LANES) {
        // SAFETY: the caller's promise; the scratch is written before it is read, as rows that are missing are zeroed.
        unsafe {
            if out.cols() - j < LANES {
                scratch.write_bytes(0, 1);
            }
            passes!(out.rows(), sixteen_of_256::<S, F>(product, inputs, out, scratch, j));
        }
    }
}

/// Sixteen weight rows from `j`, or what is left of them, with `R` activation rows from `i`.
///
/// # Safety
/// As for [`blocks_of_256`]; the scratch is zeroed where weight rows are missing.
#[inline(always)]
unsafe fn sixteen_of_256<S: Simd, F: Format256<S>, const R: usize>(
    product: &Product<'_>,
    inputs: Inputs,
    out: &mut OutTile<'_>,
    scratch: *mut Scratch,
    j: usize,
    i: usize,
) {
    let bytes = F::FORMAT.block_bytes();
    let x = inputs.rows::<R>(i);
    let blocks = product.cols / 256;
    let rows = LANES.min(out.cols() - j);
    let chunk = if R == 1 { CHUNK } else { CHUNK / 2 };
    // SAFETY: `Product` holds whole rows of whole blocks of weights and, for each block, the activations' numbers; the
    // scratch has room for a chunk.
    unsafe {
        let mut chains = [S::splat(0.0); R];
        for start in (0..blocks).step_by(chunk) {
            let count = chunk.min(blocks - start);
            for row in 0..rows {
                let weights = product.weights.as_ptr().add((j + row) * product.row_bytes + start * bytes);
                for b in 0..count {
                    let block = weights.add(b * bytes);
                    prefetch::<S>(block.wrapping_add(PREFETCH), bytes);
                    block_of_256::<S, F, R>(block, &x, start + b, scratch, b, row);
                }
            }
            for b in 0..count {
                let scales = S::load_f16((&raw const (*scratch).scales[b]).cast());
                let (products, offsets) = left_behind::<S, F, R>(scratch, b);
                for r in 0..R {
                    let x_scale = S::splat(*x[r].scales.add(start + b));
                    let products = if F::MINS || F::OFFSET == 0 || R == 1 {
                        products[r]
                    } else {
                        S::subtract(products[r], S::multiply(offsets[r], S::splat_int(F::OFFSET)))
                    };
                    chains[r] = S::fma(S::to_floats(products), S::product(scales, x_scale), chains[r]);
                    if F::MINS {
                        let mins = S::load_f16((&raw const (*scratch).mins[b]).cast());
                        let offsets = S::to_floats(offsets[r]);
                        chains[r] = S::negated_fma(offsets, S::product(mins, x_scale), chains[r]);
                    }
                }
            }
        }
        for r in 0..R {
            S::store_first(out.element(i + r, j), chains[r], rows);
        }
    }
}

/// The integers of block `b` in the scratch: of each activation row, those of sixteen weight rows.
///
/// # Safety
/// As for [`sixteen_of_256`].
#[inline(always)]
unsafe fn left_behind<S: Simd, F: Format256<S>, const R: usize>(
    scratch: *const Scratch,
    b: usize,
) -> ([S::Vector; R], [S::Vector; R]) {
    let at = LANES * ints(R) * b;
    // SAFETY: the caller's promise.
    unsafe {
        let products: *const i32 = (&raw const (*scratch).products[at]).cast();
        let offsets: *const i32 = (&raw const (*scratch).offsets[at]).cast();
        if R == 1 {
            let product = S::load(products.cast());
            let offset = if F::MINS { S::load(offsets.cast()) } else { product };
            return ([product; R], [offset; R]);
        }
        let first = S::rows_of_16(Rows { start: products.cast(), stride: 16 }, 0);
        let mut both = ([first[0]; R], [first[0]; R]);
        if R == 2 {
            for r in 0..R {
                (both.0[r], both.1[r]) = (first[r], first[R + r]);
            }
            return both;
        }
        let second = S::rows_of_16(Rows { start: offsets.cast(), stride: 16 }, 0);
        for r in 0..R {
            (both.0[r], both.1[r]) = (first[r], second[r]);
        }
        both
    }
}

/// The integers of one block with block `x_block` of `R` activation rows: weights are taken apart once for all of them,
/// and their sums are added up together.
///
/// # Safety
/// As for [`blocks_of_256`]; `block` is a whole block, and the activations have block `x_block`.
#[inline(always)]
unsafe fn block_of_256<S: Simd, F: Format256<S>, const R: usize>(
    block: *const u8,
    x: &[RowPointers; R],
    x_block: usize,
    scratch: *mut Scratch,
    b: usize,
    row: usize,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let scales = F::scales(block);
        let mut sums = [S::zero(); R];
        macro_rules! groups {
            ($($group:literal)*) => {
                $(let w = F::group::<$group>(block);
                let spread = S::spread::<$group>(scales);
                for r in 0..R {
                    let quants = S::load(x[r].quants.add(256 * x_block + 64 * $group).cast());
                    sums[r] = if F::WIDE {
                        let dots = S::dot::<true>(S::zero(), w, quants);
                        S::add(sums[r], S::multiply(dots, S::upper_words(spread)))
                    } else {
                        S::dot_scaled(sums[r], w, quants, spread)
                    };
                })*
            };
        }
        groups!(0 1 2 3);
        (*scratch).scales[b][row] = half_bits(block.add(F::SCALE_AT));
        if F::MINS {
            (*scratch).mins[b][row] = half_bits(block.add(F::MIN_AT));
        }
        let mins = F::mins(block);
        let offset = |r: usize| S::dot_words_half(mins, S::load_half(x[r].sums16.add(16 * x_block).cast()));
        let at = ints(R) * (LANES * b + row);
        let products = (&raw mut (*scratch).products[at]).cast::<[i32; 4]>();
        let offsets = (&raw mut (*scratch).offsets[at]).cast::<[i32; 4]>();
        match R {
            1 => {
                let (total, offset) = S::totals(sums[0], offset(0));
                if F::MINS {
                    *products.cast() = total;
                    *offsets.cast() = offset;
                } else {
                    *products.cast() = total.wrapping_sub(F::OFFSET.wrapping_mul(offset));
                }
            }
            2 => *products = S::totals_of_two([sums[0], sums[R - 1]], [offset(0), offset(R - 1)]),
            _ => {
                let last = R - 1;
                *products = S::totals_of_four([sums[0], sums[1 % R], sums[2 % R], sums[last]]);
                *offsets = S::totals_of_four_halves([offset(0), offset(1 % R), offset(2 % R), offset(last)]);
            }
        }
    }
}

/// All activation rows: the first, and how far the parts of the next are.
#[derive(Clone, Copy)]
struct Inputs(RowPointers, RowSteps);

impl Inputs {
    #[inline(always)]
    fn of(product: &Product<'_>) -> Inputs {
        Inputs(product.x.row_pointers(product.x_rows.start), product.x.row_steps())
    }

    /// The rows from `i`.
    #[inline(always)]
    fn rows<const R: usize>(self, i: usize) -> [RowPointers; R] {
        let mut x = [self.0; R];
        for r in 0..R {
            x[r] = self.0.step(self.1, i + r);
        }
        x
    }
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

/// Stores the outputs of activation rows `i ..` and weight rows `j ..`.
///
/// # Safety
/// See [`Simd`]; the output has the rows and column `j`.
#[inline(always)]
unsafe fn store<S: Simd, const R: usize>(out: &mut OutTile<'_>, i: usize, j: usize, chains: [S::Four; R]) {
    let count = ROWS.min(out.cols() - j);
    for (r, chain) in chains.into_iter().enumerate() {
        let mut four = [0.0; ROWS];
        // SAFETY: four floats, of which the output has room for `count`.
        unsafe {
            S::store_four(four.as_mut_ptr(), chain);
            std::ptr::copy_nonoverlapping(four.as_ptr(), out.element(i + r, j), count);
        }
    }
}

/// The product for weights in blocks of 32.
///
/// # Safety
/// As for [`blocks_of_256`].
#[inline(always)]
pub(super) unsafe fn blocks_of_32<S: Simd, F: Format32<S>>(product: &Product<'_>, out: &mut OutTile<'_>) {
    debug_assert_eq!(product.format, F::FORMAT);
    let inputs = Inputs::of(product);
    for j in (0..out.cols()).step_by(ROWS) {
        // SAFETY: the caller's promise.
        unsafe {
            passes!(out.rows(), four_of_32::<S, F>(product, inputs, out, j));
        }
    }
}

/// Four weight rows from `j`, or what is left of them, with `R` activation rows from `i`.
///
/// # Safety
/// As for [`blocks_of_32`].
#[inline(always)]
unsafe fn four_of_32<S: Simd, F: Format32<S>, const R: usize>(
    product: &Product<'_>,
    inputs: Inputs,
    out: &mut OutTile<'_>,
    j: usize,
    i: usize,
) {
    let bytes = F::FORMAT.block_bytes();
    let x = inputs.rows::<R>(i);
    let count = product.cols / 32;
    let rows = weights(product, j, out.cols());
    let mut next = rows[0].wrapping_add(PREFETCH_32.max(ROWS * product.row_bytes));
    // SAFETY: `Product` holds whole rows of whole blocks of weights and, for each block, the activations' numbers.
    // The last block of an odd number takes the place of the one after it too, where a cache line of activations
    // is readable.
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
        store::<S, R>(out, i, j, chains);
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
