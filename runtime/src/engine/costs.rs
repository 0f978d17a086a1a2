//! What passes have cost lately, measured while they run.

use std::time::Duration;

use super::speculation::Source;
use crate::state::cursor::PREFILL_CHUNK;

/// Most streams, and most drafted rows, up to which decode passes are told apart.
const MAX: usize = 32;
/// Weights of a new measurement of a prompt's rows: one that is slower is soon believed, one that is faster may be luck.
const SLOWER: f64 = 0.5;
const FASTER: f64 = 0.25;
/// Tokens before a slice of a prompt up to which it counts as the prompt's start.
const SHALLOW: usize = 1024;
/// Measurements remembered of passes of one shape.
const REMEMBERED: usize = 24;
/// Longest pass that is taken into account, as a multiple of what was expected: beyond, slices would only get too small.
const WORST_SURPRISE: f64 = 3.0;
/// What is forgotten of a surprise with each pass.
const FORGOTTEN: f64 = 0.05;
/// Measurements before a plain pass counts as known.
const ENOUGH: usize = 3;

/// The last measurements of one thing.
#[derive(Clone, Copy, Debug, Default)]
struct Recent {
    seconds: [f64; REMEMBERED],
    count: usize,
    /// The mean of the lower half: what was disturbed by others is above.
    typical: f64,
}

impl Recent {
    fn record(&mut self, seconds: f64) {
        self.seconds[self.count % REMEMBERED] = seconds;
        self.count += 1;
        let mut seconds = self.seconds;
        let seconds = &mut seconds[..self.count.min(REMEMBERED)];
        seconds.sort_by(f64::total_cmp);
        let lower = &seconds[..(seconds.len() / 2).max(1)];
        self.typical = lower.iter().sum::<f64>() / lower.len() as f64;
    }

    fn typical(&self) -> Option<f64> {
        (self.count > 0).then_some(self.typical)
    }
}

/// What passes have cost lately.
#[derive(Clone, Debug)]
pub(super) struct CostModel {
    /// Passes without a prompt slice: by streams (from one), then by drafted rows (from none).
    decode: Vec<[Recent; MAX + 1]>,
    /// Seconds that a row at the start of a prompt adds to a pass.
    prefill_row: Option<f64>,
    /// Passes with rows of prompts.
    prefills: usize,
    /// Seconds that a row costs more for each token before it: attention looks at all of them.
    prefill_depth: f64,
    /// What passes with rows of prompts have taken of late, at worst, as a multiple of what was expected.
    surprise: f64,
    /// Passes that make drafts, by their source.
    draft_pass: [Recent; Source::ALL.len()],
}

impl Default for CostModel {
    fn default() -> CostModel {
        let decode = vec![[Recent::default(); MAX + 1]; MAX];
        CostModel {
            decode,
            prefill_row: None,
            prefills: 0,
            prefill_depth: 0.0,
            surprise: 1.0,
            draft_pass: Default::default(),
        }
    }
}

impl CostModel {
    /// Records a decode pass of `streams` streams and `drafted` rows of drafts, with `slice` rows of prompts beside, before
    /// which there were `depth` tokens.
    pub(super) fn record(
        &mut self,
        streams: usize,
        drafted: usize,
        slice: usize,
        depth: usize,
        took: Duration,
    ) {
        let seconds = took.as_secs_f64();
        if slice == 0 {
            if (1..=MAX).contains(&streams) && drafted <= MAX {
                self.decode[streams - 1][drafted].record(seconds);
            }
            return;
        }
        // A pass without decode rows reads the weights too.
        let beside = self.decode_pass(streams.max(1), drafted).unwrap_or(0.0);
        self.judge(beside, slice, depth, seconds);
        // A pass that holds both is never cheaper than its decode rows alone; a tenth guards against noise.
        let row = (seconds - beside).max(seconds * 0.1) / slice as f64;
        // Few rows share what a pass costs beside them, so that they say less of what many would cost.
        let weight = (slice as f64 / PREFILL_CHUNK as f64).min(1.0);
        let blend = |old: f64, new: f64| old + (blend(old, new) - old) * weight;
        match self.prefill_row {
            Some(base) if depth >= SHALLOW => {
                let more = ((row - base) / depth as f64).max(0.0);
                self.prefill_depth = blend(self.prefill_depth, more);
            }
            // The first pass touches the weights for the first time.
            Some(base) if self.prefills == 1 && row < base => self.prefill_row = Some(row),
            Some(base) => self.prefill_row = Some(blend(base, row)),
            None => self.prefill_row = Some(row),
        }
        self.prefills += 1;
    }

    /// Compares what a pass with rows of a prompt has taken with what was expected of it. Surprises are forgotten over some
    /// tens of passes.
    fn judge(&mut self, beside: f64, slice: usize, depth: usize, seconds: f64) {
        let Some(row) = self.prefill_row.filter(|_| self.prefills > 1) else { return };
        let expected = beside + slice as f64 * (row + self.prefill_depth * depth as f64);
        let ratio = (seconds / expected).clamp(1.0, WORST_SURPRISE);
        self.surprise = ratio.max(self.surprise + (ratio - self.surprise) * FORGOTTEN);
    }

    /// Records passes of the prediction head or the draft model.
    pub(super) fn record_drafts(&mut self, source: Source, passes: usize, took: Duration) {
        self.draft_pass[source as usize].record(took.as_secs_f64() / passes.max(1) as f64);
    }

    /// Seconds that a token of a draft costs before it is verified; 0 until measured.
    pub(super) fn draft_pass(&self, source: Source) -> f64 {
        self.draft_pass[source as usize].typical().unwrap_or(0.0)
    }

