//! The CPU backend: walks the layers of a model over a batch of sequences.

mod attention;
mod ffn;
mod head;
pub mod linear;
mod project;
mod scratch;

use std::sync::Arc;

use millpond_models::{AttentionSpec, Decay, FfnSpec, LayerSpec, LinearSpec, ModelSpec};
use millpond_simd::kernels::Kernels;
use millpond_simd::quant::dequantize_row;
use rayon::prelude::*;

use super::{Backend, BackendError, MtpSegment, Outputs, Segment, Slot, WantLogits};
use crate::par::Team;
use crate::state::layout::{MixerSlot, PAGE_POSITIONS, StateLayout};
use crate::state::memory::{KvType, MemoryUsage, SequenceMemory};
use crate::state::{PassKind, PassPlan};
use crate::weights::{
    AttentionWeights, FfnWeights, LayerWeights, LinearInput, LinearWeights, Matrix, MixerWeights,
    ModelWeights,
};
use attention::{AttentionRows, AttentionScratch, RotaryTable};
use ffn::FfnScratch;
use linear::{LinearScratch, LinearStream, Placement, RowInputs};
pub use project::Arithmetic;
use project::{Inputs, Products, project};
use scratch::{Buffer, grown};

/// How the CPU backend is set up.
#[derive(Clone, Copy, Debug)]
pub struct CpuOptions {
    /// Precision of the attention cache.
    pub kv_type: KvType,
    /// Most rows of a window that may be rolled back: one plus the longest draft.
    pub max_window: usize,
    /// Log entries kept for, once there is a base: the fold interval.
    pub fold_interval: usize,
    /// What quantised weights are multiplied with.
    pub arithmetic: Arithmetic,
}

/// A model on the CPU with the sequences that use it.
pub struct CpuBackend {
    spec: Arc<ModelSpec>,
    weights: Arc<ModelWeights>,
    kernels: &'static Kernels,
    team: Team,
    options: CpuOptions,
    layout: StateLayout,
    rotary: Vec<RotaryTable>,
    sequences: Vec<Option<SequenceMemory>>,
    scratch: Scratch,
}

/// Working memory of a pass.
#[derive(Default)]
struct Scratch {
    residual: Buffer,
    normed: Buffer,
    inputs: Inputs,
    projections: [Buffer; 5],
    mixed: Buffer,
    gated: Buffer,
    mixed_inputs: Inputs,
    added: Buffer,
    ffn: FfnScratch,
    segments: Vec<SegmentScratch>,
    head: Buffer,
}

/// Working memory of one sequence in a pass.
#[derive(Default)]
struct SegmentScratch {
    linear: LinearScratch,
    attention: AttentionScratch,
}

/// Whose rows a pass takes, and where they stand.
struct Part<'a> {
    slot: Slot,
    /// Windows and folds; absent where no linear layer is passed.
    plan: Option<&'a PassPlan>,
    start: usize,
    rows: usize,
}

/// One sequence of a batch while a pass runs over it.
struct Running<'a> {
    memory: &'a mut SequenceMemory,
    plan: Option<&'a PassPlan>,
    placement: Placement,
    start: usize,
    rows: usize,
    /// First row in the batch.
    first: usize,
}

impl CpuBackend {
    /// A backend for a model.
    ///
    /// # Errors
    /// [`BackendError::Unsupported`] for shapes the kernels do not know.
    pub fn new(
        spec: Arc<ModelSpec>,
        weights: Arc<ModelWeights>,
        kernels: &'static Kernels,
        team: Team,
        options: CpuOptions,
    ) -> Result<CpuBackend, BackendError> {
        let layout = StateLayout::new(&spec);
        check_shapes(&layout)?;
        let rotary = layout.attention.iter().map(|layer| RotaryTable::new(&layer.spec)).collect();
        Ok(CpuBackend {
            spec,
            weights,
            kernels,
            team,
            options,
            layout,
            rotary,
            sequences: Vec::new(),
            scratch: Scratch::default(),
        })
    }

    /// Shapes of the sequences' memory.
    pub fn layout(&self) -> &StateLayout {
        &self.layout
    }

