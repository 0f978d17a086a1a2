//! The part of Ollama's API that clients need to talk with a model that is there.

use std::time::{Duration, SystemTime};

use axum::Json;
use axum::extract::State;
use axum::response::IntoResponse;
use millpond::engine::{FinishReason, Request};
use millpond::text::ChatTemplate;
use millpond::text::tool_calls::ParameterTypes;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::answer::{Answer, AnswerReader, Call, finish_reason};
use super::assemble::{self, AnswerWriter, Whole};
use super::body::JsonBody;
use super::chat_input::{ChatPrompt, Conversation, check_tools, message};
use super::config::ReasoningForm;
use super::constraint;
use super::error::{ApiError, ApiResult};
use super::events::Events;
use super::ids;
use super::integer;
use super::keep_alive::{self, KeepAlive};
use super::object;
use super::params::GenerationFields;
use super::pool::Entry;
use super::prompt::PromptInput;
use super::sse::{self, Framing, Gone, Sender};
use super::state::{AppState, Served};
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
    #[serde(default, deserialize_with = "object::maybe")]
    options: Option<Options>,
    keep_alive: Option<Value>,
}

/// Parameters.
#[derive(Debug, Default, Deserialize)]
struct Options {
    #[serde(flatten)]
    generation: GenerationFields,
    #[serde(default, deserialize_with = "integer::maybe")]
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
    form: ReasoningForm,
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
    let keep = keep_alive::read(body.keep_alive.as_ref())?;
    if !matches!(body.think, None | Some(Value::Null | Value::Bool(_) | Value::String(_))) {
        return Err(ApiError::field("think", "think must be true, false or the name of an effort"));
    }
    // Clients ask for nothing to have the model loaded, or unloaded.
    let nothing = match kind {
        Kind::Chat => body.messages.is_empty(),
        Kind::Generate => body.prompt.as_deref().unwrap_or_default().is_empty(),
    };
    if nothing {
        return prepare_model(&state, body, kind, keep).await;
    }
    let served = state.select(Some(&body.model)).await?;
    stay(&state, served.entry(), keep);
    let (events, shape) = served.prepare(move |served| begin(served, body, kind)).await?;
    if stream {
        let reader = AnswerReader::new(&shape.prompt, shape.form);
        return Ok(sse::respond(Framing::Lines, |sender| {
            assemble::write(Writer { sender, shape }, reader, events)
        }));
    }
    collect(events, &shape).await
}

/// Notes how long a model is to stay after its last request.
fn stay(state: &AppState, entry: &Entry, keep: Option<KeepAlive>) {
    match keep {
        None => {}
        Some(KeepAlive::Forever) => state.pool().keep(entry, None),
        Some(KeepAlive::For(time)) => state.pool().keep(entry, Some(time)),
    }
}

/// Loads a model, or unloads it where it is to stay for no time.
async fn prepare_model(
    state: &AppState,
    body: OllamaRequest,
    kind: Kind,
    keep: Option<KeepAlive>,
) -> ApiResult {
    let unload = keep == Some(KeepAlive::For(Duration::ZERO));
    let reason = if unload { "unload" } else { "load" };
    let options = body.options.unwrap_or_default();
    wish(body.format.as_ref())?;
    check_tools(body.tools.as_deref().unwrap_or_default())?;
    let entry = state.pool().entry(Some(&body.model))?;
    if unload {
        // Nobody loads a model to learn that what it would be asked makes no sense.
        if entry.handle().is_some() {
            options.request(&state.select(Some(&body.model)).await?, vec![0])?;
        } else {
            options.generation.request(vec![0], None, state.config(), None, u32::MAX as usize)?;
        }
        state.pool().unload(&entry).await;
    } else {
        let served = state.select(Some(&body.model)).await?;
        options.request(&served, vec![0])?;
        stay(state, served.entry(), keep);
    }
    let shape = Shape { kind, model: body.model, prompt: plain(Vec::new()), form: ReasoningForm::InText };
    let mut value = shape.value(&Answer::default());
    value["done"] = true.into();
    value["done_reason"] = reason.into();
    Ok(Json(value).into_response())
}

