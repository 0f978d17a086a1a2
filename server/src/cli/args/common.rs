//! Options that every verb takes.

use std::path::PathBuf;

use clap::{ArgAction, Args};

/// What the program reads its settings from, and what it says about its work.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Program")]
pub struct CommonArgs {
    /// Configuration file [default: millpond/config.toml in the user's configuration folder]
    #[arg(long, value_name = "PATH", global = true)]
    pub config: Option<PathBuf>,
    /// Say more on standard error; given twice or three times, still more
    #[arg(short, long, action = ArgAction::Count, global = true)]
    pub verbose: u8,
    /// Write a log to a file, after what is in it
    #[arg(long, value_name = "PATH", global = true)]
    pub log_file: Option<PathBuf>,
    /// Write the log as JSON, one object a line
    #[arg(long, global = true)]
    pub log_jsonl: bool,
}
