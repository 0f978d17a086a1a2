//! What goes into an engine and what comes out of it.

use std::time::Duration;

use super::options::{SpecError, SpecMode};
#[cfg(feature = "grammar")]
use crate::sample::grammar::GrammarSource;
use crate::sample::{SampleError, SamplingParams};

/// Who waits for a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Class {
    /// Somebody reads along.
    #[default]
    Interactive,
    /// Nobody does: yields to interactive requests, but always keeps a share.
    Background,
}

/// How the hidden states of a text become one vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Pooling {
    /// The mean over all tokens.
    Mean,
    /// That of the last token.
    Last,
}

/// A prompt and what to make of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// Token ids of the prompt; at least one.
    pub prompt: Vec<u32>,
    /// Most tokens to generate; as many as the context holds if absent. 0 evaluates the prompt only.
    pub max_tokens: Option<usize>,
    /// How tokens are chosen.
    pub sampling: SamplingParams,
    /// Texts that end the generation; neither they nor anything after them is emitted.
    pub stop: Vec<String>,
    /// Go on after a token that ends a text.
    pub ignore_eos: bool,
    /// What the text has to be like.
    #[cfg(feature = "grammar")]
    pub grammar: Option<GrammarSource>,
    /// Report the probability of each token, and of this many of the likeliest ones.
    pub logprobs: Option<usize>,
    /// Take these from what the token was chosen from, after all stages of sampling, not from what the model said.
    pub sampled_logprobs: bool,
    /// Report the same for the tokens of the prompt, in an [`Event::Prompt`].
    pub echo: bool,
    /// Who waits.
    pub class: Class,
    /// Use and feed the prefix cache.
    pub cache_prompt: bool,
    /// Speculation for this request; the engine's default if absent.
    pub spec: Option<SpecMode>,
    /// Longest draft for this request; the engine's default if absent, and never more than it.
    pub spec_draft_max: Option<usize>,
    /// Shortest draft for this request; the engine's default if absent, and never more than the longest.
    pub spec_draft_min: Option<usize>,
    /// Positions in the prompt where messages end: places that a later request is likely to share.
    pub message_boundaries: Vec<usize>,
    /// Keep the state at the end under this name, so that it can be saved (`EngineHandle::save_session`). A later request
    /// of the same name takes its place.
    pub session: Option<String>,
    /// Whether that state stays while others go, where the prefix cache has no room for all.
    pub session_pinned: bool,
    /// Return a vector instead of text.
    pub embeddings: Option<Pooling>,
}

impl Default for Request {
    fn default() -> Request {
        Request {
            prompt: Vec::new(),
            max_tokens: None,
            sampling: SamplingParams::default(),
            stop: Vec::new(),
            ignore_eos: false,
            #[cfg(feature = "grammar")]
            grammar: None,
            logprobs: None,
            sampled_logprobs: false,
            echo: false,
            class: Class::Interactive,
            cache_prompt: true,
            spec: None,
            spec_draft_max: None,
            spec_draft_min: None,
            message_boundaries: Vec::new(),
            session: None,
            session_pinned: true,
            embeddings: None,
        }
    }
}

impl Request {
    /// A request with the defaults for everything but the prompt.
    pub fn new(prompt: Vec<u32>) -> Request {
        Request { prompt, ..Request::default() }
    }
}

/// The probability of a token where it stands.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct TokenLogprob {
    /// The token.
    pub id: u32,
    /// Natural logarithm of its probability, before temperature, penalties and masks, or after them
    /// ([`Request::sampled_logprobs`]).
    pub logprob: f32,
    /// The likeliest tokens there and theirs, best first.
    pub top: Vec<(u32, f32)>,
}

/// Why a generation ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FinishReason {
    /// One of the stop texts came up.
    Stop(String),
    /// The model ended the text.
    Eos,
    /// `max_tokens`, the context, or (for requests without `max_tokens`) the memory budget was reached.
    Length,
    /// The receiver asked for it or went away.
    Cancelled,
}

/// What a request cost.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens generated.
    pub completion_tokens: usize,
    /// Tokens of the prompt whose state was reused.
    pub cached_tokens: usize,
    /// Why the rest was not; absent when everything usable was reused.
    pub miss_reason: Option<String>,
    /// Tokens proposed by drafts.
    pub drafted: usize,
    /// Proposed tokens that were accepted.
    pub accepted: usize,
    /// Time in the queue.
    pub queued: Duration,
    /// Time from leaving the queue to the first token.
    pub prefill: Duration,
    /// Time from the first token to the last.
    pub decode: Duration,
}

/// What a generation reports.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Event {
    /// Progress of the prompt.
    Prefill {
        /// Tokens whose state is there.
        done: usize,
        /// Tokens of the prompt.
        total: usize,
        /// Tokens that came from the cache.
        cached: usize,
    },
    /// Probabilities of the prompt's tokens; the first has none. Sent once, before the first token.
    Prompt(Vec<Option<TokenLogprob>>),
    /// A token.
    Token {
        /// Its id.
        id: u32,
        /// Text that became final with it: whole characters, maybe none.
        text: String,
        /// Its probability, where asked for.
        logprob: Option<TokenLogprob>,
    },
    /// The vector asked for: the pooled hidden states, as many values as the model is wide
    /// ([`ModelSpec::hidden`](crate::model::ModelSpec::hidden)), not scaled to any length.
    Embedding(Vec<f32>),
    /// The end. Text that was held back in case it was the start of a stop text comes with it.
    Done {
        /// Why.
        reason: FinishReason,
        /// The last of the text.
        text: String,
        /// What it cost.
        usage: Usage,
    },
    /// The end, for want of a way to go on.
    Error(RequestError),
}

/// Why a request was not accepted.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum SubmitError {
    /// Too many wait already.
    #[error("{waiting} requests are waiting already")]
    QueueFull {
        /// Requests in the queue.
        waiting: usize,
        /// When it may be worth another try.
        retry_after: Duration,
    },
    /// Prompt and answer do not fit the context.
    #[error("{prompt} prompt tokens and {max_tokens} tokens to generate exceed the context of {context}")]
    PromptTooLong {
        /// Tokens of the prompt.
        prompt: usize,
        /// Tokens asked for (at least 1 is needed).
        max_tokens: usize,
        /// Tokens the engine takes.
        context: usize,
    },
    /// It would need more memory than all requests together may use.
    #[error("the request needs {needed} bytes, more than the memory budget of {budget}")]
    TooLarge {
        /// Bytes the request needs.
        needed: usize,
        /// Bytes of the budget.
        budget: usize,
    },
    /// Something in it makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// Drafts that cannot come from where it wants them.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The engine has been stopped.
    #[error("the engine has been stopped")]
    Stopped,
}

/// Why an accepted request failed.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// The backend could not go on.
    #[error("{0}")]
    Backend(String),
    /// The grammar gave up in the middle of the text.
    #[error("{0}")]
    Grammar(String),
    /// No token could be chosen: broken logits, or everything forbidden.
    #[error(transparent)]
    Sample(#[from] SampleError),
    /// A defect of the program. Other requests go on.
    #[error("internal error: {0}")]
    Internal(String),
    /// The engine has been stopped.
    #[error("the engine has been stopped")]
    Stopped,
}
