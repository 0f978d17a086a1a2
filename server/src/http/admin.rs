//! For those who look after a server: `/health`, `/ready`, `/metrics`, `/slots`.

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::{HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use millpond::engine::{Class, SlotPhase, SlotStats, Stats};
use serde_json::{Value, json};

use super::error::{ApiError, ApiResult};
use super::llama_cpp::ModelQuery;
use super::places::slot_number;
use super::state::AppState;

/// Whether the process lives.
pub(crate) async fn health() -> Response {
    Json(json!({ "status": "ok" })).into_response()
}

/// Whether requests are served: not while the model loads, nor once the server is stopping.
pub(crate) async fn ready(State(state): State<AppState>) -> ApiResult {
    state.check_ready()?;
    Ok(Json(json!({ "status": "ok" })).into_response())
}

/// Counters in Prometheus' text format.
pub(crate) async fn metrics(State(state): State<AppState>) -> ApiResult {
    if !state.config().metrics {
        return Err(ApiError::new(StatusCode::NOT_IMPLEMENTED, "metrics are switched off"));
    }
    let models = state.pool().list();
    let loaded = models.iter().filter_map(|entry| Some((entry.name().to_owned(), entry.handle()?.stats())));
    let loaded: Vec<(String, Stats)> = loaded.collect();
    if loaded.is_empty() {
        state.check_ready()?;
    }
    // Several models are told apart by a label; one needs none.
    let labelled = state.pool().has_folder();
    let kind = [
        (header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8".to_owned()),
        (HeaderName::from_static("process-start-time-unix"), state.created().to_string()),
    ];
    Ok((kind, text(&loaded, labelled, state.requests(), state.uptime())).into_response())
}

/// A figure of an engine.
type Figure = (&'static str, &'static str, fn(&Stats) -> f64);

/// Figures that only grow.
const COUNTERS: [Figure; 13] = [
    ("requests_accepted", "Generations accepted", |stats| stats.accepted as f64),
    ("requests_refused", "Generations refused because the queue was full", |stats| stats.refused as f64),
    ("requests_completed", "Generations that ended as they should", |stats| stats.completed as f64),
    ("requests_cancelled", "Generations cancelled", |stats| stats.cancelled as f64),
    ("requests_failed", "Generations that failed", |stats| stats.failed as f64),
    ("steps", "Passes over the weights", |stats| stats.steps as f64),
    ("prompt_tokens", "Tokens of prompts", |stats| stats.prompt_tokens as f64),
    ("prompt_tokens_cached", "Tokens of prompts whose state was reused", |stats| stats.cached_tokens as f64),
    ("generated_tokens", "Tokens generated", |stats| stats.generated_tokens as f64),
    ("drafted_tokens", "Tokens proposed by drafts", |stats| stats.drafted_tokens as f64),
    ("accepted_tokens", "Proposed tokens that were accepted", |stats| stats.accepted_tokens as f64),
    ("prefill_seconds", "Time in passes with a slice of a prompt", |stats| stats.prefill_seconds),
    ("decode_seconds", "Time in passes without", |stats| stats.decode_seconds),
];

/// Figures of the moment.
const GAUGES: [Figure; 10] = [
    ("requests_running", "Generations that run", |stats| stats.slots.len() as f64),
    ("requests_waiting", "Generations that wait", |stats| stats.waiting as f64),
    ("requests_running_limit", "Most generations that run at once", |stats| stats.max_running as f64),
    ("sequence_bytes", "Memory reserved for running generations", |stats| stats.reserved_bytes as f64),
    ("sequence_bytes_limit", "Memory that may be reserved", |stats| stats.memory_budget as f64),
    ("cache_entries", "Snapshots in the prefix cache", |stats| stats.cache_entries as f64),
    ("cache_bytes", "Memory the prefix cache holds", |stats| stats.cache_bytes as f64),
    ("cache_bytes_limit", "Memory the prefix cache may hold", |stats| stats.cache_budget as f64),
    ("cache_files", "Snapshots in files", |stats| stats.cache_files as f64),
    ("cache_file_bytes", "Bytes of these files", |stats| stats.cache_file_bytes as f64),
];

fn text(loaded: &[(String, Stats)], labelled: bool, requests: u64, uptime: f64) -> String {
    let own = |value: f64| vec![(String::new(), value)];
    let mut text = metric("http_requests_total", "HTTP requests", "counter", &own(requests as f64));
    text.push_str(&metric("uptime_seconds", "Time since the start", "gauge", &own(uptime)));
    text.push_str(&metric("models_loaded", "Models in memory", "gauge", &own(loaded.len() as f64)));
    let label =
        |name: &str| if labelled { format!("{{model=\"{}\"}}", escaped(name)) } else { String::new() };
    let mut add = |(name, help, value): &Figure, ending: &str, kind: &str| {
        let samples: Vec<(String, f64)> =
            loaded.iter().map(|(name, stats)| (label(name), value(stats))).collect();
        text.push_str(&metric(&format!("{name}{ending}"), help, kind, &samples));
    };
    COUNTERS.iter().for_each(|figure| add(figure, "_total", "counter"));
    GAUGES.iter().for_each(|figure| add(figure, "", "gauge"));
    // llama-server's names for the same, for dashboards that know those.
    let sum = together(loaded);
    for (name, help, kind, value) in LLAMA_CPP {
        let value = value(&sum);
        text.push_str(&format!(
            "# HELP llamacpp:{name} {help}.\n# TYPE llamacpp:{name} {kind}\nllamacpp:{name} {value}\n"
        ));
    }
    text.push_str(&by_place(&sum.accepted_by_place));
    text
}

/// What all engines have done and do.
fn together(loaded: &[(String, Stats)]) -> Stats {
    let mut sum = Stats::default();
    for (_, stats) in loaded {
        sum.steps += stats.steps;
        sum.stream_steps += stats.stream_steps;
        sum.longest = sum.longest.max(stats.longest);
        sum.prompt_tokens += stats.prompt_tokens;
        sum.cached_tokens += stats.cached_tokens;
        sum.generated_tokens += stats.generated_tokens;
        sum.drafts += stats.drafts;
        sum.drafted_tokens += stats.drafted_tokens;
        sum.accepted_tokens += stats.accepted_tokens;
        sum.prefill_seconds += stats.prefill_seconds;
        sum.decode_seconds += stats.decode_seconds;
        sum.waiting += stats.waiting;
        sum.slots.extend(stats.slots.iter().cloned());
        let places = sum.accepted_by_place.len().max(stats.accepted_by_place.len());
        sum.accepted_by_place.resize(places, 0);
        for (sum, count) in sum.accepted_by_place.iter_mut().zip(&stats.accepted_by_place) {
            *sum += count;
        }
    }
    sum
}

/// Accepted tokens by their place in a draft; nothing while none was.
fn by_place(accepted: &[u64]) -> String {
    const NAME: &str = "llamacpp:spec_decode_num_accepted_tokens_per_pos_total";
    if accepted.is_empty() {
        return String::new();
    }
    let head = format!("# HELP {NAME} Drafts accepted by place.\n# TYPE {NAME} counter\n");
    let line = |(place, count): (usize, &u64)| format!("{NAME}{{position=\"{place}\"}} {count}\n");
    head + &accepted.iter().enumerate().map(line).collect::<String>()
}

/// A rate; zero while no time has passed.
fn rate(count: u64, seconds: f64) -> f64 {
    if seconds > 0.0 { count as f64 / seconds } else { 0.0 }
}

/// A figure with its kind.
type KindFigure = (&'static str, &'static str, &'static str, fn(&Stats) -> f64);

/// Tokens of prompts that had to be read.
fn computed(stats: &Stats) -> u64 {
    stats.prompt_tokens.saturating_sub(stats.cached_tokens)
}

/// Figures that llama-server has too, by its names; over all models.
const LLAMA_CPP: [KindFigure; 15] = [
    ("prompt_tokens_total", "Tokens of prompts computed", "counter", |stats| computed(stats) as f64),
    ("prompt_tokens_cached_total", "Tokens of prompts reused", "counter", |stats| stats.cached_tokens as f64),
    ("prompt_seconds_total", "Time for prompts", "counter", |stats| stats.prefill_seconds),
    ("tokens_predicted_total", "Tokens generated", "counter", |stats| stats.generated_tokens as f64),
    ("tokens_predicted_seconds_total", "Time for generating", "counter", |stats| stats.decode_seconds),
    ("n_decode_total", "Passes over the weights", "counter", |stats| stats.steps as f64),
    ("n_tokens_max", "Tokens of the longest sequence there has been", "counter", |stats| {
        stats.longest as f64
    }),
    ("spec_decode_num_drafts_total", "Drafts verified", "counter", |stats| stats.drafts as f64),
    ("spec_decode_num_draft_tokens_total", "Tokens drafted", "counter", |stats| stats.drafted_tokens as f64),
    ("spec_decode_num_accepted_tokens_total", "Drafts accepted", "counter", |stats| {
        stats.accepted_tokens as f64
    }),
    ("prompt_tokens_seconds", "Tokens of prompts computed in a second", "gauge", |stats| {
        rate(computed(stats), stats.prefill_seconds)
    }),
    ("predicted_tokens_seconds", "Tokens generated in a second", "gauge", |stats| {
        rate(stats.generated_tokens, stats.decode_seconds)
    }),
    ("n_busy_slots_per_decode", "Requests that take part in a pass", "gauge", |stats| {
        stats.stream_steps as f64 / (stats.steps as f64).max(1.0)
    }),
    ("requests_processing", "Requests that run", "gauge", |stats| stats.slots.len() as f64),
    ("requests_deferred", "Requests that wait", "gauge", |stats| stats.waiting as f64),
];

/// A name as the value of a label.
fn escaped(name: &str) -> String {
    name.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

fn metric(name: &str, help: &str, kind: &str, samples: &[(String, f64)]) -> String {
    let mut text = format!("# HELP millpond_{name} {help}.\n# TYPE millpond_{name} {kind}\n");
    for (label, value) in samples {
        text.push_str(&format!("millpond_{name}{label} {value}\n"));
    }
    text
}

/// What runs.
pub(crate) async fn slots(
    State(state): State<AppState>,
    query: Result<Query<ModelQuery>, QueryRejection>,
) -> ApiResult {
    if !state.config().slots {
        return Err(ApiError::new(StatusCode::NOT_IMPLEMENTED, "slots are switched off"));
    }
    let served = ModelQuery::select(query, &state).await?;
    let engine = served.engine();
    let stats = engine.stats();
    let slots: Vec<Value> = in_slots(&stats)
        .into_iter()
        .enumerate()
        .map(|(place, running)| {
            let mut slot = json!({ "id": place, "n_ctx": engine.context(), "is_processing": false });
            if let Some(running) = running {
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

/// What runs in each slot: where it belongs, or else where there is room.
fn in_slots(stats: &Stats) -> Vec<Option<&SlotStats>> {
    let mut places = vec![None; stats.max_running];
    let mut others = Vec::new();
    for running in &stats.slots {
        let number = running.session.as_deref().and_then(slot_number);
        match number.and_then(|number| places.get_mut(number as usize)).filter(|place| place.is_none()) {
            Some(place) => *place = Some(running),
            None => others.push(running),
        }
    }
    let free = places.iter_mut().filter(|place| place.is_none());
    free.zip(others).for_each(|(place, running)| *place = Some(running));
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_prometheus_text() {
        let one = text(&[("a".to_owned(), Stats::default())], false, 3, 1.5);
        assert!(one.contains("\nmillpond_uptime_seconds 1.5\n"));
        assert!(
            one.contains("# TYPE millpond_http_requests_total counter\nmillpond_http_requests_total 3\n")
        );
        assert!(one.contains("\nmillpond_steps_total 0\n"));
        let names = ["a", "b \"c\\"].map(|name| (name.to_owned(), Stats::default()));
        let several = text(&names, true, 3, 1.5);
        assert!(several.contains("\nmillpond_steps_total{model=\"b \\\"c\\\\\"} 0\n"), "{several}");
        assert_eq!(several.matches("# TYPE millpond_steps_total").count(), 1);
        for line in one.lines() {
            let sample = line.split_once(' ').and_then(|(_, value)| value.parse::<f64>().ok());
            assert!(line.starts_with("# ") || sample.is_some(), "{line}");
        }
    }
}
