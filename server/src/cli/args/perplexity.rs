//! Options of `perplexity`.

use std::path::PathBuf;

use clap::Args;

use super::{ArithmeticName, ComputeArgs, ModelArgs};

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
