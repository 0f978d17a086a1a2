//! `/v1/models`.

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::response::IntoResponse;
use serde_json::{Value, json};

use crate::http::error::{ApiError, ApiResult};
use crate::http::state::AppState;

/// The models there are.
pub(crate) async fn list(State(state): State<AppState>) -> ApiResult {
    let model = describe(&state)?;
    Ok(Json(json!({ "object": "list", "data": [model] })).into_response())
}

/// One of them.
pub(crate) async fn get(
    State(state): State<AppState>,
    name: Result<Path<String>, PathRejection>,
) -> ApiResult {
    let model = describe(&state)?;
    match name {
        Ok(Path(name)) if model["id"] == name => Ok(Json(model).into_response()),
        _ => Err(ApiError::not_found("there is no model of that name")),
    }
}

fn describe(state: &AppState) -> ApiResult<Value> {
    let engine = state.engine()?;
    let model = engine.model();
    Ok(json!({
        "id": state.model_name(),
        "object": "model",
        "created": state.created(),
        "owned_by": "millpond",
        "meta": {
            "n_vocab": model.spec.vocab,
            "n_ctx": engine.context(),
            "n_ctx_train": model.spec.context,
            "n_embd": model.spec.hidden,
            "n_params": model.info.parameters,
            "size": model.info.bytes,
        },
    }))
}
