//! Options about how tokens are chosen.

use clap::Args;

/// How tokens are chosen. What is not given has llama.cpp's default.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Sampling")]
pub struct SamplingArgs {
    /// Seed of the random choices; -1 for a fresh one [default: -1]
    #[arg(short, long, value_name = "N", allow_negative_numbers = true)]
    pub seed: Option<i64>,
    /// Temperature; 0 always takes the likeliest token [default: 0.8]
    #[arg(long, visible_alias = "temperature", value_name = "X", allow_negative_numbers = true)]
    pub temp: Option<f32>,
    /// How far the temperature moves with the entropy of what may come next; 0 leaves it alone [default: 0]
    #[arg(long, value_name = "X")]
    pub dynatemp_range: Option<f32>,
    /// Exponent of that entropy [default: 1]
    #[arg(long, value_name = "X")]
    pub dynatemp_exp: Option<f32>,
    /// Keep this many of the likeliest tokens; 0 for all [default: 40]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub top_k: Option<i32>,
    /// Keep the likeliest tokens that together reach this probability; 1 for all [default: 0.95]
    #[arg(long, value_name = "P")]
    pub top_p: Option<f32>,
    /// Keep tokens with at least this share of the largest probability [default: 0.05]
    #[arg(long, value_name = "P")]
    pub min_p: Option<f32>,
    /// Keep locally typical tokens of this probability; 1 for all [default: 1]
    #[arg(long, visible_alias = "typical-p", value_name = "P")]
    pub typical: Option<f32>,
    /// Keep logits within this many standard deviations of the largest; -1 for all [default: -1]
    #[arg(long, visible_alias = "top-nsigma", value_name = "X", allow_negative_numbers = true)]
    pub top_n_sigma: Option<f32>,
    /// Chance of removing all but the least of the probable tokens (XTC) [default: 0]
    #[arg(long, value_name = "P")]
    pub xtc_probability: Option<f32>,
    /// Probability from which a token counts as probable for XTC [default: 0.1]
    #[arg(long, value_name = "P")]
    pub xtc_threshold: Option<f32>,
    /// Divides the logits of tokens seen lately; 1 does nothing [default: 1]
    #[arg(long, value_name = "X")]
    pub repeat_penalty: Option<f32>,
    /// Tokens that count as lately; 0 none, -1 all [default: 64]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub repeat_last_n: Option<i32>,
    /// Subtracted from the logits of tokens seen lately [default: 0]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub presence_penalty: Option<f32>,
    /// Subtracted for each time they were seen [default: 0]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub frequency_penalty: Option<f32>,
    /// Strength of the penalty on repeated sequences (DRY); 0 does nothing [default: 0]
    #[arg(long, value_name = "X")]
    pub dry_multiplier: Option<f32>,
    /// Growth of DRY with each repeated token [default: 1.75]
    #[arg(long, value_name = "X")]
    pub dry_base: Option<f32>,
    /// Longest repetition that DRY leaves alone [default: 2]
    #[arg(long, value_name = "N")]
    pub dry_allowed_length: Option<u32>,
    /// Tokens that DRY looks at; 0 none, -1 all [default: -1]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub dry_penalty_last_n: Option<i32>,
    /// Mirostat in place of all samplers but the temperature: 1, 2, or 0 for none [default: 0]
    #[arg(long, value_name = "N")]
    pub mirostat: Option<u8>,
    /// Surprise of a token that Mirostat aims at, in bits (tau) [default: 5]
    #[arg(long, value_name = "X")]
    pub mirostat_ent: Option<f32>,
    /// How much of the last error Mirostat corrects (eta) [default: 0.1]
    #[arg(long, value_name = "X")]
    pub mirostat_lr: Option<f32>,
    /// Change the likelihood of a token, for instance 15043+1 or 15043-inf; may be given several times
    #[arg(short, long, value_name = "ID(+/-)BIAS")]
    pub logit_bias: Vec<String>,
    /// The samplers that run, in order, separated by semicolons
    #[arg(long, value_name = "LIST")]
    pub samplers: Option<String>,
    /// The same as letters: e penalties, d dry, s top_n_sigma, k top_k, y typ_p, p top_p, m min_p, x xtc, t temperature
    #[arg(long, visible_alias = "sampling-seq", value_name = "LETTERS", conflicts_with = "samplers")]
    pub sampler_seq: Option<String>,
}
