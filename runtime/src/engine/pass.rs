//! One pass: which rows of which streams, and what becomes of what they yield.

use std::time::Instant;

use super::request::{FinishReason, RequestError};
use super::scheduler::Plan;
use super::stream::Stream;
use super::worker::{Outcome, Worker};
use crate::backend::{Outputs, WantLogits};
use crate::runner::{RunError, Runner, Sequence, Work, prefill_kind};
use crate::state::PassKind;

/// Rows of one stream in a pass.
pub(super) struct Lane {
    /// Index into the running streams.
    stream: usize,
    sequence: Sequence,
    rows: usize,
    kind: PassKind,
    logits: WantLogits,
}

impl Worker {
    /// Takes the sequences of a planned step out of their streams.
    pub(super) fn compose(&mut self, plan: &Plan) {
        self.lanes.clear();
        for (index, stream) in self.running.iter_mut().enumerate() {
            let prefill = plan.slices.iter().find(|slice| slice.id == stream.id);
            let (rows, kind, logits) = if let Some(slice) = prefill {
                let position = stream.position();
                let left = stream.prompt_len() - position;
                let ends = slice.rows == left;
                let logits = match () {
                    () if stream.request.echo => WantLogits::All,
                    () if ends && stream.limit > 0 => WantLogits::Last,
                    () => WantLogits::None,
                };
                (slice.rows, prefill_kind(position, left, slice.rows), logits)
            } else if plan.decode.contains(&stream.id) {
                stream.window.clear();
                stream.window.extend(stream.tokens.last());
                stream.window.extend_from_slice(&stream.drafter.draft);
                (stream.window.len(), PassKind::Window, WantLogits::All)
            } else {
                continue;
            };
            if let Some(sequence) = stream.sequence.take() {
                self.lanes.push(Lane { stream: index, sequence, rows, kind, logits });
            }
        }
    }

    /// Runs the composed pass and takes in what it yields.
    pub(super) fn pass(&mut self) -> Vec<(usize, Outcome)> {
        let states = |lane: &Lane| {
            let stream = &self.running[lane.stream];
            stream.request.embeddings.is_some() || stream.drafter.follows
        };
        self.runner.outputs_mut().want_hidden = self.lanes.iter().any(states);
        let started = Instant::now();
        if let Err(error) = run(&mut self.runner, &mut self.lanes, &self.running) {
            return match self.lanes.len() {
                1 => self.fail_lanes(&RequestError::Backend(error.to_string())),
                _ => self.pass_one_by_one(),
            };
        }
        let run = started.elapsed();
        let of_prompts =
            |prompts: bool| self.lanes.iter().filter(move |lane| lane.kind.is_prompt() == prompts);
        let rows_of = |prompts: bool| of_prompts(prompts).map(|lane| lane.rows).sum::<usize>();
        let (streams, decode, slice) = (of_prompts(false).count(), rows_of(false), rows_of(true));
        self.slices += u64::from(slice > 0);
        let depths = of_prompts(true).map(|lane| lane.rows * lane.sequence.position()).sum::<usize>();
        let depth = depths / slice.max(1);
        let read: Vec<usize> = of_prompts(true).map(|lane| lane.stream).collect();
        let longest = self.lanes.iter().map(|lane| lane.sequence.position() + lane.sequence.pending()).max();
        let outputs = std::mem::take(self.runner.outputs_mut());
        let before = self.generated;
        let outcomes = self.digest(&outputs);
        *self.runner.outputs_mut() = outputs;
        self.read_trails();
        self.read_prompts_ahead(&read);
        let took = started.elapsed();
        tracing::trace!(streams, decode, prompts = read.len(), slice, depth, ?run, ?took, "pass");
        self.costs.record(streams, decode - streams, slice, depth, took);
        let seconds = took.as_secs_f64() + self.drafting;
        if slice == 0 {
            let (tokens, drafted) = (self.generated - before, decode - streams);
            let own = self.costs.own_share(streams, drafted, took.as_secs_f64())
                + self.drafting.min(self.usual_drafting);
            self.speculation.record(streams, tokens, drafted, own, self.costs.plain_pass(streams));
        }
        {
            let mut stats = self.shared.stats();
            stats.steps += 1;
            stats.stream_steps += (streams + read.len()) as u64;
            stats.longest = stats.longest.max(longest.unwrap_or(0));
            *if slice > 0 { &mut stats.prefill_seconds } else { &mut stats.decode_seconds } += seconds;
            stats.draft_seconds += self.drafting;
        }
        for stream in read {
            self.keep(stream);
        }
        outcomes
    }

    /// Runs the lanes of a refused pass each on its own: those that are not at fault get through.
    fn pass_one_by_one(&mut self) -> Vec<(usize, Outcome)> {
        let mut outcomes = Vec::new();
        for lane in std::mem::take(&mut self.lanes) {
            self.lanes.push(lane);
            outcomes.extend(self.pass());
        }
        outcomes
    }

    /// Samples, commits and emits, lane by lane.
    fn digest(&mut self, outputs: &Outputs) -> Vec<(usize, Outcome)> {
        let (vocab, width) = (self.model.spec.vocab, self.model.spec.hidden);
        let (mut logits, mut hidden) = (&outputs.logits[..], &outputs.hidden[..]);
        let mut outcomes = Vec::new();
        for lane in std::mem::take(&mut self.lanes) {
            let index = lane.stream;
            let wanted = match lane.logits {
                WantLogits::None => 0,
                WantLogits::Last => 1,
                WantLogits::All => lane.rows,
            };
            let (mine, rest) = logits.split_at(wanted * vocab);
            logits = rest;
            let states = if outputs.want_hidden { lane.rows * width } else { 0 };
            let (states, rest) = hidden.split_at(states);
            hidden = rest;
            let outcome = match lane.kind {
                PassKind::Prefill | PassKind::PrefillPart => {
                    self.digest_prompt(lane, mine, states, &mut outcomes)
                }
                PassKind::Window => self.digest_window(lane, mine, states),
            };
            outcomes.extend(outcome.map(|outcome| (index, outcome)));
        }
        outcomes
    }

