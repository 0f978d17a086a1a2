//! AVX-512 F, BW, VL, DQ; with and without the integer dot product.

use std::arch::x86_64::*;

use super::fours;
use crate::matmul::panels::Rows;
use crate::matmul::simd::Simd;

/// AVX-512; `VNNI`: with `vpdpbusd` and `vpdpwssd`.
#[derive(Clone, Copy)]
pub(crate) struct Avx512<const VNNI: bool>;

/// Words: `low` in the lower half, `high` in the upper.
#[inline(always)]
unsafe fn words_of_halves(low: i16, high: i16) -> __m512i {
    // SAFETY: as for the caller.
    unsafe { _mm512_inserti64x4(_mm512_set1_epi16(low), _mm256_set1_epi16(high), 1) }
}

/// Indices that repeat words `4 group ..` eight times each.
const fn spread_indices(group: usize) -> [i16; 32] {
    let mut indices = [0; 32];
    let mut i = 0;
    while i < 32 {
        indices[i] = (4 * group + i / 8) as i16;
        i += 1;
    }
    indices
}
const SPREAD: [[i16; 32]; 4] = [spread_indices(0), spread_indices(1), spread_indices(2), spread_indices(3)];

// Every function below relies on the trait's promise: the processor has the instructions, pointers are good.
impl<const VNNI: bool> Simd for Avx512<VNNI> {
    type Vector = __m512i;
    type Half = __m256i;
    type Floats = __m512;

    fours!();

    const WIDE_OFFSET: i32 = if VNNI { 128 } else { 0 };

    #[inline(always)]
    unsafe fn zero() -> __m512i {
        // SAFETY: the trait's promise.
        unsafe { _mm512_setzero_si512() }
    }

    #[inline(always)]
    unsafe fn load(p: *const u8) -> __m512i {
        // SAFETY: the trait's promise.
        unsafe { _mm512_loadu_si512(p.cast()) }
    }

    #[inline(always)]
    unsafe fn store(p: *mut u8, v: __m512i) {
        // SAFETY: the trait's promise.
        unsafe { _mm512_storeu_si512(p.cast(), v) }
    }

    #[inline(always)]
    unsafe fn load_half(p: *const u8) -> __m256i {
        // SAFETY: the trait's promise.
        unsafe { _mm256_loadu_si256(p.cast()) }
    }

    #[inline(always)]
    unsafe fn load_halves(low: *const u8, high: *const u8) -> __m512i {
        // SAFETY: the trait's promise.
        unsafe {
            let low = _mm512_castsi256_si512(_mm256_loadu_si256(low.cast()));
            _mm512_inserti64x4(low, _mm256_loadu_si256(high.cast()), 1)
        }
    }

    #[inline(always)]
    unsafe fn load_twice(p: *const u8) -> __m512i {
        // SAFETY: the trait's promise.
        unsafe { _mm512_broadcast_i64x4(_mm256_loadu_si256(p.cast())) }
    }

    #[inline(always)]
    unsafe fn load_table(p: *const u8) -> __m512i {
        // SAFETY: the trait's promise.
        unsafe { _mm512_broadcast_i32x4(_mm_loadu_si128(p.cast())) }
    }

    #[inline(always)]
    unsafe fn rows_of_16(rows: Rows, at: usize) -> [__m512i; 4] {
        // SAFETY: the trait's promise.
        unsafe {
            // Quarter q of vector c has row 4 q + c; transposing each quarter puts rows in order.
            let mut v = [_mm512_setzero_si512(); 4];
            let first = rows.start.wrapping_add(at);
            for c in 0..4 {
                let row = first.wrapping_add(c * rows.stride);
                let four = 4 * rows.stride;
                v[c] = _mm512_castsi128_si512(sixteen(row));
                v[c] = _mm512_mask_broadcast_i32x4(v[c], 0x00f0, sixteen(row.add(four)));
                v[c] = _mm512_mask_broadcast_i32x4(v[c], 0x0f00, sixteen(row.add(2 * four)));
                v[c] = _mm512_mask_broadcast_i32x4(v[c], 0xf000, sixteen(row.add(3 * four)));
            }
            let (a, b) = (_mm512_unpacklo_epi32(v[0], v[1]), _mm512_unpacklo_epi32(v[2], v[3]));
            let (c, d) = (_mm512_unpackhi_epi32(v[0], v[1]), _mm512_unpackhi_epi32(v[2], v[3]));
            [
                _mm512_unpacklo_epi64(a, b),
                _mm512_unpackhi_epi64(a, b),
                _mm512_unpacklo_epi64(c, d),
                _mm512_unpackhi_epi64(c, d),
            ]
        }
    }

