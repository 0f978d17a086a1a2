//! One page of attention.

use half::f16;

use super::{MAX_PAGE, Partials};
use crate::LANES;
use crate::vector::elementwise::{dots, fetch};
use crate::vector::lanes::{Element, Simd};
use crate::vector::math::{exp, exp_one};

/// Keys or values of one page of one key/value head, `[positions][head_dim]`.
#[derive(Clone, Copy, Debug)]
pub enum KvBlock<'a> {
    /// Single precision.
    F32(&'a [f32]),
    /// Half precision; widened exactly.
    F16(&'a [f16]),
    /// Blocks of Q8_0: a half-precision scale and 32 signed bytes; widened exactly. `head_dim` is a multiple of 32.
    Q8(&'a [u8]),
}

/// Query rows and the page they attend to.
#[derive(Debug)]
pub struct AttendPage<'a> {
    /// Query rows `[rows][head_dim]`, already scaled.
    pub queries: &'a [f32],
    /// Floats of one head.
    pub head_dim: usize,
    /// Keys of the page.
    pub keys: KvBlock<'a>,
    /// Values of the page.
    pub values: KvBlock<'a>,
    /// Row r sees the first `visible[r]` positions of the page; the others are not read for it. A row that sees none
    /// stays as it is.
    pub visible: &'a [usize],
    /// Keys of the page to be visited next, if known: brought into the cache meanwhile.
    pub next_keys: Option<KvBlock<'a>>,
}

impl KvBlock<'_> {
    fn start(&self) -> *const u8 {
        match self {
            KvBlock::F32(block) => block.as_ptr().cast(),
            KvBlock::F16(block) => block.as_ptr().cast(),
            KvBlock::Q8(block) => block.as_ptr(),
        }
    }
}

/// Values and bytes of a block of Q8_0.
const Q8_VALUES: usize = 32;
const Q8_BYTES: usize = 34;

/// Rows that share a pass over the page.
const ROWS: usize = 4;

#[inline(always)]
pub(super) fn attend_page<S: Simd>(s: S, page: AttendPage<'_>, partials: &mut Partials) {
    let (rows, head_dim) = (page.visible.len(), page.head_dim);
    assert!(partials.rows() == rows && partials.head_dim() == head_dim, "partials of the rows");
    assert_eq!(page.queries.len(), rows * head_dim, "one query per row");
    assert!(page.visible.iter().all(|&visible| visible <= MAX_PAGE), "pages of at most {MAX_PAGE} positions");
    let (KvBlock::Q8(keys), KvBlock::Q8(values)) = (page.keys, page.values) else {
        return attend_floats(s, &page, partials);
    };
    // Widened once for all rows, each stream asking for the one that follows it.
    assert!(head_dim.is_multiple_of(Q8_VALUES), "heads of whole blocks");
    let positions = page.visible.iter().copied().max().unwrap_or(0);
    let (len, bytes) = (positions * head_dim, positions * head_dim / Q8_VALUES * Q8_BYTES);
    let mut widened = std::mem::take(&mut partials.widened);
    if widened.len() < 2 * len {
        widened.resize(2 * MAX_PAGE * head_dim, 0.0);
    }
    let (wide_keys, wide_values) = widened[..2 * len].split_at_mut(len);
    widen(s, &keys[..bytes], Some(page.values.start()), wide_keys);
    widen(s, &values[..bytes], page.next_keys.map(|keys| keys.start()), wide_values);
    let wide = AttendPage {
        keys: KvBlock::F32(wide_keys),
        values: KvBlock::F32(wide_values),
        next_keys: None,
        ..page
    };
    attend_floats(s, &wide, partials);
    partials.widened = widened;
}

/// Widens blocks of Q8_0, asking for as many bytes as they take from `ahead`.
#[inline(always)]
fn widen<S: Simd>(s: S, blocks: &[u8], ahead: Option<*const u8>, out: &mut [f32]) {
    let groups = blocks.chunks(LANES * Q8_BYTES).zip(out.chunks_mut(LANES * Q8_VALUES));
    for (group, (blocks, out)) in groups.enumerate() {
        if let Some(ahead) = ahead {
            fetch(s, ahead.wrapping_add(group * LANES * Q8_BYTES), LANES * Q8_BYTES);
        }
        let blocks = blocks.as_chunks::<Q8_BYTES>().0;
        let (mut halves, mut scales) = ([f16::ZERO; LANES], [0.0; LANES]);
        for (half, block) in halves.iter_mut().zip(blocks) {
            *half = f16::from_le_bytes([block[0], block[1]]);
        }
        s.store(s.load_f16(&halves), &mut scales);
        let outs = out.as_chunks_mut::<LANES>().0.as_chunks_mut::<2>().0;
        for ((block, scale), out) in blocks.iter().zip(scales).zip(outs) {
            let scale = s.splat(scale);
            let quarters = block[2..].as_chunks::<LANES>().0;
            for (bytes, out) in quarters.iter().zip(out) {
                s.store(s.mul(s.load_i8(bytes), scale), out);
            }
        }
    }
}

