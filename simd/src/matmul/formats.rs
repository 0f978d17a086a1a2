//! How each format's blocks come into vectors, for the formats with a path of their own. Layouts are described with
//! the scalar decoders in [`crate::quant`].

use std::marker::PhantomData;

use super::panels::Rows;
use super::simd::Simd;
use crate::quant::{IQ4_LEVELS, QFormat};

/// A format of 256-value blocks. Weights are non-negative: narrow ones (below 64) are the format's integers plus
/// `OFFSET`; wide ones are in stored form.
///
/// # Safety
/// `block` points at a whole block; see [`Simd`] for the rest.
pub(super) trait Format256<S: Simd> {
    const FORMAT: QFormat;
    /// Whether blocks have an offset.
    const MINS: bool;
    const WIDE: bool;
    /// What a weight is above its value.
    const OFFSET: i32;
    /// Where the block's scale and offset unit are.
    const SCALE_AT: usize;
    const MIN_AT: usize;

    /// The sub-scales of each 16 values.
    unsafe fn scales(block: *const u8) -> S::Half;
    /// The sub-offsets of each 16 values, if there are any.
    unsafe fn mins(block: *const u8) -> S::Half;
    /// Weights `64 GROUP ..`.
    unsafe fn group<const GROUP: usize>(block: *const u8) -> S::Vector;
}

/// A format of 32-value blocks with a scale (f16) in front and no offset. Blocks of sixteen rows are read side by
/// side. Weights are as in [`Format256`].
///
/// # Safety
/// `blocks` are whole blocks; see [`Simd`] for the rest.
pub(super) trait Format32<S: Simd> {
    const FORMAT: QFormat;
    const WIDE: bool;
    /// What a weight is above its value.
    const OFFSET: i32;

    /// Weights `4 i ..` of each row in vector `i`.
    unsafe fn weights(blocks: Rows) -> [S::Vector; 8];

    /// The scale of each row.
    #[inline(always)]
    unsafe fn scales(blocks: Rows) -> S::Floats {
        // SAFETY: the trait's promise; such blocks have sixteen bytes and more.
        unsafe {
            let [halves, ..] = S::rows_of_16(blocks, 0);
            S::lower_halves(halves)
        }
    }
}

/// The little-endian number at `p`.
///
/// # Safety
/// Four bytes are readable.
#[inline(always)]
unsafe fn u32_at(p: *const u8) -> u32 {
    // SAFETY: the caller's promise; the read is unaligned.
    u32::from_le(unsafe { p.cast::<u32>().read_unaligned() })
}

/// The eight 6-bit scales and offsets of Q4_K and Q5_K, a byte each.
///
/// # Safety
/// Twelve bytes are readable.
#[inline(always)]
unsafe fn six_bit_pairs(p: *const u8) -> (u64, u64) {
    // SAFETY: the caller's promise.
    let (a, b, c) = unsafe { (u32_at(p), u32_at(p.add(4)), u32_at(p.add(8))) };
    let scales_above = (c & 0x0f0f_0f0f) | ((a >> 2) & 0x3030_3030);
    let mins_above = ((c >> 4) & 0x0f0f_0f0f) | ((b >> 2) & 0x3030_3030);
    let scales = u64::from(a & 0x3f3f_3f3f) | u64::from(scales_above) << 32;
    let mins = u64::from(b & 0x3f3f_3f3f) | u64::from(mins_above) << 32;
    (scales, mins)
}

pub(super) struct Q4K<S>(PhantomData<S>);

impl<S: Simd> Format256<S> for Q4K<S> {
    const FORMAT: QFormat = QFormat::Q4K;
    const MINS: bool = true;
    const WIDE: bool = false;
    const OFFSET: i32 = 0;
    const SCALE_AT: usize = 0;
    const MIN_AT: usize = 2;

    #[inline(always)]
    unsafe fn scales(block: *const u8) -> S::Half {
        // SAFETY: the trait's promise.
        unsafe { S::words_of_pairs(six_bit_pairs(block.add(4)).0) }
    }

