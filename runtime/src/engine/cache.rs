//! The prefix cache: snapshots of sequences, found by their tokens, kept within a budget of bytes.
//!
//! A snapshot is a sequence that is never advanced, only forked: the fork shares its base state and its attention
//! pages. It serves every prompt that begins with its tokens, and (by an exact rewind inside its log) prompts that part
//! from it within its last few tokens.

use std::collections::HashMap;

use super::drafts::Trail;
use super::radix::{NodeId, RadixTree};
use crate::runner::Sequence;
use crate::state::Cursor;
use crate::state::cursor::PREFILL_CHUNK;
use crate::state::memory::MemoryUsage;

/// Most snapshots, however small: finding the least valuable one looks at all of them.
const MAX_SNAPSHOTS: usize = 1024;
/// Requests after which a snapshot that was not used has lost half its value.
const HALF_LIFE: f64 = 4.0;

/// The state after some tokens.
#[derive(Debug)]
pub(super) struct Snapshot {
    pub(super) sequence: Sequence,
    /// Whether the tokens were read as a prompt in whole chunks, as they would be without a cache.
    pub(super) prefilled: bool,
    /// What the prediction head still has to read.
    pub(super) trail: Trail,
    /// What the draft model has read of the tokens, where it has read any; a sequence of its runner.
    pub(super) ahead: Option<Sequence>,
}

#[derive(Debug)]
struct Entry {
    snapshot: Snapshot,
    node: NodeId,
    /// Bytes of the sequence, by kind.
    usage: MemoryUsage,
    uses: u32,
    used: u64,
    pinned: bool,
}

/// What the cache has for a prompt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    /// Tokens that some snapshot shares with the prompt.
    pub(super) shared: usize,
    /// The snapshot to fork, and the position to rewind the fork to.
    pub(super) best: Option<(u64, usize)>,
}

/// Snapshots by their tokens.
#[derive(Debug)]
pub(super) struct PrefixCache {
    tree: RadixTree,
    entries: HashMap<u64, Entry>,
    next: u64,
    /// Requests so far.
    clock: u64,
    budget: usize,
    bytes: usize,
}

impl PrefixCache {
    /// An empty cache that may hold `budget` bytes.
    pub(super) fn new(budget: usize) -> PrefixCache {
        PrefixCache { tree: RadixTree::new(), entries: HashMap::new(), next: 0, clock: 0, budget, bytes: 0 }
    }

    /// Bytes held when they were last counted.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Snapshots held.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// A number that changes when a snapshot is added.
    pub(super) fn version(&self) -> u64 {
        self.next
    }

    /// Another request has come: what is not used grows older.
    pub(super) fn tick(&mut self) {
        self.clock += 1;
    }

    /// The deepest usable state for a prompt, of which at least one token has to be left to run. `exact` admits only
    /// those that give the very bits of a run without a cache.
    pub(super) fn find(&self, prompt: &[u32], exact: bool) -> Found {
        let most = prompt.len().saturating_sub(1);
        let found = self.tree.find(prompt, PREFILL_CHUNK);
        let usable = |id: u64, position: usize| {
            let snapshot = &self.entries[&id].snapshot;
            let cursor = snapshot.sequence.cursor()?;
            let reaches = position >= cursor.oldest() && position > 0;
            let exact = !exact || is_exact(snapshot, position, prompt.len());
            (reaches && exact).then_some((id, position))
        };
        let ahead = found.prefixes.iter().map(|&(depth, id)| (id, depth.min(most)));
        let beyond = found.beyond.iter().map(|&(_, id)| (id, found.shared.min(most)));
        // Of several at one position, the one that needs no rewind comes first in the chain and wins.
        let best = ahead.chain(beyond).filter_map(|(id, position)| usable(id, position)).fold(
            None,
            |best: Option<(u64, usize)>, next| match best {
                Some(best) if best.1 >= next.1 => Some(best),
                _ => Some(next),
            },
        );
        Found { shared: found.shared, best }
    }

