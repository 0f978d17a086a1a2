//! The operands of a pass's rows: convolved, normalised, gated; or given.

use millpond_models::{LinearSpec, Write};
use millpond_simd::linear::Ahead;
use millpond_simd::vector::VectorKernels;

use super::{LinearParameters, MAX_TAPS};

/// Epsilon inside the square root that normalises queries and keys.
const NORMALIZE_EPS: f32 = 1e-6;

/// Rows of a prompt asked for ahead of the one in work.
const ROWS_AHEAD: usize = 4;

/// Channels convolved at a time.
const CONV_BLOCK: usize = 256;

/// The convolution inputs of a sequence, by absolute position.
pub(super) struct Ring<'a> {
    pub(super) rows: &'a [f32],
    pub(super) count: usize,
    pub(super) channels: usize,
}

impl Ring<'_> {
    fn row(&self, position: usize) -> &[f32] {
        let at = position % self.count * self.channels;
        &self.rows[at..at + self.channels]
    }
}

/// Keeps the inputs of a pass that later rows can still need.
pub(super) fn ring_write(ring: &mut [f32], count: usize, start: usize, inputs: &[f32], channels: usize) {
    let rows = inputs.len() / channels;
    for row in rows.saturating_sub(count)..rows {
        let at = (start + row) % count * channels;
        ring[at..at + channels].copy_from_slice(&inputs[row * channels..(row + 1) * channels]);
    }
}

/// Where queries, keys and values come from.
pub(super) enum Source<'a> {
    /// From projections, through the convolution.
    Convolved { qkv: &'a [f32], ring: Ring<'a>, weights: &'a [f32] },
    /// As [`super::RowInputs::Ready`] has them.
    Ready { queries: &'a [f32], keys: &'a [f32], values: &'a [f32] },
}

/// The operands of all rows of one sequence.
pub(super) struct Front<'a> {
    pub(super) source: Source<'a>,
    /// `[rows][value_heads]`.
    pub(super) betas: &'a [f32],
    /// `[rows][value_heads]`.
    pub(super) decays: &'a [f32],
    /// Absolute position of the first row.
    pub(super) start: usize,
}

impl Front<'_> {
    /// The query and the key of one row and key head.
    pub(super) fn query_and_key(
        &self,
        kernels: &VectorKernels,
        spec: &LinearSpec,
        row: usize,
        head: usize,
        query: &mut [f32],
        key: &mut [f32],
    ) {
        let dk = spec.key_dim;
        let width = spec.key_heads * dk;
        match &self.source {
            Source::Convolved { .. } => {
                self.convolve(kernels, spec.conv_width, row, head * dk, query);
                kernels.l2_normalize(query, NORMALIZE_EPS, (dk as f32).sqrt().recip());
                self.convolve(kernels, spec.conv_width, row, width + head * dk, key);
                kernels.l2_normalize(key, NORMALIZE_EPS, 1.0);
            }
            Source::Ready { queries, keys, .. } => {
                let range = row * width + head * dk..row * width + (head + 1) * dk;
                query.copy_from_slice(&queries[range.clone()]);
                key.copy_from_slice(&keys[range]);
            }
        }
    }

    /// Values `first..first + out.len()` of one row and value head.
    pub(super) fn values(
        &self,
        kernels: &VectorKernels,
        spec: &LinearSpec,
        row: usize,
        head: usize,
        first: usize,
        out: &mut [f32],
    ) {
        let at = head * spec.value_dim + first;
        match &self.source {
            Source::Convolved { .. } => {
                let channel = 2 * spec.key_heads * spec.key_dim + at;
                self.convolve(kernels, spec.conv_width, row, channel, out);
            }
            Source::Ready { values, .. } => {
                let row = row * spec.value_heads * spec.value_dim;
                out.copy_from_slice(&values[row + at..row + at + out.len()]);
            }
        }
    }

    /// Convolution and SiLU of the channels from `first` on, for one row of the pass.
    fn convolve(&self, kernels: &VectorKernels, taps: usize, row: usize, first: usize, out: &mut [f32]) {
        let Source::Convolved { qkv, ring, weights } = &self.source else { return };
        // Rows lie far apart, so that no processor foresees what the next ones need.
        let ahead = (row + ROWS_AHEAD) * ring.channels + first;
        if let Some(ahead) = qkv.get(ahead..ahead + out.len()) {
            Ahead::of(ahead).ask();
        }
        let zeros = [0.0; CONV_BLOCK];
        for at in (0..out.len()).step_by(CONV_BLOCK) {
            let width = CONV_BLOCK.min(out.len() - at);
            let channels = first + at..first + at + width;
            let mut rows: [&[f32]; MAX_TAPS] = [&[]; MAX_TAPS];
            for (tap, input) in rows[..taps].iter_mut().enumerate() {
                let age = taps - 1 - tap;
                *input = if age <= row {
                    let start = (row - age) * ring.channels;
                    &qkv[start + channels.start..start + channels.end]
                } else if let Some(position) = (self.start + row).checked_sub(age) {
                    &ring.row(position)[channels.clone()]
                } else {
                    &zeros[..width]
                };
            }
            let weights = &weights[channels.start * taps..channels.end * taps];
            kernels.conv_silu(&rows[..taps], weights, &mut out[at..at + width]);
        }
    }
}

/// Beta and log decay of every row, `[rows][value_heads]`: computed here and nowhere else, in f32.
pub(super) fn gates(
    kernels: &VectorKernels,
    spec: &LinearSpec,
    parameters: LinearParameters<'_>,
    (raw_betas, raw_decays): (&[f32], &[f32]),
    betas: &mut [f32],
    decays: &mut [f32],
) {
    let Write::Delta { beta_max } = spec.write;
    betas.copy_from_slice(raw_betas);
    kernels.sigmoid(betas);
    kernels.scale(betas, beta_max);
    let heads = spec.value_heads;
    for (raw, decay) in raw_decays.chunks_exact(heads).zip(decays.chunks_exact_mut(heads)) {
        kernels.decay_gates(raw, parameters.dt_bias, parameters.a, decay);
    }
}
