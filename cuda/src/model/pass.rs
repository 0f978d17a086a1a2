//! One pass over the layers: which kernels run on which memory.

use std::sync::Arc;

use millpond::backend::BackendError;
use millpond::state::StateLayout;
use millpond::state::layout::MixerSlot;
use millpond_models::{AttentionSpec, FfnSpec, LayerSpec, ModelSpec, MoeSpec};
use millpond_simd::quant::QFormat;

use super::abi::{AttentionArgs, Forms, HeadNormArgs, MixExpertsArgs, RouteArgs};
use super::ops::{ExpertRows, FormBuffer, Input, Ops, Product, RowRange, span_room};
use super::weights::{
    DeviceAttention, DeviceFfn, DeviceGlu, DeviceLayer, DeviceLinear, DeviceMatrix, DeviceMixer, DeviceMtp,
    DeviceWeights,
};
use super::{failed, mixer_failed};
use crate::device::{Device, DeviceError, Memory};
use crate::linear::{Batch, LinearInputs, LinearLayer, Workspace};

/// Most bytes of attention's partial results; longer passes go through it in pieces.
const PARTIAL_BYTES: usize = 128 << 20;

/// What a pass works on, on the device.
pub(super) struct Pass {
    pub(super) rows: usize,
    /// Rows that products treat alike, in order.
    pub(super) ranges: Vec<RowRange>,
    /// `[rows]` token ids.
    pub(super) tokens: u64,
    /// `[rows]` [`super::abi::AttentionRow`].
    pub(super) attention_rows: u64,
    /// Addresses of pages.
    pub(super) page_table: u64,
    /// Past the last position of any row.
    pub(super) end: usize,
    /// For each shape of linear layers, its launches.
    pub(super) batches: Vec<Batch>,
    /// `[head_rows]` rows that want logits.
    pub(super) gather: u64,
    pub(super) head_rows: usize,
}

/// Block of memory that grows.
#[derive(Default)]
pub(super) struct Buffer(Option<Memory>);

impl Buffer {
    /// Makes room for `bytes` bytes; the content is lost where that takes a new block.
    pub(super) fn reserve(&mut self, device: &Arc<dyn Device>, bytes: usize) -> Result<(), DeviceError> {
        if self.0.as_ref().is_none_or(|memory| memory.bytes() < bytes) {
            // Freed first, so that the old and the new need not fit side by side.
            self.0 = None;
            self.0 = Some(Memory::new(device, bytes.max(1).next_multiple_of(1 << 12))?);
        }
        Ok(())
    }

    pub(super) fn memory(&self) -> &Memory {
        self.0.as_ref().expect("reserved before the pass")
    }

    pub(super) fn memory_mut(&mut self) -> &mut Memory {
        self.0.as_mut().expect("reserved before the pass")
    }

    pub(super) fn address(&self) -> u64 {
        self.memory().address()
    }

    fn address_or_none(&self) -> u64 {
        self.0.as_ref().map_or(0, Memory::address)
    }
}

/// Working memory of passes.
#[derive(Default)]
pub(super) struct Scratch {
    pub(super) residual: Buffer,
    /// Rows of the residual stream's width, normed.
    pub(super) normed: FormBuffer,
    /// What stands before the second projection of a mixer or feed-forward.
    inner: FormBuffer,
    /// The same of experts.
    expert_inner: FormBuffer,
    projections: [Buffer; 4],
    mixed: Buffer,
    partial: Buffer,
    partial_max: Buffer,
    partial_sum: Buffer,
    router: Buffer,
    choices: Buffer,
    choice_weights: Buffer,
    returned: Buffer,
    shared_gate: Buffer,
    /// Both halves of what the prediction head reads.
    joined: Buffer,
    joined_forms: FormBuffer,
    /// Hidden states given to the prediction head, and those that a pass returns.
    pub(super) hidden: Buffer,
    pub(super) logits: Buffer,
    workspace: Workspace,
}

/// Widths that working memory must have room for.
#[derive(Clone, Copy, Debug, Default)]
struct Widths {
    projections: [usize; 4],
    inner: usize,
    mixed: usize,
    heads: usize,
    head_values: usize,
    experts: usize,
    /// Experts of a row, and the values all of them compute for it.
    pairs: usize,
    expert_inner: usize,
}