    /// The snapshot of exactly these tokens.
    pub(super) fn at(&self, tokens: &[u32]) -> Option<u64> {
        let found = self.tree.find(tokens, 0).prefixes.last().copied();
        found.filter(|&(depth, _)| depth == tokens.len()).map(|(_, id)| id)
    }

    /// A snapshot and its tokens.
    pub(super) fn get(&self, id: u64) -> Option<(&Snapshot, Vec<u32>)> {
        let entry = self.entries.get(&id)?;
        Some((&entry.snapshot, self.tree.tokens(entry.node)))
    }

    /// Keeps a snapshot before others, or no longer.
    pub(super) fn pin(&mut self, id: u64, pinned: bool) {
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.pinned = pinned;
        }
    }

    /// A snapshot, marked as used.
    pub(super) fn take_note(&mut self, id: u64) -> Option<&Snapshot> {
        let entry = self.entries.get_mut(&id)?;
        entry.uses = entry.uses.saturating_add(1);
        entry.used = self.clock;
        Some(&entry.snapshot)
    }

    /// Keeps a snapshot of `tokens`; returns its number, and the one it replaces.
    pub(super) fn insert(
        &mut self,
        tokens: &[u32],
        snapshot: Snapshot,
        usage: MemoryUsage,
    ) -> (u64, Option<Snapshot>) {
        let id = self.next;
        self.next += 1;
        let (node, replaced) = self.tree.insert(tokens, id);
        let replaced = replaced.and_then(|id| self.entries.remove(&id));
        let uses = replaced.as_ref().map_or(0, |entry| entry.uses);
        self.entries.insert(id, Entry { snapshot, node, usage, uses, used: self.clock, pinned: false });
        (id, replaced.map(|entry| entry.snapshot))
    }

    /// Bytes held beside the sequences.
    pub(super) fn trail_bytes(&self) -> usize {
        self.entries.values().map(|entry| entry.snapshot.trail.bytes()).sum()
    }

    /// What the draft model has read of a snapshot's tokens.
    pub(super) fn ahead(&self, id: u64) -> Option<&Sequence> {
        self.entries.get(&id)?.snapshot.ahead.as_ref()
    }

    /// All sequences of the draft model held.
    pub(super) fn aheads(&self) -> impl Iterator<Item = &Sequence> {
        self.entries.values().filter_map(|entry| entry.snapshot.ahead.as_ref())
    }

    /// All sequences held.
    pub(super) fn sequences(&self) -> impl Iterator<Item = &Sequence> {
        self.entries.values().map(|entry| &entry.snapshot.sequence)
    }

    /// Takes note of how many bytes are held; returns the least valuable snapshot, with its tokens, if
    /// that is too many.
    pub(super) fn account(&mut self, bytes: usize) -> Option<(Vec<u32>, Snapshot)> {
        self.bytes = bytes;
        if bytes <= self.budget && self.entries.len() <= MAX_SNAPSHOTS {
            return None;
        }
        let worth = |entry: &Entry| (entry.pinned, self.worth(entry), entry.used);
        let all = self.entries.iter().map(|(&id, entry)| (id, worth(entry)));
        let (id, _) = all.min_by(|(a, x), (b, y)| {
            x.0.cmp(&y.0).then(x.1.total_cmp(&y.1)).then(x.2.cmp(&y.2)).then(a.cmp(b))
        })?;
        let entry = self.entries.remove(&id)?;
        let tokens = self.tree.tokens(entry.node);
        self.tree.remove(entry.node);
        Some((tokens, entry.snapshot))
    }

    /// The numbers of all snapshots.
    pub(super) fn ids(&self) -> Vec<u64> {
        self.entries.keys().copied().collect()
    }

    /// Tokens that a snapshot saves over the next shallower one, weighted by use and age, for each byte it costs.
    fn worth(&self, entry: &Entry) -> f64 {
        let depth = entry.snapshot.sequence.position();
        let above = self.tree.above(entry.node).and_then(|id| self.entries.get(&id));
        let shallower = above.map_or(0, |entry| entry.snapshot.sequence.position());
        let saved = (depth - shallower.min(depth)) as f64;
        let age = (self.clock - entry.used) as f64 / HALF_LIFE;
        // Pages are shared with the snapshots above and below; only a leaf's last ones are its own.
        let share = if self.tree.has_below(entry.node) { 0.0 } else { saved / depth.max(1) as f64 };
        let own = (entry.usage.base + entry.usage.log + entry.usage.conv) as f64;
        let bytes = own + entry.usage.kv as f64 * share;
        saved * f64::from(entry.uses + 1) * (-age).exp2() / bytes.max(1.0)
    }
}

