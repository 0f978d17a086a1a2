//! Finding tool calls in what a model writes, leniently and while it streams.
//!
//! Two forms are in use, both between `<tool_call>` and `</tool_call>`: a JSON object with `name` and `arguments`, and
//! `<function=NAME>` with `<parameter=NAME>` elements. Models get them wrong in many ways, above all in the closing tags. What
//! can still be understood is; what cannot is passed on as text, never lost and never an error.

use super::reasoning::tag_beginning;
use serde_json::{Map, Value};
use std::collections::HashMap;

/// A call of a tool.
#[derive(Debug, Clone, PartialEq)]
pub struct ToolCall {
    /// Name of the function.
    pub name: String,
    /// Its arguments.
    pub arguments: Map<String, Value>,
}

/// A piece of an answer.
#[derive(Debug, Clone, PartialEq)]
pub enum CallPart {
    /// Text.
    Text(String),
    /// A complete call.
    Call(ToolCall),
    /// What stood in the place of a call and could not be understood, tags included. Clients get it as text; a server
    /// may want to log it.
    Malformed(String),
}

/// Types of parameters by function and parameter name, from the tools' schemas. The XML form writes all values as text,
/// and `5` is a number or a string depending on what the tool asks for.
#[derive(Debug, Clone, Default)]
pub struct ParameterTypes {
    strings: HashMap<(String, String), bool>,
}

impl ParameterTypes {
    /// From tool definitions, `{"type": "function", "function": {"name", "parameters": {"properties": ...}}}`.
    #[must_use]
    pub fn of(tools: &[Value]) -> Self {
        let mut strings = HashMap::new();
        for tool in tools {
            let function = tool.get("function").unwrap_or(tool);
            let name = function.get("name").and_then(Value::as_str);
            let properties = function.pointer("/parameters/properties").and_then(Value::as_object);
            let (Some(name), Some(properties)) = (name, properties) else { continue };
            for (parameter, schema) in properties {
                strings.insert((name.to_owned(), parameter.clone()), is_string(schema));
            }
        }
        Self { strings }
    }

    /// The value that `text` denotes: text for parameters of type string, else JSON where it is JSON.
    fn value(&self, function: &str, parameter: &str, text: &str) -> Value {
        let declared = self.strings.get(&(function.to_owned(), parameter.to_owned())).copied();
        if declared == Some(true) {
            return Value::String(text.to_owned());
        }
        let trimmed = text.trim();
        match (serde_json::from_str(trimmed), trimmed) {
            (Ok(value), _) => value,
            // The template prints Python's words.
            (Err(_), "True") => Value::Bool(true),
            (Err(_), "False") => Value::Bool(false),
            (Err(_), "None") => Value::Null,
            (Err(_), _) => Value::String(text.to_owned()),
        }
    }
}

fn is_string(schema: &Value) -> bool {
    match schema.get("type") {
        Some(Value::String(name)) => name == "string",
        Some(Value::Array(names)) => {
            names.iter().all(|name| name == "string" || name == "null") && !names.is_empty()
        }
        _ => schema
            .get("enum")
            .and_then(Value::as_array)
            .is_some_and(|values| values.iter().all(Value::is_string)),
    }
}

const OPEN: &str = "<tool_call>";
const CLOSE: &str = "</tool_call>";
const FUNCTION: &str = "<function=";
const FUNCTION_END: &str = "</function>";
const PARAMETER: &str = "<parameter=";
const PARAMETER_END: &str = "</parameter>";
/// A call that has not ended by then is text.
const MAX_CALL_BYTES: usize = 1 << 20;

/// Opening tags within a call that are looked at, since each costs reading the call so far.
const MAX_OPENS: usize = 16;

/// Finds calls in a stream of text. Text outside of calls passes at once, but for what may become an opening tag; a call
/// is held until it is complete. White space around calls belongs to the format and is dropped.
#[derive(Debug, Clone, Default)]
pub struct ToolCallParser {
    types: ParameterTypes,
    held: String,
    in_call: bool,
    after_call: bool,
    /// White space before the held call, for the case that it is none.
    space: String,
    /// Up to where the held call has been searched for its end.
    searched: usize,
    /// How many opening tags were met in it.
    opens: usize,
}

impl ToolCallParser {
    /// A parser that reads values by these types.
    #[must_use]
    pub fn new(types: ParameterTypes) -> Self {
        Self { types, ..Self::default() }
    }