    #[inline(always)]
    unsafe fn mins(block: *const u8) -> S::Half {
        // SAFETY: the trait's promise.
        unsafe { S::words_of_pairs(six_bit_pairs(block.add(4)).1) }
    }

    #[inline(always)]
    unsafe fn group<const GROUP: usize>(block: *const u8) -> S::Vector {
        // SAFETY: the trait's promise.
        unsafe { S::nibbles_of_32(block.add(16 + 32 * GROUP)) }
    }
}

pub(super) struct Q5K<S>(PhantomData<S>);

impl<S: Simd> Format256<S> for Q5K<S> {
    const FORMAT: QFormat = QFormat::Q5K;
    const MINS: bool = true;
    const WIDE: bool = false;
    const OFFSET: i32 = 0;
    const SCALE_AT: usize = 0;
    const MIN_AT: usize = 2;

    #[inline(always)]
    unsafe fn scales(block: *const u8) -> S::Half {
        // SAFETY: the trait's promise.
        unsafe { S::words_of_pairs(six_bit_pairs(block.add(4)).0) }
    }

    #[inline(always)]
    unsafe fn mins(block: *const u8) -> S::Half {
        // SAFETY: the trait's promise.
        unsafe { S::words_of_pairs(six_bit_pairs(block.add(4)).1) }
    }

    #[inline(always)]
    unsafe fn group<const GROUP: usize>(block: *const u8) -> S::Vector {
        // SAFETY: the trait's promise.
        unsafe {
            let fifth = S::fifth_bits::<GROUP>(S::load_twice(block.add(16)));
            S::or(S::nibbles_of_32(block.add(48 + 32 * GROUP)), fifth)
        }
    }
}

pub(super) struct Q6K<S>(PhantomData<S>);

impl<S: Simd> Format256<S> for Q6K<S> {
    const FORMAT: QFormat = QFormat::Q6K;
    const MINS: bool = false;
    const WIDE: bool = false;
    const OFFSET: i32 = 32;
    const SCALE_AT: usize = 208;
    const MIN_AT: usize = 208;

    #[inline(always)]
    unsafe fn scales(block: *const u8) -> S::Half {
        // SAFETY: the trait's promise.
        unsafe { S::words_of_signed(block.add(192)) }
    }

    #[inline(always)]
    unsafe fn mins(block: *const u8) -> S::Half {
        // SAFETY: the trait's promise.
        unsafe { Self::scales(block) }
    }

    #[inline(always)]
    unsafe fn group<const GROUP: usize>(block: *const u8) -> S::Vector {
        // SAFETY: the trait's promise.
        unsafe {
            let low = S::load(block.add(64 * (GROUP / 2)));
            let upper = S::load_twice(block.add(128 + 32 * (GROUP / 2)));
            match GROUP % 2 {
                0 => S::or(S::low_nibbles(low), S::upper_pairs::<0>(upper)),
                _ => S::or(S::high_nibbles(low), S::upper_pairs::<1>(upper)),
            }
        }
    }
}

/// The levels of IQ4 in stored form.
///
/// # Safety
/// See [`Simd`].
#[inline(always)]
unsafe fn iq4_table<S: Simd>() -> S::Vector {
    // SAFETY: the table has 16 bytes.
    unsafe { S::stored(S::load_table(IQ4_LEVELS.as_ptr().cast())) }
}

pub(super) struct IQ4XS<S>(PhantomData<S>);

impl<S: Simd> Format256<S> for IQ4XS<S> {
    const FORMAT: QFormat = QFormat::IQ4XS;
    const MINS: bool = false;
    const WIDE: bool = true;
    const OFFSET: i32 = S::WIDE_OFFSET;
    const SCALE_AT: usize = 0;
    const MIN_AT: usize = 0;

