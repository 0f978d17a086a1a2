//! Embeddable inference for linear-attention language models.
//!
//! A [`model::Model`] is loaded once and shared; an [`engine::Engine`] runs requests for it on threads of its own and streams
//! events. Nothing here prints, ends the process or panics on bad input, and there is no global setup: several engines
//! in a process, of one model or of several, do not know of each other.
//!
//! ```
//! use millpond::engine::{Engine, EngineOptions, Event, Request};
//! use millpond::model::{LoadOptions, Model};
//!
//! // The model that is part of the repository; a GGUF file or a Hugging Face folder of your own does as well.
//! let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../server/assets/delta-48m-Q4_K_M.gguf");
//! let model = Model::load(path.as_ref(), &LoadOptions::default())?;
//! let tokenizer = model.tokenizer.as_ref().expect("a tokenizer");
//! let prompt = tokenizer.encode("The king looked at the dragon and said", false)?;
//!
//! let engine = Engine::start(model.clone(), EngineOptions { context: 256, ..EngineOptions::default() })?;
//! let mut story = String::new();
//! for event in engine.handle().submit(Request { max_tokens: Some(8), ..Request::new(prompt) })? {
//!     match event {
//!         Event::Token { text, .. } | Event::Done { text, .. } => story.push_str(&text),
//!         Event::Error(error) => return Err(error.into()),
//!         _ => {}
//!     }
//! }
//! assert!(!story.is_empty());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Where to find what
//!
//! | to | see |
//! |---|---|
//! | load a model, with progress and a way to give up | [`model`] |
//! | run requests, bound memory and threads, cancel, read figures | [`engine`] |
//! | let a text grow in turns, save and restore it | [`session`] |
//! | hold a conversation with the model's own template | [`conversation`] |
//! | make tokens of text, apply chat templates, find tool calls and thoughts in answers | [`text`] |
//! | choose how tokens are sampled, and force answers into a JSON schema or a grammar | [`sample`] |
//!
//! These six modules are the surface that versions promise: within 0.x a new minor version may change them and says so in
//! the changelog, a patch never does. Structures of options get new fields, so write `..Default::default()`; enumerations
//! marked non-exhaustive get new variants. The other modules are for backends and tools that live with this
//! repository, and may change at any time.
#![cfg_attr(
    not(test),
    deny(clippy::print_stdout, clippy::print_stderr, clippy::exit, clippy::unwrap_used, clippy::panic)
)]

pub mod backend;
pub mod conversation;
pub mod engine;
pub mod file;
pub mod load;
pub mod model;
pub mod par;
pub mod quantize;
pub mod runner;
pub mod sample;
pub mod session;
pub mod state;
pub mod text;
pub mod weights;

/// The snippets of the user guide and of the README, run with the other examples.
#[cfg(doctest)]
mod guide {
    #[doc = include_str!("../../docs/library-rust.md")]
    struct Library;
    #[doc = include_str!("../../README.md")]
    struct Readme;
}
