//! Element-wise operations and reductions over slices. A short last group goes through the same vector code,
//! padded with zeros.

use super::lanes::{Element, Lane, Simd};
use super::math;
use crate::LANES;

/// An operation on one vector.
trait Map: Copy {
    fn apply<S: Simd>(self, s: S, x: S::V) -> S::V;
}

/// An operation on two vectors.
trait Zip: Copy {
    fn apply<S: Simd>(self, s: S, x: S::V, y: S::V) -> S::V;
}

#[inline(always)]
fn map<S: Simd>(s: S, op: impl Map, x: &mut [f32]) {
    let (groups, tail) = x.as_chunks_mut();
    for group in groups {
        s.store(op.apply(s, s.load(group)), group);
    }
    if !tail.is_empty() {
        s.store_partial(op.apply(s, s.load_partial(tail)), tail);
    }
}

/// `x <- op(x, y)`.
#[inline(always)]
fn zip_assign<S: Simd>(s: S, op: impl Zip, x: &mut [f32], y: &[f32]) {
    assert_eq!(x.len(), y.len(), "operands of one length");
    let (x_groups, x_tail) = x.as_chunks_mut();
    let (y_groups, y_tail) = y.as_chunks();
    for (x, y) in x_groups.iter_mut().zip(y_groups) {
        s.store(op.apply(s, s.load(x), s.load(y)), x);
    }
    if !x_tail.is_empty() {
        s.store_partial(op.apply(s, s.load_partial(x_tail), s.load_partial(y_tail)), x_tail);
    }
}

/// `out <- op(x, y)`.
#[inline(always)]
fn zip_into<S: Simd>(s: S, op: impl Zip, x: &[f32], y: &[f32], out: &mut [f32]) {
    assert!(x.len() == y.len() && x.len() == out.len(), "operands of one length");
    let (x_groups, x_tail) = x.as_chunks();
    let (y_groups, y_tail) = y.as_chunks();
    let (out_groups, out_tail) = out.as_chunks_mut();
    for ((x, y), out) in x_groups.iter().zip(y_groups).zip(out_groups) {
        s.store(op.apply(s, s.load(x), s.load(y)), out);
    }
    if !x_tail.is_empty() {
        s.store_partial(op.apply(s, s.load_partial(x_tail), s.load_partial(y_tail)), out_tail);
    }
}

macro_rules! map_op {
    ($op:ident, $name:ident, $apply:path) => {
        #[derive(Clone, Copy)]
        struct $op;

        impl Map for $op {
            #[inline(always)]
            fn apply<S: Simd>(self, s: S, x: S::V) -> S::V {
                $apply(s, x)
            }
        }

        #[inline(always)]
        pub(crate) fn $name<S: Simd>(s: S, x: &mut [f32]) {
            map(s, $op, x);
        }
    };
}

map_op!(Exp, exp, math::exp);
map_op!(Sigmoid, sigmoid, math::sigmoid);
map_op!(Silu, silu, math::silu);
map_op!(Softplus, softplus, math::softplus);

#[derive(Clone, Copy)]
struct Scale(f32);

impl Map for Scale {
    #[inline(always)]
    fn apply<S: Simd>(self, s: S, x: S::V) -> S::V {
        s.mul(x, s.splat(self.0))
    }
}

#[inline(always)]
pub(crate) fn scale<S: Simd>(s: S, x: &mut [f32], factor: f32) {
    map(s, Scale(factor), x);
}

#[derive(Clone, Copy)]
struct SiluMul;

impl Zip for SiluMul {
    #[inline(always)]
    fn apply<S: Simd>(self, s: S, gate: S::V, up: S::V) -> S::V {
        s.mul(math::silu(s, gate), up)
    }
}

#[inline(always)]
pub(super) fn silu_mul<S: Simd>(s: S, gate: &[f32], up: &[f32], out: &mut [f32]) {
    zip_into(s, SiluMul, gate, up, out);
}

#[derive(Clone, Copy)]
struct MulSigmoid;

impl Zip for MulSigmoid {
    #[inline(always)]
    fn apply<S: Simd>(self, s: S, x: S::V, gate: S::V) -> S::V {
        s.mul(x, math::sigmoid(s, gate))
    }
}

