//! Few activation rows: weights are read once, straight from the file, and bound by memory.
//!
//! Sixteen weight rows at a time, so that each lane of a vector holds the chain of one output. First the rows are
//! read one after the other, in the order of memory, and leave the integers of their blocks in a scratch; then the
//! chains advance over the blocks.

use std::mem::MaybeUninit;

use super::Product;
use super::activations::RowPointers;
use super::formats::{Format32, Format256};
use super::simd::Simd;
use super::tile::OutTile;
use crate::LANES;
use crate::quant::QFormat;

/// How far ahead of the block in work memory is asked for.
const PREFETCH: usize = 4096;
/// Blocks of 256 whose integers are kept at a time.
const CHUNK_256: usize = 32;
/// Blocks of 32 whose integers are kept at a time.
const CHUNK_32: usize = 128;

/// What the rows leave behind in blocks of 256: for each block, the sixteen rows side by side.
struct Scratch256<const R: usize> {
    products: [[[i32; LANES]; CHUNK_256]; R],
    offsets: [[[i32; LANES]; CHUNK_256]; R],
    scales: [[u16; LANES]; CHUNK_256],
    mins: [[u16; LANES]; CHUNK_256],
}

/// What the rows leave behind in blocks of 32: for each row, its blocks side by side.
struct Scratch32<const R: usize> {
    products: [[[i32; CHUNK_32]; LANES]; R],
    scales: [[u16; CHUNK_32]; LANES],
}

/// The `R` rows of activations.
fn pointers<const R: usize>(product: &Product<'_>) -> [RowPointers; R] {
    std::array::from_fn(|r| product.x.row_pointers(product.x_rows.start + r))
}

/// Asks for the memory `PREFETCH` bytes after a piece of `bytes` bytes.
#[inline(always)]
unsafe fn prefetch<S: Simd>(piece: *const u8, bytes: usize) {
    let mut ahead = 0;
    while ahead < bytes {
        // SAFETY: as for the caller; prefetching reads nothing.
        unsafe { S::prefetch(piece.wrapping_add(PREFETCH + ahead)) };
        ahead += 64;
    }
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

/// The dot products of four bytes; `wide` is known when compiling.
///
/// # Safety
/// See [`Simd`].
#[inline(always)]
unsafe fn dot<S: Simd>(wide: bool, w: S::Vector, x: S::Vector) -> S::Vector {
    // SAFETY: the caller's promise.
    unsafe { if wide { S::dot::<true>(S::zero(), w, x) } else { S::dot::<false>(S::zero(), w, x) } }
}

/// The product with `R` activation rows for weights in blocks of 256.
///
/// # Safety
/// The processor has the instruction set `S`, whose features the caller is compiled with.
#[inline(always)]
pub(super) unsafe fn blocks_of_256<S: Simd, F: Format256<S>, const R: usize>(
    product: &Product<'_>,
    out: &mut OutTile<'_>,
) {
    debug_assert_eq!(product.format, F::FORMAT);
    let bytes = F::FORMAT.block_bytes();
    let x = pointers::<R>(product);
    let blocks = product.cols / 256;
    let mut scratch = MaybeUninit::<Scratch256<R>>::uninit();
    let scratch = scratch.as_mut_ptr();
    for j in (0..out.cols()).step_by(LANES) {
        let rows = LANES.min(out.cols() - j);
        // SAFETY: `Product` holds whole rows of whole blocks of weights and, for each block, the activations'
        // numbers; the scratch is written before it is read, as rows that are missing are zeroed.
        unsafe {
            if rows < LANES {
                scratch.write_bytes(0, 1);
            }
            let mut chains = [S::splat(0.0); R];
            for start in (0..blocks).step_by(CHUNK_256) {
                let count = CHUNK_256.min(blocks - start);
                for row in 0..rows {
                    let weights = product.weights.as_ptr().add((j + row) * product.row_bytes + start * bytes);
                    for b in 0..count {
                        let block = weights.add(b * bytes);
                        prefetch::<S>(block, bytes);
                        block_of_256::<S, F, R>(block, &x, start + b, scratch, b, row);
                    }
                }
                for b in 0..count {
                    let scales = S::load_f16((&raw const (*scratch).scales[b]).cast());
                    for r in 0..R {
                        let x_scale = S::splat(*x[r].scales.add(start + b));
                        let products = S::load((&raw const (*scratch).products[r][b]).cast());
                        chains[r] = S::fma(S::to_floats(products), S::product(scales, x_scale), chains[r]);
                        if F::MINS {
                            let mins = S::load_f16((&raw const (*scratch).mins[b]).cast());
                            let offsets = S::load((&raw const (*scratch).offsets[r][b]).cast());
                            chains[r] =
                                S::negated_fma(S::to_floats(offsets), S::product(mins, x_scale), chains[r]);
                        }
                    }
                }
            }
            for r in 0..R {
                S::store_first(out.element(r, j), chains[r], rows);
            }
        }
    }
}

/// The integers of one block with block `x_block` of each activation row.
///
/// # Safety
/// As for [`blocks_of_256`]; `block` is a whole block, and the activations have block `x_block`.
#[inline(always)]
unsafe fn block_of_256<S: Simd, F: Format256<S>, const R: usize>(
    block: *const u8,
    x: &[RowPointers; R],
    x_block: usize,
    scratch: *mut Scratch256<R>,
    b: usize,
    row: usize,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let scales = F::scales(block);
        let mut sums = [S::zero(); R];
        macro_rules! group {
            ($group:literal) => {
                let w = F::group::<$group>(block);
                let spread = S::spread::<$group>(scales);
                for r in 0..R {
                    let x = S::load(x[r].quants.add(256 * x_block + 64 * $group).cast());
                    sums[r] = if F::WIDE {
                        let dots = S::dot::<true>(S::zero(), w, x);
                        S::add(sums[r], S::multiply(dots, S::upper_words(spread)))
                    } else {
                        S::dot_scaled(sums[r], w, x, spread)
                    };
                }
            };
        }
        group!(0);
        group!(1);
        group!(2);
        group!(3);
        (*scratch).scales[b][row] = half_bits(block.add(F::SCALE_AT));
        if F::MINS {
            (*scratch).mins[b][row] = half_bits(block.add(F::MIN_AT));
        }
        let mins = F::mins(block);
        for r in 0..R {
            let x_sums = S::load_half(x[r].sums16.add(16 * x_block).cast());
            let (total, offset) = S::totals(sums[r], S::dot_words_half(mins, x_sums));
            if F::MINS {
                (*scratch).products[r][b][row] = total;
                (*scratch).offsets[r][b][row] = offset;
            } else {
                (*scratch).products[r][b][row] = total.wrapping_sub(F::OFFSET.wrapping_mul(offset));
            }
        }
    }
}

