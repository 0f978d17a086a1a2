//! What a model is: metadata in, a [`ModelSpec`] out. No tensors, no arithmetic, no I/O.
#![forbid(unsafe_code)]

pub mod error;
pub mod fields;
mod hybrid;
mod limits;
pub mod names;
mod qwen35;
mod qwen3next;
pub mod registry;
pub mod spec;

pub use error::SpecError;
pub use fields::{Field, Fields};
pub use hybrid::HasTensor;
pub use spec::*;
