//! Saved states: `/slots/{id}?action=save|restore|erase`, as llama.cpp has it.

use axum::Json;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use millpond::engine::{EngineHandle, SessionError};
use serde::Deserialize;
use serde_json::{Value, json};

use super::body::MaybeJson;
use super::error::{ApiError, ApiResult};
use super::places::slot_name;
use super::state::AppState;

/// What to do with a slot.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Action {
    Save,
    Restore,
    Erase,
}

/// The query of a request.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct SlotQuery {
    action: Action,
    model: Option<String>,
}

/// The body of a request; erasing needs none of it.
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct SlotBody {
    filename: Option<String>,
}

/// Saves, restores or erases the state of a slot: what the last request with its `id_slot`, or the last that named none and ran
/// there, has left.
pub(crate) async fn act(
    State(state): State<AppState>,
    slot: Result<Path<u32>, PathRejection>,
    query: Result<Query<SlotQuery>, QueryRejection>,
    MaybeJson(body): MaybeJson<SlotBody>,
) -> ApiResult {
    let Path(slot) = slot.map_err(|error| ApiError::field("id_slot", error.body_text()))?;
    let Query(query) = query.map_err(|error| ApiError::field("action", error.body_text()))?;
    if !state.config().slots {
        return Err(ApiError::new(StatusCode::NOT_IMPLEMENTED, "slots are switched off"));
    }
    let served = state.select(query.model.as_deref()).await?;
    let value = served.prepare(move |served| run(served.engine(), slot, query.action, &body)).await?;
    Ok(Json(value).into_response())
}

fn run(engine: &EngineHandle, slot: u32, action: Action, body: &SlotBody) -> ApiResult<Value> {
    let session = slot_name(slot);
    let file = || body.filename.as_deref().ok_or_else(|| ApiError::field("filename", "filename is missing"));
    let start = std::time::Instant::now();
    let milliseconds = || start.elapsed().as_secs_f64() * 1e3;
    match action {
        Action::Save => {
            let file = file()?;
            let saved = engine.save_session(&session, file)?;
            Ok(json!({
                "id_slot": slot, "filename": file, "n_saved": saved.tokens, "n_written": saved.bytes,
                "timings": { "save_ms": milliseconds() },
            }))
        }
        Action::Restore => {
            let file = file()?;
            let bytes = engine.session_info(file)?.bytes;
            let tokens = engine.load_session(file, &session)?;
            Ok(json!({
                "id_slot": slot, "filename": file, "n_restored": tokens.len(), "n_read": bytes,
                "timings": { "restore_ms": milliseconds() },
            }))
        }
        Action::Erase => Ok(json!({ "id_slot": slot, "erased": engine.erase_session(&session)? })),
    }
}

impl From<SessionError> for ApiError {
    fn from(error: SessionError) -> ApiError {
        let message = error.to_string();
        match error {
            SessionError::NoFolder => ApiError::new(StatusCode::NOT_IMPLEMENTED, message),
            SessionError::Unknown(_) => ApiError::not_found(message),
            SessionError::Busy(_) => ApiError::new(StatusCode::CONFLICT, message),
            SessionError::Stopped => ApiError::unavailable(message),
            SessionError::Io { name, source } => {
                // What the system says may name a path; its kind does not.
                ApiError::internal(format!("session '{name}': {}", source.kind()))
            }
            _ => ApiError::invalid(message),
        }
    }
}