    /// The kernels in use.
    pub fn kernels(&self) -> &'static Kernels {
        self.kernels
    }

    /// The memory of a sequence, to save it.
    ///
    /// # Errors
    /// [`BackendError::Slot`] for an unknown slot.
    pub fn memory(&self, slot: Slot) -> Result<&SequenceMemory, BackendError> {
        self.sequences.get(slot.0).and_then(Option::as_ref).ok_or(BackendError::Slot(slot.0))
    }

    /// The memory of a sequence, writable: what lies beyond its cursor may be overwritten, the rest must not.
    ///
    /// # Errors
    /// [`BackendError::Slot`] for an unknown slot.
    pub fn memory_mut(&mut self, slot: Slot) -> Result<&mut SequenceMemory, BackendError> {
        self.sequences.get_mut(slot.0).and_then(Option::as_mut).ok_or(BackendError::Slot(slot.0))
    }

    /// Puts memory into a slot of its own: a restored or forked sequence.
    pub fn adopt(&mut self, memory: SequenceMemory) -> Slot {
        let free = self.sequences.iter().position(Option::is_none).unwrap_or(self.sequences.len());
        if free == self.sequences.len() {
            self.sequences.push(None);
        }
        self.sequences[free] = Some(memory);
        Slot(free)
    }

    fn check(&self, segments: &[Segment<'_>]) -> Result<(), BackendError> {
        for (i, segment) in segments.iter().enumerate() {
            let Segment { slot, tokens, plan, .. } = segment;
            self.memory(*slot)?;
            if segments[..i].iter().any(|other| other.slot == *slot) {
                return Err(BackendError::Slot(slot.0));
            }
            if tokens.len() != plan.rows {
                return Err(BackendError::Segment { tokens: tokens.len(), rows: plan.rows });
            }
            if plan.kind == PassKind::Window && plan.rows > self.options.max_window {
                return Err(BackendError::Window { rows: plan.rows, max: self.options.max_window });
            }
            self.check_tokens(tokens)?;
        }
        Ok(())
    }

    fn check_tokens(&self, tokens: &[u32]) -> Result<(), BackendError> {
        match tokens.iter().find(|&&token| token as usize >= self.spec.vocab) {
            Some(&token) => Err(BackendError::Token { token, vocab: self.spec.vocab }),
            None => Ok(()),
        }
    }

    /// Gives every sequence of the batch the memory its rows need.
    fn make_room(&mut self, segments: &[Segment<'_>]) -> Result<(), BackendError> {
        for segment in segments {
            let plan = segment.plan;
            let end = plan.start + plan.rows;
            self.rotary.iter_mut().for_each(|table| table.extend(end));
            let Some(memory) = self.sequences[segment.slot.0].as_mut() else { continue };
            memory.prepare_pages(&self.layout, plan.start, end);
            if plan.durably_folded() > 0 {
                memory.base_mut(&self.layout)?;
            }
            let capacity = log_capacity(plan, memory.log_capacity(), &self.options);
            if capacity != memory.log_capacity() {
                memory.resize_logs(&self.layout, capacity, plan.log);
            }
        }
        Ok(())
    }

    /// Runs `work` on the team over the rows of a batch whose slots were checked; it gets the sequences, the number of
    /// rows, and the working memory.
    fn pass<'p>(
        &mut self,
        parts: impl Iterator<Item = Part<'p>> + Clone,
        work: impl FnOnce(&Context<'_>, &mut [Running<'_>], usize, &mut Scratch) + Send,
    ) {
        let mut taken = take_memories(&mut self.sequences, parts.clone().map(|part| part.slot));
        let mut running = Vec::with_capacity(taken.len());
        let mut first = 0;
        for (Part { plan, start, rows, .. }, (_, memory)) in parts.zip(&mut taken) {
            let placement = plan.map(Placement::new).unwrap_or_default();
            running.push(Running { memory, plan, placement, start, rows, first });
            first += rows;
        }
        let scratch = &mut self.scratch;
        if scratch.segments.len() < running.len() {
            scratch.segments.resize_with(running.len(), SegmentScratch::default);
        }
        let context = Context {
            spec: &self.spec,
            weights: &self.weights,
            kernels: self.kernels,
            layout: &self.layout,
            rotary: &self.rotary,
            arithmetic: self.options.arithmetic,
        };
        self.team.run(|| work(&context, &mut running, first, scratch));
        drop(running);
        put_memories(&mut self.sequences, taken);
    }
}

