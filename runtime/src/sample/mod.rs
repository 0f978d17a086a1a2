//! From logits to tokens: the sampling chain, stop strings, speculation rules.
//!
//! Names, order and defaults follow llama.cpp. A token depends on the logits, the history, the parameters and the seed
//! (with Mirostat also on the tokens chosen before), never on what else runs, on time, or on how many threads do.

#[cfg(feature = "grammar")]
pub mod gbnf;
#[cfg(feature = "grammar")]
pub mod grammar;
pub mod logprobs;
pub mod mask;
pub mod mirostat;
pub mod ngram;
pub mod params;
pub mod random;
pub mod sampler;
pub mod speculate;
pub mod stages;
pub mod stop;

pub use mask::TokenMask;
pub use mirostat::Mirostat;
pub use params::{SamplerOrder, SamplingError, SamplingParams, Stage};
pub use sampler::{SampleError, SampledToken, Sampler};
pub use stages::Candidate;
pub use stop::{StopError, StopMatcher};
