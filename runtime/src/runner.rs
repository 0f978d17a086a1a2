//! Sequences on a backend: plans passes, runs them, moves cursors. No scheduling and no sampling.

use std::sync::Arc;

use millpond_models::ModelSpec;

use crate::backend::{Backend, BackendError, MtpSegment, Outputs, Segment, Slot, WantLogits};
use crate::state::cursor::{CommitError, PREFILL_CHUNK};
use crate::state::memory::{MemoryUsage, StateType};
use crate::state::{Cursor, FoldPolicy, PassKind, PassPlan, RewindError, SequenceImage, StateLayout, Step};

/// How the state of sequences is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BufferOptions {
    /// Tokens between folds of the log into the base state; 1 is the plain recurrence.
    pub fold_interval: usize,
    /// Tokens below which a sequence has no base state; `None` for the length where log and state are of one size.
    pub stateless_below: Option<usize>,
    /// Most rows of a window that may be rolled back: one plus the longest draft.
    pub max_window: usize,
    /// What the base state is kept in.
    pub state_type: StateType,
}

impl Default for BufferOptions {
    fn default() -> BufferOptions {
        BufferOptions { fold_interval: 16, stateless_below: None, max_window: 8, state_type: StateType::F32 }
    }
}

impl BufferOptions {
    /// The fold policy of a sequence that starts with the token `first`.
    pub fn policy(&self, layout: &StateLayout, first: u32) -> FoldPolicy {
        let stateless = self.stateless_below.unwrap_or_else(|| layout.break_even());
        FoldPolicy::for_sequence(self.fold_interval, stateless, self.max_window, first)
    }
}

/// One sequence: its memory on the backend and its cursor.
#[derive(Debug)]
pub struct Sequence {
    slot: Slot,
    cursor: Option<Cursor>,
}

impl Sequence {
    /// Confirmed tokens.
    pub fn position(&self) -> usize {
        self.cursor.as_ref().map_or(0, Cursor::position)
    }

    /// Rows appended but not confirmed.
    pub fn pending(&self) -> usize {
        self.cursor.as_ref().map_or(0, Cursor::pending)
    }

    /// Where the sequence stands; absent before its first token.
    pub fn cursor(&self) -> Option<&Cursor> {
        self.cursor.as_ref()
    }

    /// Its memory on the backend.
    pub fn slot(&self) -> Slot {
        self.slot
    }
}

/// Tokens to append to a sequence in a pass.
#[derive(Debug)]
pub struct Work<'a> {
    /// The sequence.
    pub sequence: &'a mut Sequence,
    /// At least one token.
    pub tokens: &'a [u32],
    /// Whether they are confirmed as they are appended.
    pub kind: PassKind,
    /// Rows that want logits.
    pub logits: WantLogits,
}

/// What can go wrong in a pass.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// The backend could not run it.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// More rows confirmed than were pending.
    #[error(transparent)]
    Commit(#[from] CommitError),
    /// A rewind that the log does not reach.
    #[error(transparent)]
    Rewind(#[from] RewindError),
    /// A pass without tokens.
    #[error("a sequence was given no tokens to append")]
    NoTokens,
    /// A sequence longer than the model's context.
    #[error("{tokens} tokens after {position} exceed the context of {context}")]
    Context {
        /// Tokens to append.
        tokens: usize,
        /// Tokens there are.
        position: usize,
        /// Tokens the model takes.
        context: usize,
    },
}

/// An empty vector of segments in the memory of another, whose borrows are over: collecting a vector's own iterator
/// reuses its memory.
fn recycled<'a>(mut segments: Vec<Segment<'_>>) -> Vec<Segment<'a>> {
    segments.clear();
    segments.into_iter().map_while(|_| None).collect()
}

/// A backend with the rules by which its sequences advance.
pub struct Runner {
    backend: Box<dyn Backend>,
    spec: Arc<ModelSpec>,
    layout: StateLayout,
    options: BufferOptions,
    context: usize,
    outputs: Outputs,
    /// Memory of the steps of earlier plans, and of a pass's plans and segments.
    idle_steps: Vec<Vec<Step>>,
    plans: Vec<(PassPlan, Cursor)>,
    segments: Vec<Segment<'static>>,
}

