//! One launcher for each kernel around the mixers, and which kernel a product takes.

use std::sync::Arc;

use millpond::backend::cpu::Arithmetic;
use millpond_simd::matmul::ActivationKind;
use millpond_simd::quant::QFormat;

use super::abi::{
    AttentionArgs, ByteRows, EmbedArgs, Forms, HeadNormArgs, MAX_MATRICES, MatmulArgs, MatrixArgs,
    MixExpertsArgs, NormArgs, RouteArgs, RowsArgs, format_number,
};
use super::weights::DeviceMatrix;
use crate::device::{Device, DeviceError, Launch, Memory, Plain};
use crate::linear::abi::argument_bytes;

const ROW_THREADS: usize = 256;
const WARPS: usize = 4;
/// Weight rows of a warp in products with few rows.
const SMALL_ROWS: usize = 2;
/// Weight rows and activation rows of a block in products with many.
const TILE: usize = 64;
const TILE_THREADS: u32 = 256;
/// Bytes of `QuantisedTile` and `ExactTile` of kernels/model_matmul.cuh.
const QUANTISED_TILE_BYTES: u32 = (2 * 64 * 33 + 5 * 64 * 5) * 4;
const EXACT_TILE_BYTES: u32 = 2 * 64 * 33 * 4;
/// Query heads that a block of attention takes.
const QUERY_HEADS: usize = 8;
/// Bytes of `AttendShared` of kernels/model_attention.cuh.
const ATTEND_BYTES: u32 = (8 * 256 + 32 * 260 + 8 * 32 + 8) * 4;

/// Positions of a span of attention.
pub(super) const SPAN_POSITIONS: usize = 256;

/// Widest head of attention.
pub(super) const MAX_HEAD_DIM: usize = 256;

/// Rows of a pass that products treat alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct RowRange {
    pub(super) first: usize,
    pub(super) rows: usize,
    /// Rows of prompts: products in tiles, whose sums have another order than those of single rows.
    pub(super) prompt: bool,
}

/// A matrix and where its product goes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Product {
    pub(super) matrix: DeviceMatrix,
    pub(super) out: u64,
    pub(super) out_stride: usize,
}

/// Which expert's matrix each output row takes.
#[derive(Clone, Copy, Debug)]
pub(super) struct ExpertRows {
    /// `[output rows]` integers.
    pub(super) choices: u64,
    /// Output rows.
    pub(super) rows: usize,
    /// Output rows of an activation row.
    pub(super) pairs: usize,
}

/// Launches kernels. Addresses in arguments are those of memory that the caller keeps and has sized for its rows.
pub(super) struct Ops {
    pub(super) device: Arc<dyn Device>,
    pub(super) arithmetic: Arithmetic,
    pub(super) half_cache: bool,
    /// Whether a kernel may start while the one before it ends; it must be compiled to wait then.
    pub(super) overlap: bool,
}

/// Room for some rows in every form.
#[derive(Default)]
pub(super) struct FormBuffer {
    memory: Option<Memory>,
    rows: usize,
    cols: usize,
}

impl FormBuffer {
    /// Where it stands; 0 before the first rows.
    pub(super) fn address(&self) -> u64 {
        self.memory.as_ref().map_or(0, Memory::address)
    }

    /// Makes room for `rows x cols` values.
    pub(super) fn reserve(
        &mut self,
        device: &Arc<dyn Device>,
        rows: usize,
        cols: usize,
    ) -> Result<(), DeviceError> {
        if rows * cols > self.rows * self.cols {
            self.memory = None;
            self.memory = Some(Memory::new(device, rows * cols.next_multiple_of(256) * BYTES_OF_FORMS)?);
            (self.rows, self.cols) = (rows, cols.next_multiple_of(256));
        }
        Ok(())
    }

