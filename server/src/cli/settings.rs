//! The command line checked and resolved: what the commands work with.

use std::io::Read;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use millpond::backend::cpu::Arithmetic;
use millpond::engine::{EngineOptions, MAX_DRAFT, SpecMode};
use millpond::file::mmap::LockError;
use millpond::load::{LoadError, is_prediction_head};
use millpond::model::{LoadOptions, Model, ModelError};
use millpond::par::PassThreads;
use millpond::runner::BufferOptions;
use millpond::state::cursor::PREFILL_CHUNK;
use millpond::state::memory::KvType;
use millpond::text::Tokenizer;
use millpond_simd::Isa;

use super::args::{ArithmeticName, CacheType, ComputeArgs, DeviceName, LoadMode, ModelArgs, SpeculationArgs};
use super::failure::usage;
use super::output;
use super::progress::Progress;
use crate::built_in;

/// Most threads.
const MAX_THREADS: usize = 1024;
/// Most rows of a pass.
const MAX_ROWS: usize = 1 << 20;
/// Longest text a command reads, in bytes.
const MAX_TEXT: u64 = 256 << 20;

/// Whether this program knows how to compute on a CUDA card.
#[must_use]
pub(crate) fn has_cuda() -> bool {
    cfg!(feature = "cuda")
}

/// Loads the model named, or the one in the binary.
///
/// # Errors
/// What is wrong with the model's files.
pub fn load_model(args: &ModelArgs) -> anyhow::Result<Arc<Model>> {
    let started = std::time::Instant::now();
    let located = super::models::locate(args)?;
    let model = match &located {
        Some(path) => {
            let failed = || format!("cannot load {}", path.display());
            check_addresses(path, super::machine::address_room()).with_context(failed)?;
            load_file(path, args).with_context(failed)?
        }
        None if args.mtp.is_some() => {
            return Err(usage("a prediction head needs the model it belongs to (-m)"));
        }
        None => Model::from_static(built_in::bytes()).context("cannot load the built-in model")?,
    };
    if located.is_none() && locks(args) {
        tracing::warn!("--mlock does not apply to the built-in model: it is part of the program");
    }
    tracing::info!(
        name = model.info.name,
        parameters = model.info.parameters,
        bytes = model.info.bytes,
        milliseconds = started.elapsed().as_millis() as u64,
        "model loaded"
    );
    Ok(model)
}

/// Memory beside the model's file without which nothing runs.
const LEAST_BESIDE: u64 = 80 << 20;

/// Refuses a model that the limit on addresses leaves no room for: where it is reached later, allocations end the process.
fn check_addresses(path: &Path, room: Option<u64>) -> anyhow::Result<()> {
    let needed = bytes_on_disk(path).saturating_add(LEAST_BESIDE);
    match room.filter(|&room| room < needed) {
        None => Ok(()),
        Some(room) => anyhow::bail!(
            "it needs {} with what runs beside it, and the limit on addresses (ulimit -v) leaves {}",
            super::output::bytes(needed),
            super::output::bytes(room)
        ),
    }
}

fn locks(args: &ModelArgs) -> bool {
    args.mlock || args.load_mode == Some(LoadMode::Mlock)
}

/// Loads a file or folder. Where the system does not let it be locked, it is used without, with a word about the limit.
fn load_file(path: &Path, args: &ModelArgs) -> Result<Arc<Model>, ModelError> {
    let no_mmap = args.no_mmap || args.load_mode == Some(LoadMode::None);
    let progress = Some(shown_progress(path));
    let options = LoadOptions {
        no_mmap,
        mtp: args.mtp.clone(),
        mlock: locks(args),
        progress,
        ..LoadOptions::default()
    };
    match Model::load(path, &options) {
        Err(error) if is_refused_lock(&error) => {
            let limit = super::machine::lock_limit();
            let limit =
                limit.map(|limit| format!(" (limit: {limit}; `ulimit -l` raises it)")).unwrap_or_default();
            tracing::warn!("--mlock: {error}{limit}; going on without");
            Model::load(path, &LoadOptions { mlock: false, ..options })
        }
        other => other,
    }
}