impl Runner {
    /// Sequences of `spec` on `backend`, each of at most `context` tokens.
    pub fn new(
        backend: Box<dyn Backend>,
        spec: Arc<ModelSpec>,
        options: BufferOptions,
        context: usize,
    ) -> Runner {
        let layout = StateLayout::new(&spec).with_state_type(options.state_type);
        Runner {
            backend,
            spec,
            layout,
            options,
            context,
            outputs: Outputs::default(),
            idle_steps: Vec::new(),
            plans: Vec::new(),
            segments: Vec::new(),
        }
    }

    /// The model.
    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// Shapes of the sequences' memory.
    pub fn layout(&self) -> &StateLayout {
        &self.layout
    }

    /// How the state of sequences is kept.
    pub fn options(&self) -> BufferOptions {
        self.options
    }

    /// Most tokens of a sequence.
    pub fn context(&self) -> usize {
        self.context
    }

    /// The backend.
    pub fn backend(&self) -> &dyn Backend {
        &*self.backend
    }

    /// What passes should yield besides logits.
    pub fn outputs_mut(&mut self) -> &mut Outputs {
        &mut self.outputs
    }

    /// What the last pass yielded.
    pub fn outputs(&self) -> &Outputs {
        &self.outputs
    }

    /// A new, empty sequence.
    ///
    /// # Errors
    /// [`RunError::Backend`] when there is no room.
    pub fn create(&mut self) -> Result<Sequence, RunError> {
        Ok(Sequence { slot: self.backend.create()?, cursor: None })
    }

    /// Frees a sequence.
    pub fn release(&mut self, sequence: Sequence) {
        self.backend.release(sequence.slot);
    }

