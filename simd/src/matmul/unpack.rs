//! From blocks of sixteen rows to panels. Sixteen bytes of each row are read and transposed first, packed as they are,
//! so that every int of a vector belongs to one row; fields are taken apart afterwards, for all rows at once.

use super::formats::{IQ4XS, Q2K, Q3K, Q4K, Q5K, Q6K};
use super::formats_32::{Format32, Fp4, IQ4NL, Q40, Q41, Q50, Q51, Q80, iq4_weights};
use super::panels::{Ahead, LINE, Layout, Rows, layout};
use super::simd::Simd;
use super::thin::Parts;
use crate::quant::QFormat;

/// A format with an unpacking of its own.
///
/// # Safety
/// The blocks are whole, the panel has room for a block of the format's layout; see [`Simd`] for the rest.
pub(super) trait Unpack<S: Simd> {
    const FORMAT: QFormat;
    const LAYOUT: Layout = layout(Self::FORMAT, S::WIDE_OFFSET);

    /// Unpacks the same block of sixteen rows, asking for memory on the way.
    unsafe fn block(blocks: Rows, panel: *mut u8, ahead: Ahead);
}

/// Unpacks `count` blocks of sixteen rows.
///
/// # Safety
/// The processor has the instruction set `S`, whose features the caller is compiled with; the rows have the blocks,
/// the panel has room for them.
#[inline(always)]
pub(super) unsafe fn unpack<S: Simd, F: Unpack<S>>(rows: Rows, count: usize, panel: *mut u8, ahead: Ahead) {
    let bytes = F::FORMAT.block_bytes();
    for b in 0..count {
        let blocks = Rows { start: rows.start.wrapping_add(b * bytes), ..rows };
        // SAFETY: the caller's promise.
        unsafe { F::block(blocks, panel.add(b * F::LAYOUT.block_bytes()), ahead.after(b)) }
    }
}

/// Each byte of the ints, as ints.
#[inline(always)]
unsafe fn bytes<S: Simd>(v: S::Vector) -> [S::Vector; 4] {
    // SAFETY: as for the caller.
    unsafe {
        let mask = S::splat_int(0xff);
        [
            S::and(v, mask),
            S::and(S::shift_right::<8>(v), mask),
            S::and(S::shift_right::<16>(v), mask),
            S::shift_right::<24>(v),
        ]
    }
}

/// Each byte of the ints, as signed ints.
#[inline(always)]
unsafe fn signed_bytes<S: Simd>(v: S::Vector) -> [S::Vector; 4] {
    // SAFETY: as for the caller.
    unsafe {
        [
            S::shift_right_signed::<24>(S::shift_left::<24>(v)),
            S::shift_right_signed::<24>(S::shift_left::<16>(v)),
            S::shift_right_signed::<24>(S::shift_left::<8>(v)),
            S::shift_right_signed::<24>(v),
        ]
    }
}

/// Two ints as words of one.
#[inline(always)]
unsafe fn pair<S: Simd>(low: S::Vector, high: S::Vector) -> S::Vector {
    // SAFETY: as for the caller.
    unsafe { S::or(S::and(low, S::splat_int(0xffff)), S::shift_left::<16>(high)) }
}

/// Bits `SHIFT ..` of bytes, moved to bit 4 and masked.
#[inline(always)]
unsafe fn to_bit_4<S: Simd, const SHIFT: i32>(v: S::Vector, mask: i32) -> S::Vector {
    // SAFETY: as for the caller.
    unsafe {
        let moved = match SHIFT {
            0 => S::shift_left::<4>(v),
            1 => S::shift_left::<3>(v),
            2 => S::shift_left::<2>(v),
            3 => S::shift_left::<1>(v),
            4 => v,
            5 => S::shift_right::<1>(v),
            6 => S::shift_right::<2>(v),
            _ => S::shift_right::<3>(v),
        };
        S::and(moved, S::splat_int(mask))
    }
}

/// Stores vector `i` of a panel's part.
#[inline(always)]
unsafe fn put<S: Simd>(part: *mut u8, i: usize, v: S::Vector) {
    // SAFETY: as for the caller, the part has vector `i`.
    unsafe { S::store(part.add(LINE * i), v) }
}