/// Shows that a file is being loaded, and how much of it has been read; a mapped one is there at once. It leaves the screen
/// when the loading options do.
fn shown_progress(path: &Path) -> millpond::model::Progress {
    let what = format!("loading {}", path.display());
    let shown = Progress::waiting(&what);
    millpond::model::Progress::new(move |loaded| {
        if loaded.done < loaded.total {
            let (done, total) = (output::bytes(loaded.done), output::bytes(loaded.total));
            shown.say(format!("{what}: {done} of {total}"));
        } else {
            shown.say(what.clone());
        }
        ControlFlow::Continue(())
    })
}

fn is_refused_lock(error: &ModelError) -> bool {
    let ModelError::Load(LoadError::Io { source, .. }) = error else { return false };
    source.get_ref().is_some_and(|inner| inner.is::<LockError>())
}

/// Bytes of a model's files: of one file, or of all in its folder.
#[must_use]
pub fn bytes_on_disk(path: &Path) -> u64 {
    let length = |path: &Path| std::fs::metadata(path).map_or(0, |metadata| metadata.len());
    if !path.is_dir() {
        return length(path);
    }
    let entries = std::fs::read_dir(path).into_iter().flatten();
    entries.filter_map(|entry| Some(length(&entry.ok()?.path()))).sum()
}

/// Loads the model named, and what drafts for it: a prediction head becomes part of the model, a model comes beside it.
///
/// # Errors
/// As [`load_model`].
pub fn load_with_draft(
    args: &ModelArgs,
    speculation: &SpeculationArgs,
) -> anyhow::Result<(Arc<Model>, Option<Arc<Model>>)> {
    let Some(path) = speculation.model_draft.as_ref().filter(|_| speculation.spec != Some(SpecMode::Off))
    else {
        return Ok((load_model(args)?, None));
    };
    let failed = || format!("cannot load {}", path.display());
    if !is_prediction_head(path).with_context(failed)? {
        let draft = load_file(path, &ModelArgs { mtp: None, ..args.clone() }).with_context(failed)?;
        return Ok((load_model(args)?, Some(draft)));
    }
    if args.mtp.is_some() {
        return Err(usage("--mtp and --model-draft both name a prediction head"));
    }
    Ok((load_model(&ModelArgs { mtp: Some(path.clone()), ..args.clone() })?, None))
}

/// Adds what the command line says about speculation to an engine's options.
///
/// # Errors
/// Wrong usage.
pub fn speculation(
    args: &SpeculationArgs,
    draft: Option<Arc<Model>>,
    mut options: EngineOptions,
) -> anyhow::Result<EngineOptions> {
    if args.spec == Some(SpecMode::Draft) && draft.is_none() {
        return Err(usage("--spec draft needs a draft model (--model-draft)"));
    }
    options.spec = args.spec.unwrap_or(options.spec);
    options.spec_draft_max = args.spec_draft_n_max.unwrap_or(options.spec_draft_max);
    options.spec_draft_min = args.spec_draft_n_min.unwrap_or(options.spec_draft_min);
    if options.spec_draft_max > MAX_DRAFT {
        return Err(usage(format!("--spec-draft-n-max {} exceeds {MAX_DRAFT}", options.spec_draft_max)));
    }
    if options.spec_draft_min > options.spec_draft_max {
        return Err(usage(format!(
            "--spec-draft-n-min {} exceeds the longest draft",
            options.spec_draft_min
        )));
    }
    options.draft_model = draft;
    options.draft_vocabulary = args.spec_vocabulary;
    Ok(options)
}

/// The tokenizer of a model.
///
/// # Errors
/// The model came without one.
pub fn tokenizer(model: &Model) -> anyhow::Result<&Arc<Tokenizer>> {
    model.tokenizer.as_ref().context("the model came without a tokenizer")
}

/// How to compute.
#[derive(Clone, Debug)]
pub struct Compute {
    /// Worker threads; 0 for one per physical core.
    pub threads: usize,
    /// Worker threads of passes that read a prompt; 0 for as many.
    pub prefill_threads: usize,
    /// Most rows of prompts in a pass, if somebody says.
    pub prefill_rows: Option<usize>,
    /// Instruction-set level.
    pub isa: Isa,
    /// Precision of the attention cache.
    pub kv_type: KvType,
    /// How the state of sequences is kept.
    pub buffer: BufferOptions,
    /// What quantised weights are multiplied with.
    pub arithmetic: Arithmetic,
    /// What computes.
    pub device: DeviceName,
}

