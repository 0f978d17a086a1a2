//! The one door to other threads: a private team, called together once per forward pass.

mod crew;
mod cut;
mod shared;

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

pub use crew::join;
use crew::{Crew, Pass, WAITED, present, wanted};
pub(crate) use cut::{Cut, each_piece};
pub(crate) use shared::SharedRows;

/// Why a team of threads could not be started.
#[derive(Debug, thiserror::Error)]
#[error("cannot start {threads} worker threads: {reason}")]
pub struct TeamError {
    /// Threads asked for.
    pub threads: usize,
    /// What the system said.
    pub reason: String,
}

/// How many threads take part in the passes of a team.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PassThreads {
    /// Those of a pass that only generates.
    pub decode: usize,
    /// Those of a pass that reads a prompt.
    pub prefill: usize,
}

impl PassThreads {
    /// `decode` threads (0: [`default_threads`]), and for prompts `prefill` (0: as many).
    pub fn new(decode: usize, prefill: usize) -> PassThreads {
        let decode = if decode == 0 { default_threads() } else { decode };
        PassThreads { decode, prefill: if prefill == 0 { decode } else { prefill } }
    }

    /// The size of the team that they need.
    pub fn most(self) -> usize {
        self.decode.max(self.prefill)
    }
}

/// A private team of threads: the one that calls [`Team::run`], and helpers. Idle helpers sleep.
///
/// Results never depend on the number of threads: work is split into units whose arithmetic does not know who
/// computes them. So the team may leave a helper out for a while when the system gives its processor to somebody else.
///
/// Within a pass helpers look for work without sleeping or yielding, as the next is microseconds away: a thread that
/// yields on a busy machine is away for milliseconds.
pub struct Team {
    crew: Arc<Crew>,
    helpers: Vec<JoinHandle<()>>,
    pace: Mutex<Pace>,
    /// For parallel iterators, made when first needed.
    pool: OnceLock<Option<rayon::ThreadPool>>,
}

impl Team {
    /// A team of `threads` threads, the caller's among them; 0 means [`default_threads`].
    ///
    /// # Errors
    /// [`TeamError`] when the system refuses the threads.
    pub fn new(threads: usize) -> Result<Team, TeamError> {
        let threads = if threads == 0 { default_threads() } else { threads };
        let crew = Arc::new(Crew::new(threads - 1));
        let mut team = Team { crew, helpers: Vec::new(), pace: Mutex::default(), pool: OnceLock::new() };
        for index in 0..threads - 1 {
            let crew = Arc::clone(&team.crew);
            let helper = std::thread::Builder::new()
                .name(format!("millpond-{}", index + 1))
                .spawn(move || crew.help(index))
                .map_err(|error| TeamError { threads, reason: error.to_string() })?;
            team.helpers.push(helper);
        }
        Ok(team)
    }

    /// Runs `work` in this thread, with the team's helpers at [`join`] and what is built on it.
    pub fn run<R>(&self, work: impl FnOnce() -> R) -> R {
        self.run_with(self.threads(), work)
    }

    /// The same with `threads` threads at most, this one among them.
    pub fn run_with<R>(&self, threads: usize, work: impl FnOnce() -> R) -> R {
        let helpers = self.pace().helpers(self.helpers.len().min(threads.saturating_sub(1)));
        let pass = Pass::enter(&self.crew, helpers);
        let start = Instant::now();
        WAITED.set(Duration::ZERO);
        let result = work();
        drop(pass);
        self.pace().note(helpers, start.elapsed(), WAITED.get());
        result
    }

    /// Runs `work` inside a pool of `rayon`'s of as many threads, for parallel iterators: measurements use it.
    pub fn install<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        let pool = || rayon::ThreadPoolBuilder::new().num_threads(self.threads()).build().ok();
        match self.pool.get_or_init(pool) {
            Some(pool) => pool.install(work),
            None => work(),
        }
    }

    /// Threads of the team.
    pub fn threads(&self) -> usize {
        self.helpers.len() + 1
    }

    fn pace(&self) -> MutexGuard<'_, Pace> {
        self.pace.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.crew.stop();
        for helper in self.helpers.drain(..) {
            // A helper catches the panics of its work and hands them on; its own loop has none.
            let _ = helper.join();
        }
    }
}

