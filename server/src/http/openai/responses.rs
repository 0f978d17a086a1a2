//! `/v1/responses`, without memory: every request brings the whole conversation.

use axum::Json;
use axum::extract::State;
use axum::response::IntoResponse;
use millpond::engine::{FinishReason, Request};
use millpond::sample::grammar::GrammarSource;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::response_stream::Writer;
use crate::http::answer::{AnswerReader, Call};
use crate::http::assemble::{self, Whole};
use crate::http::body::JsonBody;
use crate::http::chat_input::{self, ChatPrompt, Conversation, ToolChoice, message};
use crate::http::config::ReasoningForm;
use crate::http::constraint::ConstraintFields;
use crate::http::error::{ApiError, ApiResult};
use crate::http::events::Events;
use crate::http::ids;
use crate::http::integer;
use crate::http::object;
use crate::http::params::{GenerationFields, token_count};
use crate::http::sse::{self, Framing};
use crate::http::state::{AppState, Served};
use crate::http::usage::Totals;

/// The body of a request.
#[derive(Debug, Deserialize)]
pub(crate) struct ResponsesRequest {
    model: Option<String>,
    input: Value,
    instructions: Option<String>,
    #[serde(default, deserialize_with = "integer::maybe")]
    max_output_tokens: Option<i64>,
    temperature: Option<f64>,
    top_p: Option<f64>,
    tools: Option<Vec<Value>>,
    tool_choice: Option<Value>,
    parallel_tool_calls: Option<bool>,
    #[serde(default, deserialize_with = "object::maybe")]
    text: Option<TextOptions>,
    #[serde(default, deserialize_with = "object::maybe")]
    reasoning: Option<ReasoningOptions>,
    stream: Option<bool>,
    previous_response_id: Option<String>,
    conversation: Option<Value>,
    metadata: Option<Map<String, Value>>,
}

#[derive(Clone, Debug, Deserialize)]
struct TextOptions {
    format: Option<Value>,
}

#[derive(Clone, Debug, Deserialize)]
struct ReasoningOptions {
    effort: Option<String>,
}

/// What an answer needs to be written.
pub(super) struct Shape {
    pub(super) prompt: ChatPrompt,
    /// The response as far as it is known before the answer.
    pub(super) frame: Value,
}

/// Answers.
pub(crate) async fn create(
    State(state): State<AppState>,
    JsonBody(body): JsonBody<ResponsesRequest>,
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
    collect(events, shape).await
}

fn begin(served: &Served, body: ResponsesRequest) -> ApiResult<(Events, Shape)> {
    if body.previous_response_id.is_some() || body.conversation.as_ref().is_some_and(|value| !value.is_null())
    {
        return Err(ApiError::field(
            "previous_response_id",
            "this server keeps no responses: send the whole conversation as input",
        ));
    }
    let mut conversation = conversation(&body)?;
    conversation.constrain(constraint(&body)?)?;
    let limit = token_count("max_output_tokens", body.max_output_tokens)?;
    let fields =
        GenerationFields { temperature: body.temperature, top_p: body.top_p, ..GenerationFields::default() };
    let (prompt, request) = conversation.request(served, &fields, limit)?;
    let frame = frame(served, &body, &request);
    Ok((served.submit(vec![request], 1)?, Shape { prompt, frame }))
}

fn constraint(body: &ResponsesRequest) -> ApiResult<Option<GrammarSource>> {
    let Some(format) = format(body) else { return Ok(None) };
    let fields: ConstraintFields = serde_json::from_value(json!({ "response_format": format }))
        .map_err(|error| ApiError::field("text", error.to_string()))?;
    fields.source()
}

/// The form of the text that the request asks for.
fn format(body: &ResponsesRequest) -> Option<Value> {
    body.text.as_ref()?.format.clone().filter(|format| !format.is_null())
}

fn frame(served: &Served, body: &ResponsesRequest, request: &Request) -> Value {
    json!({
        "id": ids::unique("resp_"),
        "object": "response",
        "created_at": ids::now(),
        "status": "in_progress",
        "error": null,
        "incomplete_details": null,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "model": served.name(),
        "output": [],
        "parallel_tool_calls": body.parallel_tool_calls.unwrap_or(true),
        "previous_response_id": null,
        "reasoning": { "effort": body.reasoning.as_ref().and_then(|options| options.effort.clone()), "summary": null },
        "store": false,
        "temperature": request.sampling.temperature,
        "text": { "format": format(body).unwrap_or_else(|| json!({ "type": "text" })) },
        "tool_choice": body.tool_choice.clone().filter(|choice| !choice.is_null()).unwrap_or_else(|| "auto".into()),
        "tools": body.tools.clone().unwrap_or_default(),
        "top_p": request.sampling.top_p,
        "truncation": "disabled",
        "usage": null,
        "metadata": body.metadata.clone().unwrap_or_default(),
    })
}

