//! Baseline vectors of 64-bit Arm; with `sdot`, and with `smmla`.
//!
//! Dot products are signed by signed here, so wide weights are stored as they are.
#![allow(unused_unsafe)] // `each!` brings its own block, also where there is one already

use std::arch::aarch64::*;
use std::arch::asm;

use super::fours::fours;
use crate::matmul::panels::Rows;
use crate::matmul::simd::Simd;

/// Neon; `DOT`: with `sdot`; `PAIRS`: with `smmla` besides.
#[derive(Clone, Copy)]
pub(crate) struct Neon<const DOT: bool, const PAIRS: bool>;

/// Four registers that follow each other.
#[derive(Clone, Copy)]
pub(crate) struct Four<T>(T, T, T, T);

/// Two registers that follow each other.
#[derive(Clone, Copy)]
pub(crate) struct Two<T>(T, T);

/// The result for each of four registers. No closure: what is not inlined would lack the instructions.
macro_rules! each {
    ($($arg:ident),* => $result:expr) => {
        // SAFETY: the trait's promise.
        unsafe {
            Four(
                { $(let $arg = $arg.0;)* $result },
                { $(let $arg = $arg.1;)* $result },
                { $(let $arg = $arg.2;)* $result },
                { $(let $arg = $arg.3;)* $result },
            )
        }
    };
}

/// Repeats lanes of eight words.
macro_rules! repeat {
    ($words:expr, $a:literal $b:literal $c:literal $d:literal) => {
        Four(
            bytes_of_words(vdupq_laneq_s16::<$a>($words)),
            bytes_of_words(vdupq_laneq_s16::<$b>($words)),
            bytes_of_words(vdupq_laneq_s16::<$c>($words)),
            bytes_of_words(vdupq_laneq_s16::<$d>($words)),
        )
    };
}

// Every function below relies on the trait's promise: the processor has the instructions, pointers are good.
impl<const DOT: bool, const PAIRS: bool> Simd for Neon<DOT, PAIRS> {
    type Vector = Four<uint8x16_t>;
    type Half = Two<uint8x16_t>;
    type Floats = Four<float32x4_t>;

    fours!();

    const WIDE_OFFSET: i32 = 0;
    const PAIRS: bool = PAIRS;

    #[inline(always)]
    unsafe fn zero() -> Self::Vector {
        // SAFETY: the trait's promise.
        unsafe {
            let zero = vdupq_n_u8(0);
            Four(zero, zero, zero, zero)
        }
    }

    #[inline(always)]
    unsafe fn load(p: *const u8) -> Self::Vector {
        // SAFETY: the trait's promise.
        unsafe { Four(vld1q_u8(p), vld1q_u8(p.add(16)), vld1q_u8(p.add(32)), vld1q_u8(p.add(48))) }
    }

    #[inline(always)]
    unsafe fn store(p: *mut u8, v: Self::Vector) {
        // SAFETY: the trait's promise.
        unsafe {
            vst1q_u8(p, v.0);
            vst1q_u8(p.add(16), v.1);
            vst1q_u8(p.add(32), v.2);
            vst1q_u8(p.add(48), v.3);
        }
    }

    #[inline(always)]
    unsafe fn load_half(p: *const u8) -> Self::Half {
        // SAFETY: the trait's promise.
        unsafe { Two(vld1q_u8(p), vld1q_u8(p.add(16))) }
    }

    #[inline(always)]
    unsafe fn load_twice(p: *const u8) -> Self::Vector {
        // SAFETY: the trait's promise.
        unsafe {
            let Two(low, high) = Self::load_half(p);
            Four(low, high, low, high)
        }
    }

    #[inline(always)]
    unsafe fn load_table(p: *const u8) -> Self::Vector {
        // SAFETY: the trait's promise.
        unsafe {
            let table = vld1q_u8(p);
            Four(table, table, table, table)
        }
    }