impl Options {
    fn request(&self, served: &Served, prompt: Vec<u32>) -> ApiResult<Request> {
        let limit = self.num_predict.and_then(|count| usize::try_from(count).ok());
        let model = served.model();
        let tokenizer = model.tokenizer.as_deref();
        self.generation.request(prompt, limit, served.config(), tokenizer, model.spec.vocab)
    }
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

fn begin(served: &Served, body: OllamaRequest, kind: Kind) -> ApiResult<(Events, Shape)> {
    if body.images.as_ref().is_some_and(|images| !images.is_empty()) {
        return Err(ApiError::invalid("images are not supported"));
    }
    let constraint = wish(body.format.as_ref())?;
    let raw = kind == Kind::Generate && (body.raw.unwrap_or(false) || served.model().template.is_none());
    let prompt = if raw {
        let text = PromptInput::Text(body.prompt.clone().unwrap_or_default());
        plain(text.tokens(served)?.remove(0))
    } else {
        let mut conversation = conversation(&body, kind).check()?;
        conversation.constrain(constraint.clone())?;
        conversation.prompt(served)?
    };
    let mut request = body.options.unwrap_or_default().request(served, prompt.ids.clone())?;
    request.message_boundaries.clone_from(&prompt.boundaries);
    request.grammar = constraint;
    let form = match body.think {
        Some(Value::Bool(false)) => ReasoningForm::InText,
        _ => ReasoningForm::Beside,
    };
    let shape = Shape { kind, model: body.model, prompt, form };
    Ok((served.submit(vec![request], 1)?, shape))
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
                    let call = |call: &Call| json!({ "function": { "name": call.name, "arguments": call.arguments } });
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

async fn collect(events: Events, shape: &Shape) -> ApiResult {
    let reader = AnswerReader::new(&shape.prompt, shape.form);
    let Whole { answer, reason, totals } = assemble::collect(events, reader).await?;
    Ok(Json(shape.last(&answer, finish_reason(&reason, 0), &totals)).into_response())
}

/// Writes an answer as lines, each with what is new.
struct Writer {
    sender: Sender,
    shape: Shape,
}

impl Writer {
    async fn send(&self, answer: &Answer) -> Result<(), Gone> {
        self.sender.data(&self.shape.value(answer)).await
    }
}

impl AnswerWriter for Writer {
    fn sender(&self) -> &Sender {
        &self.sender
    }

    async fn begin(&mut self) -> Result<(), Gone> {
        Ok(())
    }

    async fn reasoning(&mut self, text: &str) -> Result<(), Gone> {
        self.send(&Answer { reasoning: text.to_owned(), ..Answer::default() }).await
    }

    async fn text(&mut self, text: &str) -> Result<(), Gone> {
        self.send(&Answer { text: text.to_owned(), ..Answer::default() }).await
    }

    async fn call(&mut self, call: &Call) -> Result<(), Gone> {
        self.send(&Answer { calls: vec![call.clone()], ..Answer::default() }).await
    }

    async fn end(&mut self, reason: &FinishReason, _calls: usize, totals: &Totals) -> Result<(), Gone> {
        let last = self.shape.last(&Answer::default(), finish_reason(reason, 0), totals);
        self.sender.data(&last).await
    }

    async fn failed(&mut self, error: &ApiError) -> Result<(), Gone> {
        self.sender.data(&error.ollama()).await
    }
}

/// The version.
pub(crate) async fn version() -> Json<Value> {
    Json(json!({ "version": env!("CARGO_PKG_VERSION") }))
}

/// The models there are.
pub(crate) async fn tags(State(state): State<AppState>) -> ApiResult {
    state.check_ready()?;
    let models: Vec<Value> = state.pool().list().iter().map(|entry| describe(&state, entry)).collect();
    Ok(Json(json!({ "models": models })).into_response())
}

/// The models in memory.
pub(crate) async fn ps(State(state): State<AppState>) -> ApiResult {
    state.check_ready()?;
    let models = state.pool().list();
    let loaded = models.iter().filter_map(|entry| Some((entry, entry.handle()?)));
    let models: Vec<Value> = loaded
        .map(|(entry, engine)| {
            let mut model = describe(&state, entry);
            let expires = entry.expires().and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok());
            model["expires_at"] =
                expires.map_or_else(|| NEVER.to_owned(), |time| ids::rfc3339(time.as_secs())).into();
            model["size_vram"] = 0.into();
            model["context_length"] = engine.context().into();
            model
        })
        .collect();
    Ok(Json(json!({ "models": models })).into_response())
}

/// The time at which what stays for ever ends.
const NEVER: &str = "9999-12-31T23:59:59Z";

/// The body of a request to `/api/show`.
#[derive(Debug, Deserialize)]
pub(crate) struct ShowRequest {
    #[serde(alias = "name")]
    model: String,
}

/// What a model is.
pub(crate) async fn show(State(state): State<AppState>, JsonBody(body): JsonBody<ShowRequest>) -> ApiResult {
    let entry = state.pool().named(&body.model);
    let entry = entry.ok_or_else(|| ApiError::not_found("there is no model of that name"))?;
    let served = state.select(Some(entry.name())).await?;
    let model = served.model();
    let arch = &model.spec.arch;
    let mut capabilities = vec!["completion"];
    if model.template.is_some() {
        capabilities.push("tools");
    }
    let described = describe(&state, &entry);
    Ok(Json(json!({
        "modelfile": "",
        "parameters": "",
        "template": model.template.as_ref().map_or_else(String::new, ChatTemplate::source),
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

/// A model; what is known of it only while it is in memory is empty else.
fn describe(state: &AppState, entry: &Entry) -> Value {
    let engine = entry.handle();
    let model = engine.as_ref().map(|engine| engine.model());
    let family = model.map_or("", |model| model.spec.arch.as_str());
    let name = entry.name();
    json!({
        "name": name,
        "model": name,
        "modified_at": ids::rfc3339(state.created()),
        "size": model.map_or(entry.bytes(), |model| model.info.bytes),
        "digest": model.map_or_else(String::new, |model| format!("{:064x}", model.info.fingerprint)),
        "details": {
            "parent_model": "",
            "format": "gguf",
            "family": family,
            "families": [family],
            "parameter_size":
                model.map_or_else(String::new, |model| format!("{:.1}M", model.info.parameters as f64 / 1e6)),
            "quantization_level": model.and_then(|model| model.info.quantization()).unwrap_or_default(),
        },
    })
}
