//! The weights of a model, ready for the executor: matrices are views into the mapped file, vectors are f32 copies.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use millpond_simd::quant::QFormat;

/// Bytes that stay where they are for as long as anything refers to them.
pub trait ByteSource: Send + Sync {
    /// All bytes of the source.
    fn bytes(&self) -> &[u8];
}

impl ByteSource for Vec<u8> {
    fn bytes(&self) -> &[u8] {
        self
    }
}

/// A row-major matrix in a file's own block format, `y = W x` with `rows` outputs and `cols` inputs.
#[derive(Clone)]
pub struct Matrix {
    format: QFormat,
    rows: usize,
    cols: usize,
    row_bytes: usize,
    source: Arc<dyn ByteSource>,
    range: Range<usize>,
}

/// Why bytes do not form a matrix.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MatrixError {
    /// The width is no multiple of the format's block.
    #[error("{cols} columns are no multiple of the {block} values in a block of {format}")]
    Width {
        /// Format name.
        format: &'static str,
        /// Columns asked for.
        cols: usize,
        /// Values in a block.
        block: usize,
    },
    /// The range does not lie in the source or has another length than the shape asks for.
    #[error("a {rows} x {cols} matrix of {format} does not fit bytes {start}..{end} of {available}")]
    Range {
        /// Format name.
        format: &'static str,
        /// Rows asked for.
        rows: usize,
        /// Columns asked for.
        cols: usize,
        /// First byte.
        start: usize,
        /// Past the last byte.
        end: usize,
        /// Bytes there are.
        available: usize,
    },
}

impl Matrix {
    /// A view of `range` in `source` as `rows x cols` values of `format`.
    ///
    /// # Errors
    /// [`MatrixError`] when the shape, the format and the range do not agree.
    pub fn new(
        format: QFormat,
        rows: usize,
        cols: usize,
        source: Arc<dyn ByteSource>,
        range: Range<usize>,
    ) -> Result<Matrix, MatrixError> {
        let row_bytes = format.row_bytes(cols).ok_or(MatrixError::Width {
            format: format.name(),
            cols,
            block: format.block_len(),
        })?;
        let available = source.bytes().len();
        let fits = range.start <= range.end
            && range.end <= available
            && rows.checked_mul(row_bytes) == Some(range.end - range.start);
        if !fits {
            let (start, end) = (range.start, range.end);
            return Err(MatrixError::Range { format: format.name(), rows, cols, start, end, available });
        }
        Ok(Matrix { format, rows, cols, row_bytes, source, range })
    }

    /// Format of the values.
    pub fn format(&self) -> QFormat {
        self.format
    }

    /// Outputs.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Inputs.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Bytes of one row.
    pub fn row_bytes(&self) -> usize {
        self.row_bytes
    }

    /// Bytes of the whole matrix.
    pub fn bytes(&self) -> &[u8] {
        &self.source.bytes()[self.range.clone()]
    }

    /// Bytes of some rows.
    ///
    /// # Panics
    /// When the rows are not rows of the matrix.
    pub fn row_range(&self, rows: Range<usize>) -> &[u8] {
        &self.bytes()[rows.start * self.row_bytes..rows.end * self.row_bytes]
    }

    /// A view of some rows as a matrix of their own; `None` when they are not rows of the matrix.
    pub fn slice_rows(&self, rows: Range<usize>) -> Option<Matrix> {
        if rows.start > rows.end || rows.end > self.rows {
            return None;
        }
        let start = self.range.start + rows.start * self.row_bytes;
        let range = start..start + rows.len() * self.row_bytes;
        Some(Matrix { rows: rows.len(), range, ..self.clone() })
    }
}

impl fmt::Debug for Matrix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Matrix({} x {} {} at {:?})", self.rows, self.cols, self.format.name(), self.range)
    }
}

/// All weights of a model.
#[derive(Clone, Debug)]
pub struct ModelWeights {
    /// `[vocab][hidden]`.
    pub embedding: Matrix,
    /// One per layer of the specification.
    pub layers: Vec<LayerWeights>,
    /// `[hidden]`, as a factor (zero-centred weights have their one added).
    pub output_norm: Vec<f32>,
    /// `[vocab][hidden]`; the embedding itself where the head is tied.
    pub output: Matrix,
    /// The multi-token-prediction head.
    pub mtp: Option<MtpWeights>,
}

/// Weights of one layer. Norms are factors, as in [`ModelWeights::output_norm`].
#[derive(Clone, Debug)]
pub struct LayerWeights {
    /// Norm before the mixer, `[hidden]`.
    pub mixer_norm: Vec<f32>,
    /// The mixer.
    pub mixer: MixerWeights,
    /// Norm before the feed-forward, `[hidden]`.
    pub ffn_norm: Vec<f32>,
    /// The feed-forward.
    pub ffn: FfnWeights,
}

