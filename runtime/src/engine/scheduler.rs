//! What the next step of an engine runs: a pure function of who waits, who runs and what passes have cost.
//!
//! A step is one pass over the weights. It holds one decode row (or a verify window) of every stream that may run,
//! and slices of prompts, together no longer than the promised gap between two tokens of a stream allows. Nobody
//! starves:
//! - waiting requests enter in order of arrival, interactive ones first; one that does not fit yet may be overtaken
//!   [`MAX_OVERTAKES`] times, and every [`BACKGROUND_SHARE`]th request to enter is the oldest of all;
//! - prompts take turns: the shortest remainder goes first, but in every [`OLDEST_SHARE`]th step the oldest; what the
//!   first leaves of the rows, the next ones get;
//! - background streams join every [`BACKGROUND_SHARE`]th step while interactive ones decode, and every step else.

use std::time::Duration;

use super::request::Class;
use crate::runner::{prefill_piece, prefill_slice};
use crate::state::cursor::PREFILL_CHUNK;

/// One in this many turns goes to background work while there is interactive work.
pub const BACKGROUND_SHARE: u64 = 4;
/// In one of so many steps the oldest prompt goes first.
pub const OLDEST_SHARE: u64 = 4;
/// How often a waiting request may be overtaken by a smaller one.
pub const MAX_OVERTAKES: u32 = 16;
/// Time for prompts in a step: more rows would hardly cost less each, and whoever comes, leaves or waits for a token would
/// wait for them.
const BRISK: Duration = Duration::from_millis(200);
/// How many times as long as a pass over the decode rows a slice may take in any case: what a pass costs beside its rows
/// is to be no large part of it.
const SHARE: u32 = 4;
/// Rows of prompts in a step while nothing is known of their cost.
const DEFAULT_SLICE: usize = PREFILL_CHUNK;

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
        /// Equal for prompts that go on alike: only one of them is read at a time, and the others find its state.
        kin: u64,
    },
    /// Generates.
    Decode,
    /// Waits for its receiver to read, or for memory.
    Paused,
}

/// What passes are expected to cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Costs {
    /// A pass over the decode rows, or over one if nobody decodes: what a pass takes before any row of a prompt. Zero when
    /// unknown.
    pub decode: Duration,
    /// What a row of a prompt at its start adds to that; zero when unknown.
    pub prefill_row: Duration,
    /// What a row costs more for each [`DEPTH`] tokens before it.
    pub prefill_depth: Duration,
    /// How long passes with rows of prompts have taken of late, at worst, in percent of what was expected; zero when
    /// unknown. A machine that has held up a pass may do so again.
    pub surprise: u32,
}

/// Tokens that [`Costs::prefill_depth`] counts by.
pub const DEPTH: usize = 1024;

impl Costs {
    /// What a pass may take that is expected to take so long.
    fn at_worst(&self, expected: Duration) -> Duration {
        expected.saturating_mul(self.surprise.max(100)) / 100
    }

    /// A row of a prompt after `position` tokens.
    fn row_at(&self, position: usize) -> Duration {
        self.prefill_row + self.prefill_depth.mul_f64(position as f64 / DEPTH as f64)
    }
}

/// Everything that a step depends on.
#[derive(Clone, Debug)]
pub struct View<'a> {
    /// Steps so far.
    pub step: u64,
    /// Steps with slices so far.
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
    /// Most rows of prompts in a step, however fast.
    pub max_rows: usize,
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
    /// Requests that enter, in this order. They are not in the rest of the plan, which is to be made again with them.
    pub enter: Vec<u64>,
    /// Slices of prompts.
    pub slices: Vec<Slice>,
    /// Streams that decode.
    pub decode: Vec<u64>,
}

