//! Embeddable inference for linear-attention language models.

pub mod file;
pub mod text;
pub mod weights;