    /// Takes more text and appends what is decided to `parts`.
    pub fn push(&mut self, text: &str, parts: &mut Vec<CallPart>) {
        self.held.push_str(text);
        while if self.in_call { self.close(parts) } else { self.open(parts) } {}
    }

    /// Ends the answer: a call without its closing tag is understood if it is complete otherwise.
    pub fn flush(&mut self, parts: &mut Vec<CallPart>) {
        self.skip_space_after_call();
        let rest = std::mem::take(&mut self.held);
        if self.in_call {
            self.finish(&rest, rest.strip_prefix(OPEN).unwrap_or(&rest), parts);
        } else {
            emit_text(parts, &rest);
        }
        *self = Self::new(std::mem::take(&mut self.types));
    }

    fn skip_space_after_call(&mut self) {
        if self.after_call && !self.in_call {
            let space = self.held.len() - self.held.trim_start().len();
            self.held.drain(..space);
            self.after_call = self.held.is_empty();
        }
    }

    /// Passes text up to the next call. False if more text is needed.
    fn open(&mut self, parts: &mut Vec<CallPart>) -> bool {
        self.skip_space_after_call();
        // The bare form without the outer tags is a call too.
        let starts = [OPEN, FUNCTION].iter().filter_map(|tag| self.held.find(tag));
        let start = starts.min();
        let tag =
            || self.held.len() - tag_beginning(&self.held, OPEN).max(tag_beginning(&self.held, FUNCTION));
        let end = start.unwrap_or_else(tag);
        let sure = self.held[..end].trim_end().len();
        emit_text(parts, &self.held[..sure]);
        if start.is_some() {
            self.space = self.held[sure..end].to_owned();
            self.held.drain(..end);
            self.in_call = true;
            self.searched = 0;
            self.opens = 0;
        } else {
            self.held.drain(..sure);
        }
        start.is_some()
    }

    /// Takes a call from the beginning of what is held. False if more text is needed.
    fn close(&mut self, parts: &mut Vec<CallPart>) -> bool {
        let from = if self.held.starts_with(OPEN) { OPEN.len() } else { 0 };
        let Some((end, after)) = self.end_of_call(from) else { return false };
        let raw: String = self.held.drain(..after).collect();
        self.finish(&raw, &raw[from..end], parts);
        self.in_call = false;
        true
    }

    /// Where the body of the held call ends and where the text goes on. Tags are looked at in their order and each once, so
    /// that it makes no difference when they arrive.
    fn end_of_call(&mut self, from: usize) -> Option<(usize, usize)> {
        let limit = floor_boundary(&self.held, self.held.len().min(MAX_CALL_BYTES));
        self.searched = self.searched.max(from);
        while let Some(place) = self.held[self.searched..limit].find('<') {
            let place = self.searched + place;
            let rest = &self.held[place..limit];
            if from == 0 && rest.starts_with(FUNCTION_END) {
                return Some((place, place + FUNCTION_END.len()));
            }
            if from > 0 && rest.starts_with(CLOSE) {
                return Some((place, place + CLOSE.len()));
            }
            // A second opening tag ends a call that lacks its closing one.
            if from > 0 && rest.starts_with(OPEN) && self.opens < MAX_OPENS {
                self.opens += 1;
                if !parse_body(&self.held[from..place], &self.types).is_empty() {
                    return Some((place, place));
                }
            }
            let begins = |tag: &&str| rest.len() < tag.len() && tag.starts_with(rest);
            if self.held.len() < MAX_CALL_BYTES && [CLOSE, OPEN, FUNCTION_END].iter().any(begins) {
                self.searched = place;
                return None; // the tag is not complete yet
            }
            self.searched = place + 1;
        }
        self.searched = limit;
        (self.held.len() >= MAX_CALL_BYTES).then_some((limit, limit))
    }

    /// Emits the calls of `body`, or `raw` as it was written if there are none.
    fn finish(&mut self, raw: &str, body: &str, parts: &mut Vec<CallPart>) {
        let calls = parse_body(body, &self.types);
        if calls.is_empty() {
            emit_text(parts, &self.space);
            parts.push(CallPart::Malformed(raw.to_owned()));
        } else {
            parts.extend(calls.into_iter().map(CallPart::Call));
            self.after_call = true;
        }
        self.space.clear();
    }
}

fn floor_boundary(text: &str, mut place: usize) -> usize {
    while !text.is_char_boundary(place) {
        place -= 1;
    }
    place
}

fn emit_text(parts: &mut Vec<CallPart>, text: &str) {
    if text.is_empty() {
        return;
    }
    match parts.last_mut() {
        Some(CallPart::Text(last)) => last.push_str(text),
        _ => parts.push(CallPart::Text(text.to_owned())),
    }
}

