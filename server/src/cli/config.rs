//! The configuration file: options as on the command line, for all verbs or for one.
//!
//! ```toml
//! threads = 4
//! [serve]
//! port = 9000
//! ```

use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use clap::{Arg, ArgAction, Command};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::nearest::nearest;
use super::{folders, origin};

/// Longest configuration file, in bytes.
const MAX_FILE: u64 = 1 << 20;

/// Why a configuration file cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    /// It cannot be read.
    #[error("cannot read the configuration {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Something in it is wrong.
    #[error("{}:{line}: {message}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong.
        message: String,
    },
}

/// The file that a command line or the environment names, or the usual one if it exists.
#[must_use]
pub(crate) fn path(arguments: &[OsString]) -> Option<PathBuf> {
    let mut typed =
        arguments.iter().map(|argument| argument.to_string_lossy()).take_while(|text| text != "--");
    while let Some(text) = typed.next() {
        if text == "--config" {
            return typed.next().map(|path| PathBuf::from(path.into_owned()));
        }
        if let Some(path) = text.strip_prefix("--config=") {
            return Some(PathBuf::from(path));
        }
    }
    let named = std::env::var_os("MILLPOND_CONFIG").filter(|path| !path.is_empty()).map(PathBuf::from);
    named.or_else(|| {
        folders::configuration().map(|folder| folder.join("config.toml")).filter(|path| path.is_file())
    })
}

/// The same command with the file's values as defaults of its verbs' options.
///
/// # Errors
/// [`ConfigError`], naming the file, the line and the key.
pub(crate) fn apply(command: Command, path: &Path) -> Result<Command, ConfigError> {
    let text = read(path).map_err(|source| ConfigError::Io { path: path.to_owned(), source })?;
    let table = DeTable::parse(&text).map_err(|error| syntax_error(path, &text, &error))?;
    let wrong = |(at, message): Mistake| ConfigError::Line {
        path: path.to_owned(),
        line: line_of(&text, at),
        message,
    };
    apply_table(command, table.get_ref()).map_err(wrong)
}

fn read(path: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(MAX_FILE + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_FILE {
        return Err(std::io::Error::other(format!("longer than {MAX_FILE} bytes")));
    }
    Ok(text)
}

/// A mistake: where in the text, and what.
type Mistake = (usize, String);

fn apply_table(mut command: Command, table: &DeTable<'_>) -> Result<Command, Mistake> {
    for (key, value) in table.iter().filter(|(_, value)| !value.get_ref().is_table()) {
        let name = option_name(key);
        let verbs: Vec<String> = command.get_subcommands().map(|verb| verb.get_name().to_owned()).collect();
        let mut known = false;
        let own = command.get_arguments().find(|argument| is_named(argument, &name));
        let own = own.map(|own| Ok((own.get_id().to_string(), values_of(own, key, value)?))).transpose()?;
        if let Some((id, values)) = own {
            known = true;
            command = with_default(command, &id, values);
        }
        for verb in verbs {
            let Some(argument) = find(&command, &verb, &name) else { continue };
            let (id, values) = (argument.get_id().to_string(), values_of(argument, key, value)?);
            known = true;
            command = command.mut_subcommand(verb, |options| with_default(options, &id, values));
        }
        if !known {
            return Err(unknown_option(&command, None, key));
        }
    }
    for (key, value) in table.iter() {
        if let Some(options) = value.get_ref().as_table() {
            command = apply_verb(command, key, options)?;
        }
    }
    Ok(command)
}

fn apply_verb(
    mut command: Command,
    verb: &Spanned<std::borrow::Cow<'_, str>>,
    options: &DeTable<'_>,
) -> Result<Command, Mistake> {
    let name = verb.get_ref().to_string();
    if command.find_subcommand(&name).is_none() {
        let verbs = command.get_subcommands().map(Command::get_name);
        let near = nearest(&name, verbs).map(|near| format!("; [{near}] is near")).unwrap_or_default();
        return Err((verb.span().start, format!("[{name}]: there is no such verb{near}")));
    }
    for (key, value) in options.iter() {
        let Some(argument) = find(&command, &name, &option_name(key)) else {
            return Err(unknown_option(&command, Some(&name), key));
        };
        let (id, values) = (argument.get_id().to_string(), values_of(argument, key, value)?);
        command = command.mut_subcommand(&name, |options| with_default(options, &id, values));
    }
    Ok(command)
}

fn option_name(key: &Spanned<std::borrow::Cow<'_, str>>) -> String {
    key.get_ref().replace('_', "-")
}

fn find<'a>(command: &'a Command, verb: &str, name: &str) -> Option<&'a Arg> {
    command.find_subcommand(verb)?.get_arguments().find(|argument| is_named(argument, name))
}

