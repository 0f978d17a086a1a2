//! How an engine is set up.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use millpond_simd::Isa;

use crate::backend::BackendError;
use crate::backend::cpu::Arithmetic;
use crate::model::Model;
use crate::par::TeamError;
use crate::runner::BufferOptions;
use crate::state::memory::KvType;

/// Where drafts come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum SpecMode {
    /// No drafts.
    Off,
    /// A draft model, the model's own head, or repetition of earlier text: of those there are, the one that promises
    /// most; and only while drafts pay.
    #[default]
    Auto,
    /// Repetition of earlier text.
    Ngram,
    /// The model's own multi-token-prediction head.
    Mtp,
    /// A draft model ([`EngineOptions::draft_model`]).
    Draft,
}

/// A name that is no [`SpecMode`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown speculation mode '{0}'; expected off, auto, ngram, mtp or draft")]
pub struct UnknownSpecMode(String);

/// Why drafts cannot come from where they are wanted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SpecError {
    /// The model has no multi-token-prediction head.
    #[error("the model has no multi-token-prediction head")]
    NoHead,
    /// There is no draft model.
    #[error("there is no draft model")]
    NoDraftModel,
    /// The draft model has another vocabulary.
    #[error("the draft model has a vocabulary of {found} tokens, the model one of {expected}")]
    VocabularySize {
        /// Tokens of the draft model.
        found: usize,
        /// Tokens of the model.
        expected: usize,
    },
    /// The draft model's vocabulary has other tokens.
    #[error("token {token} of the draft model is another one than that of the model")]
    Vocabulary {
        /// The first that differs.
        token: u32,
    },
    /// A shortest draft that is longer than the longest.
    #[error("drafts of at least {least} tokens are wanted, and of at most {most}")]
    Lengths {
        /// The shortest draft.
        least: usize,
        /// The longest.
        most: usize,
    },
}

impl FromStr for SpecMode {
    type Err = UnknownSpecMode;

    fn from_str(name: &str) -> Result<SpecMode, UnknownSpecMode> {
        match name {
            "off" | "none" => Ok(SpecMode::Off),
            "auto" => Ok(SpecMode::Auto),
            "ngram" => Ok(SpecMode::Ngram),
            "mtp" | "draft-mtp" => Ok(SpecMode::Mtp),
            "draft" | "draft-simple" => Ok(SpecMode::Draft),
            // llama.cpp tells kinds of lookup apart.
            _ if name.starts_with("ngram-") => Ok(SpecMode::Ngram),
            _ => Err(UnknownSpecMode(name.to_owned())),
        }
    }
}

impl fmt::Display for SpecMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            SpecMode::Off => "off",
            SpecMode::Auto => "auto",
            SpecMode::Ngram => "ngram",
            SpecMode::Mtp => "mtp",
            SpecMode::Draft => "draft",
        })
    }
}

/// A source of drafts. What it proposes changes the speed of a stream and never its tokens.
pub trait DraftSource: Send + Sync {
    /// Appends to the empty `draft` at most `longest` tokens that may follow `tokens`: the prompt and what has been
    /// generated. It is called on the engine's thread before every step of a stream.
    fn draft(&self, tokens: &[u32], longest: usize, draft: &mut Vec<u32>);
}

impl fmt::Debug for dyn DraftSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DraftSource")
    }
}

