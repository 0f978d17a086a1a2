//! The one door to other threads: a private pool, entered once per forward pass.

use std::marker::PhantomData;
use std::ops::Range;

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
/// computes them.
pub struct Team {
    pool: ThreadPool,
}

impl Team {
    /// A team of `threads` workers; 0 means [`default_threads`].
    ///
    /// # Errors
    /// [`TeamError`] when the system refuses the threads.
    pub fn new(threads: usize) -> Result<Team, TeamError> {
        let threads = if threads == 0 { default_threads() } else { threads };
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|i| format!("millpond-{i}"))
            .build()
            .map_err(|error| TeamError { threads, reason: error.to_string() })?;
        Ok(Team { pool })
    }

    /// Runs `work` inside the pool; parallel iterators within it use the team's threads.
    pub fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        self.pool.install(work)
    }

    /// Workers in the team.
    pub fn threads(&self) -> usize {
        self.pool.current_num_threads()
    }
}

/// A row-major matrix that several threads write at once, each a range of columns of its own.
pub(crate) struct SharedRows<'a> {
    start: *mut f32,
    rows: usize,
    cols: usize,
    claimed: ClaimCheck,
    values: PhantomData<&'a mut [f32]>,
}

// SAFETY: the pointer comes from a unique borrow that lives as long as the value, and `columns` hands out tiles
// whose columns its callers keep apart, so no two threads touch the same value.
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
            claimed: ClaimCheck::new(cols),
            values: PhantomData,
        }
    }

    /// All rows of some columns. Each column may be taken once; debug builds check it.
    ///
    /// # Panics
    /// When the columns are not columns of the matrix.
    pub(crate) fn columns(&self, columns: Range<usize>) -> OutTile<'_> {
        assert!(columns.start <= columns.end && columns.end <= self.cols);
        self.claimed.claim(&columns);
        // SAFETY: the tile lies inside the borrowed values (asserted above), and its columns are taken only once.
        unsafe { OutTile::from_raw(self.start.add(columns.start), self.cols, self.rows, columns.len()) }
    }
}

/// In debug builds, remembers which columns were taken.
struct ClaimCheck {
    #[cfg(debug_assertions)]
    taken: Vec<std::sync::atomic::AtomicBool>,
}

impl ClaimCheck {
    #[cfg(debug_assertions)]
    fn new(cols: usize) -> ClaimCheck {
        ClaimCheck { taken: std::iter::repeat_with(Default::default).take(cols).collect() }
    }

    #[cfg(not(debug_assertions))]
    fn new(_cols: usize) -> ClaimCheck {
        ClaimCheck {}
    }

    #[cfg(debug_assertions)]
    fn claim(&self, columns: &Range<usize>) {
        for taken in &self.taken[columns.clone()] {
            let before = taken.swap(true, std::sync::atomic::Ordering::Relaxed);
            assert!(!before, "columns {columns:?} are written twice");
        }
    }

    #[cfg(not(debug_assertions))]
    fn claim(&self, _columns: &Range<usize>) {}
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
}
