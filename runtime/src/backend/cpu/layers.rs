//! What a layer does to a batch: norm, mixer, norm, feed-forward.

use millpond_models::{AttentionSpec, FfnSpec, LayerSpec, LinearSpec, ModelSpec};
use millpond_simd::kernels::Kernels;
use millpond_simd::quant::dequantize_row;

use super::attention::{self, AttentionRows, RotaryTable};
use super::ffn::{self, Call, Normed};
use super::forward::{Running, Scratch, SegmentScratch};
use super::linear::{self, LinearStream, RowInputs};
use super::project::{Arithmetic, Products, project};
use super::scratch::grown;
use crate::par::{each_chunk, join};
use crate::state::layout::{MixerSlot, StateLayout};
use crate::weights::{
    AttentionWeights, FfnWeights, LayerWeights, LinearInput, LinearWeights, Matrix, MixerWeights,
    ModelWeights,
};

/// What every layer of a pass reads.
pub(super) struct Context<'a> {
    pub(super) spec: &'a ModelSpec,
    pub(super) weights: &'a ModelWeights,
    pub(super) kernels: &'static Kernels,
    pub(super) layout: &'a StateLayout,
    pub(super) rotary: &'a [RotaryTable],
    pub(super) arithmetic: Arithmetic,
}

impl Context<'_> {
    pub(super) fn products(&self) -> Products {
        Products { kernels: self.kernels.matmul, arithmetic: self.arithmetic }
    }

    /// Embeds tokens into the residual stream.
    pub(super) fn embed(&self, embedding: &Matrix, tokens: impl Iterator<Item = u32>, scratch: &mut Scratch) {
        let hidden = self.spec.hidden;
        for (row, token) in tokens.enumerate() {
            let residual = grown(&mut scratch.residual, (row + 1) * hidden);
            let bytes = embedding.row_range(token as usize..token as usize + 1);
            let row = &mut residual[row * hidden..];
            dequantize_row(embedding.format(), bytes, row).expect("rows of a matrix are whole blocks");
        }
    }

    /// `out[row] = rms_norm(x[row]) * weight`.
    pub(super) fn norm_rows(&self, x: &[f32], weight: &[f32], out: &mut [f32]) {
        let width = weight.len();
        each_chunk(out, width, 4, |row, out| {
            let x = &x[row * width..(row + 1) * width];
            self.kernels.vector.rms_norm(x, weight, self.spec.norm_eps, out);
        });
    }

    /// One layer over the batch.
    pub(super) fn layer(
        &self,
        spec: &LayerSpec,
        weights: &LayerWeights,
        slot: MixerSlot,
        running: &mut [Running<'_>],
        rows: usize,
        scratch: &mut Scratch,
    ) {
        let len = rows * self.spec.hidden;
        grown(&mut scratch.added, len);
        grown(&mut scratch.normed, len);
        let norm = &weights.mixer_norm;
        match (&weights.mixer, slot) {
            (MixerWeights::Linear(mixer), MixerSlot::Linear(index)) => {
                self.linear(index, mixer, norm, running, rows, scratch);
            }
            (MixerWeights::Attention(mixer), MixerSlot::Attention(index)) => {
                self.attention(index, mixer, norm, running, rows, scratch);
            }
            _ => unreachable!("weights are loaded to the specification"),
        }
        self.add(len, scratch);
        self.feed_forward(&spec.ffn, &weights.ffn, &weights.ffn_norm, rows, scratch);
        self.add(len, scratch);
    }

    /// Adds what a mixer or feed-forward returned to the residual stream.
    fn add(&self, len: usize, scratch: &mut Scratch) {
        self.kernels.vector.add_assign(&mut scratch.residual[..len], &scratch.added[..len]);
    }

    /// `out[row] = rms_norm(residual[row]) * weight`, one row.
    fn norm<'a>(&'a self, residual: &'a [f32], weight: &'a [f32]) -> impl Fn(usize, &mut [f32]) + Sync + 'a {
        move |row, out| {
            let x = &residual[row * weight.len()..(row + 1) * weight.len()];
            self.kernels.vector.rms_norm(x, weight, self.spec.norm_eps, out);
        }
    }

    fn feed_forward(
        &self,
        spec: &FfnSpec,
        weights: &FfnWeights,
        norm: &[f32],
        rows: usize,
        scratch: &mut Scratch,
    ) {
        let len = rows * self.spec.hidden;
        let moe = if let FfnSpec::Moe(moe) = spec { Some(moe) } else { None };
        let Scratch { residual, normed, inputs, ffn, added, .. } = scratch;
        let call = Call { kernels: self.kernels, products: self.products(), rows };
        let normed = Normed { values: &mut normed[..len], norm: &self.norm(residual, norm) };
        ffn::run(call, moe, weights, normed, inputs, ffn, &mut added[..len]);
    }

    /// A linear mixer over the batch: projections for all rows together, the state sequence by sequence.
    fn linear(
        &self,
        index: usize,
        weights: &LinearWeights,
        norm: &[f32],
        running: &mut [Running<'_>],
        rows: usize,
        scratch: &mut Scratch,
    ) {
        let spec = &self.layout.linear[index].spec;
        let (channels, inner, heads) =
            (spec.conv_channels(), spec.value_heads * spec.value_dim, spec.value_heads);
        let len = rows * self.spec.hidden;
        self.project_linear(spec, weights, norm, rows, scratch);
        let Scratch {
            projections: [qkv, z, beta, alpha, _],
            mixed,
            gated,
            mixed_inputs,
            added,
            segments,
            ..
        } = scratch;
        let mixed = grown(mixed, rows * inner);
        for i in 1..running.len() {
            if let Some(plan) = running[i].plan {
                running[i - 1].next = linear::first_unit(self.layout, index, plan, &running[i].memory);
            }
        }
        each_sequence(running, segments, [(mixed, inner)], &|sequence, scratch, [out]| {
            let Some(plan) = sequence.plan else { return };
            let range = |width: usize| sequence.first * width..(sequence.first + sequence.rows) * width;
            let stream = LinearStream {
                next: sequence.next,
                plan,
                placement: &sequence.placement,
                memory: &mut sequence.memory,
                scratch: &mut scratch.linear,
                inputs: RowInputs::Projected {
                    qkv: &qkv[range(channels)],
                    beta: &beta[range(heads)],
                    alpha: &alpha[range(heads)],
                },
                out,
            };
            linear::mix(self.kernels, self.layout, index, weights.into(), stream);
        });
        let (width, z) = (spec.value_dim, &z[..rows * inner]);
        mixed_inputs.make(
            self.products(),
            grown(gated, rows * inner),
            inner,
            [&weights.out],
            |row, gated| {
                let (mixed, z) = (&mixed[row * inner..], &z[row * inner..]);
                let heads = mixed.chunks_exact(width).zip(z.chunks_exact(width));
                for (out, (head, z)) in gated.chunks_exact_mut(width).zip(heads) {
                    self.kernels.vector.gated_rms_norm(head, z, &weights.norm, self.spec.norm_eps, out);
                }
            },
        );
        project(self.products(), mixed_inputs, [(&weights.out, &mut added[..len])]);
    }

    /// Queries, keys and values, gate, beta and alpha of all rows, each part in a buffer of its own.
    fn project_linear(
        &self,
        spec: &LinearSpec,
        weights: &LinearWeights,
        norm: &[f32],
        rows: usize,
        scratch: &mut Scratch,
    ) {
        let products = self.products();
        let hidden = self.spec.hidden;
        let (channels, inner, heads) =
            (spec.conv_channels(), spec.value_heads * spec.value_dim, spec.value_heads);
        let Scratch { residual, normed, inputs, projections: [qkv, z, beta, alpha, fused], .. } = scratch;
        let (normed, norm) = (&mut normed[..rows * hidden], self.norm(residual, norm));
        let qkv = grown(qkv, rows * channels);
        let z = grown(z, rows * inner);
        let beta = grown(beta, rows * heads);
        let alpha = grown(alpha, rows * heads);
        match &weights.input {
            LinearInput::Split { qkv: wqkv, z: wz, beta: wbeta, alpha: walpha } => {
                inputs.make(products, normed, hidden, [wqkv, wz, wbeta, walpha], norm);
                project(products, inputs, [(wqkv, qkv), (wz, z), (wbeta, beta), (walpha, alpha)]);
            }
            LinearInput::SplitFusedGates { qkv: wqkv, z: wz, ba } => {
                let both = grown(fused, rows * 2 * heads);
                inputs.make(products, normed, hidden, [wqkv, wz, ba], norm);
                project(products, inputs, [(wqkv, qkv), (wz, z), (ba, &mut *both)]);
                split_gates(spec, both, beta, alpha);
            }
            LinearInput::ByKeyHead { qkvz, ba } => {
                let joined = grown(fused, rows * (channels + inner + 2 * heads));
                let (joined, both) = joined.split_at_mut(rows * (channels + inner));
                inputs.make(products, normed, hidden, [qkvz, ba], norm);
                project(products, inputs, [(qkvz, &mut *joined), (ba, &mut *both)]);
                split_by_key_head(spec, joined, qkv, z);
                split_gates(spec, both, beta, alpha);
            }
        }
    }

    /// An attention mixer over the batch.
    fn attention(
        &self,
        index: usize,
        weights: &AttentionWeights,
        norm: &[f32],
        running: &mut [Running<'_>],
        rows: usize,
        scratch: &mut Scratch,
    ) {
        let layout = &self.layout.attention[index];
        let spec: &AttentionSpec = &layout.spec;
        let (hidden, products) = (self.spec.hidden, self.products());
        let q_width = spec.heads * spec.head_dim * if spec.output_gate { 2 } else { 1 };
        let (kv_width, inner) = (spec.kv_heads * spec.head_dim, spec.heads * spec.head_dim);
        let Scratch {
            residual,
            normed,
            inputs,
            projections: [q, k, v, ..],
            mixed,
            mixed_inputs,
            added,
            segments,
            ..
        } = scratch;
        let q = grown(q, rows * q_width);
        let k = grown(k, rows * kv_width);
        let v = grown(v, rows * kv_width);
        let normed = &mut normed[..rows * hidden];
        let matrices = [&weights.q, &weights.k, &weights.v];
        inputs.make(products, normed, hidden, matrices, self.norm(residual, norm));
        project(products, inputs, [(&weights.q, &mut *q), (&weights.k, &mut *k), (&weights.v, &mut *v)]);
        let mixed = grown(mixed, rows * inner);
        each_sequence(running, segments, [(mixed, inner), (k, kv_width)], &|sequence, scratch, [out, k]| {
            let range = |width: usize| sequence.first * width..(sequence.first + sequence.rows) * width;
            let rows = AttentionRows { q: &q[range(q_width)], k, v: &v[range(kv_width)], out };
            attention::mix(
                self.kernels,
                layout,
                weights,
                &self.rotary[index],
                self.spec.norm_eps,
                sequence.start,
                &mut sequence.memory,
                &mut scratch.attention,
                rows,
            );
        });
        mixed_inputs.set(products, mixed, rows, inner, [&weights.out]);
        project(products, mixed_inputs, [(&weights.out, &mut added[..rows * hidden])]);
    }
}

/// Calls `work` for every sequence of the batch, in parallel, with its rows of some `[rows][width]` values.
fn each_sequence<const N: usize>(
    running: &mut [Running<'_>],
    scratch: &mut [SegmentScratch],
    values: [(&mut [f32], usize); N],
    work: &(impl Fn(&mut Running<'_>, &mut SegmentScratch, [&mut [f32]; N]) + Sync),
) {
    match running {
        [] => {}
        [sequence] => work(sequence, &mut scratch[0], values.map(|(values, _)| values)),
        _ => {
            let (first, second) = running.split_at_mut(running.len() / 2);
            let (first_scratch, second_scratch) = scratch.split_at_mut(first.len());
            let rows: usize = first.iter().map(|sequence| sequence.rows).sum();
            let (mut left, mut right) = (values, std::array::from_fn(|_| (Default::default(), 0)));
            for (left, right) in left.iter_mut().zip(&mut right) {
                let (values, width) = (std::mem::take(&mut left.0), left.1);
                let (before, after) = values.split_at_mut(rows * width);
                (left.0, *right) = (before, (after, width));
            }
            join(
                || each_sequence(first, first_scratch, left, work),
                || each_sequence(second, second_scratch, right, work),
            );
        }
    }
}

/// From `[rows][key_heads][beta (r), alpha (r)]` to `[rows][value_heads]` each.
fn split_gates(spec: &LinearSpec, both: &[f32], beta: &mut [f32], alpha: &mut [f32]) {
    let group = spec.value_heads / spec.key_heads;
    let parts = both.chunks_exact(2 * group);
    for ((both, beta), alpha) in parts.zip(beta.chunks_exact_mut(group)).zip(alpha.chunks_exact_mut(group)) {
        beta.copy_from_slice(&both[..group]);
        alpha.copy_from_slice(&both[group..]);
    }
}

/// From `[rows][key_heads][q, k, v (r), z (r)]` to `[rows][q.., k.., v..]` and `[rows][z..]`.
fn split_by_key_head(spec: &LinearSpec, joined: &[f32], qkv: &mut [f32], z: &mut [f32]) {
    let group = spec.value_heads / spec.key_heads * spec.value_dim;
    let (dk, keys) = (spec.key_dim, spec.key_heads * spec.key_dim);
    let (channels, inner) = (spec.conv_channels(), spec.value_heads * spec.value_dim);
    let rows = joined.chunks_exact(channels + inner);
    for ((joined, qkv), z) in rows.zip(qkv.chunks_exact_mut(channels)).zip(z.chunks_exact_mut(inner)) {
        for (head, part) in joined.chunks_exact(2 * dk + 2 * group).enumerate() {
            qkv[head * dk..(head + 1) * dk].copy_from_slice(&part[..dk]);
            qkv[keys + head * dk..keys + (head + 1) * dk].copy_from_slice(&part[dk..2 * dk]);
            let value = 2 * keys + head * group;
            qkv[value..value + group].copy_from_slice(&part[2 * dk..2 * dk + group]);
            z[head * group..(head + 1) * group].copy_from_slice(&part[2 * dk + group..]);
        }
    }
}
