//! What passes have cost lately, measured while they run.

use std::time::Duration;

/// Most streams, and most drafted rows, up to which decode passes are told apart.
const MAX: usize = 32;
/// Weight of a new measurement.
const WEIGHT: f64 = 0.25;

/// Running means of the time that passes take.
#[derive(Clone, Debug)]
pub(super) struct CostModel {
    /// Seconds of a pass without a prompt slice: by streams (from one), then by drafted rows (from none).
    decode: Vec<[Option<f64>; MAX + 1]>,
    /// Seconds of a row of a prompt.
    prefill_row: Option<f64>,
    /// Seconds of a pass of the prediction head; 0 until measured.
    draft_pass: f64,
}

impl Default for CostModel {
    fn default() -> CostModel {
        CostModel { decode: vec![[None; MAX + 1]; MAX], prefill_row: None, draft_pass: 0.0 }
    }
}

fn blend(old: Option<f64>, new: f64) -> Option<f64> {
    Some(old.map_or(new, |old| old + WEIGHT * (new - old)))
}

impl CostModel {
    /// Records a decode pass of `streams` streams and `drafted` rows of drafts, with `slice` rows of a prompt beside.
    pub(super) fn record(&mut self, streams: usize, drafted: usize, slice: usize, took: Duration) {
        let seconds = took.as_secs_f64();
        if slice == 0 {
            if (1..=MAX).contains(&streams) && drafted <= MAX {
                let entry = &mut self.decode[streams - 1][drafted];
                *entry = blend(*entry, seconds);
            }
            return;
        }
        let beside = self.decode_pass(streams, drafted).unwrap_or(0.0);
        // A pass that holds both is never cheaper than its decode rows alone; a tenth guards against noise.
        let row = (seconds - beside).max(seconds * 0.1) / slice as f64;
        // A prompt that has become slower must be believed at once; one that seems faster may be luck.
        self.prefill_row = match self.prefill_row {
            Some(old) if row <= old => blend(Some(old), row),
            _ => Some(row),
        };
    }

    /// Records passes of the prediction head.
    pub(super) fn record_drafts(&mut self, passes: usize, took: Duration) {
        let each = took.as_secs_f64() / passes.max(1) as f64;
        self.draft_pass = blend(Some(self.draft_pass).filter(|&old| old > 0.0), each).unwrap_or(each);
    }

    /// Seconds of a pass of the prediction head; 0 until measured.
    pub(super) fn draft_pass(&self) -> f64 {
        self.draft_pass
    }

    /// Seconds of a pass over so many streams without drafts, if one was measured.
    pub(super) fn plain_pass(&self, streams: usize) -> Option<f64> {
        self.decode.get(streams.checked_sub(1)?)?[0]
    }

    /// Seconds of a decode pass: measured, or interpolated between the nearest numbers of drafted rows that were; for a
    /// number of streams that never ran, that of the nearest that did.
    pub(super) fn decode_pass(&self, streams: usize, drafted: usize) -> Option<f64> {
        if streams == 0 {
            return Some(0.0);
        }
        let at = streams.min(MAX) - 1;
        let near = (0..MAX).flat_map(|distance| [at.checked_sub(distance), Some(at + distance)]);
        let mut rows = near.flatten().filter_map(|i| self.decode.get(i));
        let row = rows.find(|row| row.iter().any(Option::is_some))?;
        let at = drafted.min(MAX);
        let below = (0..=at).rev().find_map(|i| row[i].map(|seconds| (i, seconds)));
        let above = (at..=MAX).find_map(|i| row[i].map(|seconds| (i, seconds)));
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
        assert_eq!(costs.decode_pass(1, 0), None);
        assert_eq!(costs.decode_pass(0, 0), Some(0.0));
        costs.record(1, 0, 0, Duration::from_millis(10));
        costs.record(1, 4, 0, Duration::from_millis(18));
        let close = |a: Option<f64>, b: f64| (a.unwrap() - b).abs() < 1e-9;
        assert!(close(costs.decode_pass(1, 2), 0.014));
        assert!(close(costs.decode_pass(1, 9), 0.018));
        assert!(close(costs.decode_pass(3, 2), 0.014), "the nearest batch that ran");
        assert_eq!(costs.plain_pass(3), None);
        assert!(close(costs.plain_pass(1), 0.010));
    }

    #[test]
    fn slower_prompts_are_believed_at_once() {
        let mut costs = CostModel::default();
        costs.record(0, 0, 100, Duration::from_millis(100));
        assert_eq!(costs.prefill_row(), Some(0.001));
        costs.record(0, 0, 100, Duration::from_millis(200));
        assert_eq!(costs.prefill_row(), Some(0.002));
        costs.record(0, 0, 100, Duration::from_millis(100));
        assert_eq!(costs.prefill_row(), Some(0.00175));
    }
}
