//! Structures that hosts fill in or read. Their comments are those of the header.

use std::ffi::{c_char, c_void};

use crate::handles::ModelHandle;

/// Told how far loading is, on the thread that loads: bytes within reach, and bytes of all files. Returns 0 to go on,
/// anything else to give up. It must return: no exception, no longjmp.
pub type ProgressCallback =
    Option<unsafe extern "C" fn(done: u64, total: u64, user_data: *mut c_void) -> i32>;

/// How to load a model; `millpond_load_options_init` writes the defaults.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct LoadOptions {
    /// Bytes of this structure, written by its init function.
    pub size: usize,
    /// GGUF file with the multi-token-prediction head of a model published without it; or NULL.
    pub mtp_path: *const c_char,
    /// Not 0: read the files into memory instead of mapping them.
    pub no_mmap: i32,
    /// Not 0: keep mapped files in memory, so that nothing is paged out; loading fails where the system forbids it.
    pub mlock: i32,
    /// Not 0: read every page of mapped files at once, so that the first prompt need not wait for the disk.
    pub preload: i32,
    /// Told how far loading is; or NULL.
    pub progress: ProgressCallback,
    /// Passed to `progress`.
    pub progress_data: *mut c_void,
}

/// What there is to say about a model.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ModelInfo {
    /// Tokens of the vocabulary.
    pub vocabulary: usize,
    /// Tokens the model was made for.
    pub context: usize,
    /// Values of an embedding.
    pub embedding: usize,
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

/// What a chat template gets besides the messages; `millpond_chat_options_init` writes the defaults.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ChatOptions {
    /// Bytes of this structure, written by its init function.
    pub size: usize,
    /// Tool definitions, [{"type": "function", "function": {...}}, ...]; or NULL.
    pub tools_json: *const c_char,
    /// An object of further variables of the template, such as {"enable_thinking": false}; or NULL.
    pub variables_json: *const c_char,
    /// Not 0, the default: the text ends where the assistant's answer begins.
    pub add_generation_prompt: i32,
}

/// How an engine is set up; `millpond_engine_options_init` writes the defaults.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct EngineOptions {
    /// Bytes of this structure, written by its init function.
    pub size: usize,
    /// Worker threads; 0 for one per physical core.
    pub threads: usize,
    /// Most tokens of a request, prompt and answer together; 0 for what the model was made for.
    pub context: usize,
    /// Most requests that run at once.
    pub max_running: usize,
    /// Most requests that wait.
    pub max_queue: usize,
    /// Threads of passes that read a prompt; 0 for as many as `threads`.
    pub prefill_threads: usize,
    /// Most rows of prompts in one pass, in chunks of 64: more are faster and take more memory.
    pub prefill_rows: usize,
    /// Longest draft of speculation, at most 64; 0 for none.
    pub draft_max: usize,
    /// Shortest draft: shorter ones are dropped.
    pub draft_min: usize,
    /// A small model of the same vocabulary that drafts; or NULL. It lives as long as the engine.
    pub draft_model: *const ModelHandle,
    /// Where drafts come from: a `millpond_speculation`.
    pub speculation: i32,
    /// Bytes that running requests may hold; -1 for a share of the machine's memory.
    pub memory_budget: i64,
    /// Bytes that the prefix cache may hold; -1 for a share of the machine's memory.
    pub cache_budget: i64,
    /// Folder of saved sessions, which need one; or NULL.
    pub session_dir: *const c_char,
    /// Not 0: reuse only state that gives the very bits of a run without a cache.
    pub exact_cache: i32,
}

/// Counters since the start of an engine, and how it stands now.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Stats {
    /// Requests accepted.
    pub accepted: u64,
    /// Requests refused because the queue was full.
    pub refused: u64,
    /// Requests that ended as they should.
    pub completed: u64,
    /// Requests cancelled.
    pub cancelled: u64,
    /// Requests that failed.
    pub failed: u64,
    /// Passes over the weights.
    pub steps: u64,
    /// Tokens of prompts.
    pub prompt_tokens: u64,
    /// Of these, tokens whose state was reused.
    pub cached_tokens: u64,
    /// Tokens generated.
    pub generated_tokens: u64,
    /// Tokens proposed by drafts.
    pub drafted_tokens: u64,
    /// Proposed tokens accepted.
    pub accepted_tokens: u64,
    /// Seconds spent in passes with a slice of a prompt.
    pub prefill_seconds: f64,
    /// Seconds spent in passes without.
    pub decode_seconds: f64,
    /// Requests that wait.
    pub waiting: usize,
    /// Requests that run.
    pub running: usize,
    /// Most requests that run at once.
    pub max_running: usize,
    /// Most tokens of a request.
    pub context: usize,
    /// Bytes reserved for running requests, and bytes that may be.
    pub reserved_bytes: usize,
    /// See reserved_bytes.
    pub memory_budget: usize,
    /// Snapshots in the prefix cache.
    pub cache_entries: usize,
    /// Bytes that the prefix cache holds, and bytes that it may hold.
    pub cache_bytes: usize,
    /// See cache_bytes.
    pub cache_budget: usize,
}

/// Bytes of a session's name, the closing zero included.
pub const SESSION_NAME_BYTES: usize = 72;

/// A saved session.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct SessionInfo {
    /// Its name, closed by a zero.
    pub name: [c_char; SESSION_NAME_BYTES],
    /// Tokens whose state it holds.
    pub tokens: usize,
    /// Bytes of its file.
    pub bytes: u64,
    /// The fingerprint of its model.
    pub fingerprint: u64,
    /// When it was saved, in seconds since 1970; 0 where the system does not say.
    pub saved_at: i64,
}