/// The product with `R` activation rows for weights in blocks of 32.
///
/// # Safety
/// The processor has the instruction set `S`, whose features the caller is compiled with.
#[inline(always)]
pub(super) unsafe fn blocks_of_32<S: Simd, F: Format32<S>, const R: usize>(
    product: &Product<'_>,
    out: &mut OutTile<'_>,
) {
    debug_assert_eq!(product.format, F::FORMAT);
    let bytes = F::FORMAT.block_bytes();
    let x = pointers::<R>(product);
    let blocks = product.cols / 32;
    let mut scratch = MaybeUninit::<Scratch32<R>>::uninit();
    let scratch = scratch.as_mut_ptr();
    for j in (0..out.cols()).step_by(LANES) {
        let rows = LANES.min(out.cols() - j);
        // SAFETY: as in `blocks_of_256`.
        unsafe {
            if rows < LANES {
                scratch.write_bytes(0, 1);
            }
            let mut chains = [S::splat(0.0); R];
            for start in (0..blocks).step_by(CHUNK_32) {
                let count = CHUNK_32.min(blocks - start);
                for row in 0..rows {
                    let weights = product.weights.as_ptr().add((j + row) * product.row_bytes + start * bytes);
                    for b in (0..count).step_by(LANES) {
                        prefetch::<S>(weights.wrapping_add(b * bytes), LANES * bytes);
                        if b + LANES <= count {
                            sixteen_blocks::<S, F, R, true>(weights, &x, start, count, scratch, b, row);
                        } else {
                            sixteen_blocks::<S, F, R, false>(weights, &x, start, count, scratch, b, row);
                        }
                    }
                }
                for b in (0..count).step_by(LANES) {
                    advance::<S, R>(&mut chains, scratch, &x, start, b, LANES.min(count - b));
                }
            }
            for r in 0..R {
                S::store_first(out.element(r, j), chains[r], rows);
            }
        }
    }
}

