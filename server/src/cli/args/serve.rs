//! Options of `serve`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::http::config::ReasoningForm;

use super::{
    ComputeArgs, GenerationArgs, ModelArgs, ReasoningName, SamplingArgs, SpeculationArgs, TemplateArgs,
};

/// Serve a model over HTTP.
#[derive(Args, Clone, Debug)]
pub struct ServeArgs {
    /// GGUF file, Hugging Face folder or name, in place of -m
    #[arg(value_name = "MODEL", conflicts_with_all = ["model", "hf_repo"])]
    pub path: Option<PathBuf>,
    /// Address to listen at, or a Unix socket: unix:PATH, or a path that ends in .sock
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    pub host: String,
    /// Port to listen at; 0 for any that is free [default: 8137]
    #[arg(long, value_name = "N")]
    pub port: Option<u16>,
    /// Listen where another program's clients look, unless --port says otherwise: 8080 or 11434
    #[arg(long, value_name = "PROGRAM")]
    pub compat: Option<CompatName>,
    /// Seconds that a client may leave everything it is sent unread
    #[arg(long, value_name = "N", default_value_t = 60)]
    pub timeout: u64,
    /// Names under which the model goes, the one it is shown by first
    #[arg(short, long, value_name = "NAME", value_delimiter = ',')]
    pub alias: Vec<String>,
    /// Folder of models that requests may name; each is loaded when it is asked for
    #[arg(long, value_name = "PATH")]
    pub models_dir: Option<PathBuf>,
    /// Most models in memory at once; 0 for no limit
    #[arg(long, value_name = "N", default_value_t = 4)]
    pub models_max: usize,
    /// Bytes that the files of the models in memory may have together, in MiB [default: half of the machine's memory]
    #[arg(long, value_name = "MIB")]
    pub models_memory: Option<u64>,
    /// Seconds without a request after which a model is unloaded, to be loaded again when it is asked for; -1 for never
    #[arg(
        long,
        visible_alias = "sleep-idle-seconds",
        value_name = "N",
        default_value_t = -1,
        allow_negative_numbers = true
    )]
    pub idle_unload: i64,
    /// Key of the certificate, in PEM; with it, the server speaks TLS (in builds with the feature `tls`)
    #[arg(long, value_name = "PATH", requires = "ssl_cert_file")]
    pub ssl_key_file: Option<PathBuf>,
    /// Certificate, in PEM, followed by those it is vouched for by
    #[arg(long, value_name = "PATH", requires = "ssl_key_file")]
    pub ssl_cert_file: Option<PathBuf>,
    /// Key that requests must show; may be given several times
    #[arg(long, value_name = "KEY", value_delimiter = ',', hide_env_values = true)]
    pub api_key: Vec<String>,
    /// File with such keys, one a line; lines that begin with # are remarks
    #[arg(long, value_name = "PATH")]
    pub api_key_file: Option<PathBuf>,
    /// Further host names under which the server may be addressed
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub allowed_hosts: Vec<String>,
    /// Origins of web pages elsewhere that may use the server, such as https://example.org
    #[arg(long, value_name = "ORIGIN", value_delimiter = ',')]
    pub cors_origins: Vec<String>,
    /// Longest body of a request, in bytes
    #[arg(long, value_name = "BYTES", default_value_t = 8 << 20)]
    pub max_body: usize,
    /// Most requests that wait; more are refused with 429 [default: 256]
    #[arg(long, value_name = "N")]
    pub max_queue: Option<usize>,
    /// Most requests that run at once; -1 for the default [default: 16]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub parallel: Option<i64>,
    /// Longest time between two tokens of a stream that a long prompt beside it may cause, in milliseconds
    #[arg(long, value_name = "N", default_value_t = 500)]
    pub max_gap_ms: u64,
    /// Memory that running requests may hold, in MiB [default: half of what is free]
    #[arg(long, value_name = "MIB")]
    pub memory: Option<usize>,
    /// The same in bytes, or with K, M or G behind the number
    #[arg(long, value_name = "SIZE", conflicts_with = "memory")]
    pub state_budget: Option<String>,
    /// Memory for the prompt cache, in MiB; -1 for no limit [default: 5 % of the machine's, or 8 snapshots]
    #[arg(long, value_name = "MIB", allow_negative_numbers = true)]
    pub cache_ram: Option<i64>,
    /// Folder for what the prompt cache has no room for in memory, and for what it holds when the server stops
    #[arg(long, value_name = "PATH")]
    pub cache_disk: Option<PathBuf>,
    /// Most that a model's files there may have, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 4096)]
    pub cache_disk_limit: u64,
    /// Whether the model thinks before it answers, where requests do not say
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    pub reasoning: ReasoningName,
    /// What becomes of thoughts in chat completions, where requests do not say: auto or deepseek (beside the answer),
    /// none (in its text, with their marks), deepseek-legacy (both) or hidden (left out)
    #[arg(long, value_name = "FORM", default_value = "auto")]
    pub reasoning_format: ReasoningForm,
    /// How hard it thinks, for templates that know `reasoning_effort`, where requests do not say
    #[arg(long, value_name = "LEVEL")]
    pub reasoning_effort: Option<String>,
    /// 0 to keep the model from thinking, -1 to leave it alone, where requests do not say
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub reasoning_budget: Option<i64>,
    /// Reuse nothing of earlier prompts, where requests do not say
    #[arg(long)]
    pub no_cache_prompt: bool,
    /// Serve without having run the model once: the first request then waits for its weights to be read
    #[arg(long)]
    pub no_warmup: bool,
    /// Seconds that running requests get to finish when the server is asked to stop
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub drain_seconds: u64,
    /// Folder of saved states; without one, /slots can be neither saved nor restored
    #[arg(long, value_name = "PATH")]
    pub slot_save_path: Option<PathBuf>,
    /// Do not serve /metrics
    #[arg(long)]
    pub no_metrics: bool,
    /// Do not serve /slots
    #[arg(long)]
    pub no_slots: bool,
    /// Do not serve the chat page
    #[arg(long, visible_alias = "no-webui")]
    pub no_ui: bool,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub model: ModelArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub template: TemplateArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub generation: GenerationArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub sampling: SamplingArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub speculation: SpeculationArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub compute: ComputeArgs,
}

/// A program whose clients are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CompatName {
    /// llama-server, at port 8080
    Llama,
    /// Ollama, at port 11434
    Ollama,
}

impl CompatName {
    /// The port at which that program listens.
    #[must_use]
    pub fn port(self) -> u16 {
        match self {
            CompatName::Llama => 8080,
            CompatName::Ollama => 11434,
        }
    }
}
