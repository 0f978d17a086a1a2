//! Anthropic's API: `/v1/messages` and `/v1/messages/count_tokens`.

use axum::Json;
use axum::extract::State;
use axum::response::IntoResponse;
use millpond::engine::FinishReason;
use millpond::sample::StopMatcher;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::answer::{AnswerReader, Call};
use super::assemble::{self, AnswerWriter, Whole};
use super::body::JsonBody;
use super::chat_input::{ChatPrompt, Conversation, ToolChoice, ToolMode, message};
use super::config::ReasoningForm;
use super::error::{ApiError, ApiResult};
use super::events::Events;
use super::ids;
use super::integer;
use super::object;
use super::params::{GenerationFields, OneOrMany, token_count};
use super::sse::{self, Framing, Gone, Sender};
use super::state::{AppState, Served};
use super::usage::Totals;

/// The body of a request.
#[derive(Debug, Deserialize)]
pub(crate) struct MessagesRequest {
    model: Option<String>,
    messages: Vec<Value>,
    #[serde(default, deserialize_with = "integer::maybe")]
    max_tokens: Option<i64>,
    system: Option<Value>,
    tools: Option<Vec<Value>>,
    #[serde(default, deserialize_with = "object::maybe")]
    tool_choice: Option<Choice>,
    #[serde(default, deserialize_with = "object::maybe")]
    thinking: Option<Thinking>,
    stop_sequences: Option<Vec<String>>,
    temperature: Option<f64>,
    top_p: Option<f64>,
    #[serde(default, deserialize_with = "integer::maybe")]
    top_k: Option<i64>,
    stream: Option<bool>,
}

/// Which tools the model may call.
#[derive(Clone, Debug, Deserialize)]
struct Choice {
    #[serde(rename = "type")]
    mode: String,
    name: Option<String>,
}

/// Whether the model thinks.
#[derive(Clone, Debug, Deserialize)]
struct Thinking {
    #[serde(rename = "type")]
    mode: String,
}

/// What an answer needs to be written.
struct Shape {
    id: String,
    model: String,
    prompt: ChatPrompt,
}

/// Answers a conversation.
pub(crate) async fn create(
    State(state): State<AppState>,
    JsonBody(body): JsonBody<MessagesRequest>,
) -> ApiResult {
    let stream = body.stream.unwrap_or(false);
    let served = state.select(body.model.as_deref()).await?;
    let (events, shape) = served.prepare(move |served| begin(served, body)).await?;
    if stream {
        let reader = AnswerReader::new(&shape.prompt, ReasoningForm::Beside);
        return Ok(sse::respond(Framing::Sse, |sender| {
            assemble::write(Writer::new(sender, shape), reader, events)
        }));
    }
    collect(events, &shape).await
}

/// Counts the tokens of a conversation.
pub(crate) async fn count_tokens(
    State(state): State<AppState>,
    JsonBody(body): JsonBody<MessagesRequest>,
) -> ApiResult {
    let served = state.select(body.model.as_deref()).await?;
    let read = move |served: &Served| {
        fields(&body).check(served)?;
        conversation(&body)?.prompt(served)
    };
    let prompt = served.prepare(read).await?;
    Ok(Json(json!({ "input_tokens": prompt.ids.len() })).into_response())
}

fn begin(served: &Served, body: MessagesRequest) -> ApiResult<(Events, Shape)> {
    let limit = token_count("max_tokens", body.max_tokens)?;
    let conversation = conversation(&body)?;
    let (prompt, request) = conversation.request(served, &fields(&body), limit)?;
    let shape = Shape { id: ids::unique("msg_"), model: served.name(), prompt };
    Ok((served.submit(vec![request], 1)?, shape))
}

/// What the request says about how tokens are chosen.
fn fields(body: &MessagesRequest) -> GenerationFields {
    GenerationFields {
        temperature: body.temperature,
        top_p: body.top_p,
        top_k: body.top_k,
        stop: body.stop_sequences.clone().map(OneOrMany::Many),
        ..GenerationFields::default()
    }
}

