//! How blocks of 256 come into vectors. Layouts are described with the scalar decoders in [`crate::quant`].

use std::marker::PhantomData;

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

/// The little-endian number at `p`.
///
/// # Safety
/// Four bytes are readable.
#[inline(always)]
pub(super) unsafe fn u32_at(p: *const u8) -> u32 {
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

pub(super) struct Q2K<S>(PhantomData<S>);

impl<S: Simd> Format256<S> for Q2K<S> {
    const FORMAT: QFormat = QFormat::Q2K;
    const MINS: bool = true;
    const WIDE: bool = false;
    const OFFSET: i32 = 0;
    const SCALE_AT: usize = 80;
    const MIN_AT: usize = 82;

    #[inline(always)]
    unsafe fn scales(block: *const u8) -> S::Half {
        // SAFETY: the trait's promise; a block has sixteen bytes and more.
        unsafe {
            let scales = block.cast::<u128>().read_unaligned() & 0x0f0f_0f0f_0f0f_0f0f_0f0f_0f0f_0f0f_0f0f;
            S::words_of_signed((&raw const scales).cast())
        }
    }

    #[inline(always)]
    unsafe fn mins(block: *const u8) -> S::Half {
        // SAFETY: as in `scales`.
        unsafe {
            let both = block.cast::<u128>().read_unaligned();
            let mins = (both >> 4) & 0x0f0f_0f0f_0f0f_0f0f_0f0f_0f0f_0f0f_0f0f;
            S::words_of_signed((&raw const mins).cast())
        }
    }

    #[inline(always)]
    unsafe fn group<const GROUP: usize>(block: *const u8) -> S::Vector {
        // SAFETY: the trait's promise.
        unsafe { pairs_of_bits::<S, GROUP>(block.add(16)) }
    }
}

pub(super) struct Q3K<S>(PhantomData<S>);

impl<S: Simd> Format256<S> for Q3K<S> {
    const FORMAT: QFormat = QFormat::Q3K;
    const MINS: bool = false;
    const WIDE: bool = false;
    const OFFSET: i32 = 4;
    const SCALE_AT: usize = 108;
    const MIN_AT: usize = 108;

    #[inline(always)]
    unsafe fn scales(block: *const u8) -> S::Half {
        // SAFETY: the trait's promise.
        unsafe {
            let [low, high, upper] = [u32_at(block.add(96)), u32_at(block.add(100)), u32_at(block.add(104))];
            let six = |low: u32, upper: u32| (low & 0x0f0f_0f0f) | (upper & 0x0303_0303) << 4;
            let scales = [
                six(low, upper),
                six(high, upper >> 2),
                six(low >> 4, upper >> 4),
                six(high >> 4, upper >> 6),
            ];
            // Subtract 32 from each byte; the set top bit keeps borrows out.
            let centred = scales.map(|six| ((six | 0x8080_8080) - 0x2020_2020) ^ 0x8080_8080);
            S::words_of_signed(centred.as_ptr().cast())
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
            let third = S::shift_right::<2>(S::fifth_bits::<GROUP>(S::load_twice(block)));
            S::or(pairs_of_bits::<S, GROUP>(block.add(32)), third)
        }
    }
}

/// Values `64 GROUP ..` of two bits each, as Q2_K and Q3_K keep them.
///
/// # Safety
/// 64 bytes are readable; see [`Simd`].
#[inline(always)]
unsafe fn pairs_of_bits<S: Simd, const GROUP: usize>(bytes: *const u8) -> S::Vector {
    // SAFETY: the caller's promise.
    unsafe {
        let bytes = S::load_twice(bytes.add(32 * (GROUP / 2)));
        S::high_nibbles(match GROUP % 2 {
            0 => S::upper_pairs::<0>(bytes),
            _ => S::upper_pairs::<1>(bytes),
        })
    }
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
pub(super) unsafe fn iq4_table<S: Simd>() -> S::Vector {
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
