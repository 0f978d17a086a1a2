//! Decay by key channel (Kimi Delta Attention and its kin): what differs from decay by head.
//!
//! With one log decay for each key channel the weight of an entry is a vector, so it cannot leave the dot products:
//!
//! ```text
//! k_i . k_t  becomes  sum_c k_t[c] (e^{G_t[c] - G_i[c]} k_i[c])      base S^T k_t  becomes  S^T (e^{G_t} k_t)
//! ```
//!
//! Everything else stays: these kernels put the decays into the panels of a window and into the keys of a fold, and
//! [`super::WindowTile`] and [`super::FoldTile`] run on them with weights of one.

use super::{MAX_WINDOW, blocks, panel_len};
use crate::LANES;
use crate::vector::elementwise::dot;
use crate::vector::lanes::Simd;
use crate::vector::math::exp;

/// A window of `T` tokens of one value head whose state decays by key channel.
#[derive(Debug)]
pub struct ChannelWindow<'a> {
    /// Keys, `[n + T][dk]`, log then window.
    pub keys: &'a [f32],
    /// Queries, `[T][dk]`.
    pub queries: &'a [f32],
    /// Log decays, `[n + T][dk]`.
    pub decays: &'a [f32],
    /// Key dimension.
    pub dk: usize,
    /// Receives the window's decayed keys and queries: a panel of width `dk`.
    pub panel: &'a mut [f32],
    /// Receives the coefficients: a panel of width `n + T`.
    pub coefficients: &'a mut [f32],
    /// Working memory, `2 dk`.
    pub scratch: &'a mut [f32],
}

#[inline(always)]
pub(super) fn channel_window<S: Simd>(s: S, args: ChannelWindow<'_>) {
    let ChannelWindow { keys, queries, decays, dk, panel, coefficients, scratch } = args;
    let (entries, rows) = (keys.len() / dk, queries.len() / dk);
    assert!(keys.len() == entries * dk && queries.len() == rows * dk, "whole rows of keys and queries");
    assert!(rows <= entries && rows <= MAX_WINDOW && decays.len() == keys.len(), "window rows are entries");
    assert_eq!(panel.len(), panel_len(rows, dk), "panel of the window's keys");
    assert_eq!(coefficients.len(), panel_len(rows, entries), "panel of the coefficients");
    let (sums, decayed) = scratch[..2 * dk].split_at_mut(dk);
    for (first, count) in blocks(rows) {
        let block = &mut coefficients[2 * first * entries..][..2 * count * entries];
        let panel = &mut panel[2 * first * dk..][..2 * count * dk];
        for r in 0..count {
            let own = entries - rows + first + r;
            let key = &keys[own * dk..][..dk];
            let query = &queries[(first + r) * dk..][..dk];
            sums.fill(0.0);
            for i in (0..entries).rev() {
                let column = &mut block[2 * count * i..][..2 * count];
                // An entry does not see itself in what its key reads, nor later ones in anything.
                column[r] = 0.0;
                column[count + r] = 0.0;
                if i > own {
                    continue;
                }
                if i < own {
                    add(s, &decays[(i + 1) * dk..][..dk], sums);
                }
                decay(s, sums, &keys[i * dk..][..dk], decayed);
                column[count + r] = dot(s, decayed, query);
                if i < own {
                    column[r] = dot(s, decayed, key);
                }
            }
            add(s, &decays[..dk], sums);
            for (source, offset) in [(key, r), (query, count + r)] {
                decay(s, sums, source, decayed);
                for (row, value) in panel.chunks_exact_mut(2 * count).zip(&*decayed) {
                    row[offset] = *value;
                }
            }
        }
    }
}

/// Weights of a fold, put into the keys: `weighted[i] = keys[i] exp(sum of decays after i)`, `base = exp(sum of all)`.
#[inline(always)]
pub(super) fn channel_fold<S: Simd>(
    s: S,
    keys: &[f32],
    decays: &[f32],
    weighted: &mut [f32],
    base: &mut [f32],
) {
    let dk = base.len();
    assert!(keys.len().is_multiple_of(dk), "whole rows of keys");
    assert!(decays.len() == keys.len() && weighted.len() == keys.len(), "one decay for each channel");
    base.fill(0.0);
    let rows = keys.chunks_exact(dk).zip(decays.chunks_exact(dk)).zip(weighted.chunks_exact_mut(dk));
    for ((key, decays), weighted) in rows.rev() {
        decay(s, base, key, weighted);
        add(s, decays, base);
    }
    crate::vector::elementwise::exp(s, base);
}

/// `sums += x`.
#[inline(always)]
fn add<S: Simd>(s: S, x: &[f32], sums: &mut [f32]) {
    crate::vector::elementwise::add_assign(s, sums, x);
}

/// `out = x exp(sums)`.
#[inline(always)]
fn decay<S: Simd>(s: S, sums: &[f32], x: &[f32], out: &mut [f32]) {
    let parts = sums.chunks(LANES).zip(x.chunks(LANES)).zip(out.chunks_mut(LANES));
    for ((sums, x), out) in parts {
        let decayed = s.mul(exp(s, s.load_partial(sums)), s.load_partial(x));
        s.store_partial(decayed, out);
    }
}
