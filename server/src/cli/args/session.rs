//! Options of `session`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{ComputeArgs, GenerationArgs, ModelArgs, SamplingArgs};

/// Saved states of texts, to go on from.
#[derive(Args, Debug)]
pub struct SessionArgs {
    /// Folder of the sessions [default: millpond/sessions in the user's state folder]
    #[arg(long, visible_alias = "slot-save-path", value_name = "PATH", global = true)]
    pub session_dir: Option<PathBuf>,
    /// What to do.
    #[command(subcommand)]
    pub action: SessionAction,
}

/// What to do with sessions.
#[derive(Debug, Subcommand)]
pub enum SessionAction {
    /// List the sessions
    #[command(visible_alias = "ls")]
    List(SessionListArgs),
    /// Show one session
    Show(SessionShowArgs),
    /// Read a text and save the state behind it
    Save(Box<SessionSaveArgs>),
    /// Go on from a saved state
    Load(Box<SessionLoadArgs>),
    /// Delete sessions
    #[command(visible_alias = "rm")]
    Delete(SessionDeleteArgs),
}

/// List the sessions.
#[derive(Args, Debug)]
pub struct SessionListArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Show one session.
#[derive(Args, Debug)]
pub struct SessionShowArgs {
    /// Its name
    pub name: String,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Delete sessions.
#[derive(Args, Debug)]
pub struct SessionDeleteArgs {
    /// Their names
    #[arg(required = true)]
    pub names: Vec<String>,
}

/// Save a session.
#[derive(Args, Debug)]
pub struct SessionSaveArgs {
    /// Name of the session: letters, digits, '-', '_' and inner '.'
    pub name: String,
    /// The text; its words are joined
    #[arg(value_name = "TEXT")]
    pub text: Vec<String>,
    /// File with the text; `-` for standard input
    #[arg(short, long, value_name = "PATH", conflicts_with = "text")]
    pub file: Option<PathBuf>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub model: ModelArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub compute: ComputeArgs,
}

/// Go on from a session.
#[derive(Args, Debug)]
pub struct SessionLoadArgs {
    /// Name of the session
    pub name: String,
    /// Text that follows what was saved; its words are joined
    #[arg(value_name = "TEXT")]
    pub text: Vec<String>,
    /// File with that text; `-` for standard input
    #[arg(short, long, value_name = "PATH", conflicts_with = "text")]
    pub file: Option<PathBuf>,
    /// Save the state at the end under this name, which may be the same
    #[arg(long, value_name = "NAME")]
    pub save_as: Option<String>,
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
