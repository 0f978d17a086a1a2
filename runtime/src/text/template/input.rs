//! What a template is given, and the conversions that some templates need.

use super::{ChatTemplate, ControlTokens, TemplateError, TemplateTokens};
use minijinja::value::Value;
use serde_json::{Map, Value as Json, json};
use std::time::SystemTime;

/// A chat to render. Messages, tools and options are JSON as clients send it; templates look into them by name.
#[derive(Debug, Clone, Default)]
pub struct ChatInput<'a> {
    /// Objects with a `role` and usually a `content` (text, null, or a list of parts), `tool_calls`,
    /// `reasoning_content`, ...
    pub messages: &'a [Json],
    /// Tool definitions, `{"type": "function", "function": {...}}`.
    pub tools: Option<&'a [Json]>,
    /// Whether the text ends where the assistant's answer begins.
    pub add_generation_prompt: bool,
    /// Further variables, such as `enable_thinking`.
    pub options: Map<String, Json>,
    /// Whether messages may be converted to what the template can read: lists of text parts joined and null made empty
    /// where it only takes strings, arguments of calls parsed where it only takes objects. Servers want this; without it
    /// the template gets the messages as they are, as in transformers.
    pub convert: bool,
    /// What `strftime_now` takes for now; the system's clock if `None`.
    pub now: Option<SystemTime>,
}

/// The text of a message's `content`: the string itself, or the text parts of a list joined; empty for null.
#[must_use]
pub fn content_text(content: &Json) -> String {
    match content {
        Json::String(text) => text.clone(),
        Json::Array(parts) => {
            parts.iter().filter_map(|part| part.get("text").and_then(Json::as_str)).collect()
        }
        _ => String::new(),
    }
}

impl ChatInput<'_> {
    pub(super) fn check(&self) -> Result<(), TemplateError> {
        if self.messages.is_empty() {
            return Err(TemplateError::NoMessages);
        }
        let without_role = |message: &Json| message.get("role").and_then(Json::as_str).is_none();
        match self.messages.iter().position(without_role) {
            Some(index) => Err(TemplateError::Message { index, field: "role" }),
            None => Ok(()),
        }
    }

    /// Bytes of all texts and keys that the template will see.
    pub(super) fn bytes(&self) -> usize {
        let tools = self.tools.unwrap_or_default();
        let options = self.options.values();
        self.messages.iter().chain(tools).chain(options).map(json_bytes).sum()
    }

    /// Number of messages and tools.
    pub(super) fn items(&self) -> usize {
        self.messages.len() + self.tools.map_or(0, <[Json]>::len)
    }

    pub(super) fn context(
        &self,
        tokens: &TemplateTokens,
        conversions: Conversions,
        marks: Option<&ControlTokens>,
    ) -> Value {
        let marked = |value: &Json| match marks {
            Some(marks) => mark_strings(value, marks),
            None => value.clone(),
        };
        let message = |message: &Json| {
            let written_by_model = message.get("role").and_then(Json::as_str) == Some("assistant");
            let message = if written_by_model { message.clone() } else { marked(message) };
            if self.convert { conversions.apply(message) } else { message }
        };
        let mut context = self.options.clone();
        let messages = self.messages.iter().map(message).collect();
        context.insert("messages".into(), Json::Array(messages));
        let tools = self.tools.map(|tools| tools.iter().map(marked).collect());
        context.insert("tools".into(), tools.map_or(Json::Null, Json::Array));
        context.insert("documents".into(), Json::Null);
        context.insert("add_generation_prompt".into(), self.add_generation_prompt.into());
        let named = [("bos_token", &tokens.bos), ("eos_token", &tokens.eos), ("pad_token", &tokens.pad)];
        for (name, text) in named {
            if let Some(text) = text {
                context.entry(name).or_insert_with(|| text.as_str().into());
            }
        }
        to_template(&Json::Object(context))
    }
}