#[inline(always)]
pub(super) fn mul_sigmoid<S: Simd>(s: S, x: &mut [f32], gate: &[f32]) {
    zip_assign(s, MulSigmoid, x, gate);
}

#[derive(Clone, Copy)]
struct Add;

impl Zip for Add {
    #[inline(always)]
    fn apply<S: Simd>(self, s: S, x: S::V, y: S::V) -> S::V {
        s.add(x, y)
    }
}

#[inline(always)]
pub(crate) fn add_assign<S: Simd>(s: S, x: &mut [f32], y: &[f32]) {
    zip_assign(s, Add, x, y);
}

#[derive(Clone, Copy)]
struct AddScaled(f32);

impl Zip for AddScaled {
    #[inline(always)]
    fn apply<S: Simd>(self, s: S, x: S::V, y: S::V) -> S::V {
        s.fma(y, s.splat(self.0), x)
    }
}

#[inline(always)]
pub(crate) fn add_scaled<S: Simd>(s: S, x: &mut [f32], y: &[f32], factor: f32) {
    zip_assign(s, AddScaled(factor), x, y);
}

#[derive(Clone, Copy)]
struct SoftplusSum;

impl Zip for SoftplusSum {
    #[inline(always)]
    fn apply<S: Simd>(self, s: S, x: S::V, y: S::V) -> S::V {
        math::softplus(s, s.add(x, y))
    }
}

#[derive(Clone, Copy)]
struct Mul;

impl Zip for Mul {
    #[inline(always)]
    fn apply<S: Simd>(self, s: S, x: S::V, y: S::V) -> S::V {
        s.mul(x, y)
    }
}

#[inline(always)]
pub(super) fn decay_gates<S: Simd>(s: S, a: &[f32], bias: &[f32], rate: &[f32], out: &mut [f32]) {
    zip_into(s, SoftplusSum, a, bias, out);
    zip_assign(s, Mul, out, rate);
}

/// Dot product in the canonical order.
#[inline(always)]
pub(crate) fn dot<S: Simd>(s: S, x: &[f32], y: &[f32]) -> f32 {
    assert_eq!(x.len(), y.len(), "operands of one length");
    let (x_groups, x_tail) = x.as_chunks();
    let (y_groups, y_tail) = y.as_chunks();
    let mut sum = s.zero();
    for (x, y) in x_groups.iter().zip(y_groups) {
        sum = s.fma(s.load(x), s.load(y), sum);
    }
    if !x_tail.is_empty() {
        sum = s.fma(s.load_partial(x_tail), s.load_partial(y_tail), sum);
    }
    s.reduce_add(sum)
}

/// Dot products of `A` with `B` vectors, at most 16: lane `b * A + a` is `a . b` in the canonical order. Meanwhile
/// as many bytes as the `a` take are fetched from `ahead`.
#[inline(always)]
pub(crate) fn dots<S: Simd, E: Element, const A: usize, const B: usize>(
    s: S,
    a: [&[E]; A],
    b: [&[f32]; B],
    ahead: Option<*const u8>,
) -> Lane {
    const { assert!(A * B <= LANES) };
    let len = a[0].len();
    assert!(a.iter().all(|x| x.len() == len) && b.iter().all(|x| x.len() == len), "operands of one length");
    let mut sums = [s.zero(); LANES];
    // With few registers, two by two or, for a single `b`, four at a time.
    let (a_step, b_step) = match (S::ROW_BLOCK, B) {
        (8.., _) => (A, B),
        (_, 1) => (4, 1),
        _ => (2, 2),
    };
    for j in (0..B).step_by(b_step) {
        for i in (0..A).step_by(a_step) {
            let (a, b) = (&a[i..], &b[j..]);
            let sums = &mut sums[j * A + i..];
            let ahead = ahead.filter(|_| j == 0).map(|ahead| ahead.wrapping_add(i * len * size_of::<E>()));
            match (a_step.min(a.len()), b_step.min(b.len())) {
                (4, 1) => dot_block::<S, E, 4, 1>(s, a, b, A, ahead, sums),
                (2, 2) => dot_block::<S, E, 2, 2>(s, a, b, A, ahead, sums),
                (2, 1) => dot_block::<S, E, 2, 1>(s, a, b, A, ahead, sums),
                (1, 2) => dot_block::<S, E, 1, 2>(s, a, b, A, ahead, sums),
                (1, 1) => dot_block::<S, E, 1, 1>(s, a, b, A, ahead, sums),
                _ => dot_block::<S, E, A, B>(s, a, b, A, ahead, sums),
            }
        }
    }
    let mut out = [0.0; LANES];
    s.store(s.reduce_add_each(sums), &mut out);
    out
}

