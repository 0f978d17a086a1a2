//! A draft model: a small model of the same vocabulary, which runs ahead of the streams on sequences of its own.
//!
//! A draft is one window of pending rows that grows by a token in each pass: first what the stream has chosen since the
//! model last looked, then the model's own proposals. However many of them are rejected, the sequence goes back by
//! moving its cursor. Its passes have few weights to read, so running the earlier rows of the window again costs little,
//! and no fold can come between.

use std::sync::Arc;

use millpond_simd::{Isa, Kernels};

use super::drafts::overridden;
use super::options::{EngineError, EngineOptions, SpecError};
use super::speculation::MAX_DRAFT;
use super::stream::Stream;
use super::worker::Worker;
use crate::backend::WantLogits;
use crate::backend::cpu::{CpuBackend, CpuOptions};
use crate::model::Model;
use crate::par::{PassThreads, Team};
use crate::runner::{BufferOptions, RunError, Runner, Sequence, Work, prefill_slice};
use crate::sample::sampler::first_largest;
use crate::state::PassKind;
use crate::state::memory::MemoryUsage;

/// Tokens chosen by the stream that a window begins with; more are read before it.
const FEW: usize = 4;
/// Most rows that are read at once of what the model has not seen yet.
const SLICE: usize = 512;

/// Where the draft model stands with a stream.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    sequence: Option<Sequence>,
    /// Rows of its window that the stream has chosen; proposals follow.
    chosen: usize,
}

impl Ahead {
    /// Tokens the model has read.
    fn position(&self) -> usize {
        self.sequence.as_ref().map_or(0, Sequence::position)
    }

    /// Tokens of `stream` that the model has yet to read.
    fn missing(&self, tokens: usize) -> usize {
        tokens.saturating_sub(self.position())
    }
}

/// The model and its sequences.
pub(super) struct DraftModel {
    runner: Runner,
    vocab: usize,
}

impl DraftModel {
    /// The draft model of an engine for `model`, if its options name one.
    pub(super) fn of(
        options: &EngineOptions,
        model: &Model,
        context: usize,
    ) -> Result<Option<DraftModel>, EngineError> {
        let Some(draft) = &options.draft_model else { return Ok(None) };
        check_vocabulary(draft, model)?;
        let isa = options.isa.unwrap_or_else(Isa::detect);
        let kernels = Kernels::for_isa(isa).ok_or(EngineError::Isa(isa))?;
        let threads = PassThreads::new(options.threads, options.prefill_threads);
        let team = Team::new(threads.most())?;
        let buffer = buffer(options);
        let cpu = CpuOptions {
            kv_type: options.kv_type,
            state_type: buffer.state_type,
            max_window: buffer.max_window,
            fold_interval: buffer.fold_interval,
            arithmetic: options.arithmetic,
        };
        let backend = CpuBackend::new(draft.spec.clone(), draft.weights.clone(), kernels, team, cpu)?
            .with_threads(threads);
        // A window may reach beyond what the stream itself will ever hold.
        let context = context.saturating_add(MAX_DRAFT);
        let runner = Runner::new(Box::new(backend), draft.spec.clone(), buffer, context);
        Ok(Some(DraftModel { runner, vocab: draft.spec.vocab }))
    }

    fn release(&mut self, ahead: &mut Ahead) {
        if let Some(sequence) = ahead.sequence.take() {
            self.runner.release(sequence);
        }
    }

    /// Reads tokens of some streams that are as good as a prompt.
    fn read(&mut self, work: &mut [(&mut Sequence, &[u32])]) -> Result<(), RunError> {
        let mut work: Vec<Work<'_>> = work
            .iter_mut()
            .map(|(sequence, tokens)| Work {
                sequence,
                tokens,
                kind: PassKind::Prefill,
                logits: WantLogits::None,
            })
            .collect();
        self.runner.step(&mut work).map(drop)
    }
}

/// How the draft model's sequences are kept: as the model's, with room for its windows.
pub(super) fn buffer(options: &EngineOptions) -> BufferOptions {
    BufferOptions { max_window: FEW + MAX_DRAFT, ..options.buffer }
}

