//! How fast this machine reads, copies and updates memory of the kind that holds the state.

use std::time::Instant;

use millpond::par::{Team, each_chunk, each_pair};
use millpond::state::arena::Arena;
use millpond_simd::Isa;
use millpond_simd::memory::MemoryKernels;
use serde::Serialize;

use super::median;
use super::traffic::Traffic;

/// Values one unit of work streams through: 1 MiB.
const UNIT: usize = 1 << 18;

/// Passes of a measurement.
const PASSES: usize = 3;

/// Passes by which a prefetch distance is chosen.
const TRIALS: usize = 7;

/// Bytes that [`read_rate`] reads at least, and at most where twice the size of the caches is more.
const READ_BYTES: [usize; 2] = [256 << 20, 1 << 30];

/// Prefetch distances to choose from, in vectors. What the processor asks for by itself (0) may leave a tenth of the
/// rate of reads unused, and more in unlucky moments.
const AHEAD: [usize; 5] = [0, 16, 32, 64, 128];

/// Bytes per second, all of the team's threads together. Bytes read and bytes written both count.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Rates {
    /// Reading.
    pub read: f64,
    /// Copying past the caches.
    pub copy: f64,
    /// Reading and writing back in place.
    pub update: f64,
}

impl Rates {
    /// The least time the machine needs for some traffic, in seconds: reads at the read rate, and for every byte
    /// written what writing it back adds to reading it. Where all is read and written back, that is the update rate.
    #[must_use]
    pub(super) fn bound(&self, traffic: Traffic) -> f64 {
        let write_back = (2.0 / self.update - 1.0 / self.read).max(0.0);
        traffic.read as f64 / self.read + traffic.written as f64 * write_back
    }

    /// Medians, rate by rate.
    #[must_use]
    pub(super) fn median(rates: &[Rates]) -> Rates {
        Rates {
            read: median(rates.iter().map(|rates| rates.read)),
            copy: median(rates.iter().map(|rates| rates.copy)),
            update: median(rates.iter().map(|rates| rates.update)),
        }
    }
}

/// Measures rates.
pub struct Probe {
    kernels: &'static MemoryKernels,
    values: Arena,
    read_ahead: usize,
    update_ahead: usize,
}

impl Probe {
    /// A probe over `bytes` of memory, which should be far more than the caches hold. Finds out which prefetch
    /// distances suit the machine.
    ///
    /// # Errors
    /// There is not that much memory, or the processor lacks the instructions.
    pub fn new(team: &Team, isa: Isa, bytes: usize) -> anyhow::Result<Probe> {
        let mut probe = Probe::untuned(isa, bytes)?;
        let rounds: Vec<[(f64, f64); AHEAD.len()]> = (0..TRIALS)
            .map(|_| AHEAD.map(|ahead| (probe.read(team, ahead), probe.update(team, ahead))))
            .collect();
        let best = |rate: fn(&(f64, f64)) -> f64| {
            let of = |i: &usize| median(rounds.iter().map(|round| rate(&round[*i])));
            let index = (0..AHEAD.len()).max_by(|a, b| of(a).total_cmp(&of(b))).unwrap_or(0);
            AHEAD[index]
        };
        (probe.read_ahead, probe.update_ahead) = (best(|rates| rates.0), best(|rates| rates.1));
        Ok(probe)
    }

    /// A probe that asks for nothing ahead.
    fn untuned(isa: Isa, bytes: usize) -> anyhow::Result<Probe> {
        let kernels = MemoryKernels::for_isa(isa)
            .ok_or_else(|| anyhow::anyhow!("this processor does not have {isa}"))?;
        let mut values = Arena::zeroed((bytes / 4).next_multiple_of(2 * UNIT), "the memory probe")?;
        values.values_mut().fill(1.0);
        Ok(Probe { kernels, values, read_ahead: 0, update_ahead: 0 })
    }

    /// The rates now: medians of a few passes, since one takes only milliseconds.
    pub fn measure(&mut self, team: &Team) -> Rates {
        let passes: [Rates; PASSES] = std::array::from_fn(|_| self.pass(team));
        Rates::median(&passes)
    }

    /// The fastest of a few passes of reading with each prefetch distance, since others share the machine.
    fn fastest_read(&mut self, team: &Team) -> f64 {
        [AHEAD; PASSES].into_iter().flatten().map(|ahead| self.read(team, ahead)).fold(0.0, f64::max)
    }

