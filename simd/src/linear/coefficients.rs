//! Decay weights of a value head.

use super::{MAX_WINDOW, PANEL_ROWS, blocks, panel_len};
use crate::LANES;
use crate::vector::lanes::{Lane, Simd};
use crate::vector::math::{exp, exp_one};

#[inline(always)]
pub(super) fn head_coefficients<S: Simd>(
    s: S,
    g: &[f32],
    kk: &[f32],
    kq: &[f32],
    base: &mut [f32],
    panel: &mut [f32],
) {
    let (entries, rows) = (g.len(), base.len());
    assert!(rows <= entries && rows <= MAX_WINDOW, "window rows are entries");
    assert!(kk.len() == rows * entries && kq.len() == kk.len(), "one score per row and entry");
    assert_eq!(panel.len(), panel_len(rows, entries), "panel of the window");
    let log = entries - rows;
    for (first, count) in blocks(rows) {
        let block = &mut panel[2 * first * entries..][..2 * count * entries];
        if count == PANEL_ROWS {
            let rows = first * entries..(first + count) * entries;
            let base = &mut base[first..first + count];
            block_coefficients(s, g, &kk[rows.clone()], &kq[rows], log + first, base, block);
            continue;
        }
        for r in 0..count {
            let t = first + r;
            let (kk, kq) = (&kk[t * entries..][..entries], &kq[t * entries..][..entries]);
            base[t] = row_coefficients(s, &g[..=log + t], kk, kq, block, 2 * count, r);
        }
    }
}

/// Coefficients of a whole block of rows, lanes being its columns. `own`: entry of the first row.
#[inline(always)]
fn block_coefficients<S: Simd>(
    s: S,
    g: &[f32],
    kk: &[f32],
    kq: &[f32],
    own: usize,
    base: &mut [f32],
    block: &mut [f32],
) {
    const { assert!(2 * PANEL_ROWS == LANES) };
    let entries = g.len();
    // Entry of each lane's row, and the first entry that its score leaves out.
    let owns = s.load(&std::array::from_fn(|lane| (own + lane % PANEL_ROWS) as f32));
    let ends = s.load(&std::array::from_fn(|lane| (own + lane % PANEL_ROWS + lane / PANEL_ROWS) as f32));
    let (rows, _) = block.as_chunks_mut::<LANES>();
    let mut sums = s.zero();
    for first in (0..entries).step_by(LANES).rev() {
        let count = LANES.min(entries - first);
        let scores = s.transpose(std::array::from_fn(|lane| {
            let scores = if lane < PANEL_ROWS { kk } else { kq };
            let row = &scores[lane % PANEL_ROWS * entries + first..][..count];
            row.first_chunk().map_or_else(|| s.load_partial(row), |row| s.load(row))
        }));
        for j in (0..count).rev() {
            let i = first + j;
            let index = s.splat(i as f32);
            let decay = s.splat(g.get(i + 1).copied().unwrap_or(0.0));
            sums = s.add(sums, s.select_lt(index, owns, decay, s.zero()));
            let score = s.select_lt(index, ends, scores[j], s.zero());
            s.store(s.mul(exp(s, sums), score), &mut rows[i]);
        }
    }
    let mut lanes = [0.0; LANES];
    s.store(exp(s, s.add(sums, s.splat(g[0]))), &mut lanes);
    base.copy_from_slice(&lanes[..PANEL_ROWS]);
}

/// Coefficients of one row, `g.len() - 1` being its own entry, to columns `r` and `stride / 2 + r` of its block.
/// Entries after its own get zeros. Returns the decay of the state.
#[inline(always)]
fn row_coefficients<S: Simd>(
    s: S,
    g: &[f32],
    kk: &[f32],
    kq: &[f32],
    block: &mut [f32],
    stride: usize,
    r: usize,
) -> f32 {
    let own = g.len() - 1;
    let mut sum = 0.0;
    for first in (0..kk.len()).step_by(LANES).rev() {
        let count = LANES.min(kk.len() - first);
        let mut sums: Lane = [0.0; LANES];
        let (mut erase, mut read): (Lane, Lane) = ([0.0; LANES], [0.0; LANES]);
        for j in (0..count).rev() {
            let i = first + j;
            if i < own {
                sum += g[i + 1];
                erase[j] = kk[i];
            }
            if i <= own {
                read[j] = kq[i];
            }
            sums[j] = sum;
        }
        let weight = exp(s, s.load(&sums));
        s.store(s.mul(weight, s.load(&erase)), &mut erase);
        s.store(s.mul(weight, s.load(&read)), &mut read);
        for j in 0..count {
            block[(first + j) * stride + r] = erase[j];
            block[(first + j) * stride + stride / 2 + r] = read[j];
        }
    }
    exp_one(s, sum + g[0])
}

#[inline(always)]
pub(super) fn fold_weights<S: Simd>(s: S, g: &[f32], weights: &mut [f32]) -> f32 {
    assert_eq!(g.len(), weights.len(), "one weight per entry");
    let mut sum = 0.0;
    for (weight, g) in weights.iter_mut().zip(g).rev() {
        *weight = sum;
        sum += g;
    }
    crate::vector::elementwise::exp(s, weights);
    exp_one(s, sum)
}
