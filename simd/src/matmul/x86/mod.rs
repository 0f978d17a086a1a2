//! The x86-64 levels.

mod avx2;
mod avx512;

use std::arch::x86_64::*;

use super::level::level;

/// What both widths do with four floats or ints: part of their implementations of `Simd`, whose
/// promise it relies on.
macro_rules! fours {
    () => {
        type Four = __m128;
        type FourInts = __m128i;

        #[inline(always)]
        unsafe fn four(value: f32) -> __m128 {
            // SAFETY: the trait's promise.
            unsafe { _mm_set1_ps(value) }
        }

        #[inline(always)]
        unsafe fn four_ints(int: i32) -> __m128i {
            // SAFETY: the trait's promise.
            unsafe { _mm_set1_epi32(int) }
        }

        #[inline(always)]
        unsafe fn load_four(p: *const f32) -> __m128 {
            // SAFETY: the trait's promise.
            unsafe { _mm_loadu_ps(p) }
        }

        #[inline(always)]
        unsafe fn store_four(p: *mut f32, v: __m128) {
            // SAFETY: the trait's promise.
            unsafe { _mm_storeu_ps(p, v) }
        }

        #[inline(always)]
        unsafe fn four_halves(p: [*const u8; 4]) -> __m128 {
            // SAFETY: the trait's promise; the reads are unaligned.
            unsafe {
                let [a, b, c, d] = p.map(|p| p.cast::<i16>());
                let mut halves = _mm_cvtsi32_si128(i32::from(a.read_unaligned()));
                halves = _mm_insert_epi16::<1>(halves, i32::from(b.read_unaligned()));
                halves = _mm_insert_epi16::<2>(halves, i32::from(c.read_unaligned()));
                halves = _mm_insert_epi16::<3>(halves, i32::from(d.read_unaligned()));
                _mm_cvtph_ps(halves)
            }
        }

        #[inline(always)]
        unsafe fn add_four(a: __m128i, b: __m128i) -> __m128i {
            // SAFETY: the trait's promise.
            unsafe { _mm_add_epi32(a, b) }
        }

        #[inline(always)]
        unsafe fn chain(chain: __m128, ints: __m128i, scales: __m128, x_scale: f32) -> __m128 {
            // SAFETY: the trait's promise.
            unsafe { _mm_fmadd_ps(_mm_cvtepi32_ps(ints), _mm_mul_ps(scales, _mm_set1_ps(x_scale)), chain) }
        }
    };
}
use fours;

/// Four ints.
#[inline(always)]
unsafe fn four_of(v: __m128i) -> [i32; 4] {
    let mut ints = [0; 4];
    // SAFETY: the caller has AVX2; there is room for four ints.
    unsafe { _mm_storeu_si128(ints.as_mut_ptr().cast(), v) };
    ints
}

/// The sum of eight ints and of eight others.
#[inline(always)]
unsafe fn totals_of_eight(a: __m256i, b: __m256i) -> (i32, i32) {
    // SAFETY: the caller has AVX2.
    unsafe {
        let pairs = _mm256_hadd_epi32(a, b);
        let four = _mm_add_epi32(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1));
        let sums = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0b10_11_00_01));
        (_mm_cvtsi128_si32(sums), _mm_extract_epi32(sums, 2))
    }
}

/// The sum of the eight ints of each.
#[inline(always)]
unsafe fn totals_of_four(v: [__m256i; 4]) -> __m128i {
    // SAFETY: the caller has AVX2.
    unsafe {
        let [a, b, c, d] = v;
        let ab = _mm256_add_epi32(_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
        let cd = _mm256_add_epi32(_mm256_unpacklo_epi32(c, d), _mm256_unpackhi_epi32(c, d));
        let sums = _mm256_add_epi32(_mm256_unpacklo_epi64(ab, cd), _mm256_unpackhi_epi64(ab, cd));
        _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1))
    }
}

/// Lane `i` plus lane `i + 4`, then `+ 2`, `+ 1`.
#[inline(always)]
unsafe fn tree_sum_of_eight(v: __m256) -> f32 {
    // SAFETY: the caller has AVX2.
    unsafe {
        let four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
        let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
    }
}

level!(
    avx2_level, Avx2, avx2::Avx2<false>, "avx2,fma,f16c",
    few: [16, 4, 8], thin: [0, 0, 0],
    rows: [3, 2], panels: 1, floats: 2 x 2
);
level!(
    avxvnni_level, AvxVnni, avx2::Avx2<true>, "avx2,fma,f16c,avxvnni",
    few: [1, 1, 2], thin: [0, 0, 0],
    rows: [3, 2], panels: 1, floats: 2 x 2
);
level!(
    avx512_level, Avx512, avx512::Avx512<false>,
    "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq",
    few: [1, 1, 2], thin: [8, 4, 6],
    rows: [6, 4, 2], panels: 2, floats: 4 x 4
);
level!(
    avx512vnni_level, Avx512Vnni, avx512::Avx512<true>,
    "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni",
    few: [1, 1, 2], thin: [8, 4, 6],
    rows: [6, 4, 2], panels: 2, floats: 4 x 4
);
