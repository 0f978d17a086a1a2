//! Options of `bench`.

use clap::{Args, Subcommand, ValueEnum};

use super::{ComputeArgs, ModelArgs};
use crate::bench::capacity::CapacityArgs;
use crate::bench::linear::LinearArgs;
use crate::bench::spec::SpecArgs;

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
    /// Measure what drafts are worth: acceptance, tokens a step, speed against plain decoding
    Spec(Box<SpecArgs>),
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
