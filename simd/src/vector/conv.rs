//! Depthwise causal convolution with SiLU. Per channel: taps oldest first, one fused multiply-add each, from zero.

use super::lanes::{Lane, Simd};
use super::math;
use crate::LANES;

/// Taps of the widest convolution.
pub(super) const MAX_WIDTH: usize = 8;

/// Tap `tap` of up to 16 channels, the rest zero.
#[inline(always)]
fn gather_tap(weight: &[f32], width: usize, tap: usize) -> Lane {
    let mut lanes = [0.0; LANES];
    for (lane, taps) in lanes.iter_mut().zip(weight.chunks_exact(width)) {
        *lane = taps[tap];
    }
    lanes
}

#[inline(always)]
pub(super) fn conv_silu<S: Simd>(s: S, inputs: &[&[f32]], weight: &[f32], out: &mut [f32]) {
    let (width, channels) = (inputs.len(), out.len());
    assert!((1..=MAX_WIDTH).contains(&width), "1 to {MAX_WIDTH} taps");
    assert!(inputs.iter().all(|row| row.len() == channels), "input rows of one length");
    assert_eq!(weight.len(), channels * width, "one weight per channel and tap");
    let mut first = 0;
    if let [a, b, c, d] = *inputs {
        // The usual width: whole vectors of channels.
        let rows = [a, b, c, d].map(|row| row.as_chunks::<LANES>().0);
        let (groups, _) = out.as_chunks_mut::<LANES>();
        for (group, (out, weight)) in groups.iter_mut().zip(weight.as_chunks().0).enumerate() {
            let taps = s.deinterleave(weight);
            let mut sum = s.zero();
            for tap in 0..4 {
                sum = s.fma(taps[tap], s.load(&rows[tap][group]), sum);
            }
            s.store(math::silu(s, sum), out);
        }
        first = channels / LANES * LANES;
    }
    for first in (first..channels).step_by(LANES) {
        let last = channels.min(first + LANES);
        let weight = &weight[first * width..last * width];
        let mut sum = s.zero();
        for (tap, row) in inputs.iter().enumerate() {
            let w = s.load(&gather_tap(weight, width, tap));
            sum = s.fma(w, s.load_partial(&row[first..last]), sum);
        }
        s.store_partial(math::silu(s, sum), &mut out[first..last]);
    }
}

#[inline(always)]
pub(super) fn conv_silu_rows<S: Simd>(
    s: S,
    history: &[f32],
    rows: &[f32],
    channels: usize,
    weight: &[f32],
    out: &mut [f32],
) {
    if channels == 0 {
        return;
    }
    let width = weight.len() / channels;
    assert!((1..=MAX_WIDTH).contains(&width), "1 to {MAX_WIDTH} taps");
    assert_eq!(history.len(), (width - 1) * channels, "one history row per tap but the last");
    assert!(rows.len().is_multiple_of(channels) && rows.len() == out.len(), "whole rows");
    let row = |position: usize| -> &[f32] {
        match position.checked_sub(width - 1) {
            None => &history[position * channels..][..channels],
            Some(new) => &rows[new * channels..][..channels],
        }
    };
    for (t, out) in out.chunks_exact_mut(channels).enumerate() {
        let mut inputs: [&[f32]; MAX_WIDTH] = [&[]; MAX_WIDTH];
        for (tap, input) in inputs[..width].iter_mut().enumerate() {
            *input = row(t + tap);
        }
        conv_silu(s, &inputs[..width], weight, out);
    }
}