/// How many helpers to leave out.
///
/// Where a neighbour takes a processor, the helper there stands still for milliseconds, now and then with work in its
/// hands, for which all others wait. Passes that mostly wait like that are faster without it.
#[derive(Default)]
struct Pace {
    /// Passes in a row that mostly waited.
    slow: u32,
    left_out: usize,
    /// For how long helpers were left out last, and until when.
    rest: Duration,
    until: Option<Instant>,
}

impl Pace {
    /// Shorter passes say nothing.
    const SHORTEST: Duration = Duration::from_millis(2);
    /// Passes in a row that have to be slow.
    const SLOW: u32 = 3;
    const FIRST_REST: Duration = Duration::from_millis(250);
    const LONGEST_REST: Duration = Duration::from_secs(4);

    /// How many of all helpers take part in the next pass.
    fn helpers(&mut self, all: usize) -> usize {
        if self.until.is_some_and(|until| until <= Instant::now()) {
            (self.until, self.left_out) = (None, 0);
        }
        all - self.left_out.min(all)
    }

    /// Takes note of a pass with some helpers and of how long of it its own thread waited for others.
    fn note(&mut self, helpers: usize, took: Duration, waited: Duration) {
        if helpers == 0 || took < Self::SHORTEST {
            return;
        }
        if waited * 3 < took {
            self.slow = 0;
            if self.left_out == 0 {
                self.rest = Duration::ZERO;
            }
            return;
        }
        self.slow += 1;
        // After a rest that did not help one pass is enough.
        if self.slow >= Self::SLOW || (!self.rest.is_zero() && self.left_out == 0) {
            self.rest = (self.rest * 2).clamp(Self::FIRST_REST, Self::LONGEST_REST);
            self.left_out += helpers.div_ceil(2);
            (self.slow, self.until) = (0, Some(Instant::now() + self.rest));
        }
    }
}

/// Most workers that [`claim_each`] gives units of their own.
const MOST_SHARES: usize = 64;

/// Calls `work` for every unit, inside the team's pool.
///
/// Each worker has a share of consecutive units, in the order of memory, and claims them one by one; when its own are
/// done it claims from the others' shares. So a worker that the system takes off its processor holds one unit at most.
pub(crate) fn claim_each(units: usize, work: impl Fn(usize) + Sync) {
    let count = present().min(units).min(MOST_SHARES);
    if count <= 1 {
        return (0..units).for_each(work);
    }
    let shares: [AtomicUsize; MOST_SHARES] = std::array::from_fn(|i| AtomicUsize::new(units * i / count));
    let shares = Shares { next: &shares[..count], units };
    help(&shares, 0..count, &work);
}

/// Units that are left.
struct Shares<'a> {
    /// The next unit of each share.
    next: &'a [AtomicUsize],
    units: usize,
}

impl Shares<'_> {
    /// Claims a unit of a share.
    fn claim(&self, share: usize) -> Option<usize> {
        let end = self.units * (share + 1) / self.next.len();
        let next = &self.next[share];
        // Reading first keeps an empty share's counter from running on.
        if next.load(Ordering::Relaxed) >= end {
            return None;
        }
        Some(next.fetch_add(1, Ordering::Relaxed)).filter(|&unit| unit < end)
    }
}

/// Works on all shares, beginning with the first of `own`, and offers the rest of them to other workers.
fn help(shares: &Shares<'_>, own: Range<usize>, work: &(impl Fn(usize) + Sync)) {
    if own.len() > 1 {
        let middle = own.start + own.len() / 2;
        let (first, second) = (own.start..middle, middle..own.end);
        join(|| help(shares, first, work), || help(shares, second, work));
        return;
    }
    let count = shares.next.len();
    for share in (own.start..count).chain(0..own.start) {
        while let Some(unit) = shares.claim(share) {
            work(unit);
        }
    }
}

/// Calls `work` for every index below `count`, `grain` of them at a time.
pub(crate) fn each(count: usize, grain: usize, work: impl Fn(usize) + Sync) {
    claim_each(count.div_ceil(grain), |unit| (unit * grain..count.min((unit + 1) * grain)).for_each(&work));
}

/// Calls `work` for every item, `grain` of them at a time.
pub(crate) fn each_mut<T: Send>(items: &mut [T], grain: usize, work: impl Fn(usize, &mut T) + Sync) {
    each_chunk(items, 1, grain, |index, item| work(index, &mut item[0]));
}

/// Calls `work` for every whole chunk of `width` items, `grain` chunks at a time.
pub fn each_chunk<T: Send>(
    items: &mut [T],
    width: usize,
    grain: usize,
    work: impl Fn(usize, &mut [T]) + Sync,
) {
    each_pair((items, width), (&mut [], 0), grain, |index, chunk, _: &mut [()]| work(index, chunk));
}

