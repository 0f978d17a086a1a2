//! What the libraries report while they work: warnings on standard error, more with `-v`, and a log file.

use std::fs::File;
use std::io::IsTerminal;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use tracing::Subscriber;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;

use super::args::CommonArgs;
use super::terminal;

/// Starts reporting as `args` ask for.
///
/// # Errors
/// The log file cannot be opened.
pub(crate) fn start(args: &CommonArgs) -> anyhow::Result<()> {
    let shown = match args.verbose {
        0 => LevelFilter::WARN,
        1 => LevelFilter::INFO,
        2 => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    };
    let colours = std::io::stderr().is_terminal() && !terminal::is_declined();
    let screen = fmt::layer()
        .with_writer(std::io::stderr)
        .without_time()
        .with_target(args.verbose > 0)
        .with_ansi(colours)
        .with_filter(shown);
    let file = match &args.log_file {
        Some(path) => Some(log_file(path, args.log_jsonl, shown.max(LevelFilter::INFO))?),
        None => None,
    };
    tracing_subscriber::registry().with(screen).with(file).try_init().context("cannot start the log")
}

fn log_file<S>(path: &Path, json: bool, level: LevelFilter) -> anyhow::Result<Box<dyn Layer<S> + Send + Sync>>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    let opened = File::options().create(true).append(true).open(path);
    let file = Arc::new(opened.with_context(|| format!("cannot write the log {}", path.display()))?);
    let layer = fmt::layer().with_ansi(false).with_writer(file);
    Ok(if json { layer.json().with_filter(level).boxed() } else { layer.with_filter(level).boxed() })
}