    fn pass(&mut self, team: &Team) -> Rates {
        Rates {
            read: self.read(team, self.read_ahead),
            copy: self.copy(team),
            update: self.update(team, self.update_ahead),
        }
    }

    fn read(&mut self, team: &Team, ahead: usize) -> f64 {
        let (kernels, bytes) = (self.kernels, self.values.bytes() as f64);
        let values = self.values.values_mut();
        let read = |_, values: &mut [f32]| {
            std::hint::black_box(kernels.read(values, ahead));
        };
        bytes / timed(team, || each_chunk(values, UNIT, 1, read))
    }

    fn update(&mut self, team: &Team, ahead: usize) -> f64 {
        let (kernels, bytes) = (self.kernels, self.values.bytes() as f64);
        let values = self.values.values_mut();
        let factor = std::hint::black_box(1.0);
        let update = |_, values: &mut [f32]| kernels.update(values, factor, ahead);
        2.0 * bytes / timed(team, || each_chunk(values, UNIT, 1, update))
    }

    fn copy(&mut self, team: &Team) -> f64 {
        let (kernels, bytes) = (self.kernels, self.values.bytes() as f64);
        let values = self.values.values_mut();
        let (from, to) = values.split_at_mut(values.len() / 2);
        let copy = |_, to: &mut [f32], from: &mut [f32]| kernels.copy_streaming(from, to);
        bytes / timed(team, || each_pair((to, UNIT), (from, UNIT), 1, copy))
    }
}

/// Bytes per second that `threads` threads read together at best, with the widest instructions the processor has and the
/// prefetch distance that suits it: some processors reach two thirds of their rate without. Where the caches are large, up
/// to a quarter of `room`, the bytes of memory that can be had, is read.
///
/// # Errors
/// There are not that many threads or not that much memory to be had.
pub fn read_rate(threads: usize, room: Option<u64>) -> anyhow::Result<f64> {
    let quarter = room.map_or(READ_BYTES[1], |room| usize::try_from(room / 4).unwrap_or(usize::MAX));
    let most = quarter.clamp(READ_BYTES[0], READ_BYTES[1]);
    let bytes = (2 * last_level_cache()).clamp(READ_BYTES[0], most);
    Ok(Probe::untuned(Isa::detect(), bytes)?.fastest_read(&Team::new(threads)?))
}

fn timed(team: &Team, work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    team.run(work);
    start.elapsed().as_secs_f64()
}

/// Bytes of the largest cache, as Linux reports it; 32 MiB where it does not.
#[must_use]
pub fn last_level_cache() -> usize {
    let size = |index: usize| {
        let path = format!("/sys/devices/system/cpu/cpu0/cache/index{index}/size");
        let text = std::fs::read_to_string(path).ok()?;
        let text = text.trim();
        let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
        let scale = match unit {
            "K" => 1 << 10,
            "M" => 1 << 20,
            "" => 1,
            _ => return None,
        };
        number.parse::<usize>().ok()?.checked_mul(scale)
    };
    (0..8).filter_map(size).max().unwrap_or(32 << 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reading_and_writing_all_back_is_bound_by_the_update_rate() {
        let rates = Rates { read: 40e9, copy: 50e9, update: 44e9 };
        let state = Traffic { read: 1 << 20, written: 1 << 20 };
        assert!((rates.bound(state) - f64::from(2 << 20) / 44e9).abs() < 1e-12);
        let only_read = Traffic { read: 1 << 20, written: 0 };
        assert!((rates.bound(only_read) - f64::from(1 << 20) / 40e9).abs() < 1e-12);
    }

    #[test]
    fn a_probe_finds_rates() {
        let team = Team::new(2).unwrap();
        let mut probe = Probe::new(&team, Isa::Scalar, 4 << 20).unwrap();
        let rates = probe.measure(&team);
        assert!(rates.read > 0.0 && rates.copy > 0.0 && rates.update > 0.0);
        assert!(probe.fastest_read(&team) > 0.0 && read_rate(2, Some(0)).unwrap() > 0.0);
        assert!(last_level_cache() > 0);
    }

    #[test]
    fn a_probe_needs_the_instructions_it_is_to_use() {
        let absent = Isa::ALL.into_iter().find(|isa| !isa.is_available()).unwrap();
        let error = Probe::new(&Team::new(1).unwrap(), absent, 4 << 20).err().unwrap().to_string();
        assert!(error.contains(absent.name()), "{error}");
    }
}