/// Weights of a mixer.
#[derive(Clone, Debug)]
pub enum MixerWeights {
    /// Linear attention.
    Linear(Box<LinearWeights>),
    /// Softmax attention.
    Attention(Box<AttentionWeights>),
}

/// Weights of a linear mixer. `Hk`, `Hv`: key and value heads; `dk`, `dv`: their widths.
#[derive(Clone, Debug)]
pub struct LinearWeights {
    /// The input projections.
    pub input: LinearInput,
    /// Convolution taps, `[2 Hk dk + Hv dv][conv_width]`, oldest tap first.
    pub conv: Vec<f32>,
    /// `-exp(A_log)` of each value head.
    pub a: Vec<f32>,
    /// Bias of the decay's softplus, one per value head.
    pub dt_bias: Vec<f32>,
    /// Norm of a value head's output, `[dv]`; never zero-centred.
    pub norm: Vec<f32>,
    /// `[hidden][Hv dv]`.
    pub out: Matrix,
}

/// Input projections of a linear mixer, as the file holds them.
#[derive(Clone, Debug)]
pub enum LinearInput {
    /// One matrix for each part.
    Split {
        /// Queries, keys, values: `[2 Hk dk + Hv dv][hidden]`.
        qkv: Matrix,
        /// Output gate: `[Hv dv][hidden]`.
        z: Matrix,
        /// Write strength: `[Hv][hidden]`.
        beta: Matrix,
        /// Decay: `[Hv][hidden]`.
        alpha: Matrix,
    },
    /// Rows interleaved by key head: `q (dk), k (dk), v (r dv), z (r dv)` and `beta (r), alpha (r)`, `r = Hv / Hk`.
    ByKeyHead {
        /// `[Hk (2 dk + 2 r dv)][hidden]`.
        qkvz: Matrix,
        /// `[2 Hv][hidden]`.
        ba: Matrix,
    },
    /// Split queries, keys, values and gate, with `beta (r), alpha (r)` still interleaved by key head.
    SplitFusedGates {
        /// Queries, keys, values: `[2 Hk dk + Hv dv][hidden]`.
        qkv: Matrix,
        /// Output gate: `[Hv dv][hidden]`.
        z: Matrix,
        /// `[2 Hv][hidden]`.
        ba: Matrix,
    },
}

/// Weights of a softmax-attention mixer.
#[derive(Clone, Debug)]
pub struct AttentionWeights {
    /// `[heads * head_dim]` rows, or twice that with query and gate interleaved by head.
    pub q: Matrix,
    /// `[kv_heads * head_dim][hidden]`.
    pub k: Matrix,
    /// `[kv_heads * head_dim][hidden]`.
    pub v: Matrix,
    /// Norm of each query head, `[head_dim]`.
    pub q_norm: Vec<f32>,
    /// Norm of each key head, `[head_dim]`.
    pub k_norm: Vec<f32>,
    /// `[hidden][heads * head_dim]`.
    pub out: Matrix,
}

/// Weights of a feed-forward.
#[derive(Clone, Debug)]
pub enum FfnWeights {
    /// One expert for every token.
    Dense(GluWeights),
    /// Routed experts.
    Moe(Box<MoeWeights>),
}

/// Weights of `down(silu(gate(x)) * up(x))`.
#[derive(Clone, Debug)]
pub struct GluWeights {
    /// `[width][hidden]`.
    pub gate: Matrix,
    /// `[width][hidden]`.
    pub up: Matrix,
    /// `[hidden][width]`.
    pub down: Matrix,
}

/// Weights of a mixture of experts.
#[derive(Clone, Debug)]
pub struct MoeWeights {
    /// `[experts][hidden]`.
    pub router: Matrix,
    /// One per routed expert.
    pub experts: Vec<GluWeights>,
    /// The shared expert and its gate `[1][hidden]`.
    pub shared: Option<(GluWeights, Matrix)>,
}

/// Weights of the multi-token-prediction head.
#[derive(Clone, Debug)]
pub struct MtpWeights {
    /// Norm of the embedding half of the input, `[hidden]`.
    pub embedding_norm: Vec<f32>,
    /// Norm of the hidden-state half of the input, `[hidden]`.
    pub hidden_norm: Vec<f32>,
    /// `[hidden][2 hidden]`: embedding half first.
    pub fc: Matrix,
    /// Its layer.
    pub layer: LayerWeights,
    /// Norm before the head, `[hidden]`.
    pub output_norm: Vec<f32>,
    /// An embedding of its own, or the model's.
    pub embedding: Matrix,
    /// A head of its own, or the model's.
    pub output: Matrix,
}
