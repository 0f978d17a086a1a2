//! `millpond quantize`: a smaller GGUF file of a model.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use millpond::quantize::{MixtureOptions, QuantizeError, QuantizeOptions, QuantizeType, Report, UnknownType};
use millpond_simd::quant::{QFormat, can_quantize};

use super::args::{MakingArgs, QuantizeArgs};
use super::failure::{Interrupted, usage};
use super::interrupt::Interrupt;
use super::output;
use super::progress::Progress;

/// Most threads that may be asked for.
const MAX_THREADS: usize = 1024;

impl MakingArgs {
    /// # Errors
    /// Wrong usage.
    pub(super) fn threads(&self) -> anyhow::Result<usize> {
        match self.threads > MAX_THREADS {
            true => Err(usage(format!("--threads {} exceeds {MAX_THREADS}", self.threads))),
            false => Ok(self.threads),
        }
    }

    /// # Errors
    /// Wrong usage.
    pub(super) fn mixture(&self) -> anyhow::Result<MixtureOptions> {
        let format = |name: &Option<String>| name.as_deref().map(parse_format).transpose();
        Ok(MixtureOptions {
            pure: self.pure,
            keep_output: self.leave_output_tensor,
            output: format(&self.output_tensor_type)?,
            embedding: format(&self.token_embedding_type)?,
        })
    }
}

/// Runs the command.
///
/// # Errors
/// Wrong usage, a model that cannot be read, an output that cannot be written.
pub(crate) fn run(args: &QuantizeArgs) -> anyhow::Result<()> {
    let target = Target::of(args)?;
    let requantize = args.making.allow_requantize;
    let (threads, mixture) = (target.threads, args.making.mixture()?);
    let options = QuantizeOptions { kind: target.kind, mixture, threads, requantize };
    let watcher = Watcher::start()?;
    let result = millpond::quantize::quantize(&args.input, &target.output, &options, &mut |progress| {
        watcher.watch(progress)
    });
    print_report(&target.output, &watcher.end(result)?)
}

/// What to write where.
#[derive(Debug, PartialEq, Eq)]
struct Target {
    output: PathBuf,
    kind: QuantizeType,
    threads: usize,
}

impl Target {
    /// Options, or the words after the input in the order that llama-quantize takes them: `[OUT] TYPE [THREADS]`.
    ///
    /// # Errors
    /// Wrong usage.
    fn of(args: &QuantizeArgs) -> anyhow::Result<Target> {
        let mut words = args.rest.iter().map(String::as_str).peekable();
        let named_kind = args.kind.as_deref().map(parse_type).transpose()?;
        let is_output = |word: &&str| named_kind.is_some() || word.parse::<QuantizeType>().is_err();
        let output = args.output.clone().or_else(|| words.next_if(is_output).map(PathBuf::from));
        let kind = match named_kind {
            Some(kind) => kind,
            None => {
                let missing = || usage("no type to quantise to; Q4_K_M is a good one");
                parse_type(words.next().ok_or_else(missing)?)?
            }
        };
        let threads = match words.next() {
            None => args.making.threads()?,
            Some(word) => {
                let count = word.parse().ok().filter(|count| *count <= MAX_THREADS);
                count.ok_or_else(|| usage(format!("`{word}` is no number of threads")))?
            }
        };
        if let Some(word) = words.next() {
            return Err(usage(format!("`{word}` is one word too many")));
        }
        let beside = || args.input.with_file_name(format!("ggml-model-{kind}.gguf"));
        Ok(Target { output: output.unwrap_or_else(beside), kind, threads })
    }
}

/// The type with a name.
///
/// # Errors
/// Wrong usage.
pub(super) fn parse_type(name: &str) -> anyhow::Result<QuantizeType> {
    name.parse().map_err(|error: UnknownType| usage(error.to_string()))
}

/// The format of a single tensor.
fn parse_format(name: &str) -> anyhow::Result<QFormat> {
    let known = || QFormat::ALL.into_iter().filter(|&format| can_quantize(format));
    known().find(|format| format.name().eq_ignore_ascii_case(name)).ok_or_else(|| {
        let names: Vec<&str> = known().map(QFormat::name).collect();
        usage(format!("unknown format `{name}`; one of {} expected", names.join(", ")))
    })
}

/// Shows a bar on a terminal and listens for Ctrl-C.
pub(super) struct Watcher {
    bar: Progress,
    interrupt: Interrupt,
}

