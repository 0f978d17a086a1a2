//! Memory asked for ahead of its use.

use crate::vector::lanes::Simd;

/// Bytes of a cache line.
const LINE: usize = 64;

/// Memory that will be read soon. Kernels ask for its cache lines, in the order of addresses and spread evenly over
/// their own reading, so that the memory never idles. It need not be readable: nothing is read.
#[derive(Clone, Copy, Debug)]
pub struct Ahead {
    start: *const u8,
    lines: usize,
}

impl Ahead {
    /// Nothing.
    pub const NONE: Ahead = Ahead { start: std::ptr::null(), lines: 0 };

    /// Some values.
    pub fn of(values: &[f32]) -> Ahead {
        Ahead { start: values.as_ptr().cast(), lines: size_of_val(values).div_ceil(LINE) }
    }

    /// As many values as `values` has, `distance` values after its first; possibly not this program's own memory.
    pub fn after(values: &[f32], distance: usize) -> Ahead {
        Ahead { start: values.as_ptr().wrapping_add(distance).cast(), ..Ahead::of(values) }
    }
}

/// Ranges that one call may ask for.
const MOST_RANGES: usize = 4;

/// Binary places of a rate.
const PLACES: u32 = 20;

/// Requests spread over a number of steps.
pub(super) struct Asking<'a> {
    ahead: &'a [Ahead],
    /// Lines of each range per step, in fixed point.
    rates: [usize; MOST_RANGES],
}

impl<'a> Asking<'a> {
    #[inline(always)]
    pub(super) fn new(ahead: &'a [Ahead], steps: usize) -> Asking<'a> {
        assert!(ahead.len() <= MOST_RANGES, "few ranges");
        let mut rates = [0; MOST_RANGES];
        for (rate, ahead) in rates.iter_mut().zip(ahead) {
            *rate = (ahead.lines << PLACES).div_ceil(steps);
        }
        Asking { ahead, rates }
    }

    /// The requests of `count` steps from `step` on.
    #[inline(always)]
    pub(super) fn ask<S: Simd>(&self, s: S, step: usize, count: usize) {
        for (ahead, rate) in self.ahead.iter().zip(self.rates) {
            let to = (((step + count) * rate) >> PLACES).min(ahead.lines);
            for line in ((step * rate) >> PLACES)..to {
                s.prefetch(ahead.start.wrapping_add(line * LINE));
            }
        }
    }
}
