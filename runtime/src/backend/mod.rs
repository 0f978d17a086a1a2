//! The one seam a device implements: run a pass over a batch of sequences, and keep their memory.
//!
//! Cursors and fold policy stand outside ([`crate::state::cursor`]): a backend is told, for every sequence of a
//! batch, which windows and folds to run.

pub mod cpu;

use crate::state::PassPlan;
use crate::state::arena::AllocationError;
use crate::state::memory::{MemoryUsage, SequenceMemory};

/// A sequence's memory inside a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Slot(pub usize);

/// Which rows of a segment want logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WantLogits {
    /// No row.
    None,
    /// The last row.
    Last,
    /// Every row.
    All,
}

/// The rows one sequence adds in a pass.
#[derive(Clone, Debug)]
pub struct Segment<'a> {
    /// Whose rows they are.
    pub slot: Slot,
    /// One token per row.
    pub tokens: &'a [u32],
    /// Windows and folds.
    pub plan: &'a PassPlan,
    /// Rows that want logits.
    pub logits: WantLogits,
}

/// What a pass yields; buffers are reused from pass to pass.
#[derive(Clone, Debug, Default)]
pub struct Outputs {
    /// Logits of the rows that wanted them, segment by segment: `[rows][vocab]`.
    pub logits: Vec<f32>,
    /// Final hidden states of every row of the batch, normed: `[rows][hidden]`. Filled when `want_hidden` is set.
    pub hidden: Vec<f32>,
    /// Whether to fill `hidden`.
    pub want_hidden: bool,
    /// The residual stream before each layer, `[layers][rows][hidden]`. Filled when `want_residuals` is set.
    pub residuals: Vec<Vec<f32>>,
    /// Whether to fill `residuals`: for tests and for people who compare implementations.
    pub want_residuals: bool,
}

/// What can go wrong in a backend.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackendError {
    /// The system gives no memory.
    #[error(transparent)]
    Memory(#[from] AllocationError),
    /// A token the model has no embedding for.
    #[error("token {token} is not in the vocabulary of {vocab}")]
    Token {
        /// The token.
        token: u32,
        /// Size of the vocabulary.
        vocab: usize,
    },
    /// A slot that does not exist, or stands twice in one batch.
    #[error("sequence slot {0} is not in use or stands twice in the batch")]
    Slot(usize),
    /// A window longer than the backend was set up for.
    #[error("a window of {rows} rows exceeds the {max} this engine was set up for")]
    Window {
        /// Rows of the window.
        rows: usize,
        /// Most rows allowed.
        max: usize,
    },
    /// A segment whose tokens and plan disagree.
    #[error("a segment has {tokens} tokens for {rows} planned rows")]
    Segment {
        /// Tokens given.
        tokens: usize,
        /// Rows planned.
        rows: usize,
    },
    /// The model has no multi-token-prediction head.
    #[error("the model has no multi-token-prediction head")]
    NoMtp,
    /// A shape the backend is not made for.
    #[error("{found} {what} are not supported (at most {max})")]
    Unsupported {
        /// What is too many.
        what: &'static str,
        /// How many the model has.
        found: usize,
        /// How many the backend knows.
        max: usize,
    },
    /// A device that cannot be used or was lost.
    #[error("device: {0}")]
    Device(String),
}

/// One row for the multi-token-prediction head of a sequence.
#[derive(Clone, Debug)]
pub struct MtpSegment<'a> {
    /// Whose rows they are.
    pub slot: Slot,
    /// Position of the first row: the position whose hidden state it reads.
    pub start: usize,
    /// For each row, the token at the position after it.
    pub tokens: &'a [u32],
    /// For each row, the normed hidden state, `[rows][hidden]`.
    pub hidden: &'a [f32],
    /// Rows that want logits.
    pub logits: WantLogits,
}

/// A device that holds sequences and runs passes.
pub trait Backend: Send {
    /// A new, empty sequence.
    ///
    /// # Errors
    /// [`BackendError::Memory`] when there is no room.
    fn create(&mut self) -> Result<Slot, BackendError>;

    /// Frees a sequence. Unknown slots are ignored.
    fn release(&mut self, slot: Slot);

    /// Runs one pass. On an error the sequences of the batch are unusable and should be released.
    ///
    /// # Errors
    /// [`BackendError`], before anything has changed where the batch itself is at fault.
    fn forward(&mut self, segments: &[Segment<'_>], outputs: &mut Outputs) -> Result<(), BackendError>;

    /// Runs the multi-token-prediction head. `outputs.logits` predict, for the row of position `t`, token `t + 2`;
    /// rows are as long as the head's output, which may be that of a part of the vocabulary, from its start.
    /// `outputs.hidden` is the head's own normed state, which feeds further drafts.
    ///
    /// # Errors
    /// [`BackendError::NoMtp`] where the model has none, and as for [`Backend::forward`].
    fn forward_mtp(&mut self, segments: &[MtpSegment<'_>], outputs: &mut Outputs)
    -> Result<(), BackendError>;

    /// Tells the backend that a sequence has been cut back to `position` (rows after it are dead).
    ///
    /// # Errors
    /// [`BackendError::Slot`] for an unknown slot.
    fn truncate(&mut self, slot: Slot, position: usize) -> Result<(), BackendError>;

    /// A copy of a sequence that shares what is only read.
    ///
    /// # Errors
    /// [`BackendError`] when there is no room or no such slot.
    fn fork(&mut self, slot: Slot) -> Result<Slot, BackendError>;

    /// A copy of a sequence's memory, to be saved.
    ///
    /// # Errors
    /// [`BackendError`] for an unknown slot, or from a device that cannot.
    fn export(&self, slot: Slot) -> Result<SequenceMemory, BackendError> {
        self.usage(slot)?;
        Err(BackendError::Device("it cannot save sequences".to_owned()))
    }

    /// A new sequence with saved memory.
    ///
    /// # Errors
    /// [`BackendError`] when there is no room, or from a device that cannot.
    fn import(&mut self, memory: SequenceMemory) -> Result<Slot, BackendError> {
        drop(memory);
        Err(BackendError::Device("it cannot restore sequences".to_owned()))
    }

    /// Gives back what a sequence holds only for rows to come; `live` entries of its log are in use. A device may
    /// have nothing to give back.
    ///
    /// # Errors
    /// [`BackendError::Slot`] for an unknown slot.
    fn compact(&mut self, slot: Slot, live: usize) -> Result<(), BackendError> {
        let _ = live;
        self.usage(slot).map(|_| ())
    }

    /// Bytes that some sequences hold together, shared memory counted once (or more often, by a device that
    /// does not know what it shares). Unknown slots hold nothing.
    fn footprint(&self, slots: &[Slot]) -> usize {
        slots.iter().filter_map(|slot| self.usage(*slot).ok()).map(|usage| usage.total()).sum()
    }

    /// Bytes a sequence holds.
    ///
    /// # Errors
    /// [`BackendError::Slot`] for an unknown slot.
    fn usage(&self, slot: Slot) -> Result<MemoryUsage, BackendError>;
}
