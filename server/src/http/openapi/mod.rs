//! `/openapi.json`: what the routes take and give, in OpenAPI 3.1.
//!
//! The document is put together from one file for each API. A schema says what every request may carry; what depends on
//! other fields or on the model stands in `dependentSchemas` or in words. In the files, `x-generates` stands for the answers
//! of whatever needs a model and a body, `x-needs-model` for those of whatever needs a model, `x-open` for routes that need no
//! key, and `x-same-as` for another address of the same route.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::IntoResponse;
use serde_json::{Map, Value, json};

use super::config::ServerConfig;
use super::error::{ApiError, ApiResult};
use super::state::AppState;

/// The files, that with what they share first.
const PARTS: [&str; 6] = [
    include_str!("common.json"),
    include_str!("openai.json"),
    include_str!("anthropic.json"),
    include_str!("llama_cpp.json"),
    include_str!("ollama.json"),
    include_str!("admin.json"),
];

/// Answers of whatever needs a model and a body.
const GENERATES: [(&str, &str); 8] = [
    ("400", "Invalid"),
    ("404", "NotFound"),
    ("408", "Slow"),
    ("413", "TooLarge"),
    ("415", "WrongType"),
    ("429", "Busy"),
    ("500", "Failed"),
    ("503", "Unavailable"),
];
/// Answers of whatever needs a model.
const NEEDS_MODEL: [(&str, &str); 4] =
    [("400", "Invalid"), ("404", "NotFound"), ("500", "Failed"), ("503", "Unavailable")];

/// The document of a server, but for what its model decides.
#[derive(Clone, Debug)]
pub(super) struct Document(Arc<Result<Value, String>>);

impl Document {
    /// The document of a server that is set up so.
    pub(super) fn new(config: &ServerConfig) -> Document {
        Document(Arc::new(build(config).map_err(|error| error.to_string())))
    }
}

/// The document.
pub(super) async fn show(State(state): State<AppState>, document: Document) -> ApiResult {
    let document = document.0.as_ref().as_ref().map_err(|error| ApiError::internal(error.as_str()))?;
    let mut document = document.clone();
    // Bounds of the model that requests get which name none.
    let engine = state.pool().entry(None).ok().and_then(|entry| entry.handle());
    if let Some(engine) = engine {
        let vocab = engine.model().spec.vocab;
        document["components"]["schemas"]["TokenId"]["maximum"] = vocab.saturating_sub(1).into();
    }
    Ok(Json(document).into_response())
}

fn build(config: &ServerConfig) -> serde_json::Result<Value> {
    let (mut paths, mut components) = (Map::new(), Map::new());
    for part in PARTS {
        let mut part: Value = serde_json::from_str(part)?;
        paths.extend(taken(&mut part, "paths"));
        for (kind, mut items) in taken(&mut part, "components") {
            let all = components.entry(kind).or_insert_with(|| json!({}));
            if let (Value::Object(all), Value::Object(items)) = (all, items.take()) {
                all.extend(items);
            }
        }
    }
    paths.retain(|path, _| is_served(path, config));
    for item in paths.values_mut() {
        if let Some(operations) = item.as_object_mut().filter(|item| !item.contains_key("x-same-as")) {
            operations.values_mut().for_each(|operation| complete(operation, &components, config));
        }
    }
    let originals = paths.clone();
    for item in paths.values_mut() {
        if let Some(original) = item["x-same-as"].as_str().and_then(|path| originals.get(path)) {
            *item = original.clone();
        }
    }
    if !config.api_keys.is_empty() {
        components.insert("securitySchemes".to_owned(), security_schemes());
    }
    Ok(json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Millpond",
            "version": env!("CARGO_PKG_VERSION"),
            "summary": "Linear-attention language models over the APIs of OpenAI, Anthropic, llama.cpp and Ollama",
            "description": "Schemas say what every request may carry. What depends on other fields or on the model is typed in \
                            `dependentSchemas` or described in words. Fields that are not known are ignored.",
            "license": { "name": "MIT", "identifier": "MIT" },
        },
        "paths": paths,
        "components": components,
    }))
}

fn taken(part: &mut Value, name: &str) -> Map<String, Value> {
    match part[name].take() {
        Value::Object(fields) => fields,
        _ => Map::new(),
    }
}

