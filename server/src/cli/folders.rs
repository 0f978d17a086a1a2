//! Where this program keeps files of its own.

use std::path::PathBuf;

/// Folder of things remembered between runs; `None` for a user without a home.
#[must_use]
pub(crate) fn state() -> Option<PathBuf> {
    under("XDG_STATE_HOME", ".local/state")
}

/// Folder of the configuration.
#[must_use]
pub(crate) fn configuration() -> Option<PathBuf> {
    under("XDG_CONFIG_HOME", ".config")
}

fn under(variable: &str, fallback: &str) -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    // The specification of these variables says to ignore relative paths.
    let base = set(variable).filter(|path| path.is_absolute());
    Some(base.or_else(|| set("HOME").map(|home| home.join(fallback)))?.join("millpond"))
}
