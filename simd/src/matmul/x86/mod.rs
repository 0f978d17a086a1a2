//! The x86-64 levels.

mod avx2;
mod avx512;

use std::arch::x86_64::*;

use super::formats::{Format32, Format256, IQ4NL, IQ4XS, Q4K, Q5K, Q6K, Q40, Q80};
use super::panels::{self, PanelKernel, Rows, Tile, TileFn, Unpack};
use super::rows::{self, BF16, F16, F32};
use super::simd::Simd;
use super::{ActivationKind, ActivationRowMut, MatmulKernels, Product, float_tiles, scalar};
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
/// tiles, largest first, `$panels` their panels, `$float_rows` and `$float_weights` the sides of float tiles.
macro_rules! level {
    (
        $module:ident, $isa:expr, $simd:ty, $features:literal,
        rows: [$($rows:literal),*], panels: $panels:literal, floats: $float_rows:literal x $float_weights:literal
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
                let few = match out.rows() {
                    1 => few::<1>(product, out),
                    2 => few::<2>(product, out),
                    3 => few::<3>(product, out),
                    4 => few::<4>(product, out),
                    _ => false,
                };
                if !few {
                    many(product, out);
                }
            }

            /// The product if the format has a path for few rows.
            #[target_feature(enable = $features)]
            fn few<const R: usize>(product: &Product<'_>, out: &mut OutTile<'_>) -> bool {
                // SAFETY: this function is compiled for, and only called with, the instruction set.
                unsafe {
                    match product.format {
                        QFormat::F32 => rows::floats::<S, F32, R>(product, out),
                        QFormat::F16 => rows::floats::<S, F16, R>(product, out),
                        QFormat::BF16 => rows::floats::<S, BF16, R>(product, out),
                        QFormat::Q4_0 => rows::blocks_of_32::<S, Q40<S>, R>(product, out),
                        QFormat::Q8_0 => rows::blocks_of_32::<S, Q80<S>, R>(product, out),
                        QFormat::IQ4NL => rows::blocks_of_32::<S, IQ4NL<S>, R>(product, out),
                        QFormat::Q4K => rows::blocks_of_256::<S, Q4K<S>, R>(product, out),
                        QFormat::Q5K => rows::blocks_of_256::<S, Q5K<S>, R>(product, out),
                        QFormat::Q6K => rows::blocks_of_256::<S, Q6K<S>, R>(product, out),
                        QFormat::IQ4XS => rows::blocks_of_256::<S, IQ4XS<S>, R>(product, out),
                        _ => return false,
                    }
                }
                true
            }

            #[target_feature(enable = $features)]
            fn many(product: &Product<'_>, out: &mut OutTile<'_>) {
                // SAFETY: this function is compiled for, and only called with, the instruction set.
                unsafe {
                    match product.format {
                        QFormat::F32 => float_tiles::matmul::<S, F32, $float_rows, $float_weights>(product, out),
                        QFormat::F16 => float_tiles::matmul::<S, F16, $float_rows, $float_weights>(product, out),
                        QFormat::BF16 => float_tiles::matmul::<S, BF16, $float_rows, $float_weights>(product, out),
                        format => panels::matmul(&panel_kernel(format), product, out),
                    }
                }
            }

            /// The panel path of a block format.
            fn panel_kernel(format: QFormat) -> PanelKernel {
                let (unpack, tiles): (Unpack, &'static [(usize, TileFn)]) = match format {
                    QFormat::Q4K => (unpack_256::<Q4K<S>>, TILES_8_MINS),
                    QFormat::Q5K => (unpack_256::<Q5K<S>>, TILES_8_MINS),
                    QFormat::Q6K => (unpack_256::<Q6K<S>>, TILES_16),
                    QFormat::IQ4XS => (unpack_256::<IQ4XS<S>>, TILES_8_WIDE),
                    QFormat::Q2K => (panels::unpack_any, TILES_16_MINS),
                    QFormat::Q3K => (panels::unpack_any, TILES_16),
                    QFormat::Q4_0 => (unpack_32::<Q40<S>>, TILES_32_BY_8),
                    QFormat::Q8_0 => (unpack_32::<Q80<S>>, TILES_32_WIDE),
                    QFormat::IQ4NL => (unpack_32::<IQ4NL<S>>, TILES_32_WIDE),
                    QFormat::Q5_0 => (panels::unpack_any, TILES_32_BY_16),
                    QFormat::MXFP4 => (panels::unpack_any, TILES_32_BY_12),
                    _ => (panels::unpack_any, TILES_32_MINS),
                };
                let layout = panels::layout(format, <S as Simd>::WIDE_OFFSET);
                PanelKernel { layout, unpack, tiles, panels: $panels }
            }

            #[target_feature(enable = $features)]
            unsafe fn unpack_256<F: Format256<S>>(_: QFormat, rows: &Rows, count: usize, panel: *mut u8) {
                // SAFETY: this function is compiled for, and only called with, the instruction set; the caller's
                // promise.
                unsafe { panels::unpack_256::<S, F>(rows, count, panel) }
            }

            #[target_feature(enable = $features)]
            unsafe fn unpack_32<F: Format32<S>>(_: QFormat, rows: &Rows, count: usize, panel: *mut u8) {
                // SAFETY: as in `unpack_256`.
                unsafe { panels::unpack_32::<S, F>(rows, count, panel) }
            }

            #[target_feature(enable = $features)]
            unsafe fn tile_256<const SUBS: usize, const MINS: bool, const WIDE: bool, const R: usize>(tile: &Tile) {
                // SAFETY: as in `unpack_256`.
                unsafe { panels::tile_of_256::<S, SUBS, MINS, WIDE, R, $panels>(tile) }
            }

            #[target_feature(enable = $features)]
            unsafe fn tile_32<const MINS: bool, const WIDE: bool, const OFFSET: i32, const R: usize>(tile: &Tile) {
                // SAFETY: as in `unpack_256`.
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
    rows: [6, 4, 2], panels: 2, floats: 6 x 4
);
level!(
    avx512vnni_level, Isa::Avx512Vnni, avx512::Avx512<true>,
    "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni",
    rows: [6, 4, 2], panels: 2, floats: 6 x 4
);