/// The calls between the outer tags; none if they cannot be understood.
fn parse_body(body: &str, types: &ParameterTypes) -> Vec<ToolCall> {
    if body.contains(FUNCTION) {
        return parse_elements(body, types);
    }
    parse_json(body)
}

/// One JSON object, or several one after the other, or a list of them, possibly in a code fence.
fn parse_json(body: &str) -> Vec<ToolCall> {
    let mut text = body.trim();
    if let Some(fenced) = text.strip_prefix("```") {
        text = fenced.trim_start_matches(|c: char| c.is_ascii_alphanumeric()).trim_end_matches('`').trim();
    }
    let mut calls = Vec::new();
    for value in serde_json::Deserializer::from_str(text).into_iter::<Value>() {
        let values = match value {
            Ok(Value::Array(values)) => values,
            Ok(value) => vec![value],
            Err(_) => return Vec::new(),
        };
        for value in values {
            match json_call(&value) {
                Some(call) => calls.push(call),
                None => return Vec::new(),
            }
        }
    }
    calls
}

fn json_call(value: &Value) -> Option<ToolCall> {
    let function = value.get("function").filter(|function| function.is_object()).unwrap_or(value);
    let name = function.get("name").or_else(|| function.get("function"))?.as_str()?.trim();
    let arguments = function.get("arguments").or_else(|| function.get("parameters"));
    let arguments = match arguments {
        None | Some(Value::Null) => Map::new(),
        Some(Value::Object(arguments)) => arguments.clone(),
        Some(Value::String(text)) if text.trim().is_empty() => Map::new(),
        Some(Value::String(text)) => serde_json::from_str(text).ok()?,
        Some(_) => return None,
    };
    (!name.is_empty()).then(|| ToolCall { name: name.to_owned(), arguments })
}

/// `<function=NAME>` elements. Each goes to the next one, whatever tags close it.
fn parse_elements(body: &str, types: &ParameterTypes) -> Vec<ToolCall> {
    let mut calls = Vec::new();
    for element in body.split(FUNCTION).skip(1) {
        let Some((name, rest)) = tag_name(element) else { return Vec::new() };
        let mut arguments = Map::new();
        for parameter in rest.split(PARAMETER).skip(1) {
            let Some((parameter, text)) = tag_name(parameter) else { return Vec::new() };
            let value = types.value(name, parameter, parameter_text(text));
            arguments.insert(parameter.to_owned(), value);
        }
        calls.push(ToolCall { name: name.to_owned(), arguments });
    }
    calls
}

/// `NAME>rest`, with quotes around the name if the model put some.
fn tag_name(text: &str) -> Option<(&str, &str)> {
    let (name, rest) = text.split_once('>')?;
    let name = name.trim().trim_matches(['"', '\'']).trim_end_matches('/').trim();
    let fits = !name.is_empty() && !name.contains(['<', '\n']);
    fits.then_some((name, rest))
}

/// The value in the text after an opening tag. The template puts a line break on either side of it. Its end is its closing
/// tag (the last, if the model wrote it twice), or a wrong one that models write instead, or the end of the element.
fn parameter_text(text: &str) -> &str {
    let ends = [PARAMETER_END, FUNCTION_END];
    let mut value = match text.rfind(PARAMETER_END) {
        Some(end) => &text[..end],
        None => text.find(FUNCTION_END).map_or(text, |end| &text[..end]),
    };
    while let Some(shorter) = ends.iter().find_map(|tag| value.trim_end().strip_suffix(tag)) {
        value = shorter;
    }
    let value = value.strip_prefix("\r\n").or_else(|| value.strip_prefix('\n')).unwrap_or(value);
    value.strip_suffix("\r\n").or_else(|| value.strip_suffix('\n')).unwrap_or(value)
}

/// Splits a whole answer into its text, the calls in it joined out, and the calls. What could not be understood is text.
#[must_use]
pub fn find_tool_calls(answer: &str, types: ParameterTypes) -> (String, Vec<ToolCall>) {
    let mut parser = ToolCallParser::new(types);
    let mut parts = Vec::new();
    parser.push(answer, &mut parts);
    parser.flush(&mut parts);
    let (mut text, mut calls) = (String::new(), Vec::new());
    for part in parts {
        match part {
            CallPart::Text(piece) | CallPart::Malformed(piece) => text.push_str(&piece),
            CallPart::Call(call) => calls.push(call),
        }
    }
    (text, calls)
}
