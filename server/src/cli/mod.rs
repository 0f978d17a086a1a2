//! The command line: one file for each verb.

mod answer;
pub mod args;
pub mod argv;
mod bench;
mod bench_report;
mod chat;
mod chat_line;
mod completions;
mod config;
mod constraint;
mod conversation;
pub mod device;
mod doctor;
mod escapes;
mod evaluate;
pub mod failure;
mod folders;
mod inspect;
mod interrupt;
mod list;
mod llama_flags;
mod logging;
mod logits;
mod machine;
mod man;
mod models;
mod nearest;
mod origin;
pub(crate) mod output;
mod pack;
mod perplexity;
mod progress;
mod ps;
mod pull;
mod quantize;
mod run;
mod running;
mod sampling;
mod serve;
mod session;
pub mod settings;
mod terminal;
mod tokenize;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches};

use args::{Cli, Verb};

/// Runs a command line, the program's name first.
#[must_use]
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    match prepare(arguments.into_iter().collect()) {
        Err(code) => code,
        Ok(cli) => match logging::start(&cli.common).and_then(|()| dispatch(&cli.verb)) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                failure::report(&error);
                ExitCode::from(failure::exit_code(&error))
            }
        },
    }
}

/// Reads a command line, with the environment and the configuration file behind it, and warns of options without
/// meaning; a code where there is nothing to run.
fn prepare(arguments: Vec<OsString>) -> Result<Cli, ExitCode> {
    let file = config::path(&arguments);
    let plain = Cli::command();
    let mut built = plain.clone();
    built.build();
    let line = argv::normalize(&built, arguments);
    if let Some((option, reason)) = line.refused {
        failure::report(&failure::usage(format!("{option}: {reason}")));
        return Err(ExitCode::from(2));
    }
    let verb = line.arguments.get(1).map(|verb| verb.to_string_lossy().into_owned()).unwrap_or_default();
    let mut command = origin::with_environment(plain);
    if let Some(file) = file {
        command = config::apply(command, &file).map_err(|error| {
            failure::report(&failure::usage(error.to_string()));
            ExitCode::from(2)
        })?;
    }
    let command = origin::without_rivals(command, &line.arguments);
    let parsed =
        command.try_get_matches_from(&line.arguments).and_then(|matches| Cli::from_arg_matches(&matches));
    let cli = parsed.map_err(|mut error| {
        nearest::complete(&mut error, &built, &verb);
        report_usage(&error)
    })?;
    if !line.ignored.is_empty() {
        output::note!("millpond: ignored, as they have no meaning here: {}", line.ignored.join(" "));
    }
    if let Some(layers) = line.card_layers.filter(|_| !settings::has_cuda()) {
        output::note!("millpond: -ngl {layers}: this build has no CUDA backend, the processor computes");
    }
    Ok(cli)
}

/// Help and version go to standard output with code 0, wrong usage to standard error with code 2.
fn report_usage(error: &clap::Error) -> ExitCode {
    match error.print() {
        Ok(()) => ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2)),
        Err(_) => ExitCode::FAILURE,
    }
}

fn dispatch(verb: &Verb) -> anyhow::Result<()> {
    match verb {
        Verb::Run(args) => run::run(args),
        Verb::Chat(args) => chat::run(args),
        Verb::Serve(args) => serve::run(args),
        Verb::Inspect(args) => inspect::run(args),
        Verb::Quantize(args) => quantize::run(args),
        Verb::Pack(args) => pack::run(args),
        Verb::Tokenize(args) => tokenize::run(args),
        Verb::Logits(args) => logits::run(args),
        Verb::Bench(args) => bench::run(args),
        Verb::Doctor(args) => doctor::run(args),
        Verb::Pull(args) => pull::run(args),
        Verb::List(args) => list::run(args),
        Verb::Rm(args) => list::remove(args),
        Verb::Ps(args) => ps::run(args),
        Verb::Session(args) => session::run(args),
        Verb::Man(args) => man::run(args),
        Verb::Completions(args) => completions::run(args),
        Verb::Perplexity(args) => perplexity::run(args),
    }
}
