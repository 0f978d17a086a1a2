//! Options of `pack`.

use std::path::PathBuf;

use clap::Args;

use super::MakingArgs;

/// Put a model into one file that starts at once.
#[derive(Args, Debug)]
pub struct PackArgs {
    /// GGUF file or Hugging Face folder
    #[arg(value_name = "IN")]
    pub input: PathBuf,
    /// The packed file to write; IN with the ending .mill if absent
    #[arg(value_name = "OUT")]
    pub target: Option<PathBuf>,
    /// The packed file to write
    #[arg(short, long, value_name = "OUT", conflicts_with = "target")]
    pub output: Option<PathBuf>,
    /// Q4_0, Q4_K_M, Q5_K_M, Q6_K, Q8_0, F16, BF16 or F32; as it is if absent
    #[arg(long = "type", value_name = "TYPE")]
    pub kind: Option<String>,
    /// How the output is made
    #[command(flatten)]
    pub making: MakingArgs,
    /// Read the file again and compare its checksums
    #[arg(long)]
    pub verify: bool,
}
