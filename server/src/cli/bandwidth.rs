//! How fast this machine reads memory: what weights stream at, at best.

use std::hint::black_box;
use std::time::Instant;

/// Bytes each pass reads: far beyond any cache.
const BUFFER: usize = 256 << 20;
/// Passes, of which the fastest counts: others share the machine.
const PASSES: usize = 5;

/// Bytes read per second by `threads` threads at once.
#[must_use]
pub(crate) fn measure(threads: usize) -> f64 {
    let threads = threads.max(1);
    let words = vec![1u64; BUFFER / 8];
    let share = words.len().div_ceil(threads);
    let mut best = f64::INFINITY;
    for _ in 0..PASSES {
        let start = Instant::now();
        std::thread::scope(|scope| {
            for part in words.chunks(share) {
                scope.spawn(move || black_box(sum(part)));
            }
        });
        best = best.min(start.elapsed().as_secs_f64());
    }
    BUFFER as f64 / best.max(1e-9)
}

/// A sum over independent lanes, so that nothing but memory limits it.
fn sum(words: &[u64]) -> u64 {
    let mut lanes = [0u64; 32];
    for chunk in words.chunks_exact(32) {
        for (lane, word) in lanes.iter_mut().zip(chunk) {
            *lane = lane.wrapping_add(*word);
        }
    }
    lanes.iter().fold(0, |sum, lane| sum.wrapping_add(*lane))
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_word_is_read() {
        assert_eq!(super::sum(&[1; 64]), 64);
        assert!(super::measure(2) > 0.0);
    }
}
