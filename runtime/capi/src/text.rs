//! Text to tokens and back, and conversations to prompts.

use std::ffi::c_char;

use millpond::model::Model;
use millpond::text::{ChatInput, ChatTemplate, TemplateError, Tokenizer};
use serde_json::Value;

use crate::failure::{Error, Failure, Status, guard};
use crate::handles::{self, ModelHandle};
use crate::pointers;

fn tokenizer(model: &Model) -> Result<&Tokenizer, Failure> {
    model.tokenizer.as_deref().ok_or_else(|| Failure::new(Status::Unsupported, "the model has no tokenizer"))
}

fn template(model: &Model) -> Result<&ChatTemplate, Failure> {
    model.template.as_ref().ok_or_else(|| Failure::new(Status::Unsupported, "the model has no chat template"))
}

/// Turns text into token ids. `parse_special` is not 0 where control tokens written in the text count as such; text of
/// strangers should not be read that way.
///
/// # Safety
/// `text` has `bytes` bytes and `tokens` room for `capacity` ids, or they are null; the others are null or point to what
/// the header says.
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
    let body = || {
        let model = handles::get::<Model>(model)?;
        // SAFETY: the caller vouches for the memory.
        let text = unsafe { pointers::text("text", text, bytes) }?;
        let ids = tokenizer(&model)?
            .encode(text, parse_special != 0)
            .map_err(|error| Failure::new(Status::BadText, error))?;
        // SAFETY: as above.
        unsafe { pointers::fill(&ids, tokens, capacity, count) }
    };
    // SAFETY: the caller vouches for `error`.
    unsafe { guard(error, body) }
}

/// Turns token ids into text: UTF-8, not closed by a zero; bytes that are no characters become U+FFFD.
///
/// # Safety
/// `tokens` has `count` ids and `buffer` room for `capacity` bytes, or they are null; the others are null or point to
/// what the header says.
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
    let body = || {
        let model = handles::get::<Model>(model)?;
        // SAFETY: the caller vouches for the memory.
        let ids = unsafe { pointers::slice("tokens", tokens, count) }?;
        let text = tokenizer(&model)?.decode(ids, skip_special != 0);
        // SAFETY: as above.
        unsafe { pointers::fill(text.as_bytes(), buffer.cast(), capacity, length) }
    };
    // SAFETY: the caller vouches for `error`.
    unsafe { guard(error, body) }
}

fn messages(json: &str) -> Result<Vec<Value>, Failure> {
    serde_json::from_str(json).map_err(|error| {
        Failure::new(Status::BadText, format!("messages_json is no list of messages: {error}"))
    })
}

fn refused(error: TemplateError) -> Failure {
    Failure::new(Status::BadText, error)
}

/// Renders a conversation with the model's chat template: for looking at. To generate, use
/// [`millpond_chat_tokenize`], which lets nobody close a turn from within it.
///
/// # Safety
/// `messages_json` is closed by a zero and `buffer` has room for `capacity` bytes, or they are null; the others are null
/// or point to what the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn millpond_chat_render(
    model: *const ModelHandle,
    messages_json: *const c_char,
    add_generation_prompt: i32,
    buffer: *mut c_char,
    capacity: usize,
    length: *mut usize,
    error: *mut Error,
) -> i32 {
    let body = || {
        let model = handles::get::<Model>(model)?;
        // SAFETY: the caller vouches for the memory.
        let messages = messages(unsafe { pointers::string("messages_json", messages_json) }?)?;
        let input = chat_input(&messages, add_generation_prompt);
        let text = template(&model)?.render(&input).map_err(refused)?;
        // SAFETY: as above.
        unsafe { pointers::fill(text.as_bytes(), buffer.cast(), capacity, length) }
    };
    // SAFETY: the caller vouches for `error`.
    unsafe { guard(error, body) }
}

/// Renders a conversation and turns it into token ids. Control tokens written in messages of users, systems and tools
/// stay plain text.
///
/// # Safety
/// `messages_json` is closed by a zero and `tokens` has room for `capacity` ids, or they are null; the others are null or
/// point to what the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn millpond_chat_tokenize(
    model: *const ModelHandle,
    messages_json: *const c_char,
    add_generation_prompt: i32,
    tokens: *mut u32,
    capacity: usize,
    count: *mut usize,
    error: *mut Error,
) -> i32 {
    let body = || {
        let model = handles::get::<Model>(model)?;
        // SAFETY: the caller vouches for the memory.
        let messages = messages(unsafe { pointers::string("messages_json", messages_json) }?)?;
        let input = chat_input(&messages, add_generation_prompt);
        let ids = template(&model)?.encode(&input, tokenizer(&model)?).map_err(refused)?;
        // SAFETY: as above.
        unsafe { pointers::fill(&ids, tokens, capacity, count) }
    };
    // SAFETY: the caller vouches for `error`.
    unsafe { guard(error, body) }
}

fn chat_input(messages: &[Value], add_generation_prompt: i32) -> ChatInput<'_> {
    let add_generation_prompt = add_generation_prompt != 0;
    ChatInput { messages, add_generation_prompt, convert: true, ..ChatInput::default() }
}
