//! The structures kernels and host share; `kernels/model.cuh` holds their other half, and what they mean.

use std::mem::size_of;

use millpond_simd::quant::QFormat;

use crate::device::Plain;

/// Rows of activations as bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ByteRows {
    /// `[rows][cols]` signed bytes.
    pub quants: u64,
    /// `[rows][cols / 32]` floats.
    pub scales: u64,
    /// `[rows][cols / 16]` integers.
    pub sums: u64,
}

/// The forms in which matrices take a row; absent ones are 0.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Forms {
    /// `[rows][cols]` floats.
    pub values: u64,
    /// Bytes, with a scale for 32 values.
    pub bytes: ByteRows,
    /// Values of a row.
    pub cols: u64,
}

/// Arguments of the embedding.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct EmbedArgs {
    /// The table.
    pub weights: u64,
    /// Bytes of one of its rows.
    pub row_bytes: u64,
    /// `[rows]`.
    pub tokens: u64,
    /// `[rows][cols]`.
    pub out: u64,
    /// Number of the format.
    pub format: i32,
    /// Values of a row.
    pub cols: i32,
}

/// Arguments of the norm over whole rows.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct NormArgs {
    /// `[..][cols]`.
    pub x: u64,
    /// `[cols]`.
    pub weight: u64,
    /// `[rows]` rows of `x`, or 0 for all in order.
    pub gather: u64,
    /// Where the rows go.
    pub out: Forms,
    /// Or where they go as floats.
    pub plain: u64,
    /// Distance of those rows.
    pub plain_stride: i32,
    /// Values of a row.
    pub cols: i32,
    /// Inside the square root.
    pub eps: f32,
    /// Up to a round size.
    pub unused: i32,
}

/// Arguments of the activation function, or of forms alone.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct RowsArgs {
    /// `[rows][cols]`.
    pub x: u64,
    /// `[rows][cols]`, or 0.
    pub gate: u64,
    /// Where the rows go.
    pub out: Forms,
    /// Rows.
    pub rows: i32,
    /// Values of a row.
    pub cols: i32,
}

/// Arguments of the gated norm over heads.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct HeadNormArgs {
    /// `[rows][heads][padded_dim]`.
    pub x: u64,
    /// `[rows][heads][dim]`.
    pub gate: u64,
    /// `[dim]`.
    pub weight: u64,
    /// Where the rows go.
    pub out: Forms,
    /// Heads.
    pub heads: i32,
    /// Width of a head.
    pub dim: i32,
    /// Width of a head in `x`.
    pub padded_dim: i32,
    /// Inside the square root.
    pub eps: f32,
}

/// One matrix of a product.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct MatrixArgs {
    /// `[experts][rows][row_bytes]`.
    pub weights: u64,
    /// Bytes of a row.
    pub row_bytes: u64,
    /// `[activation rows][out_stride]`.
    pub out: u64,
    /// Weight rows.
    pub rows: i32,
    /// Distance of output rows.
    pub out_stride: i32,
    /// Number of the format.
    pub format: i32,
    /// First block of the grid that works on it.
    pub first_block: i32,
    /// Weight rows of a block.
    pub block_rows: i32,
    /// Warps that share a weight row.
    pub split: u16,
    /// Whether the rows of a block go through shared memory.
    pub staged: u16,
}

/// Most matrices of a product.
pub const MAX_MATRICES: usize = 4;

/// Arguments of a product.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct MatmulArgs {
    /// The matrices.
    pub matrices: [MatrixArgs; MAX_MATRICES],
    /// What they multiply with.
    pub x: Forms,
    /// The expert of each output row, or 0.
    pub experts: u64,
    /// Bytes of an expert.
    pub expert_bytes: u64,
    /// Matrices in use.
    pub matrix_count: i32,
    /// First row.
    pub first_row: i32,
    /// Rows.
    pub rows: i32,
    /// Whether results are added to what is there.
    pub accumulate: i32,
    /// Output rows of an activation row, where there are experts.
    pub pairs: i32,
    /// Place of weights in shared memory.
    pub staged_at: i32,
    /// What a single row is made from; the addresses of `x` then only say in which forms.
    pub source: SourceArgs,
}

/// A single row of activations is there already.
pub const SOURCE_FORMS: i32 = 0;
/// It is `x / sqrt(mean(x^2) + eps) * weight`.
pub const SOURCE_NORM: i32 = 1;
/// It is `silu(gate) * x`.
pub const SOURCE_ACTIVATED: i32 = 2;
/// It is heads of `x` normed by themselves, times `silu(gate)`.
pub const SOURCE_HEADS: i32 = 3;

/// What a product with a single row makes its activations from.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct SourceArgs {
    /// `[cols]`, or `[heads][padded_dim]`.
    pub x: u64,
    /// `[cols]`.
    pub gate: u64,
    /// `[cols]`, or `[dim]`.
    pub weight: u64,
    /// Which of the above.
    pub kind: i32,
    /// Width of a head.
    pub dim: i32,
    /// Width of a head in `x`.
    pub padded_dim: i32,
    /// Inside the square root, as bits.
    pub eps: u32,
}