/// Runs passes.
pub(super) struct Executor {
    pub(super) ops: Ops,
    pub(super) spec: Arc<ModelSpec>,
    pub(super) weights: DeviceWeights,
    pub(super) scratch: Scratch,
    /// For each attention layer, `[rotary / 2]` frequencies.
    pub(super) frequencies: Vec<Memory>,
    /// For each linear layer, the shape whose launches it takes.
    pub(super) shapes: Vec<usize>,
    widths: Widths,
}

impl Executor {
    pub(super) fn new(
        ops: Ops,
        spec: Arc<ModelSpec>,
        layout: &StateLayout,
        weights: DeviceWeights,
        shapes: Vec<usize>,
    ) -> Result<Executor, BackendError> {
        let mut frequencies = Vec::with_capacity(layout.attention.len());
        for layer in &layout.attention {
            frequencies.push(Memory::of(&ops.device, &rotary_frequencies(&layer.spec)).map_err(failed)?);
        }
        let widths = Widths::of(&spec, layout);
        Ok(Executor { ops, spec, weights, scratch: Scratch::default(), frequencies, shapes, widths })
    }

    /// Makes room for a pass of `rows` rows, `logits` of which want logits of `vocab` values.
    pub(super) fn reserve(
        &mut self,
        rows: usize,
        end: usize,
        logits: usize,
        vocab: usize,
    ) -> Result<(), BackendError> {
        let (device, widths, hidden) = (&self.ops.device, &self.widths, self.spec.hidden);
        let scratch = &mut self.scratch;
        let mut room = || -> Result<(), DeviceError> {
            scratch.residual.reserve(device, rows * hidden * 4)?;
            scratch.hidden.reserve(device, rows * hidden * 4)?;
            scratch.normed.reserve(device, rows, hidden)?;
            scratch.inner.reserve(device, rows, widths.inner)?;
            for (buffer, width) in scratch.projections.iter_mut().zip(widths.projections) {
                buffer.reserve(device, rows * width * 4)?;
            }
            scratch.mixed.reserve(device, rows * widths.mixed * 4)?;
            if widths.heads > 0 {
                let at_once = attention_rows(widths, end).min(rows);
                let spans = at_once * widths.heads * span_room(end);
                let values = at_once * widths.head_values * span_room(end);
                scratch.partial.reserve(device, values * 4)?;
                scratch.partial_max.reserve(device, spans * 4)?;
                scratch.partial_sum.reserve(device, spans * 4)?;
            }
            if widths.experts > 0 {
                let pairs = rows * widths.pairs;
                scratch.router.reserve(device, rows * widths.experts * 4)?;
                scratch.choices.reserve(device, pairs * 4)?;
                scratch.choice_weights.reserve(device, pairs * 4)?;
                scratch.returned.reserve(device, (pairs + rows) * hidden * 4)?;
                scratch.shared_gate.reserve(device, rows * 4)?;
                scratch.expert_inner.reserve(device, pairs, widths.expert_inner)?;
            }
            scratch.logits.reserve(device, logits * vocab * 4)
        };
        room().map_err(failed)
    }

    /// Where working memory stands: recorded launches are good as long as none of it moves.
    pub(super) fn addresses(&self) -> Vec<u64> {
        let s = &self.scratch;
        let buffers = [
            &s.residual,
            &s.mixed,
            &s.partial,
            &s.partial_max,
            &s.partial_sum,
            &s.router,
            &s.choices,
            &s.choice_weights,
            &s.returned,
            &s.shared_gate,
            &s.hidden,
            &s.logits,
        ];
        let forms = [&s.normed, &s.inner, &s.expert_inner];
        let buffers = buffers.into_iter().chain(&s.projections).map(Buffer::address_or_none);
        let forms = forms.into_iter().map(FormBuffer::address);
        buffers.chain(forms).chain(s.workspace.addresses()).collect()
    }