impl Watcher {
    /// # Errors
    /// Ctrl-C cannot be handled.
    pub(super) fn start() -> anyhow::Result<Watcher> {
        Ok(Watcher { bar: Progress::share(), interrupt: Interrupt::install()? })
    }

    /// Shows how far the work is, and says whether to go on.
    pub(super) fn watch(&self, progress: &millpond::quantize::Progress<'_>) -> ControlFlow<()> {
        let what = format!("{}/{} {}", progress.index + 1, progress.tensors, progress.tensor);
        self.bar.set_share(progress.done, progress.total, what);
        match self.interrupt.pressed() {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    }

    /// What came of the work.
    ///
    /// # Errors
    /// The work's own; Ctrl-C.
    pub(super) fn end(self, result: Result<Report, QuantizeError>) -> anyhow::Result<Report> {
        drop(self.bar);
        match result {
            Err(QuantizeError::Interrupted) => Err(Interrupted.into()),
            Err(error @ QuantizeError::AlreadyQuantized { .. }) => {
                Err(anyhow::Error::new(error).context("quantising twice takes --allow-requantize"))
            }
            other => Ok(other?),
        }
    }
}

/// What was written, in a few lines.
///
/// # Errors
/// The reader of the output has gone.
pub(super) fn print_report(path: &Path, report: &Report) -> anyhow::Result<()> {
    for (format, tensors, bytes) in &report.formats {
        output::line(&format!("{format:8} {tensors:5} tensors, {}", output::bytes(*bytes)))?;
    }
    let bits = 8.0 * report.bytes_after as f64 / report.values.max(1) as f64;
    let (before, after) = (output::bytes(report.bytes_before), output::bytes(report.bytes_after));
    output::line(&format!("{}: {before} to {after}, {bits:.2} bits a weight", path.display()))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: QuantizeArgs,
    }

    fn target(words: &[&str]) -> Result<(String, &'static str, usize), String> {
        let line =
            Line::try_parse_from([&["quantize"], words].concat()).map_err(|error| error.to_string())?;
        let target = Target::of(&line.args).map_err(|error| error.to_string())?;
        Ok((target.output.display().to_string(), target.kind.name(), target.threads))
    }

    #[test]
    fn words_in_the_order_of_llama_quantize() {
        let expected = |output: &str, kind, threads| Ok((output.to_owned(), kind, threads));
        assert_eq!(target(&["a.gguf", "b.gguf", "Q4_K_M"]), expected("b.gguf", "Q4_K_M", 0));
        assert_eq!(target(&["a.gguf", "b.gguf", "q6_k", "2"]), expected("b.gguf", "Q6_K", 2));
        assert_eq!(target(&["x/a.gguf", "Q8_0"]), expected("x/ggml-model-Q8_0.gguf", "Q8_0", 0));
        assert_eq!(target(&["a.gguf", "Q8_0", "3"]), expected("ggml-model-Q8_0.gguf", "Q8_0", 3));
        assert_eq!(target(&["a.gguf", "b.gguf", "q6_k", "1"]), expected("b.gguf", "Q6_K", 1));
        assert_eq!(target(&["a.gguf", "b.gguf", "15", "4"]), expected("b.gguf", "Q4_K_M", 4));
        assert_eq!(target(&["--pure", "a", "b", "Q4_0"]), expected("b", "Q4_0", 0));
        assert_eq!(target(&["a", "-o", "b", "--type", "F16", "-t", "5"]), expected("b", "F16", 5));
        assert_eq!(target(&["a", "b", "--type", "F16"]), expected("b", "F16", 0));
    }

    #[test]
    fn words_that_make_no_sense() {
        for (words, named) in [
            (&["a"][..], "no type"),
            (&["a", "b"], "no type"),
            (&["a", "b", "Q4_0", "9999"], "threads"),
            (&["a", "b", "Q4_0", "-t", "9999"], "9999"),
            (&["a", "b", "Q4_0", "-o", "c"], "unknown type `b`"),
            (&["a", "b", "c", "--type", "Q4_0"], "`c` is no number"),
            (&["a", "Q4_0", "1", "2"], "`2` is one word too many"),
        ] {
            let error = target(words).expect_err("no command line");
            assert!(error.contains(named), "{error}");
        }
        assert!(parse_format("Q2_K").is_err());
        assert_eq!(parse_format("q8_0").expect("a format"), QFormat::Q8_0);
    }
}
