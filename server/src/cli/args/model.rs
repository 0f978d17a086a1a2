//! Options that name a model.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

/// Which model.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Model")]
pub struct ModelArgs {
    /// GGUF or packed file, or Hugging Face folder; the built-in model if absent
    #[arg(short, long, value_name = "PATH")]
    pub model: Option<PathBuf>,
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
}

/// How the files of a model come into memory, by llama.cpp's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LoadMode {
    /// Mapped
    Auto,
    /// Read
    None,
    /// Mapped
    Mmap,
    /// Mapped and kept in memory
    #[value(name = "mlock", alias = "mmap+mlock")]
    Mlock,
}
