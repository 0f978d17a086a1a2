//! The one door to other threads: a private pool, entered once per forward pass.

use std::cell::Cell;
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use millpond_simd::matmul::OutTile;
use rayon::ThreadPool;

/// Why a team of threads could not be started.
#[derive(Debug, thiserror::Error)]
#[error("cannot start {threads} worker threads: {reason}")]
pub struct TeamError {
    /// Threads asked for.
    pub threads: usize,
    /// What the system said.
    pub reason: String,
}

/// A private pool of worker threads. Idle workers sleep.
///
/// Results never depend on the number of threads: work is split into units whose arithmetic does not know who
/// computes them. So the team may leave a worker out for a while when the system gives its processor to somebody else.
pub struct Team {
    pool: ThreadPool,
    /// One worker fewer, made when it is first needed.
    fewer: OnceLock<Option<ThreadPool>>,
    pace: Mutex<Pace>,
}

impl Team {
    /// A team of `threads` workers; 0 means [`default_threads`].
    ///
    /// # Errors
    /// [`TeamError`] when the system refuses the threads.
    pub fn new(threads: usize) -> Result<Team, TeamError> {
        let threads = if threads == 0 { default_threads() } else { threads };
        let pool = pool(threads).map_err(|error| TeamError { threads, reason: error.to_string() })?;
        Ok(Team { pool, fewer: OnceLock::new(), pace: Mutex::default() })
    }

    /// Runs `work` inside the pool; parallel iterators within it use the team's threads.
    pub fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        let threads = self.threads();
        let with_all = threads == 1 || self.pace().with_all();
        let fewer = || self.fewer.get_or_init(|| pool(threads - 1).ok()).as_ref();
        if let Some(pool) = (!with_all).then(fewer).flatten() {
            return pool.install(work);
        }
        let start = Instant::now();
        let (result, waited) = self.pool.install(|| {
            WAITED.set(Duration::ZERO);
            (work(), WAITED.get())
        });
        if threads > 1 {
            self.pace().note(start.elapsed(), waited);
        }
        result
    }

    /// Workers in the team.
    pub fn threads(&self) -> usize {
        self.pool.current_num_threads()
    }

    fn pace(&self) -> MutexGuard<'_, Pace> {
        self.pace.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn pool(threads: usize) -> Result<ThreadPool, rayon::ThreadPoolBuildError> {
    rayon::ThreadPoolBuilder::new().num_threads(threads).thread_name(|i| format!("millpond-{i}")).build()
}

thread_local! {
    /// How long this thread has waited in [`claim_each`] for units that others held.
    static WAITED: Cell<Duration> = const { Cell::new(Duration::ZERO) };
}

/// When to leave a worker out.
///
/// Where a neighbour takes a processor, the worker there stands still for milliseconds, now and then with a unit of work
/// in its hands, for which all others wait. Passes that mostly wait like that are faster without it.
#[derive(Default)]
struct Pace {
    /// Passes in a row that mostly waited.
    slow: u32,
    /// How long the worker was left out last, and until when.
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

    /// Whether the next pass takes all workers.
    fn with_all(&mut self) -> bool {
        self.until = self.until.filter(|&until| Instant::now() < until);
        self.until.is_none()
    }