/// Refuses shapes beyond what the kernels are written for.
fn check_shapes(layout: &StateLayout) -> Result<(), BackendError> {
    let unsupported =
        |what: &'static str, found: usize, max: usize| Err(BackendError::Unsupported { what, found, max });
    for layer in &layout.linear {
        if layer.spec.conv_width > linear::MAX_TAPS {
            return unsupported("taps of the convolution", layer.spec.conv_width, linear::MAX_TAPS);
        }
        if layer.spec.decay != Decay::PerHead {
            return unsupported("decays per head", layer.spec.key_dim, 1);
        }
    }
    for layer in &layout.attention {
        let group = layer.spec.heads / layer.spec.kv_heads;
        if group > attention::MAX_GROUP {
            return unsupported("query heads of a key/value head", group, attention::MAX_GROUP);
        }
    }
    Ok(())
}

/// Entries the logs of a sequence should have room for during and after a pass.
///
/// A sequence with a base needs room for a fold interval and two windows (one confirmed beyond a fold position, one
/// pending). One without grows with its length, in small steps. Rows of a prompt pass through scratch memory, so
/// only what they leave behind counts.
fn log_capacity(plan: &PassPlan, current: usize, options: &CpuOptions) -> usize {
    const STEP: usize = 8;
    let settled = options.fold_interval + 2 * options.max_window;
    let during = match plan.kind {
        PassKind::Window => plan.log + plan.rows,
        PassKind::Prefill => plan.log.max(plan.log_after()),
    };
    if plan.has_base_after() && during <= settled {
        settled
    } else if plan.has_base_after() || during > current {
        during.next_multiple_of(STEP)
    } else {
        current
    }
}

impl Backend for CpuBackend {
    fn create(&mut self) -> Result<Slot, BackendError> {
        let memory = SequenceMemory::new(&self.layout, self.options.kv_type, self.options.max_window);
        Ok(self.adopt(memory))
    }

    fn release(&mut self, slot: Slot) {
        if let Some(memory) = self.sequences.get_mut(slot.0) {
            *memory = None;
        }
    }

