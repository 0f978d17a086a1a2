//! Drafts: the tokens that a stream proposes before the model has seen them.
//!
//! Verification needs no rules of its own: each row of the window is sampled exactly as without drafts, and a draft
//! stands as far as it agrees. Whatever drafts say, a stream's tokens are those of plain decoding.

use std::time::Instant;

use super::draft_model::Ahead;
use super::options::{DraftSource, SpecMode};
use super::speculation::{Acceptance, Candidate, MAX_DRAFT, Source, Speculation};
use super::stream::Stream;
use super::worker::Worker;
use crate::backend::{MtpSegment, WantLogits};
use crate::sample::ngram::{self, NgramParams};
use crate::sample::sampler::first_largest;

/// Hidden states kept for the prediction head before it reads them.
const MAX_TRAIL: usize = 64;

/// What the prediction head still has to read of a sequence: the normed hidden states of its last positions.
///
/// The head keeps an attention cache of its own. While no drafts are wanted its rows wait here, and are read together.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Trail {
    /// Positions the head has read.
    pub(super) filled: usize,
    /// `[rows][hidden]`, from position `filled` on.
    pub(super) hidden: Vec<f32>,
}

impl Trail {
    /// Whether hidden states are there up to `position`: without, the head would read gaps.
    pub(super) fn reaches(&self, position: usize, width: usize) -> bool {
        self.filled + self.hidden.len() / width.max(1) == position
    }

    /// Takes the hidden states of rows from `start` on. Where some are missing before them, it stays behind for good.
    fn append(&mut self, start: usize, rows: &[f32], width: usize) {
        if self.reaches(start, width) {
            self.hidden.extend_from_slice(rows);
        }
    }

    /// Goes back to `position`. What the head has read of a position before it stays, though its token may now be
    /// followed by another one: drafts are only guesses.
    pub(super) fn rewind(&mut self, position: usize, width: usize) {
        self.filled = self.filled.min(position);
        self.hidden.truncate((position - self.filled) * width);
    }

    /// Bytes held.
    pub(super) fn bytes(&self) -> usize {
        self.hidden.len() * 4
    }
}

/// What an engine can draft with, besides earlier text.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sources {
    /// Whether the prediction head is to follow, be it for those who go on from where the stream has been.
    pub(super) head: bool,
    /// Whether there is a draft model.
    pub(super) model: bool,
}

/// How a stream drafts.
#[derive(Debug)]
pub(super) struct Drafter {
    mode: SpecMode,
    shortest: usize,
    longest: usize,
    /// Whether the prediction head follows the stream.
    pub(super) follows: bool,
    pub(super) trail: Trail,
    /// Whether the draft model may run ahead of the stream.
    pub(super) models: bool,
    pub(super) ahead: Ahead,
    acceptance: [Acceptance; Source::ALL.len()],
    /// Proposed for the next window.
    pub(super) draft: Vec<u32>,
    /// Who proposes them.
    source: Source,
    /// Tokens the head or the draft model is to propose.
    pub(super) wanted: usize,
}

impl Drafter {
    /// A drafter for drafts of `shortest` to `longest` tokens.
    pub(super) fn new(mode: SpecMode, shortest: usize, longest: usize, sources: Sources) -> Drafter {
        let models = sources.model && longest > 0 && matches!(mode, SpecMode::Auto | SpecMode::Draft);
        Drafter {
            mode,
            shortest,
            longest: longest.min(MAX_DRAFT),
            follows: sources.head,
            trail: Trail::default(),
            models,
            ahead: Ahead::default(),
            acceptance: Default::default(),
            draft: Vec::new(),
            source: Source::Lookup,
            wanted: 0,
        }
    }

    /// Takes the hidden states of confirmed rows from `start` on.
    pub(super) fn follow(&mut self, start: usize, rows: &[f32], width: usize) {
        if self.follows {
            self.trail.append(start, rows, width);
        }
    }

    /// Whether drafts may come from where `mode` has them from.
    fn uses(&self, mode: SpecMode) -> bool {
        self.longest > 0 && (self.mode == SpecMode::Auto || self.mode == mode)
    }
}

/// What is known about drafts beyond one stream: the acceptance of each source.
pub(super) type Priors = [Acceptance; Source::ALL.len()];

impl Worker {
    /// Lets a stream that enters begin with the acceptance that others have seen.
    pub(super) fn prime(&self, stream: &mut Stream) {
        stream.drafter.acceptance = self.priors;
    }

