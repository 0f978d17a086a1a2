//! Options of `doctor`.

use clap::Args;

use super::ComputeArgs;

/// Look at this machine.
#[derive(Args, Debug)]
pub struct DoctorArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub compute: ComputeArgs,
}