/// Whether a server that is set up so answers at a path.
fn is_served(path: &str, config: &ServerConfig) -> bool {
    match path {
        "/" => config.page,
        "/metrics" => config.metrics,
        "/slots" => config.slots,
        "/slots/{slot}" => config.slots && config.saves_states,
        _ => true,
    }
}

/// Replaces the abbreviations of an operation by what they stand for.
fn complete(operation: &mut Value, components: &Map<String, Value>, config: &ServerConfig) {
    let Some(fields) = operation.as_object_mut() else { return };
    let mut given = |name: &str| fields.remove(name).is_some();
    let (generates, needs_model, open) = (given("x-generates"), given("x-needs-model"), given("x-open"));
    let tag = fields["tags"][0].as_str().unwrap_or_default().to_owned();
    let mut answers = vec![("403", "Forbidden"), ("405", "NotAllowed")];
    if generates {
        answers.extend(GENERATES);
    } else if needs_model {
        answers.extend(NEEDS_MODEL);
    }
    if !open && !config.api_keys.is_empty() {
        answers.push(("401", "Unauthorized"));
        fields.insert("security".to_owned(), json!([{ "bearer": [] }, { "header": [] }]));
    }
    let Some(responses) = fields.get_mut("responses").and_then(Value::as_object_mut) else { return };
    for (status, name) in answers {
        responses.insert(status.to_owned(), json!({ "$ref": format!("#/components/responses/{name}") }));
    }
    let error = match tag.as_str() {
        "Anthropic" => "AnthropicError",
        "Ollama" => "OllamaError",
        _ => return,
    };
    for response in responses.values_mut() {
        let named = response["$ref"].as_str().and_then(|name| name.rsplit('/').next());
        let Some(shared) = named.map(|name| components["responses"][name].clone()) else { continue };
        *response = shared;
        let schema = json!({ "$ref": format!("#/components/schemas/{error}") });
        response["content"]["application/json"]["schema"] = schema;
    }
}

fn security_schemes() -> Value {
    json!({
        "bearer": { "type": "http", "scheme": "bearer" },
        "header": { "type": "apiKey", "in": "header", "name": "x-api-key" },
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::http::routes;

    fn config() -> ServerConfig {
        ServerConfig { saves_states: true, ..ServerConfig::default() }
    }

    #[test]
    fn every_route_is_in_the_document_and_nothing_else_is() {
        let document = build(&config()).unwrap();
        let paths = document["paths"].as_object().unwrap();
        let documented: BTreeSet<(String, String)> = paths
            .iter()
            .flat_map(|(path, item)| {
                item.as_object().unwrap().keys().map(|method| (method.clone(), path.clone()))
            })
            .collect();
        let routes = routes::all(&config()).list;
        let served: BTreeSet<(String, String)> =
            routes.iter().map(|&(method, path)| (method.to_owned(), path.to_owned())).collect();
        assert_eq!(served.len(), routes.len(), "a route is there twice");
        assert_eq!(documented, served);
    }

    #[test]
    fn nothing_refers_to_what_is_not_there() {
        let text = build(&ServerConfig { api_keys: vec!["key".to_owned()], ..config() }).unwrap();
        let mut references = Vec::new();
        collect(&text, &mut references);
        assert!(references.len() > 100);
        for reference in references {
            let pointer = reference.strip_prefix('#').unwrap();
            assert!(text.pointer(pointer).is_some(), "{reference}");
        }
        for abbreviation in ["x-generates", "x-needs-model", "x-open", "x-same-as"] {
            assert!(!text.to_string().contains(abbreviation), "{abbreviation} is left");
        }
    }

    fn collect(value: &Value, references: &mut Vec<String>) {
        match value {
            Value::Object(fields) => {
                references.extend(fields.get("$ref").and_then(Value::as_str).map(str::to_owned));
                fields.values().for_each(|value| collect(value, references));
            }
            Value::Array(items) => items.iter().for_each(|value| collect(value, references)),
            _ => {}
        }
    }

    #[test]
    fn what_is_switched_off_is_not_in_the_document() {
        let config = ServerConfig { page: false, metrics: false, slots: false, ..config() };
        let document = build(&config).unwrap();
        for path in ["/", "/metrics", "/slots", "/slots/{slot}"] {
            assert!(document["paths"].get(path).is_none(), "{path}");
        }
        assert!(document["components"].get("securitySchemes").is_none(), "no key is needed");
    }
}
