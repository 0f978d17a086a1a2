//! Folding log entries into the state.

use super::ahead::{Asking, Lookahead};
use super::state::{State, StateMut};
use crate::LANES;
use crate::vector::lanes::{Simd, Stored};

/// What a fold starts from.
#[derive(Clone, Copy, Debug)]
pub enum FoldSource<'a> {
    /// A zero state; the destination's old content is not read.
    Zero,
    /// The destination itself.
    InPlace,
    /// Another state, `[dk][tiles][16]`, kept as the destination is.
    From(State<'a>),
}

/// How a state decays in a fold.
#[derive(Clone, Copy, Debug)]
pub enum FoldBase<'a> {
    /// By one factor.
    Head(f32),
    /// By one factor for each key channel, `[dk]`.
    Channels(&'a [f32]),
}

/// A fold of `weights.len()` log entries into consecutive tiles of one value head.
#[derive(Debug)]
pub struct FoldTile<'a> {
    /// State to start from.
    pub source: FoldSource<'a>,
    /// State to write, `[dk][tiles][16]`.
    pub destination: StateMut<'a>,
    /// Key dimension.
    pub dk: usize,
    /// Keys of the entries, `[entries][dk]` or longer.
    pub keys: &'a [f32],
    /// Decay of the state, from `fold_weights` or `channel_fold`.
    pub base: FoldBase<'a>,
    /// Weight of each entry, from `fold_weights`.
    pub weights: &'a [f32],
    /// Deltas: entry i starts at `i * delta_stride` and has 16 lanes per tile.
    pub deltas: &'a [f32],
    /// Floats from one entry's deltas to the next.
    pub delta_stride: usize,
    /// Memory to ask for meanwhile.
    pub ahead: Lookahead,
}

/// Entries from which on it pays to take as many rows at a time as there are registers, to scale fewer deltas.
const MANY_ENTRIES: usize = 8;

#[inline(always)]
pub(super) fn fold_tile<S: Simd>(s: S, args: FoldTile<'_>) {
    let FoldTile { source, destination, dk, keys, base, weights, deltas, delta_stride, ahead } = args;
    let entries = Entries { dk, keys, base, weights, deltas, delta_stride };
    match destination {
        StateMut::F32(values) => {
            let source = match source {
                FoldSource::Zero => Source::Zero,
                FoldSource::InPlace => Source::InPlace,
                FoldSource::From(State::F32(values)) => Source::From(values),
                FoldSource::From(_) => panic!("states of one type"),
            };
            fold_all(s, source, values, &entries, ahead);
        }
        StateMut::Bf16(values) => {
            let source = match source {
                FoldSource::Zero => Source::Zero,
                FoldSource::InPlace => Source::InPlace,
                FoldSource::From(State::Bf16(values)) => Source::From(values),
                FoldSource::From(_) => panic!("states of one type"),
            };
            fold_all(s, source, values, &entries, ahead);
        }
    }
}

/// [`FoldSource`] of one type of number.
#[derive(Clone, Copy)]
enum Source<'a, E> {
    Zero,
    InPlace,
    From(&'a [E]),
}

/// The log entries of a fold.
struct Entries<'a> {
    dk: usize,
    keys: &'a [f32],
    base: FoldBase<'a>,
    weights: &'a [f32],
    deltas: &'a [f32],
    delta_stride: usize,
}

#[inline(always)]
fn fold_all<S: Simd, E: Stored>(
    s: S,
    source: Source<'_, E>,
    state: &mut [E],
    entries: &Entries<'_>,
    ahead: Lookahead,
) {
    let (dk, count) = (entries.dk, entries.weights.len());
    let tiles = state.len() / (dk * LANES);
    assert_eq!(state.len(), tiles * dk * LANES, "whole tiles");
    assert!(entries.keys.len() >= count * dk, "one key per entry");
    if let FoldBase::Channels(base) = entries.base {
        assert_eq!(base.len(), dk, "one factor for each key channel");
    }
    if let Source::From(source) = source {
        assert_eq!(source.len(), state.len(), "states of one size");
    }
    let mut asking = Asking::new(ahead, tiles * dk);
    if S::ROW_BLOCK < 8 {
        fold_in_order(s, source, state, entries, &mut asking);
        return;
    }
    let mut tile = 0;
    while tile < tiles {
        let left = tiles - tile;
        tile += match left {
            4.. if count < MANY_ENTRIES => {
                fold_columns::<S, E, 4, 4>(s, source, state, entries, tile, &mut asking)
            }
            4.. => fold_columns::<S, E, 6, 4>(s, source, state, entries, tile, &mut asking),
            2.. => fold_columns::<S, E, 8, 2>(s, source, state, entries, tile, &mut asking),
            _ => fold_columns::<S, E, 16, 1>(s, source, state, entries, tile, &mut asking),
        };
    }
}

