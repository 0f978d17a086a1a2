//! Options about how long an answer gets and what is told about it.

use clap::Args;

/// How an answer is generated.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Generation")]
pub struct GenerationArgs {
    /// Most tokens of prompt and answer together; 0 for what the model was made for
    #[arg(short, long, value_name = "N", default_value_t = 0)]
    pub ctx_size: usize,
    /// Most tokens to generate; -1 for as many as the context holds
    #[arg(
        short = 'n',
        long,
        visible_alias = "n-predict",
        value_name = "N",
        default_value_t = -1,
        allow_negative_numbers = true
    )]
    pub predict: i64,
    /// Go on after a token that ends the text
    #[arg(long)]
    pub ignore_eos: bool,
    /// Text that ends the answer; may be given several times
    #[arg(short, long, visible_alias = "stop", value_name = "TEXT", allow_hyphen_values = true)]
    pub reverse_prompt: Vec<String>,
    /// Print a line of figures to stderr after the answer
    #[arg(long)]
    pub stats: bool,
    /// Say after the answer which tokens of the prompt were reused, and why others were not
    #[arg(long)]
    pub print_cache_report: bool,
    /// Take the backslashes of -p, -r and --system-prompt as they are, instead of reading \n as a line break
    #[arg(long)]
    pub no_escape: bool,
}

impl GenerationArgs {
    /// A text from the command line, with its escapes read unless they are to stay.
    #[must_use]
    pub fn unescaped(&self, text: &str) -> String {
        if self.no_escape { text.to_owned() } else { crate::cli::escapes::replaced(text) }
    }

    /// The texts that end the answer.
    #[must_use]
    pub fn stops(&self) -> Vec<String> {
        self.reverse_prompt.iter().map(|text| self.unescaped(text)).collect()
    }
}