/// Plans the next step.
pub fn plan(view: &View<'_>) -> Plan {
    let decode = decoding(view);
    Plan { enter: entering(view), slices: slices(view), decode }
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

/// A prompt that could be read.
#[derive(Clone, Copy)]
struct Prompt {
    id: u64,
    class: Class,
    position: usize,
    left: usize,
    stop: usize,
    kin: u64,
}

/// Slices of prompts, in the order of their turns, as far as the time goes. The first gets some rows in any case; where
/// there is no time for a chunk of it, a piece of one.
fn slices(view: &View<'_>) -> Vec<Slice> {
    let mut prompts: Vec<Prompt> = view.running.iter().filter_map(prompt).collect();
    let oldest_first = view.slices % OLDEST_SHARE == OLDEST_SHARE - 1;
    let turn = |prompt: &Prompt| (prompt.class != Class::Interactive, prompt.left);
    let first = usize::from(oldest_first).min(prompts.len());
    prompts[first..].sort_by_key(turn);
    let mut time = slice_time(view);
    let mut most = if view.costs.prefill_row.is_zero() { DEFAULT_SLICE } else { view.max_rows };
    let (mut slices, mut kin) = (Vec::new(), Vec::new());
    for prompt in prompts {
        let cost = view.costs.row_at(prompt.position);
        let rows = rows_in(time, cost).min(most);
        let end = prompt.left.min(prompt.stop.max(1));
        // What is left of the time goes to prompts that end within it, or in whole chunks.
        let fits = slices.is_empty() || rows >= PREFILL_CHUNK.min(end);
        if kin.contains(&prompt.kin) || !fits {
            continue;
        }
        let take = match slices.is_empty() && !chunk_fits(view, cost) {
            true => prefill_piece(prompt.position, prompt.left, rows),
            false => prefill_slice(prompt.position, prompt.left, rows),
        };
        let take = take.min(end);
        slices.push(Slice { id: prompt.id, rows: take });
        kin.push(prompt.kin);
        time = time.saturating_sub(cost.saturating_mul(u32::try_from(take).unwrap_or(u32::MAX)));
        most = most.saturating_sub(take);
    }
    slices
}

fn prompt(running: &Running) -> Option<Prompt> {
    let Phase::Prefill { position, left, stop, kin } = running.phase else { return None };
    Some(Prompt { id: running.id, class: running.class, position, left, stop, kin })
}

/// Time for prompts: as much as pays, of what the promised gap leaves beside the decode rows. Where those alone take longer,
/// prompts get a third of a step.
fn slice_time(view: &View<'_>) -> Duration {
    // A fifth of the gap is kept for what the estimate misses: machines have moods.
    let gap = view.max_gap.saturating_mul(80) / view.costs.surprise.max(100);
    let pays = BRISK.max(view.costs.decode.saturating_mul(SHARE));
    gap.saturating_sub(view.costs.decode).min(pays).max(view.costs.decode / 2)
}

/// Whether a whole chunk fits the promised gap, with room for a machine that is busy: pieces of it cost a little more
/// together.
fn chunk_fits(view: &View<'_>, row: Duration) -> bool {
    view.costs.at_worst(view.costs.decode + row.saturating_mul(PREFILL_CHUNK as u32)) <= view.max_gap / 2
}

/// Rows of a cost that fit a time.
fn rows_in(time: Duration, cost: Duration) -> usize {
    match cost.as_nanos() {
        0 => usize::MAX,
        cost => usize::try_from(time.as_nanos() / cost).unwrap_or(usize::MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runner::PIECE;
    use proptest::prelude::*;

    /// A request of a simulation.
    #[derive(Clone, Debug)]
    struct Job {
        arrives: u64,
        class: Class,
        prompt: usize,
        answer: usize,
        reserve: usize,
        kin: u64,
    }

    fn jobs() -> impl Strategy<Value = Vec<Job>> {
        let class = prop_oneof![Just(Class::Interactive), Just(Class::Background)];
        let job = (0u64..200, class, 1usize..3000, 0usize..40, 1usize..=100, 0u64..20);
        let job = job.prop_map(|(arrives, class, prompt, answer, reserve, kin)| Job {
            arrives,
            class,
            prompt,
            answer,
            reserve,
            kin,
        });
        prop::collection::vec(job, 1..40)
    }

    /// An engine without a model.
    struct Simulation {
        jobs: Vec<Job>,
        waiting: Vec<Waiting>,
        running: Vec<Running>,
        /// Tokens generated, by job.
        generated: Vec<usize>,
        /// Step in which a job ended.
        ended: Vec<Option<u64>>,
        step: u64,
        slices: u64,
        entered: u64,
        max_running: usize,
        budget: usize,
        costs: Costs,
    }

    const GAP: Duration = Duration::from_millis(250);

    impl Simulation {
        fn new(jobs: Vec<Job>, max_running: usize, row: Duration) -> Simulation {
            let costs = Costs { decode: Duration::from_millis(20), prefill_row: row, ..Costs::default() };
            let count = jobs.len();
            Simulation {
                jobs,
                waiting: Vec::new(),
                running: Vec::new(),
                generated: vec![0; count],
                ended: vec![None; count],
                step: 0,
                slices: 0,
                entered: 0,
                max_running,
                budget: 100,
                costs,
            }
        }

        fn reserved(&self) -> usize {
            self.running.iter().map(|running| self.jobs[running.id as usize].reserve).sum()
        }

        fn arrive(&mut self, id: usize) {
            let Job { class, reserve, .. } = self.jobs[id];
            self.waiting.push(Waiting { id: id as u64, class, reserve, overtaken: 0 });
        }

        /// One step, with everything that must hold in each.
        fn turn(&mut self) {
            for id in 0..self.jobs.len() {
                if self.jobs[id].arrives == self.step {
                    self.arrive(id);
                }
            }
            let plan = plan(&View {
                step: self.step,
                slices: self.slices,
                entered: self.entered,
                waiting: &self.waiting,
                running: &self.running,
                max_running: self.max_running,
                free: self.budget - self.reserved(),
                max_gap: GAP,
                max_rows: 1024,
                costs: self.costs,
            });
            self.check(&plan);
            self.decode(&plan.decode);
            self.slices += u64::from(!plan.slices.is_empty());
            for slice in plan.slices {
                self.read(slice);
            }
            for id in plan.enter {
                let at = self.waiting.iter().position(|waiting| waiting.id == id).expect("it waits");
                for waiting in &mut self.waiting[..at] {
                    waiting.overtaken += 1;
                    assert!(waiting.overtaken <= MAX_OVERTAKES);
                }
                let Waiting { id, class, .. } = self.waiting.remove(at);
                let Job { prompt: left, kin, .. } = self.jobs[id as usize];
                let phase = Phase::Prefill { position: 0, left, stop: left, kin };
                self.running.push(Running { id, class, phase });
                self.entered += 1;
            }
            assert!(self.running.len() <= self.max_running);
            assert!(self.reserved() <= self.budget);
            self.step += 1;
        }

        fn check(&self, plan: &Plan) {
            let mut decode = plan.decode.clone();
            decode.dedup();
            assert_eq!(decode, plan.decode, "nobody decodes twice");
            for running in &self.running {
                let decodes = plan.decode.contains(&running.id);
                assert!(!decodes || running.phase == Phase::Decode);
                if running.phase == Phase::Decode && running.class == Class::Interactive {
                    assert!(decodes, "an interactive stream never sits a step out");
                }
            }
            let rows: usize = plan.slices.iter().map(|slice| slice.rows).sum();
            let took = self.costs.decode + self.costs.prefill_row * rows as u32;
            assert!(rows <= PIECE || took <= GAP, "{rows} rows take {took:?}");
            let reads = self.running.iter().any(|running| matches!(running.phase, Phase::Prefill { .. }));
            assert_eq!(!plan.slices.is_empty(), reads, "a prompt is read whenever there is one");
            let kin = |slice: &Slice| self.jobs[slice.id as usize].kin;
            let mut kins: Vec<u64> = plan.slices.iter().map(kin).collect();
            kins.sort_unstable();
            kins.dedup();
            assert_eq!(kins.len(), plan.slices.len(), "kin are read one after the other");
        }

        fn decode(&mut self, ids: &[u64]) {
            for &id in ids {
                self.generated[id as usize] += 1;
            }
            let (jobs, generated, ended, step) = (&self.jobs, &self.generated, &mut self.ended, self.step);
            self.running.retain(|running| {
                let id = running.id as usize;
                let done = running.phase == Phase::Decode && generated[id] >= jobs[id].answer;
                if done {
                    ended[id] = Some(step);
                }
                !done
            });
        }

        fn read(&mut self, slice: Slice) {
            let running = self.running.iter_mut().find(|running| running.id == slice.id).expect("it runs");
            let Phase::Prefill { position, left, kin, .. } = running.phase else { panic!("it reads") };
            let end = position + slice.rows;
            assert!(slice.rows > 0 && slice.rows <= left);
            assert!(slice.rows == left || end.is_multiple_of(PIECE), "cuts lie at multiples");
            let whole = slice.rows == left || end.is_multiple_of(PREFILL_CHUNK);
            let chunk = self.costs.decode + self.costs.prefill_row * PREFILL_CHUNK as u32;
            assert!(whole || chunk > GAP / 2, "chunks are cut only where they take too long");
            let left = left - slice.rows;
            running.phase = match left {
                0 => Phase::Decode,
                left => Phase::Prefill { position: end, left, stop: left, kin },
            };
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Every accepted request ends, within the time that all the work takes.
        #[test]
        fn everything_ends(jobs in jobs(), max_running in 1usize..9, row_us in 0u64..5000) {
            let slices: usize = jobs.iter().map(|job| job.prompt / PIECE + 2).sum();
            let answers: usize = jobs.iter().map(|job| (job.answer + 2) * BACKGROUND_SHARE as usize).sum();
            let bound = 200 + slices + answers + 2 * jobs.len();
            let mut simulation = Simulation::new(jobs, max_running, Duration::from_micros(row_us));
            for _ in 0..bound {
                simulation.turn();
            }
            prop_assert!(simulation.ended.iter().all(Option::is_some), "after {} steps", bound);
        }

        /// A large background request ends although small interactive ones never stop coming.
        #[test]
        fn nobody_starves(prompt in 1usize..4000, answer in 0usize..30, reserve in 1usize..=100) {
            let patient = Job { arrives: 3, class: Class::Background, prompt, answer, reserve, kin: 0 };
            let small = |step| Job {
                arrives: step,
                class: Class::Interactive,
                prompt: 70,
                answer: 6,
                reserve: 20,
                kin: step,
            };
            let bound = 2000;
            let jobs: Vec<Job> = std::iter::once(patient).chain((0..bound).map(small)).collect();
            let mut simulation = Simulation::new(jobs, 6, Duration::from_millis(1));
            for _ in 0..bound {
                simulation.turn();
            }
            prop_assert!(simulation.ended[0].is_some());
        }
    }

    #[test]
    fn deep_prompts_get_fewer_rows_than_shallow_ones() {
        let prompt = |id: u64, position: usize| Running {
            id,
            class: Class::Interactive,
            phase: Phase::Prefill { position, left: 5000, stop: 5000, kin: id },
        };
        let rows_of = |running: &[Running], max_rows: usize, surprise: u32| {
            let costs = Costs {
                prefill_row: Duration::from_millis(1),
                prefill_depth: Duration::from_micros(500),
                surprise,
                ..Costs::default()
            };
            let plan = plan(&View {
                step: 0,
                slices: 0,
                entered: 0,
                waiting: &[],
                running,
                max_running: 4,
                free: 0,
                max_gap: Duration::from_millis(500),
                max_rows,
                costs,
            });
            plan.slices.iter().map(|slice| slice.rows).collect::<Vec<_>>()
        };
        let rows = |running: &[Running]| rows_of(running, 1024, 0);
        assert_eq!(rows(&[prompt(1, 0)]), [192]);
        assert_eq!(rows(&[prompt(1, 4096)]), [64]);
        assert_eq!(rows(&[prompt(1, 5120)]), [64], "a chunk, though it takes longer than the others");
        assert_eq!(rows(&[prompt(1, 8192)]), [32], "a piece of a chunk");
        assert_eq!(rows(&[prompt(1, 16_384)]), [16]);
        assert_eq!(rows(&[prompt(1, 65_536)]), [8]);
        assert_eq!(rows(&[prompt(1, 65_536), prompt(2, 0)]), [8], "nothing is left");
        assert_eq!(rows(&[prompt(1, 262_144)]), [8], "never less");
        assert_eq!(rows(&[prompt(1, 4096), prompt(2, 0)]), [64], "8 rows are no chunk");
        assert_eq!(rows(&[prompt(1, 2048), prompt(2, 0)]), [64, 64], "what is left goes to others");
        assert_eq!(rows_of(&[prompt(1, 0)], 200, 0), [192], "whole chunks, and no more rows than may be");
        assert_eq!(rows_of(&[prompt(1, 0), prompt(2, 0)], 1, 0), [64], "but one chunk");
        assert_eq!(rows_of(&[prompt(1, 0)], 1024, 150), [192], "what passes may take anyway");
        assert_eq!(
            rows_of(&[prompt(1, 0)], 1024, 300),
            [128],
            "a pass has taken three times as long as it should"
        );
        assert_eq!(rows_of(&[prompt(1, 4096)], 1024, 300), [32]);
    }

    #[test]
    fn a_short_prompt_goes_before_the_rest_of_a_long_one() {
        let mut simulation = Simulation::new(
            vec![
                Job { arrives: 0, class: Class::Interactive, prompt: 32_768, answer: 1, reserve: 1, kin: 0 },
                Job { arrives: 5, class: Class::Interactive, prompt: 100, answer: 1, reserve: 1, kin: 1 },
            ],
            4,
            Duration::from_millis(1),
        );
        for _ in 0..12 {
            simulation.turn();
        }
        assert!(simulation.ended[1].is_some() && simulation.ended[0].is_none());
    }
}
