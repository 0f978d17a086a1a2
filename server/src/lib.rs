//! The `millpond` binary as a library, so that tests can call its parts: command line and HTTP server.
#![forbid(unsafe_code)]

pub mod bench;
pub mod built_in;
pub mod cli;
pub mod http;
pub mod hub;
