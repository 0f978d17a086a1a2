//! Options of `tokenize`.

use std::path::PathBuf;

use clap::Args;

use super::ModelArgs;

/// Turn text into token ids.
#[derive(Args, Debug)]
pub struct TokenizeArgs {
    /// The text; its words are joined
    #[arg(value_name = "TEXT")]
    pub text: Vec<String>,
    /// The text
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true, conflicts_with = "text")]
    pub prompt: Option<String>,
    /// File with the text; `-` for standard input
    #[arg(short, long, value_name = "PATH", conflicts_with_all = ["text", "prompt"])]
    pub file: Option<PathBuf>,
    /// Read control tokens written in the text as plain text
    #[arg(long)]
    pub no_parse_special: bool,
    /// Print the ids alone, as a JSON list
    #[arg(long)]
    pub ids: bool,
    /// Print ids and texts as JSON
    #[arg(long, conflicts_with_all = ["ids", "show_count"])]
    pub json: bool,
    /// Print the number of tokens alone
    #[arg(long, conflicts_with = "ids")]
    pub show_count: bool,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub model: ModelArgs,
}
