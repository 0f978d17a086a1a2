//! What a model is: metadata in, a [`ModelSpec`] out. No tensors, no arithmetic, no I/O.
#![forbid(unsafe_code)]

pub mod spec;

pub use spec::*;
