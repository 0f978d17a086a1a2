//! Structures that hosts fill in or read, field by field as in the header.

use std::ffi::{c_char, c_void};

/// `millpond_text_callback`: called with each piece of text, whole UTF-8 characters, not closed by a zero. Returns 0 to
/// go on, anything else to cancel.
pub type TextCallback =
    unsafe extern "C" fn(text: *const c_char, bytes: usize, user_data: *mut c_void) -> i32;

/// `millpond_load_options`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct LoadOptions {
    /// Bytes of this structure, as [`crate::model::millpond_load_options_init`] wrote them.
    pub size: usize,
    /// GGUF file with the multi-token-prediction head of a model published without it; may be null.
    pub mtp_path: *const c_char,
    /// Not 0: read the files into memory instead of mapping them.
    pub no_mmap: i32,
}

/// `millpond_model_info`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ModelInfo {
    /// Tokens of the vocabulary.
    pub vocabulary: usize,
    /// Tokens the model was made for.
    pub context: usize,
    /// Parameters of all matrices.
    pub parameters: u64,
    /// Bytes of the files.
    pub bytes: u64,
    /// Tells models apart.
    pub fingerprint: u64,
    /// 1 if text can be turned into tokens.
    pub has_tokenizer: i32,
    /// 1 if messages can be turned into a prompt.
    pub has_chat_template: i32,
}

/// `millpond_engine_options`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct EngineOptions {
    /// Bytes of this structure, as [`crate::engine::millpond_engine_options_init`] wrote them.
    pub size: usize,
    /// Worker threads; 0 for one per physical core.
    pub threads: usize,
    /// Most tokens of a request, prompt and answer together; 0 for what the model was made for.
    pub context: usize,
    /// Most requests that run at once.
    pub max_running: usize,
    /// Most requests that wait.
    pub max_queue: usize,
    /// Bytes that running requests may hold; -1 for a share of the machine's memory.
    pub memory_budget: i64,
    /// Bytes that the prefix cache may hold; -1 for a share of the machine's memory.
    pub cache_budget: i64,
}

/// `millpond_request`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// Bytes of this structure, as [`crate::generation::millpond_request_init`] wrote them.
    pub size: usize,
    /// Token ids of the prompt.
    pub prompt: *const u32,
    /// Number of token ids.
    pub prompt_count: usize,
    /// Most tokens to generate; -1 for as many as the context holds.
    pub max_tokens: i64,
    /// Seed of the random choices; -1 for a fresh one.
    pub seed: i64,
    /// Texts that end the answer, each closed by a zero; may be null if there are none.
    pub stop: *const *const c_char,
    /// Number of such texts.
    pub stop_count: usize,
    /// JSON schema that the answer has to satisfy; may be null.
    pub json_schema: *const c_char,
    /// Grammar in llama.cpp's notation that the answer has to match; may be null.
    pub grammar: *const c_char,
    /// Temperature; 0 always takes the likeliest token.
    pub temperature: f32,
    /// Likeliest tokens kept; 0 for all.
    pub top_k: i32,
    /// Probability that the kept tokens reach together; 1 for all.
    pub top_p: f32,
    /// Least share of the largest probability; 0 for all.
    pub min_p: f32,
    /// Divides the logits of tokens seen lately; 1 does nothing.
    pub repeat_penalty: f32,
    /// Subtracted from the logits of tokens seen lately.
    pub presence_penalty: f32,
    /// Subtracted for each time they were seen.
    pub frequency_penalty: f32,
    /// Tokens that count as lately; 0 none, -1 all.
    pub repeat_last_n: i32,
    /// Not 0: go on after a token that ends the text.
    pub ignore_eos: i32,
    /// Not 0: use and feed the prefix cache.
    pub cache_prompt: i32,
    /// Not 0: yield to requests that somebody waits for.
    pub background: i32,
}

/// `millpond_result`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Outcome {
    /// A [`crate::generation::Finish`].
    pub finish: i32,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Of these, tokens whose state was reused.
    pub cached_tokens: usize,
    /// Tokens generated.
    pub completion_tokens: usize,
    /// Tokens proposed by drafts.
    pub drafted_tokens: usize,
    /// Proposed tokens accepted.
    pub accepted_tokens: usize,
    /// Seconds in the queue.
    pub queued_seconds: f64,
    /// Seconds from leaving the queue to the first token.
    pub prefill_seconds: f64,
    /// Seconds from the first token to the last.
    pub decode_seconds: f64,
}
