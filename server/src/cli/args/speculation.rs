//! Options of speculative decoding.

use std::path::PathBuf;

use clap::Args;
use millpond::engine::SpecMode;

/// How tokens are drafted before the model has seen them. Drafts change the speed of an answer and never its tokens.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Speculation")]
pub struct SpeculationArgs {
    /// Where drafts come from: auto (of what there is the best, while it pays), off, ngram (earlier text), mtp (the
    /// model's own prediction head) or draft (the draft model) [default: auto]
    #[arg(long, visible_alias = "spec-type", value_name = "SOURCE")]
    pub spec: Option<SpecMode>,
    /// Most tokens of a draft [default: 4]
    #[arg(
        long,
        visible_aliases = ["draft-max", "draft-n", "draft"],
        value_name = "N",
    )]
    pub spec_draft_n_max: Option<usize>,
    /// Fewest tokens of a draft; shorter ones are dropped [default: 0]
    #[arg(
        long,
        visible_aliases = ["draft-min", "draft-n-min"],
        value_name = "N",
    )]
    pub spec_draft_n_min: Option<usize>,
    /// File that drafts: the prediction head of a model published without it, or a small model of the same vocabulary
    #[arg(long, visible_alias = "spec-draft-model", value_name = "PATH")]
    pub model_draft: Option<PathBuf>,
    /// Tokens, from the start of the vocabulary, that the prediction head can propose; 0 for as many as are worth it
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub spec_vocabulary: usize,
}