/// Brings a conversation into the form of OpenAI's API, which templates are written for.
fn conversation(body: &MessagesRequest) -> ApiResult<Conversation> {
    let stops = body.stop_sequences.as_deref().unwrap_or_default();
    StopMatcher::new(stops).map_err(|error| ApiError::field("stop_sequences", error.to_string()))?;
    let mut messages = Vec::new();
    if let Some(system) = body.system.as_ref().filter(|system| !system.is_null()) {
        messages.push(message("system", without_billing(&text_of(system, "system")?)));
    }
    for (index, item) in body.messages.iter().enumerate() {
        convert(index, item, &mut messages)?;
    }
    let wanted = body.tool_choice.as_ref();
    let choice = match wanted.map(|choice| (choice.mode.as_str(), &choice.name)) {
        None | Some(("auto", _)) => ToolChoice::Mode(ToolMode::Auto),
        Some(("none", _)) => ToolChoice::Mode(ToolMode::None),
        Some(("any", _)) => ToolChoice::Mode(ToolMode::Required),
        Some(("tool", Some(name))) => ToolChoice::named(name),
        Some((other, _)) => {
            return Err(ApiError::field("tool_choice", format!("tool_choice {other:?} is not known")));
        }
    };
    // Tools with a type of their own are run by Anthropic's service, or known to its models: they are not offered.
    let own = |tool: &&Value| tool["type"].as_str().is_none_or(|kind| kind == "custom");
    let tools = body.tools.iter().flatten().filter(own).map(tool).collect::<ApiResult<Vec<Value>>>()?;
    let thinking = match body.thinking.as_ref().map(|thinking| thinking.mode.as_str()) {
        None => None,
        Some("disabled") => Some(false),
        Some("enabled" | "adaptive") => Some(true),
        Some(other) => return Err(ApiError::field("thinking", format!("thinking {other:?} is not known"))),
    };
    Conversation {
        continues: messages.last().is_some_and(|last: &Value| last["role"] == "assistant"),
        messages,
        constraint: choice.forced(&tools)?,
        tools: choice.offer(tools)?,
        options: Map::new(),
        thinking,
    }
    .check()
}

fn tool(tool: &Value) -> ApiResult<Value> {
    let name = tool.get("name").and_then(Value::as_str);
    let name = name.ok_or_else(|| ApiError::field("tools", "a tool has no name"))?;
    let schema = tool.get("input_schema");
    if schema.is_some_and(|schema| !schema.is_object()) {
        return Err(ApiError::field("tools", format!("input_schema of tool '{name}' must be an object")));
    }
    let mut function = json!({ "name": name });
    if let Some(description) = tool.get("description") {
        function["description"] = description.clone();
    }
    function["parameters"] = schema.cloned().unwrap_or_else(|| json!({ "type": "object" }));
    Ok(json!({ "type": "function", "function": function }))
}

/// A system prompt without what some clients write before it for their own accounts: it differs from request to request,
/// so that no prompt would begin like the one before, and says nothing to a model.
fn without_billing(system: &str) -> &str {
    let Some(mut rest) = system.strip_prefix("x-anthropic-billing-header:") else { return system };
    while let Some((field, after)) = rest.trim_start().split_once(';') {
        let named = field.split_once('=').is_some_and(|(name, _)| !name.is_empty());
        if !named || field.contains(char::is_whitespace) {
            break;
        }
        rest = after;
    }
    rest.trim_start()
}

/// The text of a string or of text blocks.
fn text_of(content: &Value, what: &str) -> ApiResult<String> {
    let wrong = |message: &str| ApiError::field("messages", format!("{what}: {message}"));
    match content {
        Value::String(text) => Ok(text.clone()),
        Value::Array(blocks) => {
            let text = |block: &Value| match (block["type"].as_str(), block["text"].as_str()) {
                (Some("text"), Some(text)) => Ok(text.to_owned()),
                _ => Err(wrong("only blocks of type text are supported")),
            };
            blocks.iter().map(text).collect()
        }
        _ => Err(wrong("expected text or a list of blocks")),
    }
}

/// One message, which may become several: results of tools are messages of their own in OpenAI's API.
fn convert(index: usize, item: &Value, messages: &mut Vec<Value>) -> ApiResult<()> {
    let what = format!("messages[{index}]");
    let wrong = |message: &str| ApiError::field("messages", format!("{what}: {message}"));
    let role = item["role"].as_str().filter(|role| matches!(*role, "user" | "assistant" | "system"));
    let role = role.ok_or_else(|| wrong("the role must be user or assistant"))?;
    let Some(Value::Array(blocks)) = item.get("content") else {
        messages.push(message(role, text_of(item.get("content").unwrap_or(&Value::Null), &what)?));
        return Ok(());
    };
    let (mut text, mut reasoning, mut calls) = (String::new(), String::new(), Vec::new());
    // Results of tools are messages already; a message of nothing else is not one more.
    let mut says = blocks.is_empty();
    for block in blocks {
        match block["type"].as_str() {
            Some("text") => {
                says = true;
                text.push_str(block["text"].as_str().ok_or_else(|| wrong("a text block has no text"))?)
            }
            Some("thinking") => reasoning.push_str(block["thinking"].as_str().unwrap_or_default()),
            Some("redacted_thinking") => {}
            Some("tool_use") if role == "assistant" => calls.push(json!({
                "id": block["id"],
                "type": "function",
                "function": { "name": block["name"], "arguments": block["input"].to_string() },
            })),
            Some("tool_result") if role == "user" => {
                let content = block.get("content").filter(|content| !content.is_null());
                let content = content.map_or(Ok(String::new()), |content| text_of(content, &what))?;
                messages.push(
                    json!({ "role": "tool", "tool_call_id": block["tool_use_id"], "content": content }),
                );
            }
            _ => return Err(wrong("only text, thinking, tool_use and tool_result blocks are supported")),
        }
    }
    if !says && calls.is_empty() && reasoning.is_empty() {
        return Ok(());
    }
    let mut whole = message(role, text);
    if !reasoning.is_empty() {
        whole["reasoning_content"] = reasoning.into();
    }
    if !calls.is_empty() {
        whole["tool_calls"] = calls.into();
    }
    messages.push(whole);
    Ok(())
}

