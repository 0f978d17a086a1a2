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

/// Folder of saved sessions, unless the user names another.
#[must_use]
pub(crate) fn sessions() -> Option<PathBuf> {
    Some(state()?.join("sessions"))
}

/// Folder of models that no hub knows of.
#[must_use]
pub(crate) fn models() -> Option<PathBuf> {
    let named = std::env::var_os("MILLPOND_MODELS").filter(|value| !value.is_empty()).map(PathBuf::from);
    named.or_else(|| Some(under("XDG_DATA_HOME", ".local/share")?.join("models")))
}

/// Folder where running servers tell of themselves: gone with the user's login where the system has such a folder.
#[must_use]
pub(crate) fn running() -> Option<PathBuf> {
    let set = std::env::var_os("XDG_RUNTIME_DIR").filter(|value| !value.is_empty()).map(PathBuf::from);
    match set.filter(|path| path.is_absolute()) {
        Some(folder) => Some(folder.join("millpond")),
        None => Some(state()?.join("running")),
    }
}

fn under(variable: &str, fallback: &str) -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    // The specification of these variables says to ignore relative paths.
    let base = set(variable).filter(|path| path.is_absolute());
    Some(base.or_else(|| set("HOME").map(|home| home.join(fallback)))?.join("millpond"))
}
