//! `millpond man`: manual pages, written when a package is made.

use anyhow::Context;
use clap::CommandFactory;

use super::args::{Cli, ManArgs};
use super::{origin, output};

/// Runs the command.
///
/// # Errors
/// The folder cannot be written, or the reader of the output has gone.
pub(crate) fn run(args: &ManArgs) -> anyhow::Result<()> {
    let command = origin::with_environment(Cli::command());
    match &args.folder {
        Some(folder) => {
            std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
            clap_mangen::generate_to(command, folder)
                .with_context(|| format!("cannot write to {}", folder.display()))
        }
        None => {
            let mut page = Vec::new();
            clap_mangen::Man::new(command).render(&mut page)?;
            output::piece(&String::from_utf8(page)?)
        }
    }
}
