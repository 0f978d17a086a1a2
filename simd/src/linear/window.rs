//! Outputs and deltas of a window.

use super::{PANEL_ROWS, blocks, panel_len};
use crate::LANES;
use crate::matmul::OutTile;
use crate::vector::lanes::{Lane, Simd};

/// A window of `T = beta.len()` tokens over consecutive tiles of one value head.
#[derive(Debug)]
pub struct WindowTile<'a> {
    /// Checkpoint, `[tiles][dk][16]`; `None` for a zero state.
    pub state: Option<&'a [f32]>,
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
}

#[inline(always)]
pub(super) fn window_tile<S: Simd>(s: S, mut args: WindowTile<'_>) {
    let (rows, dk, lanes) = (args.beta.len(), args.dk, args.out.cols());
    let tiles = lanes / LANES;
    assert!(lanes == tiles * LANES && args.deltas.cols() == lanes, "whole tiles");
    assert!(args.state.is_none_or(|state| state.len() == tiles * dk * LANES), "one state tile per tile");
    assert!(args.base.len() == rows && args.out.rows() == rows && args.deltas.rows() >= rows, "window rows");
    assert_eq!(args.keys.len(), panel_len(rows, dk), "panel of the window's keys");
    assert_eq!(args.coefficients.len(), panel_len(rows, args.deltas.rows()), "panel of the coefficients");
    let mut tile = 0;
    while tile < tiles {
        // A single row leaves registers free: several tiles, whose chains of additions hide each other.
        tile += match S::ROW_BLOCK {
            8.. if rows == 1 && tile + 4 <= tiles => block::<S, 1, 4>(s, &mut args, Rows::ONE, tile),
            _ if rows == 1 && tile + 2 <= tiles => block::<S, 1, 2>(s, &mut args, Rows::ONE, tile),
            8.. => wide_blocks(s, &mut args, tile),
            _ => narrow_blocks(s, &mut args, tile),
        };
    }
}

/// Rows `panel + offset ..` of the window, within a panel block of `count` rows that starts at row `panel`.
#[derive(Clone, Copy)]
struct Rows {
    panel: usize,
    count: usize,
    offset: usize,
}

impl Rows {
    /// The row of a window of one.
    const ONE: Rows = Rows { panel: 0, count: 1, offset: 0 };
}

/// All rows of one tile, a panel block at a time.
#[inline(always)]
fn wide_blocks<S: Simd>(s: S, args: &mut WindowTile<'_>, tile: usize) -> usize {
    for (panel, count) in blocks(args.beta.len()) {
        let rows = |count| Rows { panel, count, offset: 0 };
        match count {
            1 => block::<S, 1, 1>(s, args, rows(1), tile),
            2 => block::<S, 2, 1>(s, args, rows(2), tile),
            3 => block::<S, 3, 1>(s, args, rows(3), tile),
            4 => block::<S, 4, 1>(s, args, rows(4), tile),
            5 => block::<S, 5, 1>(s, args, rows(5), tile),
            6 => block::<S, 6, 1>(s, args, rows(6), tile),
            7 => block::<S, 7, 1>(s, args, rows(7), tile),
            _ => block::<S, PANEL_ROWS, 1>(s, args, rows(PANEL_ROWS), tile),
        };
    }
    1
}

/// All rows of one tile, two at a time, for instruction sets of few registers.
#[inline(always)]
fn narrow_blocks<S: Simd>(s: S, args: &mut WindowTile<'_>, tile: usize) -> usize {
    for (panel, count) in blocks(args.beta.len()) {
        let mut rows = Rows { panel, count, offset: 0 };
        while rows.offset + 2 <= count {
            block::<S, 2, 1>(s, args, rows, tile);
            rows.offset += 2;
        }
        if rows.offset < count {
            block::<S, 1, 1>(s, args, rows, tile);
        }
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
fn block<S: Simd, const R: usize, const N: usize>(
    s: S,
    args: &mut WindowTile<'_>,
    rows: Rows,
    tile: usize,
) -> usize {
    let entries = args.deltas.rows();
    let first = rows.panel + rows.offset;
    let before = entries - args.beta.len() + first;
    let width = 2 * rows.count;
    let mut sums = state_sums::<S, R, N>(s, args, rows, tile);
    let coefficients = &args.coefficients[2 * rows.panel * entries..][..width * entries];
    let (history, own) = coefficients.split_at(width * before);
    for (i, row) in history.chunks_exact(width).enumerate() {
        sums.add(s, row, rows, load_lanes(s, args.deltas.row(i), tile));
    }
    for (j, row) in own.chunks_exact(width).take(R).enumerate() {
        let t = first + j;
        let beta = s.splat(args.beta[t]);
        let values = load_lanes::<S, N>(s, &args.values[t * args.value_stride..], tile);
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
fn state_sums<S: Simd, const R: usize, const N: usize>(
    s: S,
    args: &WindowTile<'_>,
    rows: Rows,
    tile: usize,
) -> Sums<S::V, R, N> {
    let mut sums = Sums { erase: [[s.zero(); R]; N], read: [[s.zero(); R]; N] };
    let Some(state) = args.state else { return sums };
    let dk = args.dk;
    let tiles: [&[Lane]; N] =
        std::array::from_fn(|n| state[(tile + n) * dk * LANES..][..dk * LANES].as_chunks().0);
    let first = rows.panel + rows.offset;
    let panel = &args.keys[2 * rows.panel * dk..][..2 * rows.count * dk];
    for (k, row) in panel.chunks_exact(2 * rows.count).enumerate() {
        let mut lanes = [s.zero(); N];
        for n in 0..N {
            lanes[n] = s.load(&tiles[n][k]);
            if first == 0 {
                // The tiles to come, also those of the next head, which usually follows.
                s.prefetch(tiles[n].as_ptr().wrapping_add(N * dk + k));
            }
        }
        sums.add(s, row, rows, lanes);
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
fn load_lanes<S: Simd, const N: usize>(s: S, row: &[f32], tile: usize) -> [S::V; N] {
    let (lanes, _) = row[tile * LANES..][..N * LANES].as_chunks();
    let mut out = [s.zero(); N];
    for n in 0..N {
        out[n] = s.load(&lanes[n]);
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