/// Arguments of the router.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct RouteArgs {
    /// `[rows][experts]`.
    pub scores: u64,
    /// `[rows][top_k]` integers.
    pub choices: u64,
    /// `[rows][top_k]`.
    pub weights: u64,
    /// Experts.
    pub experts: i32,
    /// Experts of a row.
    pub top_k: i32,
    /// Whether weights sum to one.
    pub normalize: i32,
    /// Rows.
    pub rows: i32,
}

/// Arguments of the sum over experts.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct MixExpertsArgs {
    /// `[rows][top_k][cols]`.
    pub returned: u64,
    /// `[rows][top_k]`.
    pub weights: u64,
    /// `[rows][cols]`, or 0.
    pub shared: u64,
    /// `[rows]`.
    pub shared_gate: u64,
    /// `[rows][cols]`, added to.
    pub out: u64,
    /// Experts of a row.
    pub top_k: i32,
    /// Values of a row.
    pub cols: i32,
}

/// Where a row of attention stands.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionRow {
    /// Its position.
    pub position: i32,
    /// Where the pages of its sequence start in the table.
    pub table: i32,
}

/// Arguments of attention.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct AttentionArgs {
    /// `[rows]` [`AttentionRow`].
    pub rows: u64,
    /// Addresses of pages.
    pub pages: u64,
    /// `[rows][heads][dim]`, or `[rows][heads][2][dim]` with the gate after each query.
    pub q: u64,
    /// `[rows][kv_heads][dim]`.
    pub k: u64,
    /// `[rows][kv_heads][dim]`.
    pub v: u64,
    /// `[dim]`.
    pub q_norm: u64,
    /// `[dim]`.
    pub k_norm: u64,
    /// `[rotary / 2]`.
    pub frequencies: u64,
    /// `[rows][heads][dim]`.
    pub queries: u64,
    /// `[rows][heads][spans][dim]`.
    pub partial: u64,
    /// `[rows][heads][spans]`.
    pub partial_max: u64,
    /// `[rows][heads][spans]`.
    pub partial_sum: u64,
    /// `[rows][heads * dim]`.
    pub out: Forms,
    /// Of the layer in a page, in values.
    pub page_offset: u64,
    /// Query heads.
    pub heads: i32,
    /// Key/value heads.
    pub kv_heads: i32,
    /// Width of a head.
    pub dim: i32,
    /// Rotated dimensions.
    pub rotary: i32,
    /// Whether there is an output gate.
    pub gated: i32,
    /// First row of the launch.
    pub first_row: i32,
    /// Spans there is room for.
    pub spans: i32,
    /// Inside the square root.
    pub eps: f32,
    /// Of the queries.
    pub scale: f32,
    /// Up to a round size.
    pub unused: i32,
}

const _: () = assert!(size_of::<Forms>() == 40 && size_of::<EmbedArgs>() == 40);
const _: () = assert!(size_of::<NormArgs>() == 88 && size_of::<RowsArgs>() == 64);
const _: () = assert!(size_of::<HeadNormArgs>() == 80 && size_of::<MatrixArgs>() == 48);
const _: () = assert!(size_of::<MatmulArgs>() == 312 && size_of::<RouteArgs>() == 40);
const _: () = assert!(size_of::<MixExpertsArgs>() == 48 && size_of::<AttentionArgs>() == 184);
const _: () = assert!(size_of::<AttentionRow>() == 8);

// SAFETY: numbers without padding, as the assertion on the size shows.
unsafe impl Plain for EmbedArgs {}
// SAFETY: as above.
unsafe impl Plain for NormArgs {}
// SAFETY: as above.
unsafe impl Plain for RowsArgs {}
// SAFETY: as above.
unsafe impl Plain for HeadNormArgs {}
// SAFETY: as above.
unsafe impl Plain for MatmulArgs {}
// SAFETY: as above.
unsafe impl Plain for RouteArgs {}
// SAFETY: as above.
unsafe impl Plain for MixExpertsArgs {}
// SAFETY: as above.
unsafe impl Plain for AttentionArgs {}
// SAFETY: as above.
unsafe impl Plain for AttentionRow {}

/// The number of a format in `kernels/formats.cuh`.
pub fn format_number(format: QFormat) -> i32 {
    match format {
        QFormat::F32 => 0,
        QFormat::F16 => 1,
        QFormat::BF16 => 2,
        QFormat::Q4_0 => 3,
        QFormat::Q4_1 => 4,
        QFormat::Q5_0 => 5,
        QFormat::Q5_1 => 6,
        QFormat::Q8_0 => 7,
        QFormat::Q2K => 8,
        QFormat::Q3K => 9,
        QFormat::Q4K => 10,
        QFormat::Q5K => 11,
        QFormat::Q6K => 12,
        QFormat::IQ4NL => 13,
        QFormat::IQ4XS => 14,
        QFormat::MXFP4 => 15,
    }
}
