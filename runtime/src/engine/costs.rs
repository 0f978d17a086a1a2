//! What passes have cost lately, measured while they run.

use std::time::Duration;

/// Rows up to which decode passes are told apart.
const MAX_ROWS: usize = 64;
/// Weight of a new measurement.
const WEIGHT: f64 = 0.25;

/// Running means of the time that passes take.
#[derive(Clone, Debug)]
pub(super) struct CostModel {
    /// Seconds of a pass without a prompt slice, by rows (index 0 is one row); `None` until measured.
    decode: [Option<f64>; MAX_ROWS],
    /// Seconds of a row of a prompt.
    prefill_row: Option<f64>,
}

impl Default for CostModel {
    fn default() -> CostModel {
        CostModel { decode: [None; MAX_ROWS], prefill_row: None }
    }
}

fn blend(old: Option<f64>, new: f64) -> Option<f64> {
    Some(old.map_or(new, |old| old + WEIGHT * (new - old)))
}

impl CostModel {
    /// Records a pass of decode rows, and of `slice` rows of a prompt where there were any.
    pub(super) fn record(&mut self, decode_rows: usize, slice: usize, took: Duration) {
        let seconds = took.as_secs_f64();
        if slice == 0 {
            if (1..=MAX_ROWS).contains(&decode_rows) {
                let entry = &mut self.decode[decode_rows - 1];
                *entry = blend(*entry, seconds);
            }
            return;
        }
        let beside = self.decode_pass(decode_rows).unwrap_or(0.0);
        // A pass that holds both is never cheaper than its decode rows alone; a tenth guards against noise.
        let row = (seconds - beside).max(seconds * 0.1) / slice as f64;
        // A prompt that has become slower must be believed at once; one that seems faster may be luck.
        self.prefill_row = match self.prefill_row {
            Some(old) if row <= old => blend(Some(old), row),
            _ => Some(row),
        };
    }

    /// Seconds of a pass of so many decode rows: measured, or interpolated between the nearest that were.
    pub(super) fn decode_pass(&self, rows: usize) -> Option<f64> {
        if rows == 0 {
            return Some(0.0);
        }
        let at = rows.min(MAX_ROWS) - 1;
        let below = (0..=at).rev().find_map(|i| self.decode[i].map(|seconds| (i, seconds)));
        let above = (at..MAX_ROWS).find_map(|i| self.decode[i].map(|seconds| (i, seconds)));
        match (below, above) {
            (Some((i, a)), Some((j, b))) if i != j => Some(a + (b - a) * (at - i) as f64 / (j - i) as f64),
            (Some((_, seconds)), _) | (None, Some((_, seconds))) => Some(seconds),
            (None, None) => None,
        }
    }

    /// Seconds of a row of a prompt.
    pub(super) fn prefill_row(&self) -> Option<f64> {
        self.prefill_row
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passes_are_interpolated_between_measurements() {
        let mut costs = CostModel::default();
        assert_eq!(costs.decode_pass(1), None);
        assert_eq!(costs.decode_pass(0), Some(0.0));
        costs.record(1, 0, Duration::from_millis(10));
        costs.record(5, 0, Duration::from_millis(18));
        let close = |a: Option<f64>, b: f64| (a.unwrap() - b).abs() < 1e-9;
        assert!(close(costs.decode_pass(3), 0.014));
        assert!(close(costs.decode_pass(9), 0.018));
    }

    #[test]
    fn slower_prompts_are_believed_at_once() {
        let mut costs = CostModel::default();
        costs.record(0, 100, Duration::from_millis(100));
        assert_eq!(costs.prefill_row(), Some(0.001));
        costs.record(0, 100, Duration::from_millis(200));
        assert_eq!(costs.prefill_row(), Some(0.002));
        costs.record(0, 100, Duration::from_millis(100));
        assert_eq!(costs.prefill_row(), Some(0.00175));
    }
}
