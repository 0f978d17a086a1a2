//! A pass over a batch: the checks before it, the memory it needs, and the way through the layers.

use crate::backend::{BackendError, MtpSegment, Outputs, Segment, Slot, WantLogits};
use crate::state::memory::SequenceMemory;
use crate::state::{PassKind, PassPlan};

use super::attention::AttentionScratch;
use super::ffn::FfnScratch;
use super::layers::Context;
use super::linear::{LinearScratch, Placement};
use super::project::Inputs;
use super::scratch::Buffer;
use super::{CpuBackend, CpuOptions};
use millpond_simd::linear::Ahead;

/// Working memory of a pass.
#[derive(Default)]
pub(super) struct Scratch {
    pub(super) residual: Buffer,
    pub(super) normed: Buffer,
    pub(super) inputs: Inputs,
    pub(super) projections: [Buffer; 5],
    pub(super) mixed: Buffer,
    pub(super) gated: Buffer,
    pub(super) mixed_inputs: Inputs,
    pub(super) added: Buffer,
    pub(super) ffn: FfnScratch,
    pub(super) segments: Vec<SegmentScratch>,
    pub(super) head: Buffer,
}

/// Working memory of one sequence in a pass.
#[derive(Default)]
pub(super) struct SegmentScratch {
    pub(super) linear: LinearScratch,
    pub(super) attention: AttentionScratch,
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
pub(super) struct Running<'a> {
    slot: Slot,
    pub(super) memory: SequenceMemory,
    pub(super) plan: Option<&'a PassPlan>,
    pub(super) placement: Placement,
    pub(super) start: usize,
    pub(super) rows: usize,
    /// First row in the batch.
    pub(super) first: usize,
    /// What the sequence after it reads first in the layer at hand.
    pub(super) next: Ahead,
}

impl CpuBackend {
    /// The rows of a batch through all layers and the output head.
    pub(super) fn run_batch(
        &mut self,
        segments: &[Segment<'_>],
        outputs: &mut Outputs,
    ) -> Result<(), BackendError> {
        self.check(segments)?;
        self.make_room(segments)?;
        outputs.hidden.clear();
        outputs.residuals.clear();
        let parts = segments.iter().map(|segment| Part {
            slot: segment.slot,
            plan: Some(segment.plan),
            start: segment.plan.start,
            rows: segment.plan.rows,
        });
        let reads = segments.iter().any(|segment| segment.plan.kind == PassKind::Prefill);
        self.pass(parts, reads, |context, running, rows, scratch| {
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

    /// The rows of a batch through the multi-token-prediction head.
    pub(super) fn run_mtp(
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
        // Rows beyond a window follow a prompt.
        let reads = segments.iter().any(|segment| segment.tokens.len() > self.options.max_window);
        self.pass(parts, reads, |context, running, rows, scratch| {
            if let (Some(mtp), Some(slot)) = (&context.weights.mtp, context.layout.mtp) {
                context.mtp(mtp, slot, segments, running, rows, scratch, outputs);
            }
        });
        Ok(())
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
            let capacity = log_capacity(plan, memory.logs.capacity(), &self.options);
            if capacity != memory.logs.capacity() {
                memory.resize_logs(&self.layout, capacity, plan.log)?;
            }
        }
        Ok(())
    }

    /// Runs `work` on the team over the rows of a batch whose slots were checked; it gets the sequences, the number of
    /// rows, and the working memory. `reads` says whether there are prompts among them.
    fn pass<'p>(
        &mut self,
        parts: impl Iterator<Item = Part<'p>>,
        reads: bool,
        work: impl FnOnce(&Context<'_>, &mut [Running<'_>], usize, &mut Scratch) + Send,
    ) {
        let mut running = recycled(std::mem::take(&mut self.running));
        let mut first = 0;
        for Part { slot, plan, start, rows } in parts {
            // The slots were checked before.
            let Some(memory) = self.sequences[slot.0].take() else { continue };
            let idle = self.idle_placements.pop().unwrap_or_default();
            let placement = plan.map(|plan| idle.placed(plan)).unwrap_or_default();
            let next = Ahead::NONE;
            running.push(Running { slot, memory, plan, placement, start, rows, first, next });
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
        let threads = if reads { self.threads.prefill } else { self.threads.decode };
        self.team.run_with(threads, || work(&context, &mut running, first, scratch));
        for Running { slot, memory, placement, .. } in running.drain(..) {
            self.sequences[slot.0] = Some(memory);
            self.idle_placements.push(placement);
        }
        self.running = recycled(running);
    }
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
        PassKind::Prefill | PassKind::PrefillPart => plan.log.max(plan.log_after()),
    };
    if plan.has_base_after() && during <= settled {
        settled
    } else if plan.has_base_after() || during > current {
        during.next_multiple_of(STEP)
    } else {
        current
    }
}

/// An empty vector in the memory of another, whose borrows are over: collecting a vector's own iterator reuses its
/// memory.
fn recycled<'a>(mut running: Vec<Running<'_>>) -> Vec<Running<'a>> {
    running.clear();
    running.into_iter().map_while(|_| None).collect()
}

/// Rows of a segment that want logits, counted from its first.
pub(super) fn wanted(want: WantLogits, rows: usize) -> std::ops::Range<usize> {
    match want {
        WantLogits::None => rows..rows,
        WantLogits::Last => rows.saturating_sub(1)..rows,
        WantLogits::All => 0..rows,
    }
}