/// Why an answer ended, in this API's words, and the text that ended it.
fn stop_reason(reason: &FinishReason, calls: usize) -> (&'static str, Value) {
    match reason {
        FinishReason::Length => ("max_tokens", Value::Null),
        FinishReason::Stop(text) => ("stop_sequence", text.as_str().into()),
        _ if calls > 0 => ("tool_use", Value::Null),
        _ => ("end_turn", Value::Null),
    }
}

fn call_block(call: &Call) -> Value {
    json!({ "type": "tool_use", "id": call.id, "name": call.name, "input": call.arguments })
}

async fn collect(events: Events, shape: &Shape) -> ApiResult {
    let Whole { answer, reason, totals } =
        assemble::collect(events, AnswerReader::new(&shape.prompt, ReasoningForm::Beside)).await?;
    let mut content = Vec::new();
    if !answer.reasoning.is_empty() {
        content.push(json!({ "type": "thinking", "thinking": answer.reasoning, "signature": "" }));
    }
    if !answer.text.is_empty() || answer.calls.is_empty() {
        content.push(json!({ "type": "text", "text": answer.text }));
    }
    content.extend(answer.calls.iter().map(call_block));
    let (reason, text) = stop_reason(&reason, answer.calls.len());
    let mut value = shape.message(content.into());
    value["stop_reason"] = reason.into();
    value["stop_sequence"] = text;
    value["usage"] = totals.anthropic();
    Ok(Json(value).into_response())
}

impl Shape {
    fn message(&self, content: Value) -> Value {
        json!({
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "model": self.model,
            "content": content,
            "stop_reason": null,
            "stop_sequence": null,
            "usage": { "input_tokens": self.prompt.ids.len(), "output_tokens": 0 },
        })
    }
}

/// What kind of block is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Open {
    Nothing,
    Thinking,
    Text,
}

/// Writes an answer as the API's events: blocks that begin, grow and end.
struct Writer {
    sender: Sender,
    shape: Shape,
    open: Open,
    block: usize,
}

impl Writer {
    fn new(sender: Sender, shape: Shape) -> Writer {
        Writer { sender, shape, open: Open::Nothing, block: 0 }
    }

    async fn event(&self, kind: &str, mut value: Value) -> Result<(), Gone> {
        value["type"] = kind.into();
        self.sender.event(kind, &value).await
    }

    /// Opens a block of a kind, unless it is open.
    async fn open(&mut self, kind: Open) -> Result<(), Gone> {
        if self.open == kind {
            return Ok(());
        }
        self.close().await?;
        let block = match kind {
            Open::Thinking => json!({ "type": "thinking", "thinking": "", "signature": "" }),
            Open::Text | Open::Nothing => json!({ "type": "text", "text": "" }),
        };
        self.open = kind;
        self.event("content_block_start", json!({ "index": self.block, "content_block": block })).await
    }

    async fn delta(&self, delta: Value) -> Result<(), Gone> {
        self.event("content_block_delta", json!({ "index": self.block, "delta": delta })).await
    }

    async fn close(&mut self) -> Result<(), Gone> {
        if self.open == Open::Nothing {
            return Ok(());
        }
        self.open = Open::Nothing;
        self.event("content_block_stop", json!({ "index": self.block })).await?;
        self.block += 1;
        Ok(())
    }
}

impl AnswerWriter for Writer {
    fn sender(&self) -> &Sender {
        &self.sender
    }

    async fn begin(&mut self) -> Result<(), Gone> {
        self.event("message_start", json!({ "message": self.shape.message(json!([])) })).await
    }

