//! Drafts by prompt lookup: what followed the last time the text stood like this.

/// How prompt lookup searches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NgramParams {
    /// Fewest tokens that have to agree.
    pub shortest: usize,
    /// Most tokens compared; among longer agreements the latest wins.
    pub longest: usize,
    /// Most recent tokens searched.
    pub window: usize,
}

impl Default for NgramParams {
    fn default() -> Self {
        Self { shortest: 2, longest: 8, window: 65_536 }
    }
}

/// Finds the place in `history` before the end where the longest run of tokens agrees with the end (up to
/// `params.longest`; the latest such place), and puts up to `count` tokens that followed there into `draft`. The draft is
/// empty if fewer than `params.shortest` agree. Costs one scan over the window and allocates nothing beyond `count`.
pub fn draft(history: &[u32], params: NgramParams, count: usize, draft: &mut Vec<u32>) {
    draft.clear();
    let history = &history[history.len().saturating_sub(params.window)..];
    let Some((&last, before)) = history.split_last() else { return };
    let mut best = (0, 0);
    for place in (0..before.len()).rev() {
        if before[place] != last {
            continue;
        }
        let agree = agreement(history, place, params.longest);
        if agree > best.0 {
            best = (agree, place);
            if agree >= params.longest {
                break;
            }
        }
    }
    let (agree, place) = best;
    if agree >= params.shortest.max(1) {
        draft.extend(history[place + 1..].iter().take(count));
    }
}

/// Number of tokens, at most `longest`, that agree going back from `place` and from the end.
fn agreement(history: &[u32], place: usize, longest: usize) -> usize {
    let here = history[..=place].iter().rev();
    here.zip(history.iter().rev()).take(longest).take_while(|(left, right)| left == right).count()
}
