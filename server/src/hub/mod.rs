//! Models on disk: the cache that is shared with other programs of the hub, and downloads into it.
//!
//! Written against the public description of the cache (<https://huggingface.co/docs/hub/local-cache>). The client is our
//! own, on `ureq`: the crate `hf-hub` 1.0 brings an asynchronous stack of 300 crates, and neither of its versions lets a
//! host refuse redirects.

pub mod cache;
mod client;
mod download;
mod error;
mod pull;
pub mod reference;
mod select;
mod tls;

pub use client::{Client, ClientOptions};
pub use error::HubError;
pub use pull::{Pulled, Watcher, pull};