    #[inline(always)]
    unsafe fn rows_of_16(rows: Rows, at: usize) -> [Self::Vector; 4] {
        // SAFETY: the trait's promise.
        unsafe {
            let [a, b, c, d] = [
                four_rows(rows, 0, at),
                four_rows(rows, 4, at),
                four_rows(rows, 8, at),
                four_rows(rows, 12, at),
            ];
            [
                Four(a.0, b.0, c.0, d.0),
                Four(a.1, b.1, c.1, d.1),
                Four(a.2, b.2, c.2, d.2),
                Four(a.3, b.3, c.3, d.3),
            ]
        }
    }

    #[inline(always)]
    unsafe fn splat_int(int: i32) -> Self::Vector {
        // SAFETY: the trait's promise.
        unsafe {
            let quarter = bytes_of_ints(vdupq_n_s32(int));
            Four(quarter, quarter, quarter, quarter)
        }
    }

    #[inline(always)]
    unsafe fn prefetch(p: *const u8) {
        // SAFETY: prefetching reads nothing and takes any address.
        unsafe { asm!("prfm pldl1keep, [{}]", in(reg) p, options(nostack, preserves_flags, readonly)) }
    }

    #[inline(always)]
    unsafe fn prefetch_far(p: *const u8) {
        // SAFETY: as in `prefetch`.
        unsafe { asm!("prfm pldl2keep, [{}]", in(reg) p, options(nostack, preserves_flags, readonly)) }
    }

    #[inline(always)]
    unsafe fn nibbles_of_32(p: *const u8) -> Self::Vector {
        // SAFETY: the trait's promise.
        unsafe {
            let (mask, Two(low, high)) = (vdupq_n_u8(15), Self::load_half(p));
            Four(vandq_u8(low, mask), vandq_u8(high, mask), vshrq_n_u8::<4>(low), vshrq_n_u8::<4>(high))
        }
    }

    #[inline(always)]
    unsafe fn nibbles_of_16_and_16(low: *const u8, high: *const u8) -> Self::Vector {
        // SAFETY: the trait's promise.
        unsafe {
            let (mask, low, high) = (vdupq_n_u8(15), vld1q_u8(low), vld1q_u8(high));
            Four(vandq_u8(low, mask), vshrq_n_u8::<4>(low), vandq_u8(high, mask), vshrq_n_u8::<4>(high))
        }
    }

    #[inline(always)]
    unsafe fn low_nibbles(v: Self::Vector) -> Self::Vector {
        each!(v => vandq_u8(v, vdupq_n_u8(15)))
    }

    #[inline(always)]
    unsafe fn high_nibbles(v: Self::Vector) -> Self::Vector {
        each!(v => vshrq_n_u8::<4>(v))
    }

    #[inline(always)]
    unsafe fn and(a: Self::Vector, b: Self::Vector) -> Self::Vector {
        each!(a, b => vandq_u8(a, b))
    }

    #[inline(always)]
    unsafe fn shift_left<const BITS: i32>(v: Self::Vector) -> Self::Vector {
        each!(v => bytes_of_ints(vshlq_s32(ints(v), vdupq_n_s32(BITS))))
    }

    #[inline(always)]
    unsafe fn shift_right<const BITS: i32>(v: Self::Vector) -> Self::Vector {
        // A negative shift to the left is one to the right.
        each!(v => vreinterpretq_u8_u32(vshlq_u32(vreinterpretq_u32_u8(v), vdupq_n_s32(-BITS))))
    }

    #[inline(always)]
    unsafe fn shift_right_signed<const BITS: i32>(v: Self::Vector) -> Self::Vector {
        each!(v => bytes_of_ints(vshlq_s32(ints(v), vdupq_n_s32(-BITS))))
    }

    #[inline(always)]
    unsafe fn or(a: Self::Vector, b: Self::Vector) -> Self::Vector {
        each!(a, b => vorrq_u8(a, b))
    }

