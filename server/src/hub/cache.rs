//! The cache that programs of the hub share.
//!
//! ```text
//! models--ORG--NAME/blobs/HASH                  contents, named by their hash
//! models--ORG--NAME/refs/main                   the commit that a revision is at
//! models--ORG--NAME/snapshots/COMMIT/PATH       links to the contents
//! .locks/models--ORG--NAME/HASH.lock            held while a file is fetched
//! ```
//! Nothing in it is opened to list it: names and sizes are the file system's.

use std::fs;
use std::path::{Path, PathBuf};

use super::client::is_hash;
use super::download;
use super::error::HubError;
use super::reference::{ModelRef, is_part};
use super::select::{self, Selection};

/// Most entries of a folder that are looked at.
const MAX_ENTRIES: usize = 10_000;
/// Folders below a snapshot that are looked into.
const MAX_DEPTH: usize = 3;

/// The cache of a hub.
#[derive(Clone, Debug)]
pub struct Cache {
    root: PathBuf,
}

/// A model in the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CachedModel {
    /// Its name, with the quantisation where the file's name has one.
    pub reference: ModelRef,
    /// What to load.
    pub path: PathBuf,
    /// Its files.
    pub files: Vec<PathBuf>,
    /// Bytes of its files.
    pub bytes: u64,
    /// When the first of them came, where the system says.
    pub modified: Option<std::time::SystemTime>,
}

impl Cache {
    /// The cache that the environment names, or the usual one.
    ///
    /// # Errors
    /// [`HubError::NoFolder`] for a user without a home.
    pub fn usual() -> Result<Cache, HubError> {
        let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let home = || set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")));
        let root = set("HF_HUB_CACHE")
            .or_else(|| set("HF_HOME").map(|home| home.join("hub")))
            .or_else(|| home().map(|cache| cache.join("huggingface/hub")));
        root.map(Cache::at).ok_or(HubError::NoFolder)
    }

    /// The cache in a folder.
    #[must_use]
    pub fn at(root: PathBuf) -> Cache {
        Cache { root }
    }