    pub(super) fn embed(&self, table: &DeviceMatrix, pass: &Pass) -> Result<(), BackendError> {
        let out = self.scratch.residual.address();
        self.ops.embed(table, pass.tokens, pass.rows, out).map_err(failed)
    }

    fn normed(&self, rows: usize, matrices: &[DeviceMatrix]) -> Forms {
        self.scratch.normed.forms(self.ops.arithmetic, rows, self.spec.hidden, formats(matrices))
    }

    fn inner(&self, rows: usize, matrix: &DeviceMatrix) -> Forms {
        self.scratch.inner.forms(self.ops.arithmetic, rows, matrix.cols, [matrix.format])
    }

    /// Norms the residual stream into the forms that `matrices` take.
    fn norm(&self, pass: &Pass, weight: u64, matrices: &[DeviceMatrix]) -> Result<Forms, BackendError> {
        let forms = self.normed(pass.rows, matrices);
        let x = (self.scratch.residual.address(), weight, 0);
        self.ops.norm(x, pass.rows, self.spec.norm_eps, forms).map_err(failed)?;
        Ok(forms)
    }

    /// The same, for products alone.
    fn norm_input(&self, pass: &Pass, weight: u64, matrices: &[DeviceMatrix]) -> Result<Input, BackendError> {
        let forms = self.normed(pass.rows, matrices);
        let x = (self.scratch.residual.address(), weight);
        self.ops.normed(&pass.ranges, x, self.spec.norm_eps, matrices, forms).map_err(failed)
    }

    /// Adds a product to the residual stream.
    fn add(&self, pass: &Pass, x: Input, matrix: DeviceMatrix) -> Result<(), BackendError> {
        let out = self.scratch.residual.address();
        let product = Product { matrix, out, out_stride: self.spec.hidden };
        self.ops.multiply(&pass.ranges, x, &[product], true).map_err(failed)
    }

    /// Products of one set of rows, each to a buffer of its own.
    fn project(&self, pass: &Pass, x: Input, matrices: &[DeviceMatrix]) -> Result<(), BackendError> {
        let product = |(matrix, buffer): (&DeviceMatrix, &Buffer)| Product {
            matrix: *matrix,
            out: buffer.address(),
            out_stride: matrix.rows,
        };
        let products: Vec<Product> = matrices.iter().zip(&self.scratch.projections).map(product).collect();
        self.ops.multiply(&pass.ranges, x, &products, false).map_err(failed)
    }

    /// One layer over the batch.
    pub(super) fn layer(
        &mut self,
        spec: &LayerSpec,
        weights: &DeviceLayer,
        slot: MixerSlot,
        layout: &StateLayout,
        linear: &mut [LinearLayer],
        pass: &Pass,
    ) -> Result<(), BackendError> {
        match (&weights.mixer, slot) {
            (DeviceMixer::Linear(mixer), MixerSlot::Linear(index)) => {
                self.linear(index, weights.mixer_norm, mixer, &mut linear[index], pass)?;
            }
            (DeviceMixer::Attention(mixer), MixerSlot::Attention(index)) => {
                self.attention(index, weights.mixer_norm, mixer, layout, pass)?;
            }
            _ => unreachable!("weights are loaded to the specification"),
        }
        self.feed_forward(&spec.ffn, weights.ffn_norm, &weights.ffn, pass)
    }

    fn linear(
        &mut self,
        index: usize,
        norm: u64,
        weights: &DeviceLinear,
        layer: &mut LinearLayer,
        pass: &Pass,
    ) -> Result<(), BackendError> {
        let matrices = [weights.qkv, weights.z, weights.beta, weights.alpha];
        let x = self.norm_input(pass, norm, &matrices)?;
        self.project(pass, x, &matrices)?;
        let Scratch { projections: [qkv, _, beta, alpha], mixed, workspace, .. } = &mut self.scratch;
        let inputs = LinearInputs { qkv: qkv.memory(), beta: beta.memory(), alpha: alpha.memory() };
        layer
            .forward(&pass.batches[self.shapes[index]], workspace, inputs, mixed.memory_mut())
            .map_err(mixer_failed)?;
        let (heads, dim) = (layer.spec().value_heads, layer.spec().value_dim);
        let out = self.inner(pass.rows, &weights.out);
        let args = HeadNormArgs {
            x: self.scratch.mixed.address(),
            gate: self.scratch.projections[1].address(),
            weight: weights.norm,
            out,
            heads: heads as i32,
            dim: dim as i32,
            padded_dim: layer.padded_value_dim() as i32,
            eps: self.spec.norm_eps,
        };
        let out = self.ops.heads_normed(&pass.ranges, &args, &weights.out).map_err(failed)?;
        self.add(pass, out, weights.out)
    }

