//! Options that name a model.

use std::path::PathBuf;

use clap::Args;

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
