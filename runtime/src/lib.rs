//! Embeddable inference for linear-attention language models.

pub mod weights;
