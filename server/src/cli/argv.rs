//! Command lines as users of llama.cpp type them, in the form the parser takes.
//!
//! The differences: options of several letters behind one dash (`-ctk f16`), command lines without a verb
//! (`millpond -m model.gguf -p "..."` means `run`), layers on a card (`-ngl`), which name a device here, options that ask
//! for what is the case anyway (`--jinja`), options that have no meaning here (`-fa`), which are dropped with one warning,
//! and options that would change the answer and cannot be honoured (`--lora`), which are wrong usage.

use std::ffi::OsString;

use clap::{Arg, Command};

use super::llama_flags::{self, GRANTED, LAYERS, OBSOLETE, SPELLINGS, Value, meaning};

/// A command line in the parser's form.
#[derive(Debug, PartialEq, Eq)]
pub struct CommandLine {
    /// The program's name and its arguments.
    pub arguments: Vec<OsString>,
    /// Options that were dropped, as typed.
    pub ignored: Vec<String>,
    /// The number of layers that a card was to hold, where that is not 0.
    pub card_layers: Option<String>,
    /// An option that cannot be honoured, and why.
    pub refused: Option<(String, &'static str)>,
}

/// Brings a command line into the form that `command` parses.
#[must_use]
pub fn normalize(command: &Command, arguments: impl IntoIterator<Item = OsString>) -> CommandLine {
    let mut arguments = arguments.into_iter().peekable();
    let mut line =
        CommandLine { arguments: Vec::new(), ignored: Vec::new(), card_layers: None, refused: None };
    line.arguments.extend(arguments.next());
    let verb = match arguments.peek().and_then(|first| first.to_str()) {
        Some("-h" | "--help" | "-V" | "--version") | None => {
            line.arguments.extend(arguments);
            return line;
        }
        Some("help") => {
            // `help`, `help VERB`: as others spell it.
            arguments.next();
            line.arguments.extend(arguments.next());
            line.arguments.push("--help".into());
            return line;
        }
        Some(option) if option.starts_with('-') => "run".to_owned(),
        Some(verb) => {
            let verb = verb.to_owned();
            arguments.next();
            verb
        }
    };
    line.arguments.push(verb.clone().into());
    let options = command.find_subcommand(&verb).unwrap_or(command);
    while let Some(argument) = arguments.next() {
        if argument == "--" {
            line.arguments.push(argument);
            line.arguments.extend(arguments);
            break;
        }
        let Some(text) = argument.to_str().filter(|text| text.len() > 1 && text.starts_with('-')) else {
            line.arguments.push(argument);
            continue;
        };
        let option = spelled(text);
        let name = option.split_once('=').map_or(option.as_str(), |(name, _)| name).to_owned();
        if find(options, &option).is_none() {
            let attached = option.split_once('=').map(|(_, value)| OsString::from(value));
            if LAYERS.contains(&name.as_str()) {
                let layers = attached.or_else(|| arguments.next());
                line.layers(options, &layers.unwrap_or_default().to_string_lossy());
                continue;
            }
            if let Some(value) = meaning(GRANTED, &name) {
                drop_value(value, attached.is_some(), &mut arguments);
                continue;
            }
            if let Some(value) = meaning(OBSOLETE, &name) {
                drop_value(value, attached.is_some(), &mut arguments);
                line.ignored.push(text.to_owned());
                continue;
            }
            if let Some(reason) = llama_flags::refusal(&name) {
                line.refused.get_or_insert((text.to_owned(), reason));
            }
        }
        let takes_next = !option.contains('=') && find(options, &option).is_some_and(takes_value);
        line.arguments.push(option.into());
        if takes_next {
            line.arguments.extend(arguments.next());
        }
    }
    line
}

impl CommandLine {
    /// Takes the number of layers that a card is to hold: none mean the processor, any the fastest device there is.
    fn layers(&mut self, options: &Command, layers: &str) {
        let device = if layers == "0" { "cpu" } else { "auto" };
        if layers != "0" {
            self.card_layers = Some(layers.to_owned());
        }
        // A device that the line names itself, before or after, is what counts.
        if find(options, "--device").is_some() {
            self.arguments.splice(2..2, ["--device".into(), device.into()]);
        }
    }
}

/// The option in the parser's spelling: dashes for underscores, two dashes before words.
fn spelled(text: &str) -> String {
    if text.starts_with("--") {
        let (name, value) = text.split_once('=').map_or((text, None), |(name, value)| (name, Some(value)));
        let name = name.replace('_', "-");
        return value.map_or(name.clone(), |value| format!("{name}={value}"));
    }
    if let Some((_, long)) = SPELLINGS.iter().find(|(short, _)| *short == text) {
        return (*long).to_owned();
    }
    let letters = &text[1..];
    let mut characters = letters.chars();
    let first = characters.next();
    let rest = characters.as_str();
    let glued_number = rest.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '=' | '-' | '.'));
    let repeated = letters.chars().all(|c| Some(c) == first);
    let number = letters.parse::<f64>().is_ok();
    let known = llama_flags::is_known(text);
    if rest.is_empty() || glued_number || repeated || number || known {
        text.to_owned()
    } else {
        // Nothing here has such a name: the parser reports it with the nearest that exists.
        format!("-{text}")
    }
}

