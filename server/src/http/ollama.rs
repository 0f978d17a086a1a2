//! The part of Ollama's API that clients need to talk with a model that is there.

use axum::Json;
use axum::extract::State;
use axum::response::IntoResponse;
use millpond::engine::Event;
use millpond::text::tool_calls::ParameterTypes;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::answer::{Answer, AnswerReader, Piece, finish_reason};
use super::body::JsonBody;
use super::chat_input::{ChatPrompt, Conversation, message};
use super::constraint;
use super::error::{ApiError, ApiResult};
use super::events::Events;
use super::ids;
use super::params::GenerationFields;
use super::prompt::PromptInput;
use super::sse::{self, Framing, Gone, Sender};
use super::state::AppState;
use super::usage::Totals;
use millpond::sample::grammar::GrammarSource;

/// The body of a request to `/api/chat` or `/api/generate`.
#[derive(Debug, Deserialize)]
pub(crate) struct OllamaRequest {
    model: String,
    #[serde(default)]
    messages: Vec<Value>,
    prompt: Option<String>,
    system: Option<String>,
    raw: Option<bool>,
    images: Option<Vec<Value>>,
    tools: Option<Vec<Value>>,
    think: Option<Value>,
    format: Option<Value>,
    stream: Option<bool>,
    options: Option<Options>,
}

/// Parameters.
#[derive(Debug, Default, Deserialize)]
struct Options {
    #[serde(flatten)]
    generation: GenerationFields,
    num_predict: Option<i64>,
}

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Chat,
    Generate,
}

struct Shape {
    kind: Kind,
    model: String,
    prompt: ChatPrompt,
    split: bool,
}

/// Answers a conversation.
pub(crate) async fn chat(
    State(state): State<AppState>,
    JsonBody(body): JsonBody<OllamaRequest>,
) -> ApiResult {
    answer(state, body, Kind::Chat).await
}

/// Answers a question, or continues a text.
pub(crate) async fn generate(
    State(state): State<AppState>,
    JsonBody(body): JsonBody<OllamaRequest>,
) -> ApiResult {
    answer(state, body, Kind::Generate).await
}

async fn answer(state: AppState, body: OllamaRequest, kind: Kind) -> ApiResult {
    let stream = body.stream.unwrap_or(true);
    // Clients ask for nothing to have the model loaded; it is.
    let nothing = match kind {
        Kind::Chat => body.messages.is_empty(),
        Kind::Generate => body.prompt.as_deref().unwrap_or_default().is_empty(),
    };
    if nothing {
        let shape = Shape { kind, model: body.model, prompt: plain(Vec::new()), split: false };
        let mut value = shape.value(&Answer::default());
        value["done"] = true.into();
        value["done_reason"] = "load".into();
        return Ok(Json(value).into_response());
    }
    let (events, shape) = state.prepare(move |state| begin(state, body, kind)).await?;
    if stream {
        return Ok(sse::respond(Framing::Lines, |sender| write(sender, events, shape)));
    }
    collect(events, &shape).await
}

/// A prompt that is no conversation.
fn plain(ids: Vec<u32>) -> ChatPrompt {
    ChatPrompt {
        ids,
        boundaries: Vec::new(),
        starts_thinking: false,
        types: ParameterTypes::default(),
        has_tools: false,
    }
}

fn begin(state: &AppState, body: OllamaRequest, kind: Kind) -> ApiResult<(Events, Shape)> {
    if body.images.as_ref().is_some_and(|images| !images.is_empty()) {
        return Err(ApiError::invalid("images are not supported"));
    }
    let constraint = wish(body.format.as_ref())?;
    let raw = kind == Kind::Generate && (body.raw.unwrap_or(false) || state.model()?.template.is_none());
    let prompt = if raw {
        let text = PromptInput::Text(body.prompt.clone().unwrap_or_default());
        plain(text.tokens(state)?.remove(0))
    } else {
        let mut conversation = conversation(&body, kind).check()?;
        conversation.constrain(constraint.clone())?;
        conversation.prompt(state)?
    };
    let options = body.options.unwrap_or_default();
    let limit = options.num_predict.and_then(|count| usize::try_from(count).ok());
    let model = state.model()?;
    let tokenizer = model.tokenizer.as_deref();
    let mut request =
        options.generation.request(prompt.ids.clone(), limit, state.config(), tokenizer, model.spec.vocab)?;
    request.message_boundaries.clone_from(&prompt.boundaries);
    request.grammar = constraint;
    let shape = Shape { kind, model: body.model, prompt, split: body.think != Some(Value::Bool(false)) };
    Ok((state.submit(vec![request], 1)?, shape))
}