    fn attention(
        &self,
        index: usize,
        norm: u64,
        weights: &DeviceAttention,
        layout: &StateLayout,
        pass: &Pass,
    ) -> Result<(), BackendError> {
        let matrices = [weights.q, weights.k, weights.v];
        let x = self.norm_input(pass, norm, &matrices)?;
        self.project(pass, x, &matrices)?;
        let layer = &layout.attention[index];
        let spec = &layer.spec;
        let out = self.inner(pass.rows, &weights.out);
        let [q, k, v, _] = self.scratch.projections.each_ref().map(Buffer::address);
        let mut args = AttentionArgs {
            rows: pass.attention_rows,
            pages: pass.page_table,
            q,
            k,
            v,
            q_norm: weights.q_norm,
            k_norm: weights.k_norm,
            frequencies: self.frequencies[index].address(),
            queries: self.scratch.mixed.address(),
            partial: self.scratch.partial.address(),
            partial_max: self.scratch.partial_max.address(),
            partial_sum: self.scratch.partial_sum.address(),
            out,
            page_offset: layer.page_offset as u64,
            heads: spec.heads as i32,
            kv_heads: spec.kv_heads as i32,
            dim: spec.head_dim as i32,
            rotary: spec.rotary_dim as i32,
            gated: spec.output_gate as i32,
            first_row: 0,
            spans: span_room(pass.end) as i32,
            eps: self.spec.norm_eps,
            scale: (spec.head_dim as f32).sqrt().recip(),
            unused: 0,
        };
        self.ops.attention_prepare(pass.rows, &args).map_err(failed)?;
        let at_once = attention_rows(&self.widths, pass.end);
        for first in (0..pass.rows).step_by(at_once) {
            args.first_row = first as i32;
            self.ops.attend(at_once.min(pass.rows - first), &args).map_err(failed)?;
        }
        self.add(pass, out.into(), weights.out)
    }

    fn feed_forward(
        &self,
        spec: &FfnSpec,
        norm: u64,
        weights: &DeviceFfn,
        pass: &Pass,
    ) -> Result<(), BackendError> {
        match (weights, spec) {
            (DeviceFfn::Dense(glu), _) => {
                let x = self.norm_input(pass, norm, &[glu.gate, glu.up])?;
                let inner = self.glu(pass, x, glu)?;
                self.add(pass, inner, glu.down)
            }
            (DeviceFfn::Moe { router, experts, shared }, FfnSpec::Moe(spec)) => {
                let mut matrices = vec![*router, experts.gate, experts.up];
                if let Some((glu, gate)) = shared {
                    matrices.extend([glu.gate, glu.up, *gate]);
                }
                let x = self.norm(pass, norm, &matrices)?;
                self.experts(spec, pass, x, router, experts, shared.as_ref())
            }
            (DeviceFfn::Moe { .. }, FfnSpec::Dense { .. }) => {
                unreachable!("weights are loaded to the specification")
            }
        }
    }

    /// `silu(gate(x)) * up(x)`, ready for the last matrix.
    fn glu(&self, pass: &Pass, x: Input, weights: &DeviceGlu) -> Result<Input, BackendError> {
        self.project(pass, x, &[weights.gate, weights.up])?;
        let inner = self.inner(pass.rows, &weights.down);
        let [gate, up, ..] = self.scratch.projections.each_ref().map(Buffer::address);
        self.ops.activated(&pass.ranges, (up, gate), &weights.down, inner).map_err(failed)
    }