/// The first sixteen bytes of Q4_K and Q5_K: scale, offset unit, eight 6-bit scales and offsets.
#[inline(always)]
unsafe fn six_bit_header<S: Simd>(blocks: Rows, layout: Layout, panel: *mut u8) {
    // SAFETY: as for the caller.
    unsafe {
        let [halves, a, b, c] = S::rows_of_16(blocks, 0);
        S::store_floats(panel.cast(), S::lower_halves(halves));
        S::store_floats(panel.add(LINE).cast(), S::lower_halves(S::shift_right::<16>(halves)));
        let six = S::splat_int(0x3f3f_3f3f);
        let top = S::splat_int(0x3030_3030);
        let scales = [S::and(a, six), S::or(S::low_nibbles(c), S::and(S::shift_right::<2>(a), top))];
        let mins = [S::and(b, six), S::or(S::high_nibbles(c), S::and(S::shift_right::<2>(b), top))];
        for half in 0..2 {
            let scales = bytes::<S>(scales[half]);
            let mins = bytes::<S>(mins[half]);
            for i in 0..4 {
                put::<S>(panel.add(layout.subs_at()), 4 * half + i, scales[i]);
            }
            let pairs = panel.add(layout.pairs_at());
            put::<S>(pairs, 2 * half, pair::<S>(mins[0], mins[1]));
            put::<S>(pairs, 2 * half + 1, pair::<S>(mins[2], mins[3]));
        }
    }
}

/// Stores sub-scales, and the pairs of words that take the weights' offset back, if there is one.
#[inline(always)]
unsafe fn put_scales<S: Simd, const SUBS: usize>(layout: Layout, scales: [S::Vector; SUBS], panel: *mut u8) {
    // SAFETY: as for the caller.
    unsafe {
        for sub in 0..SUBS {
            put::<S>(panel.add(layout.subs_at()), sub, scales[sub]);
        }
        if layout.offset != 0 {
            let factor = S::splat_int(-layout.offset);
            for i in 0..SUBS / 2 {
                let (low, high) =
                    (S::multiply(scales[2 * i], factor), S::multiply(scales[2 * i + 1], factor));
                put::<S>(panel.add(layout.pairs_at()), i, pair::<S>(low, high));
            }
        }
    }
}

/// Sixteen bytes of 2-bit integers of Q2_K and Q3_K: bytes `16 piece ..` of the 32 that hold values `128 half ..`. Each
/// vector of four values goes to its place with what `upper(j, i)` adds to it, `j` counting 32 values.
macro_rules! two_bits {
    ($blocks:ident, $at:expr, $weights:ident, $half:literal, $piece:literal, $upper:expr) => {
        let packed = S::rows_of_16($blocks, $at + 32 * $half + 16 * $piece);
        two_bits!(@ packed, $weights, $half, $piece, $upper, 0 1 2 3);
    };
    (@ $packed:ident, $weights:ident, $half:literal, $piece:literal, $upper:expr, $($j:literal)*) => {
        $(for i in 0..4 {
            let low = S::and(S::shift_right::<{ 2 * $j }>($packed[i]), S::splat_int(0x0303_0303));
            let upper = S::and(S::shift_right::<{ 4 * $half + $j }>($upper[i]), S::splat_int(0x0101_0101));
            let at = 32 * $half + 8 * $j + 4 * $piece + i;
            put::<S>($weights, at, S::or(low, S::shift_left::<2>(upper)));
        })*
    };
}

impl<S: Simd> Unpack<S> for Q2K<S> {
    const FORMAT: QFormat = QFormat::Q2K;

    #[inline(always)]
    unsafe fn block(blocks: Rows, panel: *mut u8, ahead: Ahead) {
        // SAFETY: the trait's promise.
        unsafe {
            let layout = <Self as Unpack<S>>::LAYOUT;
            let [_, _, _, halves] = S::rows_of_16(blocks, 68);
            S::store_floats(panel.cast(), S::lower_halves(halves));
            S::store_floats(panel.add(LINE).cast(), S::lower_halves(S::shift_right::<16>(halves)));
            for (four, both) in S::rows_of_16(blocks, 0).into_iter().enumerate() {
                let (scales, mins) = (bytes::<S>(S::low_nibbles(both)), bytes::<S>(S::high_nibbles(both)));
                for i in 0..4 {
                    put::<S>(panel.add(layout.subs_at()), 4 * four + i, scales[i]);
                }
                let pairs = panel.add(layout.pairs_at());
                put::<S>(pairs, 2 * four, pair::<S>(mins[0], mins[1]));
                put::<S>(pairs, 2 * four + 1, pair::<S>(mins[2], mins[3]));
            }
            let (weights, none) = (panel.add(layout.weights_at()), [S::zero(); 4]);
            ahead.part::<S>(0, 2);
            two_bits!(blocks, 16, weights, 0, 0, none);
            two_bits!(blocks, 16, weights, 0, 1, none);
            ahead.part::<S>(1, 2);
            two_bits!(blocks, 16, weights, 1, 0, none);
            two_bits!(blocks, 16, weights, 1, 1, none);
        }
    }
}

