//! What the next step of an engine runs: a pure function of who waits, who runs and what passes have cost.
//!
//! A step is one pass over the weights. It holds one decode row (or a verify window) of every stream that may run,
//! and at most one slice of one prompt, sized so that the step takes no longer than the promised gap between two
//! tokens of a stream. Nobody starves:
//! - waiting requests enter in order of arrival, interactive ones first; one that does not fit yet may be overtaken
//!   [`MAX_OVERTAKES`] times, and every [`BACKGROUND_SHARE`]th request to enter is the oldest of all;
//! - prompts take turns: the shortest remainder goes first, but every [`OLDEST_SHARE`]th slice belongs to the oldest;
//! - background streams join every [`BACKGROUND_SHARE`]th step while interactive ones decode, and every step else.

use std::time::Duration;

use super::request::Class;
use crate::runner::prefill_slice;
use crate::state::cursor::PREFILL_CHUNK;

/// One in this many turns goes to background work while there is interactive work.
pub const BACKGROUND_SHARE: u64 = 4;
/// One in this many slices goes to the oldest prompt.
pub const OLDEST_SHARE: u64 = 4;
/// How often a waiting request may be overtaken by a smaller one.
pub const MAX_OVERTAKES: u32 = 16;
/// Rows of a slice when nobody waits for tokens and nothing is known of its cost.
const DEFAULT_SLICE: usize = 256;
/// Most rows of a slice, however fast: scratch memory grows with it.
const MAX_SLICE: usize = 1024;

/// A request that waits to enter. Listed in order of arrival.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// Which it is.
    pub id: u64,
    /// Who waits for it.
    pub class: Class,
    /// Bytes to reserve for it.
    pub reserve: usize,
    /// How often a later request of its class or a lower one has entered before it.
    pub overtaken: u32,
}

/// What a running request does next. Listed in order of entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Running {
    /// Which it is.
    pub id: u64,
    /// Who waits for it.
    pub class: Class,
    /// What it does.
    pub phase: Phase,
}

/// What a running request does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Reads its prompt.
    Prefill {
        /// Tokens read.
        position: usize,
        /// Tokens left.
        left: usize,
        /// Tokens until the slice has to end, for a snapshot; at most `left`.
        stop: usize,
    },
    /// Generates.
    Decode,
    /// Waits for its receiver to read, or for memory.
    Paused,
}

/// What passes are expected to cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Costs {
    /// A pass over the decode rows; zero when unknown.
    pub decode: Duration,
    /// A row of a prompt; zero when unknown.
    pub prefill_row: Duration,
}

/// Everything that a step depends on.
#[derive(Clone, Debug)]
pub struct View<'a> {
    /// Steps so far.
    pub step: u64,
    /// Slices so far.
    pub slices: u64,
    /// Requests that have entered so far.
    pub entered: u64,
    /// Who waits.
    pub waiting: &'a [Waiting],
    /// Who runs.
    pub running: &'a [Running],
    /// Most requests that may run.
    pub max_running: usize,
    /// Bytes that may still be reserved.
    pub free: usize,
    /// Longest time that a step may take while somebody waits for tokens.
    pub max_gap: Duration,
    /// What passes cost.
    pub costs: Costs,
}

/// A slice of a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slice {
    /// Whose.
    pub id: u64,
    /// Rows.
    pub rows: usize,
}

/// What the next step runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Requests that enter, in this order. They take part from the next step on.
    pub enter: Vec<u64>,
    /// The slice of a prompt, if any.
    pub slice: Option<Slice>,
    /// Streams that decode.
    pub decode: Vec<u64>,
}

/// Plans the next step.
pub fn plan(view: &View<'_>) -> Plan {
    let decode = decoding(view);
    let slice = next_prompt(view).map(|(id, position, left, stop)| {
        let rows = prefill_slice(position, left, slice_rows(view, !decode.is_empty()));
        Slice { id, rows: rows.min(stop.max(1)) }
    });
    Plan { enter: entering(view), slice, decode }
}

/// Requests that enter: interactive before background, arrival order within each, and a share for the oldest.
fn entering(view: &View<'_>) -> Vec<u64> {
    let mut places = view.max_running.saturating_sub(view.running.len());
    let (mut free, mut entered, mut left) = (view.free, view.entered, view.waiting.to_vec());
    let mut enter = Vec::new();
    while places > 0 && !left.is_empty() {
        let oldest_turn = entered % BACKGROUND_SHARE == BACKGROUND_SHARE - 1;
        let mut order: Vec<usize> = (0..left.len()).collect();
        if !oldest_turn {
            order.sort_by_key(|&i| left[i].class != Class::Interactive);
        }
        // Whoever has been overtaken too often goes first, and nobody passes it.
        if let Some(first) = (0..left.len()).find(|&i| left[i].overtaken >= MAX_OVERTAKES) {
            order = vec![first];
        }
        let Some(&chosen) = order.iter().find(|&&i| left[i].reserve <= free) else { break };
        free -= left[chosen].reserve;
        places -= 1;
        entered += 1;
        for waiting in &mut left[..chosen] {
            waiting.overtaken += 1;
        }
        enter.push(left.remove(chosen).id);
    }
    enter
}

/// Streams that decode in this step.
fn decoding(view: &View<'_>) -> Vec<u64> {
    let decodes = |running: &&Running| running.phase == Phase::Decode;
    let interactive = view.running.iter().filter(decodes).any(|running| running.class == Class::Interactive);
    let background = !interactive || view.step.is_multiple_of(BACKGROUND_SHARE);
    let takes_part = |running: &&Running| background || running.class == Class::Interactive;
    view.running.iter().filter(decodes).filter(takes_part).map(|running| running.id).collect()
}

/// The prompt whose turn it is: id, position, tokens left, tokens until it has to stop.
fn next_prompt(view: &View<'_>) -> Option<(u64, usize, usize, usize)> {
    let prompts = view.running.iter().filter_map(|running| match running.phase {
        Phase::Prefill { position, left, stop } => Some((running.class, (running.id, position, left, stop))),
        _ => None,
    });
    if view.slices % OLDEST_SHARE == OLDEST_SHARE - 1 {
        return prompts.map(|(_, prompt)| prompt).next();
    }
    prompts
        .min_by_key(|&(class, (_, _, left, _))| (class != Class::Interactive, left))
        .map(|(_, prompt)| prompt)
}

/// Rows that fit the promised gap beside the decode rows, if anybody waits for those.
fn slice_rows(view: &View<'_>, decodes: bool) -> usize {
    // Half of the gap is kept for what the estimate misses: attention grows with the prompt, and machines have moods.
    let gap = view.max_gap / 2;
    let budget = if decodes { gap.saturating_sub(view.costs.decode) } else { gap };
    let rows = match view.costs.prefill_row.as_nanos() {
        0 => DEFAULT_SLICE,
        cost => usize::try_from(budget.as_nanos() / cost).unwrap_or(MAX_SLICE),
    };
    rows.clamp(PREFILL_CHUNK, MAX_SLICE)
}