    /// Fills the drafts of the streams that decode next. Returns the seconds it took.
    pub(super) fn draft(&mut self, decoding: &[u64]) -> f64 {
        let started = Instant::now();
        self.usual_drafting = 0.0;
        let mut drafting = Vec::new();
        let mut candidates = Vec::new();
        for index in 0..self.running.len() {
            self.running[index].drafter.draft.clear();
            if decoding.contains(&self.running[index].id)
                && let Some(candidate) = self.candidate(index)
            {
                drafting.push(index);
                candidates.push(candidate);
            }
        }
        if candidates.is_empty() {
            return 0.0;
        }
        let others = decoding.len() - candidates.len();
        let lengths = match self.limits.options.spec_adaptive {
            true => self.speculation.lengths(&candidates, others, &self.costs),
            false => Speculation::longest(&candidates),
        };
        for (&index, &length) in drafting.iter().zip(&lengths) {
            let drafter = &mut self.running[index].drafter;
            let length = if length < drafter.shortest { 0 } else { length };
            drafter.draft.truncate(length);
            drafter.wanted = if drafter.source == Source::Lookup { 0 } else { length };
        }
        self.propose_with(Source::Head);
        self.propose_with(Source::Model);
        for index in drafting {
            self.running[index].cut_draft();
        }
        started.elapsed().as_secs_f64()
    }

    /// How a stream could draft next; its lookup, if that is the better way, is in its draft already.
    fn candidate(&mut self, index: usize) -> Option<Candidate> {
        let (width, context) = (self.model.spec.hidden, self.limits.context);
        let stream = &mut self.running[index];
        let (position, left) = (stream.position(), stream.limit - stream.generated());
        let longest = stream
            .drafter
            .longest
            .min(left.saturating_sub(1))
            .min(context.saturating_sub(position + 1))
            .min(stream.room.saturating_sub(position + 1));
        if longest == 0 {
            return None;
        }
        if stream.drafter.uses(SpecMode::Ngram) {
            let draft = &mut stream.drafter.draft;
            match &self.limits.options.draft_source {
                Some(source) => source.draft(&stream.tokens, longest, draft),
                None => ngram::draft(&stream.tokens, NgramParams::default(), longest, draft),
            }
            draft.truncate(longest);
            let vocab = self.model.spec.vocab;
            let known = draft.iter().take_while(|&&token| (token as usize) < vocab).count();
            draft.truncate(known);
        }
        let drafter = &stream.drafter;
        let found = drafter.draft.len();
        let head = drafter.follows && drafter.trail.reaches(position, width);
        let model = self.model_follows(index);
        let drafter = &mut self.running[index].drafter;
        let could = [
            (Source::Lookup, found),
            (Source::Head, if head && drafter.uses(SpecMode::Mtp) { longest } else { 0 }),
            (Source::Model, if model { longest } else { 0 }),
        ];
        let candidates = could
            .into_iter()
            .filter(|&(_, longest)| longest > 0 && longest >= drafter.shortest)
            .map(|(source, longest)| Candidate {
                acceptance: drafter.acceptance[source as usize],
                longest,
                source,
            });
        let promise = |candidate: &Candidate| Speculation::promise(candidate, &self.costs);
        let best = candidates.max_by(|a, b| promise(a).total_cmp(&promise(b)))?;
        drafter.source = best.source;
        if best.source != Source::Lookup {
            drafter.draft.clear();
        }
        Some(best)
    }

    /// Lets the head or the draft model propose: one token for each stream in each pass, each from the one before.
    fn propose_with(&mut self, source: Source) {
        let wants =
            |stream: &Stream, place: usize| stream.drafter.source == source && stream.drafter.wanted > place;
        let own = self.running.iter().filter(|stream| wants(stream, 0));
        let passes = own.map(|stream| stream.drafter.wanted).max().unwrap_or(0);
        if passes == 0 {
            return;
        }
        let started = Instant::now();
        let drafting = |worker: &Worker, place: usize| -> Vec<usize> {
            (0..worker.running.len()).filter(|&i| wants(&worker.running[i], place)).collect()
        };
        if source == Source::Model {
            self.draft_with_model(&drafting(self, 0), passes);
        } else {
            for place in 0..passes {
                if !self.head_pass(&drafting(self, place), place) {
                    break;
                }
            }
        }
        self.costs.record_drafts(source, passes, started.elapsed());
        self.usual_drafting += passes as f64 * self.costs.draft_pass(source);
        for stream in self.running.iter_mut().filter(|stream| stream.drafter.source == source) {
            stream.drafter.wanted = 0;
        }
    }

    /// One pass of the head: in the first, each stream's trail is read; in later ones, its own last proposal. False
    /// when the head fails, which costs the drafts and nothing else.
    fn head_pass(&mut self, drafting: &[usize], place: usize) -> bool {
        let width = self.model.spec.hidden;
        let states = std::mem::take(&mut self.head_outputs.hidden);
        let mut segments = Vec::with_capacity(drafting.len());
        let mut offset = 0;
        for &index in drafting {
            let stream = &self.running[index];
            let Some(sequence) = &stream.sequence else { continue };
            let drafter = &stream.drafter;
            let position = sequence.position();
            let logits = WantLogits::Last;
            if place == 0 {
                let (start, hidden) = (drafter.trail.filled, &drafter.trail.hidden[..]);
                let tokens = &stream.tokens[start + 1..=position];
                segments.push(MtpSegment { slot: sequence.slot(), start, tokens, hidden, logits });
            } else {
                let hidden = &states[offset..offset + width];
                offset += width;
                let tokens = &drafter.draft[place - 1..place];
                let start = position + place - 1;
                segments.push(MtpSegment { slot: sequence.slot(), start, tokens, hidden, logits });
            }
        }
        let rows: Vec<usize> = segments.iter().map(|segment| segment.tokens.len()).collect();
        let done = self.runner.step_mtp(&segments, &mut self.head_outputs);
        if let Err(error) = done {
            tracing::warn!(%error, "the prediction head failed");
            return false;
        }
        if place == 0 {
            self.forget_trails(drafting);
        }
        self.propose(drafting, &rows, place);
        true
    }

