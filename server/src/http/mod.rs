//! The HTTP server: one file for each API, all of them thin layers over the engine.

mod admin;
mod answer;
mod anthropic;
mod assemble;
mod base64;
mod body;
mod chat_input;
mod clock;
pub mod config;
pub(crate) mod constraint;
pub mod error;
mod events;
mod folder;
mod guard;
mod ids;
mod integer;
mod keep_alive;
pub mod listen;
mod llama_cpp;
mod logprobs;
mod object;
mod ollama;
mod openai;
mod openapi;
mod page;
mod params;
mod places;
pub mod pool;
mod prompt;
mod routes;
mod slots;
mod sse;
mod stall;
pub mod state;
#[cfg(feature = "tls")]
mod tls;
mod usage;

use axum::Router;
use axum::http::StatusCode;
use axum::middleware;

use error::ApiError;
use state::AppState;

/// The routes of a server.
pub fn app(state: AppState) -> Router {
    let routes = routes::all(state.config());
    routes
        .router
        .fallback(|| async { ApiError::not_found("there is nothing at this address") })
        .method_not_allowed_fallback(|| async {
            ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "this address does not take that method")
        })
        .layer(middleware::from_fn_with_state(state.clone(), guard::guard))
        .with_state(state)
}
