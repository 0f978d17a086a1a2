//! For those who look after a server: `/health`, `/ready`, `/metrics`, `/slots`.

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use millpond::engine::{Class, SlotPhase, Stats};
use serde_json::{Value, json};

use super::error::{ApiError, ApiResult};
use super::state::AppState;

/// Whether the process lives.
pub(crate) async fn health() -> Response {
    Json(json!({ "status": "ok" })).into_response()
}

/// Whether requests are served: not while the model loads, nor once the server is stopping.
pub(crate) async fn ready(State(state): State<AppState>) -> ApiResult {
    if state.is_ready() {
        return Ok(Json(json!({ "status": "ok" })).into_response());
    }
    state.engine()?;
    Err(ApiError::unavailable("the server is stopping"))
}

/// Counters in Prometheus' text format.
pub(crate) async fn metrics(State(state): State<AppState>) -> ApiResult {
    if !state.config().metrics {
        return Err(ApiError::not_found("metrics are switched off"));
    }
    let stats = state.engine()?.stats();
    let kind = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    Ok((kind, text(&stats, state.requests(), state.uptime())).into_response())
}

fn text(stats: &Stats, requests: u64, uptime: f64) -> String {
    let counters = [
        ("http_requests", "HTTP requests", requests as f64),
        ("requests_accepted", "Generations accepted", stats.accepted as f64),
        ("requests_refused", "Generations refused because the queue was full", stats.refused as f64),
        ("requests_completed", "Generations that ended as they should", stats.completed as f64),
        ("requests_cancelled", "Generations cancelled", stats.cancelled as f64),
        ("requests_failed", "Generations that failed", stats.failed as f64),
        ("steps", "Passes over the weights", stats.steps as f64),
        ("prompt_tokens", "Tokens of prompts", stats.prompt_tokens as f64),
        ("prompt_tokens_cached", "Tokens of prompts whose state was reused", stats.cached_tokens as f64),
        ("generated_tokens", "Tokens generated", stats.generated_tokens as f64),
        ("drafted_tokens", "Tokens proposed by drafts", stats.drafted_tokens as f64),
        ("accepted_tokens", "Proposed tokens that were accepted", stats.accepted_tokens as f64),
        ("prefill_seconds", "Time in passes with a slice of a prompt", stats.prefill_seconds),
        ("decode_seconds", "Time in passes without", stats.decode_seconds),
    ];
    let gauges = [
        ("requests_running", "Generations that run", stats.slots.len() as f64),
        ("requests_waiting", "Generations that wait", stats.waiting as f64),
        ("requests_running_limit", "Most generations that run at once", stats.max_running as f64),
        ("sequence_bytes", "Memory reserved for running generations", stats.reserved_bytes as f64),
        ("sequence_bytes_limit", "Memory that may be reserved", stats.memory_budget as f64),
        ("cache_entries", "Snapshots in the prefix cache", stats.cache_entries as f64),
        ("cache_bytes", "Memory the prefix cache holds", stats.cache_bytes as f64),
        ("cache_bytes_limit", "Memory the prefix cache may hold", stats.cache_budget as f64),
        ("uptime_seconds", "Time since the start", uptime),
    ];
    let counters =
        counters.iter().map(|(name, help, value)| metric(&format!("{name}_total"), help, "counter", *value));
    let gauges = gauges.iter().map(|(name, help, value)| metric(name, help, "gauge", *value));
    counters.chain(gauges).collect()
}

fn metric(name: &str, help: &str, kind: &str, value: f64) -> String {
    format!("# HELP millpond_{name} {help}.\n# TYPE millpond_{name} {kind}\nmillpond_{name} {value}\n")
}

/// What runs.
pub(crate) async fn slots(State(state): State<AppState>) -> ApiResult {
    if !state.config().slots {
        return Err(ApiError::new(StatusCode::NOT_IMPLEMENTED, "slots are switched off"));
    }
    let engine = state.engine()?;
    let stats = engine.stats();
    let slots: Vec<Value> = (0..stats.max_running)
        .map(|place| {
            let mut slot = json!({ "id": place, "n_ctx": engine.context(), "is_processing": false });
            if let Some(running) = stats.slots.get(place) {
                slot["is_processing"] = true.into();
                slot["id_task"] = running.id.into();
                slot["phase"] = if running.phase == SlotPhase::Prefill { "prefill" } else { "decode" }.into();
                slot["class"] =
                    if running.class == Class::Interactive { "interactive" } else { "background" }.into();
                slot["n_prompt_tokens"] = running.prompt_tokens.into();
                slot["n_prompt_tokens_cache"] = running.cached_tokens.into();
                slot["n_past"] = running.position.into();
                slot["n_decoded"] = running.generated.into();
                slot["bytes"] = running.reserved.into();
            }
            slot
        })
        .collect();
    Ok(Json(slots).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_prometheus_text() {
        let text = text(&Stats::default(), 3, 1.5);
        assert!(text.contains("\nmillpond_uptime_seconds 1.5\n"));
        assert!(
            text.contains("# TYPE millpond_http_requests_total counter\nmillpond_http_requests_total 3\n")
        );
        for line in text.lines() {
            let sample = line.split_once(' ').and_then(|(_, value)| value.parse::<f64>().ok());
            assert!(line.starts_with("# ") || sample.is_some(), "{line}");
        }
    }
}
