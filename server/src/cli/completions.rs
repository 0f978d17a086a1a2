//! `millpond completions`: scripts for shells.

use clap::CommandFactory;

use super::args::{Cli, CompletionsArgs};
use super::output;

/// Runs the command.
///
/// # Errors
/// The reader of the output has gone.
pub(crate) fn run(args: &CompletionsArgs) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "millpond", &mut script);
    output::piece(&String::from_utf8(script)?)
}