    fn forward(&mut self, segments: &[Segment<'_>], outputs: &mut Outputs) -> Result<(), BackendError> {
        self.check(segments)?;
        self.make_room(segments)?;
        outputs.logits.clear();
        outputs.hidden.clear();
        outputs.residuals.clear();
        let parts = segments.iter().map(|segment| Part {
            slot: segment.slot,
            plan: Some(segment.plan),
            start: segment.plan.start,
            rows: segment.plan.rows,
        });
        self.pass(parts, |context, running, rows, scratch| {
            let tokens = segments.iter().flat_map(|segment| segment.tokens.iter().copied());
            context.embed(&context.weights.embedding, tokens, scratch);
            let layers = context.spec.layers.iter().zip(&context.weights.layers).zip(&context.layout.slots);
            for ((spec, weights), &slot) in layers {
                if outputs.want_residuals {
                    outputs.residuals.push(scratch.residual[..rows * context.spec.hidden].to_vec());
                }
                context.layer(spec, weights, slot, running, rows, scratch);
            }
            context.head(segments, rows, scratch, outputs);
        });
        Ok(())
    }

    fn forward_mtp(
        &mut self,
        segments: &[MtpSegment<'_>],
        outputs: &mut Outputs,
    ) -> Result<(), BackendError> {
        if self.weights.mtp.is_none() || self.layout.mtp.is_none() {
            return Err(BackendError::NoMtp);
        }
        for (i, segment) in segments.iter().enumerate() {
            self.memory(segment.slot)?;
            if segments[..i].iter().any(|other| other.slot == segment.slot) {
                return Err(BackendError::Slot(segment.slot.0));
            }
            if segment.hidden.len() != segment.tokens.len() * self.spec.hidden {
                let rows = segment.hidden.len() / self.spec.hidden;
                return Err(BackendError::Segment { tokens: segment.tokens.len(), rows });
            }
            self.check_tokens(segment.tokens)?;
            let end = segment.start + segment.tokens.len();
            self.rotary.iter_mut().for_each(|table| table.extend(end));
            if let Some(memory) = self.sequences[segment.slot.0].as_mut() {
                memory.prepare_pages(&self.layout, segment.start, end);
            }
        }
        let parts = segments.iter().map(|segment| Part {
            slot: segment.slot,
            plan: None,
            start: segment.start,
            rows: segment.tokens.len(),
        });
        self.pass(parts, |context, running, rows, scratch| {
            if let (Some(mtp), Some(slot)) = (&context.weights.mtp, context.layout.mtp) {
                context.mtp(mtp, slot, segments, running, rows, scratch, outputs);
            }
        });
        Ok(())
    }

    fn truncate(&mut self, slot: Slot, position: usize) -> Result<(), BackendError> {
        let memory = self.sequences.get_mut(slot.0).and_then(Option::as_mut);
        memory.ok_or(BackendError::Slot(slot.0))?.truncate_pages(position);
        Ok(())
    }

    fn fork(&mut self, slot: Slot) -> Result<Slot, BackendError> {
        let copy = self.memory(slot)?.clone();
        Ok(self.adopt(copy))
    }

    fn export(&self, slot: Slot) -> Result<SequenceMemory, BackendError> {
        Ok(self.memory(slot)?.clone())
    }

    fn import(&mut self, memory: SequenceMemory) -> Result<Slot, BackendError> {
        Ok(self.adopt(memory))
    }

    fn compact(&mut self, slot: Slot, live: usize) -> Result<(), BackendError> {
        let memory = self.sequences.get_mut(slot.0).and_then(Option::as_mut);
        memory.ok_or(BackendError::Slot(slot.0))?.resize_logs(&self.layout, live, live);
        Ok(())
    }

    fn footprint(&self, slots: &[Slot]) -> usize {
        let memories = || slots.iter().filter_map(|slot| self.memory(*slot).ok());
        let own: usize = memories().map(|memory| memory.usage()).map(|usage| usage.log + usage.conv).sum();
        let bases = memories().filter_map(|memory| memory.base.as_ref());
        let pages = memories().flat_map(|memory| &memory.pages);
        let mut shared: Vec<(usize, usize)> =
            bases.map(|base| (Arc::as_ptr(base).addr(), base.bytes())).collect();
        shared.extend(pages.map(|page| (Arc::as_ptr(page).addr(), page.bytes())));
        shared.sort_unstable();
        shared.dedup();
        own + shared.iter().map(|&(_, bytes)| bytes).sum::<usize>()
    }

    fn usage(&self, slot: Slot) -> Result<MemoryUsage, BackendError> {
        Ok(self.memory(slot)?.usage())
    }
}

/// Takes the memories of a batch out of their slots; the slots were checked before.
fn take_memories(
    sequences: &mut [Option<SequenceMemory>],
    slots: impl Iterator<Item = Slot>,
) -> Vec<(Slot, SequenceMemory)> {
    slots.filter_map(|slot| Some((slot, sequences[slot.0].take()?))).collect()
}

fn put_memories(sequences: &mut [Option<SequenceMemory>], taken: Vec<(Slot, SequenceMemory)>) {
    for (slot, memory) in taken {
        sequences[slot.0] = Some(memory);
    }
}

/// What every layer of a pass reads.
struct Context<'a> {
    spec: &'a ModelSpec,
    weights: &'a ModelWeights,
    kernels: &'static Kernels,
    layout: &'a StateLayout,
    rotary: &'a [RotaryTable],
    arithmetic: Arithmetic,
}

impl Context<'_> {
    fn products(&self) -> Products {
        Products { kernels: self.kernels.matmul, arithmetic: self.arithmetic }
    }

    /// Embeds tokens into the residual stream.
    fn embed(&self, embedding: &Matrix, tokens: impl Iterator<Item = u32>, scratch: &mut Scratch) {
        let hidden = self.spec.hidden;
        for (row, token) in tokens.enumerate() {
            let residual = grown(&mut scratch.residual, (row + 1) * hidden);
            let bytes = embedding.row_range(token as usize..token as usize + 1);
            let row = &mut residual[row * hidden..];
            dequantize_row(embedding.format(), bytes, row).expect("rows of a matrix are whole blocks");
        }
    }

