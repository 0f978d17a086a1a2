//! How blocks of 32 come into vectors. Layouts are described with the scalar decoders in [`crate::quant`].

use std::marker::PhantomData;

use super::formats::{iq4_table, u32_at};
use super::panels::Rows;
use super::simd::Simd;
use crate::LANES;
use crate::quant::{FP4_LEVELS, QFormat, half_power_of_two};

/// A format of 32-value blocks. Blocks of sixteen rows are read side by side. Weights are as in [`Format256`].
///
/// # Safety
/// `blocks` are whole blocks; see [`Simd`] for the rest.
pub(super) trait Format32<S: Simd> {
    const FORMAT: QFormat;
    /// Whether blocks have an offset.
    const MINS: bool;
    const WIDE: bool;
    /// What a weight is above its value.
    const OFFSET: i32;

    /// Weights `4 i ..` of each row in vector `i`.
    unsafe fn weights(blocks: Rows) -> [S::Vector; 8];

    /// The weights of two blocks, one after the other.
    unsafe fn pair(first: *const u8, second: *const u8) -> S::Vector;

    /// The scale of each of four blocks.
    #[inline(always)]
    unsafe fn four_scales(blocks: [*const u8; 4]) -> S::Four {
        // SAFETY: the trait's promise.
        unsafe { S::four_halves(blocks) }
    }

    /// The scale of each row: a half-precision number at the start of the block.
    #[inline(always)]
    unsafe fn scales(blocks: Rows) -> S::Floats {
        // SAFETY: the trait's promise; such blocks have sixteen bytes and more.
        unsafe {
            let [halves, ..] = S::rows_of_16(blocks, 0);
            S::lower_halves(halves)
        }
    }