    async fn reasoning(&mut self, text: &str) -> Result<(), Gone> {
        self.open(Open::Thinking).await?;
        self.delta(json!({ "type": "thinking_delta", "thinking": text })).await
    }

    async fn text(&mut self, text: &str) -> Result<(), Gone> {
        self.open(Open::Text).await?;
        self.delta(json!({ "type": "text_delta", "text": text })).await
    }

    async fn call(&mut self, call: &Call) -> Result<(), Gone> {
        self.close().await?;
        let mut block = call_block(call);
        block["input"] = json!({});
        self.event("content_block_start", json!({ "index": self.block, "content_block": block })).await?;
        let arguments = call.arguments.to_string();
        self.delta(json!({ "type": "input_json_delta", "partial_json": arguments })).await?;
        self.event("content_block_stop", json!({ "index": self.block })).await?;
        self.block += 1;
        Ok(())
    }

    async fn end(&mut self, reason: &FinishReason, calls: usize, totals: &Totals) -> Result<(), Gone> {
        if self.block == 0 && self.open == Open::Nothing {
            self.open(Open::Text).await?;
        }
        self.close().await?;
        let (reason, text) = stop_reason(reason, calls);
        let delta = json!({ "stop_reason": reason, "stop_sequence": text });
        self.event("message_delta", json!({ "delta": delta, "usage": totals.anthropic() })).await?;
        self.event("message_stop", json!({})).await
    }

    async fn failed(&mut self, error: &ApiError) -> Result<(), Gone> {
        self.sender.event("error", &error.anthropic()).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(body: Value) -> ApiResult<Vec<Value>> {
        let body: MessagesRequest = serde_json::from_value(body).unwrap();
        conversation(&body).map(|conversation| conversation.messages)
    }

    #[test]
    fn blocks_become_messages_of_the_other_api() {
        let found = messages(json!({
            "system": [{"type": "text", "text": "Be brief."}],
            "messages": [
                {"role": "user", "content": "Weather?"},
                {"role": "assistant", "content": [
                    {"type": "thinking", "thinking": "I look.", "signature": ""},
                    {"type": "tool_use", "id": "a", "name": "weather", "input": {"city": "Bonn"}},
                ]},
                {"role": "user", "content": [
                    {"type": "tool_result", "tool_use_id": "a", "content": "rain"},
                    {"type": "text", "text": "Well?"},
                ]},
            ],
        }))
        .unwrap();
        let roles: Vec<&str> = found.iter().filter_map(|message| message["role"].as_str()).collect();
        assert_eq!(roles, ["system", "user", "assistant", "tool", "user"]);
        assert_eq!(found[2]["reasoning_content"], "I look.");
        assert_eq!(found[2]["tool_calls"][0]["function"]["arguments"], "{\"city\":\"Bonn\"}");
        assert_eq!(found[3]["content"], "rain");
    }

    #[test]
    fn what_clients_write_for_their_accounts_is_no_part_of_the_prompt() {
        let head = "x-anthropic-billing-header: cc_version=2.1.101.e51; cc_entrypoint=cli; cch=a5145;";
        for (system, left) in [
            (format!("{head}You are a frog."), "You are a frog."),
            (format!("{head}\n\nYou are a frog; be a frog."), "You are a frog; be a frog."),
            (head.to_owned(), ""),
            ("You are a frog; a=b;".to_owned(), "You are a frog; a=b;"),
        ] {
            assert_eq!(without_billing(&system), left);
        }
    }

    #[test]
    fn tools_that_the_service_would_run_are_not_offered() {
        let body = json!({
            "messages": [{"role": "user", "content": "Weather?"}],
            "tools": [{"type": "web_search_20250305", "name": "web_search"}, {"name": "weather", "input_schema": {}},
                {"type": "custom", "name": "wind", "input_schema": {}}],
        });
        let tools = conversation(&serde_json::from_value(body).unwrap()).unwrap().tools;
        let names: Vec<&Value> = tools.iter().map(|tool| &tool["function"]["name"]).collect();
        assert_eq!(names, ["weather", "wind"]);
    }

    #[test]
    fn unknown_blocks_and_roles_are_refused() {
        for content in [
            json!([{"type": "image", "source": {}}]),
            json!([{"type": "tool_use"}]),
            json!(5),
            json!([{"type": "text"}]),
        ] {
            assert!(messages(json!({"messages": [{"role": "user", "content": content}]})).is_err());
        }
        assert!(messages(json!({"messages": [{"role": "king", "content": "x"}]})).is_err());
        assert!(messages(json!({"messages": []})).is_err());
    }
}
