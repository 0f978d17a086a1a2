//! Options about how a conversation is written for the model.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

/// How a conversation is written for the model.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Conversation")]
pub struct TemplateArgs {
    /// Chat template in place of the model's own: Jinja text, or `chatml`
    #[arg(long, value_name = "TEMPLATE", conflicts_with = "chat_template_file")]
    pub chat_template: Option<String>,
    /// File with such a template
    #[arg(long, value_name = "PATH")]
    pub chat_template_file: Option<PathBuf>,
    /// Further variables for the template, a JSON object such as {"enable_thinking": false}
    #[arg(long, value_name = "JSON")]
    pub chat_template_kwargs: Option<String>,
}

/// Whether and how a model thinks, and what is shown of it.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Conversation")]
pub struct ReasoningArgs {
    /// Whether the model thinks before it answers, where its template knows the difference
    #[arg(long, value_name = "WHEN")]
    pub reasoning: Option<ReasoningName>,
    /// How hard it thinks, for templates that know `reasoning_effort`
    #[arg(long, value_name = "LEVEL")]
    pub reasoning_effort: Option<String>,
    /// 0 to keep the model from thinking, -1 to leave it alone
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub reasoning_budget: Option<i64>,
    /// What becomes of thoughts: shown beside the answer on a terminal, or left in its text
    #[arg(long, value_name = "FORM", default_value = "auto")]
    pub reasoning_format: ReasoningFormat,
}

/// Whether a model thinks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ReasoningName {
    /// Always
    On,
    /// Never
    Off,
    /// As its template has it
    Auto,
}

/// What becomes of a model's thoughts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum ReasoningFormat {
    /// On a terminal, shown apart from the answer; otherwise left out
    #[default]
    #[value(alias = "deepseek", alias = "deepseek-legacy")]
    Auto,
    /// Left in the text of the answer, with their marks
    None,
    /// Left out
    Hidden,
}
