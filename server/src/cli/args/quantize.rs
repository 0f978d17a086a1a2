//! Options of `quantize`, and those it shares with `pack`.

use std::path::PathBuf;

use clap::Args;

/// Make a smaller GGUF file of a model.
#[derive(Args, Debug)]
pub struct QuantizeArgs {
    /// GGUF file or Hugging Face folder, in F32, F16 or BF16
    #[arg(value_name = "IN")]
    pub input: PathBuf,
    /// The GGUF file to write, ggml-model-TYPE.gguf beside IN if absent; the type; the number of threads
    #[arg(value_name = "[OUT] TYPE [THREADS]", num_args = 0..=3)]
    pub rest: Vec<String>,
    /// The GGUF file to write
    #[arg(short, long, value_name = "OUT")]
    pub output: Option<PathBuf>,
    /// Q4_0, Q4_K_M, Q5_K_M, Q6_K, Q8_0; F16, BF16 or F32 to convert only
    #[arg(long = "type", value_name = "TYPE")]
    pub kind: Option<String>,
    /// How the output is made
    #[command(flatten)]
    pub making: MakingArgs,
}

/// What quantising and packing have in common.
#[derive(Args, Debug)]
pub struct MakingArgs {
    /// Threads; 0 for one per physical core
    #[arg(short, long, value_name = "N", default_value_t = 0)]
    pub threads: usize,
    /// Quantise tensors that are quantised already, adding the errors of both
    #[arg(long)]
    pub allow_requantize: bool,
    /// One format for all matrices, without the mixture that a type stands for
    #[arg(long)]
    pub pure: bool,
    /// Leave the output head as it is
    #[arg(long)]
    pub leave_output_tensor: bool,
    /// Format of the output head, such as Q8_0
    #[arg(long, value_name = "FORMAT")]
    pub output_tensor_type: Option<String>,
    /// Format of the embedding
    #[arg(long, value_name = "FORMAT")]
    pub token_embedding_type: Option<String>,
}
