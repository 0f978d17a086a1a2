//! The command line as typed. Nothing here is checked beyond its form: see [`super::settings`].
//! One file for each group of options; a verb's file flattens the groups it takes.

// These comments are help texts too, shown on terminals as they are.
#![allow(rustdoc::bare_urls)]

mod bench;
mod chat;
mod common;
mod completions;
mod compute;
mod constraint;
mod doctor;
mod generation;
mod hub;
mod inspect;
mod logits;
mod man;
mod model;
mod pack;
mod perplexity;
mod quantize;
mod run;
mod sampling;
mod serve;
mod session;
mod speculation;
mod template;
mod tokenize;

use clap::{Parser, Subcommand};

pub use bench::{BenchArgs, BenchOutput, BenchPart};
pub use chat::{ChatArgs, ChatSettings};
pub use common::CommonArgs;
pub use completions::CompletionsArgs;
pub use compute::{ArithmeticName, CacheType, ComputeArgs, DeviceName};
pub use constraint::ConstraintArgs;
pub use doctor::DoctorArgs;
pub use generation::GenerationArgs;
pub use hub::{HubArgs, ListArgs, PsArgs, PullArgs, RemoveArgs};
pub use inspect::InspectArgs;
pub use logits::LogitsArgs;
pub use man::ManArgs;
pub use model::{LoadMode, ModelArgs};
pub use pack::PackArgs;
pub use perplexity::PerplexityArgs;
pub use quantize::{MakingArgs, QuantizeArgs};
pub use run::RunArgs;
pub use sampling::SamplingArgs;
pub use serve::{CompatName, ServeArgs};
pub use session::{SessionAction, SessionArgs, SessionLoadArgs, SessionSaveArgs};
pub use speculation::SpeculationArgs;
pub use template::{ReasoningArgs, ReasoningFormat, ReasoningName, TemplateArgs};
pub use tokenize::TokenizeArgs;

/// Runs language models with linear attention on the CPU.
#[derive(Debug, Parser)]
#[command(
    name = "millpond",
    version,
    propagate_version = true,
    arg_required_else_help = true,
    disable_help_subcommand = true,
    after_help = "Without a verb, options mean `run`: millpond -m model.gguf -p \"Once upon a time\" -n 64\n\
                  Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted"
)]
pub struct Cli {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub common: CommonArgs,
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
    /// Make a smaller GGUF file of a model
    Quantize(QuantizeArgs),
    /// Put a model into one file that starts at once
    Pack(PackArgs),
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
    /// Fetch a model from a hub, or bring it up to date
    Pull(PullArgs),
    /// List the models on this machine
    #[command(alias = "ls")]
    List(ListArgs),
    /// Remove models from this machine
    Rm(RemoveArgs),
    /// List the servers that run on this machine
    Ps(PsArgs),
    /// Keep and use saved states of texts
    Session(Box<SessionArgs>),
    /// Print a completion script for a shell
    Completions(CompletionsArgs),
    /// Write manual pages
    #[command(hide = true)]
    Man(ManArgs),
}
