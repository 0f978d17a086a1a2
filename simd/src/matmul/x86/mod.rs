//! The x86-64 levels.

mod avx2;
mod avx512;

use std::arch::x86_64::*;

use super::floats::{self, BF16, F16, F32};
use super::formats::{IQ4NL, IQ4XS, Q4K, Q5K, Q6K, Q40, Q80};
use super::panels::{self, Ahead, PanelKernel, Rows, Tile, TileFn, UnpackFn};
use super::rows;
use super::simd::Simd;
use super::unpack::{self, Unpack};
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

/// The kernels of one level: everything generic, compiled with its features. `$rows` are the activation rows of
/// tiles, largest first, `$panels` their panels, `$float_weights` and `$float_rows` the sides of float tiles.
macro_rules! level {
    (
        $module:ident, $isa:expr, $simd:ty, $features:literal,
        rows: [$($rows:literal),*], panels: $panels:literal, floats: $float_weights:literal x $float_rows:literal
    ) => {
        pub(super) mod $module {
            use super::*;

            type S = $simd;

            pub(crate) static KERNELS: MatmulKernels =
                MatmulKernels { isa: $isa, prepare_row, matmul };

            #[target_feature(enable = $features)]
            fn prepare_row(kind: ActivationKind, x: &[f32], place: ActivationRowMut<'_>) {
                scalar::prepare_row(kind, x, place);
            }

            #[target_feature(enable = $features)]
            fn matmul(product: &Product<'_>, out: &mut OutTile<'_>) {
                // SAFETY: this function is compiled for, and only called with, the instruction set.
                unsafe {
                    match product.format {
                        QFormat::F32 => floats::matmul::<S, F32, $float_weights, $float_rows>(product, out),
                        QFormat::F16 => floats::matmul::<S, F16, $float_weights, $float_rows>(product, out),
                        QFormat::BF16 => floats::matmul::<S, BF16, $float_weights, $float_rows>(product, out),
                        format if out.rows() > 1 || !one(product, out) => {
                            panels::matmul(&panel_kernel(format), product, out);
                        }
                        _ => {}
                    }
                }
            }

            /// The product with one activation row if the format has a path for it.
            #[target_feature(enable = $features)]
            fn one(product: &Product<'_>, out: &mut OutTile<'_>) -> bool {
                // SAFETY: this function is compiled for, and only called with, the instruction set.
                unsafe {
                    match product.format {
                        QFormat::Q4_0 => rows::blocks_of_32::<S, Q40<S>>(product, out),
                        QFormat::Q8_0 => rows::blocks_of_32::<S, Q80<S>>(product, out),
                        QFormat::IQ4NL => rows::blocks_of_32::<S, IQ4NL<S>>(product, out),
                        QFormat::Q4K => rows::blocks_of_256::<S, Q4K<S>>(product, out),
                        QFormat::Q5K => rows::blocks_of_256::<S, Q5K<S>>(product, out),
                        QFormat::Q6K => rows::blocks_of_256::<S, Q6K<S>>(product, out),
                        QFormat::IQ4XS => rows::blocks_of_256::<S, IQ4XS<S>>(product, out),
                        _ => return false,
                    }
                }
                true
            }

            /// The panel path of a block format.
            fn panel_kernel(format: QFormat) -> PanelKernel {
                let (unpack, tiles): (UnpackFn, Tiles) = match format {
                    QFormat::Q4K => (unpack::<Q4K<S>>, TILES_8_MINS),
                    QFormat::Q5K => (unpack::<Q5K<S>>, TILES_8_MINS),
                    QFormat::Q6K => (unpack::<Q6K<S>>, TILES_16),
                    QFormat::IQ4XS => (unpack::<IQ4XS<S>>, TILES_8_WIDE),
                    QFormat::Q2K => (unpack::unpack_any, TILES_16_MINS),
                    QFormat::Q3K => (unpack::unpack_any, TILES_16),
                    QFormat::Q4_0 => (unpack::<Q40<S>>, TILES_32_BY_8),
                    QFormat::Q8_0 => (unpack::<Q80<S>>, TILES_32_WIDE),
                    QFormat::IQ4NL => (unpack::<IQ4NL<S>>, TILES_32_WIDE),
                    QFormat::Q5_0 => (unpack::unpack_any, TILES_32_BY_16),
                    QFormat::MXFP4 => (unpack::unpack_any, TILES_32_BY_12),
                    _ => (unpack::unpack_any, TILES_32_MINS),
                };
                let layout = panels::layout(format, <S as Simd>::WIDE_OFFSET);
                PanelKernel { layout, unpack, tiles, panels: $panels }
            }

            #[target_feature(enable = $features)]
            unsafe fn unpack<F: Unpack<S>>(
                _: QFormat,
                rows: Rows,
                count: usize,
                panel: *mut u8,
                ahead: Ahead,
            ) {
                // SAFETY: this function is compiled for, and only called with, the instruction set; the caller's
                // promise.
                unsafe { unpack::unpack::<S, F>(rows, count, panel, ahead) }
            }

            #[target_feature(enable = $features)]
            unsafe fn tile_256<const SUBS: usize, const MINS: bool, const WIDE: bool, const R: usize>(tile: &Tile) {
                // SAFETY: as in `unpack`.
                unsafe { panels::tile_of_256::<S, SUBS, MINS, WIDE, R, $panels>(tile) }
            }

            #[target_feature(enable = $features)]
            unsafe fn tile_32<const MINS: bool, const WIDE: bool, const OFFSET: i32, const R: usize>(tile: &Tile) {
                // SAFETY: as in `unpack`.
                unsafe { panels::tile_of_32::<S, MINS, WIDE, OFFSET, R, $panels>(tile) }
            }

            type Tiles = &'static [(usize, TileFn)];
            const WIDE_OFFSET: i32 = <S as Simd>::WIDE_OFFSET;
            const TILES_8_MINS: Tiles = &[$(($rows, tile_256::<8, true, false, $rows>)),*];
            const TILES_16_MINS: Tiles = &[$(($rows, tile_256::<16, true, false, $rows>)),*];
            const TILES_16: Tiles = &[$(($rows, tile_256::<16, false, false, $rows>)),*];
            const TILES_8_WIDE: Tiles = &[$(($rows, tile_256::<8, false, true, $rows>)),*];
            const TILES_32_WIDE: Tiles = &[$(($rows, tile_32::<false, true, WIDE_OFFSET, $rows>)),*];
            const TILES_32_BY_8: Tiles = &[$(($rows, tile_32::<false, false, 8, $rows>)),*];
            const TILES_32_BY_12: Tiles = &[$(($rows, tile_32::<false, false, 12, $rows>)),*];
            const TILES_32_BY_16: Tiles = &[$(($rows, tile_32::<false, false, 16, $rows>)),*];
            const TILES_32_MINS: Tiles = &[$(($rows, tile_32::<true, false, 0, $rows>)),*];
        }
    };
}

level!(
    avx2_level, Isa::Avx2, avx2::Avx2<false>, "avx2,fma,f16c",
    rows: [3, 2], panels: 1, floats: 2 x 2
);
level!(
    avxvnni_level, Isa::AvxVnni, avx2::Avx2<true>, "avx2,fma,f16c,avxvnni",
    rows: [3, 2], panels: 1, floats: 2 x 2
);
level!(
    avx512_level, Isa::Avx512, avx512::Avx512<false>,
    "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq",
    rows: [6, 4, 2], panels: 2, floats: 4 x 4
);
level!(
    avx512vnni_level, Isa::Avx512Vnni, avx512::Avx512<true>,
    "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni",
    rows: [6, 4, 2], panels: 2, floats: 4 x 4
);