/// Whether a file may call an option so.
fn is_named(argument: &Arg, name: &str) -> bool {
    let aliases = argument.get_all_aliases().unwrap_or_default();
    origin::is_settable(argument) && (argument.get_long() == Some(name) || aliases.contains(&name))
}

fn unknown_option(
    command: &Command,
    verb: Option<&str>,
    key: &Spanned<std::borrow::Cow<'_, str>>,
) -> Mistake {
    let verbs = command.get_subcommands().filter(|other| verb.is_none_or(|verb| other.get_name() == verb));
    let options = verbs.flat_map(Command::get_arguments).filter(|argument| origin::is_settable(argument));
    let near = nearest(&option_name(key), options.filter_map(Arg::get_long));
    let near = near.map(|near| format!("; {near} is near")).unwrap_or_default();
    let place = verb.map(|verb| format!(" of {verb}")).unwrap_or_default();
    (key.span().start, format!("{}: no option{place} that a file can set{near}", key.get_ref()))
}

fn with_default(options: Command, id: &str, values: Option<Vec<String>>) -> Command {
    let Some(values) = values else { return options };
    options.mut_arg(id, |argument| argument.required(false).default_values(values))
}

/// The value as the command line would have it, checked as there; `None` for a switch that stays off.
fn values_of(
    argument: &Arg,
    key: &Spanned<std::borrow::Cow<'_, str>>,
    value: &Spanned<DeValue<'_>>,
) -> Result<Option<Vec<String>>, Mistake> {
    let wrong = |message: String| (value.span().start, format!("{}: {message}", key.get_ref()));
    let values = match value.get_ref() {
        DeValue::Array(array) => {
            array.iter().map(|value| scalar(value.get_ref())).collect::<Option<Vec<_>>>()
        }
        value => scalar(value).map(|value| vec![value]),
    };
    let kind = value.get_ref().type_str();
    let values = values.ok_or_else(|| wrong(format!("a value of type {kind} means nothing here")))?;
    if matches!(argument.get_action(), ArgAction::SetTrue) {
        return match value.get_ref().as_bool() {
            Some(true) => Ok(Some(values)),
            Some(false) => Ok(None),
            None => Err(wrong(format!("true or false expected, found {kind}"))),
        };
    }
    check(argument, &values).map_err(wrong)?;
    Ok(Some(values))
}

fn scalar(value: &DeValue<'_>) -> Option<String> {
    match value {
        DeValue::String(text) => Some(text.to_string()),
        DeValue::Integer(number) => {
            i64::from_str_radix(number.as_str(), number.radix()).ok().map(|number| number.to_string())
        }
        DeValue::Float(number) => Some(number.as_str().to_owned()),
        DeValue::Boolean(value) => Some(value.to_string()),
        DeValue::Datetime(_) | DeValue::Array(_) | DeValue::Table(_) => None,
    }
}

/// Parses the values as the command line would.
fn check(argument: &Arg, values: &[String]) -> Result<(), String> {
    let long = argument.get_long().unwrap_or_default().to_owned();
    if let ArgAction::Count = argument.get_action() {
        let number = values.first().is_some_and(|value| value.parse::<u8>().is_ok());
        return if number { Ok(()) } else { Err("a small number expected".to_owned()) };
    }
    if values.len() > 1 && !matches!(argument.get_action(), ArgAction::Append) {
        return Err("one value expected, not several".to_owned());
    }
    let mut alone = Arg::new("value")
        .long(long.clone())
        .action(argument.get_action().clone())
        .value_parser(argument.get_value_parser().clone())
        .ignore_case(argument.is_ignore_case_set());
    if let Some(delimiter) = argument.get_value_delimiter() {
        alone = alone.value_delimiter(delimiter);
    }
    let command = Command::new("option").no_binary_name(true).disable_help_flag(true).arg(alone);
    let line = values.iter().map(|value| format!("--{long}={value}"));
    command.try_get_matches_from(line).map(drop).map_err(|error| first_line(&error.to_string()))
}

