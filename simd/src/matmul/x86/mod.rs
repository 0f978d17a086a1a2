//! The x86-64 levels.

mod avx2;
mod avx512;

use std::arch::x86_64::*;

use super::level::level;

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
    rows: [3, 2], panels: 1, floats: 2 x 2
);
level!(
    avxvnni_level, AvxVnni, avx2::Avx2<true>, "avx2,fma,f16c,avxvnni",
    rows: [3, 2], panels: 1, floats: 2 x 2
);
level!(
    avx512_level, Avx512, avx512::Avx512<false>,
    "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq",
    rows: [6, 4, 2], panels: 2, floats: 4 x 4
);
level!(
    avx512vnni_level, Avx512Vnni, avx512::Avx512<true>,
    "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni",
    rows: [6, 4, 2], panels: 2, floats: 4 x 4
);
