//! Outputs and deltas of a window.

use super::ahead::{Ahead, Asking};
use super::state::State;
use super::{PANEL_ROWS, blocks, panel_len};
use crate::LANES;
use crate::matmul::OutTile;
use crate::vector::lanes::{Element, Simd};

/// A window of `T = beta.len()` tokens over consecutive tiles of one value head.
#[derive(Debug)]
pub struct WindowTile<'a> {
    /// Checkpoint, `[dk][tiles][16]`; `None` for a zero state.
    pub state: Option<State<'a>>,
    /// Key dimension.
    pub dk: usize,
    /// Panel of the window's keys and queries, from `pack_window`.
    pub keys: &'a [f32],
    /// Panel of the coefficients, from `head_coefficients`.
    pub coefficients: &'a [f32],
    /// Decay from the checkpoint to each row, `[T]`, from `head_coefficients`.
    pub base: &'a [f32],
    /// Write strength of each row, `[T]`.
    pub beta: &'a [f32],
    /// Values: row t starts at `t * value_stride` and has 16 lanes per tile.
    pub values: &'a [f32],
    /// Floats from one value row to the next.
    pub value_stride: usize,
    /// The delta log: `n + T` rows of 16 lanes per tile; rows `0..n` are read, the rest written.
    pub deltas: OutTile<'a>,
    /// Outputs: `T` rows of 16 lanes per tile.
    pub out: OutTile<'a>,
    /// Memory to ask for meanwhile.
    pub ahead: &'a [Ahead],
}

#[inline(always)]
pub(super) fn window_tile<S: Simd>(s: S, mut args: WindowTile<'_>) {
    match args.state {
        None => window_blocks::<S, f32>(s, &mut args, None),
        Some(State::F32(state)) => window_blocks(s, &mut args, Some(state)),
        Some(State::Bf16(state)) => window_blocks(s, &mut args, Some(state)),
    }
}

#[inline(always)]
fn window_blocks<S: Simd, E: Element>(s: S, args: &mut WindowTile<'_>, state: Option<&[E]>) {
    let (rows, dk, lanes) = (args.beta.len(), args.dk, args.out.cols());
    let tiles = lanes / LANES;
    assert!(lanes == tiles * LANES && args.deltas.cols() == lanes, "whole tiles");
    assert!(state.is_none_or(|state| state.len() == dk * lanes), "one state tile per tile");
    assert!(args.base.len() == rows && args.out.rows() == rows && args.deltas.rows() >= rows, "window rows");
    assert_eq!(args.keys.len(), panel_len(rows, dk), "panel of the window's keys");
    assert_eq!(args.coefficients.len(), panel_len(rows, args.deltas.rows()), "panel of the coefficients");
    // Memory is asked for while the first rows pass over the state.
    let mut asking = Asking::new(args.ahead, tiles * dk);
    for (panel, count) in blocks(rows) {
        let mut tile = 0;
        while tile < tiles {
            let left = tiles - tile;
            tile += if S::ROW_BLOCK >= 8 {
                wide_block(s, args, state, Rows { panel, count, offset: 0 }, tile, left, &mut asking)
            } else {
                narrow_block(s, args, state, Rows { panel, count, offset: 0 }, tile, left, &mut asking)
            };
        }
    }
}

/// Rows `panel + offset ..` of the window, within a panel block of `count` rows that starts at row `panel`.
#[derive(Clone, Copy)]
struct Rows {
    panel: usize,
    count: usize,
    offset: usize,
}