/// The parser's message without its hints.
pub(crate) fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned()
}

/// Every option that the file sets, with its verb where it has one. Values may be secrets: they are not told.
///
/// # Errors
/// As [`apply`].
pub(crate) fn keys(path: &Path) -> Result<Vec<String>, ConfigError> {
    let text = read(path).map_err(|source| ConfigError::Io { path: path.to_owned(), source })?;
    let table = DeTable::parse(&text).map_err(|error| syntax_error(path, &text, &error))?;
    let mut keys = Vec::new();
    for (key, value) in table.get_ref().iter() {
        match value.get_ref().as_table() {
            Some(options) => {
                keys.extend(
                    options.iter().map(|(option, _)| format!("{}.{}", key.get_ref(), option.get_ref())),
                );
            }
            None => keys.push(key.get_ref().to_string()),
        }
    }
    Ok(keys)
}

fn syntax_error(path: &Path, text: &str, error: &toml::de::Error) -> ConfigError {
    let at = error.span().map_or(0, |span| span.start);
    ConfigError::Line { path: path.to_owned(), line: line_of(text, at), message: error.message().to_owned() }
}

/// The line of a byte, from 1.
fn line_of(text: &str, at: usize) -> usize {
    1 + text.bytes().take(at).filter(|&byte| byte == b'\n').count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    use crate::cli::args::Cli;

    fn with(text: &str) -> Result<Command, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.toml");
        std::fs::write(&path, text).unwrap();
        apply(Cli::command(), &path).map_err(|error| {
            error
                .to_string()
                .replace(&folder.path().display().to_string(), "")
                .trim_start_matches('/')
                .to_owned()
        })
    }

    fn value(command: &Command, line: &[&str], id: &str) -> String {
        let matches = command.clone().try_get_matches_from(line).unwrap();
        let (_, matches) = matches.subcommand().unwrap();
        let raw = matches.get_raw(id).unwrap();
        raw.map(|value| value.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_verbs_table_goes_before_what_holds_for_all() {
        let command =
            with("temp = 0.5\nthreads = 2\nno_mmap = true\n[chat]\ntemp = 1\nstats = false\n").unwrap();
        assert_eq!(value(&command, &["millpond", "run", "x"], "temp"), "0.5");
        assert_eq!(value(&command, &["millpond", "chat"], "temp"), "1");
        assert_eq!(value(&command, &["millpond", "run", "x", "--temp", "0.1"], "temp"), "0.1");
        assert_eq!(value(&command, &["millpond", "doctor"], "threads"), "2");
        assert_eq!(value(&command, &["millpond", "run", "x"], "no_mmap"), "true");
    }

    #[test]
    fn mistakes_name_the_line_and_the_key() {
        for (text, expected) in [
            ("threads = \n", "config.toml:1: "),
            ("\ntreads = 4\n", "config.toml:2: treads: no option that a file can set; threads is near"),
            ("threads = \"many\"\n", "config.toml:1: threads: invalid value 'many' for '--threads"),
            ("no-mmap = 1\n", "config.toml:1: no-mmap: true or false expected, found integer"),
            ("[serf]\nport = 1\n", "config.toml:1: [serf]: there is no such verb; [serve] is near"),
            ("[serve]\n\nport = 70000\n", "config.toml:3: port: invalid value '70000'"),
            ("[run]\nport = 7\n", "config.toml:2: port: no option of run that a file can set"),
            ("[run]\nprompt = \"x\"\n", "config.toml:2: prompt: no option of run"),
            ("threads = [1, 2]\n", "config.toml:1: threads: one value expected"),
            ("threads = 2020-01-01\n", "config.toml:1: threads: a value of type"),
        ] {
            let message = with(text).err().unwrap();
            assert!(message.starts_with(expected), "{text:?}: {message}");
        }
    }

    #[test]
    fn keys_are_listed_with_their_verbs() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.toml");
        std::fs::write(&path, "threads = 0x10\n[serve]\napi-key = [\"a\", \"b\"]\n").unwrap();
        let mut keys = keys(&path).unwrap();
        keys.sort();
        assert_eq!(keys, ["serve.api-key", "threads"]);
    }
}
