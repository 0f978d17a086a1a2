//! The plans of a pass, cut into launches that every layer of one shape repeats.

use std::sync::Arc;

use millpond::state::PassPlan;
use millpond_models::LinearSpec;

use super::abi::SequencePlan;
use super::kernels::{StepKernel, padded};
use super::layer::{LinearOptions, ring_capacity};
use super::{LinearError, parts};
use crate::device::{Device, Memory};

/// One sequence of a batch.
#[derive(Clone, Copy, Debug)]
pub struct BatchSequence<'a> {
    /// Its memory.
    pub slot: usize,
    /// Windows and folds.
    pub plan: &'a PassPlan,
}

/// Launches of a pass, the same for every layer of one shape: made once, uploaded once.
pub struct Batch {
    pub(super) rounds: Vec<Round>,
    pub(super) rows: usize,
    /// The plans, where the batch has them in memory of its own.
    _plans: Option<Memory>,
}

/// The parts that run in one launch: one per sequence that has so many.
pub(super) struct Round {
    /// Address of the plans.
    pub(super) plans: u64,
    pub(super) sequences: usize,
    pub(super) kernel: StepKernel,
}

/// The plans of a pass cut into launches, not yet on a device.
pub struct Cut {
    rounds: Vec<(Vec<SequencePlan>, StepKernel)>,
    rows: usize,
}

impl Batch {
    /// Cuts the plans of a batch for layers with `spec` and `options`. Rows follow one another in the order of the
    /// sequences.
    ///
    /// # Errors
    /// [`LinearError`] for slots that do not exist, logs that are too long, and what the device says.
    pub fn new(
        device: &Arc<dyn Device>,
        spec: &LinearSpec,
        options: &LinearOptions,
        sequences: &[BatchSequence<'_>],
    ) -> Result<Batch, LinearError> {
        let cut = Cut::new(spec, options, sequences)?;
        let mut memory = Memory::new(device, cut.bytes())?;
        let mut offset = 0;
        let batch = cut.place(|plans| {
            let at = offset;
            memory.write(at, plans)?;
            offset += size_of_val(plans);
            Ok::<u64, LinearError>(memory.address() + at as u64)
        })?;
        Ok(Batch { _plans: Some(memory), ..batch })
    }

    /// Rows of all sequences.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Sequences, kernel and rounds: what the launches of a pass depend on besides addresses.
    pub fn forms(&self) -> impl Iterator<Item = (usize, StepKernel)> {
        self.rounds.iter().map(|round| (round.sequences, round.kernel))
    }
}

impl Cut {
    /// Cuts the plans of a batch as [`Batch::new`] does.
    ///
    /// # Errors
    /// [`LinearError`] for slots that do not exist and logs that are too long.
    pub fn new(
        spec: &LinearSpec,
        options: &LinearOptions,
        sequences: &[BatchSequence<'_>],
    ) -> Result<Cut, LinearError> {
        let dims = padded(spec.key_dim, spec.value_dim)?;
        let capacity = ring_capacity(options);
        let mut used = vec![false; options.slots];
        let (mut first_row, mut cut) = (0, Vec::with_capacity(sequences.len()));
        for sequence in sequences {
            match used.get_mut(sequence.slot) {
                Some(used) if !*used => *used = true,
                _ => return Err(LinearError::Slot(sequence.slot)),
            }
            cut.push((sequence.slot, first_row, parts(sequence.plan, capacity)?));
            first_row += sequence.plan.rows;
        }
        let mut rounds = Vec::new();
        for round in 0.. {
            let running: Vec<_> = cut
                .iter()
                .filter_map(|(slot, first, parts)| Some((*slot, *first, parts.get(round)?)))
                .collect();
            if running.is_empty() {
                break;
            }
            let rows = running.iter().map(|(_, _, part)| part.rows).max().unwrap_or(0);
            let entries = running.iter().map(|(_, _, part)| part.entries()).max().unwrap_or(0);
            let heads = running.len() * spec.value_heads;
            let plans: Vec<SequencePlan> =
                running.iter().map(|(slot, first, part)| part.sequence_plan(*slot, *first)).collect();
            let kernel =
                StepKernel::choose(options.activation, dims, rows, entries, heads, options.processors)?;
            rounds.push((plans, kernel));
        }
        Ok(Cut { rounds, rows: first_row })
    }

    /// Bytes of all plans.
    pub fn bytes(&self) -> usize {
        self.rounds.iter().map(|(plans, _)| size_of_val(plans.as_slice())).sum()
    }

    /// The batch, with the plans of each launch at the address that `place` gives.
    ///
    /// # Errors
    /// Those of `place`.
    pub fn place<E>(self, mut place: impl FnMut(&[SequencePlan]) -> Result<u64, E>) -> Result<Batch, E> {
        let mut rounds = Vec::with_capacity(self.rounds.len());
        for (plans, kernel) in &self.rounds {
            rounds.push(Round { plans: place(plans)?, sequences: plans.len(), kernel: *kernel });
        }
        Ok(Batch { rounds, rows: self.rows, _plans: None })
    }
}