/// All rows of all tiles, a few rows of one tile at a time, for instruction sets of few registers. Goes through the
/// state in the order of memory.
#[inline(always)]
fn fold_in_order<S: Simd, E: Stored>(
    s: S,
    source: Source<'_, E>,
    state: &mut [E],
    entries: &Entries<'_>,
    asking: &mut Asking,
) {
    const ROWS: usize = 4;
    let dk = entries.dk;
    let tiles = state.len() / (dk * LANES);
    let whole = dk / ROWS * ROWS;
    for k in (0..whole).step_by(ROWS) {
        for tile in 0..tiles {
            asking.ask(s, ROWS, ROWS);
            fold_rows::<S, E, ROWS, 1>(s, source, state, entries, tile, k);
        }
    }
    for k in whole..dk {
        for tile in 0..tiles {
            fold_rows::<S, E, 1, 1>(s, source, state, entries, tile, k);
        }
    }
}

/// All rows of `N` tiles, `R` at a time; returns `N`.
#[inline(always)]
fn fold_columns<S: Simd, E: Stored, const R: usize, const N: usize>(
    s: S,
    source: Source<'_, E>,
    state: &mut [E],
    entries: &Entries<'_>,
    tile: usize,
    asking: &mut Asking,
) -> usize {
    let dk = entries.dk;
    let mut k = 0;
    while k + R <= dk {
        asking.ask(s, N * R, R);
        fold_rows::<S, E, R, N>(s, source, state, entries, tile, k);
        k += R;
    }
    while k < dk {
        asking.ask(s, N, 1);
        fold_rows::<S, E, 1, N>(s, source, state, entries, tile, k);
        k += 1;
    }
    N
}

/// Rows `k..k + R` of `N` tiles.
#[inline(always)]
fn fold_rows<S: Simd, E: Stored, const R: usize, const N: usize>(
    s: S,
    source: Source<'_, E>,
    state: &mut [E],
    entries: &Entries<'_>,
    tile: usize,
    k: usize,
) {
    let tiles = state.len() / (entries.dk * LANES);
    let at = |r: usize| ((k + r) * tiles + tile) * LANES..((k + r) * tiles + tile + N) * LANES;
    let mut sums = [[s.zero(); N]; R];
    let source = match source {
        Source::Zero => None,
        Source::InPlace => Some(&*state),
        Source::From(source) => Some(source),
    };
    if let Some(source) = source {
        for r in 0..R {
            let base = s.splat(match entries.base {
                FoldBase::Head(base) => base,
                FoldBase::Channels(base) => base[k + r],
            });
            let (source, _) = source[at(r)].as_chunks();
            for n in 0..N {
                sums[r][n] = s.mul(base, E::load(s, &source[n]));
            }
        }
    }
    let (count, dk, stride) = (entries.weights.len(), entries.dk, entries.delta_stride);
    let lanes = (tile + N) * LANES;
    assert!(k + R <= dk && entries.keys.len() >= count * dk, "keys of these rows");
    assert!(count == 0 || entries.deltas.len() >= (count - 1) * stride + lanes, "deltas of these tiles");
    let mut keys = entries.keys.as_ptr().wrapping_add(k);
    let mut values = entries.deltas.as_ptr().wrapping_add(tile * LANES);
    for &weight in entries.weights {
        // SAFETY: as asserted above, each entry has keys of these rows and deltas of these tiles.
        let (key, delta) = unsafe { (&*keys.cast::<[f32; R]>(), &*values.cast::<[[f32; LANES]; N]>()) };
        let weight = s.splat(weight);
        let mut deltas = [s.zero(); N];
        for n in 0..N {
            deltas[n] = s.mul(weight, s.load(&delta[n]));
        }
        for r in 0..R {
            let key = s.splat(key[r]);
            for n in 0..N {
                sums[r][n] = s.fma(key, deltas[n], sums[r][n]);
            }
        }
        keys = keys.wrapping_add(dk);
        values = values.wrapping_add(stride);
    }
    for r in 0..R {
        let (state, _) = state[at(r)].as_chunks_mut();
        for n in 0..N {
            E::store(s, sums[r][n], &mut state[n]);
        }
    }
}
