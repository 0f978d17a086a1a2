//! Options of `logits`.

use std::path::PathBuf;

use clap::Args;

use super::{ArithmeticName, ComputeArgs, ModelArgs};

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