    #[inline(always)]
    unsafe fn fifth_bits<const PAIR: usize>(v: Self::Vector) -> Self::Vector {
        // SAFETY: the trait's promise.
        unsafe {
            let (low, high) = (vdupq_n_u8(1 << (2 * PAIR)), vdupq_n_u8(2 << (2 * PAIR)));
            let masks = Four(low, low, high, high);
            each!(v, masks => vandq_u8(vtstq_u8(v, masks), vdupq_n_u8(16)))
        }
    }

    #[inline(always)]
    unsafe fn upper_pairs<const PAIR: usize>(v: Self::Vector) -> Self::Vector {
        // SAFETY: the trait's promise.
        unsafe {
            let (low, high) = match PAIR {
                0 => (vdupq_n_s8(4), vdupq_n_s8(2)),
                _ => (vdupq_n_s8(0), vdupq_n_s8(-2)),
            };
            let shifts = Four(low, low, high, high);
            each!(v, shifts => vandq_u8(vshlq_u8(v, shifts), vdupq_n_u8(0x30)))
        }
    }

    #[inline(always)]
    unsafe fn look_up(table: Self::Vector, v: Self::Vector) -> Self::Vector {
        each!(table, v => vqtbl1q_u8(table, v))
    }

    #[inline(always)]
    unsafe fn stored(v: Self::Vector) -> Self::Vector {
        v
    }

    #[inline(always)]
    unsafe fn words_of_signed(p: *const u8) -> Self::Half {
        // SAFETY: the trait's promise.
        unsafe {
            let bytes = vreinterpretq_s8_u8(vld1q_u8(p));
            Two(bytes_of_words(vmovl_s8(vget_low_s8(bytes))), bytes_of_words(vmovl_high_s8(bytes)))
        }
    }

    #[inline(always)]
    unsafe fn words_of_pairs(bytes: u64) -> Self::Half {
        // SAFETY: the trait's promise.
        unsafe {
            let words = vmovl_s8(vcreate_s8(bytes));
            Two(bytes_of_words(vzip1q_s16(words, words)), bytes_of_words(vzip2q_s16(words, words)))
        }
    }

    #[inline(always)]
    unsafe fn spread<const GROUP: usize>(half: Self::Half) -> Self::Vector {
        // SAFETY: the trait's promise.
        unsafe {
            match GROUP {
                0 => repeat!(words(half.0), 0 1 2 3),
                1 => repeat!(words(half.0), 4 5 6 7),
                2 => repeat!(words(half.1), 0 1 2 3),
                _ => repeat!(words(half.1), 4 5 6 7),
            }
        }
    }

    #[inline(always)]
    unsafe fn upper_words(v: Self::Vector) -> Self::Vector {
        each!(v => bytes_of_ints(vshrq_n_s32::<16>(ints(v))))
    }

    #[inline(always)]
    unsafe fn add(a: Self::Vector, b: Self::Vector) -> Self::Vector {
        each!(a, b => bytes_of_ints(vaddq_s32(ints(a), ints(b))))
    }

    #[inline(always)]
    unsafe fn subtract(a: Self::Vector, b: Self::Vector) -> Self::Vector {
        each!(a, b => bytes_of_ints(vsubq_s32(ints(a), ints(b))))
    }

    #[inline(always)]
    unsafe fn multiply(a: Self::Vector, b: Self::Vector) -> Self::Vector {
        each!(a, b => bytes_of_ints(vmulq_s32(ints(a), ints(b))))
    }

    #[inline(always)]
    unsafe fn dot<const WIDE: bool>(sum: Self::Vector, w: Self::Vector, x: Self::Vector) -> Self::Vector {
        each!(sum, w, x => dot_quarter::<DOT>(sum, w, x))
    }

