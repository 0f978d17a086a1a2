//! Running softmax state of query rows.

use crate::vector::elementwise::{add_scaled, divide, scale};
use crate::vector::lanes::Simd;
use crate::vector::math::exp_one;

/// Maximum, sum and accumulator of some query rows. Buffers are kept between uses.
#[derive(Clone, Debug, Default)]
pub struct Partials {
    rows: usize,
    head_dim: usize,
    pub(super) max: Vec<f32>,
    pub(super) sum: Vec<f32>,
    /// `[rows][head_dim]`.
    pub(super) acc: Vec<f32>,
    /// Keys and values of a page, widened.
    pub(super) widened: Vec<f32>,
}

impl Partials {
    /// Partials of no rows.
    pub fn new() -> Partials {
        Partials::default()
    }

    /// Starts over with `rows` rows that have seen nothing.
    pub fn reset(&mut self, rows: usize, head_dim: usize) {
        self.rows = rows;
        self.head_dim = head_dim;
        self.max.clear();
        self.max.resize(rows, f32::NEG_INFINITY);
        self.sum.clear();
        self.sum.resize(rows, 0.0);
        self.acc.clear();
        self.acc.resize(rows * head_dim, 0.0);
    }

    /// Number of query rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Floats of one row's accumulator.
    pub fn head_dim(&self) -> usize {
        self.head_dim
    }
}

#[inline(always)]
pub(super) fn merge<S: Simd>(s: S, into: &mut Partials, later: &Partials) {
    assert!(into.rows == later.rows && into.head_dim == later.head_dim, "partials of one shape");
    let head_dim = into.head_dim;
    for r in 0..into.rows {
        if later.sum[r] == 0.0 {
            continue;
        }
        let max = if into.max[r] < later.max[r] { later.max[r] } else { into.max[r] };
        let (factor, later_factor) = (exp_one(s, into.max[r] - max), exp_one(s, later.max[r] - max));
        into.max[r] = max;
        into.sum[r] = later.sum[r].mul_add(later_factor, into.sum[r] * factor);
        let acc = &mut into.acc[r * head_dim..][..head_dim];
        scale(s, acc, factor);
        add_scaled(s, acc, &later.acc[r * head_dim..][..head_dim], later_factor);
    }
}

#[inline(always)]
pub(super) fn finish_row<S: Simd>(s: S, partials: &Partials, row: usize, out: &mut [f32]) {
    let acc = &partials.acc[row * partials.head_dim..][..partials.head_dim];
    out.copy_from_slice(acc);
    let sum = partials.sum[row];
    if sum != 0.0 {
        divide(s, out, sum);
    }
}
