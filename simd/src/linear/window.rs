//! Outputs and deltas of a window.

use super::ahead::{Asking, Lookahead, Steps};
use super::state::State;
use super::{PANEL_ROWS, blocks, panel_len};
use crate::LANES;
use crate::matmul::OutTile;
use crate::vector::lanes::{Element, Lane, Simd};

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
    pub ahead: Lookahead,
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

/// Tiles that narrow blocks go through together: as many as a group of tiles has, so that they read the state in order.
const NARROW_TILES: usize = 4;

/// Rows of the state that narrow blocks pass over at a time. All blocks of a panel read these rows while they are in the
/// first cache, and keep their sums in memory in between.
const STRETCH: usize = 32;

/// Sums of a panel block over [`NARROW_TILES`] tiles: those of its keys, then those of its queries.
type NarrowSums = [[Lane; 2 * PANEL_ROWS]; NARROW_TILES];

/// All rows of a panel block, for instruction sets of few registers. Several rows go through the state stretch by stretch,
/// for as many tiles as their sums have room for; a single one needs no second look at it.
#[inline(always)]
fn narrow_block<S: Simd, E: Element>(
    s: S,
    args: &mut WindowTile<'_>,
    state: Option<&[E]>,
    rows: Rows,
    tile: usize,
    left: usize,
    asking: &mut Asking,
) -> usize {
    if rows.count == 1 {
        return match left {
            1 => block::<S, E, 1, 1>(s, args, state, rows, tile, asking),
            _ => block::<S, E, 1, 2>(s, args, state, rows, tile, asking),
        };
    }
    let tiles = left.min(NARROW_TILES);
    let mut all: NarrowSums = [[[0.0; LANES]; 2 * PANEL_ROWS]; NARROW_TILES];
    if let Some(state) = state {
        for first in (0..args.dk).step_by(STRETCH) {
            let end = args.dk.min(first + STRETCH);
            for part in 0..tiles {
                let stretch = Stretch { first, end, tile, part };
                let mut rows = rows;
                while rows.offset < rows.count {
                    let taken = narrow_rows(rows);
                    match taken {
                        1 => narrow_sums::<S, E, 1>(s, args, state, rows, stretch, &mut all, asking),
                        2 => narrow_sums::<S, E, 2>(s, args, state, rows, stretch, &mut all, asking),
                        _ => narrow_sums::<S, E, 3>(s, args, state, rows, stretch, &mut all, asking),
                    }
                    rows.offset += taken;
                }
            }
        }
    }
    for part in 0..tiles {
        let mut rows = rows;
        while rows.offset < rows.count {
            let taken = narrow_rows(rows);
            match taken {
                1 => narrow_finish::<S, 1>(s, args, rows, tile + part, &all[part]),
                2 => narrow_finish::<S, 2>(s, args, rows, tile + part, &all[part]),
                _ => narrow_finish::<S, 3>(s, args, rows, tile + part, &all[part]),
            }
            rows.offset += taken;
        }
    }
    tiles
}

/// Rows that narrow instruction sets hold in registers with one tile: three, whose additions hide each other's latency,
/// or two, which nearly do. Four are two and two, since a row alone would wait.
#[inline(always)]
fn narrow_rows(rows: Rows) -> usize {
    match rows.count - rows.offset {
        4 => 2,
        left => left.min(3),
    }
}

/// Rows `first..end` of the state in tile `tile + part`.
#[derive(Clone, Copy)]
struct Stretch {
    first: usize,
    end: usize,
    tile: usize,
    part: usize,
}

/// Adds a stretch of the state to the sums of `R` rows.
#[inline(always)]
fn narrow_sums<S: Simd, E: Element, const R: usize>(
    s: S,
    args: &WindowTile<'_>,
    state: &[E],
    rows: Rows,
    stretch: Stretch,
    all: &mut NarrowSums,
    asking: &mut Asking,
) {
    let Stretch { first, end, tile, part } = stretch;
    let mut sums = Sums::<S::V, R, 1>::kept(s, rows, &all[part]);
    let (dk, lanes, width) = (args.dk, args.out.cols(), 2 * rows.count);
    let panel = &args.keys[rows.panel * 2 * dk..][..width * dk];
    assert!(state.len() == lanes * dk && (tile + part + 1) * LANES <= lanes, "the state has this tile");
    assert!(first <= end && end <= dk && rows.offset + R <= rows.count, "both have these rows");
    let mut row = panel.as_ptr().wrapping_add(first * width + rows.offset);
    let mut values = state.as_ptr().wrapping_add(first * lanes + (tile + part) * LANES);
    let mut done = first;
    // Later rows of the window pass over the same part again, and ask for no more.
    let asks = rows.offset == 0;
    while done < end {
        let mut steps = if asks { asking.steps::<1>(end - done) } else { Steps::idle(end - done) };
        for _ in 0..steps.count {
            if asks {
                steps.ask::<S, 1>(s);
            }
            // SAFETY: `panel` has `dk` rows of `width` values, `state` as many of `lanes`; these are rows `first..end`
            // of both, and what is read of one lies within it, as asserted above.
            let (erase, read, values_of_row) = unsafe {
                (
                    &*row.cast::<[f32; R]>(),
                    &*row.add(rows.count).cast::<[f32; R]>(),
                    &*values.cast::<[E; LANES]>(),
                )
            };
            let lane = E::load(s, values_of_row);
            // One side after the other, so that few factors are in registers at a time.
            for r in 0..R {
                sums.erase[0][r] = s.fma(s.splat(erase[r]), lane, sums.erase[0][r]);
            }
            for r in 0..R {
                sums.read[0][r] = s.fma(s.splat(read[r]), lane, sums.read[0][r]);
            }
            row = row.wrapping_add(width);
            values = values.wrapping_add(lanes);
        }
        done += steps.count;
    }
    sums.keep(s, rows, &mut all[part]);
}