impl Compute {
    /// Checks `args`; `kv_type` is what the attention cache is kept in if they do not say.
    ///
    /// # Errors
    /// Wrong usage.
    pub fn new(args: &ComputeArgs, kv_type: KvType) -> anyhow::Result<Compute> {
        for (option, count) in [("--threads", args.threads), ("--threads-batch", args.threads_batch)] {
            if count > MAX_THREADS {
                return Err(usage(format!("{option} {count} exceeds {MAX_THREADS}")));
            }
        }
        if args.device == DeviceName::Cuda && !has_cuda() {
            anyhow::bail!("--device cuda: this build has no CUDA backend");
        }
        let isa = match &args.isa {
            None => Isa::detect(),
            Some(name) => available_isa(name)?,
        };
        if args.buffer == 0 || args.buffer > 4096 {
            return Err(usage(format!("--buffer {} is not between 1 and 4096", args.buffer)));
        }
        let buffer = BufferOptions {
            fold_interval: args.buffer,
            stateless_below: args.no_state_below,
            state_type: args.state_type,
            ..BufferOptions::default()
        };
        let kv_type = cache_type(args, kv_type)?;
        Ok(Compute {
            threads: args.threads,
            prefill_threads: args.threads_batch,
            prefill_rows: prefill_rows(args)?,
            isa,
            kv_type,
            buffer,
            arithmetic: Arithmetic::default(),
            device: args.device,
        })
    }

    /// How many threads its passes take.
    #[must_use]
    pub fn pass_threads(&self) -> PassThreads {
        PassThreads::new(self.threads, self.prefill_threads)
    }

    /// Rows of a prompt that are read in one pass, `usual` of them where nobody says: whole chunks.
    #[must_use]
    pub fn rows(&self, usual: usize) -> usize {
        let rows = self.prefill_rows.unwrap_or(usual);
        (rows / PREFILL_CHUNK * PREFILL_CHUNK).max(PREFILL_CHUNK)
    }

    /// The same with another arithmetic.
    #[must_use]
    pub fn with_arithmetic(self, name: ArithmeticName) -> Compute {
        let arithmetic = match name {
            ArithmeticName::Fast => Arithmetic::Quantised,
            ArithmeticName::Exact => Arithmetic::Exact,
        };
        Compute { arithmetic, ..self }
    }
}

/// The smaller of the two limits that llama.cpp has.
fn prefill_rows(args: &ComputeArgs) -> anyhow::Result<Option<usize>> {
    for (option, rows) in [("--batch-size", args.batch_size), ("--ubatch-size", args.ubatch_size)] {
        if rows.is_some_and(|rows| rows == 0 || rows > MAX_ROWS) {
            let rows = rows.unwrap_or_default();
            return Err(usage(format!("{option} {rows} is not between 1 and {MAX_ROWS}")));
        }
    }
    Ok(args.batch_size.into_iter().chain(args.ubatch_size).min())
}

fn available_isa(name: &str) -> anyhow::Result<Isa> {
    let isa: Isa = name.parse().map_err(|error| usage(format!("--isa: {error}")))?;
    if isa.is_available() {
        return Ok(isa);
    }
    let available: Vec<&str> = Isa::available().iter().map(|isa| isa.name()).collect();
    anyhow::bail!("this processor lacks {isa}; it has {}", available.join(", "))
}

fn cache_type(args: &ComputeArgs, default: KvType) -> anyhow::Result<KvType> {
    let kv_type = |name| match name {
        CacheType::F32 => KvType::F32,
        CacheType::F16 => KvType::F16,
        CacheType::Q8 => KvType::Q8,
    };
    match (args.cache_type_k, args.cache_type_v) {
        (Some(keys), Some(values)) if keys != values => {
            Err(usage("-ctk and -ctv must be the same: keys and values share pages"))
        }
        (Some(name), _) | (None, Some(name)) => Ok(kv_type(name)),
        (None, None) => Ok(default),
    }
}

/// Words of a command line as one text; `None` if there are none.
#[must_use]
pub fn joined(words: &[String]) -> Option<String> {
    (!words.is_empty()).then(|| words.join(" "))
}

