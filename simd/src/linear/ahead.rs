//! Memory asked for ahead of its use.

use super::state::State;
use crate::vector::lanes::Simd;

/// Bytes of a cache line.
const LINE: usize = 64;

/// Memory that will be read soon. Kernels ask for its cache lines, in the order of addresses and spread evenly over
/// their own reading, so that the memory never idles. It need not be readable: nothing is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ahead {
    /// An address that is never followed.
    start: usize,
    lines: usize,
}

impl Ahead {
    /// Nothing.
    pub const NONE: Ahead = Ahead { start: 0, lines: 0 };

    /// Some values.
    #[must_use]
    pub fn of<T>(values: &[T]) -> Ahead {
        Ahead { start: values.as_ptr().addr(), lines: size_of_val(values).div_ceil(LINE) }
    }

    /// As many values as `values` has, `distance` values after its first; possibly not this program's own memory.
    #[must_use]
    pub fn after<T>(values: &[T], distance: usize) -> Ahead {
        Ahead { start: values.as_ptr().wrapping_add(distance).addr(), ..Ahead::of(values) }
    }

    /// A part of a state.
    #[must_use]
    pub fn of_state(part: State<'_>) -> Ahead {
        match part {
            State::F32(values) => Ahead::of(values),
            State::Bf16(values) => Ahead::of(values),
        }
    }

    /// As much memory as this, right after it.
    #[must_use]
    pub fn following(self) -> Ahead {
        Ahead { start: self.start.wrapping_add(self.lines * LINE), ..self }
    }

    /// Cache lines.
    #[must_use]
    pub fn lines(self) -> usize {
        self.lines
    }

    /// Lines `from..to`, as far as there are any.
    #[must_use]
    pub fn range(self, from: usize, to: usize) -> Ahead {
        let (from, to) = (from.min(self.lines), to.min(self.lines));
        Ahead { start: self.start.wrapping_add(from * LINE), lines: to.saturating_sub(from) }
    }

    /// Asks for all of it now.
    pub fn ask(self) {
        for line in 0..self.lines {
            crate::vector::prefetch(self.start.wrapping_add(line * LINE));
        }
    }
}

/// Ranges that one call may ask for.
const MOST_RANGES: usize = 4;

/// Binary places of a rate.
const PLACES: u32 = 20;

/// Requests spread over a number of steps.
pub(super) struct Asking {
    /// Ranges not begun, the next one last.
    later: [Ahead; MOST_RANGES],
    waiting: usize,
    /// Where the next request goes, and lines left of its range.
    address: usize,
    left: usize,
    asked: usize,
    /// Lines per step, in fixed point.
    rate: usize,
}

impl Asking {
    #[inline(always)]
    pub(super) fn new(ahead: &[Ahead], steps: usize) -> Asking {
        let mut asking =
            Asking { later: [Ahead::NONE; MOST_RANGES], waiting: 0, address: 0, left: 0, asked: 0, rate: 0 };
        let mut lines = 0;
        for ahead in ahead.iter().rev().filter(|ahead| ahead.lines > 0) {
            assert!(asking.waiting < MOST_RANGES, "few ranges");
            asking.later[asking.waiting] = *ahead;
            asking.waiting += 1;
            lines += ahead.lines;
        }
        asking.rate = (lines << PLACES).div_ceil(steps.max(1));
        asking
    }

    /// The requests that are due once `step` steps are done.
    #[inline(always)]
    pub(super) fn ask<S: Simd>(&mut self, s: S, step: usize) {
        let due = (step * self.rate) >> PLACES;
        // Later rows of a window pass over the same steps again.
        let count = due.saturating_sub(self.asked);
        if count > self.left {
            self.ask_over(s, due);
            return;
        }
        self.ask_lines(s, count);
    }

    /// The requests that are due once `step` steps are done, to be made over `rows` rows. Those of a range that ends
    /// are made at once.
    #[inline(always)]
    pub(super) fn spread<S: Simd>(&mut self, s: S, step: usize, rows: usize) -> Spread {
        let due = (step * self.rate) >> PLACES;
        if due.saturating_sub(self.asked) > self.left {
            self.ask_over(s, due);
        }
        let lines = due.saturating_sub(self.asked).min(self.left);
        let spread = Spread { address: self.address, rate: (lines << PLACES) / rows.max(1), due: 0 };
        self.address = self.address.wrapping_add(lines * LINE);
        self.left -= lines;
        self.asked += lines;
        spread
    }

    /// The same where a range ends.
    #[cold]
    #[inline(never)]
    fn ask_over<S: Simd>(&mut self, s: S, due: usize) {
        while self.asked < due {
            if self.left == 0 {
                let Some(next) = self.waiting.checked_sub(1) else {
                    self.rate = 0;
                    self.asked = 0;
                    return;
                };
                self.waiting = next;
                (self.address, self.left) = (self.later[next].start, self.later[next].lines);
            }
            self.ask_lines(s, self.left.min(due - self.asked));
        }
    }

    /// Lines of the range that has begun.
    #[inline(always)]
    fn ask_lines<S: Simd>(&mut self, s: S, count: usize) {
        for line in 0..count {
            s.prefetch(std::ptr::without_provenance::<u8>(self.address.wrapping_add(line * LINE)));
        }
        self.address = self.address.wrapping_add(count * LINE);
        self.left -= count;
        self.asked += count;
    }
}

/// Requests spread over the rows of a loop, which they leave the registers to: no call is among them.
pub(super) struct Spread {
    address: usize,
    /// Lines per row, in fixed point, and what is due of the next line.
    rate: usize,
    due: usize,
}

impl Spread {
    /// The requests of a row.
    #[inline(always)]
    pub(super) fn ask_row<S: Simd>(&mut self, s: S) {
        self.due += self.rate;
        while self.due >= 1 << PLACES {
            s.prefetch(std::ptr::without_provenance::<u8>(self.address));
            self.address = self.address.wrapping_add(LINE);
            self.due -= 1 << PLACES;
        }
    }
}