/// JSON as the engine's value, keys in their order.
fn to_template(value: &Json) -> Value {
    match value {
        Json::Null => Value::from(()),
        Json::Bool(flag) => Value::from(*flag),
        Json::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(integer), _) => Value::from(integer),
            (None, Some(integer)) => Value::from(integer),
            (None, None) => Value::from(number.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(text) => Value::from(text.as_str()),
        Json::Array(items) => items.iter().map(to_template).collect(),
        Json::Object(fields) => {
            Value::from_pairs(fields.iter().map(|(key, value)| (key.as_str(), to_template(value))))
        }
    }
}

fn json_bytes(value: &Json) -> usize {
    match value {
        Json::String(text) => text.len(),
        Json::Array(items) => items.iter().map(|item| 16 + json_bytes(item)).sum(),
        Json::Object(fields) => fields.iter().map(|(key, value)| 16 + key.len() + json_bytes(value)).sum(),
        Json::Null | Json::Bool(_) | Json::Number(_) => 16,
    }
}

fn mark_strings(value: &Json, marks: &ControlTokens) -> Json {
    match value {
        Json::String(text) => Json::String(marks.mark(text)),
        Json::Array(items) => Json::Array(items.iter().map(|item| mark_strings(item, marks)).collect()),
        Json::Object(fields) => {
            let mark = |(key, value): (&String, &Json)| (key.clone(), mark_strings(value, marks));
            Json::Object(fields.iter().map(mark).collect())
        }
        other => other.clone(),
    }
}

/// Differences between what clients send and what a template can read, found out by trying.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Conversions {
    /// The template takes only strings as `content`: lists of parts are joined and null becomes empty.
    joined_content: bool,
    /// The template takes only objects as `arguments` of a call, which the API sends as text.
    parsed_arguments: bool,
}

impl Conversions {
    pub(super) fn none() -> Self {
        Self { joined_content: false, parsed_arguments: false }
    }

    /// Renders two small chats to see what the template makes of them.
    pub(super) fn probe(template: &ChatTemplate) -> Self {
        let parts = [json!({"role": "user", "content": [{"type": "text", "text": "probe-text"}]})];
        let call = json!({"name": "probe", "arguments": "{\"probe-key\": 1}"});
        let calls = json!([{"id": "call-1", "type": "function", "function": call}]);
        let arguments = [
            json!({"role": "user", "content": "probe-text"}),
            json!({"role": "assistant", "content": "probe-text", "tool_calls": calls}),
        ];
        // A list that a template merely prints comes out as a Python list, with the quotes and keys of its parts.
        let reads_parts = render(template, &parts)
            .is_some_and(|text| text.contains("probe-text") && !text.contains("'text'"));
        let reads_arguments = render(template, &arguments).is_some_and(|text| text.contains("probe-key"));
        Self { joined_content: !reads_parts, parsed_arguments: !reads_arguments }
    }

    fn apply(self, mut message: Json) -> Json {
        if self.joined_content
            && let Some(content) = message.get_mut("content")
            && !content.is_string()
        {
            *content = Json::String(content_text(content));
        }
        if self.parsed_arguments
            && let Some(calls) = message.get_mut("tool_calls").and_then(Json::as_array_mut)
        {
            calls.iter_mut().for_each(parse_arguments);
        }
        message
    }
}

fn render(template: &ChatTemplate, messages: &[Json]) -> Option<String> {
    template.render(&ChatInput { messages, ..ChatInput::default() }).ok()
}

/// Replaces the text of `arguments` by the object it denotes; text that denotes none stays as it is.
fn parse_arguments(call: &mut Json) {
    let call = match call.get_mut("function") {
        Some(function) => function,
        None => call,
    };
    let Some(arguments) = call.get_mut("arguments") else { return };
    if let Some(object) =
        arguments.as_str().and_then(|text| serde_json::from_str::<Map<String, Json>>(text).ok())
    {
        *arguments = Json::Object(object);
    }
}
