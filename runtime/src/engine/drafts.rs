//! Drafts: the tokens that a stream proposes before the model has seen them.
//!
//! Verification needs no rules of its own: each row of the window is sampled exactly as without drafts, and a draft
//! stands as far as it agrees. Whatever drafts say, a stream's tokens are those of plain decoding.

use std::time::Instant;

use super::options::SpecMode;
use super::speculation::{Acceptance, Candidate, MAX_DRAFT, Speculation};
use super::stream::Stream;
use super::worker::Worker;
use crate::backend::{MtpSegment, WantLogits};
use crate::sample::ngram::{self, NgramParams};

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

/// How a stream drafts.
#[derive(Clone, Debug)]
pub(super) struct Drafter {
    mode: SpecMode,
    longest: usize,
    /// Whether the prediction head follows the stream.
    pub(super) follows: bool,
    pub(super) trail: Trail,
    ngram: Acceptance,
    head: Acceptance,
    /// Proposed for the next window.
    pub(super) draft: Vec<u32>,
    /// Whether the head proposed them.
    by_head: bool,
    /// Tokens the head is to propose.
    wanted: usize,
}

impl Drafter {
    /// A drafter; `head` says whether the model has a prediction head.
    pub(super) fn new(mode: SpecMode, longest: usize, head: bool) -> Drafter {
        Drafter {
            mode,
            longest: longest.min(MAX_DRAFT),
            follows: head && longest > 0 && matches!(mode, SpecMode::Auto | SpecMode::Mtp),
            trail: Trail::default(),
            ngram: Acceptance::default(),
            head: Acceptance::default(),
            draft: Vec::new(),
            by_head: false,
            wanted: 0,
        }
    }

    /// Takes the hidden states of confirmed rows from `start` on.
    pub(super) fn follow(&mut self, start: usize, rows: &[f32], width: usize) {
        if self.follows {
            self.trail.append(start, rows, width);
        }
    }

    fn looks_up(&self) -> bool {
        matches!(self.mode, SpecMode::Auto | SpecMode::Ngram) && self.longest > 0
    }
}

/// What is known about drafts beyond one stream.
#[derive(Clone, Debug, Default)]
pub(super) struct Priors {
    ngram: Acceptance,
    head: Acceptance,
}

impl Worker {
    /// Lets a stream that enters begin with the acceptance that others have seen.
    pub(super) fn prime(&self, stream: &mut Stream) {
        stream.drafter.ngram = self.priors.ngram;
        stream.drafter.head = self.priors.head;
    }

    /// Fills the drafts of the streams that decode next. Returns the seconds it took.
    pub(super) fn draft(&mut self, decoding: &[u64]) -> f64 {
        let started = Instant::now();
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
            drafter.draft.truncate(length);
            drafter.wanted = if drafter.by_head { length } else { 0 };
        }
        self.draft_with_head();
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
        if stream.drafter.looks_up() {
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
        let drafter = &mut stream.drafter;
        let found = drafter.draft.len();
        let head = drafter.follows && drafter.trail.reaches(position, width);
        drafter.by_head = head && (found == 0 || drafter.head.gain(longest) > drafter.ngram.gain(found));
        match (drafter.by_head, found) {
            (true, _) => {
                drafter.draft.clear();
                Some(Candidate { acceptance: drafter.head, longest, passes: true })
            }
            (false, 0) => None,
            (false, found) => Some(Candidate { acceptance: drafter.ngram, longest: found, passes: false }),
        }
    }

    /// Lets the head propose: one token for each stream in each pass, each from the one before.
    fn draft_with_head(&mut self) {
        let wants = |stream: &Stream, place: usize| stream.drafter.wanted > place;
        let passes = self.running.iter().map(|stream| stream.drafter.wanted).max().unwrap_or(0);
        if passes == 0 {
            return;
        }
        let started = Instant::now();
        for place in 0..passes {
            let drafting: Vec<usize> =
                (0..self.running.len()).filter(|&i| wants(&self.running[i], place)).collect();
            if !self.head_pass(&drafting, place) {
                break;
            }
        }
        self.costs.record_drafts(passes, started.elapsed());
        for stream in &mut self.running {
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
        let width = self.model.spec.hidden;
        let vocab = self.head_outputs.logits.len() / drafting.len().max(1);
        let (mut from, mut to) = (0, 0);
        for ((&index, &rows), logits) in
            drafting.iter().zip(rows).zip(self.head_outputs.logits.chunks_exact(vocab.max(1)))
        {
            from += rows * width;
            let drafter = &mut self.running[index].drafter;
            drafter.draft.push(likeliest(logits));
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
        let drafted = drafter.draft.len();
        if drafted == 0 {
            return;
        }
        let (own, prior) = match drafter.by_head {
            true => (&mut drafter.head, &mut self.priors.head),
            false => (&mut drafter.ngram, &mut self.priors.ngram),
        };
        own.record(drafted, accepted);
        prior.record(drafted, accepted);
    }
}

/// The first largest logit. Those of a draft head that went wrong yield a wrong guess, nothing worse.
fn likeliest(logits: &[f32]) -> u32 {
    let best =
        logits.iter().enumerate().fold(0, |best, (i, &logit)| if logit > logits[best] { i } else { best });
    best as u32
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
