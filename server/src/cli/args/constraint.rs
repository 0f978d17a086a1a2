//! Options about the form of an answer.

use std::path::PathBuf;

use clap::Args;

/// What the answer has to look like.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Form of the answer")]
#[group(multiple = false)]
pub struct ConstraintArgs {
    /// Grammar of the answer, in GBNF or Lark
    #[arg(long, value_name = "GRAMMAR", allow_hyphen_values = true)]
    pub grammar: Option<String>,
    /// File with such a grammar
    #[arg(long, value_name = "PATH")]
    pub grammar_file: Option<PathBuf>,
    /// JSON schema of the answer; {} for any JSON
    #[arg(short, long, value_name = "SCHEMA")]
    pub json_schema: Option<String>,
    /// File with such a schema
    #[arg(long, value_name = "PATH")]
    pub json_schema_file: Option<PathBuf>,
}
