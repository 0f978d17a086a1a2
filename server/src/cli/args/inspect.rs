//! Options of `inspect`.

use std::path::PathBuf;

use clap::Args;

/// Show what is inside a model file.
#[derive(Args, Debug)]
pub struct InspectArgs {
    /// GGUF or packed file, Hugging Face folder, or a name that `list` shows; the built-in model if absent
    #[arg(value_name = "PATH")]
    pub path: Option<PathBuf>,
    /// The same, as other verbs take it
    #[arg(short, long, value_name = "PATH", conflicts_with = "path")]
    pub model: Option<PathBuf>,
    /// Compare the checksums of a packed file, which reads all of it
    #[arg(long)]
    pub verify: bool,
    /// List every tensor and every key
    #[arg(long, short)]
    pub all: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}
