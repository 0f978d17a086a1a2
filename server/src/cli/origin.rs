//! Where options come from. The command line wins, then the environment, then the configuration file, then the default.
//!
//! Every option but those that say what one call is about can be set in the environment as `MILLPOND_` and its name. An
//! option that stands for the same thing as another ([`RIVALS`]) gives way to it if that one was typed and it was not.

use clap::builder::FalseyValueParser;
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command};

/// Options that say what one call is about: they are typed or not given.
const TYPED_ONLY: [&str; 25] = [
    "help",
    "version",
    "config",
    "prompt",
    "file",
    "text",
    "ids",
    "output",
    "json",
    "all",
    "session",
    "verify",
    "show-count",
    "no-parse-special",
    "chunks",
    "reverse-prompt",
    "grammar",
    "json-schema",
    "logit-bias",
    "type",
    "pure",
    "leave-output-tensor",
    "output-tensor-type",
    "token-embedding-type",
    "allow-requantize",
];

/// Groups of options of which one takes the place of the others.
const RIVALS: [&[&str]; 6] = [
    &["model", "path", "hf-repo", "hf-file", "mtp"],
    &["no-mmap", "mlock", "load-mode"],
    &["grammar", "grammar-file", "json-schema", "json-schema-file"],
    &["chat-template", "chat-template-file"],
    &["memory", "state-budget"],
    &["samplers", "sampler-seq"],
];

/// Whether an option may come from elsewhere than the command line.
#[must_use]
pub(crate) fn is_settable(argument: &Arg) -> bool {
    argument.get_long().is_some_and(|long| !TYPED_ONLY.contains(&long))
}

/// The same command with the environment as a source of its verbs' options.
#[must_use]
pub(crate) fn with_environment(command: Command) -> Command {
    command.mut_args(from_environment).mut_subcommands(with_environment)
}

fn from_environment(argument: Arg) -> Arg {
    let argument = match argument.get_action() {
        // Anything but 0, no, off and false switches on.
        ArgAction::SetTrue => argument.value_parser(FalseyValueParser::new()),
        _ => argument,
    };
    if !is_settable(&argument) || argument.get_env().is_some() {
        return argument;
    }
    let name = argument.get_long().unwrap_or_default().to_uppercase().replace('-', "_");
    argument.env(format!("MILLPOND_{name}"))
}

/// The same command without the environment.
fn without_environment(command: Command) -> Command {
    command.mut_args(|argument| argument.env(None::<&str>)).mut_subcommands(without_environment)
}

/// The same command, in which rivals of options that `line` types have no other source than the line.
#[must_use]
pub(crate) fn without_rivals(command: Command, line: &[std::ffi::OsString]) -> Command {
    // A line with a mistake in it is reported when it is read in earnest.
    let Ok(matches) = without_environment(command.clone()).try_get_matches_from(line) else { return command };
    let Some((verb, matches)) = matches.subcommand() else { return command };
    let Some(options) = command.find_subcommand(verb) else { return command };
    let typed: Vec<&str> =
        options.get_arguments().filter(|argument| is_typed(argument, matches)).map(name).collect();
    let silent: Vec<String> = options
        .get_arguments()
        .filter(|argument| {
            let own = name(argument);
            RIVALS.iter().any(|group| {
                group.contains(&own)
                    && !typed.contains(&own)
                    && group.iter().any(|rival| typed.contains(rival))
            })
        })
        .map(|argument| argument.get_id().to_string())
        .collect();
    command.mut_subcommand(verb, |mut options| {
        for id in silent {
            options = options.mut_arg(id, |argument| {
                let argument = argument.env(None::<&str>);
                match argument.get_action() {
                    ArgAction::SetTrue => argument.default_value("false"),
                    _ => argument.default_value(None::<&str>),
                }
            });
        }
        options
    })
}

/// An option's name, or that of a place on the line.
fn name(argument: &Arg) -> &str {
    argument.get_long().unwrap_or_else(|| argument.get_id().as_str())
}

fn is_typed(argument: &Arg, matches: &ArgMatches) -> bool {
    matches.value_source(argument.get_id().as_str()) == Some(ValueSource::CommandLine)
}