    /// Appends tokens to several sequences in one pass over the weights.
    ///
    /// # Errors
    /// [`RunError`]; unless it comes from a lost device or missing memory, nothing has changed.
    pub fn step(&mut self, work: &mut [Work<'_>]) -> Result<&Outputs, RunError> {
        let mut plans = std::mem::take(&mut self.plans);
        let planned = work.iter().try_for_each(|work| {
            plans.push(self.plan(work)?);
            Ok(())
        });
        let run = planned.and_then(|()| {
            let mut segments = recycled(std::mem::take(&mut self.segments));
            segments.extend(work.iter().zip(&plans).map(|(work, (plan, _))| Segment {
                slot: work.sequence.slot,
                tokens: work.tokens,
                plan,
                logits: work.logits,
            }));
            let run = self.backend.forward(&segments, &mut self.outputs);
            self.segments = recycled(segments);
            Ok(run?)
        });
        if run.is_ok() {
            for (work, (plan, cursor)) in work.iter_mut().zip(&mut plans) {
                cursor.advance(plan);
                work.sequence.cursor = Some(cursor.clone());
            }
        }
        self.idle_steps.extend(plans.drain(..).map(|(plan, _)| plan.steps));
        self.plans = plans;
        run.map(|()| &self.outputs)
    }

    fn plan(&mut self, work: &Work<'_>) -> Result<(PassPlan, Cursor), RunError> {
        let Some(&first) = work.tokens.first() else { return Err(RunError::NoTokens) };
        // A sequence without confirmed tokens starts over: its policy is that of the token it now starts with.
        let started = work.sequence.cursor.clone().filter(|cursor| cursor.position() > 0);
        let cursor = started.unwrap_or_else(|| Cursor::new(self.policy(first)));
        let (tokens, position, context) = (work.tokens.len(), cursor.position(), self.context);
        if tokens > context - position.min(context) {
            return Err(RunError::Context { tokens, position, context });
        }
        let steps = self.idle_steps.pop().unwrap_or_default();
        Ok((cursor.plan_in(tokens, work.kind, steps), cursor))
    }

    /// The fold policy of a sequence that starts with `first`.
    pub fn policy(&self, first: u32) -> FoldPolicy {
        self.options.policy(&self.layout, first)
    }

    /// Appends a whole prompt, `slice` rows at a time, cut at absolute multiples of the chunk, or inside chunks if
    /// `slice` is smaller than one: the bits are the same. Logits are those of the last slice.
    ///
    /// # Errors
    /// As for [`Runner::step`].
    pub fn prefill(
        &mut self,
        sequence: &mut Sequence,
        tokens: &[u32],
        slice: usize,
        logits: WantLogits,
    ) -> Result<&Outputs, RunError> {
        let mut rest = tokens;
        loop {
            let position = sequence.position();
            let take = prefill_piece(position, rest.len(), slice);
            let kind = prefill_kind(position, rest.len(), take);
            let (now, later) = rest.split_at(take);
            let last = later.is_empty();
            let logits = if last { logits } else { WantLogits::None };
            self.step(&mut [Work { sequence, tokens: now, kind, logits }])?;
            if last {
                return Ok(&self.outputs);
            }
            rest = later;
        }
    }

    /// Confirms the first `accepted` pending rows of a sequence and drops the others.
    ///
    /// # Errors
    /// [`RunError::Commit`] when fewer are pending.
    pub fn commit(&mut self, sequence: &mut Sequence, accepted: usize) -> Result<(), RunError> {
        let Some(cursor) = sequence.cursor.as_mut() else {
            return Err(CommitError { asked: accepted, pending: 0 }.into());
        };
        cursor.commit(accepted)?;
        self.backend.truncate(sequence.slot, cursor.position())?;
        Ok(())
    }

    /// Takes a sequence back to `position`; exact, and free, as far as [`Cursor::oldest`] reaches.
    ///
    /// # Errors
    /// [`RunError::Rewind`] beyond that.
    pub fn rewind(&mut self, sequence: &mut Sequence, position: usize) -> Result<(), RunError> {
        let Some(cursor) = sequence.cursor.as_mut() else {
            let error = RewindError { asked: position, position: 0, oldest: 0 };
            return if position == 0 { Ok(()) } else { Err(error.into()) };
        };
        cursor.rewind(position)?;
        self.backend.truncate(sequence.slot, position)?;
        Ok(())
    }

    /// A copy of a sequence that shares the base state and the attention pages until one of the two writes them.
    ///
    /// # Errors
    /// [`RunError::Backend`] when there is no room.
    pub fn fork(&mut self, sequence: &Sequence) -> Result<Sequence, RunError> {
        Ok(Sequence { slot: self.backend.fork(sequence.slot)?, cursor: sequence.cursor.clone() })
    }

    /// A copy of a sequence, to be saved; absent while it is empty.
    ///
    /// # Errors
    /// [`RunError::Backend`] for a sequence of another runner.
    pub fn export(&self, sequence: &Sequence) -> Result<Option<SequenceImage>, RunError> {
        let Some(cursor) = sequence.cursor.clone() else { return Ok(None) };
        Ok(Some(SequenceImage { memory: self.backend.export(sequence.slot)?, cursor }))
    }

    /// A saved sequence.
    ///
    /// # Errors
    /// [`RunError::Backend`] when there is no room.
    pub fn import(&mut self, image: SequenceImage) -> Result<Sequence, RunError> {
        Ok(Sequence { slot: self.backend.import(image.memory)?, cursor: Some(image.cursor) })
    }

    /// Runs the multi-token-prediction head.
    ///
    /// # Errors
    /// As for [`Backend::forward_mtp`].
    pub fn step_mtp(&mut self, segments: &[MtpSegment<'_>], outputs: &mut Outputs) -> Result<(), RunError> {
        Ok(self.backend.forward_mtp(segments, outputs)?)
    }

    /// Gives back what a sequence holds only for rows to come: worth it for one that is kept to be forked.
    ///
    /// # Errors
    /// [`RunError::Backend`] for a sequence of another runner.
    pub fn compact(&mut self, sequence: &mut Sequence) -> Result<(), RunError> {
        let cursor = sequence.cursor.as_ref();
        Ok(self.backend.compact(sequence.slot, cursor.map_or(0, |cursor| cursor.log() + cursor.pending()))?)
    }

    /// Bytes that some sequences hold together, shared memory counted once.
    pub fn footprint<'a>(&self, sequences: impl Iterator<Item = &'a Sequence>) -> usize {
        let slots: Vec<Slot> = sequences.map(Sequence::slot).collect();
        self.backend.footprint(&slots)
    }

    /// Bytes a sequence holds.
    ///
    /// # Errors
    /// [`RunError::Backend`] for a sequence of another runner.
    pub fn usage(&self, sequence: &Sequence) -> Result<MemoryUsage, RunError> {
        Ok(self.backend.usage(sequence.slot)?)
    }
}

/// Rows at whose multiples a chunk may be cut.
pub const PIECE: usize = 8;

/// Rows of the next slice of a prompt, as [`prefill_slice`] has them, or fewer than a chunk where `slice` asks for fewer:
/// what is read then is a piece of a chunk, see [`prefill_kind`]. The pieces of a chunk are about equal: a small one at its
/// end would cost as much beside its rows as any other.
pub fn prefill_piece(position: usize, left: usize, slice: usize) -> usize {
    let to_edge = PREFILL_CHUNK - position % PREFILL_CHUNK;
    if slice >= to_edge {
        return prefill_slice(position, left, slice);
    }
    let most = (slice / PIECE * PIECE).max(PIECE);
    let equal = to_edge.div_ceil(to_edge.div_ceil(most)).next_multiple_of(PIECE);
    let end = (position + equal) / PIECE * PIECE;
    left.min(end - position)
}

/// What the next `rows` rows are of a prompt of which `left` rows are left: the piece of a chunk is told apart, so that its
/// bits are those of the whole chunk.
pub fn prefill_kind(position: usize, left: usize, rows: usize) -> PassKind {
    let end = position + rows;
    let chunk_end = end.next_multiple_of(PREFILL_CHUNK);
    let piece = end < chunk_end && chunk_end <= position + left;
    if piece { PassKind::PrefillPart } else { PassKind::Prefill }
}

/// Rows of the next slice of a prompt: at most `slice` (at least one chunk), and ending at an absolute multiple of
/// the chunk unless it ends the prompt.
pub fn prefill_slice(position: usize, left: usize, slice: usize) -> usize {
    let end = (position + slice.max(PREFILL_CHUNK)) / PREFILL_CHUNK * PREFILL_CHUNK;
    left.min(end - position)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_end_at_multiples_of_the_chunk() {
        assert_eq!(prefill_slice(0, 1000, 512), 512);
        assert_eq!(prefill_slice(10, 1000, 512), 502);
        assert_eq!(prefill_slice(10, 1000, 1), 54);
        assert_eq!(prefill_slice(64, 1000, 64), 64);
        assert_eq!(prefill_slice(64, 30, 64), 30);
    }

    #[test]
    fn pieces_end_inside_chunks_where_they_have_to() {
        assert_eq!(prefill_piece(0, 1000, 512), 512);
        assert_eq!(prefill_piece(0, 1000, 63), 32, "two of 32, not one of 56 and one of 8");
        assert_eq!(prefill_piece(0, 1000, 24), 24);
        assert_eq!(prefill_piece(24, 1000, 24), 24);
        assert_eq!(prefill_piece(48, 1000, 24), 16);
        assert_eq!(prefill_piece(64, 1000, 20), 16);
        assert_eq!(prefill_piece(80, 1000, 1), 8);
        assert_eq!(prefill_piece(83, 1000, 3), 5);
        assert_eq!(prefill_piece(112, 1000, 20), 16, "to the edge");
        assert_eq!(prefill_piece(112, 10, 1000), 10);
        assert_eq!(prefill_kind(64, 1000, 16), PassKind::PrefillPart);
        assert_eq!(prefill_kind(64, 63, 16), PassKind::Prefill, "the last chunk is none");
        assert_eq!(prefill_kind(64, 64, 16), PassKind::PrefillPart);
        assert_eq!(prefill_kind(80, 48, 48), PassKind::Prefill);
        assert_eq!(prefill_kind(0, 1000, 128), PassKind::Prefill);
    }
}