    #[inline(always)]
    unsafe fn dot_scaled(
        sum: Self::Vector,
        w: Self::Vector,
        x: Self::Vector,
        scales: Self::Vector,
    ) -> Self::Vector {
        // SAFETY: the trait's promise; both words of an int hold the same scale.
        unsafe {
            let dots = Self::dot::<false>(Self::zero(), w, x);
            each!(sum, dots, scales => {
                bytes_of_ints(vmlaq_s32(ints(sum), ints(dots), vshrq_n_s32::<16>(ints(scales))))
            })
        }
    }

    #[inline(always)]
    unsafe fn dot_words(sum: Self::Vector, a: Self::Vector, b: Self::Vector) -> Self::Vector {
        each!(sum, a, b => bytes_of_ints(vaddq_s32(ints(sum), dot_words_quarter(a, b))))
    }

    #[inline(always)]
    unsafe fn dot_words_half(a: Self::Half, b: Self::Half) -> Self::Half {
        // SAFETY: the trait's promise.
        unsafe { Two(bytes_of_ints(dot_words_quarter(a.0, b.0)), bytes_of_ints(dot_words_quarter(a.1, b.1))) }
    }

    #[inline(always)]
    unsafe fn dot_pair<const WIDE: bool>(
        sums: [Self::Vector; 2],
        w: [Self::Vector; 2],
        x: [*const i8; 2],
    ) -> [Self::Vector; 2] {
        // SAFETY: the trait's promise.
        unsafe {
            // Eight weights of two weight rows to a register; row by row a square of two by two sums comes of it.
            let [first, second] = w;
            let low = each!(first, second => bytes_of_ints(vzip1q_s32(ints(first), ints(second))));
            let high = each!(first, second => bytes_of_ints(vzip2q_s32(ints(first), ints(second))));
            let x = vcombine_u8(vld1_u8(x[0].cast()), vld1_u8(x[1].cast()));
            let [a, b] = sums;
            [each!(a, low => dot_square(a, low, x)), each!(b, high => dot_square(b, high, x))]
        }
    }

    #[inline(always)]
    unsafe fn apart(sums: [Self::Vector; 2]) -> [Self::Vector; 2] {
        let [a, b] = sums;
        [
            each!(a, b => bytes_of_ints(vuzp1q_s32(ints(a), ints(b)))),
            each!(a, b => bytes_of_ints(vuzp2q_s32(ints(a), ints(b)))),
        ]
    }

    #[inline(always)]
    unsafe fn totals(v: Self::Vector, half: Self::Half) -> (i32, i32) {
        // SAFETY: the trait's promise.
        unsafe {
            let pairs = (vaddq_s32(ints(v.0), ints(v.1)), vaddq_s32(ints(v.2), ints(v.3)));
            let half = vaddq_s32(ints(half.0), ints(half.1));
            (vaddvq_s32(vaddq_s32(pairs.0, pairs.1)), vaddvq_s32(half))
        }
    }

    #[inline(always)]
    unsafe fn to_floats(v: Self::Vector) -> Self::Floats {
        each!(v => vcvtq_f32_s32(ints(v)))
    }

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self::Floats {
        // SAFETY: the trait's promise.
        unsafe {
            let quarter = vdupq_n_f32(value);
            Four(quarter, quarter, quarter, quarter)
        }
    }

    #[inline(always)]
    unsafe fn load_floats(p: *const f32) -> Self::Floats {
        // SAFETY: the trait's promise.
        unsafe { Four(vld1q_f32(p), vld1q_f32(p.add(4)), vld1q_f32(p.add(8)), vld1q_f32(p.add(12))) }
    }

    #[inline(always)]
    unsafe fn store_floats(p: *mut f32, v: Self::Floats) {
        // SAFETY: the trait's promise.
        unsafe {
            vst1q_f32(p, v.0);
            vst1q_f32(p.add(4), v.1);
            vst1q_f32(p.add(8), v.2);
            vst1q_f32(p.add(12), v.3);
        }
    }

