//! Warming up: the first pass of an engine reads the weights from their file, touches memory and sets up what later passes
//! find. A warm-up does that before anybody waits, and leaves behind nothing but what passes cost.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::Command;
use super::costs::CostModel;
use super::drafts::Priors;
use super::generation::channel;
use super::handle::EngineHandle;
use super::request::{Event, FinishReason, Request, RequestError};
use super::speculation::Speculation;
use super::stats::Stats;
use super::stream::Stream;
use super::worker::Worker;
use crate::sample::SamplingParams;
use crate::state::cursor::PREFILL_CHUNK;

/// Tokens of the prompts that are read: few while the weights come from a disk, then as many as show what rows cost.
const PROMPTS: [usize; 2] = [8, PREFILL_CHUNK];
/// Tokens of the answers: as many passes as make the cost of one known.
const ANSWER: usize = 4;
/// A model whose passes take longer than this is not made to read the longer prompt: whoever waits for the server would
/// notice.
const SLOW_PASS: Duration = Duration::from_millis(100);

impl EngineHandle {
    /// Runs the model on a few tokens, so that the first request does not wait for weights to be read from their file and
    /// memory to be touched. Statistics and cache are as before. An engine that has work is warm, and none that lacks the
    /// room for a few tokens is warmed up.
    ///
    /// # Errors
    /// [`RequestError`] when the device fails, as it would have for a request.
    pub fn warm_up(&self) -> Result<(), RequestError> {
        let vocab = self.model().spec.vocab;
        let (mut streams, mut generations) = (Vec::new(), Vec::new());
        for length in PROMPTS {
            let request = Request {
                max_tokens: Some(ANSWER),
                sampling: SamplingParams::greedy(),
                ignore_eos: true,
                cache_prompt: false,
                ..Request::new((0..length).map(|i| (i % vocab) as u32).collect())
            };
            let (Ok(limit), Ok(parts)) = (self.token_limit(&request), self.parts(&request, 0)) else { break };
            let id = self.fresh_ids(1);
            let (sink, generation) = channel(id);
            streams.push(Stream::new(id, id, request, limit, sink, parts));
            generations.push(generation);
        }
        let run = self.ask(|reply| Command::WarmUp { streams, reply });
        run.map_err(|_| RequestError::Stopped)?;
        let mut errors = generations.into_iter().flatten().filter_map(|event| match event {
            Event::Error(error) => Some(error),
            _ => None,
        });
        errors.next().map_or(Ok(()), Err)
    }
}

impl Worker {
    /// Runs requests that nobody asked for, one after the other, while there are no others.
    pub(super) fn warm_up(&mut self, streams: Vec<Stream>) {
        let before = self.shared.stats().clone();
        for mut stream in streams {
            let pass = self.costs.decode_pass(1, 0).map(Duration::from_secs_f64);
            if !self.is_idle() || pass.is_some_and(|pass| pass > SLOW_PASS) {
                stream.finish(FinishReason::Cancelled);
                continue;
            }
            // What the passes before have cost was the cost of touching things for the first time.
            self.costs = CostModel::default();
            self.shared.waiting.fetch_add(1, Ordering::Relaxed);
            self.waiting.push(stream);
            while !self.is_idle() {
                self.step();
            }
        }
        (self.speculation, self.priors) = (Speculation::default(), Priors::default());
        let mut stats = self.shared.stats();
        let (accepted, refused) = (stats.accepted, stats.refused);
        *stats = Stats { accepted, refused, ..before };
    }
}