/// The integers of blocks `b .. b + 16` of a piece of `count` blocks at `weights`, which meet the activations from
/// block `start`. Unless `WHOLE`, blocks past the last are replaced by the last; their results are not used.
///
/// # Safety
/// As for [`blocks_of_32`]; `b < count`, and `b + 16 <= count` if `WHOLE`.
#[inline(always)]
unsafe fn sixteen_blocks<S: Simd, F: Format32<S>, const R: usize, const WHOLE: bool>(
    weights: *const u8,
    x: &[RowPointers; R],
    start: usize,
    count: usize,
    scratch: *mut Scratch32<R>,
    b: usize,
    row: usize,
) {
    let bytes = F::FORMAT.block_bytes();
    // SAFETY: the caller's promise; activations may be read a line past their end.
    unsafe {
        let mut w = [S::zero(); 8];
        let mut places = [0; LANES];
        for (i, place) in places.iter_mut().enumerate() {
            *place = if WHOLE { b + i } else { (b + i).min(count - 1) };
            (*scratch).scales[row][b + i] = half_bits(weights.add(*place * bytes));
        }
        for i in 0..8 {
            w[i] = F::pair(weights.add(places[2 * i] * bytes), weights.add(places[2 * i + 1] * bytes));
        }
        for r in 0..R {
            let mut dots = [S::zero(); 8];
            for i in 0..8 {
                let x = S::load(x[r].quants.add(32 * (start + places[2 * i])).cast());
                dots[i] = dot::<S>(F::WIDE, w[i], x);
            }
            let mut totals = S::half_totals(dots);
            if F::OFFSET != 0 {
                let x_sums = S::load(x[r].sums.add(start + b).cast());
                totals = S::subtract(totals, S::multiply(x_sums, S::splat_int(F::OFFSET)));
            }
            S::store((&raw mut (*scratch).products[r][row][b]).cast(), totals);
        }
    }
}

/// Advances the chains over blocks `b .. b + count`, `count <= 16`.
///
/// # Safety
/// As for [`blocks_of_32`]; the scratch holds the blocks.
#[inline(always)]
unsafe fn advance<S: Simd, const R: usize>(
    chains: &mut [S::Floats; R],
    scratch: *const Scratch32<R>,
    x: &[RowPointers; R],
    start: usize,
    b: usize,
    count: usize,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut scales = [S::zero(); LANES];
        for (row, scales) in scales.iter_mut().enumerate() {
            *scales = S::bits(S::load_f16((&raw const (*scratch).scales[row][b]).cast()));
        }
        S::transpose(&mut scales);
        for r in 0..R {
            let mut products = [S::zero(); LANES];
            for (row, products) in products.iter_mut().enumerate() {
                *products = S::load((&raw const (*scratch).products[r][row][b]).cast());
            }
            S::transpose(&mut products);
            for i in 0..count {
                let x_scale = S::splat(*x[r].scales.add(start + b + i));
                let scale = S::product(S::of_bits(scales[i]), x_scale);
                chains[r] = S::fma(S::to_floats(products[i]), scale, chains[r]);
            }
        }
    }
}

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

/// The product with `R` activation rows for float weights, four weight rows at a time.
///
/// # Safety
/// The processor has the instruction set `S`, whose features the caller is compiled with.
#[inline(always)]
pub(super) unsafe fn floats<S: Simd, F: FloatFormat<S>, const R: usize>(
    product: &Product<'_>,
    out: &mut OutTile<'_>,
) {
    const ROWS: usize = 4;
    debug_assert_eq!(product.format, F::FORMAT);
    let bytes = F::FORMAT.block_bytes();
    let x = pointers::<R>(product);
    let whole = product.cols - product.cols % LANES;
    for j in (0..out.cols()).step_by(ROWS) {
        let rows = ROWS.min(out.cols() - j);
        let mut weights = [product.weights.as_ptr(); ROWS];
        for (row, weights) in weights.iter_mut().enumerate() {
            // Rows that are missing are replaced by the last.
            *weights = weights.wrapping_add((j + row.min(rows - 1)) * product.row_bytes);
        }
        // SAFETY: `Product` holds whole rows of weights and activations padded to a multiple of 16.
        unsafe {
            let mut sums = [[S::splat(0.0); R]; ROWS];
            for k in (0..whole).step_by(LANES) {
                for row in 0..ROWS {
                    let p = weights[row].add(k * bytes);
                    S::prefetch(p.wrapping_add(PREFETCH / ROWS));
                    let w = F::load(p);
                    for r in 0..R {
                        sums[row][r] = S::fma(w, S::load_floats(x[r].floats.add(k)), sums[row][r]);
                    }
                }
            }
            if whole < product.cols {
                for row in 0..ROWS {
                    let mut tail = [0u8; 4 * LANES];
                    let left = (product.cols - whole) * bytes;
                    std::ptr::copy_nonoverlapping(weights[row].add(whole * bytes), tail.as_mut_ptr(), left);
                    let w = F::load(tail.as_ptr());
                    for r in 0..R {
                        sums[row][r] = S::fma(w, S::load_floats(x[r].floats.add(whole)), sums[row][r]);
                    }
                }
            }
            // Bounds known when compiling keep the sums in registers.
            for r in 0..R {
                for row in 0..ROWS {
                    if row < rows {
                        *out.element(r, j + row) = S::tree_sum(sums[row][r]);
                    }
                }
            }
        }
    }
}