    /// Forms of `rows x cols` values that `formats` multiply with.
    pub(super) fn forms(
        &self,
        arithmetic: Arithmetic,
        rows: usize,
        cols: usize,
        formats: impl IntoIterator<Item = QFormat>,
    ) -> Forms {
        let mut forms = Forms { cols: cols as u64, ..Forms::default() };
        let base = self.memory.as_ref().map_or(0, Memory::address);
        // Everything is a multiple of 256 bytes long, so that all parts are aligned.
        let values = (rows * cols).next_multiple_of(256) as u64;
        for format in formats {
            match kind(arithmetic, format) {
                ActivationKind::F32 => forms.values = base,
                ActivationKind::Q8Block32 | ActivationKind::Q8Block256 => {
                    forms.bytes = byte_rows(base + 4 * values, values);
                }
            }
        }
        forms
    }
}

/// Floats, and bytes with scales and sums in two bytes a value at most.
const BYTES_OF_FORMS: usize = 6;

fn byte_rows(base: u64, values: u64) -> ByteRows {
    ByteRows { quants: base, scales: base + values, sums: base + values + values / 8 }
}

/// What a format multiplies with.
fn kind(arithmetic: Arithmetic, format: QFormat) -> ActivationKind {
    match arithmetic {
        Arithmetic::Quantised => format.activation_kind(),
        Arithmetic::Exact => ActivationKind::F32,
    }
}

/// How many warps share a weight row: enough to keep the device busy where there are few rows. It depends on the
/// matrix alone, so that sums have one order.
fn split(rows: usize, cols: usize) -> usize {
    let units = cols / 32;
    match rows {
        8192.. => 1,
        _ if units >= 128 => 4,
        _ if units >= 64 => 2,
        _ => 1,
    }
}

impl Ops {
    fn launch<T: Plain>(
        &self,
        kernel: &str,
        grid: [usize; 3],
        threads: usize,
        shared: u32,
        args: &T,
    ) -> Result<(), DeviceError> {
        let launch = Launch {
            kernel,
            grid: grid.map(|size| size as u32),
            threads: threads as u32,
            shared_bytes: shared,
            overlaps: self.overlap,
        };
        // SAFETY: the structure is the kernel's own; its addresses are those of memory that the backend keeps, sized
        // for the rows of the pass before the first launch, and of weights, whose kernels check nothing but rows.
        unsafe { self.device.launch(&launch, argument_bytes(args)) }
    }

    pub(super) fn embed(
        &self,
        table: &DeviceMatrix,
        tokens: u64,
        rows: usize,
        out: u64,
    ) -> Result<(), DeviceError> {
        let args = EmbedArgs {
            weights: table.address,
            row_bytes: table.row_bytes as u64,
            tokens,
            out,
            format: format_number(table.format),
            cols: table.cols as i32,
        };
        self.launch("embed_rows", [rows, 1, 1], ROW_THREADS, 0, &args)
    }

    /// Norms `rows` rows of `x`, or those that `gather` names, into forms.
    pub(super) fn norm(
        &self,
        (x, weight, gather): (u64, u64, u64),
        rows: usize,
        eps: f32,
        out: Forms,
    ) -> Result<(), DeviceError> {
        let cols = out.cols as i32;
        let args = NormArgs { x, weight, gather, out, plain: 0, plain_stride: 0, cols, eps, unused: 0 };
        self.launch("norm_rows", [rows, 1, 1], ROW_THREADS, 32 * 4, &args)
    }

    /// Norms `rows` rows of `cols` floats to the start of rows that lie `stride` apart.
    pub(super) fn norm_plain(
        &self,
        (x, weight): (u64, u64),
        (rows, cols): (usize, usize),
        eps: f32,
        (out, stride): (u64, usize),
    ) -> Result<(), DeviceError> {
        let args = NormArgs {
            x,
            weight,
            gather: 0,
            out: Forms::default(),
            plain: out,
            plain_stride: stride as i32,
            cols: cols as i32,
            eps,
            unused: 0,
        };
        self.launch("norm_rows", [rows, 1, 1], ROW_THREADS, 32 * 4, &args)
    }

    /// `silu(gate) * x`, or `x` itself where there is no gate.
    pub(super) fn activate(&self, x: u64, gate: u64, rows: usize, out: Forms) -> Result<(), DeviceError> {
        let cols = out.cols as usize;
        let args = RowsArgs { x, gate, out, rows: rows as i32, cols: cols as i32 };
        self.launch("form_rows", [cols.div_ceil(256 * WARPS), rows, 1], 32 * WARPS, 0, &args)
    }