/// Brings the input into the form of the chat API.
fn conversation(body: &ResponsesRequest) -> ApiResult<Conversation> {
    let mut messages = Vec::new();
    if let Some(text) = body.instructions.as_deref().filter(|text| !text.is_empty()) {
        messages.push(message("system", text));
    }
    match &body.input {
        Value::String(text) => messages.push(message("user", text.as_str())),
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                convert(index, item, &mut messages)?;
            }
        }
        _ => return Err(ApiError::field("input", "input must be text or a list of items")),
    }
    let tools = body.tools.iter().flatten().filter_map(|found| tool(found).transpose());
    let tools = tools.collect::<ApiResult<Vec<Value>>>()?;
    let choice = choice(body.tool_choice.as_ref())?;
    let effort = body.reasoning.as_ref().and_then(|options| options.effort.as_deref());
    Conversation {
        continues: false,
        messages,
        constraint: choice.forced(&tools)?,
        tools: choice.offer(tools)?,
        options: Map::new(),
        thinking: chat_input::thinks(effort),
    }
    .check()
}

/// Tools here are flat; templates know them wrapped. Those that the service itself would run are not offered to the model.
fn tool(tool: &Value) -> ApiResult<Option<Value>> {
    match tool["type"].as_str() {
        Some("function") => {}
        Some(_) => return Ok(None),
        None => return Err(ApiError::field("tools", "a tool has no type")),
    }
    let mut function = tool.clone();
    if let Some(fields) = function.as_object_mut() {
        fields.remove("type");
    }
    Ok(Some(json!({ "type": "function", "function": function })))
}

/// A named tool is flat here, too.
fn choice(choice: Option<&Value>) -> ApiResult<ToolChoice> {
    match choice {
        None | Some(Value::Null) => Ok(ToolChoice::default()),
        Some(choice) => match (choice["type"].as_str(), choice["name"].as_str()) {
            (Some("function"), Some(name)) => Ok(ToolChoice::named(name)),
            _ => serde_json::from_value(choice.clone())
                .map_err(|_| ApiError::field("tool_choice", "tool_choice must be a mode or name a function")),
        },
    }
}

/// The thoughts of a reasoning item, whole or else in summary.
fn thoughts(item: &Value) -> String {
    let texts = |list: &Value| -> String {
        list.as_array().into_iter().flatten().filter_map(|part| part["text"].as_str()).collect()
    };
    let whole = texts(&item["content"]);
    if whole.is_empty() { texts(&item["summary"]) } else { whole }
}

/// The message of the assistant that goes on with what came before: thoughts, text and calls of one turn are items here
/// and one message in templates.
fn turn(messages: &mut Vec<Value>) -> &mut Value {
    if messages.last().is_none_or(|last| last["role"] != "assistant") {
        messages.push(json!({ "role": "assistant", "content": "" }));
    }
    let last = messages.len() - 1;
    &mut messages[last]
}

fn convert(index: usize, item: &Value, messages: &mut Vec<Value>) -> ApiResult<()> {
    let wrong = |what: &str| ApiError::field("input", format!("input[{index}]: {what}"));
    let kind = item.get("type").filter(|kind| !kind.is_null());
    if kind.is_some_and(|kind| !kind.is_string()) {
        return Err(wrong("the type is no text"));
    }
    match kind.and_then(Value::as_str) {
        Some("function_call") => {
            let call = json!({
                "id": item["call_id"],
                "type": "function",
                "function": { "name": item["name"], "arguments": item["arguments"] },
            });
            let turn = turn(messages);
            match turn["tool_calls"].as_array_mut() {
                Some(calls) => calls.push(call),
                None => turn["tool_calls"] = json!([call]),
            }
        }
        Some("function_call_output") => {
            let output = item.get("output").cloned().ok_or_else(|| wrong("no output"))?;
            messages.push(json!({ "role": "tool", "tool_call_id": item["call_id"], "content": output }));
        }
        // Templates decide which thoughts a model sees again; those between its calls of tools, as a rule.
        Some("reasoning") => {
            let thoughts = thoughts(item);
            if !thoughts.is_empty() {
                messages.push(json!({ "role": "assistant", "content": "", "reasoning_content": thoughts }));
            }
        }
        None | Some("message") => {
            let role = item["role"].as_str().ok_or_else(|| wrong("no role"))?;
            let only_thought = |last: &&mut Value| {
                last["role"] == "assistant" && last["content"] == "" && last.get("tool_calls").is_none()
            };
            match messages.last_mut().filter(|_| role == "assistant").filter(only_thought) {
                Some(thought) => thought["content"] = item["content"].clone(),
                None => messages.push(message(role, item["content"].clone())),
            }
        }
        Some(_) => return Err(wrong("items of that type are not supported")),
    }
    Ok(())
}

