//! Options of `chat`, and those that change during a conversation.

use std::path::PathBuf;

use clap::{Args, CommandFactory, FromArgMatches, Parser};

use super::{
    ComputeArgs, ConstraintArgs, GenerationArgs, ModelArgs, ReasoningArgs, SamplingArgs, SpeculationArgs,
    TemplateArgs,
};

/// Talk with a model.
#[derive(Args, Debug)]
pub struct ChatArgs {
    /// GGUF file, Hugging Face folder or name, in place of -m
    #[arg(value_name = "MODEL", conflicts_with_all = ["model", "hf_repo"])]
    pub path: Option<PathBuf>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub settings: ChatSettings,
}

/// Settings of a conversation, most of which can be changed in it, or of a single answer.
#[derive(Args, Clone, Debug, Default)]
pub struct ChatSettings {
    /// What the model is told before all else; with `run` it means --chat
    #[arg(long, value_name = "TEXT", conflicts_with = "system_prompt_file", allow_hyphen_values = true)]
    pub system_prompt: Option<String>,
    /// File with what the model is told before all else; with `run` it means --chat
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

/// Options that cannot change while a model runs.
const FIXED: [&str; 9] = [
    "model",
    "mtp",
    "model-draft",
    "spec-vocabulary",
    "ctx-size",
    "threads",
    "threads-batch",
    "batch-size",
    "ubatch-size",
];

impl ChatSettings {
    /// Changes one option by its name on the command line.
    ///
    /// # Errors
    /// No such option, or a value of the wrong kind.
    pub fn set(&mut self, name: &str, value: &str) -> anyhow::Result<()> {
        let name = name.trim_start_matches('-').replace('_', "-");
        if FIXED.contains(&name.as_str()) {
            anyhow::bail!("{name} cannot change while the model runs");
        }
        let command = ChangedSampling::command_for_update().mut_args(|argument| argument.env(None::<&str>));
        let (sampling, speculation) = (self.sampling.clone(), self.speculation.clone());
        let mut changed = ChangedSampling { sampling, speculation, predict: None };
        // The equals sign keeps negative numbers from looking like options.
        command
            .try_get_matches_from([format!("--{name}={value}")])
            .and_then(|matches| changed.update_from_arg_matches(&matches))
            .map_err(|error| anyhow::anyhow!("{}", crate::cli::config::first_line(&error.to_string())))?;
        (self.sampling, self.speculation) = (changed.sampling, changed.speculation);
        self.generation.predict = changed.predict.unwrap_or(self.generation.predict);
        Ok(())
    }
}

/// What can change during a conversation.
#[derive(Debug, Parser)]
#[command(no_binary_name = true, disable_help_flag = true)]
struct ChangedSampling {
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    speculation: SpeculationArgs,
    #[arg(long, allow_negative_numbers = true)]
    predict: Option<i64>,
}
