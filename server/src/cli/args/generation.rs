//! Options about how long an answer gets and what is told about it.

use clap::Args;

/// How an answer is generated.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Generation")]
pub struct GenerationArgs {
    /// Most tokens of prompt and answer together; 0 for what the model was made for
    #[arg(short, long, value_name = "N", default_value_t = 0, env = "MILLPOND_CTX_SIZE")]
    pub ctx_size: usize,
    /// Most tokens to generate; -1 for as many as the context holds
    #[arg(
        short = 'n',
        long,
        visible_alias = "n-predict",
        value_name = "N",
        default_value_t = -1,
        allow_negative_numbers = true,
        env = "MILLPOND_PREDICT"
    )]
    pub predict: i64,
    /// Go on after a token that ends the text
    #[arg(long)]
    pub ignore_eos: bool,
    /// Text that ends the answer; may be given several times
    #[arg(short, long, visible_alias = "stop", value_name = "TEXT", allow_hyphen_values = true)]
    pub reverse_prompt: Vec<String>,
    /// Print a line of figures to stderr after the answer
    #[arg(long, env = "MILLPOND_STATS")]
    pub stats: bool,
}
