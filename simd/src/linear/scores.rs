//! Scores of a key head and the panel of its window.

use super::blocks;
use crate::vector::elementwise::dot;
use crate::vector::lanes::Simd;

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
    let log = entries - rows;
    for t in 0..rows {
        let (key, query) = (&keys[(log + t) * dk..][..dk], &queries[t * dk..][..dk]);
        for i in 0..=log + t {
            let entry = &keys[i * dk..][..dk];
            if i < log + t {
                kk[t * entries + i] = dot(s, entry, key);
            }
            kq[t * entries + i] = dot(s, entry, query);
        }
    }
}

#[inline(always)]
pub(super) fn pack_window<S: Simd>(_: S, keys: &[f32], queries: &[f32], dk: usize, panel: &mut [f32]) {
    let rows = keys.len() / dk;
    assert!(keys.len() == rows * dk && queries.len() == keys.len(), "whole rows of keys and queries");
    assert_eq!(panel.len(), super::panel_len(rows, dk), "panel of the window");
    for (first, count) in blocks(rows) {
        let block = &mut panel[2 * first * dk..][..2 * count * dk];
        for (k, row) in block.chunks_exact_mut(2 * count).enumerate() {
            let (key_side, query_side) = row.split_at_mut(count);
            for r in 0..count {
                key_side[r] = keys[(first + r) * dk + k];
                query_side[r] = queries[(first + r) * dk + k];
            }
        }
    }
}
