//! The command line as typed. Nothing here is checked beyond its form: see [`super::settings`].

use std::path::PathBuf;

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};

use crate::bench::capacity::CapacityArgs;
use crate::bench::linear::LinearArgs;

/// Runs language models with linear attention on the CPU.
#[derive(Debug, Parser)]
#[command(
    name = "millpond",
    version,
    arg_required_else_help = true,
    disable_help_subcommand = true,
    after_help = "Without a verb, options mean `run`: millpond -m model.gguf -p \"Once upon a time\" -n 64\n\
                  Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted"
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Continue a text
    Run(Box<RunArgs>),
    /// Talk with a model
    Chat(Box<ChatArgs>),
    /// Serve a model over HTTP
    Serve(Box<ServeArgs>),
    /// Show what is inside a model file and the memory it will need
    #[command(alias = "show")]
    Inspect(InspectArgs),
    /// Turn text into token ids
    Tokenize(TokenizeArgs),
    /// Write the logits of every position of a text to a safetensors file
    Logits(LogitsArgs),
    /// Measure how fast a model reads and writes
    Bench(Box<BenchArgs>),
    /// Measure how well a model predicts a text
    Perplexity(PerplexityArgs),
    /// Look at this machine: processor, kernels, memory, bandwidth
    Doctor(DoctorArgs),
    /// Print a completion script for a shell
    Completions(CompletionsArgs),
}

/// Which model.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Model")]
pub struct ModelArgs {
    /// GGUF file or Hugging Face folder; the built-in model if absent
    #[arg(short, long, value_name = "PATH", env = "MILLPOND_MODEL")]
    pub model: Option<PathBuf>,
    /// GGUF file with the multi-token-prediction head of a model published without it
    #[arg(long, value_name = "PATH", env = "MILLPOND_MTP")]
    pub mtp: Option<PathBuf>,
    /// Read the files into memory instead of mapping them
    #[arg(long, env = "MILLPOND_NO_MMAP")]
    pub no_mmap: bool,
}

/// How to compute.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Computation")]
pub struct ComputeArgs {
    /// Threads; 0 for one per physical core
    #[arg(short, long, value_name = "N", default_value_t = 0, env = "MILLPOND_THREADS")]
    pub threads: usize,
    /// Instruction set (scalar, avx2, avxvnni, avx512, avx512vnni, neon, neondot, neoni8mm); the best one if absent
    #[arg(long, value_name = "NAME", env = "MILLPOND_ISA")]
    pub isa: Option<String>,
    /// Precision of the attention cache's keys
    #[arg(long, value_name = "TYPE", env = "MILLPOND_CACHE_TYPE_K")]
    pub cache_type_k: Option<CacheType>,
    /// Precision of the attention cache's values; must be that of the keys
    #[arg(long, value_name = "TYPE", env = "MILLPOND_CACHE_TYPE_V")]
    pub cache_type_v: Option<CacheType>,
    /// Tokens between folds of the buffer into the recurrent state; 1 is the plain recurrence
    #[arg(long, value_name = "N", default_value_t = 16, env = "MILLPOND_BUFFER")]
    pub buffer: usize,
    /// Tokens below which a stream has no recurrent state; where buffer and state are of one size if absent
    #[arg(long, value_name = "N", env = "MILLPOND_NO_STATE_BELOW")]
    pub no_state_below: Option<usize>,
}

/// What quantised weights are multiplied with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ArithmeticName {
    /// Activations rounded to 8 bits: what generation uses
    Fast,
    /// Activations in single precision: for comparisons with other programs
    Exact,
}

/// Precision of the attention cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CacheType {
    /// Single precision
    F32,
    /// Half precision
    F16,
}

