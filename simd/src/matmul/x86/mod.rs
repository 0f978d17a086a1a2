//! The x86-64 levels.

mod avx2;
mod avx512;

use std::arch::x86_64::*;

use super::formats::{IQ4NL, IQ4XS, Q4K, Q5K, Q6K, Q40, Q80};
use super::rows::{self, BF16, F16, F32};
use super::{ActivationKind, ActivationRowMut, MatmulKernels, Product, scalar};
use crate::isa::Isa;
use crate::matmul::OutTile;
use crate::quant::QFormat;

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

/// The kernels of one level: everything generic, compiled with its features.
macro_rules! level {
    ($module:ident, $isa:expr, $simd:ty, $features:literal) => {
        pub(super) mod $module {
            use super::*;

            type S = $simd;

            pub(crate) static KERNELS: MatmulKernels = MatmulKernels { isa: $isa, prepare_row, matmul };

            #[target_feature(enable = $features)]
            fn prepare_row(kind: ActivationKind, x: &[f32], place: ActivationRowMut<'_>) {
                scalar::prepare_row(kind, x, place);
            }

            #[target_feature(enable = $features)]
            fn matmul(product: &Product<'_>, out: &mut OutTile<'_>) {
                let mut first = 0;
                while first < out.rows() {
                    let rows = rows::MOST.min(out.rows() - first);
                    match rows {
                        1 => few::<1>(product, first, out),
                        2 => few::<2>(product, first, out),
                        3 => few::<3>(product, first, out),
                        _ => few::<4>(product, first, out),
                    }
                    first += rows;
                }
            }

            #[target_feature(enable = $features)]
            fn few<const R: usize>(product: &Product<'_>, first: usize, out: &mut OutTile<'_>) {
                // SAFETY: this function is compiled for, and only called with, the instruction set.
                unsafe {
                    match product.format {
                        QFormat::F32 => rows::floats::<S, F32, R>(product, first, out),
                        QFormat::F16 => rows::floats::<S, F16, R>(product, first, out),
                        QFormat::BF16 => rows::floats::<S, BF16, R>(product, first, out),
                        QFormat::Q4_0 => rows::blocks_of_32::<S, Q40<S>, R>(product, first, out),
                        QFormat::Q8_0 => rows::blocks_of_32::<S, Q80<S>, R>(product, first, out),
                        QFormat::IQ4NL => rows::blocks_of_32::<S, IQ4NL<S>, R>(product, first, out),
                        QFormat::Q4K => rows::blocks_of_256::<S, Q4K<S>, R>(product, first, out),
                        QFormat::Q5K => rows::blocks_of_256::<S, Q5K<S>, R>(product, first, out),
                        QFormat::Q6K => rows::blocks_of_256::<S, Q6K<S>, R>(product, first, out),
                        QFormat::IQ4XS => rows::blocks_of_256::<S, IQ4XS<S>, R>(product, first, out),
                        _ => scalar::rows(product, first, R, out),
                    }
                }
            }
        }
    };
}

level!(avx2_level, Isa::Avx2, avx2::Avx2<false>, "avx2,fma,f16c");
level!(avxvnni_level, Isa::AvxVnni, avx2::Avx2<true>, "avx2,fma,f16c,avxvnni");
level!(avx512_level, Isa::Avx512, avx512::Avx512<false>, "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq");
level!(
    avx512vnni_level,
    Isa::Avx512Vnni,
    avx512::Avx512<true>,
    "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni"
);
