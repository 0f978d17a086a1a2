//! The nearest name to one that does not exist.

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, Command};

/// The name most like `wanted`.
#[must_use]
pub(crate) fn nearest<'a>(wanted: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let likeness = |name: &str| strsim::jaro_winkler(wanted, name);
    names.into_iter().max_by(|a, b| likeness(a).total_cmp(&likeness(b)))
}

/// Names the nearest option in an error about one that does not exist, where the parser found none near enough.
pub(crate) fn complete(error: &mut clap::Error, command: &Command, verb: &str) {
    if error.kind() != ErrorKind::UnknownArgument || error.get(ContextKind::SuggestedArg).is_some() {
        return;
    }
    let Some(ContextValue::String(wanted)) = error.get(ContextKind::InvalidArg) else { return };
    let wanted = wanted.trim_start_matches('-').to_owned();
    let Some(options) = command.find_subcommand(verb) else { return };
    if let Some(name) = nearest(&wanted, options.get_arguments().filter_map(Arg::get_long)) {
        error.insert(ContextKind::SuggestedArg, ContextValue::String(format!("--{name}")));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn something_is_always_nearest() {
        assert_eq!(nearest("tempp", ["top-p", "temp", "typical"]), Some("temp"));
        assert_eq!(nearest("n-predct", ["predict", "threads"]), Some("predict"));
        assert_eq!(nearest("zzz", ["a", "b"]).map(str::len), Some(1));
        assert_eq!(nearest("zzz", []), None);
    }
}
