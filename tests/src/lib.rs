//! Helpers shared by the cross-crate tests.

pub mod poison;
pub mod reference;
pub mod runners;