    /// Appends what the head proposed, and leaves in its hidden states only those that the next pass reads.
    fn propose(&mut self, drafting: &[usize], rows: &[usize], place: usize) {
        let (width, vocabulary) = (self.model.spec.hidden, self.model.spec.vocab);
        let vocab = self.head_outputs.logits.len() / drafting.len().max(1);
        let (mut from, mut to) = (0, 0);
        for ((&index, &rows), logits) in
            drafting.iter().zip(rows).zip(self.head_outputs.logits.chunks_exact(vocab.max(1)))
        {
            from += rows * width;
            let stream = &mut self.running[index];
            // Logits of a head that went wrong yield a wrong guess, nothing worse.
            let proposal = first_largest(logits) as u32;
            let source = self.limits.options.draft_override.as_deref();
            let proposal = overridden(source, stream, vocabulary, proposal);
            stream.drafter.draft.push(proposal);
            let drafter = &mut stream.drafter;
            if drafter.wanted > place + 1 {
                self.head_outputs.hidden.copy_within(from - width..from, to);
                to += width;
            }
        }
        self.head_outputs.hidden.truncate(to);
    }

    fn forget_trails(&mut self, read: &[usize]) {
        for &index in read {
            let stream = &mut self.running[index];
            let position = stream.position();
            stream.drafter.trail.filled = position;
            stream.drafter.trail.hidden.clear();
        }
    }

    /// Lets the head read the trails that have grown long, and those of prompts, all at once and without proposals.
    pub(super) fn read_trails(&mut self) {
        let width = self.model.spec.hidden;
        let mut segments = Vec::new();
        let mut ends = Vec::new();
        for (index, stream) in self.running.iter().enumerate() {
            let trail = &stream.drafter.trail;
            let rows = trail.hidden.len() / width;
            let Some(sequence) = stream.sequence.as_ref().filter(|_| rows > MAX_TRAIL) else { continue };
            // The last row stays: the next draft begins with what the head says to it.
            let rows = rows - 1;
            segments.push(MtpSegment {
                slot: sequence.slot(),
                start: trail.filled,
                tokens: &stream.tokens[trail.filled + 1..=trail.filled + rows],
                hidden: &trail.hidden[..rows * width],
                logits: WantLogits::None,
            });
            ends.push((index, rows));
        }
        if segments.is_empty() {
            return;
        }
        let failed = self.runner.step_mtp(&segments, &mut self.head_outputs).err();
        for (index, rows) in ends {
            let drafter = &mut self.running[index].drafter;
            if let Some(error) = &failed {
                tracing::warn!(%error, "the prediction head failed; it no longer follows the stream");
                drafter.follows = false;
                drafter.trail = Trail::default();
                continue;
            }
            drafter.trail.filled += rows;
            drafter.trail.hidden.drain(..rows * width);
        }
    }

    /// Takes note of how a stream's draft fared.
    pub(super) fn judge(&mut self, index: usize, accepted: usize) {
        let drafter = &mut self.running[index].drafter;
        let (drafted, source) = (drafter.draft.len(), drafter.source);
        if drafted == 0 {
            return;
        }
        drafter.acceptance[source as usize].record(drafted, accepted);
        self.priors[source as usize].record(drafted, accepted);
        if source == Source::Model {
            self.settle_model(index, accepted);
        }
    }
}

/// What `source` has for the next place of a stream's draft, or `proposal` if it has nothing.
pub(super) fn overridden(
    source: Option<&dyn DraftSource>,
    stream: &Stream,
    vocab: usize,
    proposal: u32,
) -> u32 {
    let Some(source) = source else { return proposal };
    let (place, mut draft) = (stream.drafter.draft.len(), Vec::new());
    source.draft(&stream.tokens, place + 1, &mut draft);
    draft.get(place).copied().filter(|&token| (token as usize) < vocab).unwrap_or(proposal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trail_with_a_gap_is_never_used() {
        let mut trail = Trail::default();
        trail.append(0, &[1.0; 6], 2);
        assert!(trail.reaches(3, 2));
        trail.append(4, &[1.0; 2], 2);
        assert!(!trail.reaches(5, 2));
        trail.rewind(2, 2);
        assert!(trail.reaches(2, 2));
        assert_eq!(trail.bytes(), 16);
        trail.filled = 2;
        trail.hidden.clear();
        trail.rewind(1, 2);
        assert_eq!(trail, Trail { filled: 1, hidden: vec![] });
    }
}