    /// The offset of each row: the half-precision number after the scale, negated because it is subtracted.
    #[inline(always)]
    unsafe fn mins(blocks: Rows) -> S::Floats {
        // SAFETY: as in `scales`.
        unsafe {
            let [halves, ..] = S::rows_of_16(blocks, 0);
            S::product(S::lower_halves(S::shift_right::<16>(halves)), S::splat(-1.0))
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
    const MINS: bool = false;
    const WIDE: bool = false;
    const OFFSET: i32 = 8;

    #[inline(always)]
    unsafe fn pair(first: *const u8, second: *const u8) -> S::Vector {
        // SAFETY: the trait's promise.
        unsafe { S::nibbles_of_16_and_16(first.add(2), second.add(2)) }
    }

    #[inline(always)]
    unsafe fn weights(blocks: Rows) -> [S::Vector; 8] {
        // SAFETY: the trait's promise.
        unsafe { nibbles::<S>(S::rows_of_16(blocks, 2)) }
    }
}

pub(super) struct IQ4NL<S>(PhantomData<S>);

impl<S: Simd> Format32<S> for IQ4NL<S> {
    const FORMAT: QFormat = QFormat::IQ4NL;
    const MINS: bool = false;
    const WIDE: bool = true;
    const OFFSET: i32 = S::WIDE_OFFSET;

    #[inline(always)]
    unsafe fn pair(first: *const u8, second: *const u8) -> S::Vector {
        // SAFETY: the trait's promise.
        unsafe { S::look_up(iq4_table::<S>(), S::nibbles_of_16_and_16(first.add(2), second.add(2))) }
    }

    #[inline(always)]
    unsafe fn weights(blocks: Rows) -> [S::Vector; 8] {
        // SAFETY: the trait's promise.
        unsafe { iq4_weights::<S>(S::rows_of_16(blocks, 2)) }
    }
}

pub(super) struct Q80<S>(PhantomData<S>);

impl<S: Simd> Format32<S> for Q80<S> {
    const FORMAT: QFormat = QFormat::Q8_0;
    const MINS: bool = false;
    const WIDE: bool = true;
    const OFFSET: i32 = S::WIDE_OFFSET;

    #[inline(always)]
    unsafe fn pair(first: *const u8, second: *const u8) -> S::Vector {
        // SAFETY: the trait's promise.
        unsafe { S::stored(S::load_halves(first.add(2), second.add(2))) }
    }

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

/// Ints of which bit `i` becomes bit 4 of byte `i`, for the lowest four.
///
/// # Safety
/// See [`Simd`].
#[inline(always)]
unsafe fn fifth_bits_of_four<S: Simd>(v: S::Vector) -> S::Vector {
    // SAFETY: the caller's promise.
    unsafe {
        // Four copies, seven places apart, put each bit at the bottom of its byte.
        let copies = S::multiply(S::and(v, S::splat_int(15)), S::splat_int(0x0020_4081));
        S::shift_left::<4>(S::and(copies, S::splat_int(0x0101_0101)))
    }
}

/// Nibbles with their fifth bits: bit `i` of `fifth` belongs to value `i`.
///
/// # Safety
/// See [`Simd`].
#[inline(always)]
unsafe fn five_bits<S: Simd>(packed: [S::Vector; 4], fifth: S::Vector) -> [S::Vector; 8] {
    // SAFETY: the caller's promise.
    unsafe {
        let mut weights = nibbles::<S>(packed);
        macro_rules! add {
            ($($i:literal)*) => {
                $(let bits = fifth_bits_of_four::<S>(S::shift_right::<{ 4 * $i }>(fifth));
                weights[$i] = S::or(weights[$i], bits);)*
            };
        }
        add!(0 1 2 3 4 5 6 7);
        weights
    }
}

/// The weights of two blocks that keep 32 fifth bits `at` bytes from the start and nibbles behind them.
///
/// # Safety
/// These are whole blocks; see [`Simd`].
#[inline(always)]
unsafe fn pair_of_five_bits<S: Simd>(first: *const u8, second: *const u8, at: usize) -> S::Vector {
    // SAFETY: the caller's promise.
    unsafe {
        let fifth = u64::from(u32_at(first.add(at))) | u64::from(u32_at(second.add(at))) << 32;
        S::or(S::nibbles_of_16_and_16(first.add(at + 4), second.add(at + 4)), S::sixteens(fifth))
    }
}

pub(super) struct Q41<S>(PhantomData<S>);

impl<S: Simd> Format32<S> for Q41<S> {
    const FORMAT: QFormat = QFormat::Q4_1;
    const MINS: bool = true;
    const WIDE: bool = false;
    const OFFSET: i32 = 0;

    #[inline(always)]
    unsafe fn pair(first: *const u8, second: *const u8) -> S::Vector {
        // SAFETY: the trait's promise.
        unsafe { S::nibbles_of_16_and_16(first.add(4), second.add(4)) }
    }

    #[inline(always)]
    unsafe fn weights(blocks: Rows) -> [S::Vector; 8] {
        // SAFETY: the trait's promise.
        unsafe { nibbles::<S>(S::rows_of_16(blocks, 4)) }
    }
}

pub(super) struct Q50<S>(PhantomData<S>);

impl<S: Simd> Format32<S> for Q50<S> {
    const FORMAT: QFormat = QFormat::Q5_0;
    const MINS: bool = false;
    const WIDE: bool = false;
    const OFFSET: i32 = 16;

    #[inline(always)]
    unsafe fn pair(first: *const u8, second: *const u8) -> S::Vector {
        // SAFETY: the trait's promise.
        unsafe { pair_of_five_bits::<S>(first, second, 2) }
    }

    #[inline(always)]
    unsafe fn weights(blocks: Rows) -> [S::Vector; 8] {
        // SAFETY: the trait's promise.
        unsafe {
            let [first, second, ..] = S::rows_of_16(blocks, 0);
            let fifth = S::or(S::shift_right::<16>(first), S::shift_left::<16>(second));
            five_bits::<S>(S::rows_of_16(blocks, 6), fifth)
        }
    }
}

pub(super) struct Q51<S>(PhantomData<S>);

impl<S: Simd> Format32<S> for Q51<S> {
    const FORMAT: QFormat = QFormat::Q5_1;
    const MINS: bool = true;
    const WIDE: bool = false;
    const OFFSET: i32 = 0;

    #[inline(always)]
    unsafe fn pair(first: *const u8, second: *const u8) -> S::Vector {
        // SAFETY: the trait's promise.
        unsafe { pair_of_five_bits::<S>(first, second, 4) }
    }

    #[inline(always)]
    unsafe fn weights(blocks: Rows) -> [S::Vector; 8] {
        // SAFETY: the trait's promise.
        unsafe {
            let [_, fifth, ..] = S::rows_of_16(blocks, 0);
            five_bits::<S>(S::rows_of_16(blocks, 8), fifth)
        }
    }
}

pub(super) struct Fp4<S>(PhantomData<S>);

/// The levels of MXFP4, plus twelve.
const FP4_WEIGHTS: [u8; 16] = {
    let mut weights = [0; 16];
    let mut i = 0;
    while i < 16 {
        weights[i] = (FP4_LEVELS[i] + 12) as u8;
        i += 1;
    }
    weights
};

impl<S: Simd> Format32<S> for Fp4<S> {
    const FORMAT: QFormat = QFormat::MXFP4;
    const MINS: bool = false;
    const WIDE: bool = false;
    const OFFSET: i32 = 12;

    #[inline(always)]
    unsafe fn pair(first: *const u8, second: *const u8) -> S::Vector {
        // SAFETY: the trait's promise.
        unsafe {
            let table = S::load_table(FP4_WEIGHTS.as_ptr());
            S::look_up(table, S::nibbles_of_16_and_16(first.add(1), second.add(1)))
        }
    }

    #[inline(always)]
    unsafe fn weights(blocks: Rows) -> [S::Vector; 8] {
        // SAFETY: the trait's promise; the table has 16 bytes.
        unsafe {
            let table = S::load_table(FP4_WEIGHTS.as_ptr());
            let mut weights = nibbles::<S>(S::rows_of_16(blocks, 1));
            for weights in &mut weights {
                *weights = S::look_up(table, *weights);
            }
            weights
        }
    }

    #[inline(always)]
    unsafe fn four_scales(blocks: [*const u8; 4]) -> S::Four {
        // SAFETY: the trait's promise: the first byte of each block.
        let scales = blocks.map(|block| half_power_of_two(unsafe { *block }));
        // SAFETY: four floats.
        unsafe { S::load_four(scales.as_ptr()) }
    }

    #[inline(always)]
    unsafe fn scales(blocks: Rows) -> S::Floats {
        let mut scales = [0.0; LANES];
        for (row, scale) in scales.iter_mut().enumerate() {
            // SAFETY: the trait's promise: the first byte of each row's block.
            *scale = half_power_of_two(unsafe { *blocks.start.wrapping_add(row * blocks.stride) });
        }
        // SAFETY: sixteen floats.
        unsafe { S::load_floats(scales.as_ptr()) }
    }
}
