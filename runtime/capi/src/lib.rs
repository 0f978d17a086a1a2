//! C interface of the library `millpond`. The header `include/millpond.h` is generated from what is here (`cbindgen.toml`),
//! comments included, and a test compares the two.
//!
//! Three rules hold everywhere:
//!
//! - **Handles are numbers, not addresses** ([`handles`]). A host that frees twice, uses what it freed or mixes up kinds
//!   gets [`Status::InvalidHandle`]; no such mistake touches memory.
//! - **Nothing unwinds into the host** ([`failure::guard`]): a panic becomes [`Status::Internal`].
//! - **Every pointer is checked** for null and alignment before it is read or written ([`pointers`]). What cannot be
//!   checked, that it points to as much as the host says, is all that the host has to guarantee.
//!
//! All functions may be called from any thread, at the same time. None keeps a pointer it was given after it returns.
//!
//! # Safety
//!
//! One contract holds for all functions, so that they do not repeat it: a pointer is null, or points to what its type says:
//! one value, as many as the count or capacity beside it says, or text closed by a zero; callbacks return and do not unwind.
#![allow(clippy::missing_safety_doc)] // the contract above
#![cfg_attr(
    not(test),
    deny(clippy::print_stdout, clippy::print_stderr, clippy::exit, clippy::unwrap_used, clippy::panic)
)]

pub mod embedding;
pub mod engine;
pub mod failure;
pub mod generation;
pub mod handles;
pub mod listener;
pub mod model;
pub mod pointers;
pub mod request;
pub mod sessions;
pub mod text;
pub mod types;

pub use failure::Status;
