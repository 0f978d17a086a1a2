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

/// What a kernel asks for while it goes through a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lookahead {
    /// States, one after the other, at most as many lines as the kernel reads of its own: windows ask for a line for
    /// each that they read until there are no more, folds spread them over all they do.
    pub state: [Ahead; 2],
    /// Log entries, one range after the other: a line for each row of the state or of one of its tiles.
    pub log: [Ahead; 2],
}

impl Lookahead {
    /// Nothing.
    pub const NONE: Lookahead = Lookahead { state: [Ahead::NONE; 2], log: [Ahead::NONE; 2] };
}

/// Where requests go that ask for nothing: a line that is in the cache.
static IDLE: u8 = 0;

/// Two ranges, line by line.
struct Stream {
    address: usize,
    /// Lines left of the range that has begun.
    left: usize,
    later: Ahead,
}

impl Stream {
    #[inline(always)]
    fn new([first, later]: [Ahead; 2]) -> Stream {
        Stream { address: first.start, left: first.lines, later }
    }

    /// Begins the later range where the first has ended; whether anything is left.
    #[inline(always)]
    fn begin(&mut self) -> bool {
        if self.left == 0 {
            (self.address, self.left) = (self.later.start, self.later.lines);
            self.later = Ahead::NONE;
        }
        self.left > 0
    }

    /// Asks for `count` lines, as far as there are any.
    #[inline(always)]
    fn ask<S: Simd>(&mut self, s: S, count: usize) {
        for _ in 0..count {
            if !self.begin() {
                return;
            }
            s.prefetch(std::ptr::without_provenance::<u8>(self.address));
            self.take(1);
        }
    }

    /// Takes `lines` lines off; a range that ends may be exceeded.
    #[inline(always)]
    fn take(&mut self, lines: usize) {
        self.address = self.address.wrapping_add(lines * LINE);
        self.left = self.left.saturating_sub(lines);
    }
}

/// The requests of a kernel, in step with its own reading: whatever else is done per step costs more than they do.
pub(super) struct Asking {
    state: Stream,
    log: Stream,
    /// Lines to ask for per line of the kernel's own state, in fixed point, and what is due of the next line.
    rate: usize,
    due: usize,
}

/// Binary places of a rate.
const PLACES: u32 = 20;

/// Steps of a loop whose requests go on from line to line, so that they need no decisions.
pub(super) struct Steps {
    pub(super) count: usize,
    state: usize,
    state_stride: usize,
    log: usize,
    log_stride: usize,
}

impl Asking {
    /// For a kernel whose state has `lines` lines.
    #[inline(always)]
    pub(super) fn new(lookahead: Lookahead, lines: usize) -> Asking {
        let asked: usize = lookahead.state.iter().map(|ahead| ahead.lines).sum();
        let rate = (asked << PLACES).div_ceil(lines.max(1));
        Asking { state: Stream::new(lookahead.state), log: Stream::new(lookahead.log), rate, due: 0 }
    }

    /// The next steps, at most `most`, that ask for `N` lines of states and one of the log each.
    #[inline(always)]
    pub(super) fn steps<const N: usize>(&mut self, most: usize) -> Steps {
        let mut steps = Steps::idle(most);
        let (state, log) = (self.state.begin(), self.log.begin());
        if state {
            steps.count = steps.count.min(self.state.left.div_ceil(N));
            (steps.state, steps.state_stride) = (self.state.address, N * LINE);
        }
        if log {
            steps.count = steps.count.min(self.log.left);
            (steps.log, steps.log_stride) = (self.log.address, LINE);
        }
        if state {
            self.state.take(N * steps.count);
        }
        if log {
            self.log.take(steps.count);
        }
        steps
    }

    /// What is due with `lines` lines of the kernel's own state, and `log` lines of the log.
    #[inline(always)]
    pub(super) fn ask<S: Simd>(&mut self, s: S, lines: usize, log: usize) {
        self.due += lines * self.rate;
        let due = self.due >> PLACES;
        self.due -= due << PLACES;
        self.state.ask(s, due);
        self.log.ask(s, log);
    }
}

impl Steps {
    /// Steps that ask for nothing.
    #[inline(always)]
    pub(super) fn idle(count: usize) -> Steps {
        let idle = (&raw const IDLE).addr();
        Steps { count, state: idle, state_stride: 0, log: idle, log_stride: 0 }
    }

    /// The requests of one step.
    #[inline(always)]
    pub(super) fn ask<S: Simd, const N: usize>(&mut self, s: S) {
        for n in 0..N {
            s.prefetch(std::ptr::without_provenance::<u8>(self.state.wrapping_add(n * LINE)));
        }
        s.prefetch(std::ptr::without_provenance::<u8>(self.log));
        self.state = self.state.wrapping_add(self.state_stride);
        self.log = self.log.wrapping_add(self.log_stride);
    }
}
