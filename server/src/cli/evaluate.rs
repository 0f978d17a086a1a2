//! Logits of every position of a token sequence, slice by slice.

use millpond::backend::WantLogits;
use millpond::backend::cpu::{CpuBackend, CpuOptions};
use millpond::engine::EngineOptions;
use millpond::model::Model;
use millpond::par::Team;
use millpond::runner::{Runner, Work};
use millpond::state::PassKind;
use millpond_simd::kernels::Kernels;

use super::device;
use super::settings::Compute;

/// Rows of a pass: bounds the logits held at once.
const SLICE: usize = 64;

/// A runner where `compute` says, for sequences of at most `context` tokens.
///
/// # Errors
/// The machine or the model does not allow it.
pub(crate) fn runner(model: &Model, compute: &Compute, context: usize) -> anyhow::Result<Runner> {
    let engine = EngineOptions {
        kv_type: compute.kv_type,
        buffer: compute.buffer,
        arithmetic: compute.arithmetic,
        ..EngineOptions::default()
    };
    if let Some(card) = device::backend(model, &engine, compute.device)? {
        return Ok(Runner::new(card.backend, model.spec.clone(), card.options.buffer, context));
    }
    let kernels = Kernels::for_isa(compute.isa)
        .ok_or_else(|| anyhow::anyhow!("this processor lacks {}", compute.isa))?;
    let options = CpuOptions {
        kv_type: compute.kv_type,
        state_type: compute.buffer.state_type,
        max_window: compute.buffer.max_window,
        fold_interval: compute.buffer.fold_interval,
        arithmetic: compute.arithmetic,
    };
    let threads = compute.pass_threads();
    let team = Team::new(threads.most())?;
    let backend = CpuBackend::new(model.spec.clone(), model.weights.clone(), kernels, team, options)?;
    let backend = backend.with_threads(threads);
    Ok(Runner::new(Box::new(backend), model.spec.clone(), compute.buffer, context))
}

/// Evaluates token sequences one at a time.
pub(crate) struct Evaluator {
    runner: Runner,
    vocab: usize,
    rows: usize,
}

impl Evaluator {
    /// An evaluator of sequences of at most `context` tokens.
    ///
    /// # Errors
    /// The machine or the model does not allow it.
    pub(crate) fn new(model: &Model, compute: &Compute, context: usize) -> anyhow::Result<Evaluator> {
        let runner = runner(model, compute, context)?;
        Ok(Evaluator { runner, vocab: model.spec.vocab, rows: compute.rows(SLICE) })
    }

    /// Calls `each(position, logits)` for the positions of `tokens` from `first` on, in order.
    ///
    /// # Errors
    /// What the pass or `each` says.
    pub(crate) fn logits(
        &mut self,
        tokens: &[u32],
        first: usize,
        mut each: impl FnMut(usize, &[f32]) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let mut sequence = self.runner.create()?;
        for (slice, start) in tokens.chunks(self.rows).zip((0..).step_by(self.rows)) {
            let wanted = start + slice.len() > first;
            let logits = if wanted { WantLogits::All } else { WantLogits::None };
            let work = Work { sequence: &mut sequence, tokens: slice, kind: PassKind::Prefill, logits };
            let outputs = self.runner.step(&mut [work])?;
            for (row, position) in outputs.logits.chunks_exact(self.vocab).zip(start..) {
                if position >= first {
                    each(position, row)?;
                }
            }
        }
        self.runner.release(sequence);
        Ok(())
    }
}
