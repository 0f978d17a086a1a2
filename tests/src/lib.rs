//! Helpers shared by the cross-crate tests.

pub mod engines;
pub mod faulty;
pub mod fuzz;
pub mod poison;
pub mod reference;
pub mod runners;
pub mod tiny_files;