impl<S: Simd> Unpack<S> for Q3K<S> {
    const FORMAT: QFormat = QFormat::Q3K;

    #[inline(always)]
    unsafe fn block(blocks: Rows, panel: *mut u8, ahead: Ahead) {
        // SAFETY: the trait's promise.
        unsafe {
            let layout = <Self as Unpack<S>>::LAYOUT;
            // The last sixteen bytes: two of integers, twelve of scales, the block's scale.
            let [a, b, c, d] = S::rows_of_16(blocks, 94);
            S::store_floats(panel.cast(), S::lower_halves(S::shift_right::<16>(d)));
            let join = |low, high| S::or(S::shift_right::<16>(low), S::shift_left::<16>(high));
            let (low, high, upper) = (join(a, b), join(b, c), join(c, d));
            let top = S::splat_int(0x3030_3030);
            let fours = [
                S::or(S::low_nibbles(low), S::and(S::shift_left::<4>(upper), top)),
                S::or(S::low_nibbles(high), S::and(S::shift_left::<2>(upper), top)),
                S::or(S::high_nibbles(low), S::and(upper, top)),
                S::or(S::high_nibbles(high), S::and(S::shift_right::<2>(upper), top)),
            ];
            let mut scales = [S::zero(); 16];
            for (four, six) in fours.into_iter().enumerate() {
                for (i, six) in bytes::<S>(six).into_iter().enumerate() {
                    scales[4 * four + i] = S::subtract(six, S::splat_int(32));
                }
            }
            put_scales::<S, 16>(layout, scales, panel);
            let weights = panel.add(layout.weights_at());
            let third = S::rows_of_16(blocks, 0);
            ahead.part::<S>(0, 2);
            two_bits!(blocks, 32, weights, 0, 0, third);
            two_bits!(blocks, 32, weights, 1, 0, third);
            let third = S::rows_of_16(blocks, 16);
            ahead.part::<S>(1, 2);
            two_bits!(blocks, 32, weights, 0, 1, third);
            two_bits!(blocks, 32, weights, 1, 1, third);
        }
    }
}

/// Unpacks a block of a format in parts.
///
/// # Safety
/// As for [`Unpack::block`].
#[inline(always)]
unsafe fn in_parts<S: Simd, F: Parts<S>>(blocks: Rows, panel: *mut u8, ahead: Ahead) {
    // SAFETY: the caller's promise.
    unsafe {
        F::header(blocks, panel);
        let weights = panel.add(<F as Unpack<S>>::LAYOUT.weights_at());
        macro_rules! parts {
            ($($part:literal)*) => {
                $(ahead.part::<S>($part, 4);
                for (i, vector) in F::part::<$part>(blocks).into_iter().enumerate() {
                    put::<S>(weights, F::STEPS * F::sub($part, i / F::STEPS) + i % F::STEPS, vector);
                })*
            };
        }
        parts!(0 1 2 3);
    }
}

impl<S: Simd> Unpack<S> for Q4K<S> {
    const FORMAT: QFormat = QFormat::Q4K;

    #[inline(always)]
    unsafe fn block(blocks: Rows, panel: *mut u8, ahead: Ahead) {
        // SAFETY: the trait's promise.
        unsafe { in_parts::<S, Self>(blocks, panel, ahead) }
    }
}

impl<S: Simd> Parts<S> for Q4K<S> {
    const STEPS: usize = 8;

    #[inline(always)]
    unsafe fn header(blocks: Rows, panel: *mut u8) {
        // SAFETY: the trait's promise.
        unsafe { six_bit_header::<S>(blocks, <Self as Unpack<S>>::LAYOUT, panel) }
    }

