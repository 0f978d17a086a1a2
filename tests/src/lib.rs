//! Helpers shared by the cross-crate tests.

pub mod reference;
pub mod runners;
