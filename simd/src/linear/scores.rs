//! Scores of a key head and the panel of its window.

use super::{PANEL_ROWS, blocks, panel_len};
use crate::LANES;
use crate::vector::elementwise::dots;
use crate::vector::lanes::Simd;

/// Operands of one [`Scores::block`].
struct Scores<'a> {
    keys: &'a [f32],
    queries: &'a [f32],
    dk: usize,
    entries: usize,
    rows: usize,
    kk: &'a mut [f32],
    kq: &'a mut [f32],
}

#[inline(always)]
pub(super) fn key_scores<S: Simd>(
    s: S,
    keys: &[f32],
    queries: &[f32],
    dk: usize,
    kk: &mut [f32],
    kq: &mut [f32],
) {
    let (entries, rows) = (keys.len() / dk, queries.len() / dk);
    assert!(
        keys.len() == entries * dk && queries.len() == rows * dk && rows <= entries,
        "whole rows of keys"
    );
    assert!(kk.len() == rows * entries && kq.len() == rows * entries, "one score per row and entry");
    let mut scores = Scores { keys, queries, dk, entries, rows, kk, kq };
    let mut row = 0;
    while row < rows {
        let needed = entries - rows + row + 1;
        if row + 2 <= rows {
            for entry in (0..needed + 1).step_by(4) {
                scores.block::<S, 4, 2, 4>(s, entry, row);
            }
            row += 2;
        } else {
            for entry in (0..needed).step_by(8) {
                scores.block::<S, 8, 1, 2>(s, entry, row);
            }
            row += 1;
        }
    }
}

impl Scores<'_> {
    /// Scores of entries `entry..entry + E` with the keys and queries of rows `row..row + R`; `T` is `2 R`. Entries
    /// past the last are computed on the last and left out, as are scores a row does not have.
    #[inline(always)]
    fn block<S: Simd, const E: usize, const R: usize, const T: usize>(
        &mut self,
        s: S,
        entry: usize,
        row: usize,
    ) {
        let dk = self.dk;
        let log = self.entries - self.rows;
        let entries: [&[f32]; E] =
            std::array::from_fn(|e| &self.keys[(entry + e).min(self.entries - 1) * dk..][..dk]);
        let targets: [&[f32]; T] = std::array::from_fn(|t| match t.checked_sub(R) {
            None => &self.keys[(log + row + t) * dk..][..dk],
            Some(t) => &self.queries[(row + t) * dk..][..dk],
        });
        let sums = dots(s, entries, targets, None);
        for r in 0..R {
            let own = log + row + r;
            let at = (row + r) * self.entries + entry;
            for e in 0..E.min(self.entries - entry) {
                if entry + e < own {
                    self.kk[at + e] = sums[r * E + e];
                }
                if entry + e <= own {
                    self.kq[at + e] = sums[(R + r) * E + e];
                }
            }
        }
    }
}

#[inline(always)]
pub(super) fn pack_window<S: Simd>(s: S, keys: &[f32], queries: &[f32], dk: usize, panel: &mut [f32]) {
    let rows = keys.len() / dk;
    assert!(keys.len() == rows * dk && queries.len() == keys.len(), "whole rows of keys and queries");
    assert_eq!(panel.len(), panel_len(rows, dk), "panel of the window");
    for (first, count) in blocks(rows) {
        let block = &mut panel[2 * first * dk..][..2 * count * dk];
        let (keys, queries) = (&keys[first * dk..][..count * dk], &queries[first * dk..][..count * dk]);
        let mut done = 0;
        if count == PANEL_ROWS {
            while done + LANES <= dk {
                let square = std::array::from_fn(|r| {
                    let side = if r < PANEL_ROWS { keys } else { queries };
                    s.load(&side[r % PANEL_ROWS * dk + done..].as_chunks().0[0])
                });
                let (rows, _) = block[done * LANES..][..LANES * LANES].as_chunks_mut();
                for (row, v) in rows.iter_mut().zip(s.transpose(square)) {
                    s.store(v, row);
                }
                done += LANES;
            }
        } else if count == 1 {
            let (keys, queries) = (keys.as_chunks().0, queries.as_chunks().0);
            let (pairs, _) = block.as_chunks_mut::<LANES>().0.as_chunks_mut::<2>();
            for ([low, high], (key, query)) in pairs.iter_mut().zip(keys.iter().zip(queries)) {
                let [first, second] = s.interleave(s.load(key), s.load(query));
                s.store(first, low);
                s.store(second, high);
                done += LANES;
            }
        }
        for (k, row) in block.chunks_exact_mut(2 * count).enumerate().skip(done) {
            let (key_side, query_side) = row.split_at_mut(count);
            for r in 0..count {
                key_side[r] = keys[r * dk + k];
                query_side[r] = queries[r * dk + k];
            }
        }
    }
}
