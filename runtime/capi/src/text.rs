//! Text to tokens and back, conversations to prompts, and answers to messages.

use std::ffi::c_char;
use std::ptr::null;

use millpond::model::Model;
use millpond::text::reasoning::split_reasoning;
use millpond::text::tool_calls::{ParameterTypes, ToolCall, find_tool_calls};
use millpond::text::{ChatInput, ChatTemplate, TemplateError, Tokenizer};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use crate::failure::{Error, Failure, Status, initialise, with};
use crate::handles::ModelHandle;
use crate::pointers;
use crate::types::ChatOptions;

/// Copies what `make` makes of a model to a host's buffer.
pub(crate) unsafe fn fill_with<V: Copy>(
    model: *const ModelHandle,
    buffer: *mut V,
    capacity: usize,
    length: *mut usize,
    error: *mut Error,
    make: impl FnOnce(&Model) -> Result<Vec<V>, Failure>,
) -> i32 {
    // SAFETY: the caller vouches for the memory.
    unsafe { with::<Model>(model, error, |model| pointers::fill(&make(&model)?, buffer, capacity, length)) }
}

fn tokenizer(model: &Model) -> Result<&Tokenizer, Failure> {
    model.tokenizer.as_deref().ok_or_else(|| Failure::new(Status::Unsupported, "the model has no tokenizer"))
}

fn template(model: &Model) -> Result<&ChatTemplate, Failure> {
    model.template.as_ref().ok_or_else(|| Failure::new(Status::Unsupported, "the model has no chat template"))
}

/// Turns text into token ids. `parse_special` is not 0 where control tokens written in the text count as such: not for
/// text of strangers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn millpond_tokenize(
    model: *const ModelHandle,
    text: *const c_char,
    bytes: usize,
    parse_special: i32,
    tokens: *mut u32,
    capacity: usize,
    count: *mut usize,
    error: *mut Error,
) -> i32 {
    let encode = |model: &Model| {
        // SAFETY: the caller vouches for the memory.
        let text = unsafe { pointers::text("text", text, bytes) }?;
        let ids = tokenizer(model)?.encode(text, parse_special != 0);
        ids.map_err(|error| Failure::new(Status::BadText, error))
    };
    // SAFETY: as above.
    unsafe { fill_with(model, tokens, capacity, count, error, encode) }
}

/// Turns token ids into text: UTF-8, not closed by a zero; bytes that are no characters become U+FFFD. `skip_special` is
/// not 0 where control tokens are left out.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn millpond_detokenize(
    model: *const ModelHandle,
    tokens: *const u32,
    count: usize,
    skip_special: i32,
    buffer: *mut c_char,
    capacity: usize,
    length: *mut usize,
    error: *mut Error,
) -> i32 {
    let decode = |model: &Model| {
        // SAFETY: the caller vouches for the memory.
        let ids = unsafe { pointers::slice("tokens", tokens, count) }?;
        Ok(tokenizer(model)?.decode(ids, skip_special != 0).into_bytes())
    };
    // SAFETY: as above.
    unsafe { fill_with(model, buffer.cast(), capacity, length, error, decode) }
}

/// The bytes of one token, which need not be whole characters; none for an id that is no token.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn millpond_token_bytes(
    model: *const ModelHandle,
    token: u32,
    buffer: *mut c_char,
    capacity: usize,
    length: *mut usize,
    error: *mut Error,
) -> i32 {
    let bytes = |model: &Model| Ok(tokenizer(model)?.token_bytes(token).to_vec());
    // SAFETY: the caller vouches for the memory.
    unsafe { fill_with(model, buffer.cast(), capacity, length, error, bytes) }
}

/// Writes the defaults.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn millpond_chat_options_init(options: *mut ChatOptions) -> i32 {
    let defaults = || ChatOptions {
        size: size_of::<ChatOptions>(),
        tools_json: null(),
        variables_json: null(),
        add_generation_prompt: 1,
    };
    // SAFETY: the caller vouches for the memory.
    unsafe { initialise(options, defaults) }
}

/// A chat as a host describes it.
struct Chat {
    messages: Vec<Value>,
    tools: Option<Vec<Value>>,
    variables: Map<String, Value>,
    add_generation_prompt: bool,
}

