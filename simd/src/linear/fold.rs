//! Folding log entries into the state.

use super::ahead::{Ahead, Asking};
use crate::LANES;
use crate::vector::lanes::Simd;

/// What a fold starts from.
#[derive(Clone, Copy, Debug)]
pub enum FoldSource<'a> {
    /// A zero state; the destination's old content is not read.
    Zero,
    /// The destination itself.
    InPlace,
    /// Another state, `[dk][tiles][16]`.
    From(&'a [f32]),
}

/// A fold of `weights.len()` log entries into consecutive tiles of one value head.
#[derive(Debug)]
pub struct FoldTile<'a> {
    /// State to start from.
    pub source: FoldSource<'a>,
    /// State to write, `[dk][tiles][16]`.
    pub destination: &'a mut [f32],
    /// Key dimension.
    pub dk: usize,
    /// Keys of the entries, `[entries][dk]` or longer.
    pub keys: &'a [f32],
    /// Decay of the state, from `fold_weights`.
    pub base: f32,
    /// Weight of each entry, from `fold_weights`.
    pub weights: &'a [f32],
    /// Deltas: entry i starts at `i * delta_stride` and has 16 lanes per tile.
    pub deltas: &'a [f32],
    /// Floats from one entry's deltas to the next.
    pub delta_stride: usize,
    /// Memory to ask for meanwhile.
    pub ahead: &'a [Ahead],
}

/// Entries from which on it pays to pass over the state twice, to scale fewer deltas in each pass.
const MANY_ENTRIES: usize = 8;

#[inline(always)]
pub(super) fn fold_tile<S: Simd>(s: S, mut args: FoldTile<'_>) {
    let (dk, entries) = (args.dk, args.weights.len());
    let tiles = args.destination.len() / (dk * LANES);
    assert_eq!(args.destination.len(), tiles * dk * LANES, "whole tiles");
    assert!(args.keys.len() >= entries * dk, "one key per entry");
    if let FoldSource::From(source) = args.source {
        assert_eq!(source.len(), args.destination.len(), "states of one size");
    }
    let asking = Asking::new(args.ahead, tiles * dk);
    let mut tile = 0;
    while tile < tiles {
        let left = tiles - tile;
        tile += match 2 * S::ROW_BLOCK {
            16 if left >= 4 && entries < MANY_ENTRIES => fold_columns::<S, 4, 4>(s, &mut args, tile, &asking),
            16 if left >= 2 => fold_columns::<S, 8, 2>(s, &mut args, tile, &asking),
            16 => fold_columns::<S, 16, 1>(s, &mut args, tile, &asking),
            8.. => fold_columns::<S, 8, 1>(s, &mut args, tile, &asking),
            _ => fold_columns::<S, 4, 1>(s, &mut args, tile, &asking),
        };
    }
}

/// All rows of `N` tiles, `R` at a time; returns `N`.
#[inline(always)]
fn fold_columns<S: Simd, const R: usize, const N: usize>(
    s: S,
    args: &mut FoldTile<'_>,
    tile: usize,
    asking: &Asking<'_>,
) -> usize {
    let dk = args.dk;
    let mut k = 0;
    while k + R <= dk {
        asking.ask(s, tile * dk + N * k, N * R);
        fold_rows::<S, R, N>(s, args, tile, k);
        k += R;
    }
    while k < dk {
        fold_rows::<S, 1, N>(s, args, tile, k);
        k += 1;
    }
    N
}

/// Rows `k..k + R` of `N` tiles.
#[inline(always)]
fn fold_rows<S: Simd, const R: usize, const N: usize>(s: S, args: &mut FoldTile<'_>, tile: usize, k: usize) {
    let tiles = args.destination.len() / (args.dk * LANES);
    let at = |r: usize| ((k + r) * tiles + tile) * LANES..((k + r) * tiles + tile + N) * LANES;
    let mut sums = [[s.zero(); N]; R];
    let source = match args.source {
        FoldSource::Zero => None,
        FoldSource::InPlace => Some(&*args.destination),
        FoldSource::From(source) => Some(source),
    };
    if let Some(source) = source {
        let base = s.splat(args.base);
        for r in 0..R {
            let (source, _) = source[at(r)].as_chunks();
            for n in 0..N {
                sums[r][n] = s.mul(base, s.load(&source[n]));
            }
        }
    }
    for (i, &weight) in args.weights.iter().enumerate() {
        let (values, _) = args.deltas[i * args.delta_stride + tile * LANES..][..N * LANES].as_chunks();
        let weight = s.splat(weight);
        let mut deltas = [s.zero(); N];
        for n in 0..N {
            deltas[n] = s.mul(weight, s.load(&values[n]));
        }
        let keys = &args.keys[i * args.dk + k..][..R];
        for r in 0..R {
            let key = s.splat(keys[r]);
            for n in 0..N {
                sums[r][n] = s.fma(key, deltas[n], sums[r][n]);
            }
        }
    }
    for r in 0..R {
        let (destination, _) = args.destination[at(r)].as_chunks_mut();
        for n in 0..N {
            s.store(sums[r][n], &mut destination[n]);
        }
    }
}