    /// Takes note of a pass of all workers and of how long of it its first waited for others.
    fn note(&mut self, took: Duration, waited: Duration) {
        if took < Self::SHORTEST {
            return;
        }
        if waited * 3 < took {
            (self.slow, self.rest) = (0, Duration::ZERO);
            return;
        }
        self.slow += 1;
        // After a rest that did not help one pass is enough.
        if self.slow >= Self::SLOW || !self.rest.is_zero() {
            self.rest = (self.rest * 2).clamp(Self::FIRST_REST, Self::LONGEST_REST);
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
    let count = rayon::current_num_threads().min(units).min(MOST_SHARES);
    if count <= 1 {
        return (0..units).for_each(work);
    }
    let shares: [AtomicUsize; MOST_SHARES] = std::array::from_fn(|i| AtomicUsize::new(units * i / count));
    let shares = Shares { next: &shares[..count], units };
    let done = help(&shares, 0..count, &work);
    WAITED.set(WAITED.get() + done.elapsed());
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

/// Works on all shares, beginning with the first of `own`, and offers the rest of them to other workers. Returns when
/// this thread found nothing more to claim.
fn help(shares: &Shares<'_>, own: Range<usize>, work: &(impl Fn(usize) + Sync)) -> Instant {
    if own.len() > 1 {
        let middle = own.start + own.len() / 2;
        let (first, second) = (own.start..middle, middle..own.end);
        return rayon::join(|| help(shares, first, work), || help(shares, second, work)).0;
    }
    let count = shares.next.len();
    for share in (own.start..count).chain(0..own.start) {
        while let Some(unit) = shares.claim(share) {
            work(unit);
        }
    }
    Instant::now()
}

/// A row-major matrix that several threads write at once, each a tile of its own.
pub(crate) struct SharedRows<'a> {
    start: *mut f32,
    rows: usize,
    cols: usize,
    claimed: ClaimCheck,
    values: PhantomData<&'a mut [f32]>,
}

// SAFETY: the pointer comes from a unique borrow that lives as long as the value, and `tile` hands out tiles that its
// callers keep apart, so no two threads touch the same value.
unsafe impl Sync for SharedRows<'_> {}

impl<'a> SharedRows<'a> {
    /// Shares `values` as `rows x cols`.
    ///
    /// # Panics
    /// When `values` is shorter than that.
    pub(crate) fn new(values: &'a mut [f32], rows: usize, cols: usize) -> SharedRows<'a> {
        assert!(values.len() >= rows * cols, "{} values are no {rows} x {cols} matrix", values.len());
        SharedRows {
            start: values.as_mut_ptr(),
            rows,
            cols,
            claimed: ClaimCheck::new(rows * cols),
            values: PhantomData,
        }
    }

    /// All rows of some columns. Each value may be taken once; debug builds check it.
    ///
    /// # Panics
    /// When the columns are not columns of the matrix.
    pub(crate) fn columns(&self, columns: Range<usize>) -> OutTile<'_> {
        self.tile(0..self.rows, columns)
    }

    /// Some rows of some columns. Each value may be taken once; debug builds check it.
    ///
    /// # Panics
    /// When they are not rows and columns of the matrix.
    pub(crate) fn tile(&self, rows: Range<usize>, columns: Range<usize>) -> OutTile<'_> {
        assert!(columns.start <= columns.end && columns.end <= self.cols);
        assert!(rows.start <= rows.end && rows.end <= self.rows);
        for row in rows.clone() {
            self.claimed.claim(row * self.cols + columns.start..row * self.cols + columns.end);
        }
        let first = rows.start * self.cols + columns.start;
        // SAFETY: the tile lies inside the borrowed values (asserted above), and its values are taken only once.
        unsafe { OutTile::from_raw(self.start.add(first), self.cols, rows.len(), columns.len()) }
    }
}

/// In debug builds, remembers which values were taken.
struct ClaimCheck {
    #[cfg(debug_assertions)]
    taken: Vec<std::sync::atomic::AtomicBool>,
}

#[cfg(debug_assertions)]
thread_local! {
    /// Memory of checks that are over, so that debug builds too stop allocating.
    static CHECKED: std::cell::RefCell<Vec<Vec<std::sync::atomic::AtomicBool>>> =
        const { std::cell::RefCell::new(Vec::new()) };
}

impl ClaimCheck {
    #[cfg(debug_assertions)]
    fn new(values: usize) -> ClaimCheck {
        let mut taken = CHECKED.with_borrow_mut(Vec::pop).unwrap_or_default();
        taken.clear();
        taken.resize_with(values, Default::default);
        ClaimCheck { taken }
    }

    #[cfg(not(debug_assertions))]
    fn new(_values: usize) -> ClaimCheck {
        ClaimCheck {}
    }

    #[cfg(debug_assertions)]
    fn claim(&self, range: Range<usize>) {
        for taken in &self.taken[range.clone()] {
            let before = taken.swap(true, std::sync::atomic::Ordering::Relaxed);
            assert!(!before, "values {range:?} are written twice");
        }
    }

    #[cfg(not(debug_assertions))]
    fn claim(&self, _range: Range<usize>) {}
}

#[cfg(debug_assertions)]
impl Drop for ClaimCheck {
    fn drop(&mut self) {
        let taken = std::mem::take(&mut self.taken);
        CHECKED.with_borrow_mut(|checked| checked.push(taken));
    }
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
    fn a_team_rests_a_worker_after_slow_passes_and_longer_if_that_did_not_help() {
        let (took, mut pace) = (Duration::from_millis(20), Pace::default());
        for _ in 0..Pace::SLOW {
            assert!(pace.with_all());
            pace.note(took, took / 2);
        }
        assert!(!pace.with_all());
        assert_eq!(pace.rest, Pace::FIRST_REST);
        pace.until = Some(Instant::now());
        assert!(pace.with_all());
        pace.note(took, took / 2);
        assert_eq!(pace.rest, 2 * Pace::FIRST_REST);
        pace.until = Some(Instant::now());
        assert!(pace.with_all());
        pace.note(took, took / 10);
        assert!(pace.with_all());
        assert_eq!((pace.slow, pace.rest), (0, Duration::ZERO));
    }
}
