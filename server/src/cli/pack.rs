//! `millpond pack`: a model in one file that is used where it lies.

use std::path::PathBuf;

use anyhow::Context;
use millpond::quantize::{MixtureOptions, PackOptions};

use super::args::PackArgs;
use super::failure::usage;
use super::progress::Progress;
use super::quantize::{Watcher, parse_type, print_report};

/// Runs the command.
///
/// # Errors
/// Wrong usage, a model that cannot be read, an output that cannot be written.
pub(crate) fn run(args: &PackArgs) -> anyhow::Result<()> {
    let kind = args.kind.as_deref().map(parse_type).transpose()?;
    let mixture = args.making.mixture()?;
    if kind.is_none() && mixture != MixtureOptions::default() {
        return Err(usage("formats of tensors can be chosen together with a --type only"));
    }
    let options = PackOptions {
        kind,
        mixture,
        threads: args.making.threads()?,
        requantize: args.making.allow_requantize,
    };
    let output = output_of(args)?;
    let watcher = Watcher::start()?;
    let result =
        millpond::quantize::pack(&args.input, &output, &options, &mut |progress| watcher.watch(progress));
    let report = watcher.end(result)?;
    if args.verify {
        let _waiting = Progress::waiting("comparing checksums");
        millpond::load::verify(&output).context("the file was written and does not read back")?;
    }
    print_report(&output, &report)
}

/// What is written: as said, or beside the input under its name.
fn output_of(args: &PackArgs) -> anyhow::Result<PathBuf> {
    if let Some(output) = args.output.as_ref().or(args.target.as_ref()) {
        return Ok(output.clone());
    }
    let nameless = || usage("a name for the output is needed: -o OUT");
    let name = args.input.file_name().and_then(|name| name.to_str()).ok_or_else(nameless)?;
    let output = args.input.with_file_name(format!("{}.mill", name.strip_suffix(".gguf").unwrap_or(name)));
    Ok(output)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: PackArgs,
    }

    #[test]
    fn the_output_is_named_or_lies_beside_the_input() {
        for (words, expected) in [
            (&["a.gguf"][..], "a.mill"),
            (&["x/a-1.5b.gguf"], "x/a-1.5b.mill"),
            (&["x/Model-0.8B/"], "x/Model-0.8B.mill"),
            (&["a.gguf", "b.mill"], "b.mill"),
            (&["a.gguf", "-o", "b"], "b"),
        ] {
            let line = Line::try_parse_from([&["pack"], words].concat()).expect("a line");
            assert_eq!(output_of(&line.args).expect("a name"), PathBuf::from(expected));
        }
        assert!(Line::try_parse_from(["pack", "a", "b", "-o", "c"]).is_err());
    }
}