    #[inline(always)]
    unsafe fn splat_int(int: i32) -> __m512i {
        // SAFETY: the trait's promise.
        unsafe { _mm512_set1_epi32(int) }
    }

    #[inline(always)]
    unsafe fn prefetch(p: *const u8) {
        // SAFETY: the trait's promise.
        unsafe { _mm_prefetch(p.cast(), _MM_HINT_T0) }
    }

    #[inline(always)]
    unsafe fn prefetch_far(p: *const u8) {
        // SAFETY: the trait's promise.
        unsafe { _mm_prefetch(p.cast(), _MM_HINT_T1) }
    }

    #[inline(always)]
    unsafe fn nibbles_of_32(p: *const u8) -> __m512i {
        // SAFETY: the trait's promise.
        unsafe {
            let twice = Self::load_twice(p);
            Self::low_nibbles(_mm512_srlv_epi16(twice, words_of_halves(0, 4)))
        }
    }

    #[inline(always)]
    unsafe fn nibbles_of_16_and_16(low: *const u8, high: *const u8) -> __m512i {
        // SAFETY: the trait's promise.
        unsafe {
            let both =
                _mm512_mask_broadcast_i32x4(Self::load_table(low), 0xff00, _mm_loadu_si128(high.cast()));
            let shifts = _mm512_set_epi64(4, 4, 0, 0, 4, 4, 0, 0);
            Self::low_nibbles(_mm512_srlv_epi64(both, shifts))
        }
    }

    #[inline(always)]
    unsafe fn low_nibbles(v: __m512i) -> __m512i {
        // SAFETY: the trait's promise.
        unsafe { _mm512_and_si512(v, _mm512_set1_epi8(15)) }
    }

    #[inline(always)]
    unsafe fn high_nibbles(v: __m512i) -> __m512i {
        // SAFETY: the trait's promise.
        unsafe { Self::low_nibbles(_mm512_srli_epi16(v, 4)) }
    }

    #[inline(always)]
    unsafe fn and(a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: the trait's promise.
        unsafe { _mm512_and_si512(a, b) }
    }

    #[inline(always)]
    unsafe fn shift_left<const BITS: i32>(v: __m512i) -> __m512i {
        // SAFETY: the trait's promise.
        unsafe { _mm512_sll_epi32(v, _mm_cvtsi32_si128(BITS)) }
    }

    #[inline(always)]
    unsafe fn shift_right<const BITS: i32>(v: __m512i) -> __m512i {
        // SAFETY: the trait's promise.
        unsafe { _mm512_srl_epi32(v, _mm_cvtsi32_si128(BITS)) }
    }

    #[inline(always)]
    unsafe fn shift_right_signed<const BITS: i32>(v: __m512i) -> __m512i {
        // SAFETY: the trait's promise.
        unsafe { _mm512_sra_epi32(v, _mm_cvtsi32_si128(BITS)) }
    }

    #[inline(always)]
    unsafe fn or(a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: the trait's promise.
        unsafe { _mm512_or_si512(a, b) }
    }

    #[inline(always)]
    unsafe fn fifth_bits<const PAIR: usize>(v: __m512i) -> __m512i {
        // SAFETY: the trait's promise.
        unsafe {
            let low = (1u8 << (2 * PAIR)) as i8;
            let high = (2u8 << (2 * PAIR)) as i8;
            let bits = _mm512_inserti64x4(_mm512_set1_epi8(low), _mm256_set1_epi8(high), 1);
            _mm512_maskz_mov_epi8(_mm512_test_epi8_mask(v, bits), _mm512_set1_epi8(16))
        }
    }

    #[inline(always)]
    unsafe fn sixteens(bits: u64) -> __m512i {
        // SAFETY: the trait's promise.
        unsafe { _mm512_maskz_mov_epi8(bits, _mm512_set1_epi8(16)) }
    }

    #[inline(always)]
    unsafe fn upper_pairs<const PAIR: usize>(v: __m512i) -> __m512i {
        // SAFETY: the trait's promise.
        unsafe {
            let shifted = match PAIR {
                0 => _mm512_sllv_epi16(v, words_of_halves(4, 2)),
                _ => _mm512_srlv_epi16(v, words_of_halves(0, 2)),
            };
            _mm512_and_si512(shifted, _mm512_set1_epi8(0x30))
        }
    }