/// Drafts are token ids, so both models have to mean the same by each.
fn check_vocabulary(draft: &Model, model: &Model) -> Result<(), SpecError> {
    let (found, expected) = (draft.spec.vocab, model.spec.vocab);
    if found != expected {
        return Err(SpecError::VocabularySize { found, expected });
    }
    let (Some(ours), Some(theirs)) = (&model.tokenizer, &draft.tokenizer) else { return Ok(()) };
    if Arc::ptr_eq(ours, theirs) {
        return Ok(());
    }
    let differs = |&token: &u32| ours.token_bytes(token) != theirs.token_bytes(token);
    match (0..expected as u32).find(differs) {
        Some(token) => Err(SpecError::Vocabulary { token }),
        None => Ok(()),
    }
}

impl Worker {
    /// Lets the draft model read what has been read of prompts: a slice of each, so that it begins with the stream.
    pub(super) fn read_prompts_ahead(&mut self, read: &[usize]) {
        for &index in read {
            let end = self.running[index].position();
            self.read_ahead(index, end);
        }
    }

    /// Lets the draft model read the tokens of a stream before `end`, one slice at most. False when it fails, which
    /// costs the drafts and nothing else.
    fn read_ahead(&mut self, index: usize, end: usize) -> bool {
        let Some(model) = &mut self.draft_model else { return false };
        let stream = &mut self.running[index];
        if !stream.drafter.models {
            return false;
        }
        let ahead = &mut stream.drafter.ahead;
        if ahead.sequence.is_none() {
            ahead.sequence = model.runner.create().inspect_err(warn).ok();
        }
        let Some(sequence) = &mut ahead.sequence else { return false };
        let position = sequence.position();
        if position >= end {
            return true;
        }
        let rows = prefill_slice(position, end - position, SLICE);
        let read = model.read(&mut [(sequence, &stream.tokens[position..position + rows])]);
        if let Err(error) = &read {
            warn(error);
            stream.drafter.models = false;
            model.release(&mut stream.drafter.ahead);
        }
        self.shared.stats().draft_model_tokens += rows as u64;
        read.is_ok()
    }

    /// Whether the draft model can go on where a stream stands. One that is far behind reads on instead.
    pub(super) fn model_follows(&mut self, index: usize) -> bool {
        let stream = &self.running[index];
        if self.draft_model.is_none() || !stream.drafter.models {
            return false;
        }
        let tokens = stream.tokens.len();
        if stream.drafter.ahead.missing(tokens) <= SLICE {
            return true;
        }
        self.read_ahead(index, tokens - 1);
        false
    }

    /// Lets the draft model propose: one token for each stream in each pass.
    pub(super) fn draft_with_model(&mut self, drafting: &[usize], passes: usize) {
        for &index in drafting {
            let tokens = self.running[index].tokens.len();
            let missing = |worker: &Worker| worker.running[index].drafter.ahead.missing(tokens);
            // A sequence that is not there yet is made by reading nothing.
            self.read_ahead(index, 0);
            while missing(self) > FEW && self.read_ahead(index, tokens - 1) {}
            self.running[index].drafter.ahead.chosen = missing(self);
        }
        for place in 0..passes {
            let drafting: Vec<usize> =
                drafting.iter().copied().filter(|&i| self.running[i].drafter.wanted > place).collect();
            if !self.model_pass(&drafting) {
                break;
            }
        }
    }

    /// One pass of the draft model. False when it fails.
    fn model_pass(&mut self, drafting: &[usize]) -> bool {
        let Some(model) = &mut self.draft_model else { return false };
        let mut taken: Vec<(usize, Sequence, Vec<u32>)> = Vec::with_capacity(drafting.len());
        for &index in drafting {
            let Stream { drafter, tokens, .. } = &mut self.running[index];
            let Some(sequence) = drafter.ahead.sequence.take() else { continue };
            let window = [&tokens[sequence.position()..], &drafter.draft].concat();
            taken.push((index, sequence, window));
        }
        let mut work: Vec<Work<'_>> = taken
            .iter_mut()
            .map(|(_, sequence, tokens)| Work {
                sequence,
                tokens,
                kind: PassKind::Window,
                logits: WantLogits::Last,
            })
            .collect();
        let done = model.runner.step(&mut work).map(drop);
        drop(work);
        if let Err(error) = done {
            warn(&error);
            for (index, sequence, _) in taken {
                model.runner.release(sequence);
                self.running[index].drafter.models = false;
            }
            return false;
        }
        let rows = model.runner.outputs().logits.chunks_exact(model.vocab);
        for ((index, sequence, _), logits) in taken.into_iter().zip(rows) {
            let stream = &mut self.running[index];
            stream.drafter.ahead.sequence = Some(sequence);
            let source = self.limits.options.draft_override.as_deref();
            let proposal = overridden(source, stream, model.vocab, first_largest(logits) as u32);
            stream.drafter.draft.push(proposal);
        }
        true
    }

