//! Conversations: checked, rendered by the model's template, tokenised.

use millpond::engine::Request;
use millpond::sample::grammar::GrammarSource;
use millpond::text::ChatInput;
use millpond::text::tool_calls::ParameterTypes;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::constraint;
use super::error::{ApiError, ApiResult};
use super::params::GenerationFields;
use super::state::Served;

/// Most messages of a conversation.
const MAX_MESSAGES: usize = 16_384;
/// Most tools.
const MAX_TOOLS: usize = 1024;
/// Message ends remembered as places to resume at, from the newest.
const MAX_BOUNDARIES: usize = 16;
/// Tokens at the end of a prompt in which an open `<think>` is looked for.
const PROMPT_TAIL: usize = 16;

/// A conversation in the form that all APIs are brought into: OpenAI's.
#[derive(Clone, Debug, Default)]
pub(crate) struct Conversation {
    /// Messages: objects with `role` and `content`.
    pub(crate) messages: Vec<Value>,
    /// Tools the model may call.
    pub(crate) tools: Vec<Value>,
    /// Further variables of the template.
    pub(crate) options: Map<String, Value>,
    /// Whether the model should think; as the server says if absent.
    pub(crate) thinking: Option<bool>,
    /// Whether the last message is an answer to be continued.
    pub(crate) continues: bool,
    /// What the answer must look like.
    pub(crate) constraint: Option<GrammarSource>,
}

/// A conversation ready for the engine.
#[derive(Clone, Debug)]
pub(crate) struct ChatPrompt {
    /// Token ids.
    pub(crate) ids: Vec<u32>,
    /// Where messages end.
    pub(crate) boundaries: Vec<usize>,
    /// Whether the answer begins inside the model's reasoning.
    pub(crate) starts_thinking: bool,
    /// What kinds of values the tools take.
    pub(crate) types: ParameterTypes,
    /// Whether the answer may call tools.
    pub(crate) has_tools: bool,
}

/// Which tools the model may or must call.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(untagged)]
pub(crate) enum ToolChoice {
    /// `auto`, `none` or `required`.
    Mode(ToolMode),
    /// This one.
    Named {
        /// `function`.
        #[serde(rename = "type")]
        kind: String,
        /// Which.
        function: ToolName,
    },
    /// Not said.
    #[default]
    Unsaid,
}

/// A choice without a name.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ToolMode {
    /// The model decides.
    Auto,
    /// No tool.
    None,
    /// At least one.
    #[serde(alias = "any")]
    Required,
}

/// The name of a tool.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub(crate) struct ToolName {
    pub(crate) name: String,
}

impl Conversation {
    /// Checks the messages and tools and brings their roles into the form templates know.
    ///
    /// # Errors
    /// What is wrong, and with which message.
    pub(crate) fn check(mut self) -> ApiResult<Conversation> {
        let count = self.messages.len();
        if count == 0 {
            return Err(ApiError::field("messages", "messages is empty"));
        }
        if count > MAX_MESSAGES || self.tools.len() > MAX_TOOLS {
            return Err(ApiError::field(
                "messages",
                format!("more than {MAX_MESSAGES} messages or {MAX_TOOLS} tools"),
            ));
        }
        for (index, message) in self.messages.iter_mut().enumerate() {
            check_message(index, message)?;
        }
        check_tools(&self.tools)?;
        Ok(self)
    }

    /// The prompt, and a request for the answer to it.
    ///
    /// # Errors
    /// As for [`Conversation::prompt`], or a value out of its range.
    pub(crate) fn request(
        self,
        served: &Served,
        fields: &GenerationFields,
        limit: Option<usize>,
    ) -> ApiResult<(ChatPrompt, Request)> {
        let constraint = self.constraint.clone();
        let prompt = self.prompt(served)?;
        let model = served.model();
        let tokenizer = model.tokenizer.as_deref();
        let mut request =
            fields.request(prompt.ids.clone(), limit, served.config(), tokenizer, model.spec.vocab)?;
        request.message_boundaries.clone_from(&prompt.boundaries);
        request.grammar = constraint;
        Ok((prompt, request))
    }

    /// Adds what the answer must look like. Such an answer is given without reasoning.
    ///
    /// # Errors
    /// A tool call is forced already.
    pub(crate) fn constrain(&mut self, source: Option<GrammarSource>) -> ApiResult<()> {
        if self.constraint.is_some() && source.is_some() {
            let message = "a forced tool call and another constraint cannot be kept at once";
            return Err(ApiError::field("tool_choice", message));
        }
        self.constraint = source.or(self.constraint.take());
        if self.constraint.is_some() {
            self.thinking = Some(false);
        }
        Ok(())
    }

