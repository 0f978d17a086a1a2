//! The HTTP server: one file for each API, all of them thin layers over the engine.

mod admin;
mod answer;
mod anthropic;
mod base64;
mod body;
mod chat_input;
pub mod config;
pub(crate) mod constraint;
pub mod error;
mod events;
mod guard;
mod ids;
pub mod listen;
mod llama_cpp;
mod logprobs;
mod ollama;
mod openai;
mod page;
mod params;
mod prompt;
mod slots;
mod sse;
mod stall;
pub mod state;
mod usage;

use axum::Router;
use axum::http::StatusCode;
use axum::middleware;
use axum::routing::{get, post};

use error::ApiError;
use state::AppState;

/// The routes of a server.
pub fn app(state: AppState) -> Router {
    Router::new()
        .merge(openai_routes())
        .merge(llama_cpp_routes())
        .merge(anthropic_routes())
        .merge(ollama_routes())
        .merge(admin_routes())
        .fallback(|| async { ApiError::not_found("there is nothing at this address") })
        .method_not_allowed_fallback(|| async {
            ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "this address does not take that method")
        })
        .layer(middleware::from_fn_with_state(state.clone(), guard::guard))
        .with_state(state)
}

fn openai_routes() -> Router<AppState> {
    Router::new()
        .route("/v1/chat/completions", post(openai::chat::create))
        .route("/chat/completions", post(openai::chat::create))
        .route("/v1/chat/completions/input_tokens", post(openai::chat::input_tokens))
        .route("/v1/completions", post(openai::completions::create))
        .route("/v1/responses", post(openai::responses::create))
        .route("/v1/embeddings", post(openai::embeddings::create))
        .route("/v1/models", get(openai::models::list))
        .route("/models", get(openai::models::list))
        .route("/v1/models/{name}", get(openai::models::get))
}

fn llama_cpp_routes() -> Router<AppState> {
    Router::new()
        .route("/completion", post(llama_cpp::completion))
        .route("/completions", post(llama_cpp::completion))
        .route("/tokenize", post(llama_cpp::tokenize))
        .route("/detokenize", post(llama_cpp::detokenize))
        .route("/apply-template", post(openai::chat::apply_template))
        .route("/props", get(llama_cpp::props))
}

fn anthropic_routes() -> Router<AppState> {
    Router::new()
        .route("/v1/messages", post(anthropic::create))
        .route("/v1/messages/count_tokens", post(anthropic::count_tokens))
        .layer(middleware::from_fn(error::in_anthropic_form))
}

fn ollama_routes() -> Router<AppState> {
    Router::new()
        .route("/api/chat", post(ollama::chat))
        .route("/api/generate", post(ollama::generate))
        .route("/api/show", post(ollama::show))
        .route("/api/tags", get(ollama::tags))
        .route("/api/ps", get(ollama::ps))
        .route("/api/version", get(ollama::version))
        .layer(middleware::from_fn(error::in_ollama_form))
}

fn admin_routes() -> Router<AppState> {
    Router::new()
        .route("/", get(page::show))
        .route("/health", get(admin::health))
        .route("/v1/health", get(admin::health))
        .route("/ready", get(admin::ready))
        .route("/metrics", get(admin::metrics))
        .route("/slots", get(admin::slots))
        .route("/slots/{slot}", post(slots::act))
}