    /// Confirms what the draft model has read of the tokens that stand.
    pub(super) fn settle_model(&mut self, index: usize, accepted: usize) {
        let Some(model) = &mut self.draft_model else { return };
        let ahead = &mut self.running[index].drafter.ahead;
        let Some(sequence) = &mut ahead.sequence else { return };
        let confirmed = (ahead.chosen + accepted).min(sequence.pending());
        if let Err(error) = model.runner.commit(sequence, confirmed) {
            warn(&error);
            model.release(ahead);
        }
    }

    /// Takes from a stream that ends what the draft model has read of it. Proposals are forgotten.
    pub(super) fn take_model(&mut self, stream: &mut Stream) -> Option<Sequence> {
        let model = self.draft_model.as_mut()?;
        let mut sequence = stream.drafter.ahead.sequence.take()?;
        match model.runner.commit(&mut sequence, 0) {
            Ok(()) => Some(sequence),
            Err(error) => {
                warn(&error);
                model.runner.release(sequence);
                None
            }
        }
    }

    /// A copy of what the draft model has read of a stream.
    pub(super) fn copy_model(&mut self, index: usize) -> Option<Sequence> {
        let model = self.draft_model.as_mut()?;
        let sequence = self.running[index].drafter.ahead.sequence.as_ref()?;
        model.runner.fork(sequence).inspect_err(warn).ok()
    }

    /// Gives a stream that goes on from `position` of a snapshot a copy of what the draft model had read there. Where that
    /// goes another way after `position` and cannot be taken back, the draft model reads the prompt anew.
    pub(super) fn adopt_model(&mut self, index: usize, snapshot: u64, position: usize) {
        let Some(model) = &mut self.draft_model else { return };
        let drafter = &mut self.running[index].drafter;
        if !drafter.models {
            return;
        }
        model.release(&mut drafter.ahead);
        let Some(sequence) = self.cache.ahead(snapshot) else { return };
        let Ok(mut fork) = model.runner.fork(sequence).inspect_err(warn) else { return };
        if fork.position() > position && model.runner.rewind(&mut fork, position).is_err() {
            model.runner.release(fork);
            return;
        }
        drafter.ahead.sequence = Some(fork);
    }

    /// Makes what the draft model holds for a snapshot as small as it can be; returns its bytes. It is no loss if that
    /// fails.
    pub(super) fn settle_ahead(&mut self, ahead: &mut Option<Sequence>) -> MemoryUsage {
        let Some(model) = &mut self.draft_model else { return MemoryUsage::default() };
        let Some(sequence) = ahead.as_mut() else { return MemoryUsage::default() };
        match model.runner.compact(sequence).and_then(|()| model.runner.usage(sequence)) {
            Ok(usage) => usage,
            Err(error) => {
                warn(&error);
                self.drop_ahead(ahead.take());
                MemoryUsage::default()
            }
        }
    }

    /// Bytes that the draft model holds for snapshots.
    pub(super) fn aheads_footprint(&self) -> usize {
        self.draft_model.as_ref().map_or(0, |model| model.runner.footprint(self.cache.aheads()))
    }

    /// Frees what the draft model holds for a snapshot.
    pub(super) fn drop_ahead(&mut self, ahead: Option<Sequence>) {
        if let (Some(model), Some(sequence)) = (&mut self.draft_model, ahead) {
            model.runner.release(sequence);
        }
    }

    /// Frees what the draft model holds for a stream.
    pub(super) fn leave_model(&mut self, stream: &mut Stream) {
        if let Some(model) = &mut self.draft_model {
            model.release(&mut stream.drafter.ahead);
        }
    }

    /// Gives a stream that goes on from where another stands a copy of what the draft model has read of it.
    pub(super) fn fork_model(&mut self, from: usize, to: usize) {
        let Some(model) = &mut self.draft_model else { return };
        let Some(sequence) = &self.running[from].drafter.ahead.sequence else { return };
        let forked = model.runner.fork(sequence).inspect_err(warn).ok();
        let ahead = &mut self.running[to].drafter.ahead;
        model.release(ahead);
        ahead.sequence = forked;
    }
}

fn warn(error: &RunError) {
    tracing::warn!(%error, "the draft model failed");
}
