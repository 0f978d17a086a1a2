//! Streams through memory: the ceilings that memory-bound kernels are measured against.

use crate::LANES;
use crate::vector::lanes::{Lane, Simd, kernel_table};

/// Vectors handled together: independent sums enough to hide an addition's latency.
const BLOCK: usize = 8;

kernel_table! {
    /// Streams through memory at one instruction-set level. `ahead` is how far to prefetch, in vectors; 0 leaves it to
    /// the processor. Values past the last whole block of 8 vectors are left out.
    pub struct MemoryKernels {
        /// Reads every value; returns a sum that depends on them all.
        fn read(values: &[f32], ahead: usize) -> f32 = read_all;
        /// `value *= factor`, in place.
        fn update(values: &mut [f32], factor: f32, ahead: usize) = update_all;
        /// Copies past the caches where the processor can and the destination is aligned to a vector. As many values as
        /// both have.
        fn copy_streaming(from: &[f32], to: &mut [f32]) = copy_streaming_all;
    }
}

fn blocks(values: &[f32]) -> &[[Lane; BLOCK]] {
    values.as_chunks::<LANES>().0.as_chunks().0
}

#[inline(always)]
fn read_all<S: Simd>(s: S, values: &[f32], ahead: usize) -> f32 {
    let mut sums = [s.zero(); BLOCK];
    for block in blocks(values) {
        for (sum, lane) in sums.iter_mut().zip(block) {
            *sum = s.add(*sum, s.load(lane));
            if ahead > 0 {
                s.prefetch(std::ptr::from_ref(lane).wrapping_add(ahead));
            }
        }
    }
    sums.into_iter().map(|sum| s.reduce_add(sum)).sum()
}

#[inline(always)]
fn update_all<S: Simd>(s: S, values: &mut [f32], factor: f32, ahead: usize) {
    let factor = s.splat(factor);
    for block in values.as_chunks_mut::<LANES>().0.as_chunks_mut::<BLOCK>().0 {
        for lane in block {
            if ahead > 0 {
                s.prefetch(std::ptr::from_ref(lane).wrapping_add(ahead));
            }
            s.store(s.mul(factor, s.load(lane)), lane);
        }
    }
}

#[inline(always)]
fn copy_streaming_all<S: Simd>(s: S, from: &[f32], to: &mut [f32]) {
    let to = to.as_chunks_mut::<LANES>().0.as_chunks_mut::<BLOCK>().0;
    for (from, to) in blocks(from).iter().zip(to) {
        for (from, to) in from.iter().zip(to) {
            s.store_streaming(s.load(from), to);
        }
    }
    s.streaming_fence();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;

    fn values(len: usize) -> Vec<f32> {
        (0..len).map(|i| (i % 97) as f32).collect()
    }

    #[test]
    fn streams_touch_every_value_of_whole_blocks_and_no_other() {
        let (whole, tail) = (3 * BLOCK * LANES, 5);
        let source = values(whole + tail);
        let expected: f32 = source[..whole].iter().sum();
        for kernels in Isa::available().into_iter().filter_map(MemoryKernels::for_isa) {
            for ahead in [0, 64] {
                assert_eq!(kernels.read(&source, ahead), expected);
                let mut updated = source.clone();
                kernels.update(&mut updated, 2.0, ahead);
                for (i, (new, old)) in updated.iter().zip(&source).enumerate() {
                    assert_eq!(*new, if i < whole { 2.0 * old } else { *old });
                }
            }
        }
    }

    #[test]
    fn streaming_copies_are_copies_wherever_they_land() {
        let source = values(4 * BLOCK * LANES + 3);
        for kernels in Isa::available().into_iter().filter_map(MemoryKernels::for_isa) {
            for offset in 0..LANES {
                let mut target = vec![-1.0; source.len() + LANES];
                kernels.copy_streaming(&source, &mut target[offset..]);
                let copied = ((target.len() - offset).min(source.len())) / (BLOCK * LANES) * BLOCK * LANES;
                assert_eq!(target[offset..offset + copied], source[..copied]);
                assert!(target[..offset].iter().chain(&target[offset + copied..]).all(|&x| x == -1.0));
            }
        }
    }
}