    #[inline(always)]
    unsafe fn part<const PART: usize>(blocks: Rows) -> [S::Vector; 16] {
        // SAFETY: the trait's promise.
        unsafe {
            let mut weights = [S::zero(); 16];
            for side in 0..2 {
                let packed = S::rows_of_16(blocks, 16 + 32 * PART + 16 * side);
                for i in 0..4 {
                    weights[4 * side + i] = S::low_nibbles(packed[i]);
                    weights[8 + 4 * side + i] = S::high_nibbles(packed[i]);
                }
            }
            weights
        }
    }
}

impl<S: Simd> Unpack<S> for Q5K<S> {
    const FORMAT: QFormat = QFormat::Q5K;

    #[inline(always)]
    unsafe fn block(blocks: Rows, panel: *mut u8, ahead: Ahead) {
        // SAFETY: the trait's promise.
        unsafe {
            let layout = <Self as Unpack<S>>::LAYOUT;
            six_bit_header::<S>(blocks, layout, panel);
            let weights = panel.add(layout.weights_at());
            // Not part by part, so that fifth bits are read once.
            for side in 0..2 {
                let fifth = S::rows_of_16(blocks, 16 + 16 * side);
                macro_rules! group {
                    ($group:literal, $low:literal, $high:literal) => {
                        ahead.part::<S>(4 * side + $group, 8);
                        let packed = S::rows_of_16(blocks, 48 + 32 * $group + 16 * side);
                        for i in 0..4 {
                            let at = 16 * $group + 4 * side + i;
                            let bit = to_bit_4::<S, $low>(fifth[i], 0x1010_1010);
                            put::<S>(weights, at, S::or(S::low_nibbles(packed[i]), bit));
                            let bit = to_bit_4::<S, $high>(fifth[i], 0x1010_1010);
                            put::<S>(weights, at + 8, S::or(S::high_nibbles(packed[i]), bit));
                        }
                    };
                }
                group!(0, 0, 1);
                group!(1, 2, 3);
                group!(2, 4, 5);
                group!(3, 6, 7);
            }
        }
    }
}

impl<S: Simd> Parts<S> for Q5K<S> {
    const STEPS: usize = 8;

    #[inline(always)]
    unsafe fn header(blocks: Rows, panel: *mut u8) {
        // SAFETY: the trait's promise.
        unsafe { six_bit_header::<S>(blocks, <Self as Unpack<S>>::LAYOUT, panel) }
    }

    #[inline(always)]
    unsafe fn part<const PART: usize>(blocks: Rows) -> [S::Vector; 16] {
        // SAFETY: the trait's promise.
        unsafe {
            let mut weights = [S::zero(); 16];
            for side in 0..2 {
                let fifth = S::rows_of_16(blocks, 16 + 16 * side);
                let packed = S::rows_of_16(blocks, 48 + 32 * PART + 16 * side);
                macro_rules! bits {
                    ($low:literal, $high:literal) => {
                        for i in 0..4 {
                            let bit = to_bit_4::<S, $low>(fifth[i], 0x1010_1010);
                            weights[4 * side + i] = S::or(S::low_nibbles(packed[i]), bit);
                            let bit = to_bit_4::<S, $high>(fifth[i], 0x1010_1010);
                            weights[8 + 4 * side + i] = S::or(S::high_nibbles(packed[i]), bit);
                        }
                    };
                }
                match PART {
                    0 => bits!(0, 1),
                    1 => bits!(2, 3),
                    2 => bits!(4, 5),
                    _ => bits!(6, 7),
                }
            }
            weights
        }
    }
}

impl<S: Simd> Unpack<S> for Q6K<S> {
    const FORMAT: QFormat = QFormat::Q6K;

    #[inline(always)]
    unsafe fn block(blocks: Rows, panel: *mut u8, ahead: Ahead) {
        // SAFETY: the trait's promise.
        unsafe { in_parts::<S, Self>(blocks, panel, ahead) }
    }
}

impl<S: Simd> Parts<S> for Q6K<S> {
    const STEPS: usize = 4;

