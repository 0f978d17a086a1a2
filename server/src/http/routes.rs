//! Which handler answers where.

use axum::Router;
use axum::handler::Handler;
use axum::routing::{get, post};

use super::config::ServerConfig;
use super::state::AppState;
use super::{admin, anthropic, llama_cpp, ollama, openai, openapi, page, slots};

/// Routes, and the list of them that [`openapi`] is checked against.
#[derive(Default)]
pub(super) struct Routes {
    pub(super) router: Router<AppState>,
    /// Methods in lower case, and paths.
    pub(super) list: Vec<(&'static str, &'static str)>,
}

impl Routes {
    fn get<H: Handler<T, AppState>, T: 'static>(mut self, path: &'static str, handler: H) -> Routes {
        self.list.push(("get", path));
        Routes { router: self.router.route(path, get(handler)), ..self }
    }

    fn post<H: Handler<T, AppState>, T: 'static>(mut self, path: &'static str, handler: H) -> Routes {
        self.list.push(("post", path));
        Routes { router: self.router.route(path, post(handler)), ..self }
    }
}

/// All routes. Some answer that they are switched off; those are not in the document.
pub(super) fn all(config: &ServerConfig) -> Routes {
    let document = openapi::Document::new(config);
    Routes::default()
        // OpenAI
        .post("/v1/chat/completions", openai::chat::create)
        .post("/chat/completions", openai::chat::create)
        .post("/v1/chat/completions/input_tokens", openai::chat::input_tokens)
        .post("/chat/completions/input_tokens", openai::chat::input_tokens)
        .post("/v1/completions", openai::completions::create)
        .post("/v1/responses", openai::responses::create)
        .post("/responses", openai::responses::create)
        .post("/v1/embeddings", openai::embeddings::create)
        .post("/embeddings", openai::embeddings::create)
        .get("/v1/models", openai::models::list)
        .get("/models", openai::models::list)
        .get("/v1/models/{name}", openai::models::get)
        // Anthropic
        .post("/v1/messages", anthropic::create)
        .post("/v1/messages/count_tokens", anthropic::count_tokens)
        // llama.cpp
        .post("/completion", llama_cpp::completion)
        .post("/completions", llama_cpp::completion)
        .post("/tokenize", llama_cpp::tokenize)
        .post("/detokenize", llama_cpp::detokenize)
        .post("/apply-template", openai::chat::apply_template)
        .get("/props", llama_cpp::props)
        .get("/slots", admin::slots)
        .post("/slots/{slot}", slots::act)
        // Ollama
        .post("/api/chat", ollama::chat)
        .post("/api/generate", ollama::generate)
        .post("/api/show", ollama::show)
        .get("/api/tags", ollama::tags)
        .get("/api/ps", ollama::ps)
        .get("/api/version", ollama::version)
        // The server's own
        .get("/", page::show)
        .get("/health", admin::health)
        .get("/v1/health", admin::health)
        .get("/ready", admin::ready)
        .get("/metrics", admin::metrics)
        .get("/openapi.json", move |state| openapi::show(state, document))
}