    /// Renders and tokenises the conversation.
    ///
    /// # Errors
    /// The template refuses it.
    pub(crate) fn prompt(mut self, served: &Served) -> ApiResult<ChatPrompt> {
        let tokenizer = served.tokenizer()?;
        // With nothing before it, there is no conversation to go on with.
        let open = if self.continues && self.messages.len() > 1 { self.messages.pop() } else { None };
        let options = self.template_options(served);
        let input = self.input(&options);
        let mut ids = served.template()?.encode(&input, tokenizer)?;
        if let Some(answer) = open {
            ids.extend(tokenizer.encode(&text_of(&answer["content"]), true)?);
        }
        let tail = |ids: &[u32]| tokenizer.decode(&ids[ids.len().saturating_sub(PROMPT_TAIL)..], false);
        let mut thinking = tail(&ids).trim_end().ends_with("<think>");
        if thinking && self.constraint.is_some() {
            // A constraint holds from the first token on, so there is no room for reasoning.
            ids.extend(tokenizer.encode("\n</think>\n\n", true)?);
            thinking = false;
        }
        Ok(ChatPrompt {
            boundaries: boundaries(&ids, |id| tokenizer.is_end_of_generation(id)),
            starts_thinking: thinking,
            types: ParameterTypes::of(&self.tools),
            has_tools: !self.tools.is_empty(),
            ids,
        })
    }

    /// The conversation as text.
    ///
    /// # Errors
    /// The template refuses it.
    pub(crate) fn render(&self, served: &Served) -> ApiResult<String> {
        let options = self.template_options(served);
        Ok(served.template()?.render(&self.input(&options))?)
    }

    fn template_options(&self, served: &Served) -> Map<String, Value> {
        let mut options = self.options.clone();
        if let Some(thinking) = self.thinking {
            options.insert("enable_thinking".to_owned(), thinking.into());
        } else if let Some(thinking) = served.config().thinking {
            options.entry("enable_thinking").or_insert(thinking.into());
        }
        for (name, value) in &served.config().template_options {
            options.entry(name.clone()).or_insert_with(|| value.clone());
        }
        options
    }

    fn input<'a>(&'a self, options: &Map<String, Value>) -> ChatInput<'a> {
        ChatInput {
            messages: &self.messages,
            tools: (!self.tools.is_empty()).then_some(&self.tools[..]),
            add_generation_prompt: true,
            options: options.clone(),
            convert: true,
            now: None,
        }
    }
}

/// Checks the tools of a request, wherever they come.
///
/// # Errors
/// Something that is no function.
pub(crate) fn check_tools(tools: &[Value]) -> ApiResult<()> {
    for (index, tool) in tools.iter().enumerate() {
        if tool.get("type").is_some_and(|kind| kind != "function") {
            return Err(ApiError::field("tools", format!("tools[{index}]: only functions are supported")));
        }
        let function = tool.get("function").unwrap_or(tool);
        if !function.get("name").is_some_and(Value::is_string) {
            return Err(ApiError::field("tools", format!("tools[{index}] has no name")));
        }
        if function.get("description").is_some_and(|text| !text.is_string() && !text.is_null()) {
            return Err(ApiError::field("tools", format!("tools[{index}]: the description must be text")));
        }
        if function.get("parameters").is_some_and(|schema| !schema.is_object() && !schema.is_null()) {
            return Err(ApiError::field("tools", format!("tools[{index}]: parameters must be an object")));
        }
    }
    Ok(())
}

fn check_message(index: usize, message: &mut Value) -> ApiResult<()> {
    let wrong = |what: &str| ApiError::field("messages", format!("messages[{index}]: {what}"));
    let Value::Object(fields) = message else { return Err(wrong("expected an object")) };
    let role = fields.get("role").and_then(Value::as_str).ok_or_else(|| wrong("no role"))?;
    match role {
        "system" | "user" | "assistant" | "tool" => {}
        "developer" => {
            fields.insert("role".to_owned(), "system".into());
        }
        "function" => {
            fields.insert("role".to_owned(), "tool".into());
        }
        _ => return Err(wrong("the role must be system, developer, user, assistant or tool")),
    }
    match fields.get("content") {
        None | Some(Value::Null) if fields.contains_key("tool_calls") => {
            fields.insert("content".to_owned(), "".into());
        }
        Some(Value::String(_)) => {}
        Some(Value::Array(parts)) => parts.iter().try_for_each(|part| check_part(part).map_err(wrong))?,
        _ => return Err(wrong("the content must be text or a list of parts")),
    }
    if fields.get("reasoning_content").is_some_and(|thoughts| !thoughts.is_string() && !thoughts.is_null()) {
        return Err(wrong("thoughts must be text"));
    }
    match fields.get("tool_calls") {
        None | Some(Value::Null) => Ok(()),
        Some(Value::Array(calls)) if calls.iter().all(is_call) => Ok(()),
        Some(_) => Err(wrong("tool_calls must be a list of calls with a function's name and arguments")),
    }
}

fn check_part(part: &Value) -> Result<(), &'static str> {
    match part.get("type").and_then(Value::as_str) {
        Some("text" | "input_text" | "output_text") if part.get("text").is_some_and(Value::is_string) => {
            Ok(())
        }
        Some("text" | "input_text" | "output_text") => Err("a part of type text has no text"),
        Some(_) => Err("only parts of type text are supported"),
        None => Err("a part has no type"),
    }
}

