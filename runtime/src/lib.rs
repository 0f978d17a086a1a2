//! Embeddable inference for linear-attention language models.
//!
//! A [`model::Model`] is loaded once and shared; an [`engine::Engine`] runs requests for it on threads of its own and streams
//! events. Nothing here prints, ends the process or panics on bad input, and there is no global setup.
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

pub mod backend;
pub mod engine;
pub mod file;
pub mod load;
pub mod model;
pub mod par;
pub mod quantize;
pub mod runner;
pub mod sample;
pub mod state;
pub mod text;
pub mod weights;