/// A prompt and what to make of it; `millpond_request_init` writes the defaults: those of the library, and no prompt.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// Bytes of this structure, written by its init function.
    pub size: usize,
    /// Token ids of the prompt.
    pub prompt: *const u32,
    /// Number of token ids.
    pub prompt_count: usize,
    /// Most tokens to generate; -1 for as many as the context holds, 0 only reads the prompt.
    pub max_tokens: i64,
    /// Seed of the random choices; -1 for a fresh one.
    pub seed: i64,
    /// Texts that end the answer and are not part of it, each closed by a zero; NULL if there are none.
    pub stop: *const *const c_char,
    /// Number of such texts.
    pub stop_count: usize,
    /// JSON schema that the answer has to satisfy; or NULL. At most one of the four constraints may be set.
    pub json_schema: *const c_char,
    /// Grammar in llama.cpp's notation (GBNF) that the answer has to match; or NULL.
    pub grammar: *const c_char,
    /// Grammar in llguidance's variant of Lark; or NULL.
    pub lark: *const c_char,
    /// Regular expression that the whole answer has to match; or NULL.
    pub regex: *const c_char,
    /// Name under which the state is kept at the end, for millpond_session_save; or NULL.
    pub session: *const c_char,
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
    /// Alternatives whose probabilities a listener is told beside that of each token, at most 64; -1 for no
    /// probabilities at all.
    pub logprobs: i32,
    /// Not 0: tell the same about the tokens of the prompt.
    pub echo: i32,
    /// Not 0: go on after a token that ends the text.
    pub ignore_eos: i32,
    /// Not 0: use and feed the prefix cache.
    pub cache_prompt: i32,
    /// Not 0: yield to requests that somebody waits for.
    pub background: i32,
    /// Probability of the locally typical tokens kept; 1 for all.
    pub typical_p: f32,
    /// Standard deviations below the largest logit kept; 0 and less for all.
    pub top_n_sigma: f32,
    /// Chance of removing all but the least of the probable tokens (XTC).
    pub xtc_probability: f32,
    /// Probability from which a token counts as probable for XTC.
    pub xtc_threshold: f32,
    /// Strength of the penalty on repeated sequences (DRY); 0 does nothing.
    pub dry_multiplier: f32,
    /// Growth of DRY with each repeated token.
    pub dry_base: f32,
    /// Longest repetition that DRY leaves alone.
    pub dry_allowed_length: u32,
    /// Tokens that DRY looks at; 0 none, -1 all.
    pub dry_penalty_last_n: i32,
    /// How far the temperature moves with the entropy; 0 leaves it alone.
    pub dynatemp_range: f32,
    /// Exponent of that entropy.
    pub dynatemp_exponent: f32,
    /// 1 or 2: this form of Mirostat in place of all samplers but the temperature; 0 for none.
    pub mirostat: i32,
    /// Surprise of a token that Mirostat aims at, in bits.
    pub mirostat_tau: f32,
    /// How much of the last error Mirostat corrects.
    pub mirostat_eta: f32,
    /// Where drafts come from, a `millpond_speculation`; -1 for where the engine has them from.
    pub speculation: i32,
    /// Changes of the likelihood of tokens; NULL if there are none.
    pub bias: *const Bias,
    /// Number of these.
    pub bias_count: usize,
    /// Longest draft, that of the engine at most; -1 for that.
    pub draft_max: i64,
}

/// A change of the likelihood of a token.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Bias {
    /// Its id.
    pub id: u32,
    /// Added to its logit; negative infinity forbids it.
    pub bias: f32,
}

/// How a generation ended and what it cost.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Outcome {
    /// A `millpond_finish`.
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

/// Gets each piece of text: whole characters of UTF-8, not closed by a zero. Returns 0 to go on, anything else to
/// cancel. It runs on the thread that waits, may call any function of this library, and must return: no exception, no
/// longjmp.
pub type TextCallback =
    Option<unsafe extern "C" fn(text: *const c_char, bytes: usize, user_data: *mut c_void) -> i32>;

/// Told how much of the prompt has been read: tokens done, of how many, and how many came from the cache. As
/// `millpond_text_callback` otherwise.
pub type PromptCallback =
    Option<unsafe extern "C" fn(done: usize, total: usize, cached: usize, user_data: *mut c_void) -> i32>;

/// Told of each token. What it points to lives during the call only. As `millpond_text_callback` otherwise.
pub type TokenCallback = Option<unsafe extern "C" fn(token: *const Token, user_data: *mut c_void) -> i32>;

/// A token and its probability.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Token {
    /// Its id.
    pub id: u32,
    /// 1 if the request asked for probabilities.
    pub has_logprob: i32,
    /// Natural logarithm of its probability, before temperature, penalties and constraints.
    pub logprob: f32,
    /// The likeliest tokens in its place, best first.
    pub top: *const Alternative,
    /// Number of these.
    pub top_count: usize,
    /// Text that became final with it, not closed by a zero; maybe none. Empty for tokens of the prompt.
    pub text: *const c_char,
    /// Bytes of the text.
    pub text_bytes: usize,
}

/// A token that could have been chosen.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Alternative {
    /// Its id.
    pub id: u32,
    /// Natural logarithm of its probability.
    pub logprob: f32,
}

/// What a host wants to hear of a generation; `millpond_listener_init` sets all functions to NULL.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Listener {
    /// Bytes of this structure, written by its init function.
    pub size: usize,
    /// Passed to every function.
    pub user_data: *mut c_void,
    /// Gets the text.
    pub on_text: TextCallback,
    /// Gets the tokens.
    pub on_token: TokenCallback,
    /// Gets the tokens of the prompt but the first, whose probabilities `echo` asks for.
    pub on_prompt_token: TokenCallback,
    /// Gets the progress of the prompt.
    pub on_prompt: PromptCallback,
}