fn is_call(call: &Value) -> bool {
    let function = call.get("function").unwrap_or(call);
    let arguments = function.get("arguments");
    function.get("name").is_some_and(Value::is_string)
        && arguments.is_none_or(|arguments| arguments.is_string() || arguments.is_object())
}

fn text_of(content: &Value) -> String {
    millpond::text::template::content_text(content)
}

/// Positions after the tokens that end messages, the newest few.
fn boundaries(ids: &[u32], ends: impl Fn(u32) -> bool) -> Vec<usize> {
    let mut found: Vec<usize> = (0..ids.len())
        .rev()
        .filter(|&place| ends(ids[place]))
        .take(MAX_BOUNDARIES)
        .map(|place| place + 1)
        .collect();
    found.reverse();
    found
}

impl ToolChoice {
    /// This tool.
    pub(crate) fn named(name: &str) -> ToolChoice {
        ToolChoice::Named { kind: "function".to_owned(), function: ToolName { name: name.to_owned() } }
    }

    /// The tools to offer.
    ///
    /// # Errors
    /// Some that are none, even if they are not to be offered.
    pub(crate) fn offer(&self, tools: Vec<Value>) -> ApiResult<Vec<Value>> {
        check_tools(&tools)?;
        Ok(if *self == ToolChoice::Mode(ToolMode::None) { Vec::new() } else { tools })
    }

    /// A grammar of calls, where one is forced.
    ///
    /// # Errors
    /// There is no such tool.
    pub(crate) fn forced(&self, tools: &[Value]) -> ApiResult<Option<GrammarSource>> {
        let wanted = match self {
            ToolChoice::Unsaid | ToolChoice::Mode(ToolMode::Auto | ToolMode::None) => return Ok(None),
            ToolChoice::Mode(ToolMode::Required) => None,
            ToolChoice::Named { kind, function } if kind == "function" => Some(function.name.as_str()),
            ToolChoice::Named { kind, .. } => {
                return Err(ApiError::field(
                    "tool_choice",
                    format!("tool_choice of type {kind:?} is not known"),
                ));
            }
        };
        let functions = tools.iter().map(|tool| tool.get("function").unwrap_or(tool));
        let fits = |function: &&Value| wanted.is_none_or(|wanted| function["name"] == wanted);
        let calls: Vec<Value> = functions.filter(fits).map(call_schema).collect();
        if calls.is_empty() {
            return Err(ApiError::field("tool_choice", "tool_choice names no tool that there is"));
        }
        let schema = json!({ "anyOf": calls, "x-guidance": constraint::no_blanks() });
        Ok(Some(GrammarSource::Lark(format!(
            "start: \"<tool_call>\\n\" call \"\\n</tool_call>\"\ncall: %json {schema}\n"
        ))))
    }
}

/// The shape of a call of a function.
fn call_schema(function: &Value) -> Value {
    let parameters = function.get("parameters").filter(|schema| schema.is_object());
    json!({
        "type": "object",
        "properties": {
            "name": { "const": function["name"] },
            "arguments": parameters.cloned().unwrap_or_else(|| json!({ "type": "object" })),
        },
        "required": ["name", "arguments"],
        "additionalProperties": false,
    })
}

/// Whether `effort` asks for reasoning: `none` does not.
#[must_use]
pub(crate) fn thinks(effort: Option<&str>) -> Option<bool> {
    effort.map(|effort| effort != "none")
}

/// A message of a role.
#[must_use]
pub(crate) fn message(role: &str, content: impl Into<Value>) -> Value {
    json!({ "role": role, "content": content.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(messages: Value) -> ApiResult<Vec<Value>> {
        let messages = messages.as_array().unwrap().clone();
        Conversation { messages, ..Conversation::default() }.check().map(|conversation| conversation.messages)
    }

    #[test]
    fn roles_and_contents_are_brought_into_one_form() {
        let messages = check(json!([
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]},
            {"role": "tool", "content": "4"},
        ]))
        .unwrap();
        assert_eq!(messages[0]["role"], "system");
        assert_eq!(messages[2]["content"], "");
    }

    #[test]
    fn malformed_messages_are_named() {
        for messages in [
            json!([]),
            json!([1]),
            json!([{"content": "x"}]),
            json!([{"role": "king", "content": "x"}]),
            json!([{"role": "user"}]),
            json!([{"role": "user", "content": null}]),
            json!([{"role": "user", "content": 5}]),
            json!([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]),
            json!([{"role": "user", "content": [{"type": "text"}]}]),
            json!([{"role": "assistant", "content": "x", "tool_calls": [{"function": {}}]}]),
        ] {
            assert!(check(messages.clone()).is_err(), "{messages}");
        }
    }

    #[test]
    fn the_newest_message_ends_are_remembered() {
        let ids: Vec<u32> = (0..40).map(|place| u32::from(place % 2 == 0)).collect();
        let found = boundaries(&ids, |id| id == 1);
        assert_eq!(found.len(), MAX_BOUNDARIES);
        assert_eq!(found.last(), Some(&39));
        assert!(found.is_sorted());
    }
}