impl Chat {
    unsafe fn read(messages_json: *const c_char, options: *const ChatOptions) -> Result<Chat, Failure> {
        // SAFETY: the caller vouches for the memory.
        let messages =
            json_of("messages_json", unsafe { pointers::string("messages_json", messages_json) }?)?;
        if options.is_null() {
            return Ok(Chat { messages, tools: None, variables: Map::new(), add_generation_prompt: true });
        }
        // SAFETY: as above.
        let (options, tools, variables) = unsafe {
            let options = pointers::sized("options", options)?;
            let tools = pointers::optional_string("tools_json", options.tools_json)?;
            (options, tools, pointers::optional_string("variables_json", options.variables_json)?)
        };
        Ok(Chat {
            messages,
            tools: tools.map(|text| json_of("tools_json", text)).transpose()?,
            variables: variables.map(|text| json_of("variables_json", text)).transpose()?.unwrap_or_default(),
            add_generation_prompt: options.add_generation_prompt != 0,
        })
    }

    fn input(&self) -> ChatInput<'_> {
        ChatInput {
            messages: &self.messages,
            tools: self.tools.as_deref(),
            add_generation_prompt: self.add_generation_prompt,
            options: self.variables.clone(),
            convert: true,
            now: None,
        }
    }
}

fn json_of<T: DeserializeOwned>(name: &str, text: &str) -> Result<T, Failure> {
    serde_json::from_str(text).map_err(|error| {
        Failure::new(Status::BadText, format!("{name} is not the JSON it should be: {error}"))
    })
}

fn refused(error: TemplateError) -> Failure {
    Failure::new(Status::BadText, error)
}

/// Renders messages, [{"role": "user", "content": "Hello"}, ...], with the model's chat template: for looking at. To
/// generate, use `millpond_chat_tokenize`, which lets nobody close a turn from within it. `options` may be NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn millpond_chat_render(
    model: *const ModelHandle,
    messages_json: *const c_char,
    options: *const ChatOptions,
    buffer: *mut c_char,
    capacity: usize,
    length: *mut usize,
    error: *mut Error,
) -> i32 {
    let render = |model: &Model| {
        // SAFETY: the caller vouches for the memory.
        let chat = unsafe { Chat::read(messages_json, options) }?;
        template(model)?.render(&chat.input()).map(String::into_bytes).map_err(refused)
    };
    // SAFETY: as above.
    unsafe { fill_with(model, buffer.cast(), capacity, length, error, render) }
}

/// Renders messages and turns them into token ids. Control tokens written in messages of users, systems and tools stay
/// plain text. `options` may be NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn millpond_chat_tokenize(
    model: *const ModelHandle,
    messages_json: *const c_char,
    options: *const ChatOptions,
    tokens: *mut u32,
    capacity: usize,
    count: *mut usize,
    error: *mut Error,
) -> i32 {
    let encode = |model: &Model| {
        // SAFETY: the caller vouches for the memory.
        let chat = unsafe { Chat::read(messages_json, options) }?;
        template(model)?.encode(&chat.input(), tokenizer(model)?).map_err(refused)
    };
    // SAFETY: as above.
    unsafe { fill_with(model, tokens, capacity, count, error, encode) }
}

/// Turns a whole answer into a message to go on with, as JSON: {"role": "assistant", "content": ...}, with
/// "reasoning_content" if the model thought aloud and "tool_calls" if it called tools. `options`, which may be NULL, names
/// the tools. `starts_thinking` is not 0 where the prompt ended inside the thoughts.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn millpond_chat_parse(
    model: *const ModelHandle,
    answer: *const c_char,
    bytes: usize,
    options: *const ChatOptions,
    starts_thinking: i32,
    buffer: *mut c_char,
    capacity: usize,
    length: *mut usize,
    error: *mut Error,
) -> i32 {
    let parse = |_: &Model| {
        // SAFETY: the caller vouches for the memory.
        let (answer, chat) =
            unsafe { (pointers::text("answer", answer, bytes)?, Chat::read(c"[]".as_ptr(), options)?) };
        Ok(message_of(answer, chat.tools.as_deref(), starts_thinking != 0).to_string().into_bytes())
    };
    // SAFETY: as above.
    unsafe { fill_with(model, buffer.cast(), capacity, length, error, parse) }
}

fn message_of(answer: &str, tools: Option<&[Value]>, starts_thinking: bool) -> Value {
    let (reasoning, content) = split_reasoning(answer, starts_thinking);
    let (content, calls) = match tools {
        Some(tools) => find_tool_calls(&content, ParameterTypes::of(tools)),
        None => (content, Vec::new()),
    };
    let mut message = json!({ "role": "assistant", "content": content });
    if !reasoning.is_empty() {
        message["reasoning_content"] = reasoning.into();
    }
    if !calls.is_empty() {
        let call = |call: ToolCall| json!({ "type": "function", "function": { "name": call.name, "arguments": call.arguments } });
        message["tool_calls"] = calls.into_iter().map(call).collect();
    }
    message
}
