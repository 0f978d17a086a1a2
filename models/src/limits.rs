//! The largest sizes a model may have. Real models stay well below; what lies above is a damaged or hostile file.

use std::ops::RangeInclusive;

pub(crate) const HIDDEN: RangeInclusive<usize> = 1..=1 << 17;
pub(crate) const VOCAB: RangeInclusive<usize> = 1..=1 << 22;
pub(crate) const CONTEXT: RangeInclusive<usize> = 1..=1 << 31;
pub(crate) const LAYERS: RangeInclusive<usize> = 1..=1024;
pub(crate) const HEADS: RangeInclusive<usize> = 1..=1024;
pub(crate) const HEAD_DIM: RangeInclusive<usize> = 1..=1024;
pub(crate) const CONV_WIDTH: RangeInclusive<usize> = 1..=32;
pub(crate) const FFN_WIDTH: RangeInclusive<usize> = 1..=1 << 20;
pub(crate) const EXPERTS: RangeInclusive<usize> = 1..=4096;
pub(crate) const INTERVAL: RangeInclusive<usize> = 1..=1024;
/// One multi-token-prediction layer at most.
pub(crate) const MTP_LAYERS: RangeInclusive<usize> = 0..=1;
pub(crate) const NORM_EPS: RangeInclusive<f64> = 1e-20..=1e-1;
pub(crate) const ROPE_THETA: RangeInclusive<f64> = 1.0..=1e12;
pub(crate) const ROTARY_SHARE: RangeInclusive<f64> = 0.0..=1.0;