    #[inline(always)]
    unsafe fn load_first(p: *const f32, count: usize) -> Self::Floats {
        // SAFETY: the trait's promise; no more than `count` floats are read.
        unsafe {
            if count >= 16 {
                return Self::load_floats(p);
            }
            let mut floats = [0.0; 16];
            std::ptr::copy_nonoverlapping(p, floats.as_mut_ptr(), count);
            Self::load_floats(floats.as_ptr())
        }
    }

    #[inline(always)]
    unsafe fn store_first(p: *mut f32, v: Self::Floats, count: usize) {
        // SAFETY: the trait's promise; no more than `count` floats are written.
        unsafe {
            if count >= 16 {
                return Self::store_floats(p, v);
            }
            let mut floats = [0.0; 16];
            Self::store_floats(floats.as_mut_ptr(), v);
            std::ptr::copy_nonoverlapping(floats.as_ptr(), p, count);
        }
    }

    #[inline(always)]
    unsafe fn lower_halves(v: Self::Vector) -> Self::Floats {
        each!(v => widen(vmovn_u32(vreinterpretq_u32_u8(v))))
    }

    #[inline(always)]
    unsafe fn load_f16(p: *const u8) -> Self::Floats {
        // SAFETY: the trait's promise.
        unsafe {
            let [a, b, c, d] = four_words(p);
            Four(widen(a), widen(b), widen(c), widen(d))
        }
    }

    #[inline(always)]
    unsafe fn load_bf16(p: *const u8) -> Self::Floats {
        // SAFETY: the trait's promise.
        unsafe {
            let [a, b, c, d] = four_words(p);
            let widen = |words| vreinterpretq_f32_u32(vshll_n_u16::<16>(words));
            Four(widen(a), widen(b), widen(c), widen(d))
        }
    }

    #[inline(always)]
    unsafe fn product(a: Self::Floats, b: Self::Floats) -> Self::Floats {
        each!(a, b => vmulq_f32(a, b))
    }

