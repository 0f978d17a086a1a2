//! Softmax attention over pages of keys and values.
//!
//! Query rows (the query heads of one key/value head, for one or more tokens) visit the pages of their context in
//! ascending order and keep a running maximum, a running sum and an unnormalised accumulator.
//!
//! # Canonical order
//! * A score is a canonical dot product (see [`crate::vector`]).
//! * A page of up to [`MAX_PAGE`] positions is one step: the maximum of its visible scores, the new maximum, the
//!   rescaling factor `exp(old - new)`, the weights `exp(score - new)`; their sum in the canonical order, added to the
//!   sum by `fma(sum, factor, page sum)`; each accumulator times the factor, then one fused multiply-add per visible
//!   position, ascending.
//! * Merging two partials rescales both to the larger maximum: `fma(b, factor_b, a * factor_a)`.
//!
//! So a row's bits depend on the division into pages and merged spans, never on the rows that share a call.

mod page;
mod partials;

pub use page::{AttendPage, KvBlock};
pub use partials::Partials;

use crate::vector::lanes::kernel_table;

/// The most positions of one page.
pub const MAX_PAGE: usize = 64;

kernel_table! {
    /// Attention kernels of one instruction-set level.
    pub struct AttentionKernels {
        /// Lets every row attend to one page.
        fn attend_page(page: AttendPage<'_>, partials: &mut Partials) = page::attend_page;
        /// Merges the partials of a later span of positions into those of an earlier one.
        fn merge_partials(into: &mut Partials, later: &Partials) = partials::merge;
        /// Writes row `row`'s output, accumulator over sum; zeros for a row that saw no position.
        fn finish_row(partials: &Partials, row: usize, out: &mut [f32]) = partials::finish_row;
    }
}

#[cfg(test)]
mod tests;
