//! Rotary position embedding, half-split pairs.

use super::lanes::Simd;

/// `(low cos - high sin, high cos + low sin)`, each one product and one fused multiply-add.
#[inline(always)]
fn rotate<S: Simd>(s: S, low: S::V, high: S::V, cos: S::V, sin: S::V) -> (S::V, S::V) {
    let minus = s.sub(s.zero(), s.mul(high, sin));
    (s.fma(low, cos, minus), s.fma(high, cos, s.mul(low, sin)))
}

#[inline(always)]
pub(super) fn rope<S: Simd>(s: S, head: &mut [f32], cos: &[f32], sin: &[f32]) {
    let half = cos.len();
    assert!(sin.len() == half && 2 * half <= head.len(), "rotary tables fit the head");
    let (low, rest) = head.split_at_mut(half);
    let high = &mut rest[..half];
    let (low_groups, low_tail) = low.as_chunks_mut();
    let (high_groups, high_tail) = high.as_chunks_mut();
    let (cos_groups, cos_tail) = cos.as_chunks();
    let (sin_groups, sin_tail) = sin.as_chunks();
    for (((low, high), cos), sin) in low_groups.iter_mut().zip(high_groups).zip(cos_groups).zip(sin_groups) {
        let (a, b) = rotate(s, s.load(low), s.load(high), s.load(cos), s.load(sin));
        s.store(a, low);
        s.store(b, high);
    }
    if !low_tail.is_empty() {
        let (cos, sin) = (s.load_partial(cos_tail), s.load_partial(sin_tail));
        let (a, b) = rotate(s, s.load_partial(low_tail), s.load_partial(high_tail), cos, sin);
        s.store_partial(a, low_tail);
        s.store_partial(b, high_tail);
    }
}
