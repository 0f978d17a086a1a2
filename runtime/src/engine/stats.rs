//! What an engine has done and what it holds.

use super::request::Class;

/// What a running request is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotPhase {
    /// Reads its prompt.
    Prefill,
    /// Generates.
    Decode,
}

/// One running request.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SlotStats {
    /// [`super::Generation::id`].
    pub id: u64,
    /// Who waits for it.
    pub class: Class,
    /// What it is at.
    pub phase: SlotPhase,
    /// Tokens of its prompt.
    pub prompt_tokens: usize,
    /// Of these, tokens that came from the cache.
    pub cached_tokens: usize,
    /// Tokens whose state it holds.
    pub position: usize,
    /// Tokens generated.
    pub generated: usize,
    /// Bytes reserved for it.
    pub reserved: usize,
    /// The name under which it leaves its state.
    pub session: Option<String>,
}

/// Counters since the start of an engine, and how it stands now.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Stats {
    /// Requests accepted.
    pub accepted: u64,
    /// Requests refused because the queue was full.
    pub refused: u64,
    /// Requests that ended as they should.
    pub completed: u64,
    /// Requests cancelled.
    pub cancelled: u64,
    /// Requests that failed.
    pub failed: u64,
    /// Passes over the weights.
    pub steps: u64,
    /// Requests that took part in these, one counted in each of its passes.
    pub stream_steps: u64,
    /// Tokens of the longest sequence there has been.
    pub longest: usize,
    /// Tokens of prompts.
    pub prompt_tokens: u64,
    /// Of these, tokens whose state was reused.
    pub cached_tokens: u64,
    /// Tokens generated.
    pub generated_tokens: u64,
    /// Drafts that were verified.
    pub drafts: u64,
    /// Tokens proposed by drafts.
    pub drafted_tokens: u64,
    /// Tokens of prompts that the draft model has read. What it takes from the prefix cache is not among them.
    pub draft_model_tokens: u64,
    /// Proposed tokens accepted.
    pub accepted_tokens: u64,
    /// The same by their place in a draft, the first place first.
    pub accepted_by_place: Vec<u64>,
    /// Seconds spent in passes with a prompt slice.
    pub prefill_seconds: f64,
    /// Seconds spent in passes without.
    pub decode_seconds: f64,
    /// Of all these, seconds spent on drafts before they are verified.
    pub draft_seconds: f64,
    /// Requests that wait.
    pub waiting: usize,
    /// Requests that run.
    pub slots: Vec<SlotStats>,
    /// Bytes reserved for running requests.
    pub reserved_bytes: usize,
    /// Bytes that may be reserved.
    pub memory_budget: usize,
    /// Snapshots in the prefix cache.
    pub cache_entries: usize,
    /// Bytes the prefix cache holds.
    pub cache_bytes: usize,
    /// Bytes it may hold.
    pub cache_budget: usize,
    /// Snapshots in files.
    pub cache_files: usize,
    /// Bytes these have.
    pub cache_file_bytes: u64,
    /// Most tokens of a request.
    pub context: usize,
    /// Most requests that run at once.
    pub max_running: usize,
}

impl Stats {
    /// Counts a draft of some tokens of which the first `accepted` were accepted.
    pub(super) fn count_draft(&mut self, drafted: usize, accepted: usize) {
        self.drafts += u64::from(drafted > 0);
        self.drafted_tokens += drafted as u64;
        self.accepted_tokens += accepted as u64;
        if self.accepted_by_place.len() < accepted {
            self.accepted_by_place.resize(accepted, 0);
        }
        self.accepted_by_place[..accepted].iter_mut().for_each(|count| *count += 1);
    }
}
