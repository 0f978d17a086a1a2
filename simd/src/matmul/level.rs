//! The kernels of one instruction-set level, put together.

/// The kernels of one level: everything generic, compiled with its features. `$few_256`, `$few_32` and `$few_q80` are
/// the most activation rows with which weights in blocks of 256, of 32 and of Q8_0 are read row after row; beyond them,
/// `$thin_q4k`, `$thin_k` and `$thin_32` the most with which those of Q4_K, of Q5_K and Q6_K, and of blocks of 32 are
/// unpacked in registers. `$rows` are the activation rows of tiles, largest first, `$panels` their panels,
/// `$float_weights` and `$float_rows` the sides of float tiles.
macro_rules! level {
    (
        $module:ident, $isa:ident, $simd:ty, $features:literal,
        few: [$few_256:literal, $few_32:literal, $few_q80:literal],
        thin: [$thin_q4k:literal, $thin_k:literal, $thin_32:literal],
        rows: [$($rows:literal),*], panels: $panels:literal, floats: $float_weights:literal x $float_rows:literal
    ) => {
        pub(in crate::matmul) mod $module {
            use super::*;
            use $crate::isa::Isa;
            use $crate::matmul::floats::{self, BF16, F16, F32};
            use $crate::matmul::formats::{IQ4XS, Q2K, Q3K, Q4K, Q5K, Q6K};
            use $crate::matmul::formats_32::{Fp4, IQ4NL, Q40, Q41, Q50, Q51, Q80};
            use $crate::matmul::panels::{self, Ahead, PanelKernel, Rows, Tile, TileFn, UnpackFn};
            use $crate::matmul::simd::Simd;
            use $crate::matmul::unpack::{self, Unpack};
            use $crate::matmul::{ActivationKind, ActivationRowMut, MatmulKernels, OutTile, Product, rows, scalar, thin};
            use $crate::quant::QFormat;

            type S = $simd;

            pub(crate) static KERNELS: MatmulKernels =
                MatmulKernels { isa: Isa::$isa, prepare_row, matmul };

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
                        format if out.rows() <= most_in_rows(format) => in_rows(product, out),
                        format if out.rows() <= most_in_registers(format) => in_registers(product, out),
                        format => panels::matmul(&panel_kernel(format), product, out),
                    }
                }
            }

            /// The most activation rows with which weights are read row after row.
            const fn most_in_rows(format: QFormat) -> usize {
                match format {
                    QFormat::Q8_0 => $few_q80,
                    // Its sub-scales meet ints, not words: that costs more a row than a panel does.
                    QFormat::IQ4XS => 1,
                    _ if format.block_len() == 256 => $few_256,
                    _ => $few_32,
                }
            }

            /// The product with few activation rows, for block formats.
            #[target_feature(enable = $features)]
            fn in_rows(product: &Product<'_>, out: &mut OutTile<'_>) {
                // SAFETY: this function is compiled for, and only called with, the instruction set.
                unsafe {
                    match product.format {
                        QFormat::Q2K => rows::blocks_of_256::<S, Q2K<S>>(product, out),
                        QFormat::Q3K => rows::blocks_of_256::<S, Q3K<S>>(product, out),
                        QFormat::Q4K => rows::blocks_of_256::<S, Q4K<S>>(product, out),
                        QFormat::Q5K => rows::blocks_of_256::<S, Q5K<S>>(product, out),
                        QFormat::Q6K => rows::blocks_of_256::<S, Q6K<S>>(product, out),
                        QFormat::IQ4XS => rows::blocks_of_256::<S, IQ4XS<S>>(product, out),
                        QFormat::Q4_0 => rows::blocks_of_32::<S, Q40<S>>(product, out),
                        QFormat::Q4_1 => rows::blocks_of_32::<S, Q41<S>>(product, out),
                        QFormat::Q5_0 => rows::blocks_of_32::<S, Q50<S>>(product, out),
                        QFormat::Q5_1 => rows::blocks_of_32::<S, Q51<S>>(product, out),
                        QFormat::IQ4NL => rows::blocks_of_32::<S, IQ4NL<S>>(product, out),
                        QFormat::MXFP4 => rows::blocks_of_32::<S, Fp4<S>>(product, out),
                        _ => rows::blocks_of_32::<S, Q80<S>>(product, out),
                    }
                }
            }

            /// The most activation rows with which weights are unpacked in registers.
            const fn most_in_registers(format: QFormat) -> usize {
                match format {
                    QFormat::Q4K => $thin_q4k,
                    QFormat::Q5K | QFormat::Q6K => $thin_k,
                    QFormat::Q4_0 | QFormat::Q8_0 | QFormat::IQ4NL => $thin_32,
                    _ => 0,
                }
            }

            /// The product with weights that are unpacked in registers.
            #[target_feature(enable = $features)]
            fn in_registers(product: &Product<'_>, out: &mut OutTile<'_>) {
                // SAFETY: this function is compiled for, and only called with, the instruction set.
                unsafe {
                    match product.format {
                        QFormat::Q4K => thin::blocks_of_256::<S, Q4K<S>>(product, out),
                        QFormat::Q5K => thin::blocks_of_256::<S, Q5K<S>>(product, out),
                        QFormat::Q6K => thin::blocks_of_256::<S, Q6K<S>>(product, out),
                        QFormat::Q4_0 => thin::blocks_of_32::<S, Q40<S>>(product, out),
                        QFormat::IQ4NL => thin::blocks_of_32::<S, IQ4NL<S>>(product, out),
                        _ => thin::blocks_of_32::<S, Q80<S>>(product, out),
                    }
                }
            }

            /// The panel path of a block format.
            fn panel_kernel(format: QFormat) -> PanelKernel {
                let (unpack, tiles): (UnpackFn, Tiles) = match format {
                    QFormat::Q2K => (unpack::<Q2K<S>>, TILES_16_MINS),
                    QFormat::Q3K => (unpack::<Q3K<S>>, TILES_16),
                    QFormat::Q4K => (unpack::<Q4K<S>>, TILES_8_MINS),
                    QFormat::Q5K => (unpack::<Q5K<S>>, TILES_8_MINS),
                    QFormat::Q6K => (unpack::<Q6K<S>>, TILES_16),
                    QFormat::IQ4XS => (unpack::<IQ4XS<S>>, TILES_8_WIDE),
                    QFormat::Q4_0 => (unpack::<Q40<S>>, TILES_32_BY_8),
                    QFormat::Q4_1 => (unpack::<Q41<S>>, TILES_32_MINS),
                    QFormat::Q5_0 => (unpack::<Q50<S>>, TILES_32_BY_16),
                    QFormat::Q5_1 => (unpack::<Q51<S>>, TILES_32_MINS),
                    QFormat::IQ4NL => (unpack::<IQ4NL<S>>, TILES_32_WIDE),
                    QFormat::MXFP4 => (unpack::<Fp4<S>>, TILES_32_BY_12),
                    _ => (unpack::<Q80<S>>, TILES_32_WIDE),
                };
                let layout = panels::layout(format, <S as Simd>::WIDE_OFFSET);
                PanelKernel { layout, unpack, tiles, panels: $panels }
            }

            #[target_feature(enable = $features)]
            unsafe fn unpack<F: Unpack<S>>(
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
pub(super) use level;