fn wish(format: Option<&Value>) -> ApiResult<Option<GrammarSource>> {
    match format {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(name)) if name.is_empty() => Ok(None),
        Some(Value::String(name)) if name == "json" => Ok(Some(constraint::json_object())),
        Some(schema @ Value::Object(_)) => Ok(Some(constraint::json_of(schema.clone()))),
        Some(_) => Err(ApiError::invalid("format must be \"json\" or a schema")),
    }
}

fn conversation(body: &OllamaRequest, kind: Kind) -> Conversation {
    let mut messages = Vec::new();
    if let Some(system) = body.system.as_deref().filter(|text| !text.is_empty()) {
        messages.push(message("system", system));
    }
    match kind {
        Kind::Generate => messages.push(message("user", body.prompt.clone().unwrap_or_default())),
        Kind::Chat => messages.extend(body.messages.iter().cloned().map(renamed)),
    }
    Conversation {
        messages,
        tools: body.tools.clone().unwrap_or_default(),
        options: Map::new(),
        thinking: match &body.think {
            Some(Value::Bool(thinking)) => Some(*thinking),
            Some(Value::String(_)) => Some(true),
            _ => None,
        },
        continues: false,
        constraint: None,
    }
}

/// Ollama calls reasoning `thinking`.
fn renamed(mut message: Value) -> Value {
    if let Some(thinking) = message.as_object_mut().and_then(|fields| fields.remove("thinking")) {
        message["reasoning_content"] = thinking;
    }
    message
}

impl Shape {
    /// An object with what was said.
    fn value(&self, answer: &Answer) -> Value {
        let mut value = json!({ "model": self.model, "created_at": ids::rfc3339(ids::now()) });
        match self.kind {
            Kind::Generate => {
                value["response"] = answer.text.as_str().into();
                if !answer.reasoning.is_empty() {
                    value["thinking"] = answer.reasoning.as_str().into();
                }
            }
            Kind::Chat => {
                let mut message = message("assistant", answer.text.as_str());
                if !answer.reasoning.is_empty() {
                    message["thinking"] = answer.reasoning.as_str().into();
                }
                if !answer.calls.is_empty() {
                    let call = |call: &super::answer::Call| json!({ "function": { "name": call.name, "arguments": call.arguments } });
                    message["tool_calls"] = answer.calls.iter().map(call).collect();
                }
                value["message"] = message;
            }
        }
        value["done"] = false.into();
        value
    }

    fn last(&self, answer: &Answer, reason: &str, totals: &Totals) -> Value {
        let mut value = self.value(answer);
        value["done"] = true.into();
        value["done_reason"] = if reason == "length" { "length" } else { "stop" }.into();
        if let (Value::Object(fields), Value::Object(figures)) = (&mut value, totals.ollama()) {
            fields.extend(figures);
        }
        value
    }
}

async fn collect(mut events: Events, shape: &Shape) -> ApiResult {
    let mut reader = AnswerReader::new(&shape.prompt, shape.split);
    let mut answer = Answer::default();
    let mut totals = Totals::default();
    let mut ended = "stop";
    while let Some((_, event)) = events.next().await {
        match event {
            Event::Token { text, .. } => answer.add(reader.push(&text)),
            Event::Done { reason, text, usage } => {
                answer.add(reader.push(&text));
                answer.add(reader.finish());
                totals.add(&usage, false);
                ended = finish_reason(&reason, 0);
            }
            Event::Error(error) => return Err(error.into()),
            Event::Prefill { .. } | Event::Prompt(_) | Event::Embedding(_) => {}
        }
    }
    Ok(Json(shape.last(&answer, ended, &totals)).into_response())
}