/// Calls `work` for every whole chunk of the first items, each of the given width, with the chunk of the second at the
/// same index, `grain` at a time.
pub fn each_pair<A: Send, B: Send>(
    first: (&mut [A], usize),
    second: (&mut [B], usize),
    grain: usize,
    work: impl Fn(usize, &mut [A], &mut [B]) + Sync,
) {
    let (items, width) = first;
    let count = items.len().checked_div(width).unwrap_or(0);
    halve(0..count, (&mut items[..count * width], width), second, grain.max(1), &work);
}

fn halve<A: Send, B: Send>(
    range: Range<usize>,
    (first, width): (&mut [A], usize),
    (second, other): (&mut [B], usize),
    grain: usize,
    work: &(impl Fn(usize, &mut [A], &mut [B]) + Sync),
) {
    if range.len() <= grain {
        for (i, index) in range.enumerate() {
            work(index, &mut first[i * width..(i + 1) * width], &mut second[i * other..(i + 1) * other]);
        }
        return;
    }
    let half = range.len() / 2;
    let middle = range.start + half;
    let (a, b) = first.split_at_mut(half * width);
    let (c, d) = second.split_at_mut(half * other);
    join(
        || halve(range.start..middle, (a, width), (c, other), grain, work),
        || halve(middle..range.end, (b, width), (d, other), grain, work),
    );
}

/// One thread for each physical core this process may run on, and only the biggest cores where they differ.
///
/// Read from Linux' sysfs; elsewhere, or where it says nothing, the count the standard library reports.
pub fn default_threads() -> usize {
    let allowed = std::thread::available_parallelism().map_or(1, usize::from);
    physical_big_cores().map_or(allowed, |cores| cores.clamp(1, allowed))
}