/// How an answer is generated.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Generation")]
pub struct GenerationArgs {
    /// Most tokens of prompt and answer together; 0 for what the model was made for
    #[arg(short, long, value_name = "N", default_value_t = 0, env = "MILLPOND_CTX_SIZE")]
    pub ctx_size: usize,
    /// Most tokens to generate; -1 for as many as the context holds
    #[arg(
        short = 'n',
        long,
        visible_alias = "n-predict",
        value_name = "N",
        default_value_t = -1,
        allow_negative_numbers = true,
        env = "MILLPOND_PREDICT"
    )]
    pub predict: i64,
    /// Go on after a token that ends the text
    #[arg(long)]
    pub ignore_eos: bool,
    /// Text that ends the answer; may be given several times
    #[arg(short, long, visible_alias = "stop", value_name = "TEXT", allow_hyphen_values = true)]
    pub reverse_prompt: Vec<String>,
    /// Print a line of figures to stderr after the answer
    #[arg(long, env = "MILLPOND_STATS")]
    pub stats: bool,
}

/// How tokens are chosen. What is not given has llama.cpp's default.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Sampling")]
pub struct SamplingArgs {
    /// Seed of the random choices; -1 for a fresh one [default: -1]
    #[arg(short, long, value_name = "N", allow_negative_numbers = true, env = "MILLPOND_SEED")]
    pub seed: Option<i64>,
    /// Temperature; 0 always takes the likeliest token [default: 0.8]
    #[arg(
        long,
        visible_alias = "temperature",
        value_name = "X",
        allow_negative_numbers = true,
        env = "MILLPOND_TEMP"
    )]
    pub temp: Option<f32>,
    /// Keep this many of the likeliest tokens; 0 for all [default: 40]
    #[arg(long, value_name = "N", allow_negative_numbers = true, env = "MILLPOND_TOP_K")]
    pub top_k: Option<i32>,
    /// Keep the likeliest tokens that together reach this probability; 1 for all [default: 0.95]
    #[arg(long, value_name = "P", env = "MILLPOND_TOP_P")]
    pub top_p: Option<f32>,
    /// Keep tokens with at least this share of the largest probability [default: 0.05]
    #[arg(long, value_name = "P", env = "MILLPOND_MIN_P")]
    pub min_p: Option<f32>,
    /// Keep locally typical tokens of this probability; 1 for all [default: 1]
    #[arg(long, visible_alias = "typical-p", value_name = "P")]
    pub typical: Option<f32>,
    /// Keep logits within this many standard deviations of the largest; -1 for all [default: -1]
    #[arg(long, visible_alias = "top-nsigma", value_name = "X", allow_negative_numbers = true)]
    pub top_n_sigma: Option<f32>,
    /// Chance of removing all but the least of the probable tokens (XTC) [default: 0]
    #[arg(long, value_name = "P")]
    pub xtc_probability: Option<f32>,
    /// Probability from which a token counts as probable for XTC [default: 0.1]
    #[arg(long, value_name = "P")]
    pub xtc_threshold: Option<f32>,
    /// Divides the logits of tokens seen lately; 1 does nothing [default: 1]
    #[arg(long, value_name = "X")]
    pub repeat_penalty: Option<f32>,
    /// Tokens that count as lately; 0 none, -1 all [default: 64]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub repeat_last_n: Option<i32>,
    /// Subtracted from the logits of tokens seen lately [default: 0]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub presence_penalty: Option<f32>,
    /// Subtracted for each time they were seen [default: 0]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub frequency_penalty: Option<f32>,
    /// Strength of the penalty on repeated sequences (DRY); 0 does nothing [default: 0]
    #[arg(long, value_name = "X")]
    pub dry_multiplier: Option<f32>,
    /// Growth of DRY with each repeated token [default: 1.75]
    #[arg(long, value_name = "X")]
    pub dry_base: Option<f32>,
    /// Longest repetition that DRY leaves alone [default: 2]
    #[arg(long, value_name = "N")]
    pub dry_allowed_length: Option<u32>,
    /// Tokens that DRY looks at; 0 none, -1 all [default: -1]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub dry_penalty_last_n: Option<i32>,
    /// Change the likelihood of a token, for instance 15043+1 or 15043-inf; may be given several times
    #[arg(short, long, value_name = "ID(+/-)BIAS")]
    pub logit_bias: Vec<String>,
    /// The samplers that run, in order, separated by semicolons
    #[arg(long, value_name = "LIST")]
    pub samplers: Option<String>,
}