async fn write(sender: Sender, mut events: Events, shape: Shape) -> Result<(), Gone> {
    let mut reader = AnswerReader::new(&shape.prompt, shape.split);
    while let Some((_, event)) = sender.next(&mut events).await? {
        match event {
            Event::Token { text, .. } => send(&sender, &shape, reader.push(&text)).await?,
            Event::Done { reason, text, usage } => {
                let mut pieces = reader.push(&text);
                pieces.extend(reader.finish());
                send(&sender, &shape, pieces).await?;
                let mut totals = Totals::default();
                totals.add(&usage, false);
                let last = shape.last(&Answer::default(), finish_reason(&reason, 0), &totals);
                sender.data(&last).await?;
            }
            Event::Error(error) => return sender.data(&ApiError::from(error).ollama()).await,
            Event::Prefill { .. } | Event::Prompt(_) | Event::Embedding(_) => {}
        }
    }
    Ok(())
}

async fn send(sender: &Sender, shape: &Shape, pieces: Vec<Piece>) -> Result<(), Gone> {
    if pieces.is_empty() {
        return Ok(());
    }
    let mut answer = Answer::default();
    answer.add(pieces);
    sender.data(&shape.value(&answer)).await
}

/// The version.
pub(crate) async fn version() -> Json<Value> {
    Json(json!({ "version": env!("CARGO_PKG_VERSION") }))
}

/// The models there are.
pub(crate) async fn tags(State(state): State<AppState>) -> ApiResult {
    Ok(Json(json!({ "models": [describe(&state)?] })).into_response())
}

/// The models in memory.
pub(crate) async fn ps(State(state): State<AppState>) -> ApiResult {
    let mut model = describe(&state)?;
    model["expires_at"] = "9999-12-31T23:59:59Z".into();
    model["size_vram"] = 0.into();
    model["context_length"] = state.engine()?.context().into();
    Ok(Json(json!({ "models": [model] })).into_response())
}

/// The body of a request to `/api/show`.
#[derive(Debug, Deserialize)]
pub(crate) struct ShowRequest {
    #[serde(alias = "name")]
    model: String,
}

/// What a model is.
pub(crate) async fn show(State(state): State<AppState>, JsonBody(body): JsonBody<ShowRequest>) -> ApiResult {
    let own = state.model_name();
    if body.model != own && body.model.strip_suffix(":latest") != Some(&own) {
        return Err(ApiError::not_found("there is no model of that name"));
    }
    let model = state.model()?;
    let arch = &model.spec.arch;
    let mut capabilities = vec!["completion"];
    if model.template.is_some() {
        capabilities.push("tools");
    }
    let described = describe(&state)?;
    Ok(Json(json!({
        "modelfile": "",
        "parameters": "",
        "template": "",
        "details": described["details"],
        "model_info": {
            "general.architecture": arch,
            "general.parameter_count": model.info.parameters,
            format!("{arch}.context_length"): model.spec.context,
            format!("{arch}.embedding_length"): model.spec.hidden,
            format!("{arch}.block_count"): model.spec.layers.len(),
        },
        "capabilities": capabilities,
        "modified_at": described["modified_at"],
    }))
    .into_response())
}

fn describe(state: &AppState) -> ApiResult<Value> {
    let model = state.model()?;
    let name = state.model_name();
    Ok(json!({
        "name": name,
        "model": name,
        "modified_at": ids::rfc3339(state.created()),
        "size": model.info.bytes,
        "digest": format!("{:064x}", model.info.fingerprint),
        "details": {
            "parent_model": "",
            "format": "gguf",
            "family": model.spec.arch,
            "families": [model.spec.arch],
            "parameter_size": format!("{:.1}M", model.info.parameters as f64 / 1e6),
            "quantization_level": model.info.formats.first().copied().unwrap_or("unknown"),
        },
    }))
}
