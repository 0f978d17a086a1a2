//! C interface of the library `millpond`. The header is `include/millpond.h`; it is written by hand, and tests compare it
//! with what is here.
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

pub mod engine;
pub mod failure;
pub mod generation;
pub mod handles;
pub mod model;
pub mod pointers;
pub mod text;
pub mod types;

pub use failure::Status;
