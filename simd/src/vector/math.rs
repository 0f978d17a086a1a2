//! Exponential and what is built on it.
//!
//! `exp`: `n = round(x / ln 2)`, `r = x - n ln 2` in two steps, a degree-6 polynomial for `e^r` (coefficients by
//! weighted minimax fit of `(e^r - 1 - r) / r^2`), then `n` added to the exponent field. Error below 1 ulp.
//! Results that would be subnormal are zero.
//!
//! `softplus`: `max(x, 0) + log1p(e^-|x|)` with `log1p(u) = 2 atanh(u / (2 + u))`, the odd series by weighted
//! minimax fit.

use super::lanes::Simd;

const LOG2_E: f32 = std::f32::consts::LOG2_E;
/// ln 2 rounded to few bits, so that `n * LN2_HIGH` is exact.
const LN2_HIGH: f32 = 0.693_359_4;
const LN2_LOW: f32 = -2.121_944_4e-4;
/// Adding 1.5 * 2^23 rounds to the nearest integer and leaves it in the low mantissa bits.
const ROUND: f32 = 12_582_912.0;
/// Above it, `e^x` overflows.
const EXP_HIGH: f32 = 88.722_84;
/// Below it, `e^x` is subnormal, or so close to it that the exponent field may underflow.
const EXP_LOW: f32 = -87.33;
const EXP: [f32; 5] = [0.499_999_94, 0.166_665_21, 0.041_668_39, 0.008_368_745, 0.001_381_453_8];
const LOG1P: [f32; 5] = [0.666_666_75, 0.399_988_77, 0.286_168_84, 0.214_276_57, 0.243_009_39];
/// Above it, softplus is the identity, as in the reference implementations.
const SOFTPLUS_LINEAR: f32 = 20.0;

/// `c[0] + c[1] x + ..` by Horner's rule.
#[inline(always)]
fn polynomial<S: Simd>(s: S, c: [f32; 5], x: S::V) -> S::V {
    let mut sum = s.splat(c[4]);
    for j in [3, 2, 1, 0] {
        sum = s.fma(sum, x, s.splat(c[j]));
    }
    sum
}

#[inline(always)]
pub(crate) fn exp<S: Simd>(s: S, x: S::V) -> S::V {
    let magic = s.fma(x, s.splat(LOG2_E), s.splat(ROUND));
    let n = s.sub(magic, s.splat(ROUND));
    let r = s.fma(n, s.splat(-LN2_HIGH), x);
    let r = s.fma(n, s.splat(-LN2_LOW), r);
    let tail = s.fma(polynomial(s, EXP, r), s.mul(r, r), r);
    let result = s.add_exponent(s.add(tail, s.splat(1.0)), magic);
    let result = s.select_lt(s.splat(EXP_HIGH), x, s.splat(f32::INFINITY), result);
    let result = s.select_lt(x, s.splat(EXP_LOW), s.zero(), result);
    s.select_nan(x, x, result)
}

/// `e^x` of one value, the same bits as the vector.
#[inline(always)]
pub(crate) fn exp_one<S: Simd>(s: S, x: f32) -> f32 {
    let mut out = [0.0; crate::LANES];
    s.store(exp(s, s.splat(x)), &mut out);
    out[0]
}

/// `1 + e^-x`.
#[inline(always)]
fn one_plus_exp_negated<S: Simd>(s: S, x: S::V) -> S::V {
    s.add(s.splat(1.0), exp(s, s.sub(s.zero(), x)))
}

#[inline(always)]
pub(crate) fn sigmoid<S: Simd>(s: S, x: S::V) -> S::V {
    s.div(s.splat(1.0), one_plus_exp_negated(s, x))
}

#[inline(always)]
pub(crate) fn silu<S: Simd>(s: S, x: S::V) -> S::V {
    s.div(x, one_plus_exp_negated(s, x))
}

#[inline(always)]
pub(crate) fn softplus<S: Simd>(s: S, x: S::V) -> S::V {
    let u = exp(s, s.sub(s.zero(), s.abs(x)));
    let a = s.div(u, s.add(s.splat(2.0), u));
    let z = s.mul(a, a);
    let log1p = s.fma(s.mul(a, z), polynomial(s, LOG1P, z), s.add(a, a));
    let result = s.add(s.max(x, s.zero()), log1p);
    s.select_lt(s.splat(SOFTPLUS_LINEAR), x, x, result)
}
