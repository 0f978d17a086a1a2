//! Options of `run`.

use std::path::PathBuf;

use clap::Args;

use super::{
    ChatSettings, ComputeArgs, ConstraintArgs, GenerationArgs, ModelArgs, ReasoningArgs, SamplingArgs,
    SpeculationArgs, TemplateArgs,
};

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
    /// What the model is told before the question; means --chat
    #[arg(long, value_name = "TEXT", conflicts_with = "system_prompt_file", allow_hyphen_values = true)]
    pub system_prompt: Option<String>,
    /// File with what the model is told before the question; means --chat
    #[arg(long, value_name = "PATH")]
    pub system_prompt_file: Option<PathBuf>,
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
    pub constraint: ConstraintArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub template: TemplateArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub reasoning: ReasoningArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub speculation: SpeculationArgs,
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
            system_prompt_file: self.system_prompt_file.clone(),
            model: self.model.clone(),
            generation: self.generation.clone(),
            sampling: self.sampling.clone(),
            constraint: self.constraint.clone(),
            template: self.template.clone(),
            reasoning: self.reasoning.clone(),
            speculation: self.speculation.clone(),
            compute: self.compute.clone(),
        }
    }
}
