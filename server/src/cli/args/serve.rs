//! Options of `serve`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::{ComputeArgs, GenerationArgs, ModelArgs, SamplingArgs};

/// Serve a model over HTTP.
#[derive(Args, Debug)]
pub struct ServeArgs {
    /// Address to listen at, or the path of a socket that ends in .sock
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1", env = "MILLPOND_HOST")]
    pub host: String,
    /// Port to listen at; 0 for any that is free [default: 8137]
    #[arg(long, value_name = "N", env = "MILLPOND_PORT")]
    pub port: Option<u16>,
    /// Name under which the model goes
    #[arg(short, long, value_name = "NAME", env = "MILLPOND_ALIAS")]
    pub alias: Option<String>,
    /// Key that requests must show; may be given several times
    #[arg(long, value_name = "KEY", value_delimiter = ',', env = "MILLPOND_API_KEY", hide_env_values = true)]
    pub api_key: Vec<String>,
    /// File with such keys, one a line
    #[arg(long, value_name = "PATH", env = "MILLPOND_API_KEY_FILE")]
    pub api_key_file: Option<PathBuf>,
    /// Further host names under which the server may be addressed
    #[arg(long, value_name = "NAME", value_delimiter = ',', env = "MILLPOND_ALLOWED_HOSTS")]
    pub allowed_hosts: Vec<String>,
    /// Origins of web pages elsewhere that may use the server, such as https://example.org
    #[arg(long, value_name = "ORIGIN", value_delimiter = ',', env = "MILLPOND_CORS_ORIGINS")]
    pub cors_origins: Vec<String>,
    /// Longest body of a request, in bytes
    #[arg(long, value_name = "BYTES", default_value_t = 8 << 20, env = "MILLPOND_MAX_BODY")]
    pub max_body: usize,
    /// Most requests that wait; more are refused with 429 [default: 256]
    #[arg(long, value_name = "N", env = "MILLPOND_MAX_QUEUE")]
    pub max_queue: Option<usize>,
    /// Most requests that run at once [default: 16]
    #[arg(long, value_name = "N", env = "MILLPOND_PARALLEL")]
    pub parallel: Option<usize>,
    /// Longest time between two tokens of a stream that a long prompt beside it may cause, in milliseconds
    #[arg(long, value_name = "N", default_value_t = 250, env = "MILLPOND_MAX_GAP_MS")]
    pub max_gap_ms: u64,
    /// Memory that running requests may hold, in MiB [default: half of what is free]
    #[arg(long, value_name = "MIB", env = "MILLPOND_MEMORY")]
    pub memory: Option<usize>,
    /// Memory for the prompt cache, in MiB [default: 5 % of the machine's, or 8 snapshots]
    #[arg(long, value_name = "MIB", env = "MILLPOND_CACHE_RAM")]
    pub cache_ram: Option<usize>,
    /// Whether the model thinks before it answers, where requests do not say
    #[arg(long, value_name = "WHEN", default_value = "auto", env = "MILLPOND_REASONING")]
    pub reasoning: ReasoningName,
    /// Seconds that running requests get to finish when the server is asked to stop
    #[arg(long, value_name = "N", default_value_t = 10, env = "MILLPOND_DRAIN_SECONDS")]
    pub drain_seconds: u64,
    /// Folder of saved states; without one, /slots can be neither saved nor restored
    #[arg(long, value_name = "PATH", env = "MILLPOND_SLOT_SAVE_PATH")]
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
    pub generation: GenerationArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub sampling: SamplingArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub compute: ComputeArgs,
}

/// Whether a model thinks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ReasoningName {
    /// Always
    On,
    /// Never
    Off,
    /// As its template has it
    Auto,
}