    fn experts(
        &self,
        spec: &MoeSpec,
        pass: &Pass,
        x: Forms,
        router: &DeviceMatrix,
        experts: &DeviceGlu,
        shared: Option<&(DeviceGlu, DeviceMatrix)>,
    ) -> Result<(), BackendError> {
        let scratch = &self.scratch;
        let pairs = pass.rows * spec.top_k;
        let scores = Product { matrix: *router, out: scratch.router.address(), out_stride: router.rows };
        self.ops.multiply(&pass.ranges, x.into(), &[scores], false).map_err(failed)?;
        let route = RouteArgs {
            scores: scratch.router.address(),
            choices: scratch.choices.address(),
            weights: scratch.choice_weights.address(),
            experts: spec.experts as i32,
            top_k: spec.top_k as i32,
            normalize: spec.normalize_weights as i32,
            rows: pass.rows as i32,
        };
        self.ops.route(&route).map_err(failed)?;
        let [gate, up, ..] = scratch.projections.each_ref().map(Buffer::address);
        let choices = scratch.choices.address();
        let rows = ExpertRows { choices, rows: pairs, pairs: spec.top_k };
        let product = |matrix: DeviceMatrix, out| Product { matrix, out, out_stride: matrix.rows };
        let products = [product(experts.gate, gate), product(experts.up, up)];
        self.ops.multiply_experts(rows, x, &products).map_err(failed)?;
        let down = experts.down;
        let inner = scratch.expert_inner.forms(self.ops.arithmetic, pairs, down.cols, [down.format]);
        self.ops.activate(up, gate, pairs, inner).map_err(failed)?;
        let returned = scratch.returned.address();
        let rows = ExpertRows { pairs: 1, ..rows };
        self.ops.multiply_experts(rows, inner, &[product(down, returned)]).map_err(failed)?;
        let shared_out = returned + (pairs * self.spec.hidden * 4) as u64;
        if let Some((glu, gate)) = shared {
            let inner = self.glu(pass, x.into(), glu)?;
            let gate_out = Product { matrix: *gate, out: scratch.shared_gate.address(), out_stride: 1 };
            self.ops.multiply(&pass.ranges, x.into(), &[gate_out], false).map_err(failed)?;
            let down = product(glu.down, shared_out);
            self.ops.multiply(&pass.ranges, inner, &[down], false).map_err(failed)?;
        }
        let mix = MixExpertsArgs {
            returned,
            weights: scratch.choice_weights.address(),
            shared: if shared.is_some() { shared_out } else { 0 },
            shared_gate: scratch.shared_gate.address(),
            out: scratch.residual.address(),
            top_k: spec.top_k as i32,
            cols: self.spec.hidden as i32,
        };
        self.ops.mix_experts(pass.rows, &mix).map_err(failed)
    }

    /// Final norm of every row as floats to `scratch.hidden`, if asked for, and logits of the rows that want them.
    pub(super) fn head(
        &self,
        pass: &Pass,
        norm: u64,
        output: &DeviceMatrix,
        want_hidden: bool,
    ) -> Result<(), BackendError> {
        let (hidden, eps) = (self.spec.hidden, self.spec.norm_eps);
        let residual = self.scratch.residual.address();
        if want_hidden {
            let to = (self.scratch.hidden.address(), hidden);
            self.ops.norm_plain((residual, norm), (pass.rows, hidden), eps, to).map_err(failed)?;
        }
        if pass.head_rows == 0 {
            return Ok(());
        }
        let forms = self.normed(pass.head_rows, &[*output]);
        self.ops.norm((residual, norm, pass.gather), pass.head_rows, eps, forms).map_err(failed)?;
        let out = self.scratch.logits.address();
        let product = Product { matrix: *output, out, out_stride: output.rows };
        // Logits never take the tiled kernel: a row's bits are then the same in a prompt and in decoding.
        let rows = RowRange { first: 0, rows: pass.head_rows, prompt: false };
        self.ops.multiply(&[rows], forms.into(), &[product], false).map_err(failed)
    }