async fn collect(events: Events, shape: Shape) -> ApiResult {
    let Whole { answer, reason, totals } =
        assemble::collect(events, AnswerReader::new(&shape.prompt, ReasoningForm::Beside)).await?;
    let mut output = Vec::new();
    if !answer.reasoning.is_empty() {
        output.push(reasoning_item(&ids::unique("rs_"), &answer.reasoning));
    }
    if !answer.text.is_empty() || answer.calls.is_empty() {
        output.push(message_item(&ids::unique("msg_"), "completed", &[text_part(&answer.text)]));
    }
    output.extend(answer.calls.iter().map(|call| call_item(&ids::unique("fc_"), call, "completed")));
    Ok(Json(finished(shape.frame, output, &reason, &totals)).into_response())
}

/// The whole response.
pub(super) fn finished(
    mut frame: Value,
    output: Vec<Value>,
    reason: &FinishReason,
    totals: &Totals,
) -> Value {
    let complete = *reason != FinishReason::Length;
    frame["status"] = if complete { "completed" } else { "incomplete" }.into();
    if !complete {
        frame["incomplete_details"] = json!({ "reason": "max_output_tokens" });
    }
    frame["output"] = output.into();
    frame["usage"] = totals.responses();
    frame["timings"] = totals.timings();
    frame
}

pub(super) fn text_part(text: &str) -> Value {
    json!({ "type": "output_text", "text": text, "annotations": [], "logprobs": [] })
}

pub(super) fn message_item(id: &str, status: &str, content: &[Value]) -> Value {
    json!({ "type": "message", "id": id, "status": status, "role": "assistant", "content": content })
}

pub(super) fn reasoning_item(id: &str, text: &str) -> Value {
    json!({
        "type": "reasoning", "id": id, "summary": [], "content": [{ "type": "reasoning_text", "text": text }],
    })
}

pub(super) fn call_item(id: &str, call: &Call, status: &str) -> Value {
    json!({
        "type": "function_call", "id": id, "call_id": call.id, "name": call.name,
        "arguments": call.arguments.to_string(), "status": status,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(body: Value) -> ApiResult<Vec<Value>> {
        let body: ResponsesRequest = serde_json::from_value(body).unwrap();
        conversation(&body).map(|conversation| conversation.messages)
    }

    #[test]
    fn items_become_messages() {
        let found = messages(json!({ "instructions": "Be brief.", "input": [
            { "role": "user", "content": [{ "type": "input_text", "text": "Weather?" }] },
            { "type": "reasoning", "id": "r", "summary": [], "content": [{ "type": "reasoning_text", "text": "Look." }] },
            { "type": "function_call", "call_id": "a", "name": "weather", "arguments": "{}" },
            { "type": "function_call", "call_id": "b", "name": "wind", "arguments": "{}" },
            { "type": "function_call_output", "call_id": "a", "output": "rain" },
        ]}))
        .unwrap();
        let roles: Vec<&str> = found.iter().filter_map(|message| message["role"].as_str()).collect();
        assert_eq!(roles, ["system", "user", "assistant", "tool"]);
        assert_eq!(found[2]["tool_calls"].as_array().unwrap().len(), 2);
        assert_eq!(found[2]["reasoning_content"], "Look.");
        let found = messages(json!({ "input": [
            { "role": "user", "content": "Weather?" },
            { "type": "reasoning", "id": "r", "summary": [{ "type": "summary_text", "text": "Guess." }] },
            { "type": "message", "role": "assistant", "content": "Rain." },
            { "type": "reasoning", "id": "s", "summary": [] },
            { "type": "message", "role": "assistant", "content": "Or sun." },
        ]}))
        .unwrap();
        let texts: Vec<&Value> = found.iter().map(|message| &message["content"]).collect();
        assert_eq!(texts, ["Weather?", "Rain.", "Or sun."]);
        assert_eq!(found[1]["reasoning_content"], "Guess.");
    }

    #[test]
    fn tools_that_are_no_functions_are_not_offered() {
        let function = json!({ "type": "function", "name": "weather", "parameters": {} });
        let body = |choice: Value| {
            let tools = json!([{ "type": "web_search" }, function]);
            let body = json!({ "input": "Weather?", "tools": tools, "tool_choice": choice });
            conversation(&serde_json::from_value(body).unwrap())
        };
        assert_eq!(body(Value::Null).unwrap().tools.len(), 1);
        let named = body(json!({ "type": "function", "name": "weather" })).unwrap();
        assert!(named.constraint.is_some());
        for wrong in
            [json!({ "type": "function", "name": "wind" }), json!({ "type": "web_search" }), json!("x")]
        {
            assert!(body(wrong.clone()).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for input in
            [json!(5), json!([]), json!([{"type": "item_reference", "id": "x"}]), json!([{"content": "x"}])]
        {
            assert!(messages(json!({ "input": input })).is_err(), "{input}");
        }
    }
}
