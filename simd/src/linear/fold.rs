//! Folding log entries into the state.

use crate::LANES;
use crate::vector::lanes::Simd;

/// What a fold starts from.
#[derive(Clone, Copy, Debug)]
pub enum FoldSource<'a> {
    /// A zero state; the destination's old content is not read.
    Zero,
    /// The destination itself.
    InPlace,
    /// Another state, `[tiles][dk][16]`.
    From(&'a [f32]),
}

/// A fold of `weights.len()` log entries into consecutive tiles of one value head.
#[derive(Debug)]
pub struct FoldTile<'a> {
    /// State to start from.
    pub source: FoldSource<'a>,
    /// State to write, `[tiles][dk][16]`.
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
}

#[inline(always)]
pub(super) fn fold_tile<S: Simd>(s: S, mut args: FoldTile<'_>) {
    let (dk, entries) = (args.dk, args.weights.len());
    let tiles = args.destination.len() / (dk * LANES);
    assert_eq!(args.destination.len(), tiles * dk * LANES, "whole tiles");
    assert!(args.keys.len() >= entries * dk, "one key per entry");
    if let FoldSource::From(source) = args.source {
        assert_eq!(source.len(), args.destination.len(), "states of one size");
    }
    for tile in 0..tiles {
        let mut k = 0;
        while k < dk {
            let left = dk - k;
            k += match 2 * S::ROW_BLOCK {
                16 if left >= 16 => fold_rows::<S, 16>(s, &mut args, tile, k),
                8.. if left >= 8 => fold_rows::<S, 8>(s, &mut args, tile, k),
                _ if left >= 4 => fold_rows::<S, 4>(s, &mut args, tile, k),
                _ => fold_rows::<S, 1>(s, &mut args, tile, k),
            };
        }
    }
}

/// Rows `k..k + R` of one tile; returns `R`.
#[inline(always)]
fn fold_rows<S: Simd, const R: usize>(s: S, args: &mut FoldTile<'_>, tile: usize, k: usize) -> usize {
    let range = (tile * args.dk + k) * LANES..(tile * args.dk + k + R) * LANES;
    let mut sums = [s.zero(); R];
    let source = match args.source {
        FoldSource::Zero => None,
        FoldSource::InPlace => Some(&args.destination[range.clone()]),
        FoldSource::From(source) => Some(&source[range.clone()]),
    };
    if let Some(source) = source {
        let (source, _) = source.as_chunks::<LANES>();
        let base = s.splat(args.base);
        for r in 0..R {
            sums[r] = s.mul(base, s.load(&source[r]));
            s.prefetch(source.as_ptr().wrapping_add(args.dk + r));
        }
    }
    for (i, &weight) in args.weights.iter().enumerate() {
        let (delta, _) = args.deltas[i * args.delta_stride + tile * LANES..][..LANES].as_chunks();
        let delta = s.mul(s.splat(weight), s.load(&delta[0]));
        let keys = &args.keys[i * args.dk + k..][..R];
        for r in 0..R {
            sums[r] = s.fma(s.splat(keys[r]), delta, sums[r]);
        }
    }
    let (destination, _) = args.destination[range].as_chunks_mut();
    for r in 0..R {
        s.store(sums[r], &mut destination[r]);
    }
    R
}
