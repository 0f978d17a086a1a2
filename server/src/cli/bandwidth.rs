//! How fast this machine reads memory: what weights stream at, at best.

use std::hint::black_box;
use std::time::Instant;

use millpond_simd::Isa;
use millpond_simd::memory::MemoryKernels;

use crate::bench::rates::{AHEAD, last_level_cache};

/// Bytes a pass reads at least, and at most where the caches are so large that twice their size is more.
const BUFFER: [usize; 2] = [256 << 20, 1 << 30];
/// Passes with each prefetch distance, of which the fastest counts: others share the machine.
const PASSES: usize = 3;

/// Bytes read per second by `threads` threads at once, with the widest instructions the processor has and the prefetch
/// distance that suits it best: some processors reach two thirds of their rate without.
///
/// # Errors
/// The processor lacks the instructions it was found to have.
pub(crate) fn measure(threads: usize) -> anyhow::Result<f64> {
    let isa = Isa::detect();
    let kernels =
        MemoryKernels::for_isa(isa).ok_or_else(|| anyhow::anyhow!("this processor does not have {isa}"))?;
    Ok(rate(kernels, threads.max(1), (2 * last_level_cache()).clamp(BUFFER[0], BUFFER[1])))
}

fn rate(kernels: &MemoryKernels, threads: usize, bytes: usize) -> f64 {
    let values = vec![1.0_f32; bytes / size_of::<f32>()];
    let share = values.len().div_ceil(threads);
    let mut best = f64::INFINITY;
    for ahead in [AHEAD; PASSES].into_iter().flatten() {
        let start = Instant::now();
        std::thread::scope(|scope| {
            for part in values.chunks(share) {
                scope.spawn(move || black_box(kernels.read(part, ahead)));
            }
        });
        best = best.min(start.elapsed().as_secs_f64());
    }
    bytes as f64 / best.max(1e-9)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_share_of_memory_has_a_rate() {
        let kernels = MemoryKernels::for_isa(Isa::Scalar).unwrap();
        for threads in [1, 2, 3] {
            assert!(rate(kernels, threads, 1 << 20).is_finite());
        }
        let rate = measure(2).unwrap();
        assert!(rate.is_finite() && rate > 0.0);
    }
}
