//! Options of `run`.

use std::path::PathBuf;

use clap::Args;

use super::{ChatSettings, ComputeArgs, GenerationArgs, ModelArgs, SamplingArgs};

/// Continue a text.
#[derive(Args, Debug)]
pub struct RunArgs {
    /// The text to continue
    #[arg(value_name = "PROMPT")]
    pub text: Option<String>,
    /// The text to continue
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true, conflicts_with = "text")]
    pub prompt: Option<String>,
    /// File with the text to continue; `-` for standard input
    #[arg(short, long, value_name = "PATH", conflicts_with_all = ["text", "prompt"])]
    pub file: Option<PathBuf>,
    /// Apply the model's chat template: the text is a question
    #[arg(long, visible_alias = "conversation")]
    pub chat: bool,
    /// What the model is told before the question
    #[arg(long, value_name = "TEXT", requires = "chat", allow_hyphen_values = true)]
    pub system_prompt: Option<String>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub model: ModelArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub generation: GenerationArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub sampling: SamplingArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub compute: ComputeArgs,
}

impl RunArgs {
    /// The settings of a conversation, for a run without a prompt.
    #[must_use]
    pub fn chat_settings(&self) -> ChatSettings {
        ChatSettings {
            system_prompt: self.system_prompt.clone(),
            model: self.model.clone(),
            generation: self.generation.clone(),
            sampling: self.sampling.clone(),
            compute: self.compute.clone(),
        }
    }
}
