//! Models by name: files, models of the hub's cache, models in a folder of the user's own.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::Context;

use super::args::{HubArgs, ModelArgs};
use super::folders;
use super::interrupt::Interrupt;
use super::progress::Progress;
use crate::hub::cache::Cache;
use crate::hub::reference::ModelRef;
use crate::hub::{Client, ClientOptions, HubError, Pulled, Watcher, pull};

/// Longest token, in bytes.
const MAX_TOKEN: usize = 4096;

/// Where the model that `args` name is; `None` for the one in the binary. One of a hub is fetched if need be.
///
/// # Errors
/// [`HubError`] about a model of a hub.
pub(crate) fn locate(args: &ModelArgs) -> anyhow::Result<Option<PathBuf>> {
    if let Some(name) = &args.hf_repo {
        let model: ModelRef = name.parse()?;
        return fetched(&model, args.hf_file.as_deref(), &args.hub).map(Some);
    }
    Ok(args.model.as_deref().map(path_of))
}

/// A path, or what it stands for as a name.
#[must_use]
pub(crate) fn path_of(path: &Path) -> PathBuf {
    named(path).unwrap_or_else(|| path.to_owned())
}

/// What a name that is no path stands for, if anything: a model that `list` shows.
fn named(path: &Path) -> Option<PathBuf> {
    let text = path.to_str()?;
    if path.exists() {
        return None;
    }
    let own = own_models().into_iter().find(|model| model.name == text).map(|model| model.path);
    own.or_else(|| {
        let model: ModelRef = text.parse().ok()?;
        Cache::usual().ok()?.find(&model, None).map(|model| model.path)
    })
}

/// A model of a hub: from the cache if it is there, from the hub otherwise.
fn fetched(model: &ModelRef, file: Option<&str>, args: &HubArgs) -> anyhow::Result<PathBuf> {
    let cache = Cache::usual()?;
    if let Some(found) = cache.find(model, file) {
        return Ok(found.path);
    }
    if args.offline {
        return Err(HubError::Offline(model.to_string()).into());
    }
    let mut watcher = Download { progress: None, interrupt: None };
    Ok(pull(&client(args)?, &cache, model, file, &mut watcher)?.path)
}

/// Brings a model up to date with the hub.
///
/// # Errors
/// [`HubError`]; wrong usage.
pub(crate) fn update(
    model: &ModelRef,
    file: Option<&str>,
    args: &HubArgs,
    interrupt: Interrupt,
) -> anyhow::Result<Pulled> {
    if args.offline {
        return Err(super::failure::usage("--offline forbids what pull is for"));
    }
    let mut watcher = Download { progress: None, interrupt: Some(interrupt) };
    Ok(pull(&client(args)?, &Cache::usual()?, model, file, &mut watcher)?)
}

fn client(args: &HubArgs) -> anyhow::Result<Client> {
    let endpoint = args.hf_endpoint.clone().filter(|address| !address.is_empty());
    let token = match args.hf_token.clone().filter(|token| !token.is_empty()) {
        Some(token) => Some(token),
        None => saved_token()?,
    };
    Ok(Client::new(ClientOptions { endpoint, token, hosts: args.hub_hosts.clone() })?)
}

/// The token that the hub's own tools have saved.
fn saved_token() -> anyhow::Result<Option<String>> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let caches = || set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")));
    let home = || set("HF_HOME").or_else(|| caches().map(|caches| caches.join("huggingface")));
    let path = set("HF_TOKEN_PATH").or_else(|| home().map(|home| home.join("token")));
    let Some(path) = path.filter(|path| path.is_file()) else { return Ok(None) };
    let token = super::settings::read_text(&path)?.trim().to_owned();
    let plain = token.len() <= MAX_TOKEN && token.chars().all(|c| c.is_ascii_graphic());
    anyhow::ensure!(plain, "{} holds no token", path.display());
    Ok(Some(token).filter(|token| !token.is_empty()))
}

/// Shows a download and ends it at Ctrl-C.
struct Download {
    progress: Option<Progress>,
    interrupt: Option<Interrupt>,
}

impl Watcher for Download {
    fn begins(&mut self, path: &str, bytes: u64, number: usize, count: usize) {
        let name = path.rsplit('/').next().unwrap_or(path);
        let what = if count > 1 { format!("{name} ({number} of {count})") } else { name.to_owned() };
        tracing::info!(path, bytes, "download");
        // The one before leaves the screen first.
        self.progress = None;
        self.progress = Some(Progress::bytes(&what, bytes));
    }

    fn at(&mut self, bytes: u64) {
        if let Some(progress) = &self.progress {
            progress.set(bytes);
        }
    }

    fn is_stopped(&self) -> bool {
        self.interrupt.as_ref().is_some_and(Interrupt::pressed)
    }
}

/// A model on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LocalModel {
    /// The name under which `-m` finds it.
    pub(crate) name: String,
    /// What to load.
    pub(crate) path: PathBuf,
    /// Bytes of its files.
    pub(crate) bytes: u64,
    /// When it came, where the system says.
    pub(crate) modified: Option<SystemTime>,
}

/// The models in the user's own folder. Nothing is opened.
#[must_use]
pub(crate) fn own_models() -> Vec<LocalModel> {
    let Some(folder) = folders::models() else { return Vec::new() };
    let Ok(entries) = std::fs::read_dir(&folder) else { return Vec::new() };
    let mut models: Vec<LocalModel> =
        entries.flatten().filter_map(|entry| own_model(&entry.path())).collect();
    models.sort_by(|a, b| a.name.cmp(&b.name));
    models
}

fn own_model(path: &Path) -> Option<LocalModel> {
    let metadata = std::fs::metadata(path).ok()?;
    let known =
        |ending: &std::ffi::OsStr| ["gguf", "mill"].iter().any(|known| ending.eq_ignore_ascii_case(known));
    let is_file = metadata.is_file() && path.extension().is_some_and(known);
    let is_folder = metadata.is_dir() && path.join("config.json").is_file();
    let (name, bytes) = match (is_file, is_folder) {
        (true, _) => (path.file_stem()?, metadata.len()),
        (_, true) => (path.file_name()?, folder_bytes(path)),
        _ => return None,
    };
    Some(LocalModel {
        name: name.to_str()?.to_owned(),
        path: path.to_owned(),
        bytes,
        modified: metadata.modified().ok(),
    })
}

fn folder_bytes(folder: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    let size = |entry: std::fs::DirEntry| {
        std::fs::metadata(entry.path()).ok().filter(|m| m.is_file()).map(|m| m.len())
    };
    entries.flatten().filter_map(size).sum()
}

/// Removes a model from this machine; returns the bytes that are free again.
///
/// # Errors
/// There is no such model, or the system refuses.
pub(crate) fn remove(name: &str) -> anyhow::Result<u64> {
    if let Some(model) = own_models().into_iter().find(|model| model.name == name) {
        let removed = if model.path.is_dir() {
            std::fs::remove_dir_all(&model.path)
        } else {
            std::fs::remove_file(&model.path)
        };
        removed.with_context(|| format!("cannot remove {}", model.path.display()))?;
        return Ok(model.bytes);
    }
    let reference: ModelRef = name.parse().map_err(|_| {
        anyhow::anyhow!("there is no model '{name}' on this machine; `millpond list` shows what there is")
    })?;
    Ok(Cache::usual()?.remove(&reference)?)
}
