//! The command line: one file for each verb.

mod answer;
pub mod args;
pub mod argv;
mod bandwidth;
mod bench;
mod bench_report;
mod chat;
mod chat_line;
mod completions;
mod doctor;
mod evaluate;
pub mod failure;
mod folders;
mod inspect;
mod interrupt;
mod logits;
mod machine;
mod output;
mod perplexity;
mod run;
mod sampling;
mod serve;
pub mod settings;
mod tokenize;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches};

use args::{Cli, Verb};

/// Runs a command line, the program's name first.
#[must_use]
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let command = Cli::command();
    let line = argv::normalize(&command, arguments);
    let parsed =
        command.try_get_matches_from(line.arguments).and_then(|matches| Cli::from_arg_matches(&matches));
    let cli = match parsed {
        Ok(cli) => cli,
        Err(error) => return report_usage(&error),
    };
    if !line.ignored.is_empty() {
        eprintln!("millpond: ignored, as they have no meaning here: {}", line.ignored.join(" "));
    }
    match dispatch(&cli.verb) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            failure::report(&error);
            ExitCode::from(failure::exit_code(&error))
        }
    }
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
        Verb::Tokenize(args) => tokenize::run(args),
        Verb::Logits(args) => logits::run(args),
        Verb::Bench(args) => bench::run(args),
        Verb::Doctor(args) => doctor::run(args),
        Verb::Completions(args) => completions::run(args),
        Verb::Perplexity(args) => perplexity::run(args),
    }
}