fn drop_value(
    value: Value,
    attached: bool,
    arguments: &mut std::iter::Peekable<impl Iterator<Item = OsString>>,
) {
    let follows = match value {
        Value::None => false,
        Value::One => true,
        Value::Word(words) => {
            arguments.peek().and_then(|next| next.to_str()).is_some_and(|next| words.contains(&next))
        }
    };
    if follows && !attached {
        arguments.next();
    }
}

/// The option of `command` that `text` names, with one dash or two.
fn find<'a>(command: &'a Command, text: &str) -> Option<&'a Arg> {
    let name = text.split_once('=').map_or(text, |(name, _)| name);
    match name.strip_prefix("--") {
        Some(long) => command.get_arguments().find(|argument| {
            argument.get_long() == Some(long)
                || argument.get_all_aliases().is_some_and(|aliases| aliases.contains(&long))
        }),
        None => {
            let mut letters = name.chars().skip(1);
            let (short, None) = (letters.next()?, letters.next()) else { return None };
            command.get_arguments().find(|argument| {
                argument.get_short() == Some(short)
                    || argument.get_all_short_aliases().is_some_and(|aliases| aliases.contains(&short))
            })
        }
    }
}

fn takes_value(argument: &Arg) -> bool {
    argument.get_action().takes_values()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn line(text: &str) -> (Vec<String>, Vec<String>) {
        let mut command = crate::cli::args::Cli::command();
        command.build();
        let arguments = std::iter::once("millpond").chain(text.split_whitespace()).map(OsString::from);
        let line = normalize(&command, arguments);
        let arguments = line.arguments.into_iter().skip(1).map(|argument| argument.into_string().unwrap());
        (arguments.collect(), line.ignored)
    }

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn a_line_without_a_verb_runs() {
        assert_eq!(line("-m f.gguf -p hello -n 64").0, words("run -m f.gguf -p hello -n 64"));
        assert_eq!(line("--model f.gguf").0, words("run --model f.gguf"));
        assert_eq!(line("inspect f.gguf").0, words("inspect f.gguf"));
        assert_eq!(line("--help").0, words("--help"));
        assert_eq!(line("help").0, words("--help"));
        assert_eq!(line("help serve").0, words("serve --help"));
        assert_eq!(line("").0, words(""));
    }

    #[test]
    fn several_letters_behind_one_dash_are_words() {
        assert_eq!(line("run -ctk f16 -cnv").0, words("run --cache-type-k f16 --chat"));
        assert_eq!(line("run --ctx_size 5 --top_k=3").0, words("run --ctx-size 5 --top-k=3"));
        assert_eq!(line("run -tempo 1").0, words("run --tempo 1"));
        assert_eq!(line("run -n-1 -t4 -n 5").0, words("run -n-1 -t4 -n 5"));
    }

    #[test]
    fn options_without_meaning_are_dropped_and_named() {
        let (kept, ignored) = line("run -fa on -fa -m a --cache-reuse 256 --swa-full --mmap --color on -p x");
        assert_eq!(kept, words("run -m a -p x"));
        assert_eq!(ignored, ["-fa", "-fa", "--cache-reuse", "--swa-full"]);
    }

    #[test]
    fn layers_on_a_card_name_a_device() {
        for (text, expected) in [
            ("run -ngl 99 -p x", "run --device auto -p x"),
            ("run -p x --n-gpu-layers=0", "run --device cpu -p x"),
            ("-ngl 0 -p x -dev cpu", "run --device cpu -p x --device cpu"),
            ("tokenize -ngl 5 x", "tokenize x"),
        ] {
            assert_eq!(line(text), (words(expected), vec![]), "{text}");
        }
    }

    #[test]
    fn values_and_what_follows_two_dashes_stay() {
        assert_eq!(line("run -p -ngl -n 3").0, words("run -p -ngl -n 3"));
        assert_eq!(line("run -- -ngl 3").0, words("run -- -ngl 3"));
    }
}
