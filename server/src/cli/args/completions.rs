//! Options of `completions`.

use clap::Args;

/// Print completions.
#[derive(Args, Debug)]
pub struct CompletionsArgs {
    /// The shell
    pub shell: clap_complete::Shell,
}