/// `R` rows of the window for one tile whose sums over the state are kept.
#[inline(always)]
fn narrow_finish<S: Simd, const R: usize>(
    s: S,
    args: &mut WindowTile<'_>,
    rows: Rows,
    tile: usize,
    kept: &[Lane; 2 * PANEL_ROWS],
) {
    let mut sums = Sums::<S::V, R, 1>::kept(s, rows, kept);
    sums.decay(s, &args.base[rows.panel + rows.offset..]);
    finish(s, args, sums, rows, tile);
}

/// Sums of `R` rows over `N` tiles: what the state returns for the keys and for the queries.
struct Sums<V, const R: usize, const N: usize> {
    erase: [[V; R]; N],
    read: [[V; R]; N],
}

impl<V: Copy, const R: usize> Sums<V, R, 1> {
    /// Those that were kept of rows from `rows.offset` on.
    #[inline(always)]
    fn kept<S: Simd<V = V>>(s: S, rows: Rows, kept: &[Lane; 2 * PANEL_ROWS]) -> Self {
        let mut sums = Sums { erase: [[s.zero(); R]], read: [[s.zero(); R]] };
        for r in 0..R {
            sums.erase[0][r] = s.load(&kept[rows.offset + r]);
            sums.read[0][r] = s.load(&kept[PANEL_ROWS + rows.offset + r]);
        }
        sums
    }

    /// Keeps them.
    #[inline(always)]
    fn keep<S: Simd<V = V>>(&self, s: S, rows: Rows, kept: &mut [Lane; 2 * PANEL_ROWS]) {
        for r in 0..R {
            s.store(self.erase[0][r], &mut kept[rows.offset + r]);
            s.store(self.read[0][r], &mut kept[PANEL_ROWS + rows.offset + r]);
        }
    }
}

impl<V: Copy, const R: usize, const N: usize> Sums<V, R, N> {
    /// Multiplies with the decay from the checkpoint to each row.
    #[inline(always)]
    fn decay<S: Simd<V = V>>(&mut self, s: S, base: &[f32]) {
        for r in 0..R {
            let base = s.splat(base[r]);
            for n in 0..N {
                self.erase[n][r] = s.mul(base, self.erase[n][r]);
                self.read[n][r] = s.mul(base, self.read[n][r]);
            }
        }
    }

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
    let sums = state_sums::<S, E, R, N>(s, args, state, rows, tile, asking);
    finish(s, args, sums, rows, tile);
    N
}

/// The rest of `R` rows, from what the state returns for them: the log, and each other.
#[inline(always)]
fn finish<S: Simd, const R: usize, const N: usize>(
    s: S,
    args: &mut WindowTile<'_>,
    mut sums: Sums<S::V, R, N>,
    rows: Rows,
    tile: usize,
) {
    let entries = args.deltas.rows();
    let first = rows.panel + rows.offset;
    let before = entries - args.beta.len() + first;
    let width = 2 * rows.count;
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
    let width = 2 * rows.count;
    let panel = &args.keys[2 * rows.panel * dk..][..width * dk];
    assert!(state.len() == lanes * dk && (tile + N) * LANES <= lanes, "the state has these tiles");
    assert!(rows.offset + R <= rows.count, "the panel has these rows");
    let mut k = 0;
    while k < dk {
        // The fewer instructions a line of the state costs, the more lines are on their way at a time.
        let mut steps = asking.steps::<N>(dk - k);
        for k in k..k + steps.count {
            steps.ask::<S, N>(s);
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
        k += steps.count;
    }
    sums.decay(s, &args.base[rows.panel + rows.offset..]);
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