/// Asks for `len` bytes, from any address.
#[inline(always)]
pub(crate) fn fetch<S: Simd>(s: S, start: *const u8, len: usize) {
    for line in (0..len).step_by(64) {
        s.prefetch(start.wrapping_add(line));
    }
}

/// Lane sums of the first `A` and `B` vectors, to `sums[b * stride + a]`.
#[inline(always)]
fn dot_block<S: Simd, E: Element, const A: usize, const B: usize>(
    s: S,
    a: &[&[E]],
    b: &[&[f32]],
    stride: usize,
    ahead: Option<*const u8>,
    out: &mut [S::V],
) {
    let len = a[0].len();
    let a: [(&[[E; LANES]], &[E]); A] = std::array::from_fn(|i| a[i].as_chunks());
    let b: [(&[Lane], &[f32]); B] = std::array::from_fn(|j| b[j].as_chunks());
    let mut sums = [[s.zero(); A]; B];
    for group in 0..len / LANES {
        if let Some(ahead) = ahead {
            let bytes = A * LANES * size_of::<E>();
            fetch(s, ahead.wrapping_add(group * bytes), bytes);
        }
        let mut other = [s.zero(); B];
        for j in 0..B {
            other[j] = s.load(&b[j].0[group]);
        }
        for i in 0..A {
            let lanes = E::load(s, &a[i].0[group]);
            for j in 0..B {
                sums[j][i] = s.fma(lanes, other[j], sums[j][i]);
            }
        }
    }
    if !len.is_multiple_of(LANES) {
        for i in 0..A {
            let lanes = E::load_partial(s, a[i].1);
            for j in 0..B {
                sums[j][i] = s.fma(lanes, s.load_partial(b[j].1), sums[j][i]);
            }
        }
    }
    for j in 0..B {
        for i in 0..A {
            out[j * stride + i] = sums[j][i];
        }
    }
}

/// The largest value, NaN left out; negative infinity where there is none.
#[inline(always)]
fn largest<S: Simd>(s: S, x: &[f32]) -> f32 {
    let (groups, tail) = x.as_chunks();
    let mut max = s.splat(f32::NEG_INFINITY);
    for group in groups {
        max = s.max(s.load(group), max);
    }
    let mut lanes = [0.0; LANES];
    s.store(max, &mut lanes);
    lanes.iter().chain(tail).fold(f32::NEG_INFINITY, |max, &x| if x > max { x } else { max })
}

#[inline(always)]
pub(super) fn argmax<S: Simd>(s: S, x: &[f32]) -> usize {
    let max = largest(s, x);
    x.iter().position(|&x| x == max).unwrap_or(0)
}

#[inline(always)]
pub(super) fn softmax<S: Simd>(s: S, x: &mut [f32]) {
    let max = s.splat(largest(s, x));
    let mut sum = s.zero();
    let (groups, tail) = x.as_chunks_mut();
    for group in groups {
        let power = math::exp(s, s.sub(s.load(group), max));
        sum = s.add(sum, power);
        s.store(power, group);
    }
    if !tail.is_empty() {
        s.store_partial(math::exp(s, s.sub(s.load_partial(tail), max)), tail);
        sum = s.add(sum, s.load_partial(tail));
    }
    divide(s, x, s.reduce_add(sum));
}

#[derive(Clone, Copy)]
struct Divide(f32);

impl Map for Divide {
    #[inline(always)]
    fn apply<S: Simd>(self, s: S, x: S::V) -> S::V {
        s.div(x, s.splat(self.0))
    }
}

#[inline(always)]
pub(crate) fn divide<S: Simd>(s: S, x: &mut [f32], divisor: f32) {
    map(s, Divide(divisor), x);
}