/// How an engine is set up. [`EngineOptions::default`] suits most machines.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// Worker threads; 0 for one per physical core.
    pub threads: usize,
    /// Threads of passes that read a prompt; 0 for as many as [`threads`](Self::threads). Where decoding is bound by
    /// memory, fewer threads are enough for it than for prompts.
    pub prefill_threads: usize,
    /// Most rows of prompts in one pass, in chunks of 64, and at least one. Scratch memory grows with them; how
    /// many fit [`max_gap`](Self::max_gap) is decided beside it.
    pub prefill_rows: usize,
    /// Instruction-set level; the best this processor has if absent.
    pub isa: Option<Isa>,
    /// Most tokens of a request, prompt and answer together; 0 for what the model was made for.
    pub context: usize,
    /// Precision of the attention cache.
    pub kv_type: KvType,
    /// What quantised weights are multiplied with.
    pub arithmetic: Arithmetic,
    /// How the state of sequences is kept.
    pub buffer: BufferOptions,
    /// Bytes that running sequences may hold; derived from the machine's memory if absent.
    pub memory_budget: Option<usize>,
    /// Bytes that the prefix cache may hold; the larger of 5 % of the machine's memory and 8 snapshots if absent.
    pub cache_budget: Option<usize>,
    /// Reuse only state that gives the very bits of a run without a cache. Otherwise prompts also go on from where an
    /// answer ended, or inside a chunk, where sums are rounded in another order.
    pub exact_cache: bool,
    /// Most requests that wait.
    pub max_queue: usize,
    /// Most requests that run at once.
    pub max_running: usize,
    /// Longest time between two tokens of a stream that a long prompt beside it may cause.
    pub max_gap: Duration,
    /// How long a stream whose receiver has stopped reading is kept; then it is cancelled.
    pub stall_timeout: Duration,
    /// Where drafts come from, unless a request says otherwise.
    pub spec: SpecMode,
    /// Longest draft. `buffer.max_window` grows to hold it.
    pub spec_draft_max: usize,
    /// Shortest draft: shorter ones are dropped.
    pub spec_draft_min: usize,
    /// A small model of the same vocabulary that drafts. It runs on the processor, each stream on a sequence of its own.
    pub draft_model: Option<Arc<Model>>,
    /// Whether draft lengths adapt to what pays. Otherwise drafts are always as long as they may be: for measurements.
    pub spec_adaptive: bool,
    /// Proposes drafts in place of the repetition of earlier text.
    pub draft_source: Option<Arc<dyn DraftSource>>,
    /// Takes the place of what the prediction head or the draft model proposes, after they have computed it: for
    /// measurements of speed at an acceptance of one's choice.
    pub draft_override: Option<Arc<dyn DraftSource>>,
    /// Tokens of the vocabulary, from its start, that the prediction head can propose; 0 for as many as are worth
    /// their reading.
    pub draft_vocabulary: usize,
    /// Folder for what the prefix cache has no room for in memory; without one, that is dropped. What is held when the engine
    /// stops goes there too, and comes back when a prompt begins with its tokens.
    pub cache_dir: Option<PathBuf>,
    /// Bytes that the files there may have, for this model.
    pub cache_dir_budget: u64,
    /// Folder of saved sessions; without one, sessions can be neither saved nor loaded.
    pub session_dir: Option<PathBuf>,
}

impl Default for EngineOptions {
    fn default() -> EngineOptions {
        EngineOptions {
            threads: 0,
            prefill_threads: 0,
            prefill_rows: 1024,
            isa: None,
            context: 0,
            kv_type: KvType::default(),
            arithmetic: Arithmetic::default(),
            buffer: BufferOptions::default(),
            memory_budget: None,
            cache_budget: None,
            exact_cache: false,
            max_queue: 256,
            max_running: 16,
            max_gap: Duration::from_millis(500),
            stall_timeout: Duration::from_secs(60),
            spec: SpecMode::Auto,
            spec_draft_max: 4,
            spec_draft_min: 0,
            draft_model: None,
            spec_adaptive: true,
            draft_source: None,
            draft_override: None,
            draft_vocabulary: 0,
            cache_dir: None,
            cache_dir_budget: 4 << 30,
            session_dir: None,
        }
    }
}

impl EngineOptions {
    /// Refuses drafts that cannot be.
    pub(super) fn check_speculation(&self, model: &Model) -> Result<(), SpecError> {
        let (least, most) = (self.spec_draft_min, self.spec_draft_max);
        if least > most {
            return Err(SpecError::Lengths { least, most });
        }
        self.check_source(self.spec, model)
    }

    /// Refuses a source of drafts that is not there.
    pub(super) fn check_source(&self, mode: SpecMode, model: &Model) -> Result<(), SpecError> {
        match mode {
            SpecMode::Mtp if model.weights.mtp.is_none() => Err(SpecError::NoHead),
            SpecMode::Draft if self.draft_model.is_none() => Err(SpecError::NoDraftModel),
            _ => Ok(()),
        }
    }
}

/// Why an engine could not be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// The processor lacks an instruction-set level.
    #[error("this processor lacks {0}")]
    Isa(Isa),
    /// No worker threads.
    #[error(transparent)]
    Team(#[from] TeamError),
    /// The backend does not take the model.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// No thread for the engine itself.
    #[error("cannot start the engine's thread: {0}")]
    Thread(std::io::Error),
    /// Options that contradict each other or the model.
    #[error("{0}")]
    Options(String),
    /// Drafts that cannot come from where they are wanted.
    #[error(transparent)]
    Spec(#[from] SpecError),
}
