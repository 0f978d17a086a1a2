//! Options about how to compute.

use clap::{Args, ValueEnum};
use millpond::state::memory::StateType;

/// How to compute.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Computation")]
pub struct ComputeArgs {
    /// Threads; 0 or less for one per physical core
    #[arg(short, long, value_name = "N", default_value = "0", allow_negative_numbers = true, value_parser = threads)]
    pub threads: usize,
    /// Threads of passes that read a prompt; 0 or less for as many as --threads
    #[arg(long, value_name = "N", default_value = "0", allow_negative_numbers = true, value_parser = threads)]
    pub threads_batch: usize,
    /// Most rows of prompts in one pass, in chunks of 64: more are faster and take more memory [default: 1024]
    #[arg(long, value_name = "N")]
    pub ubatch_size: Option<usize>,
    /// The same: of --batch-size and --ubatch-size the smaller counts
    #[arg(long, value_name = "N")]
    pub batch_size: Option<usize>,
    /// What computes: the processor, or a CUDA card where the program was built for one
    #[arg(
        long,
        visible_alias = "dev",
        value_name = "NAME",
        default_value = "auto",
        ignore_case = true,
        overrides_with = "device"
    )]
    pub device: DeviceName,
    /// Instruction set (scalar, avx2, avxvnni, avx512, avx512vnni, neon, neondot, neoni8mm); the best one if absent
    #[arg(long, value_name = "NAME")]
    pub isa: Option<String>,
    /// Precision of the attention cache's keys
    #[arg(long, value_name = "TYPE")]
    pub cache_type_k: Option<CacheType>,
    /// Precision of the attention cache's values; must be that of the keys
    #[arg(long, value_name = "TYPE")]
    pub cache_type_v: Option<CacheType>,
    /// Precision of the recurrent state, f32 or bf16; the buffer and all arithmetic are in single precision either way
    #[arg(long, value_name = "TYPE", default_value_t = StateType::F32, env = "MILLPOND_STATE_TYPE")]
    pub state_type: StateType,
    /// Tokens between folds of the buffer into the recurrent state; 1 is the plain recurrence
    #[arg(long, value_name = "N", default_value_t = 16)]
    pub buffer: usize,
    /// Tokens below which a stream has no recurrent state; where buffer and state are of one size if absent
    #[arg(long, value_name = "N")]
    pub no_state_below: Option<usize>,
}

/// A number of threads: 0 for what does not name one, as in llama.cpp.
fn threads(text: &str) -> Result<usize, std::num::ParseIntError> {
    Ok(usize::try_from(text.parse::<i64>()?).unwrap_or(0))
}

/// What quantised weights are multiplied with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ArithmeticName {
    /// Activations rounded to 8 bits: what generation uses
    Fast,
    /// Activations in single precision: for comparisons with other programs
    Exact,
}

/// Precision of the attention cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CacheType {
    /// Single precision
    F32,
    /// Half precision
    F16,
    /// Eight bits with a scale for each 32 values: half the memory, for long contexts
    #[value(name = "q8_0")]
    Q8,
}

/// What computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum DeviceName {
    /// The fastest there is
    #[default]
    Auto,
    /// The processor
    #[value(alias = "none")]
    Cpu,
    /// A CUDA card
    #[value(alias = "cuda0")]
    Cuda,
}