/// Continue a text.
#[derive(Args, Debug)]
pub struct RunArgs {
    /// The text to continue
    #[arg(value_name = "PROMPT")]
    pub text: Option<String>,
    /// The text to continue
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true, conflicts_with = "text")]
    pub prompt: Option<String>,
    /// File with the text to continue; `-` for standard input
    #[arg(short, long, value_name = "PATH", conflicts_with_all = ["text", "prompt"])]
    pub file: Option<PathBuf>,
    /// Apply the model's chat template: the text is a question
    #[arg(long, visible_alias = "conversation")]
    pub chat: bool,
    /// What the model is told before the question
    #[arg(long, value_name = "TEXT", requires = "chat", allow_hyphen_values = true)]
    pub system_prompt: Option<String>,
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

impl RunArgs {
    /// The settings of a conversation, for a run without a prompt.
    #[must_use]
    pub fn chat_settings(&self) -> ChatSettings {
        ChatSettings {
            system_prompt: self.system_prompt.clone(),
            model: self.model.clone(),
            generation: self.generation.clone(),
            sampling: self.sampling.clone(),
            compute: self.compute.clone(),
        }
    }
}

/// Talk with a model.
#[derive(Args, Debug)]
pub struct ChatArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub settings: ChatSettings,
}

/// Settings of a conversation; most can be changed in it.
#[derive(Args, Clone, Debug, Default)]
pub struct ChatSettings {
    /// What the model is told before the conversation
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub system_prompt: Option<String>,
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

/// Options that cannot change while a model runs.
const FIXED: [&str; 4] = ["model", "mtp", "ctx-size", "threads"];

impl ChatSettings {
    /// Changes one option by its name on the command line.
    ///
    /// # Errors
    /// No such option, or a value of the wrong kind.
    pub fn set(&mut self, name: &str, value: &str) -> anyhow::Result<()> {
        let name = name.trim_start_matches('-').replace('_', "-");
        if FIXED.contains(&name.as_str()) {
            anyhow::bail!("{name} cannot change while the model runs");
        }
        let command = ChangedSampling::command_for_update().mut_args(|argument| argument.env(None::<&str>));
        let mut changed = ChangedSampling { sampling: self.sampling.clone(), predict: None };
        // The equals sign keeps negative numbers from looking like options.
        command
            .try_get_matches_from([format!("--{name}={value}")])
            .and_then(|matches| changed.update_from_arg_matches(&matches))
            .map_err(|error| anyhow::anyhow!("{}", first_line(&error.to_string())))?;
        self.sampling = changed.sampling;
        self.generation.predict = changed.predict.unwrap_or(self.generation.predict);
        Ok(())
    }
}

/// The parser's message without its hints.
fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned()
}

/// What can change during a conversation.
#[derive(Debug, Parser)]
#[command(no_binary_name = true, disable_help_flag = true)]
struct ChangedSampling {
    #[command(flatten)]
    sampling: SamplingArgs,
    #[arg(long, allow_negative_numbers = true)]
    predict: Option<i64>,
}

/// Show what is inside a model file.
#[derive(Args, Debug)]
pub struct InspectArgs {
    /// GGUF file or Hugging Face folder
    #[arg(value_name = "PATH")]
    pub path: PathBuf,
    /// List every tensor and every key
    #[arg(long, short)]
    pub all: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Turn text into token ids.
#[derive(Args, Debug)]
pub struct TokenizeArgs {
    /// The text
    #[arg(value_name = "TEXT")]
    pub text: Option<String>,
    /// The text
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true, conflicts_with = "text")]
    pub prompt: Option<String>,
    /// File with the text; `-` for standard input
    #[arg(short, long, value_name = "PATH", conflicts_with_all = ["text", "prompt"])]
    pub file: Option<PathBuf>,
    /// Read control tokens written in the text as plain text
    #[arg(long)]
    pub no_parse_special: bool,
    /// Print the ids alone, as a JSON list
    #[arg(long)]
    pub ids: bool,
    /// Print the number of tokens alone
    #[arg(long, conflicts_with = "ids")]
    pub show_count: bool,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub model: ModelArgs,
}