    /// Its folder.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn repository(&self, model: &ModelRef) -> PathBuf {
        self.root.join(format!("models--{}--{}", model.org, model.name))
    }

    pub(super) fn blob(&self, model: &ModelRef, hash: &str) -> PathBuf {
        self.repository(model).join("blobs").join(hash)
    }

    pub(super) fn lock(&self, model: &ModelRef, hash: &str) -> PathBuf {
        let folder = format!("models--{}--{}", model.org, model.name);
        self.root.join(".locks").join(folder).join(format!("{hash}.lock"))
    }

    pub(super) fn snapshot(&self, model: &ModelRef, commit: &str) -> PathBuf {
        self.repository(model).join("snapshots").join(commit)
    }

    /// Puts a file into a snapshot.
    pub(super) fn link(
        &self,
        model: &ModelRef,
        commit: &str,
        path: &str,
        hash: &str,
    ) -> Result<(), HubError> {
        let place = self.snapshot(model, commit).join(path);
        if let Some(folder) = place.parent() {
            fs::create_dir_all(folder).map_err(HubError::io(folder))?;
        }
        let up = "../".repeat(2 + path.matches('/').count());
        let target = PathBuf::from(format!("{up}blobs/{hash}"));
        if fs::read_link(&place).is_ok_and(|there| there == target) {
            return Ok(());
        }
        // Beside its place and then renamed: there is always a whole link.
        let beside = place.with_extension(format!("link-{}", std::process::id()));
        make_link(&target, &self.blob(model, hash), &beside).map_err(HubError::io(&beside))?;
        fs::rename(&beside, &place).map_err(HubError::io(&place))
    }

    pub(super) fn set_revision(
        &self,
        model: &ModelRef,
        revision: &str,
        commit: &str,
    ) -> Result<(), HubError> {
        let place = self.repository(model).join("refs").join(revision);
        if let Some(folder) = place.parent() {
            fs::create_dir_all(folder).map_err(HubError::io(folder))?;
        }
        fs::write(&place, commit).map_err(HubError::io(&place))
    }

    /// The commits of which there are snapshots, the current one first.
    fn commits(&self, model: &ModelRef) -> Vec<String> {
        let repository = self.repository(model);
        let current = fs::read_to_string(repository.join("refs/main")).unwrap_or_default();
        let mut commits: Vec<String> =
            names(&repository.join("snapshots")).into_iter().filter(|name| is_hash(name, 40)).collect();
        commits.sort();
        commits.sort_by_key(|commit| commit != current.trim());
        commits
    }

    /// A model that is in the cache whole; the current revision goes before others.
    #[must_use]
    pub fn find(&self, model: &ModelRef, file: Option<&str>) -> Option<CachedModel> {
        self.commits(model).iter().find_map(|commit| {
            let snapshot = self.snapshot(model, commit);
            let selection = select::choose(&files(&snapshot), model.quant.as_deref(), file)?;
            // Of shards, all must be there.
            (shards(&selection.files[0]).is_none_or(|count| count == selection.files.len()))
                .then(|| cached(model, &snapshot, selection))
        })
    }

    /// All models in the cache, by name.
    #[must_use]
    pub fn models(&self) -> Vec<CachedModel> {
        let mut models = Vec::new();
        for name in names(&self.root) {
            let Some(model) = repository_name(&name) else { continue };
            for commit in self.commits(&model) {
                let snapshot = self.snapshot(&model, &commit);
                for selection in select::models(&files(&snapshot)) {
                    let found = cached(&model, &snapshot, selection);
                    if !models.iter().any(|other: &CachedModel| {
                        other.reference == found.reference
                            && other.files.iter().map(real).eq(found.files.iter().map(real))
                    }) {
                        models.push(found);
                    }
                }
            }
        }
        models.sort_by_key(|model| model.reference.to_string());
        models
    }

    /// Removes a model, or all of a repository where no quantisation is named. Returns the bytes that are free again.
    ///
    /// # Errors
    /// What the system says; [`HubError::NoFile`] if there is no such model.
    pub fn remove(&self, model: &ModelRef) -> Result<u64, HubError> {
        let repository = self.repository(model);
        if model.quant.is_some() {
            let found: Vec<CachedModel> = self.models_of(model);
            if found.is_empty() {
                let there = select::choices(
                    &self
                        .commits(model)
                        .iter()
                        .flat_map(|commit| files(&self.snapshot(model, commit)))
                        .collect::<Vec<_>>(),
                );
                let wanted = model.quant.clone().unwrap_or_default();
                return Err(HubError::NoFile { model: model.repository(), wanted, there });
            }
            for path in found.iter().flat_map(|model| &model.files) {
                fs::remove_file(path).map_err(HubError::io(path))?;
            }
            let freed = self.remove_unused_blobs(model)?;
            if self.commits(model).iter().any(|commit| !files(&self.snapshot(model, commit)).is_empty()) {
                return Ok(freed);
            }
            fs::remove_dir_all(&repository).map_err(HubError::io(&repository))?;
            return Ok(freed);
        }
        if !repository.is_dir() {
            return Err(HubError::NotHere(model.repository()));
        }
        let blobs = repository.join("blobs");
        let bytes = names(&blobs).iter().map(|name| size(&blobs.join(name))).sum();
        fs::remove_dir_all(&repository).map_err(HubError::io(&repository))?;
        Ok(bytes)
    }

    /// The model in every snapshot that has it.
    fn models_of(&self, model: &ModelRef) -> Vec<CachedModel> {
        let of = |commit: &String| {
            let snapshot = self.snapshot(model, commit);
            let selection = select::choose(&files(&snapshot), model.quant.as_deref(), None)?;
            Some(cached(model, &snapshot, selection))
        };
        self.commits(model).iter().filter_map(of).collect()
    }

    /// Removes contents that no snapshot links to any more, unless they are being fetched.
    fn remove_unused_blobs(&self, model: &ModelRef) -> Result<u64, HubError> {
        let used: Vec<String> = self
            .commits(model)
            .iter()
            .map(|commit| self.snapshot(model, commit))
            .flat_map(|snapshot| files(&snapshot).into_iter().map(move |file| snapshot.join(file)))
            .filter_map(|path| Some(fs::read_link(path).ok()?.file_name()?.to_string_lossy().into_owned()))
            .collect();
        let folder = self.repository(model).join("blobs");
        let unused = names(&folder).into_iter().filter(|name| is_blob(name) && !used.contains(name));
        unused.map(|name| folder.join(name)).try_fold(0, |freed, path| {
            let bytes = size(&path);
            fs::remove_file(&path).map_err(HubError::io(&path))?;
            Ok(freed + bytes)
        })
    }
}