    #[inline(always)]
    unsafe fn scales(block: *const u8) -> S::Half {
        // SAFETY: the trait's promise.
        unsafe {
            let (upper, low) = (u64::from(u32_at(block) >> 16), u64::from(u32_at(block.add(4))));
            // Deal the nibbles and the pairs of bits out to bytes.
            let low = (low | low << 16) & 0x0000_ffff_0000_ffff;
            let low = (low | low << 8) & 0x00ff_00ff_00ff_00ff;
            let low = (low | low << 4) & 0x0f0f_0f0f_0f0f_0f0f;
            let upper = (upper | upper << 24) & 0x0000_00ff_0000_00ff;
            let upper = (upper | upper << 12) & 0x000f_000f_000f_000f;
            let upper = (upper | upper << 6) & 0x0303_0303_0303_0303;
            // Subtract 32 from each byte; the set top bit keeps borrows out.
            let centred =
                ((low | upper << 4 | 0x8080_8080_8080_8080) - 0x2020_2020_2020_2020) ^ 0x8080_8080_8080_8080;
            S::words_of_pairs(centred)
        }
    }

    #[inline(always)]
    unsafe fn mins(block: *const u8) -> S::Half {
        // SAFETY: the trait's promise.
        unsafe { Self::scales(block) }
    }

    #[inline(always)]
    unsafe fn group<const GROUP: usize>(block: *const u8) -> S::Vector {
        // SAFETY: the trait's promise.
        unsafe {
            let bytes = block.add(8 + 32 * GROUP);
            S::look_up(iq4_table::<S>(), S::nibbles_of_16_and_16(bytes, bytes.add(16)))
        }
    }
}

/// Low nibbles, then high ones.
///
/// # Safety
/// See [`Simd`].
#[inline(always)]
unsafe fn nibbles<S: Simd>(packed: [S::Vector; 4]) -> [S::Vector; 8] {
    let mut nibbles = [packed[0]; 8];
    for i in 0..4 {
        // SAFETY: the caller's promise.
        unsafe {
            nibbles[i] = S::low_nibbles(packed[i]);
            nibbles[4 + i] = S::high_nibbles(packed[i]);
        }
    }
    nibbles
}

/// Sixteen bytes of nibbles that index the levels of IQ4, in stored form: low ones, then high ones.
///
/// # Safety
/// See [`Simd`].
#[inline(always)]
pub(super) unsafe fn iq4_weights<S: Simd>(packed: [S::Vector; 4]) -> [S::Vector; 8] {
    // SAFETY: the caller's promise.
    unsafe {
        let table = iq4_table::<S>();
        let mut weights = nibbles::<S>(packed);
        for weights in &mut weights {
            *weights = S::look_up(table, *weights);
        }
        weights
    }
}

pub(super) struct Q40<S>(PhantomData<S>);

impl<S: Simd> Format32<S> for Q40<S> {
    const FORMAT: QFormat = QFormat::Q4_0;
    const WIDE: bool = false;
    const OFFSET: i32 = 8;

    #[inline(always)]
    unsafe fn weights(blocks: Rows) -> [S::Vector; 8] {
        // SAFETY: the trait's promise.
        unsafe { nibbles::<S>(S::rows_of_16(blocks, 2)) }
    }
}

pub(super) struct IQ4NL<S>(PhantomData<S>);

impl<S: Simd> Format32<S> for IQ4NL<S> {
    const FORMAT: QFormat = QFormat::IQ4NL;
    const WIDE: bool = true;
    const OFFSET: i32 = S::WIDE_OFFSET;

    #[inline(always)]
    unsafe fn weights(blocks: Rows) -> [S::Vector; 8] {
        // SAFETY: the trait's promise.
        unsafe { iq4_weights::<S>(S::rows_of_16(blocks, 2)) }
    }
}

pub(super) struct Q80<S>(PhantomData<S>);

impl<S: Simd> Format32<S> for Q80<S> {
    const FORMAT: QFormat = QFormat::Q8_0;
    const WIDE: bool = true;
    const OFFSET: i32 = S::WIDE_OFFSET;

    #[inline(always)]
    unsafe fn weights(blocks: Rows) -> [S::Vector; 8] {
        // SAFETY: the trait's promise.
        unsafe {
            let [a, b, c, d] = S::rows_of_16(blocks, 2);
            let [e, f, g, h] = S::rows_of_16(blocks, 18);
            let mut weights = [a, b, c, d, e, f, g, h];
            for weights in &mut weights {
                *weights = S::stored(*weights);
            }
            weights
        }
    }
}
