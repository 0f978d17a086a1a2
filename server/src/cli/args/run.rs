//! Options of `run`.

use std::path::PathBuf;

use clap::Args;

use super::ChatSettings;

/// Continue a text.
#[derive(Args, Debug)]
pub struct RunArgs {
    /// The text to continue; its words are joined. The first may be the model instead: a GGUF file or a folder
    #[arg(value_name = "PROMPT")]
    pub text: Vec<String>,
    /// The text to continue
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true)]
    pub prompt: Option<String>,
    /// File with the text to continue; `-` for standard input
    #[arg(short, long, value_name = "PATH")]
    pub file: Option<PathBuf>,
    /// Apply the model's chat template: the text is a question
    #[arg(long, visible_alias = "conversation")]
    pub chat: bool,
    /// Print the answer as JSON, with figures, when it is whole
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub settings: ChatSettings,
}
