//! One launcher for each kernel around the mixers, and which kernel a product takes.

use std::sync::Arc;

use millpond::backend::cpu::Arithmetic;
use millpond_simd::matmul::ActivationKind;
use millpond_simd::quant::QFormat;

use super::abi::{
    AttentionArgs, ByteRows, EmbedArgs, Forms, HeadNormArgs, MAX_MATRICES, MatmulArgs, MatrixArgs,
    MixExpertsArgs, NormArgs, RouteArgs, RowsArgs, SOURCE_ACTIVATED, SOURCE_FORMS, SOURCE_HEADS, SOURCE_NORM,
    SourceArgs, format_number,
};
use super::weights::DeviceMatrix;
use crate::device::{Device, DeviceError, Launch, Memory, Plain};
use crate::linear::abi::argument_bytes;

const ROW_THREADS: usize = 256;
const WARPS: usize = 4;
/// Weight rows of a warp in products with few rows.
const SMALL_ROWS: usize = 2;
/// Warps of a block of a product with few rows.
const SMALL_WARPS: usize = 8;
/// Most bytes of a block's weight rows that go through shared memory.
const STAGED_BYTES: usize = 28 << 10;
/// Weight rows from which on a block of a product with few rows takes twice as many: all blocks then run at once.
const DOUBLED_ROWS: usize = 2048;
/// Widest row that a product norms by itself: a warp has 256 columns.
const NORM_COLS: usize = 256 * SMALL_WARPS;
/// Widest row that a product makes by itself in other ways: it must fit into shared memory.
const SOURCE_COLS: usize = 4096;
/// Weight rows from which on a product has so many blocks that each making its activations would cost more than a kernel.
const SOURCE_ROWS: usize = 16_384;
/// Weight rows and activation rows of a block in products with many.
const TILE: usize = 64;
const TILE_THREADS: u32 = 256;
/// Bytes of `QuantisedTile` and `ExactTile` of kernels/model_matmul.cuh.
const QUANTISED_TILE_BYTES: u32 = (2 * 64 * 33 + 5 * 64 * 5) * 4;
const EXACT_TILE_BYTES: u32 = 2 * 64 * 33 * 4;
/// Query heads that a block of attention takes.
const QUERY_HEADS: usize = 8;
/// Bytes of `AttendShared` of kernels/model_attention.cuh.
const ATTEND_BYTES: u32 = (8 * 256 + 32 * 260 + 8 * 32) * 4;
/// Columns of a block that joins spans of attention, and bytes of its `MergeShared`.
const MERGE_COLUMNS: usize = 256;
const MERGE_BYTES: u32 = (2 * (256 + 1) + 256) * 4;

/// Positions of a span of attention.
const SPAN_POSITIONS: usize = 32;
/// Spans that room is made for at a time, so that recorded passes stay good for a while.
const SPANS_AT_A_TIME: usize = 8;

/// Spans there is room for where positions end at `end`.
pub(super) fn span_room(end: usize) -> usize {
    end.div_ceil(SPAN_POSITIONS).next_multiple_of(SPANS_AT_A_TIME)
}

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

/// Activations of a product: rows in some forms, or what a single row is to be made from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Input {
    pub(super) forms: Forms,
    source: SourceArgs,
}

