//! How a server is set up.

use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

use millpond::sample::SamplingParams;

/// The port used where none is named. Not assigned to any service by IANA.
pub const DEFAULT_PORT: u16 = 8137;

/// What becomes of a model's thoughts, by llama.cpp's names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReasoningForm {
    /// They stand beside the answer: `auto` or `deepseek`.
    #[default]
    Beside,
    /// They are part of its text, with their marks: `none`.
    InText,
    /// Both: `deepseek-legacy`.
    Both,
    /// They are left out: `hidden`.
    LeftOut,
}

/// A name that is no [`ReasoningForm`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown reasoning format '{0}'; expected auto, deepseek, deepseek-legacy, none or hidden")]
pub struct UnknownReasoningForm(String);

impl FromStr for ReasoningForm {
    type Err = UnknownReasoningForm;

    fn from_str(name: &str) -> Result<ReasoningForm, UnknownReasoningForm> {
        match name {
            "auto" | "deepseek" => Ok(ReasoningForm::Beside),
            "none" => Ok(ReasoningForm::InText),
            "deepseek-legacy" => Ok(ReasoningForm::Both),
            "hidden" => Ok(ReasoningForm::LeftOut),
            _ => Err(UnknownReasoningForm(name.chars().take(64).collect())),
        }
    }
}

/// How a server is set up.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Name under which the server's own model goes.
    pub name: String,
    /// Keys of which a request must show one; none are needed if empty.
    pub api_keys: Vec<String>,
    /// Host names, besides addresses and `localhost`, under which the server may be addressed.
    pub allowed_hosts: Vec<String>,
    /// Origins of foreign web pages that may use the server.
    pub allowed_origins: Vec<String>,
    /// The address it listens at: decides which addresses are its own.
    pub address: Option<IpAddr>,
    /// Longest body of a request, in bytes.
    pub max_body: usize,
    /// Most connections at once.
    pub max_connections: usize,
    /// Longest time for the headers of a request.
    pub header_time: Duration,
    /// Longest time for the body of a request.
    pub body_time: Duration,
    /// Longest time a client may leave everything it is sent unread.
    pub stall_time: Duration,
    /// Longest time running requests get to finish when the server stops.
    pub drain_time: Duration,
    /// Tokens generated for requests that name no limit; as many as the context holds if absent.
    pub max_tokens: Option<usize>,
    /// Texts that end an answer, for requests that name none.
    pub stop: Vec<String>,
    /// Whether answers go on after a token that ends a text, where requests do not say.
    pub ignore_eos: bool,
    /// Sampling for requests that leave it open.
    pub sampling: SamplingParams,
    /// Whether the model thinks before it answers, where its template knows the difference and the request does not say.
    pub thinking: Option<bool>,
    /// What becomes of its thoughts in chat completions, where requests do not say.
    pub reasoning_form: ReasoningForm,
    /// Whether prompts reuse what earlier ones have computed, where requests do not say.
    pub cache_prompt: bool,
    /// Variables for the chat template, where requests do not set them.
    pub template_options: serde_json::Map<String, serde_json::Value>,
    /// Serve `/metrics`.
    pub metrics: bool,
    /// Serve `/slots`.
    pub slots: bool,
    /// Serve the chat page.
    pub page: bool,
    /// Whether the engines have a folder of saved states.
    pub saves_states: bool,
}

impl Default for ServerConfig {
    fn default() -> ServerConfig {
        ServerConfig {
            name: "model".to_owned(),
            api_keys: Vec::new(),
            allowed_hosts: Vec::new(),
            allowed_origins: Vec::new(),
            address: None,
            max_body: 8 << 20,
            max_connections: 2048,
            header_time: Duration::from_secs(10),
            body_time: Duration::from_secs(30),
            stall_time: Duration::from_secs(60),
            drain_time: Duration::from_secs(10),
            max_tokens: None,
            stop: Vec::new(),
            ignore_eos: false,
            sampling: SamplingParams::default(),
            thinking: None,
            reasoning_form: ReasoningForm::default(),
            cache_prompt: true,
            template_options: serde_json::Map::new(),
            metrics: true,
            slots: true,
            page: true,
            saves_states: false,
        }
    }
}