    #[inline(always)]
    unsafe fn look_up(table: __m512i, v: __m512i) -> __m512i {
        // SAFETY: the trait's promise.
        unsafe { _mm512_shuffle_epi8(table, v) }
    }

    #[inline(always)]
    unsafe fn stored(v: __m512i) -> __m512i {
        // SAFETY: the trait's promise.
        unsafe { if VNNI { _mm512_xor_si512(v, _mm512_set1_epi8(-128)) } else { v } }
    }

    #[inline(always)]
    unsafe fn words_of_signed(p: *const u8) -> __m256i {
        // SAFETY: the trait's promise.
        unsafe { _mm256_cvtepi8_epi16(_mm_loadu_si128(p.cast())) }
    }

    #[inline(always)]
    unsafe fn words_of_pairs(bytes: u64) -> __m256i {
        // SAFETY: the trait's promise.
        unsafe {
            let bytes = _mm_cvtsi64_si128(bytes as i64);
            _mm256_cvtepi8_epi16(_mm_unpacklo_epi8(bytes, bytes))
        }
    }

    #[inline(always)]
    unsafe fn spread<const GROUP: usize>(half: __m256i) -> __m512i {
        // SAFETY: the trait's promise; the index table has 64 bytes.
        unsafe {
            let indices = _mm512_loadu_si512(SPREAD[GROUP].as_ptr().cast());
            _mm512_permutexvar_epi16(indices, _mm512_castsi256_si512(half))
        }
    }

    #[inline(always)]
    unsafe fn upper_words(v: __m512i) -> __m512i {
        // SAFETY: the trait's promise.
        unsafe { _mm512_srai_epi32(v, 16) }
    }

    #[inline(always)]
    unsafe fn add(a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: the trait's promise.
        unsafe { _mm512_add_epi32(a, b) }
    }

    #[inline(always)]
    unsafe fn subtract(a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: the trait's promise.
        unsafe { _mm512_sub_epi32(a, b) }
    }

    #[inline(always)]
    unsafe fn multiply(a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: the trait's promise.
        unsafe { _mm512_mullo_epi32(a, b) }
    }

