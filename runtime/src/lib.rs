//! Embeddable inference for linear-attention language models.

pub mod text;
pub mod weights;