    /// `out[row] = rms_norm(x[row]) * weight`.
    fn norm_rows(&self, x: &[f32], weight: &[f32], out: &mut [f32]) {
        let width = weight.len();
        out.par_chunks_exact_mut(width).zip(x.par_chunks_exact(width)).for_each(|(out, x)| {
            self.kernels.vector.rms_norm(x, weight, self.spec.norm_eps, out);
        });
    }

    /// One layer over the batch.
    fn layer(
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
        let normed = grown(&mut scratch.normed, len);
        self.norm_rows(&scratch.residual[..len], &weights.mixer_norm, normed);
        match (&weights.mixer, slot) {
            (MixerWeights::Linear(mixer), MixerSlot::Linear(index)) => {
                self.linear(index, mixer, running, rows, scratch);
            }
            (MixerWeights::Attention(mixer), MixerSlot::Attention(index)) => {
                self.attention(index, mixer, running, rows, scratch);
            }
            _ => unreachable!("weights are loaded to the specification"),
        }
        self.add(len, scratch);
        let normed = grown(&mut scratch.normed, len);
        self.norm_rows(&scratch.residual[..len], &weights.ffn_norm, normed);
        self.feed_forward(&spec.ffn, &weights.ffn, rows, scratch);
        self.add(len, scratch);
    }

    /// Adds what a mixer or feed-forward returned to the residual stream.
    fn add(&self, len: usize, scratch: &mut Scratch) {
        self.kernels.vector.add_assign(&mut scratch.residual[..len], &scratch.added[..len]);
    }

    fn feed_forward(&self, spec: &FfnSpec, weights: &FfnWeights, rows: usize, scratch: &mut Scratch) {
        let len = rows * self.spec.hidden;
        let moe = if let FfnSpec::Moe(moe) = spec { Some(moe) } else { None };
        let Scratch { normed, inputs, ffn, added, .. } = scratch;
        ffn::run(
            self.kernels,
            self.products(),
            moe,
            weights,
            &normed[..len],
            rows,
            inputs,
            ffn,
            &mut added[..len],
        );
    }