impl From<Forms> for Input {
    fn from(forms: Forms) -> Input {
        Input { forms, source: SourceArgs::default() }
    }
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
        if whole_heads(dim) {
            let grid = [(heads * dim).div_ceil(256 * WARPS), rows, 1];
            return self.launch("norm_heads", grid, 32 * WARPS, 0, args);
        }
        self.launch("norm_odd_heads", [rows, 1, 1], ROW_THREADS, heads as u32 * 4, args)
    }

    /// Whether products make the activations of these ranges by themselves: a single row in bytes, where every
    /// kernel waits for the one before it most of its time.
    fn makes_sources(&self, ranges: &[RowRange], matrices: &[DeviceMatrix], most_cols: usize) -> bool {
        let single = matches!(ranges, [RowRange { first: 0, rows: 1, prompt: false }]);
        let fits = |matrix: &DeviceMatrix| {
            matrix.rows < SOURCE_ROWS && matrix.cols.is_multiple_of(32) && matrix.cols <= most_cols
        };
        single && self.arithmetic == Arithmetic::Quantised && matrices.iter().all(fits)
    }

    /// All rows of `x` normed, in the forms that `matrices` multiply with.
    pub(super) fn normed(
        &self,
        ranges: &[RowRange],
        (x, weight): (u64, u64),
        eps: f32,
        matrices: &[DeviceMatrix],
        forms: Forms,
    ) -> Result<Input, DeviceError> {
        if self.makes_sources(ranges, matrices, NORM_COLS) {
            let source =
                SourceArgs { x, weight, kind: SOURCE_NORM, eps: eps.to_bits(), ..SourceArgs::default() };
            return Ok(Input { forms, source });
        }
        self.norm((x, weight, 0), rows_of(ranges), eps, forms)?;
        Ok(forms.into())
    }

    /// All rows of `silu(gate) * x`, in the form that `matrix` multiplies with.
    pub(super) fn activated(
        &self,
        ranges: &[RowRange],
        (x, gate): (u64, u64),
        matrix: &DeviceMatrix,
        forms: Forms,
    ) -> Result<Input, DeviceError> {
        if self.makes_sources(ranges, std::slice::from_ref(matrix), SOURCE_COLS) {
            let source = SourceArgs { x, gate, kind: SOURCE_ACTIVATED, ..SourceArgs::default() };
            return Ok(Input { forms, source });
        }
        self.activate(x, gate, rows_of(ranges), forms)?;
        Ok(forms.into())
    }

    /// All rows of the gated norm over heads, in the form that `matrix` multiplies with.
    pub(super) fn heads_normed(
        &self,
        ranges: &[RowRange],
        args: &HeadNormArgs,
        matrix: &DeviceMatrix,
    ) -> Result<Input, DeviceError> {
        let whole = whole_heads(args.dim as usize);
        if whole && self.makes_sources(ranges, std::slice::from_ref(matrix), SOURCE_COLS) {
            let source = SourceArgs {
                x: args.x,
                gate: args.gate,
                weight: args.weight,
                kind: SOURCE_HEADS,
                dim: args.dim,
                padded_dim: args.padded_dim,
                eps: args.eps.to_bits(),
            };
            return Ok(Input { forms: args.out, source });
        }
        self.norm_heads(rows_of(ranges), args)?;
        Ok(args.out.into())
    }

    /// Products of the rows of some ranges, each by the kernel of its kind.
    pub(super) fn multiply(
        &self,
        ranges: &[RowRange],
        input: Input,
        products: &[Product],
        accumulate: bool,
    ) -> Result<(), DeviceError> {
        for range in ranges {
            let mut args = MatmulArgs {
                matrices: [MatrixArgs::default(); MAX_MATRICES],
                x: input.forms,
                experts: 0,
                expert_bytes: 0,
                matrix_count: products.len() as i32,
                first_row: range.first as i32,
                rows: range.rows as i32,
                accumulate: accumulate as i32,
                pairs: 1,
                staged_at: 0,
                source: input.source,
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
                let (name, rows) = match self.arithmetic {
                    Arithmetic::Quantised if range.rows == 1 => ("matmul_quantised_1", 1),
                    Arithmetic::Quantised => ("matmul_quantised_4", 4),
                    Arithmetic::Exact => ("matmul_exact_1", 1),
                };
                let blocks = lay_out(&mut args, products, small_block_rows);
                let grid = [blocks, range.rows.div_ceil(rows), 1];
                let shared = small_shared(&mut args, rows);
                self.launch(name, grid, 32 * SMALL_WARPS, shared, &args)?;
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
                staged_at: 0,
                source: SourceArgs::default(),
            };
            let blocks = lay_out(&mut args, std::slice::from_ref(product), small_block_rows);
            let name = match self.arithmetic {
                Arithmetic::Quantised => "matmul_quantised_1",
                Arithmetic::Exact => "matmul_exact_1",
            };
            let shared = small_shared(&mut args, 1);
            self.launch(name, [blocks, experts.rows, 1], 32 * SMALL_WARPS, shared, &args)?;
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
        let pieces = (args.heads as usize * args.dim as usize).div_ceil(MERGE_COLUMNS);
        self.launch("attention_merge", [pieces, rows, 1], MERGE_COLUMNS, MERGE_BYTES, args)
    }
}