    /// Seconds of a pass over so many streams without drafts, once enough were measured.
    pub(super) fn plain_pass(&self, streams: usize) -> Option<f64> {
        let plain = &self.decode.get(streams.checked_sub(1)?)?[0];
        plain.typical().filter(|_| plain.count >= ENOUGH)
    }

    /// The most drafted rows beside so many streams that were measured.
    pub(super) fn longest_known(&self, streams: usize) -> usize {
        let row = streams.checked_sub(1).and_then(|at| self.decode.get(at));
        row.and_then(|row| row.iter().rposition(|recent| recent.count > 0)).unwrap_or(0)
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
        let row = rows.find(|row| row.iter().any(|recent| recent.count > 0))?;
        let at = drafted.min(MAX);
        // One measurement may have been disturbed, or have touched its memory for the first time: until there are more,
        // a drafted row is not believed to cost more than a plain one.
        let most = |i: usize| {
            row[0].typical().map_or(f64::INFINITY, |plain| plain * (1.0 + i as f64 / streams as f64))
        };
        let estimate = |i: usize| {
            let seconds = row[i].typical()?;
            Some((i, if i > 0 && row[i].count < ENOUGH { seconds.min(most(i)) } else { seconds }))
        };
        let below = (0..=at).rev().find_map(estimate);
        let above = (at..=MAX).find_map(estimate);
        match (below, above) {
            (Some((i, a)), Some((j, b))) if i != j => Some(a + (b - a) * (at - i) as f64 / (j - i) as f64),
            (Some((_, seconds)), _) | (None, Some((_, seconds))) => Some(seconds),
            (None, None) => None,
        }
    }

    /// What of a decode pass's time it took by itself: more than a quarter above the usual was taken by others.
    pub(super) fn own_share(&self, streams: usize, drafted: usize, took: f64) -> f64 {
        self.decode_pass(streams, drafted).map_or(took, |usual| took.min(1.25 * usual))
    }

    /// Seconds that a row at the start of a prompt adds to a pass.
    pub(super) fn prefill_row(&self) -> Option<f64> {
        self.prefill_row
    }

    /// What passes with rows of prompts have taken of late, at worst, in percent of what was expected.
    pub(super) fn surprise(&self) -> u32 {
        (self.surprise * 100.0) as u32
    }

    /// Seconds that a row costs more for each token before it.
    pub(super) fn prefill_depth(&self) -> f64 {
        self.prefill_depth
    }
}

/// An estimate after another measurement.
fn blend(old: f64, new: f64) -> f64 {
    old + (new - old) * if new > old { SLOWER } else { FASTER }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passes_are_interpolated_between_measurements() {
        let mut costs = CostModel::default();
        assert_eq!(costs.decode_pass(1, 0), None);
        assert_eq!(costs.decode_pass(0, 0), Some(0.0));
        costs.record(1, 0, 0, 0, Duration::from_millis(10));
        costs.record(1, 4, 0, 0, Duration::from_millis(18));
        let close = |a: Option<f64>, b: f64| (a.unwrap() - b).abs() < 1e-9;
        assert!(close(costs.decode_pass(1, 2), 0.014));
        assert!(close(costs.decode_pass(1, 9), 0.018));
        assert!(close(costs.decode_pass(3, 2), 0.014), "the nearest batch that ran");
        assert_eq!(costs.plain_pass(3), None);
        assert_eq!(costs.plain_pass(1), None, "one measurement is not enough");
        for millis in [90, 10, 10] {
            costs.record(1, 0, 0, 0, Duration::from_millis(millis));
        }
        assert!(close(costs.plain_pass(1), 0.010), "a disturbed one has no weight");
    }

    #[test]
    fn a_pass_that_was_held_up_is_remembered_for_a_while() {
        let mut costs = CostModel::default();
        costs.record(1, 0, 0, 0, Duration::from_millis(10));
        let record = |costs: &mut CostModel, millis: u64| {
            costs.record(1, 0, 100, 0, Duration::from_millis(millis));
        };
        for _ in 0..20 {
            record(&mut costs, 110);
        }
        assert_eq!(costs.surprise(), 100);
        record(&mut costs, 220);
        assert!((195..=200).contains(&costs.surprise()), "{}", costs.surprise());
        for _ in 0..60 {
            record(&mut costs, 110);
        }
        assert!(costs.surprise() < 110, "{}", costs.surprise());
        record(&mut costs, 100_000);
        assert_eq!(costs.surprise(), 300);
    }

    #[test]
    fn slower_prompts_are_soon_believed_and_depth_counts_apart() {
        let mut costs = CostModel::default();
        let record = |costs: &mut CostModel, depth: usize, millis: u64| {
            costs.record(0, 0, 100, depth, Duration::from_millis(millis));
        };
        let close = |a: Option<f64>, b: f64| (a.unwrap() - b).abs() < 1e-9;
        record(&mut costs, 0, 100);
        assert!(close(costs.prefill_row(), 0.001));
        record(&mut costs, 64, 200);
        assert!(close(costs.prefill_row(), 0.0015));
        record(&mut costs, 64, 100);
        assert!(close(costs.prefill_row(), 0.001_375));
        for _ in 0..40 {
            record(&mut costs, 0, 100);
            record(&mut costs, 10_000, 300);
        }
        assert!((costs.prefill_row().unwrap() - 0.001).abs() < 1e-5);
        assert!(
            (costs.prefill_depth() - 2e-7).abs() < 1e-8,
            "2 ms more for 10,000 tokens: {}",
            costs.prefill_depth()
        );
    }
}
