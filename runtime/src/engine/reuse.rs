//! What requests take from the prefix cache and what they leave there.

use super::cache::{Snapshot, cuts};
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
        self.relate(index);
        self.search(index);
        let stream = &self.running[index];
        let mut stats = self.shared.stats();
        stats.prompt_tokens += stream.prompt_len() as u64;
        stats.cached_tokens += stream.usage.cached_tokens as u64;
    }

    /// Finds the streams whose prompts begin like that of one that has just entered.
    fn relate(&mut self, index: usize) {
        let stream = &self.running[index];
        let reading = |other: &&Stream| other.id != stream.id && other.position() < other.prompt_len();
        let relatives = self.running.iter().filter(reading).map(|other| (other.id, stream.common(other)));
        let close = |&(id, common): &(u64, usize)| common >= LEAST_COMMON || self.is_same(index, id, common);
        self.running[index].relatives = relatives.filter(close).collect();
    }

    /// Whether two prompts are one.
    fn is_same(&self, index: usize, id: u64, common: usize) -> bool {
        let lengths = self.running.iter().filter(|other| other.id == id).map(Stream::prompt_len);
        common == self.running[index].prompt_len() && lengths.into_iter().all(|length| length == common)
    }

    /// Looks again for a stream that is about to begin its prompt: another one may have left a snapshot meanwhile. True
    /// if it stands elsewhere now.
    pub(super) fn search_again(&mut self, id: u64) -> bool {
        let Some(index) = self.running.iter().position(|stream| stream.id == id) else { return false };
        let stream = &self.running[index];
        let before = stream.position();
        if before != stream.usage.cached_tokens || stream.searched == Some(self.cache.version()) {
            return false;
        }
        self.search(index);
        let more = self.running[index].position() - before;
        self.shared.stats().cached_tokens += more as u64;
        more > 0
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
        let beside = others
            .chain(&self.waiting)
            .map(|other| stream.common(other))
            .filter(|&common| common >= LEAST_COMMON)
            .max();
        let (start, length) = (stream.position(), stream.prompt_len());
        let shared = found.shared.max(beside.unwrap_or(0));
        let cuts = cuts(start, length, shared, &stream.request.message_boundaries);
        let stream = &mut self.running[index];
        stream.cuts = cuts;
        stream.usage.cached_tokens = start;
        stream.usage.miss_reason = miss_reason(start, found.shared.min(length - 1));
        self.fetch(index, start);
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
        self.adopt_model(index, id, position);
        let stream = &mut self.running[index];
        stream.drafter.trail = trail;
        stream.prefilled = prefilled && position.is_multiple_of(crate::state::cursor::PREFILL_CHUNK);
        if let Some(before) = stream.sequence.replace(fork) {
            self.runner.release(before);
        }
    }

    /// Whether a stream has yet to read the very prompt that another one has read.
    pub(super) fn can_share(&self, from: usize, index: usize) -> bool {
        let (from, stream) = (&self.running[from], &self.running[index]);
        let position = stream.position();
        let untouched = position == stream.usage.cached_tokens && position < stream.prompt_len();
        let allowed = from.group == stream.group || unusable(stream).is_none();
        let plain = !stream.request.echo && stream.limit > 0;
        let same =
            stream.prompt_len() == from.prompt_len() && stream.tokens == from.tokens[..from.prompt_len()];
        untouched && allowed && plain && same && !stream.sink.cancelled()
    }

    /// Gives a stream a fork of the sequence of another one that stands at the end of the same prompt.
    pub(super) fn fork_stream(&mut self, from: usize, index: usize) -> bool {
        let source = &self.running[from];
        let Some(sequence) = &source.sequence else { return false };
        let fork = match self.runner.fork(sequence) {
            Ok(fork) => fork,
            Err(error) => {
                tracing::warn!(%error, "a sequence cannot be forked");
                return false;
            }
        };
        let (trail, prefilled) = (source.drafter.trail.clone(), source.prefilled);
        let stream = &mut self.running[index];
        let more = stream.prompt_len() - stream.usage.cached_tokens;
        stream.drafter.trail = trail;
        stream.prefilled = prefilled;
        stream.usage.cached_tokens = stream.prompt_len();
        stream.usage.miss_reason = None;
        if let Some(before) = stream.sequence.replace(fork) {
            self.runner.release(before);
        }
        stream.report_prefill();
        self.fork_model(from, index);
        self.shared.stats().cached_tokens += more as u64;
        true
    }

    /// Leaves a snapshot of a stream in the middle or at the end of its prompt, where it is worth one.
    pub(super) fn keep(&mut self, index: usize) {
        let stream = &self.running[index];
        let position = stream.position();
        let worth = position == stream.prompt_len() || stream.cuts.contains(&position);
        if !worth || unusable(stream).is_some() || self.cache.at(&stream.tokens[..position]).is_some() {
            return;
        }
        let Some(sequence) = &stream.sequence else { return };
        match self.runner.fork(sequence) {
            Ok(fork) => {
                let (tokens, prefilled) = (stream.tokens[..position].to_vec(), stream.prefilled);
                let trail = stream.drafter.trail.clone();
                let ahead = self.copy_model(index);
                self.insert(&tokens, Snapshot { sequence: fork, prefilled, trail, ahead });
            }
            Err(error) => tracing::warn!(%error, "no room for a snapshot"),
        }
    }

    /// Leaves the state at the end of a stream.
    pub(super) fn keep_last(&mut self, stream: &mut Stream, sequence: Sequence) {
        let position = sequence.position();
        let tokens = &stream.tokens[..position];
        let wanted = stream.request.session.is_some() || unusable(stream).is_none();
        let kept = match self.cache.at(tokens) {
            None if position > 0 && wanted => {
                let (prefilled, trail) = (stream.prefilled, std::mem::take(&mut stream.drafter.trail));
                let ahead = self.take_model(stream);
                let tokens = &stream.tokens[..position];
                self.insert(tokens, Snapshot { sequence, prefilled, trail, ahead })
            }
            held => {
                self.runner.release(sequence);
                held
            }
        };
        if let (Some(name), Some(id)) = (&stream.request.session, kept) {
            self.name_session(name, id, stream.request.session_pinned);
        }
    }

    /// Puts a snapshot into the cache; absent if it cannot be kept.
    pub(super) fn insert(&mut self, tokens: &[u32], snapshot: Snapshot) -> Option<u64> {
        let id = self.put(tokens, snapshot)?;
        self.keep_to_budget();
        Some(id)
    }

    /// Puts a snapshot into the cache, whatever its budget.
    pub(super) fn put(&mut self, tokens: &[u32], mut snapshot: Snapshot) -> Option<u64> {
        let sequence = &mut snapshot.sequence;
        let usage = self.runner.compact(sequence).and_then(|()| self.runner.usage(sequence));
        let usage = match usage {
            Ok(usage) => usage + self.settle_ahead(&mut snapshot.ahead),
            Err(error) => {
                tracing::warn!(%error, "a snapshot was lost");
                self.drop_snapshot(snapshot);
                return None;
            }
        };
        let (id, replaced) = self.cache.insert(tokens, snapshot, usage);
        if let Some(replaced) = replaced {
            self.drop_snapshot(replaced);
        }
        Some(id)
    }

    /// Takes snapshots out of the cache until it keeps to its budget.
    pub(super) fn keep_to_budget(&mut self) {
        loop {
            let own = self.runner.footprint(self.cache.sequences()) + self.cache.trail_bytes();
            let Some(evicted) = self.cache.account(own + self.aheads_footprint()) else { break };
            let (tokens, evicted) = evicted;
            self.spill(tokens, &evicted);
            self.drop_snapshot(evicted);
        }
    }

    fn drop_snapshot(&mut self, snapshot: Snapshot) {
        self.runner.release(snapshot.sequence);
        self.drop_ahead(snapshot.ahead);
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