/// Whether going on from `position` of a snapshot gives the bits of a run without a cache, for a prompt of `length`
/// tokens: chunks must lie as they would there.
fn is_exact(snapshot: &Snapshot, position: usize, length: usize) -> bool {
    let chunk = position / PREFILL_CHUNK * PREFILL_CHUNK;
    let cursor = snapshot.sequence.cursor();
    let stateless = cursor.map_or(0, |cursor| cursor.policy().stateless);
    // A prompt that was given up inside a chunk has read it as whole ones are read.
    let open = cursor.is_some_and(Cursor::is_open);
    let logged_only = chunk + PREFILL_CHUNK <= stateless;
    let same_chunks = position == chunk || (!open && length < chunk + PREFILL_CHUNK);
    logged_only || (snapshot.prefilled && same_chunks)
}

/// Positions at which a prompt of `length` tokens is worth a snapshot: multiples of the chunk, after `start`.
///
/// They lie before the ends of messages, before the point where the prompt parts from an earlier one (`shared`), shortly
/// before the end (for prompts whose last words change), and in between at distances that grow with the length. In the
/// last, partial chunk, where cuts change no bits, they lie at those places themselves.
pub(super) fn cuts(start: usize, length: usize, shared: usize, boundaries: &[usize]) -> Vec<usize> {
    const LEAST_DISTANCE: usize = 512;
    // Fewer tokens are read again as quickly as a pass of their own is run.
    const LEAST_TOKENS: usize = 16;
    let down = |position: usize| position / PREFILL_CHUNK * PREFILL_CHUNK;
    let last = down(length.saturating_sub(1));
    let distance = LEAST_DISTANCE.max(down(length / 8));
    let mut cuts: Vec<usize> = boundaries.iter().map(|&boundary| down(boundary.min(length))).collect();
    cuts.extend([down(shared), last, last.saturating_sub(PREFILL_CHUNK)]);
    cuts.extend((1..).map(|i| i * distance).take_while(|&cut| cut < last));
    cuts.extend(boundaries.iter().chain([&shared]).filter(|&&place| place > last && place >= LEAST_TOKENS));
    cuts.retain(|&cut| cut > start && cut < length);
    cuts.sort_unstable();
    cuts.dedup();
    cuts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_lie_where_later_prompts_may_part() {
        assert_eq!(cuts(0, 100, 0, &[]), [64]);
        assert_eq!(cuts(64, 100, 0, &[]), [0usize; 0]);
        assert_eq!(cuts(0, 64, 0, &[64]), [0usize; 0], "the end has a snapshot of its own");
        assert_eq!(cuts(0, 700, 300, &[130, 400]), [128, 256, 384, 512, 576, 640]);
        assert_eq!(cuts(0, 600, 590, &[30, 580]), [512, 576, 580, 590]);
        assert_eq!(cuts(0, 60, 3, &[9, 20]), [20], "a few tokens are no reason to end a pass");
        assert_eq!(cuts(0, 32_768, 0, &[]).len(), 9, "distances grow with the length");
    }
}