/// Write logits.
#[derive(Args, Debug)]
pub struct LogitsArgs {
    /// Token ids, separated by commas or spaces
    #[arg(long, value_name = "IDS", required_unless_present_any = ["text", "file"])]
    pub ids: Option<String>,
    /// Text to tokenise instead
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true, conflicts_with = "ids")]
    pub text: Option<String>,
    /// File with the text; `-` for standard input
    #[arg(short, long, value_name = "PATH", conflicts_with_all = ["ids", "text"])]
    pub file: Option<PathBuf>,
    /// Where to write the tensor `logits`, f32 `[tokens, vocabulary]`
    #[arg(short, long, value_name = "PATH")]
    pub output: PathBuf,
    /// What quantised weights are multiplied with
    #[arg(long, value_name = "NAME", default_value = "exact")]
    pub arithmetic: ArithmeticName,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub model: ModelArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub compute: ComputeArgs,
}

/// Measure perplexity.
#[derive(Args, Debug)]
pub struct PerplexityArgs {
    /// The text to predict; `-` for standard input
    #[arg(short, long, value_name = "PATH")]
    pub file: PathBuf,
    /// Tokens of a window, of which the second half is scored
    #[arg(short, long, value_name = "N", default_value_t = 512)]
    pub ctx_size: usize,
    /// Most windows; all the text holds if absent
    #[arg(long, value_name = "N")]
    pub chunks: Option<usize>,
    /// What quantised weights are multiplied with
    #[arg(long, value_name = "NAME", default_value = "fast")]
    pub arithmetic: ArithmeticName,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub model: ModelArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub compute: ComputeArgs,
}

/// Measure speed.
#[derive(Args, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub struct BenchArgs {
    /// What to measure instead of a model.
    #[command(subcommand)]
    pub part: Option<BenchPart>,
    /// Prompt lengths to measure, separated by commas; 0 for none
    #[arg(short = 'p', long, value_name = "N", value_delimiter = ',', default_value = "512")]
    pub n_prompt: Vec<usize>,
    /// Numbers of tokens to generate, separated by commas; 0 for none
    #[arg(short = 'n', long, value_name = "N", value_delimiter = ',', default_value = "128")]
    pub n_gen: Vec<usize>,
    /// Tokens that stand before those measured
    #[arg(short = 'd', long, value_name = "N", value_delimiter = ',', default_value = "0")]
    pub n_depth: Vec<usize>,
    /// Streams that generate at once
    #[arg(long, visible_alias = "npl", value_name = "N", value_delimiter = ',', default_value = "1")]
    pub streams: Vec<usize>,
    /// Times each measurement is repeated
    #[arg(short, long, value_name = "N", default_value_t = 5)]
    pub repetitions: usize,
    /// Form of the result
    #[arg(short, long, value_name = "FORM", default_value = "md")]
    pub output: BenchOutput,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub model: ModelArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub compute: ComputeArgs,
}

/// Parts that are measured alone.
#[derive(Debug, Subcommand)]
pub enum BenchPart {
    /// Measure one linear layer's state step: recurrence, buffer, and verification of drafts
    Linear(LinearArgs),
    /// Measure how many sequences with drafts fit a memory budget
    Capacity(CapacityArgs),
}

/// Form of a measurement's result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum BenchOutput {
    /// A Markdown table
    Md,
    /// A JSON list
    Json,
    /// One JSON object on each line
    Jsonl,
    /// Comma-separated values
    Csv,
}

/// Look at this machine.
#[derive(Args, Debug)]
pub struct DoctorArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub compute: ComputeArgs,
}

/// Print completions.
#[derive(Args, Debug)]
pub struct CompletionsArgs {
    /// The shell
    pub shell: clap_complete::Shell,
}

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