impl CachedModel {
    /// Whether the contents of its files are what their names say; `None` where a name is no SHA-256.
    ///
    /// # Errors
    /// What the system says.
    pub fn verify(&self) -> Result<Option<bool>, HubError> {
        let mut checked = None;
        for path in &self.files {
            let target = fs::read_link(path).unwrap_or_default();
            let Some(name) =
                target.file_name().and_then(|name| name.to_str()).filter(|name| is_hash(name, 64))
            else {
                continue;
            };
            let found = download::hash_of(path).map_err(HubError::io(path))?;
            if found != name {
                return Ok(Some(false));
            }
            checked = Some(true);
        }
        Ok(checked)
    }
}

/// How many shards a file's name says there are.
fn shards(file: &str) -> Option<usize> {
    let stem = file.rsplit_once('.').map_or(file, |(stem, _)| stem);
    let (_, count) = stem.rsplit_once("-of-")?;
    count.parse().ok()
}

fn cached(model: &ModelRef, snapshot: &Path, selection: Selection) -> CachedModel {
    let files: Vec<PathBuf> = selection.files.iter().map(|file| snapshot.join(file)).collect();
    let path = if selection.is_folder { snapshot.to_owned() } else { files[0].clone() };
    CachedModel {
        reference: ModelRef { quant: selection.label, ..model.clone() },
        path,
        bytes: files.iter().map(|file| size(file)).sum(),
        modified: fs::metadata(&files[0]).ok().and_then(|metadata| metadata.modified().ok()),
        files,
    }
}

/// Where a link leads.
fn real(path: &PathBuf) -> PathBuf {
    fs::canonicalize(path).unwrap_or_else(|_| path.clone())
}

fn size(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |metadata| metadata.len())
}

fn is_blob(name: &str) -> bool {
    is_hash(name, 64) || is_hash(name, 40)
}

/// The model of a folder `models--ORG--NAME`.
fn repository_name(folder: &str) -> Option<ModelRef> {
    let (org, name) = folder.strip_prefix("models--")?.split_once("--")?;
    (is_part(org) && is_part(name)).then(|| ModelRef {
        org: org.to_owned(),
        name: name.to_owned(),
        quant: None,
    })
}

/// Names in a folder; none if it cannot be read.
fn names(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let name = |entry: std::io::Result<fs::DirEntry>| entry.ok()?.file_name().into_string().ok();
    entries.take(MAX_ENTRIES).filter_map(name).collect()
}

/// Paths of the files below a folder whose contents are there, in order.
fn files(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    collect(folder, "", MAX_DEPTH, &mut found);
    found.sort();
    found
}

fn collect(folder: &Path, prefix: &str, depth: usize, found: &mut Vec<String>) {
    for name in names(folder) {
        let path = folder.join(&name);
        let shown = format!("{prefix}{name}");
        match fs::metadata(&path) {
            Ok(metadata) if metadata.is_file() => found.push(shown),
            // Links to folders are not followed: they could lead around in circles.
            Ok(metadata) if metadata.is_dir() && depth > 0 && !path.is_symlink() => {
                collect(&path, &format!("{shown}/"), depth - 1, found);
            }
            _ => {}
        }
    }
}