/// All rows of a panel block, for as many tiles as leave registers free: chains of additions that hide each other.
#[inline(always)]
fn wide_block<S: Simd, E: Element>(
    s: S,
    args: &mut WindowTile<'_>,
    state: Option<&[E]>,
    rows: Rows,
    tile: usize,
    left: usize,
    asking: &mut Asking,
) -> usize {
    match rows.count {
        1 if left >= 4 => block::<S, E, 1, 4>(s, args, state, rows, tile, asking),
        2 if left >= 4 => block::<S, E, 2, 4>(s, args, state, rows, tile, asking),
        3 if left >= 2 => block::<S, E, 3, 2>(s, args, state, rows, tile, asking),
        4 if left >= 2 => block::<S, E, 4, 2>(s, args, state, rows, tile, asking),
        5 if left >= 2 => block::<S, E, 5, 2>(s, args, state, rows, tile, asking),
        6 if left >= 2 => block::<S, E, 6, 2>(s, args, state, rows, tile, asking),
        1 => block::<S, E, 1, 1>(s, args, state, rows, tile, asking),
        2 => block::<S, E, 2, 1>(s, args, state, rows, tile, asking),
        3 => block::<S, E, 3, 1>(s, args, state, rows, tile, asking),
        4 => block::<S, E, 4, 1>(s, args, state, rows, tile, asking),
        5 => block::<S, E, 5, 1>(s, args, state, rows, tile, asking),
        6 => block::<S, E, 6, 1>(s, args, state, rows, tile, asking),
        7 => block::<S, E, 7, 1>(s, args, state, rows, tile, asking),
        _ => block::<S, E, PANEL_ROWS, 1>(s, args, state, rows, tile, asking),
    }
}

/// All rows of a panel block, two at a time, for instruction sets of few registers.
#[inline(always)]
fn narrow_block<S: Simd, E: Element>(
    s: S,
    args: &mut WindowTile<'_>,
    state: Option<&[E]>,
    mut rows: Rows,
    tile: usize,
    left: usize,
    asking: &mut Asking,
) -> usize {
    if rows.count == 1 && left >= 2 {
        return block::<S, E, 1, 2>(s, args, state, rows, tile, asking);
    }
    while rows.offset + 2 <= rows.count {
        block::<S, E, 2, 1>(s, args, state, rows, tile, asking);
        rows.offset += 2;
    }
    if rows.offset < rows.count {
        block::<S, E, 1, 1>(s, args, state, rows, tile, asking);
    }
    1
}

/// Sums of `R` rows over `N` tiles: what the state returns for the keys and for the queries.
struct Sums<V, const R: usize, const N: usize> {
    erase: [[V; R]; N],
    read: [[V; R]; N],
}

impl<V: Copy, const R: usize, const N: usize> Sums<V, R, N> {
    /// Adds `panel row x lanes`, lanes of each tile.
    #[inline(always)]
    fn add<S: Simd<V = V>>(&mut self, s: S, row: &[f32], rows: Rows, lanes: [V; N]) {
        let (erase, read) = (&row[rows.offset..][..R], &row[rows.count + rows.offset..][..R]);
        for r in 0..R {
            let (erase, read) = (s.splat(erase[r]), s.splat(read[r]));
            for n in 0..N {
                self.erase[n][r] = s.fma(erase, lanes[n], self.erase[n][r]);
                self.read[n][r] = s.fma(read, lanes[n], self.read[n][r]);
            }
        }
    }
}

