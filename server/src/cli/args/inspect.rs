//! Options of `inspect`.

use std::path::PathBuf;

use clap::Args;

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
