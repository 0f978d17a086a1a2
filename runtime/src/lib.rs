//! Embeddable inference for linear-attention language models.

pub mod backend;
pub mod engine;
pub mod file;
pub mod load;
pub mod model;
pub mod par;
pub mod runner;
pub mod sample;
pub mod state;
pub mod text;
pub mod weights;
