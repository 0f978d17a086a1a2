//! Options of `man`.

use std::path::PathBuf;

use clap::Args;

/// Write manual pages.
#[derive(Args, Debug)]
pub struct ManArgs {
    /// Folder for the pages, one for each verb; the general one goes to standard output if absent
    #[arg(value_name = "FOLDER")]
    pub folder: Option<PathBuf>,
}