/// Distinct cores of the highest capacity, from sysfs.
fn physical_big_cores() -> Option<usize> {
    let root = std::path::Path::new("/sys/devices/system/cpu");
    let read = |cpu: usize, file: &str| {
        std::fs::read_to_string(root.join(format!("cpu{cpu}")).join(file))
            .ok()
            .and_then(|text| text.trim().parse::<u64>().ok())
    };
    let mut cores = std::collections::BTreeMap::new();
    for cpu in 0.. {
        if !root.join(format!("cpu{cpu}")).exists() {
            break;
        }
        let Some(core) = read(cpu, "topology/core_id") else { continue };
        let package = read(cpu, "topology/physical_package_id").unwrap_or(0);
        let capacity =
            read(cpu, "cpu_capacity").or_else(|| read(cpu, "cpufreq/cpuinfo_max_freq")).unwrap_or(0);
        cores.insert((package, core), capacity);
    }
    let best = *cores.values().max()?;
    // Cores of one kind still differ by a few percent in their rated boost, so only far smaller ones are left out.
    Some(cores.values().filter(|&&capacity| capacity * 10 >= best * 7).count())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_team_has_the_threads_asked_for_and_runs_work() {
        let team = Team::new(3).unwrap();
        assert_eq!(team.threads(), 3);
        assert_eq!(team.run(|| 41 + 1), 42);
        assert!(default_threads() >= 1);
    }

    #[test]
    fn every_unit_is_worked_on_once() {
        for threads in 1..=5 {
            let team = Team::new(threads).unwrap();
            for units in [0, 1, 2, 3, 7, 64, 1000] {
                let calls: Vec<AtomicUsize> = (0..units).map(|_| AtomicUsize::new(0)).collect();
                team.run(|| {
                    claim_each(units, |unit| {
                        calls[unit].fetch_add(1, Ordering::Relaxed);
                    })
                });
                assert!(calls.iter().all(|calls| calls.load(Ordering::Relaxed) == 1), "{threads} {units}");
            }
        }
    }

    #[test]
    fn work_is_wanted_where_a_thread_has_none() {
        assert!(!wanted(), "outside a pass nobody helps");
        Team::new(1).unwrap().run(|| assert!(!wanted(), "nobody else is there"));
        let team = Team::new(2).unwrap();
        let (taken, asked) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let wait = |flag: &AtomicUsize| {
            while flag.load(Ordering::Acquire) == 0 {
                std::thread::yield_now();
            }
        };
        team.run(|| {
            assert!(wanted(), "the helper has nothing to do");
            let own = || {
                wait(&taken);
                assert!(!wanted(), "both are at work");
                asked.store(1, Ordering::Release);
            };
            let other = || {
                taken.store(1, Ordering::Release);
                wait(&asked);
            };
            join(own, other);
        });
        team.run_with(1, || assert!(!wanted(), "the helper is not of this pass"));
    }

    #[test]
    fn a_worker_that_stands_still_holds_one_unit() {
        // Whoever comes to the first unit waits until all others are done: that needs somebody else to do them.
        let (team, units) = (Team::new(2).unwrap(), 50);
        let left = AtomicUsize::new(units - 1);
        team.run(|| {
            claim_each(units, |unit| {
                if unit > 0 {
                    left.fetch_sub(1, Ordering::Relaxed);
                    return;
                }
                while left.load(Ordering::Relaxed) > 0 {
                    std::thread::yield_now();
                }
            })
        });
        assert_eq!(left.into_inner(), 0);
    }

    #[test]
    fn a_team_leaves_helpers_out_after_slow_passes_and_longer_if_that_did_not_help() {
        let (took, mut pace) = (Duration::from_millis(20), Pace::default());
        for _ in 0..Pace::SLOW {
            assert_eq!(pace.helpers(3), 3);
            pace.note(3, took, took / 2);
        }
        // Two of three, then the last.
        for left in [1, 0] {
            assert_eq!(pace.helpers(3), left);
            (0..Pace::SLOW).for_each(|_| pace.note(left, took, took / 2));
        }
        assert_eq!(pace.rest, 2 * Pace::FIRST_REST);
        // When the rest is over one slow pass is enough, and a good one ends it.
        pace.until = Some(Instant::now());
        assert_eq!(pace.helpers(3), 3);
        pace.note(3, took, took / 2);
        assert_eq!((pace.helpers(3), pace.rest), (1, 4 * Pace::FIRST_REST));
        pace.until = Some(Instant::now());
        assert_eq!(pace.helpers(3), 3);
        pace.note(3, took, took / 10);
        assert_eq!((pace.helpers(3), pace.rest), (3, Duration::ZERO));
    }

    #[test]
    fn joined_work_nests_and_gives_both_results() {
        fn sum(values: &[u64]) -> u64 {
            match values {
                [] => 0,
                [value] => *value,
                _ => {
                    let (a, b) = values.split_at(values.len() / 2);
                    let (a, b) = join(|| sum(a), || sum(b));
                    a + b
                }
            }
        }
        let values: Vec<u64> = (0..5000).collect();
        let want: u64 = values.iter().sum();
        assert_eq!(sum(&values), want);
        for threads in 1..=5 {
            let team = Team::new(threads).unwrap();
            for _ in 0..20 {
                assert_eq!(team.run(|| sum(&values)), want);
            }
        }
    }

    #[test]
    fn chunks_come_with_their_index_and_their_partner() {
        let team = Team::new(3).unwrap();
        for grain in [1, 2, 5, 100] {
            let (mut values, mut partners) = (vec![0; 23], vec![0; 33]);
            team.run(|| {
                each_pair((&mut values, 2), (&mut partners, 3), grain, |index, values, partners| {
                    values.fill(index);
                    partners.fill(index + 1);
                });
            });
            assert!((0..22).all(|i| values[i] == i / 2) && (0..33).all(|i| partners[i] == i / 3 + 1));
            assert_eq!(values[22], 0, "no whole chunk");
        }
    }

    #[test]
    fn panics_come_back_once_both_sides_are_over() {
        let team = Team::new(2).unwrap();
        for _ in 0..20 {
            for (first, second) in [(true, false), (false, true), (true, true)] {
                let over = AtomicUsize::new(0);
                let side = |panics: bool| {
                    over.fetch_add(1, Ordering::Relaxed);
                    assert!(!panics, "as asked");
                };
                let run = || team.run(|| join(|| side(first), || side(second)));
                assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).is_err());
                assert_eq!(over.into_inner(), 2);
            }
        }
        assert_eq!(team.run(|| join(|| 1, || 2)), (1, 2));
    }

    #[test]
    fn idle_helpers_sleep() {
        let team = Team::new(2).unwrap();
        team.run(|| join(|| (), || ()));
        let helper = team.helpers[0].thread().id();
        assert_ne!(helper, std::thread::current().id());
        while !team.crew.all_asleep() {
            std::thread::yield_now();
        }
        assert_eq!(team.run(|| join(|| 1, || 2)), (1, 2));
    }
}