    pub(super) fn norm_heads(&self, rows: usize, args: &HeadNormArgs) -> Result<(), DeviceError> {
        let (heads, dim) = (args.heads as usize, args.dim as usize);
        if dim.is_power_of_two() && (8..=256).contains(&dim) {
            let grid = [(heads * dim).div_ceil(256 * WARPS), rows, 1];
            return self.launch("norm_heads", grid, 32 * WARPS, 0, args);
        }
        self.launch("norm_odd_heads", [rows, 1, 1], ROW_THREADS, heads as u32 * 4, args)
    }

    /// Products of the rows of some ranges, each by the kernel of its kind.
    pub(super) fn multiply(
        &self,
        ranges: &[RowRange],
        x: Forms,
        products: &[Product],
        accumulate: bool,
    ) -> Result<(), DeviceError> {
        for range in ranges {
            let mut args = MatmulArgs {
                matrices: [MatrixArgs::default(); MAX_MATRICES],
                x,
                experts: 0,
                expert_bytes: 0,
                matrix_count: products.len() as i32,
                first_row: range.first as i32,
                rows: range.rows as i32,
                accumulate: accumulate as i32,
                pairs: 1,
                unused: 0,
            };
            if range.prompt {
                let blocks = lay_out(&mut args, products, |_| TILE);
                let grid = [blocks, range.rows.div_ceil(TILE), 1];
                let (name, shared) = match self.arithmetic {
                    // Float formats are staged as floats in either kernel.
                    Arithmetic::Quantised => {
                        ("matmul_quantised_tiled", QUANTISED_TILE_BYTES.max(EXACT_TILE_BYTES))
                    }
                    Arithmetic::Exact => ("matmul_exact_tiled", EXACT_TILE_BYTES),
                };
                self.launch(name, grid, TILE_THREADS as usize, shared, &args)?;
            } else {
                let blocks = lay_out(&mut args, products, small_block_rows);
                let (name, rows) = match self.arithmetic {
                    Arithmetic::Quantised if range.rows == 1 => ("matmul_quantised_1", 1),
                    Arithmetic::Quantised => ("matmul_quantised_4", 4),
                    Arithmetic::Exact => ("matmul_exact_1", 1),
                };
                let grid = [blocks, range.rows.div_ceil(rows), 1];
                self.launch(name, grid, 32 * WARPS, (WARPS * SMALL_ROWS * rows * 4) as u32, &args)?;
            }
        }
        Ok(())
    }

    /// Products with the matrices of experts.
    pub(super) fn multiply_experts(
        &self,
        experts: ExpertRows,
        x: Forms,
        products: &[Product],
    ) -> Result<(), DeviceError> {
        for product in products {
            let mut args = MatmulArgs {
                matrices: [MatrixArgs::default(); MAX_MATRICES],
                x,
                experts: experts.choices,
                expert_bytes: product.matrix.bytes() as u64,
                matrix_count: 1,
                first_row: 0,
                rows: experts.rows as i32,
                accumulate: 0,
                pairs: experts.pairs as i32,
                unused: 0,
            };
            let blocks = lay_out(&mut args, std::slice::from_ref(product), small_block_rows);
            let name = match self.arithmetic {
                Arithmetic::Quantised => "matmul_quantised_1",
                Arithmetic::Exact => "matmul_exact_1",
            };
            let grid = [blocks, experts.rows, 1];
            self.launch(name, grid, 32 * WARPS, (WARPS * SMALL_ROWS * 4) as u32, &args)?;
        }
        Ok(())
    }

    pub(super) fn route(&self, args: &RouteArgs) -> Result<(), DeviceError> {
        self.launch("route_rows", [(args.rows as usize).div_ceil(WARPS), 1, 1], 32 * WARPS, 0, args)
    }