/// `R` rows of the window for tiles `tile..tile + N`; returns `N`.
#[inline(always)]
fn block<S: Simd, E: Element, const R: usize, const N: usize>(
    s: S,
    args: &mut WindowTile<'_>,
    state: Option<&[E]>,
    rows: Rows,
    tile: usize,
    asking: &mut Asking,
) -> usize {
    let entries = args.deltas.rows();
    let first = rows.panel + rows.offset;
    let before = entries - args.beta.len() + first;
    let width = 2 * rows.count;
    let mut sums = state_sums::<S, E, R, N>(s, args, state, rows, tile, asking);
    let coefficients = &args.coefficients[2 * rows.panel * entries..][..width * entries];
    let (history, own) = coefficients.split_at(width * before);
    let mut i = 0;
    while i < before {
        sums.add(s, &history[i * width..][..width], rows, load_lanes(s, args.deltas.row(i), tile));
        i += 1;
    }
    for j in 0..R {
        let row = &own[j * width..][..width];
        let t = first + j;
        let beta = s.splat(args.beta[t]);
        let values = load_lanes::<S, f32, N>(s, &args.values[t * args.value_stride..], tile);
        let mut delta = values;
        for n in 0..N {
            delta[n] = s.mul(beta, s.sub(values[n], sums.erase[n][j]));
        }
        store_lanes(s, delta, args.deltas.row_mut(before + j), tile);
        let (erase, read) = (&row[rows.offset..][..R], &row[rows.count + rows.offset..][..R]);
        for r in j..R {
            let (erase, read) = (s.splat(erase[r]), s.splat(read[r]));
            for n in 0..N {
                sums.read[n][r] = s.fma(read, delta[n], sums.read[n][r]);
                if r > j {
                    sums.erase[n][r] = s.fma(erase, delta[n], sums.erase[n][r]);
                }
            }
        }
        let mut out = values;
        for n in 0..N {
            out[n] = sums.read[n][j];
        }
        store_lanes(s, out, args.out.row_mut(t), tile);
    }
    N
}

/// `base S^T k` and `base S^T q` of the rows.
#[inline(always)]
fn state_sums<S: Simd, E: Element, const R: usize, const N: usize>(
    s: S,
    args: &WindowTile<'_>,
    state: Option<&[E]>,
    rows: Rows,
    tile: usize,
    asking: &mut Asking,
) -> Sums<S::V, R, N> {
    let mut sums = Sums { erase: [[s.zero(); R]; N], read: [[s.zero(); R]; N] };
    let Some(state) = state else { return sums };
    let (dk, lanes) = (args.dk, args.out.cols());
    let first = rows.panel + rows.offset;
    let width = 2 * rows.count;
    let panel = &args.keys[2 * rows.panel * dk..][..width * dk];
    assert!(state.len() == lanes * dk && (tile + N) * LANES <= lanes, "the state has these tiles");
    assert!(rows.offset + R <= rows.count, "the panel has these rows");
    // The fewer instructions a line of the state costs, the more lines are on their way at a time.
    for k in 0..dk {
        asking.ask(s, tile * dk + N * (k + 1));
        // SAFETY: both have `dk` rows of these widths, which are at least as wide as asserted above.
        let (row, values) = unsafe {
            let row = panel.get_unchecked(k * width..(k + 1) * width);
            let values = state.get_unchecked(k * lanes..(k + 1) * lanes);
            std::hint::assert_unchecked(values.len() >= (tile + N) * LANES);
            std::hint::assert_unchecked(row.len() >= rows.count + rows.offset + R);
            (row, values)
        };
        sums.add(s, row, rows, load_lanes(s, values, tile));
    }
    for r in 0..R {
        let base = s.splat(args.base[first + r]);
        for n in 0..N {
            sums.erase[n][r] = s.mul(base, sums.erase[n][r]);
            sums.read[n][r] = s.mul(base, sums.read[n][r]);
        }
    }
    sums
}

/// The lanes of tiles `tile..tile + N` of a row.
#[inline(always)]
fn load_lanes<S: Simd, E: Element, const N: usize>(s: S, row: &[E], tile: usize) -> [S::V; N] {
    let (lanes, _) = row[tile * LANES..][..N * LANES].as_chunks();
    let mut out = [s.zero(); N];
    for n in 0..N {
        out[n] = E::load(s, &lanes[n]);
    }
    out
}

#[inline(always)]
fn store_lanes<S: Simd, const N: usize>(s: S, v: [S::V; N], row: &mut [f32], tile: usize) {
    let (lanes, _) = row[tile * LANES..][..N * LANES].as_chunks_mut();
    for n in 0..N {
        s.store(v[n], &mut lanes[n]);
    }
}