    #[inline(always)]
    unsafe fn fma(a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats {
        each!(a, b, c => vfmaq_f32(c, a, b))
    }

    #[inline(always)]
    unsafe fn negated_fma(a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats {
        each!(a, b, c => vfmsq_f32(c, a, b))
    }

    #[inline(always)]
    unsafe fn tree_sum(v: Self::Floats) -> f32 {
        // SAFETY: the trait's promise.
        unsafe {
            let four = vaddq_f32(vaddq_f32(v.0, v.2), vaddq_f32(v.1, v.3));
            let two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
            vpadds_f32(two)
        }
    }
}

#[inline(always)]
unsafe fn ints(v: uint8x16_t) -> int32x4_t {
    // SAFETY: the caller has the instructions.
    unsafe { vreinterpretq_s32_u8(v) }
}

#[inline(always)]
unsafe fn sum_of_ints(a: uint8x16_t, b: uint8x16_t) -> int32x4_t {
    // SAFETY: the caller has the instructions.
    unsafe { vaddq_s32(ints(a), ints(b)) }
}

#[inline(always)]
unsafe fn bytes_of_ints(v: int32x4_t) -> uint8x16_t {
    // SAFETY: the caller has the instructions.
    unsafe { vreinterpretq_u8_s32(v) }
}

#[inline(always)]
unsafe fn words(v: uint8x16_t) -> int16x8_t {
    // SAFETY: the caller has the instructions.
    unsafe { vreinterpretq_s16_u8(v) }
}

#[inline(always)]
unsafe fn bytes_of_words(v: int16x8_t) -> uint8x16_t {
    // SAFETY: the caller has the instructions.
    unsafe { vreinterpretq_u8_s16(v) }
}

/// Sixteen words.
#[inline(always)]
unsafe fn four_words(p: *const u8) -> [uint16x4_t; 4] {
    let words = |i: usize| {
        // SAFETY: the caller's promise: 32 bytes are readable.
        unsafe { vreinterpret_u16_u8(vld1_u8(p.add(8 * i))) }
    };
    [words(0), words(1), words(2), words(3)]
}

/// Four half-precision numbers, widened exactly.
#[inline(always)]
unsafe fn widen(halves: uint16x4_t) -> float32x4_t {
    let floats;
    // SAFETY: a conversion between registers, part of the baseline.
    unsafe {
        asm!(
            "fcvtl {floats:v}.4s, {halves:v}.4h",
            floats = lateout(vreg) floats,
            halves = in(vreg) halves,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    floats
}

/// Sixteen bytes of four rows from `row`, transposed: int `i` of each row is in register `i`.
#[inline(always)]
unsafe fn four_rows(rows: Rows, row: usize, at: usize) -> Four<uint8x16_t> {
    let load = |i: usize| {
        // SAFETY: the caller's promise: the rows have the bytes.
        unsafe { vreinterpretq_s32_u8(vld1q_u8(rows.start.wrapping_add((row + i) * rows.stride + at))) }
    };
    // SAFETY: the caller has the instructions.
    unsafe {
        let (a, b, c, d) = (load(0), load(1), load(2), load(3));
        let double = |v| vreinterpretq_s64_s32(v);
        let (ab, cd) = (double(vzip1q_s32(a, b)), double(vzip1q_s32(c, d)));
        let (upper_ab, upper_cd) = (double(vzip2q_s32(a, b)), double(vzip2q_s32(c, d)));
        Four(
            vreinterpretq_u8_s64(vzip1q_s64(ab, cd)),
            vreinterpretq_u8_s64(vzip2q_s64(ab, cd)),
            vreinterpretq_u8_s64(vzip1q_s64(upper_ab, upper_cd)),
            vreinterpretq_u8_s64(vzip2q_s64(upper_ab, upper_cd)),
        )
    }
}

/// Adds the dot products of four signed bytes to each int.
#[inline(always)]
unsafe fn dot_quarter<const DOT: bool>(sum: uint8x16_t, w: uint8x16_t, x: uint8x16_t) -> uint8x16_t {
    if DOT {
        let mut sum = sum;
        // SAFETY: arithmetic on registers; the caller has the instruction.
        unsafe {
            asm!(
                "sdot {sum:v}.4s, {w:v}.16b, {x:v}.16b",
                sum = inout(vreg) sum,
                w = in(vreg) w,
                x = in(vreg) x,
                options(pure, nomem, nostack, preserves_flags)
            );
        }
        return sum;
    }
    // SAFETY: the caller has the instructions.
    unsafe {
        let (w, x) = (vreinterpretq_s8_u8(w), vreinterpretq_s8_u8(x));
        let low = vpaddlq_s16(vmull_s8(vget_low_s8(w), vget_low_s8(x)));
        let high = vpaddlq_s16(vmull_high_s8(w, x));
        bytes_of_ints(vaddq_s32(ints(sum), vpaddq_s32(low, high)))
    }
}

/// The dot products of two words, four ints.
#[inline(always)]
unsafe fn dot_words_quarter(a: uint8x16_t, b: uint8x16_t) -> int32x4_t {
    // SAFETY: the caller has the instructions.
    unsafe {
        let (a, b) = (words(a), words(b));
        vpaddq_s32(vmull_s16(vget_low_s16(a), vget_low_s16(b)), vmull_high_s16(a, b))
    }
}

/// Adds the products of two rows of eight signed bytes (`w`) with two others (`x`): a square of ints, row by row.
#[inline(always)]
unsafe fn dot_square(sum: uint8x16_t, w: uint8x16_t, x: uint8x16_t) -> uint8x16_t {
    let mut sum = sum;
    // SAFETY: arithmetic on registers; the caller has the instruction.
    unsafe {
        asm!(
            "smmla {sum:v}.4s, {w:v}.16b, {x:v}.16b",
            sum = inout(vreg) sum,
            w = in(vreg) w,
            x = in(vreg) x,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    sum
}