    pub(super) fn mix_experts(&self, rows: usize, args: &MixExpertsArgs) -> Result<(), DeviceError> {
        let blocks = (args.cols as usize).div_ceil(ROW_THREADS);
        self.launch("mix_expert_rows", [blocks, rows, 1], ROW_THREADS, 0, args)
    }

    fn cache_name(&self) -> &'static str {
        if self.half_cache { "f16" } else { "f32" }
    }

    /// Norms and rotates the queries and keys of `rows` rows, and writes keys and values to their pages.
    pub(super) fn attention_prepare(&self, rows: usize, args: &AttentionArgs) -> Result<(), DeviceError> {
        let name = format!("attention_prepare_{}", self.cache_name());
        let units = (args.heads + 2 * args.kv_heads) as usize;
        self.launch(&name, [units.div_ceil(WARPS), rows, 1], 32 * WARPS, 0, args)
    }

    /// Attention of `rows` rows from the first of `args` on, over at most `args.spans` spans.
    pub(super) fn attend(&self, rows: usize, args: &AttentionArgs) -> Result<(), DeviceError> {
        let name = format!("attend_{}", self.cache_name());
        let group = (args.heads / args.kv_heads) as usize;
        let parts = args.kv_heads as usize * group.div_ceil(QUERY_HEADS);
        self.launch(&name, [args.spans as usize, parts, rows], 128, ATTEND_BYTES, args)?;
        self.launch("attention_merge", [rows, 1, 1], ROW_THREADS, args.heads as u32 * 8, args)
    }
}

/// Weight rows that a block of a product with few rows takes.
fn small_block_rows(matrix: &DeviceMatrix) -> usize {
    WARPS / split(matrix.rows, matrix.cols) * SMALL_ROWS
}

/// Fills in the matrices of a product, and returns the blocks of its grid.
fn lay_out(
    args: &mut MatmulArgs,
    products: &[Product],
    block_rows: impl Fn(&DeviceMatrix) -> usize,
) -> usize {
    let mut blocks = 0;
    for (place, product) in args.matrices.iter_mut().zip(products) {
        let matrix = &product.matrix;
        *place = MatrixArgs {
            weights: matrix.address,
            row_bytes: matrix.row_bytes as u64,
            out: product.out,
            rows: matrix.rows as i32,
            out_stride: product.out_stride as i32,
            format: format_number(matrix.format),
            first_block: blocks as i32,
            split: split(matrix.rows, matrix.cols) as i32,
            unused: 0,
        };
        blocks += matrix.rows.div_ceil(block_rows(matrix));
    }
    blocks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_cover_every_row_of_every_matrix() {
        let matrix =
            |rows, cols| DeviceMatrix { address: 0, format: QFormat::F32, rows, cols, row_bytes: 4 * cols };
        let product = |rows, cols| Product { matrix: matrix(rows, cols), out: 0, out_stride: rows };
        let products = [product(9, 1024), product(6144, 2048), product(10_000, 4096)];
        let mut args = MatmulArgs {
            matrices: [MatrixArgs::default(); MAX_MATRICES],
            x: Forms::default(),
            experts: 0,
            expert_bytes: 0,
            matrix_count: 3,
            first_row: 0,
            rows: 1,
            accumulate: 0,
            pairs: 1,
            unused: 0,
        };
        let blocks = lay_out(&mut args, &products, small_block_rows);
        assert_eq!((args.matrices[1].first_block, args.matrices[2].first_block), (2, 2 + 1536));
        assert_eq!(blocks, 2 + 1536 + 1250);
        assert_eq!((args.matrices[1].split, args.matrices[2].split), (2, 1));
    }

    #[test]
    fn forms_do_not_overlap() {
        for (rows, cols) in [(1_usize, 64_usize), (3, 1024), (5, 256)] {
            let values = (rows * cols).next_multiple_of(256) as u64;
            let bytes = byte_rows(0, values);
            assert_eq!(bytes.scales, values);
            assert!(bytes.sums >= bytes.scales + (rows * cols / 32 * 4) as u64);
            assert!(2 * values >= bytes.sums + (rows * cols / 16 * 4) as u64);
        }
    }
}
