//! Options that name a model.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::HubArgs;

/// Which model.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Model")]
pub struct ModelArgs {
    /// GGUF or packed file, Hugging Face folder, or a name that `list` shows; the built-in model if absent
    #[arg(short, long, value_name = "PATH", conflicts_with = "hf_repo")]
    pub model: Option<PathBuf>,
    /// Model of a hub, fetched unless it is on this machine: ORG/NAME or ORG/NAME:QUANT
    #[arg(long, value_name = "NAME")]
    pub hf_repo: Option<String>,
    /// File of that repository, in place of a quantisation
    #[arg(long, value_name = "PATH", requires = "hf_repo")]
    pub hf_file: Option<String>,
    /// GGUF file with the multi-token-prediction head of a model published without it
    #[arg(long, value_name = "PATH")]
    pub mtp: Option<PathBuf>,
    /// Read the files into memory instead of mapping them
    #[arg(long)]
    pub no_mmap: bool,
    /// Keep the mapped files in memory: nothing of them is ever paged out
    #[arg(long, conflicts_with = "no_mmap")]
    pub mlock: bool,
    /// How the files come into memory; in place of --no-mmap and --mlock
    #[arg(long, value_name = "HOW", conflicts_with_all = ["no_mmap", "mlock"])]
    pub load_mode: Option<LoadMode>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub hub: HubArgs,
}

impl ModelArgs {
    /// Whether a model is named, so that it is not the one in the binary.
    #[must_use]
    pub fn is_named(&self) -> bool {
        self.model.is_some() || self.hf_repo.is_some()
    }
}

/// How the files of a model come into memory, by llama.cpp's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LoadMode {
    /// Mapped
    Auto,
    /// Read
    #[value(alias = "dio")]
    None,
    /// Mapped
    Mmap,
    /// Mapped and kept in memory
    #[value(name = "mlock", alias = "mmap+mlock")]
    Mlock,
}
