//! `/v1/chat/completions`.

use axum::Json;
use axum::extract::State;
use axum::response::IntoResponse;
use millpond::engine::{Event, FinishReason};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::http::answer::{Answer, AnswerReader, Call, Piece, finish_reason};
use crate::http::body::JsonBody;
use crate::http::chat_input::{self, ChatPrompt, Conversation, ToolChoice};
use crate::http::clock::Clock;
use crate::http::config::{ReasoningForm, ServerConfig, UnknownReasoningForm};
use crate::http::constraint::ConstraintFields;
use crate::http::error::{ApiError, ApiResult};
use crate::http::events::Events;
use crate::http::ids;
use crate::http::integer;
use crate::http::logprobs;
use crate::http::object;
use crate::http::params::{GenerationFields, answer_count, token_count};
use crate::http::places::slot_name;
use crate::http::sse::{self, Framing, Gone, Sender};
use crate::http::state::{AppState, Served};
use crate::http::usage::Totals;

/// The body of a request.
#[derive(Debug, Deserialize)]
pub(crate) struct ChatRequest {
    model: Option<String>,
    messages: Vec<Value>,
    #[serde(flatten)]
    generation: GenerationFields,
    #[serde(flatten)]
    constraint: ConstraintFields,
    #[serde(default, deserialize_with = "integer::maybe")]
    max_tokens: Option<i64>,
    #[serde(default, deserialize_with = "integer::maybe")]
    max_completion_tokens: Option<i64>,
    stream: Option<bool>,
    #[serde(default, deserialize_with = "object::maybe")]
    stream_options: Option<StreamOptions>,
    #[serde(default, deserialize_with = "integer::maybe")]
    n: Option<u32>,
    logprobs: Option<bool>,
    #[serde(default, deserialize_with = "integer::maybe")]
    top_logprobs: Option<u32>,
    tools: Option<Vec<Value>>,
    tool_choice: Option<ToolChoice>,
    reasoning_effort: Option<String>,
    enable_thinking: Option<bool>,
    reasoning_format: Option<String>,
    chat_template_kwargs: Option<Map<String, Value>>,
    return_progress: Option<bool>,
    timings_per_token: Option<bool>,
    add_generation_prompt: Option<bool>,
    continue_final_message: Option<bool>,
    session: Option<String>,
    #[serde(default, deserialize_with = "integer::maybe")]
    id_slot: Option<i64>,
}

/// What a stream carries besides text.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
pub(crate) struct StreamOptions {
    #[serde(default)]
    pub(crate) include_usage: bool,
}

/// How the answer is written.
struct Shape {
    id: String,
    created: u64,
    model: String,
    prompt: ChatPrompt,
    form: ReasoningForm,
    usage: bool,
    progress: bool,
    timings: bool,
    logprobs: bool,
}

/// Answers a conversation.
pub(crate) async fn create(
    State(state): State<AppState>,
    JsonBody(body): JsonBody<ChatRequest>,
) -> ApiResult {
    let stream = body.stream.unwrap_or(false);
    let served = state.select(body.model.as_deref()).await?;
    let (events, shape) = served.prepare(move |served| begin(served, body)).await?;
    if stream {
        return Ok(sse::respond(Framing::Sse, |sender| write(sender, served, events, shape)));
    }
    collect(&served, events, &shape).await
}

/// The prompt of the conversation, without answering it.
pub(crate) async fn apply_template(
    State(state): State<AppState>,
    JsonBody(body): JsonBody<ChatRequest>,
) -> ApiResult {
    let served = state.select(body.model.as_deref()).await?;
    let render = move |served: &Served| {
        body.check(served)?;
        conversation(&body)?.render(served)
    };
    let prompt = served.prepare(render).await?;
    Ok(Json(json!({ "prompt": prompt })).into_response())
}

/// The number of tokens of the conversation.
pub(crate) async fn input_tokens(
    State(state): State<AppState>,
    JsonBody(body): JsonBody<ChatRequest>,
) -> ApiResult {
    let served = state.select(body.model.as_deref()).await?;
    let read = move |served: &Served| {
        body.check(served)?;
        conversation(&body)?.prompt(served)
    };
    let prompt = served.prepare(read).await?;
    Ok(Json(json!({ "object": "response.input_tokens", "input_tokens": prompt.ids.len() })).into_response())
}

impl ChatRequest {
    /// Most tokens of an answer.
    fn limit(&self) -> ApiResult<Option<usize>> {
        token_count("max_tokens", self.max_completion_tokens.or(self.max_tokens))
    }

    /// Refuses values out of their range, for routes that generate nothing.
    fn check(&self, served: &Served) -> ApiResult<()> {
        self.generation.check(served)?;
        self.limit()?;
        answer_count(self.n)?;
        reasoning_form(self.reasoning_format.as_deref(), served.config()).map(drop)
    }
}