    #[inline(always)]
    unsafe fn dot<const WIDE: bool>(sum: __m512i, w: __m512i, x: __m512i) -> __m512i {
        // SAFETY: the trait's promise.
        unsafe {
            if VNNI {
                return _mm512_dpbusd_epi32(sum, w, x);
            }
            // Without it, pairs are summed in words: 63 * 127 * 2 and 128 * 127 * 2 fit.
            let pairs = if WIDE {
                let negative = _mm512_movepi8_mask(w);
                let x = _mm512_mask_sub_epi8(x, negative, _mm512_setzero_si512(), x);
                _mm512_maddubs_epi16(_mm512_abs_epi8(w), x)
            } else {
                _mm512_maddubs_epi16(w, x)
            };
            _mm512_add_epi32(sum, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)))
        }
    }

    #[inline(always)]
    unsafe fn dot_scaled(sum: __m512i, w: __m512i, x: __m512i, scales: __m512i) -> __m512i {
        // SAFETY: the trait's promise.
        unsafe { Self::dot_words(sum, _mm512_maddubs_epi16(w, x), scales) }
    }

    #[inline(always)]
    unsafe fn dot_words(sum: __m512i, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: the trait's promise.
        unsafe {
            if VNNI { _mm512_dpwssd_epi32(sum, a, b) } else { _mm512_add_epi32(sum, _mm512_madd_epi16(a, b)) }
        }
    }

    #[inline(always)]
    unsafe fn dot_words_half(a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: the trait's promise.
        unsafe { _mm256_madd_epi16(a, b) }
    }

    #[inline(always)]
    unsafe fn totals(v: __m512i, half: __m256i) -> (i32, i32) {
        // SAFETY: the trait's promise.
        unsafe { super::totals_of_eight(sums_of_eight(v), half) }
    }

    #[inline(always)]
    unsafe fn totals_of_two(v: [__m512i; 2], halves: [__m256i; 2]) -> [i32; 4] {
        // SAFETY: the trait's promise.
        unsafe {
            let [a, b] = [sums_of_eight(v[0]), sums_of_eight(v[1])];
            super::four_of(super::totals_of_four([a, b, halves[0], halves[1]]))
        }
    }

    #[inline(always)]
    unsafe fn totals_of_four(v: [__m512i; 4]) -> [i32; 4] {
        // SAFETY: the trait's promise.
        unsafe {
            let eight = sums_of_eight(sums_of_quarters(v));
            let four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
            super::four_of(four)
        }
    }

    #[inline(always)]
    unsafe fn totals_of_four_halves(v: [__m256i; 4]) -> [i32; 4] {
        // SAFETY: the trait's promise.
        unsafe { super::four_of(super::totals_of_four(v)) }
    }

    #[inline(always)]
    unsafe fn totals_by_half(v: [__m512i; 4]) -> [__m128i; 2] {
        // SAFETY: the trait's promise.
        unsafe {
            let quarters = sums_of_quarters(v);
            let halves = _mm512_add_epi32(quarters, _mm512_shuffle_i32x4(quarters, quarters, 0b10_11_00_01));
            [_mm512_castsi512_si128(halves), _mm512_extracti32x4_epi32(halves, 2)]
        }
    }

    #[inline(always)]
    unsafe fn to_floats(v: __m512i) -> __m512 {
        // SAFETY: the trait's promise.
        unsafe { _mm512_cvtepi32_ps(v) }
    }

    #[inline(always)]
    unsafe fn splat(value: f32) -> __m512 {
        // SAFETY: the trait's promise.
        unsafe { _mm512_set1_ps(value) }
    }

    #[inline(always)]
    unsafe fn load_floats(p: *const f32) -> __m512 {
        // SAFETY: the trait's promise.
        unsafe { _mm512_loadu_ps(p) }
    }

    #[inline(always)]
    unsafe fn store_floats(p: *mut f32, v: __m512) {
        // SAFETY: the trait's promise.
        unsafe { _mm512_storeu_ps(p, v) }
    }

    #[inline(always)]
    unsafe fn load_first(p: *const f32, count: usize) -> __m512 {
        // SAFETY: the trait's promise; masked lanes are not touched.
        unsafe { _mm512_maskz_loadu_ps(first(count), p) }
    }

    #[inline(always)]
    unsafe fn store_first(p: *mut f32, v: __m512, count: usize) {
        // SAFETY: the trait's promise; masked lanes are not touched.
        unsafe { _mm512_mask_storeu_ps(p, first(count), v) }
    }

    #[inline(always)]
    unsafe fn lower_halves(v: __m512i) -> __m512 {
        // SAFETY: the trait's promise.
        unsafe { _mm512_cvtph_ps(_mm512_cvtepi32_epi16(v)) }
    }

    #[inline(always)]
    unsafe fn load_f16(p: *const u8) -> __m512 {
        // SAFETY: the trait's promise.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) }
    }

    #[inline(always)]
    unsafe fn load_bf16(p: *const u8) -> __m512 {
        // SAFETY: the trait's promise.
        unsafe {
            let ints = _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32(ints, 16))
        }
    }

    #[inline(always)]
    unsafe fn product(a: __m512, b: __m512) -> __m512 {
        // SAFETY: the trait's promise.
        unsafe { _mm512_mul_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: the trait's promise.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    unsafe fn negated_fma(a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: the trait's promise.
        unsafe { _mm512_fnmadd_ps(a, b, c) }
    }

    #[inline(always)]
    unsafe fn tree_sum(v: __m512) -> f32 {
        // SAFETY: the trait's promise.
        unsafe {
            let high = _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(v), 1));
            super::tree_sum_of_eight(_mm256_add_ps(_mm512_castps512_ps256(v), high))
        }
    }
}

/// The lower eight ints plus the upper eight.
#[inline(always)]
unsafe fn sums_of_eight(v: __m512i) -> __m256i {
    // SAFETY: the caller has the instructions.
    unsafe { _mm256_add_epi32(_mm512_castsi512_si256(v), _mm512_extracti64x4_epi64(v, 1)) }
}

/// In each quarter, the sum of that quarter's ints of each.
#[inline(always)]
unsafe fn sums_of_quarters(v: [__m512i; 4]) -> __m512i {
    // SAFETY: the caller has the instructions.
    unsafe {
        let [a, b, c, d] = v;
        let ab = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
        let cd = _mm512_add_epi32(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
        _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd))
    }
}

#[inline(always)]
unsafe fn sixteen(p: *const u8) -> __m128i {
    // SAFETY: the caller's promise.
    unsafe { _mm_loadu_si128(p.cast()) }
}

/// The mask of the first `count` of sixteen lanes.
#[inline(always)]
fn first(count: usize) -> u16 {
    ((1u32 << count.min(16)) - 1) as u16
}
