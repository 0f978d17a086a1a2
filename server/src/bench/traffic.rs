//! Bytes that a step must move.

use std::ops::{Add, AddAssign};

use millpond::state::PassPlan;
use millpond::state::memory::StateType;
use millpond_models::LinearSpec;
use serde::Serialize;

/// Bytes read and written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Traffic {
    /// Read.
    pub(super) read: u64,
    /// Written.
    pub(super) written: u64,
}

impl Traffic {
    /// Both.
    pub(super) fn total(self) -> u64 {
        self.read + self.written
    }
}

impl Add for Traffic {
    type Output = Traffic;

    fn add(self, other: Traffic) -> Traffic {
        Traffic { read: self.read + other.read, written: self.written + other.written }
    }
}

impl AddAssign for Traffic {
    fn add_assign(&mut self, other: Traffic) {
        *self = *self + other;
    }
}

/// What one sequence moves in one layer of a pass: the base where there is one, and back where it is folded into;
/// the log's entries, and the new ones; entries that a fold leaves over, to the front.
pub(super) fn buffered(spec: &LinearSpec, state_type: StateType, plan: &PassPlan) -> Traffic {
    let (state, entry) = (spec.state_bytes() / 4 * state_type.bytes(), spec.log_entry_bytes());
    let folded = plan.durably_folded();
    let moved = if folded > 0 { (plan.log - folded.min(plan.log)) * entry } else { 0 };
    Traffic {
        read: (if plan.has_base { state } else { 0 } + plan.log * entry) as u64,
        written: (if folded > 0 { state } else { 0 } + plan.rows * entry + moved) as u64,
    }
}

/// What the convolution adds: the rows before it, and its own inputs kept.
pub(super) fn convolution(spec: &LinearSpec, rows: usize) -> Traffic {
    let row = spec.conv_channels() * 4;
    Traffic { read: ((spec.conv_width - 1) * row) as u64, written: (rows * row) as u64 }
}

/// What verifying `rows` tokens moves with one state for each token: the state is read, written once a token, and the
/// accepted one copied back unless it is the last.
pub(super) fn snapshots(spec: &LinearSpec, rows: usize, copied: bool) -> Traffic {
    let state = spec.state_bytes() as u64;
    let copies = u64::from(copied);
    Traffic { read: (1 + copies) * state, written: (rows as u64 + copies) * state }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::shapes::SHAPES;
    use millpond::state::{Cursor, FoldPolicy, PassKind};

    /// Mean bytes of a decoded token over a whole fold cycle.
    fn mean(spec: &LinearSpec, interval: usize) -> f64 {
        let policy = FoldPolicy { interval, phase: 0, stateless: 0, window: 8 };
        let mut cursor = Cursor::restore(policy, 1024, 1024, policy.window).unwrap();
        let mut bytes = 0;
        for step in 0..2 * interval {
            let plan = cursor.plan(1, PassKind::Window);
            cursor.advance(&plan);
            cursor.commit(1).unwrap();
            bytes += if step < interval { 0 } else { buffered(spec, StateType::F32, &plan).total() };
        }
        bytes as f64 / interval as f64
    }

    /// The ratios of the design's byte model, for a log in f32: 1.67 with one value head to a key head, 1.72 with two.
    #[test]
    fn byte_ratios_are_those_of_the_model() {
        for (shape, expected) in [(SHAPES[0], 1.67), (SHAPES[1], 1.72), (SHAPES[3], 1.74)] {
            let spec = shape.linear();
            let ratio = 2.0 * spec.state_bytes() as f64 / mean(&spec, 16);
            assert!((ratio - expected).abs() < 0.02, "{}: {ratio}", shape.name);
        }
    }

    #[test]
    fn snapshots_move_a_state_for_each_token_and_three_more() {
        let spec = SHAPES[0].linear();
        assert_eq!(snapshots(&spec, 4, true).total(), 7 * spec.state_bytes() as u64);
        assert_eq!(snapshots(&spec, 4, false).total(), 5 * spec.state_bytes() as u64);
    }
}