/// Weight rows that a block of a product with few rows takes.
fn small_block_rows(matrix: &DeviceMatrix) -> usize {
    let split = split(matrix.rows, matrix.cols);
    let rows = SMALL_WARPS / split * SMALL_ROWS;
    let doubled = split == 1 && matrix.rows >= DOUBLED_ROWS;
    if doubled && 2 * rows * matrix.row_bytes <= STAGED_BYTES { 2 * rows } else { rows }
}

/// Whether 256 columns hold whole heads, and eight neighbours stand in one.
fn whole_heads(dim: usize) -> bool {
    dim.is_power_of_two() && (8..=256).contains(&dim)
}

fn rows_of(ranges: &[RowRange]) -> usize {
    ranges.iter().map(|range| range.rows).sum()
}

/// Whether `block_rows` weight rows go through shared memory. Blocks of values are short of wide loads by themselves,
/// floats are not.
fn is_staged(matrix: &DeviceMatrix, block_rows: usize) -> bool {
    let floats = matches!(matrix.format, QFormat::F32 | QFormat::F16 | QFormat::BF16);
    !floats && block_rows * matrix.row_bytes <= STAGED_BYTES
}

/// Bytes of shared memory of a product with up to `rows` rows at once, and where weights stand in it.
fn small_shared(args: &mut MatmulArgs, rows: usize) -> u32 {
    let mut bytes = 4 * SMALL_WARPS * SMALL_ROWS * rows;
    if args.source.kind != SOURCE_FORMS {
        let cols = args.x.cols as usize;
        bytes += 4 * SMALL_WARPS;
        bytes += if args.x.values != 0 { 4 * cols } else { 0 };
        bytes += if args.x.bytes.quants != 0 { cols + cols / 8 + cols / 4 } else { 0 };
    }
    args.staged_at = bytes.next_multiple_of(16) as i32;
    let staged = args.matrices.iter().filter(|matrix| matrix.staged != 0);
    // Whole pieces of 16 bytes, where rows need not start at one.
    match staged.map(|matrix| matrix.block_rows as usize * matrix.row_bytes as usize).max() {
        Some(weights) => (args.staged_at as usize + weights.next_multiple_of(16) + 16) as u32,
        None => bytes as u32,
    }
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
        let rows = block_rows(matrix);
        *place = MatrixArgs {
            weights: matrix.address,
            row_bytes: matrix.row_bytes as u64,
            out: product.out,
            rows: matrix.rows as i32,
            out_stride: product.out_stride as i32,
            format: format_number(matrix.format),
            first_block: blocks as i32,
            block_rows: rows as i32,
            split: split(matrix.rows, matrix.cols) as u16,
            staged: is_staged(matrix, rows) as u16,
        };
        blocks += matrix.rows.div_ceil(rows);
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
            staged_at: 0,
            source: SourceArgs::default(),
        };
        let blocks = lay_out(&mut args, &products, small_block_rows);
        assert_eq!((args.matrices[1].first_block, args.matrices[2].first_block), (1, 1 + 768));
        assert_eq!(blocks, 1 + 768 + 625);
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