/// A page of floats.
#[inline(always)]
fn attend_floats<S: Simd>(s: S, page: &AttendPage<'_>, partials: &mut Partials) {
    let rows = page.visible.len();
    let mut first = 0;
    while first < rows {
        let visible = page.visible[first];
        let count = page.visible[first..].iter().take(ROWS).take_while(|&&other| other == visible).count();
        if visible > 0 {
            match count {
                1 => attend_rows::<S, 1, 16>(s, page, partials, first, visible),
                2 => attend_rows::<S, 2, 8>(s, page, partials, first, visible),
                3 => attend_rows::<S, 3, 5>(s, page, partials, first, visible),
                _ => attend_rows::<S, ROWS, 4>(s, page, partials, first, visible),
            }
        }
        first += count;
    }
}

/// Rows `first..first + R`, all of which see `visible` positions; `P` positions are scored together.
#[inline(always)]
fn attend_rows<S: Simd, const R: usize, const P: usize>(
    s: S,
    page: &AttendPage<'_>,
    partials: &mut Partials,
    first: usize,
    visible: usize,
) {
    let dim = page.head_dim;
    let queries = &page.queries[first * dim..][..R * dim];
    let mut weights = [[f32::NEG_INFINITY; MAX_PAGE]; R];
    // The first rows fetch what follows: the values while scoring, the next keys while accumulating.
    let ahead = (first == 0).then_some(page.values.start());
    match page.keys {
        KvBlock::F32(keys) => {
            scores::<S, f32, R, P>(s, queries, &keys[..visible * dim], dim, ahead, &mut weights)
        }
        KvBlock::F16(keys) => {
            scores::<S, f16, R, P>(s, queries, &keys[..visible * dim], dim, ahead, &mut weights)
        }
        KvBlock::Q8(_) => unreachable!("widened before"),
    }
    let mut factors = [0.0; R];
    for r in 0..R {
        let (max, sum) = (&mut partials.max[first + r], &mut partials.sum[first + r]);
        factors[r] = softmax_step(s, &mut weights[r], visible, max, sum);
    }
    let acc = &mut partials.acc[first * dim..][..R * dim];
    let ahead = page.next_keys.filter(|_| first == 0).map(|keys| keys.start());
    match page.values {
        KvBlock::F32(values) => accumulate(s, &weights, factors, &values[..visible * dim], dim, ahead, acc),
        KvBlock::F16(values) => accumulate(s, &weights, factors, &values[..visible * dim], dim, ahead, acc),
        KvBlock::Q8(_) => unreachable!("widened before"),
    }
}

/// Scores of the rows against every given position.
#[inline(always)]
fn scores<S: Simd, E: Element, const R: usize, const P: usize>(
    s: S,
    queries: &[f32],
    keys: &[E],
    dim: usize,
    ahead: Option<*const u8>,
    out: &mut [[f32; MAX_PAGE]; R],
) {
    let positions = keys.len() / dim;
    for first in (0..positions).step_by(P) {
        let ahead = ahead.map(|ahead| ahead.wrapping_add(first * dim * size_of::<E>()));
        score_block::<S, E, R, P>(s, queries, keys, dim, first, ahead, out);
    }
}

/// Scores of `P` positions from `first`; past the last, the last again, left out.
#[inline(always)]
fn score_block<S: Simd, E: Element, const R: usize, const P: usize>(
    s: S,
    queries: &[f32],
    keys: &[E],
    dim: usize,
    first: usize,
    ahead: Option<*const u8>,
    out: &mut [[f32; MAX_PAGE]; R],
) {
    let positions = keys.len() / dim;
    let queries: [&[f32]; R] = std::array::from_fn(|r| &queries[r * dim..][..dim]);
    let keys: [&[E]; P] = std::array::from_fn(|p| &keys[(first + p).min(positions - 1) * dim..][..dim]);
    let scores = dots(s, keys, queries, ahead);
    let count = P.min(positions - first);
    for r in 0..R {
        out[r][first..first + count].copy_from_slice(&scores[r * P..][..count]);
    }
}