/// The text a command was given: directly, or in a file. A file's last line break is not part of it, as in llama.cpp.
///
/// # Errors
/// The file cannot be read or is no UTF-8.
pub fn text_of(direct: Option<&str>, file: Option<&Path>) -> anyhow::Result<Option<String>> {
    match (direct, file) {
        (Some(text), _) => Ok(Some(text.to_owned())),
        (None, Some(path)) => Ok(Some(without_last_break(read_text(path)?))),
        (None, None) => Ok(None),
    }
}

/// Reads a text file; `-` is standard input.
///
/// # Errors
/// The file cannot be read, is no UTF-8, or is too long.
pub fn read_text(path: &Path) -> anyhow::Result<String> {
    if path == Path::new("-") {
        return read_stdin();
    }
    let file = std::fs::File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    read_bounded(file, path)
}

/// All of standard input.
///
/// # Errors
/// As [`read_text`].
pub fn read_stdin() -> anyhow::Result<String> {
    read_bounded(std::io::stdin().lock(), &PathBuf::from("standard input"))
}

fn read_bounded(source: impl Read, name: &Path) -> anyhow::Result<String> {
    let mut bytes = Vec::new();
    source
        .take(MAX_TEXT + 1)
        .read_to_end(&mut bytes)
        .with_context(|| format!("cannot read {}", name.display()))?;
    if bytes.len() as u64 > MAX_TEXT {
        anyhow::bail!("{} is longer than {} MiB", name.display(), MAX_TEXT >> 20);
    }
    String::from_utf8(bytes).with_context(|| format!("{} is no UTF-8 text", name.display()))
}

fn without_last_break(mut text: String) -> String {
    if text.ends_with('\n') {
        text.pop();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_that_addresses_leave_no_room_for_is_refused_before_it_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.gguf");
        std::fs::write(&path, [0; 5000]).unwrap();
        assert!(check_addresses(&path, None).is_ok());
        assert!(check_addresses(&path, Some(LEAST_BESIDE + 5000)).is_ok());
        let error = check_addresses(&path, Some(LEAST_BESIDE + 4999)).unwrap_err().to_string();
        assert!(error.contains("ulimit -v"), "{error}");
    }

    #[test]
    fn values_out_of_range_are_wrong_usage() {
        let bad = [
            ComputeArgs { threads: 5000, buffer: 16, ..ComputeArgs::default() },
            ComputeArgs { threads_batch: 5000, buffer: 16, ..ComputeArgs::default() },
            ComputeArgs { ubatch_size: Some(0), buffer: 16, ..ComputeArgs::default() },
            ComputeArgs { batch_size: Some(usize::MAX), buffer: 16, ..ComputeArgs::default() },
            ComputeArgs { buffer: 0, ..ComputeArgs::default() },
            ComputeArgs { buffer: 16, isa: Some("sse9".to_owned()), ..ComputeArgs::default() },
            ComputeArgs {
                buffer: 16,
                cache_type_k: Some(CacheType::F16),
                cache_type_v: Some(CacheType::F32),
                ..ComputeArgs::default()
            },
        ];
        for args in bad {
            let error = Compute::new(&args, KvType::F16).unwrap_err();
            assert_eq!(super::super::failure::exit_code(&error), 2, "{args:?}");
        }
    }

    #[test]
    fn one_cache_type_stands_for_both() {
        let args = ComputeArgs { buffer: 16, cache_type_v: Some(CacheType::F32), ..ComputeArgs::default() };
        assert_eq!(Compute::new(&args, KvType::F16).unwrap().kv_type, KvType::F32);
    }

    #[test]
    fn the_smaller_batch_counts_in_whole_chunks() {
        let rows = |batch, ubatch| {
            let args =
                ComputeArgs { buffer: 16, batch_size: batch, ubatch_size: ubatch, ..ComputeArgs::default() };
            Compute::new(&args, KvType::F16).unwrap().rows(512)
        };
        assert_eq!(rows(None, None), 512);
        assert_eq!(rows(Some(2048), Some(300)), 256);
        assert_eq!(rows(Some(128), Some(512)), 128);
        assert_eq!(rows(Some(1), None), 64);
    }

    #[test]
    fn a_file_loses_its_last_line_break_only() {
        assert_eq!(without_last_break("a\n\n".to_owned()), "a\n");
        assert_eq!(without_last_break("a".to_owned()), "a");
    }
}
