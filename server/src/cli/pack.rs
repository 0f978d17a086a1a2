//! `millpond pack`: a model in one file that is used where it lies.

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
    let watcher = Watcher::start()?;
    let result = millpond::quantize::pack(&args.input, &args.output, &options, &mut |progress| {
        watcher.watch(progress)
    });
    let report = watcher.end(result)?;
    if args.verify {
        let _waiting = Progress::waiting("comparing checksums");
        millpond::load::verify(&args.output).context("the file was written and does not read back")?;
    }
    print_report(&args.output, &report)
}