    /// A linear mixer over the batch: projections for all rows together, the state sequence by sequence.
    fn linear(
        &self,
        index: usize,
        weights: &LinearWeights,
        running: &mut [Running<'_>],
        rows: usize,
        scratch: &mut Scratch,
    ) {
        let spec = &self.layout.linear[index].spec;
        let (channels, inner, heads) =
            (spec.conv_channels(), spec.value_heads * spec.value_dim, spec.value_heads);
        let len = rows * self.spec.hidden;
        self.project_linear(spec, weights, rows, scratch);
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
        let mut outs = split_rows(mixed, running.iter().map(|r| r.rows), inner);
        running.par_iter_mut().zip(segments.par_iter_mut()).zip(outs.par_iter_mut()).for_each(
            |((sequence, scratch), out)| {
                let Some(plan) = sequence.plan else { return };
                let range = |width: usize| sequence.first * width..(sequence.first + sequence.rows) * width;
                let stream = LinearStream {
                    plan,
                    placement: &sequence.placement,
                    memory: sequence.memory,
                    scratch: &mut scratch.linear,
                    inputs: RowInputs::Projected {
                        qkv: &qkv[range(channels)],
                        beta: &beta[range(heads)],
                        alpha: &alpha[range(heads)],
                    },
                    out,
                };
                linear::mix(self.kernels, self.layout, index, weights.into(), stream);
            },
        );
        let gated = grown(gated, rows * inner);
        let heads =
            mixed.par_chunks_exact(spec.value_dim).zip(z[..rows * inner].par_chunks_exact(spec.value_dim));
        gated.par_chunks_exact_mut(spec.value_dim).zip(heads).with_min_len(4).for_each(|(out, (head, z))| {
            self.kernels.vector.gated_rms_norm(head, z, &weights.norm, self.spec.norm_eps, out);
        });
        mixed_inputs.set(self.products(), gated, rows, inner, [&weights.out]);
        project(self.products(), mixed_inputs, [(&weights.out, &mut added[..len])]);
    }

    /// Queries, keys and values, gate, beta and alpha of all rows, each part in a buffer of its own.
    fn project_linear(&self, spec: &LinearSpec, weights: &LinearWeights, rows: usize, scratch: &mut Scratch) {
        let products = self.products();
        let hidden = self.spec.hidden;
        let (channels, inner, heads) =
            (spec.conv_channels(), spec.value_heads * spec.value_dim, spec.value_heads);
        let Scratch { normed, inputs, projections: [qkv, z, beta, alpha, fused], .. } = scratch;
        let normed = &normed[..rows * hidden];
        let qkv = grown(qkv, rows * channels);
        let z = grown(z, rows * inner);
        let beta = grown(beta, rows * heads);
        let alpha = grown(alpha, rows * heads);
        match &weights.input {
            LinearInput::Split { qkv: wqkv, z: wz, beta: wbeta, alpha: walpha } => {
                inputs.set(products, normed, rows, hidden, [wqkv, wz, wbeta, walpha]);
                project(products, inputs, [(wqkv, qkv), (wz, z), (wbeta, beta), (walpha, alpha)]);
            }
            LinearInput::SplitFusedGates { qkv: wqkv, z: wz, ba } => {
                let both = grown(fused, rows * 2 * heads);
                inputs.set(products, normed, rows, hidden, [wqkv, wz, ba]);
                project(products, inputs, [(wqkv, qkv), (wz, z), (ba, &mut *both)]);
                split_gates(spec, both, beta, alpha);
            }
            LinearInput::ByKeyHead { qkvz, ba } => {
                let joined = grown(fused, rows * (channels + inner + 2 * heads));
                let (joined, both) = joined.split_at_mut(rows * (channels + inner));
                inputs.set(products, normed, rows, hidden, [qkvz, ba]);
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
            normed, inputs, projections: [q, k, v, ..], mixed, mixed_inputs, added, segments, ..
        } = scratch;
        let q = grown(q, rows * q_width);
        let k = grown(k, rows * kv_width);
        let v = grown(v, rows * kv_width);
        inputs.set(products, &normed[..rows * hidden], rows, hidden, [&weights.q, &weights.k, &weights.v]);
        project(products, inputs, [(&weights.q, &mut *q), (&weights.k, &mut *k), (&weights.v, &mut *v)]);
        let mixed = grown(mixed, rows * inner);
        let mut outs = split_rows(mixed, running.iter().map(|r| r.rows), inner);
        let mut keys = split_rows(k, running.iter().map(|r| r.rows), kv_width);
        let units = running.par_iter_mut().zip(segments.par_iter_mut());
        units.zip(outs.par_iter_mut().zip(keys.par_iter_mut())).for_each(
            |((sequence, scratch), (out, k))| {
                let range = |width: usize| sequence.first * width..(sequence.first + sequence.rows) * width;
                let rows = AttentionRows { q: &q[range(q_width)], k, v: &v[range(kv_width)], out };
                attention::mix(
                    self.kernels,
                    layout,
                    weights,
                    &self.rotary[index],
                    self.spec.norm_eps,
                    sequence.start,
                    sequence.memory,
                    &mut scratch.attention,
                    rows,
                );
            },
        );
        mixed_inputs.set(products, mixed, rows, inner, [&weights.out]);
        project(products, mixed_inputs, [(&weights.out, &mut added[..rows * hidden])]);
    }
}

/// Cuts `[rows][width]` values into one piece per sequence.
fn split_rows(values: &mut [f32], rows: impl Iterator<Item = usize>, width: usize) -> Vec<&mut [f32]> {
    let mut rest = values;
    rows.map(|rows| {
        let (piece, left) = std::mem::take(&mut rest).split_at_mut(rows * width);
        rest = left;
        piece
    })
    .collect()
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

/// Rows of a segment that want logits, counted from its first.
fn wanted(want: WantLogits, rows: usize) -> std::ops::Range<usize> {
    match want {
        WantLogits::None => rows..rows,
        WantLogits::Last => rows.saturating_sub(1)..rows,
        WantLogits::All => 0..rows,
    }
}

const _: () = assert!(PAGE_POSITIONS.is_power_of_two());
