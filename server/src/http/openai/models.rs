//! `/v1/models`.

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::response::IntoResponse;
use serde_json::{Value, json};

use crate::http::error::{ApiError, ApiResult};
use crate::http::pool::Entry;
use crate::http::state::AppState;

/// The models there are.
pub(crate) async fn list(State(state): State<AppState>) -> ApiResult {
    state.check_ready()?;
    let models: Vec<Value> = state.pool().list().iter().map(|entry| describe(&state, entry)).collect();
    Ok(Json(json!({ "object": "list", "data": models })).into_response())
}

/// One of them.
pub(crate) async fn get(
    State(state): State<AppState>,
    name: Result<Path<String>, PathRejection>,
) -> ApiResult {
    state.check_ready()?;
    let named = name.ok().and_then(|Path(name)| state.pool().named(&name));
    let entry = named.ok_or_else(|| ApiError::not_found("there is no model of that name"))?;
    Ok(Json(describe(&state, &entry)).into_response())
}

/// A model; what is known of it only while it is in memory is `meta`.
fn describe(state: &AppState, entry: &Entry) -> Value {
    let engine = entry.handle();
    let meta = engine.as_ref().map(|engine| {
        let model = engine.model();
        json!({
            "n_vocab": model.spec.vocab,
            "n_ctx": engine.context(),
            "n_ctx_train": model.spec.context,
            "n_embd": model.spec.hidden,
            "n_params": model.info.parameters,
            "size": model.info.bytes,
        })
    });
    json!({
        "id": entry.name(),
        "aliases": entry.aliases(),
        "object": "model",
        "created": state.created(),
        "owned_by": "millpond",
        "status": { "value": if meta.is_some() { "loaded" } else { "unloaded" } },
        "meta": meta,
    })
}
