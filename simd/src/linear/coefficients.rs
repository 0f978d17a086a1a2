//! Decay weights of a value head.

use super::{MAX_WINDOW, blocks, panel_len};
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
        for r in 0..count {
            let t = first + r;
            let (kk, kq) = (&kk[t * entries..][..entries], &kq[t * entries..][..entries]);
            base[t] = row_coefficients(s, &g[..=log + t], kk, kq, block, 2 * count, r);
        }
    }
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