    /// Takes in a slice of a prompt: its logits, where wanted, and its hidden states, where any stream wants some.
    fn digest_prompt(
        &mut self,
        lane: Lane,
        logits: &[f32],
        hidden: &[f32],
        outcomes: &mut Vec<(usize, Outcome)>,
    ) -> Option<Outcome> {
        let (vocab, width) = (self.model.spec.vocab, self.model.spec.hidden);
        let stream = &mut self.running[lane.stream];
        let (end, last) = (lane.sequence.position(), logits.chunks_exact(vocab).next_back());
        stream.sequence = Some(lane.sequence);
        if stream.request.echo {
            for (row, logits) in logits.chunks_exact(vocab).enumerate() {
                stream.push_prompt_row(end - lane.rows + row, logits);
            }
        }
        stream.drafter.follow(end - lane.rows, hidden, width);
        if stream.request.embeddings.is_some() {
            stream.pool(hidden, width);
        }
        stream.report_prefill();
        if end < stream.prompt_len() {
            return None;
        }
        stream.report_prompt();
        match last {
            Some(row) if stream.limit > 0 => {
                self.share(lane.stream, row, outcomes);
                self.first_token(lane.stream, row)
            }
            _ => Some(Outcome::Finished(FinishReason::Length)),
        }
    }

    /// Chooses the first token of a stream.
    fn first_token(&mut self, index: usize, logits: &[f32]) -> Option<Outcome> {
        match self.emit(index, logits) {
            Ok((_, finished)) => finished.map(Outcome::Finished),
            Err(error) => Some(Outcome::Failed(error)),
        }
    }

    /// Lets streams that wait to read the very prompt that has just been read go on from its end.
    fn share(&mut self, from: usize, logits: &[f32], outcomes: &mut Vec<(usize, Outcome)>) {
        for index in 0..self.running.len() {
            if index != from && self.can_share(from, index) && self.fork_stream(from, index) {
                outcomes.extend(self.first_token(index, logits).map(|outcome| (index, outcome)));
            }
        }
    }

    /// Takes in decode rows: as many stand as agree with what is chosen.
    fn digest_window(&mut self, mut lane: Lane, logits: &[f32], hidden: &[f32]) -> Option<Outcome> {
        let mut accepted = 0;
        let mut outcome = None;
        for row in logits.chunks_exact(self.model.spec.vocab) {
            accepted += 1;
            match self.emit(lane.stream, row) {
                Ok((token, None)) if self.running[lane.stream].window.get(accepted) == Some(&token) => {}
                Ok((_, finished)) => {
                    outcome = finished.map(Outcome::Finished);
                    break;
                }
                Err(error) => {
                    outcome = Some(Outcome::Failed(error));
                    break;
                }
            }
        }
        self.judge(lane.stream, accepted - 1);
        let (start, width) = (lane.sequence.position(), self.model.spec.hidden);
        let committed = self.runner.commit(&mut lane.sequence, accepted);
        let stream = &mut self.running[lane.stream];
        stream.sequence = Some(lane.sequence);
        stream.prefilled = false;
        let hidden = hidden.get(..accepted * width).unwrap_or_default();
        stream.drafter.follow(start, hidden, width);
        stream.usage.drafted += lane.rows - 1;
        stream.usage.accepted += accepted - 1;
        self.shared.stats().count_draft(lane.rows - 1, accepted - 1);
        match committed {
            Ok(()) => outcome,
            Err(error) => Some(Outcome::Failed(RequestError::Backend(error.to_string()))),
        }
    }

    /// Chooses a token from a row of logits and sends it.
    fn emit(&mut self, stream: usize, logits: &[f32]) -> Result<(u32, Option<FinishReason>), RequestError> {
        let stream = &mut self.running[stream];
        let (token, logprob) = stream.choose(logits)?;
        let finished = stream.push(token, logprob, self.model.tokenizer.as_deref());
        self.generated += 1;
        self.shared.stats().generated_tokens += 1;
        Ok((token, finished))
    }

    /// Takes the sequences of a failed pass back; their streams fail.
    pub(super) fn fail_lanes(&mut self, error: &RequestError) -> Vec<(usize, Outcome)> {
        let mut outcomes = Vec::new();
        for lane in self.lanes.drain(..) {
            self.running[lane.stream].sequence = Some(lane.sequence);
            outcomes.push((lane.stream, Outcome::Failed(error.clone())));
        }
        outcomes
    }
}

/// Runs the lanes as one pass.
fn run(runner: &mut Runner, lanes: &mut [Lane], streams: &[Stream]) -> Result<(), RunError> {
    let mut work: Vec<Work<'_>> = lanes
        .iter_mut()
        .map(|lane| {
            let stream = &streams[lane.stream];
            let tokens = match lane.kind {
                PassKind::Prefill | PassKind::PrefillPart => {
                    let position = lane.sequence.position();
                    &stream.tokens[position..position + lane.rows]
                }
                PassKind::Window => &stream.window[..],
            };
            Work { sequence: &mut lane.sequence, tokens, kind: lane.kind, logits: lane.logits }
        })
        .collect();
    runner.step(&mut work)?;
    Ok(())
}
