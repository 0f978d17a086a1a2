//! What requests take from the prefix cache and what they leave there.

use super::cache::{Snapshot, cuts};
use super::scheduler::Phase;
use super::stream::Stream;
use super::worker::Worker;
use crate::runner::Sequence;

/// Shared beginnings of two prompts that are worth a snapshot before anybody has come back to them.
const LEAST_COMMON: usize = 64;

impl Worker {
    /// Gives a stream that has just entered the deepest state its prompt can start from, and decides where its prompt
    /// will leave snapshots.
    pub(super) fn reuse(&mut self, index: usize) {
        self.cache.tick();
        self.search(index);
        let stream = &self.running[index];
        let mut stats = self.shared.stats();
        stats.prompt_tokens += stream.prompt_len() as u64;
        stats.cached_tokens += stream.usage.cached_tokens as u64;
    }

    /// Looks again for streams that have not begun to read: another one may have left a snapshot meanwhile.
    pub(super) fn search_again(&mut self) {
        for index in 0..self.running.len() {
            let stream = &self.running[index];
            let untouched = stream.position() == stream.usage.cached_tokens;
            let reading = matches!(stream.phase(), Phase::Prefill { .. });
            if untouched && reading && stream.searched != Some(self.cache.version()) {
                let before = stream.usage.cached_tokens;
                self.search(index);
                let more = self.running[index].usage.cached_tokens - before;
                self.shared.stats().cached_tokens += more as u64;
            }
        }
    }

    fn search(&mut self, index: usize) {
        let stream = &mut self.running[index];
        stream.searched = Some(self.cache.version());
        if let Some(reason) = unusable(stream) {
            stream.usage.miss_reason = Some(reason.to_owned());
            return;
        }
        let found = self.cache.find(&stream.tokens[..stream.prompt_len()], self.limits.options.exact_cache);
        if let Some((id, position)) = found.best.filter(|&(_, position)| position > stream.position()) {
            self.fork(index, id, position);
        }
        let others = self.running.iter().enumerate().filter(|&(i, _)| i != index).map(|(_, other)| other);
        let stream = &self.running[index];
        let prompt = &stream.tokens[..stream.prompt_len()];
        let common = |other: &Stream| {
            let pairs = prompt.iter().zip(&other.tokens[..other.prompt_len()]);
            pairs.take_while(|(a, b)| a == b).count()
        };
        let beside = others.chain(&self.waiting).map(common).filter(|&common| common >= LEAST_COMMON).max();
        let (start, length) = (stream.position(), stream.prompt_len());
        let shared = found.shared.max(beside.unwrap_or(0));
        let cuts = cuts(start, length, shared, &stream.request.message_boundaries);
        let stream = &mut self.running[index];
        stream.cuts = cuts;
        stream.usage.cached_tokens = start;
        stream.usage.miss_reason = miss_reason(start, found.shared.min(length - 1));
    }

    /// Replaces the sequence of a stream by a fork of a snapshot, rewound to `position`. A snapshot that fails to fork
    /// is no loss: the prompt is read from where it stands.
    fn fork(&mut self, index: usize, id: u64, position: usize) {
        let Some(snapshot) = self.cache.take_note(id) else { return };
        let (prefilled, mut trail) = (snapshot.prefilled, snapshot.trail.clone());
        let mut fork = match self.runner.fork(&snapshot.sequence) {
            Ok(fork) => fork,
            Err(error) => {
                tracing::warn!(%error, "a snapshot cannot be forked");
                return;
            }
        };
        if position < fork.position()
            && let Err(error) = self.runner.rewind(&mut fork, position)
        {
            tracing::warn!(%error, "a snapshot cannot be rewound as far as it said");
            self.runner.release(fork);
            return;
        }
        trail.rewind(position, self.model.spec.hidden);
        let stream = &mut self.running[index];
        stream.drafter.trail = trail;
        stream.prefilled = prefilled && position.is_multiple_of(crate::state::cursor::PREFILL_CHUNK);
        if let Some(before) = stream.sequence.replace(fork) {
            self.runner.release(before);
        }
    }

    /// Leaves a snapshot of a stream in the middle or at the end of its prompt, where it is worth one.
    pub(super) fn keep(&mut self, index: usize) {
        let stream = &self.running[index];
        let position = stream.position();
        let worth = position == stream.prompt_len() || stream.cuts.contains(&position);
        if !worth || unusable(stream).is_some() || self.cache.holds(&stream.tokens[..position]) {
            return;
        }
        let Some(sequence) = &stream.sequence else { return };
        match self.runner.fork(sequence) {
            Ok(fork) => {
                let (tokens, prefilled) = (stream.tokens[..position].to_vec(), stream.prefilled);
                let trail = stream.drafter.trail.clone();
                self.insert(&tokens, Snapshot { sequence: fork, prefilled, trail });
            }
            Err(error) => tracing::warn!(%error, "no room for a snapshot"),
        }
    }

    /// Leaves the state at the end of a stream.
    pub(super) fn keep_last(&mut self, stream: &Stream, sequence: Sequence) {
        let position = sequence.position();
        let tokens = &stream.tokens[..position];
        if position == 0 || unusable(stream).is_some() || self.cache.holds(tokens) {
            self.runner.release(sequence);
            return;
        }
        let (prefilled, trail) = (stream.prefilled, stream.drafter.trail.clone());
        self.insert(tokens, Snapshot { sequence, prefilled, trail });
    }

    fn insert(&mut self, tokens: &[u32], mut snapshot: Snapshot) {
        let sequence = &mut snapshot.sequence;
        let usage = self.runner.compact(sequence).and_then(|()| self.runner.usage(sequence));
        let usage = match usage {
            Ok(usage) => usage,
            Err(error) => {
                tracing::warn!(%error, "a snapshot was lost");
                self.runner.release(snapshot.sequence);
                return;
            }
        };
        let (_, replaced) = self.cache.insert(tokens, snapshot, usage);
        if let Some(replaced) = replaced {
            self.runner.release(replaced.sequence);
        }
        loop {
            let bytes = self.runner.footprint(self.cache.sequences()) + self.cache.trail_bytes();
            let Some(evicted) = self.cache.account(bytes) else { return };
            self.runner.release(evicted.sequence);
        }
    }
}

/// Why a request has no part in the cache.
fn unusable(stream: &Stream) -> Option<&'static str> {
    if !stream.request.cache_prompt {
        Some("the request asked for no cache")
    } else if stream.request.echo {
        Some("probabilities of the prompt's tokens need all of its passes")
    } else if stream.request.embeddings.is_some() {
        Some("hidden states of all tokens need all of their passes")
    } else {
        None
    }
}

/// Why no more was reused; `shared` tokens could have been.
fn miss_reason(cached: usize, shared: usize) -> Option<String> {
    match (cached, shared) {
        (cached, shared) if cached >= shared && shared > 0 => None,
        (_, 0) => Some("no earlier prompt begins like this one".to_owned()),
        (0, shared) => Some(format!("{shared} tokens are known, but no state among them is kept")),
        (cached, shared) => Some(format!(
            "{shared} tokens are known, but the last state kept among them is that after {cached}"
        )),
    }
}