    /// What the prediction head's layer reads: the normed embeddings beside the normed hidden states, which stand in
    /// `scratch.hidden`, through one matrix.
    pub(super) fn join(&mut self, mtp: &DeviceMtp, pass: &Pass) -> Result<(), BackendError> {
        let (hidden, eps, rows) = (self.spec.hidden, self.spec.norm_eps, pass.rows);
        self.scratch.joined.reserve(&self.ops.device, rows * 2 * hidden * 4).map_err(failed)?;
        self.scratch.joined_forms.reserve(&self.ops.device, rows, 2 * hidden).map_err(failed)?;
        self.embed(&mtp.embedding, pass)?;
        let scratch = &self.scratch;
        let (joined, shape) = (scratch.joined.address(), (rows, hidden));
        let embedded = (scratch.residual.address(), mtp.embedding_norm);
        self.ops.norm_plain(embedded, shape, eps, (joined, 2 * hidden)).map_err(failed)?;
        let states = (scratch.hidden.address(), mtp.hidden_norm);
        let second = (joined + 4 * hidden as u64, 2 * hidden);
        self.ops.norm_plain(states, shape, eps, second).map_err(failed)?;
        let forms = scratch.joined_forms.forms(self.ops.arithmetic, rows, 2 * hidden, [mtp.fc.format]);
        self.ops.activate(joined, 0, rows, forms).map_err(failed)?;
        let product = Product { matrix: mtp.fc, out: scratch.residual.address(), out_stride: hidden };
        self.ops.multiply(&pass.ranges, forms.into(), &[product], false).map_err(failed)
    }
}

/// Rows whose partial results of attention are held at once.
fn attention_rows(widths: &Widths, end: usize) -> usize {
    let bytes = widths.head_values * 4 * span_room(end);
    (PARTIAL_BYTES / bytes.max(1)).max(1)
}

fn formats(matrices: &[DeviceMatrix]) -> impl Iterator<Item = QFormat> {
    matrices.iter().map(|matrix| matrix.format)
}

/// Frequencies of the rotary embedding, rounded as the CPU backend rounds them.
fn rotary_frequencies(spec: &AttentionSpec) -> Vec<f32> {
    let frequency =
        |i: usize| (spec.rope_theta as f64).powf(-((2 * i) as f64) / spec.rotary_dim as f64) as f32;
    (0..spec.rotary_dim / 2).map(frequency).collect()
}

impl Widths {
    fn of(spec: &ModelSpec, layout: &StateLayout) -> Widths {
        let mut widths = Widths::default();
        let raise = |width: &mut usize, to: usize| *width = (*width).max(to);
        for layer in &layout.linear {
            let spec = &layer.spec;
            let inner = spec.value_heads * spec.value_dim;
            for (width, to) in widths.projections.iter_mut().zip([
                spec.conv_channels(),
                inner,
                spec.value_heads,
                spec.value_heads,
            ]) {
                raise(width, to);
            }
            raise(&mut widths.inner, inner);
            // Heads are padded to whole blocks of values.
            raise(&mut widths.mixed, spec.value_heads * spec.value_dim.next_multiple_of(32));
        }
        for layer in &layout.attention {
            let spec = &layer.spec;
            let (inner, kv) = (spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim);
            let gated = if spec.output_gate { 2 } else { 1 };
            for (width, to) in widths.projections.iter_mut().zip([gated * inner, kv, kv]) {
                raise(width, to);
            }
            raise(&mut widths.inner, inner);
            raise(&mut widths.mixed, inner);
            raise(&mut widths.heads, spec.heads);
            raise(&mut widths.head_values, inner);
        }
        for layer in spec.layers.iter().chain(spec.mtp.iter().map(|mtp| &mtp.layer)) {
            let (gate, inner) = match &layer.ffn {
                FfnSpec::Dense { width } => (*width, *width),
                FfnSpec::Moe(moe) => {
                    raise(&mut widths.experts, moe.experts);
                    raise(&mut widths.pairs, moe.top_k);
                    raise(&mut widths.expert_inner, moe.expert_width);
                    (moe.shared_width.max(moe.top_k * moe.expert_width), moe.shared_width)
                }
            };
            raise(&mut widths.projections[0], gate);
            raise(&mut widths.projections[1], gate);
            raise(&mut widths.inner, inner);
        }
        widths
    }
}