/// Whether the answer goes on with the last message, where that is the assistant's: unless the request says otherwise, as
/// vLLM's clients do.
fn continues(body: &ChatRequest) -> ApiResult<bool> {
    if (body.add_generation_prompt, body.continue_final_message) == (Some(true), Some(true)) {
        return Err(ApiError::field(
            "continue_final_message",
            "an answer either goes on with the last message or begins a new one (add_generation_prompt)",
        ));
    }
    let new = body.add_generation_prompt == Some(true) || body.continue_final_message == Some(false);
    let unfinished = |message: &Value| {
        message["role"] == "assistant" && message.get("tool_calls").is_none_or(Value::is_null)
    };
    Ok(!new && body.messages.last().is_some_and(unfinished))
}

fn conversation(body: &ChatRequest) -> ApiResult<Conversation> {
    let tools = body.tools.clone().unwrap_or_default();
    let choice = body.tool_choice.clone().unwrap_or_default();
    let conversation = Conversation {
        continues: continues(body)?,
        messages: body.messages.clone(),
        constraint: choice.forced(&tools)?,
        tools: choice.offer(tools)?,
        options: body.chat_template_kwargs.clone().unwrap_or_default(),
        // One order of precedence: the request's own switch, its effort, the template's variables, the server's flag.
        thinking: body.enable_thinking.or_else(|| chat_input::thinks(body.reasoning_effort.as_deref())),
    };
    let mut conversation = conversation.check()?;
    conversation.constrain(body.constraint.source()?)?;
    Ok(conversation)
}

fn begin(served: &Served, body: ChatRequest) -> ApiResult<(Events, Shape)> {
    let conversation = conversation(&body)?;
    let limit = body.limit()?;
    let (prompt, mut request) = conversation.request(served, &body.generation, limit)?;
    let logprobs = body.logprobs.unwrap_or(false);
    if logprobs {
        request.logprobs = Some(body.top_logprobs.unwrap_or(0) as usize);
    } else if body.top_logprobs.is_some_and(|count| count > 0) {
        return Err(ApiError::field("top_logprobs", "top_logprobs needs logprobs"));
    }
    request.session = session(body.session.as_deref(), body.id_slot);
    let shape = Shape {
        id: ids::unique("chatcmpl-"),
        created: ids::now(),
        model: served.name(),
        prompt,
        form: reasoning_form(body.reasoning_format.as_deref(), served.config())?,
        usage: body.stream_options.unwrap_or_default().include_usage,
        progress: body.return_progress.unwrap_or(false),
        timings: body.timings_per_token.unwrap_or(false),
        logprobs,
    };
    Ok((served.submit(vec![request], answer_count(body.n)?)?, shape))
}

/// What becomes of thoughts: what the request says, or the server's flag.
fn reasoning_form(name: Option<&str>, config: &ServerConfig) -> ApiResult<ReasoningForm> {
    let wrong = |error: UnknownReasoningForm| ApiError::field("reasoning_format", error.to_string());
    name.map_or(Ok(config.reasoning_form), |name| name.parse().map_err(wrong))
}

/// The name under which a request's state is kept: that of a session, or of a slot as llama.cpp counts them.
pub(crate) fn session(name: Option<&str>, slot: Option<i64>) -> Option<String> {
    let slot = slot.filter(|slot| *slot >= 0).map(slot_name);
    name.map(str::to_owned).or(slot)
}

/// One answer while it comes.
struct Choice {
    reader: AnswerReader,
    answer: Answer,
    logprobs: Vec<Value>,
    reason: Option<FinishReason>,
}

async fn collect(served: &Served, mut events: Events, shape: &Shape) -> ApiResult {
    let mut choices: Vec<Choice> = Vec::new();
    let mut totals = Totals::default();
    let tokenizer = served.model().tokenizer.as_deref();
    while let Some((index, event)) = events.next().await {
        while choices.len() <= index {
            choices.push(Choice {
                reader: AnswerReader::new(&shape.prompt, shape.form),
                answer: Answer::default(),
                logprobs: Vec::new(),
                reason: None,
            });
        }
        let choice = &mut choices[index];
        match event {
            Event::Token { text, logprob, .. } => {
                let pieces = choice.reader.push(&text);
                choice.answer.add(pieces);
                choice.logprobs.extend(logprob.map(|found| logprobs::chat_entry(tokenizer, &found, true)));
            }
            Event::Done { reason, text, usage } => {
                let mut pieces = choice.reader.push(&text);
                pieces.extend(choice.reader.finish());
                choice.answer.add(pieces);
                choice.reason = Some(reason);
                totals.add(&usage, index > 0);
            }
            Event::Error(error) => return Err(error.into()),
            _ => {}
        }
    }
    let choices: Vec<Value> =
        choices.iter().enumerate().map(|(index, choice)| choice.value(index, shape)).collect();
    Ok(Json(json!({
        "id": shape.id,
        "object": "chat.completion",
        "created": shape.created,
        "model": shape.model,
        "system_fingerprint": fingerprint(),
        "choices": choices,
        "usage": totals.openai(),
        "timings": totals.timings(),
    }))
    .into_response())
}

