//! Norms. Sums of squares are canonical dot products; `1 / sqrt` is a correctly rounded square root and division.

use super::elementwise::dot;
use super::lanes::Simd;
use super::math;

/// `1 / sqrt(mean of squares + eps)`.
#[inline(always)]
fn inverse_rms<S: Simd>(s: S, x: &[f32], eps: f32) -> f32 {
    1.0 / (dot(s, x, x) / x.len() as f32 + eps).sqrt()
}

#[inline(always)]
pub(super) fn rms_norm<S: Simd>(s: S, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    assert!(x.len() == weight.len() && x.len() == out.len(), "operands of one length");
    let inverse = s.splat(inverse_rms(s, x, eps));
    let (x_groups, x_tail) = x.as_chunks();
    let (w_groups, w_tail) = weight.as_chunks();
    let (out_groups, out_tail) = out.as_chunks_mut();
    for ((x, w), out) in x_groups.iter().zip(w_groups).zip(out_groups) {
        s.store(s.mul(s.mul(s.load(x), inverse), s.load(w)), out);
    }
    if !x_tail.is_empty() {
        let normal = s.mul(s.load_partial(x_tail), inverse);
        s.store_partial(s.mul(normal, s.load_partial(w_tail)), out_tail);
    }
}

#[inline(always)]
pub(super) fn gated_rms_norm<S: Simd>(
    s: S,
    x: &[f32],
    gate: &[f32],
    weight: &[f32],
    eps: f32,
    out: &mut [f32],
) {
    assert!(
        x.len() == weight.len() && x.len() == gate.len() && x.len() == out.len(),
        "operands of one length"
    );
    let inverse = s.splat(inverse_rms(s, x, eps));
    let (x_groups, x_tail) = x.as_chunks();
    let (w_groups, w_tail) = weight.as_chunks();
    let (gate_groups, gate_tail) = gate.as_chunks();
    let (out_groups, out_tail) = out.as_chunks_mut();
    for (((x, w), gate), out) in x_groups.iter().zip(w_groups).zip(gate_groups).zip(out_groups) {
        let normal = s.mul(s.mul(s.load(x), inverse), s.load(w));
        s.store(s.mul(normal, math::silu(s, s.load(gate))), out);
    }
    if !x_tail.is_empty() {
        let normal = s.mul(s.mul(s.load_partial(x_tail), inverse), s.load_partial(w_tail));
        s.store_partial(s.mul(normal, math::silu(s, s.load_partial(gate_tail))), out_tail);
    }
}

#[inline(always)]
pub(super) fn l2_normalize<S: Simd>(s: S, x: &mut [f32], eps: f32, factor: f32) {
    let inverse = s.splat(1.0 / (dot(s, x, x) + eps).sqrt());
    let factor = s.splat(factor);
    let (groups, tail) = x.as_chunks_mut();
    for x in groups {
        s.store(s.mul(s.mul(s.load(x), inverse), factor), x);
    }
    if !tail.is_empty() {
        s.store_partial(s.mul(s.mul(s.load_partial(tail), inverse), factor), tail);
    }
}