/// Turns the scores of one row into weights and updates its maximum and sum; returns the rescaling factor.
#[inline(always)]
fn softmax_step<S: Simd>(
    s: S,
    scores: &mut [f32; MAX_PAGE],
    visible: usize,
    max: &mut f32,
    sum: &mut f32,
) -> f32 {
    let (groups, _) = scores.as_chunks_mut::<LANES>();
    let groups = &mut groups[..visible.div_ceil(LANES)];
    let mut lanes = s.splat(*max);
    for group in groups.iter() {
        lanes = s.max(s.load(group), lanes);
    }
    let mut largest = [0.0; LANES];
    s.store(lanes, &mut largest);
    let new = largest.into_iter().fold(f32::NEG_INFINITY, |max, x| if max < x { x } else { max });
    let mut page_sum = s.zero();
    for group in groups {
        let weight = exp(s, s.sub(s.load(group), s.splat(new)));
        page_sum = s.add(page_sum, weight);
        s.store(weight, group);
    }
    let factor = exp_one(s, *max - new);
    *max = new;
    *sum = sum.mul_add(factor, s.reduce_add(page_sum));
    factor
}

/// `acc <- factor acc + sum_j weight_j value_j`.
#[inline(always)]
fn accumulate<S: Simd, E: Element, const R: usize>(
    s: S,
    weights: &[[f32; MAX_PAGE]; R],
    factors: [f32; R],
    values: &[E],
    dim: usize,
    ahead: Option<*const u8>,
    acc: &mut [f32],
) {
    let mut column = 0;
    while column + LANES <= dim {
        let left = (dim - column) / LANES;
        column += LANES
            * match S::ROW_BLOCK {
                8.. if left >= 4 => {
                    accumulate_columns::<S, E, R, 4>(s, weights, factors, values, dim, column, ahead, acc)
                }
                _ if left >= 2 && R <= 2 => {
                    accumulate_columns::<S, E, R, 2>(s, weights, factors, values, dim, column, ahead, acc)
                }
                _ => accumulate_columns::<S, E, R, 1>(s, weights, factors, values, dim, column, ahead, acc),
            };
    }
    if column < dim {
        for r in 0..R {
            let acc = &mut acc[r * dim + column..(r + 1) * dim];
            let mut sum = s.mul(s.load_partial(acc), s.splat(factors[r]));
            for (j, value) in values.chunks_exact(dim).enumerate() {
                sum = s.fma(s.splat(weights[r][j]), E::load_partial(s, &value[column..]), sum);
            }
            s.store_partial(sum, acc);
        }
    }
}

/// `C` vectors of every accumulator, from `column`; returns `C`.
#[inline(always)]
fn accumulate_columns<S: Simd, E: Element, const R: usize, const C: usize>(
    s: S,
    weights: &[[f32; MAX_PAGE]; R],
    factors: [f32; R],
    values: &[E],
    dim: usize,
    column: usize,
    ahead: Option<*const u8>,
    acc: &mut [f32],
) -> usize {
    let mut sums = [[s.zero(); C]; R];
    for r in 0..R {
        let (acc, _) = acc[r * dim + column..][..C * LANES].as_chunks();
        for c in 0..C {
            sums[r][c] = s.mul(s.load(&acc[c]), s.splat(factors[r]));
        }
    }
    let positions = values.len() / dim;
    for (j, value) in values.chunks_exact(dim).enumerate().take(MAX_PAGE) {
        if let Some(ahead) = ahead {
            // In the order of addresses, whatever the order of the values.
            let bytes = C * LANES * size_of::<E>();
            fetch(s, ahead.wrapping_add((column / (C * LANES) * positions + j) * bytes), bytes);
        }
        let (value, _) = value[column..][..C * LANES].as_chunks();
        for c in 0..C {
            let lanes = E::load(s, &value[c]);
            for r in 0..R {
                sums[r][c] = s.fma(s.splat(weights[r][j]), lanes, sums[r][c]);
            }
        }
    }
    for r in 0..R {
        let (acc, _) = acc[r * dim + column..][..C * LANES].as_chunks_mut();
        for c in 0..C {
            s.store(sums[r][c], &mut acc[c]);
        }
    }
    C
}
