//! The gated delta rule on a checkpoint and a log of rank-1 updates.
//!
//! Per value head, with the checkpoint `S` (`[dk][dv]`), unit keys `k`, scaled queries `q`, values `v`, write
//! strengths `beta` and log decays `g <= 0`, token `t` after `n` log entries:
//!
//! ```text
//! w_i = exp(g_{i+1} + .. + g_t)     base = exp(g_0 + .. + g_t)
//! m   = base S^T k_t + sum_{i<t} w_i (k_i . k_t) d_i
//! d_t = beta_t (v_t - m)
//! o_t = base S^T q_t + sum_{i<t} w_i (k_i . q_t) d_i + (k_t . q_t) d_t
//! ```
//!
//! which is the recurrence `S <- e^g S; S <- S + k beta (v - S^T k)^T; o = S^T q` with the state left alone. A
//! fold turns the first entries of the log into the state: `S <- base S + sum_i k_i (w_i d_i)^T`. Prefill is a
//! window of up to 64 tokens on an empty log, then a fold.
//!
//! # Layouts
//! * State tile: 16 columns of `S`. The tiles that one call covers lie side by side, `[dk][tiles][16]`, so that it
//!   reads memory in order. It is kept in f32 or in `bf16`; arithmetic on it is in f32, and a fold rounds what it
//!   computed once, to nearest, ties to even.
//! * Log of a key head: keys `[entries][dk]`; of a value head: deltas `[entries][stride]`, log decays
//!   `[entries]`. Entries `0..n` are committed, `n..n+T` are this window's rows. Later ones are never read.
//! * Window panel: what a window kernel multiplies with, grouped by blocks of [`PANEL_ROWS`] window rows (the last
//!   block has what is left, `R` rows). A block is `[width][2 R]`: for one key index (width = `dk`) or one log entry
//!   (width = `n + T`) the `R` key-side values, then the `R` query-side values. Length: [`panel_len`].
//!
//! # Canonical order
//! * Scores are canonical dot products (see [`crate::vector`]).
//! * Decay sums run from the newest entry backwards, one addition per entry; weights are `exp` of them, in `[0, 1]`.
//! * `S^T k` and `S^T q`: one chain of fused multiply-adds over the key index, ascending, from zero.
//! * `m` and `o`: the product with `base`, then fused multiply-adds over the entries, ascending.
//! * Fold: the product `base S`, then fused multiply-adds `k_i (w_i d_i)` over the entries, ascending.
//!
//! None depends on the window's length or the blocking, so a window of T tokens gives the bits of T windows of one.

mod ahead;
mod channels;
mod coefficients;
mod fold;
mod scores;
mod state;
mod window;

pub use ahead::{Ahead, Lookahead};
pub use channels::ChannelWindow;
pub use fold::{FoldBase, FoldSource, FoldTile};
pub use state::{State, StateMut};
pub use window::WindowTile;

use crate::vector::lanes::kernel_table;

/// Window rows of one panel block.
pub const PANEL_ROWS: usize = 8;

/// The most tokens of one window.
pub const MAX_WINDOW: usize = 64;

/// Floats of a window panel of `rows` rows over `width` key indices or entries.
pub const fn panel_len(rows: usize, width: usize) -> usize {
    2 * rows * width
}

/// Row blocks of a window: (first row, rows).
#[inline(always)]
fn blocks(rows: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..rows).step_by(PANEL_ROWS).map(move |first| (first, PANEL_ROWS.min(rows - first)))
}

kernel_table! {
    /// Kernels of the gated delta rule of one instruction-set level.
    pub struct LinearKernels {
        /// Scores of one key head, shared by its value heads. `keys`: `[n + T][dk]`, log then window; `queries`:
        /// `[T][dk]`, with `T = queries.len() / dk`. Row t of `kk` (`[T][n + T]`) receives `k_i . k_{n+t}` for
        /// `i < n + t`, row t of `kq` receives `k_i . q_t` for `i <= n + t`; the rest is left as it was.
        fn key_scores(keys: &[f32], queries: &[f32], dk: usize, kk: &mut [f32], kq: &mut [f32]) = scores::key_scores;
        /// Writes the window panel of the window's keys and queries (each `[T][dk]`), once per key head.
        fn pack_window(keys: &[f32], queries: &[f32], dk: usize, panel: &mut [f32]) = scores::pack_window;
        /// Coefficients of one value head: weights times scores. `g`: log decays `[n + T]`; `kk`, `kq` from
        /// [`Self::key_scores`]; `base`: `[T]`, decay from the checkpoint to each row; `panel`: window panel of width
        /// `n + T`.
        fn head_coefficients(g: &[f32], kk: &[f32], kq: &[f32], base: &mut [f32], panel: &mut [f32]) = coefficients::head_coefficients;
        /// Solves a window for consecutive tiles of one value head: writes the window's deltas to the log and the
        /// outputs.
        fn window_tile(args: WindowTile<'_>) = window::window_tile;
        /// Weights of folding the entries whose log decays are `g`: `weights[i] = exp(sum of g after i)`; returns the
        /// decay of the state, `exp(sum of g)`.
        fn fold_weights(g: &[f32], weights: &mut [f32]) -> f32 = coefficients::fold_weights;
        /// [`Self::pack_window`] and [`Self::head_coefficients`] of a value head whose state decays by key channel; the
        /// decays from the checkpoint to its rows, [`WindowTile::base`], are ones then.
        fn channel_window(args: ChannelWindow<'_>) = channels::channel_window;
        /// [`Self::fold_weights`] of a value head whose state decays by key channel: `weighted` (`[entries][dk]`)
        /// receives the keys times their weights, to be folded with weights of one, `base` (`[dk]`) the decay of the
        /// state. `decays`: `[entries][dk]`.
        fn channel_fold(keys: &[f32], decays: &[f32], weighted: &mut [f32], base: &mut [f32]) = channels::channel_fold;
        /// Folds log entries into consecutive tiles of one value head.
        fn fold_tile(args: FoldTile<'_>) = fold::fold_tile;
    }
}

#[cfg(test)]
mod channel_tests;
#[cfg(test)]
mod tests;