    #[inline(always)]
    unsafe fn header(blocks: Rows, panel: *mut u8) {
        // SAFETY: the trait's promise.
        unsafe {
            let [_, _, _, last] = S::rows_of_16(blocks, 194);
            S::store_floats(panel.cast(), S::lower_halves(S::shift_right::<16>(last)));
            let [a, b, c, d] = S::rows_of_16(blocks, 192);
            let (a, b, c, d) =
                (signed_bytes::<S>(a), signed_bytes::<S>(b), signed_bytes::<S>(c), signed_bytes::<S>(d));
            let mut scales = [S::zero(); 16];
            for i in 0..4 {
                (scales[i], scales[4 + i], scales[8 + i], scales[12 + i]) = (a[i], b[i], c[i], d[i]);
            }
            put_scales::<S, 16>(<Self as Unpack<S>>::LAYOUT, scales, panel);
        }
    }

    #[inline(always)]
    unsafe fn part<const PART: usize>(blocks: Rows) -> [S::Vector; 16] {
        let (half, side) = (PART / 2, PART % 2);
        // SAFETY: the trait's promise.
        unsafe {
            let first = S::rows_of_16(blocks, 64 * half + 16 * side);
            let second = S::rows_of_16(blocks, 64 * half + 32 + 16 * side);
            let upper = S::rows_of_16(blocks, 128 + 32 * half + 16 * side);
            let mut weights = [S::zero(); 16];
            for i in 0..4 {
                let two = to_bit_4::<S, 0>(upper[i], 0x3030_3030);
                weights[i] = S::or(S::low_nibbles(first[i]), two);
                let two = to_bit_4::<S, 2>(upper[i], 0x3030_3030);
                weights[4 + i] = S::or(S::low_nibbles(second[i]), two);
                let two = to_bit_4::<S, 4>(upper[i], 0x3030_3030);
                weights[8 + i] = S::or(S::high_nibbles(first[i]), two);
                let two = to_bit_4::<S, 6>(upper[i], 0x3030_3030);
                weights[12 + i] = S::or(S::high_nibbles(second[i]), two);
            }
            weights
        }
    }

    #[inline(always)]
    fn sub(part: usize, i: usize) -> usize {
        8 * (part / 2) + part % 2 + 2 * i
    }
}

impl<S: Simd> Unpack<S> for IQ4XS<S> {
    const FORMAT: QFormat = QFormat::IQ4XS;

    #[inline(always)]
    unsafe fn block(blocks: Rows, panel: *mut u8, ahead: Ahead) {
        // SAFETY: the trait's promise.
        unsafe {
            let layout = <Self as Unpack<S>>::LAYOUT;
            let [halves, nibbles, ..] = S::rows_of_16(blocks, 0);
            S::store_floats(panel.cast(), S::lower_halves(halves));
            let mut scales = [S::zero(); 8];
            macro_rules! scale {
                ($($sub:literal)*) => {
                    $(let low = S::and(S::shift_right::<{ 4 * $sub }>(nibbles), S::splat_int(15));
                    let top = S::and(S::shift_right::<{ 16 + 2 * $sub }>(halves), S::splat_int(3));
                    let scale = S::or(low, S::shift_left::<4>(top));
                    scales[$sub] = S::subtract(scale, S::splat_int(32));)*
                };
            }
            scale!(0 1 2 3 4 5 6 7);
            put_scales::<S, 8>(layout, scales, panel);
            let weights = panel.add(layout.weights_at());
            for sub in 0..8 {
                ahead.part::<S>(sub, 8);
                let eight = iq4_weights::<S>(S::rows_of_16(blocks, 8 + 16 * sub));
                for i in 0..8 {
                    put::<S>(weights, 8 * sub + i, eight[i]);
                }
            }
        }
    }
}

macro_rules! unpack_32 {
    ($($name:ident)*) => {
        $(impl<S: Simd> Unpack<S> for $name<S> {
            const FORMAT: QFormat = <$name<S> as Format32<S>>::FORMAT;

            #[inline(always)]
            unsafe fn block(blocks: Rows, panel: *mut u8, ahead: Ahead) {
                // SAFETY: the trait's promise.
                unsafe {
                    ahead.part::<S>(0, 1);
                    S::store_floats(panel.cast(), Self::scales(blocks));
                    if <Self as Format32<S>>::MINS {
                        S::store_floats(panel.add(LINE).cast(), <Self as Format32<S>>::mins(blocks));
                    }
                    let weights = Self::weights(blocks);
                    for i in 0..8 {
                        put::<S>(panel.add(<Self as Unpack<S>>::LAYOUT.weights_at()), i, weights[i]);
                    }
                }
            }
        })*
    };
}
unpack_32!(Q40 Q41 Q50 Q51 Q80 IQ4NL Fp4);