#[cfg(unix)]
fn make_link(target: &Path, _contents: &Path, place: &Path) -> std::io::Result<()> {
    std::os::unix::fs::symlink(target, place)
}

/// Where links need a privilege, a second name for the contents does as well.
#[cfg(not(unix))]
fn make_link(_target: &Path, contents: &Path, place: &Path) -> std::io::Result<()> {
    fs::hard_link(contents, place)
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    fn put(cache: &Cache, name: &str, path: &str, hash: char, bytes: usize) {
        let model: ModelRef = name.parse().unwrap();
        let hash = String::from(hash).repeat(64);
        let blob = cache.blob(&model, &hash);
        fs::create_dir_all(blob.parent().unwrap()).unwrap();
        fs::write(&blob, vec![0; bytes]).unwrap();
        cache.link(&model, COMMIT, path, &hash).unwrap();
        cache.set_revision(&model, "main", COMMIT).unwrap();
    }

    fn cache() -> (tempfile::TempDir, Cache) {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path().to_owned());
        put(&cache, "a/b", "b-Q4_K_M.gguf", 'a', 10);
        put(&cache, "a/b", "big/b-Q8_0-00001-of-00002.gguf", 'b', 20);
        put(&cache, "a/b", "big/b-Q8_0-00002-of-00002.gguf", 'c', 30);
        (folder, cache)
    }

    #[test]
    fn models_are_found_by_their_quantisation() {
        let (_folder, cache) = cache();
        let find = |text: &str| cache.find(&text.parse().unwrap(), None);
        let small = find("a/b").unwrap();
        assert_eq!((small.reference.to_string().as_str(), small.bytes), ("a/b:Q4_K_M", 10));
        let large = find("a/b:Q8_0").unwrap();
        assert_eq!((large.files.len(), large.bytes), (2, 50));
        assert!(large.path.ends_with("big/b-Q8_0-00001-of-00002.gguf"));
        assert_eq!(fs::read(&large.path).unwrap().len(), 20, "the link leads to the contents");
        assert_eq!(find("a/b:Q5_0"), None);
        let names: Vec<String> = cache.models().iter().map(|model| model.reference.to_string()).collect();
        assert_eq!(names, ["a/b:Q4_K_M", "a/b:Q8_0"]);
    }

    #[test]
    fn a_model_without_all_its_shards_is_not_there() {
        let (_folder, cache) = cache();
        let large = cache.find(&"a/b:Q8_0".parse().unwrap(), None).unwrap();
        fs::remove_file(fs::canonicalize(&large.files[1]).unwrap()).unwrap();
        assert_eq!(cache.find(&"a/b:Q8_0".parse().unwrap(), None), None);
    }

    #[test]
    fn removing_frees_what_nothing_else_uses() {
        let (folder, cache) = cache();
        assert_eq!(cache.remove(&"a/b:Q8_0".parse().unwrap()).unwrap(), 50);
        assert_eq!(cache.models().len(), 1);
        assert!(cache.remove(&"a/b:Q8_0".parse().unwrap()).is_err());
        assert!(cache.remove(&"a/c".parse().unwrap()).is_err());
        assert_eq!(cache.remove(&"a/b".parse().unwrap()).unwrap(), 10);
        assert!(!folder.path().join("models--a--b").exists());
    }

    #[test]
    fn contents_are_checked_against_their_names() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path().to_owned());
        put(&cache, "a/b", "b-Q4_0.gguf", 'd', 3);
        let model = &cache.models()[0];
        assert_eq!(model.verify().unwrap(), Some(false));
    }

    #[test]
    fn foreign_folders_are_left_alone() {
        let (folder, cache) = cache();
        for name in ["models--..--x", "models--a", "datasets--a--b", ".locks"] {
            fs::create_dir_all(folder.path().join(name)).unwrap();
        }
        assert_eq!(cache.models().len(), 2);
    }
}