impl Choice {
    fn value(&self, index: usize, shape: &Shape) -> Value {
        let Answer { reasoning, text, calls } = &self.answer;
        let content = if text.is_empty() && !calls.is_empty() { Value::Null } else { text.as_str().into() };
        let mut message = json!({ "role": "assistant", "content": content });
        if !reasoning.is_empty() {
            message["reasoning_content"] = reasoning.as_str().into();
        }
        if !calls.is_empty() {
            message["tool_calls"] = calls.iter().map(call_value).collect();
        }
        let logprobs = if shape.logprobs { json!({ "content": self.logprobs }) } else { Value::Null };
        let reason = self.reason.as_ref().map(|reason| finish_reason(reason, calls.len()));
        json!({ "index": index, "message": message, "logprobs": logprobs, "finish_reason": reason })
    }
}

fn call_value(call: &Call) -> Value {
    json!({
        "id": call.id,
        "type": "function",
        "function": { "name": call.name, "arguments": call.arguments.to_string() },
    })
}

/// What changes when the same request may give other tokens: the version.
pub(crate) fn fingerprint() -> &'static str {
    concat!("millpond-", env!("CARGO_PKG_VERSION"))
}

impl Shape {
    fn chunk(&self, choices: Value) -> Value {
        json!({
            "id": self.id,
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": self.model,
            "system_fingerprint": fingerprint(),
            "choices": choices,
        })
    }

    fn delta(&self, index: usize, delta: Value, logprobs: Value, reason: Option<&str>) -> Value {
        self.chunk(json!([{ "index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason }]))
    }
}

async fn write(sender: Sender, served: Served, mut events: Events, shape: Shape) -> Result<(), Gone> {
    let mut readers: Vec<AnswerReader> = Vec::new();
    let mut clocks: Vec<Clock> = Vec::new();
    let mut totals = Totals::default();
    let tokenizer = served.model().tokenizer.as_deref();
    while let Some((index, event)) = sender.next(&mut events).await? {
        while readers.len() <= index {
            let role = json!({ "role": "assistant", "content": null });
            sender.data(&shape.delta(readers.len(), role, Value::Null, None)).await?;
            readers.push(AnswerReader::new(&shape.prompt, shape.form));
            clocks.push(Clock::new());
        }
        clocks[index].note(&event);
        let clock = shape.timings.then_some(&clocks[index]);
        let reader = &mut readers[index];
        match event {
            Event::Token { text, logprob, .. } => {
                let logprobs = logprob.map_or(
                    Value::Null,
                    |found| json!({ "content": [logprobs::chat_entry(tokenizer, &found, true)] }),
                );
                let pieces = reader.push(&text);
                write_pieces(&sender, &shape, index, pieces, logprobs, clock).await?;
            }
            Event::Done { reason, text, usage } => {
                let mut pieces = reader.push(&text);
                pieces.extend(reader.finish());
                write_pieces(&sender, &shape, index, pieces, Value::Null, clock).await?;
                totals.add(&usage, index > 0);
                let reason = finish_reason(&reason, reader.calls());
                let mut chunk = shape.delta(index, json!({}), Value::Null, Some(reason));
                chunk["timings"] = totals.timings();
                sender.data(&chunk).await?;
            }
            Event::Error(error) => {
                return sender.data(&ApiError::from(error).openai()).await;
            }
            Event::Prefill { done, total, cached } if shape.progress => {
                let mut chunk = shape.chunk(json!([]));
                chunk["prompt_progress"] = json!({ "total": total, "cache": cached, "processed": done });
                chunk["timings"] = clocks[index].timings();
                sender.data(&chunk).await?;
            }
            _ => {}
        }
    }
    if shape.usage {
        let mut chunk = shape.chunk(json!([]));
        chunk["usage"] = totals.openai();
        chunk["timings"] = totals.timings();
        sender.data(&chunk).await?;
    }
    sender.done().await
}

/// Sends the pieces of one token; its probability goes with the first.
async fn write_pieces(
    sender: &Sender,
    shape: &Shape,
    index: usize,
    pieces: Vec<Piece>,
    mut logprobs: Value,
    clock: Option<&Clock>,
) -> Result<(), Gone> {
    let timed = |mut chunk: Value| {
        if let Some(clock) = clock {
            chunk["timings"] = clock.timings();
        }
        chunk
    };
    if pieces.is_empty() && !logprobs.is_null() {
        return sender.data(&timed(shape.delta(index, json!({ "content": "" }), logprobs, None))).await;
    }
    for piece in pieces {
        let delta = match piece {
            Piece::Reasoning(text) => json!({ "reasoning_content": text }),
            Piece::Text(text) => json!({ "content": text }),
            Piece::Call(call) => {
                let mut value = call_value(&call);
                value["index"] = call.index.into();
                json!({ "tool_calls": [value] })
            }
        };
        sender.data(&timed(shape.delta(index, delta, logprobs.take(), None))).await?;
    }
    Ok(())
}
