//! The models of a server: loaded when they are asked for, unloaded when nobody has asked for a while, or when another
//! needs the room.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use millpond::engine::{Engine, EngineHandle};

use super::error::{ApiError, ApiResult};
use super::folder;
use super::places::Places;

/// Loads a model and starts its engine: that at a path, or the server's own.
pub type Loader = Arc<dyn Fn(Option<&Path>) -> anyhow::Result<Engine> + Send + Sync>;

/// Longest part of an unknown name that is repeated to whoever asked for it.
const SHOWN_NAME: usize = 100;

/// How a pool is set up.
#[derive(Clone, Debug, Default)]
pub struct PoolOptions {
    /// Folder of further models.
    pub folder: Option<PathBuf>,
    /// Most models in memory at once; no limit if absent.
    pub max_loaded: Option<usize>,
    /// Bytes that the files of the models in memory may have together; no limit if absent.
    pub memory: Option<u64>,
    /// How long a model stays in memory after its last request; for ever if absent.
    pub keep: Option<Duration>,
}

/// The models of a server.
pub struct Pool {
    options: PoolOptions,
    loader: Option<Loader>,
    /// The server's own model.
    own: Option<Arc<Entry>>,
    /// Those of the folder, by name.
    found: Mutex<BTreeMap<String, Arc<Entry>>>,
    /// Held while a model is loaded: one at a time, so that each sees the room that the others leave.
    loading: tokio::sync::Mutex<()>,
}

/// A model that can be had.
pub(crate) struct Entry {
    /// Its names, the one it goes by first.
    names: Vec<String>,
    path: Option<PathBuf>,
    bytes: u64,
    /// Whether it is being loaded while the server starts; nobody waits for that.
    starting: AtomicBool,
    /// Requests that use it.
    users: AtomicUsize,
    /// Slots in use.
    places: Arc<Places>,
    slot: Mutex<Slot>,
}

/// What changes about a model.
struct Slot {
    loaded: Option<Loaded>,
    /// When it was last asked for, or finished what it was asked.
    used: Instant,
    /// How long it stays after that; for ever if absent.
    keep: Option<Duration>,
}

/// A model in memory.
struct Loaded {
    handle: EngineHandle,
    /// Absent where the engine belongs to somebody else; such a model stays.
    engine: Option<Engine>,
}

/// The right to use a model, which keeps it in memory.
pub(crate) struct Lease {
    entry: Arc<Entry>,
    handle: EngineHandle,
}

impl Lease {
    pub(super) fn handle(&self) -> &EngineHandle {
        &self.handle
    }

    pub(super) fn entry(&self) -> &Entry {
        &self.entry
    }
}

impl Clone for Lease {
    fn clone(&self) -> Lease {
        self.entry.users.fetch_add(1, Ordering::SeqCst);
        Lease { entry: self.entry.clone(), handle: self.handle.clone() }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.entry.slot().used = Instant::now();
        self.entry.users.fetch_sub(1, Ordering::SeqCst);
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Entry {
    fn new(names: Vec<String>, path: Option<PathBuf>, bytes: u64, keep: Option<Duration>) -> Entry {
        Entry {
            names,
            path,
            bytes,
            starting: AtomicBool::new(false),
            users: AtomicUsize::new(0),
            places: Arc::default(),
            slot: Mutex::new(Slot { loaded: None, used: Instant::now(), keep }),
        }
    }

    fn slot(&self) -> MutexGuard<'_, Slot> {
        locked(&self.slot)
    }

    /// The name it goes by.
    pub(super) fn name(&self) -> &str {
        self.names.first().map_or("", String::as_str)
    }

    /// Other names it answers to.
    pub(super) fn aliases(&self) -> &[String] {
        self.names.get(1..).unwrap_or_default()
    }

    /// Bytes of its files, where they are known before it is loaded.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Its slots in use.
    pub(super) fn places(&self) -> &Arc<Places> {
        &self.places
    }

    /// Its engine, if it is in memory.
    pub(super) fn handle(&self) -> Option<EngineHandle> {
        self.slot().loaded.as_ref().map(|loaded| loaded.handle.clone())
    }

    /// When it will be unloaded if nobody asks for it; `None` for never.
    pub(super) fn expires(&self) -> Option<SystemTime> {
        let slot = self.slot();
        let left = slot.keep?.saturating_sub(slot.used.elapsed());
        SystemTime::now().checked_add(left)
    }

    fn lease(self: &Arc<Self>) -> Option<Lease> {
        let mut slot = self.slot();
        let handle = slot.loaded.as_ref()?.handle.clone();
        slot.used = Instant::now();
        self.users.fetch_add(1, Ordering::SeqCst);
        Some(Lease { entry: self.clone(), handle })
    }

    /// Takes the model out of memory if nobody uses it and `due` agrees. Leases begin under the same lock.
    fn take(&self, due: impl FnOnce(&Slot) -> bool) -> Option<Loaded> {
        let mut slot = self.slot();
        let movable = slot.loaded.as_ref().is_some_and(|loaded| loaded.engine.is_some());
        let idle = self.users.load(Ordering::SeqCst) == 0;
        if movable && idle && due(&slot) { slot.loaded.take() } else { None }
    }

    fn put(&self, engine: Engine) {
        let mut slot = self.slot();
        slot.loaded = Some(Loaded { handle: engine.handle(), engine: Some(engine) });
        slot.used = Instant::now();
    }
}

impl Pool {
    /// The models of `options.folder`, loaded by `loader`.
    #[must_use]
    pub fn new(options: PoolOptions, loader: Loader) -> Pool {
        Pool {
            options,
            loader: Some(loader),
            own: None,
            found: Mutex::default(),
            loading: tokio::sync::Mutex::default(),
        }
    }

    /// The same with a model of the server's own under `names`, whose files have `bytes`. Until it is there for the first
    /// time, requests are told that it is loading.
    #[must_use]
    pub fn with_own(self, names: Vec<String>, bytes: u64) -> Pool {
        let own = Entry::new(names, None, bytes, self.options.keep);
        own.starting.store(true, Ordering::SeqCst);
        Pool { own: Some(Arc::new(own)), ..self }
    }

    /// One model, whose engine belongs to the caller and may come later ([`Pool::set_engine`]).
    #[must_use]
    pub(super) fn of_one(name: String) -> Pool {
        let own = Entry::new(vec![name], None, 0, None);
        own.starting.store(true, Ordering::SeqCst);
        Pool {
            options: PoolOptions::default(),
            loader: None,
            own: Some(Arc::new(own)),
            found: Mutex::default(),
            loading: tokio::sync::Mutex::default(),
        }
    }

    /// Hands over the engine of the server's own model. Only the first counts.
    pub(super) fn set_engine(&self, handle: EngineHandle) {
        let Some(own) = &self.own else { return };
        own.slot().loaded.get_or_insert(Loaded { handle, engine: None });
        own.starting.store(false, Ordering::SeqCst);
    }

    /// Loads the server's own model, if it has one, and returns its engine's handle.
    ///
    /// # Errors
    /// It cannot be loaded.
    pub fn load_own(&self) -> anyhow::Result<Option<EngineHandle>> {
        let (Some(own), Some(loader)) = (&self.own, &self.loader) else { return Ok(None) };
        let engine = loader(None)?;
        let handle = engine.handle();
        own.put(engine);
        own.starting.store(false, Ordering::SeqCst);
        Ok(Some(handle))
    }

    /// The name of the server's own model, if it has one.
    #[must_use]
    pub fn own_name(&self) -> &str {
        self.own.as_ref().map_or("", |own| own.name())
    }

    /// Whether requests can be served, maybe after loading a model.
    pub(super) fn is_ready(&self) -> bool {
        self.own.as_ref().is_none_or(|own| !own.starting.load(Ordering::SeqCst))
    }

    /// Whether there are models beside the server's own.
    pub(super) fn has_folder(&self) -> bool {
        self.options.folder.is_some()
    }

    /// All models, the server's own first.
    pub(super) fn list(&self) -> Vec<Arc<Entry>> {
        self.look();
        let found = locked(&self.found);
        let hidden =
            |entry: &&Arc<Entry>| self.own.as_ref().is_none_or(|own| !own.names.contains(&entry.names[0]));
        self.own.iter().chain(found.values().filter(hidden)).cloned().collect()
    }

    /// Looks at the folder again. Models in memory stay known though their files may be gone.
    fn look(&self) {
        let Some(folder) = &self.options.folder else { return };
        let now = folder::scan(folder);
        let mut found = locked(&self.found);
        found.retain(|name, entry| entry.handle().is_some() || now.iter().any(|model| model.name == *name));
        for model in now {
            let new = |model: folder::Found| {
                Arc::new(Entry::new(vec![model.name], Some(model.path), model.bytes, self.options.keep))
            };
            found.entry(model.name.clone()).or_insert_with(|| new(model));
        }
    }

    /// The model of a name; the server's own, or else the first, for requests that name none. A server of one model
    /// answers to every name: clients have names of their own for what they do not know.
    ///
    /// # Errors
    /// There is none of that name.
    pub(super) fn entry(&self, name: Option<&str>) -> ApiResult<Arc<Entry>> {
        let name = name.filter(|name| !name.is_empty());
        match (name, &self.own) {
            (None, Some(own)) => return Ok(own.clone()),
            (Some(_), Some(own)) if !self.has_folder() => return Ok(own.clone()),
            _ => {}
        }
        let Some(name) = name else {
            let first = self.list().into_iter().next();
            return first.ok_or_else(|| ApiError::not_found("the server's folder of models is empty"));
        };
        self.named(name).ok_or_else(|| {
            let shown: String = name.chars().take(SHOWN_NAME).collect();
            ApiError::not_found(format!("model '{shown}' not found")).with_code("model_not_found")
        })
    }

    /// The model that has exactly this name, with or without Ollama's `:latest`.
    pub(super) fn named(&self, name: &str) -> Option<Arc<Entry>> {
        let names = [Some(name), name.strip_suffix(":latest")];
        let known = || {
            let found = locked(&self.found);
            names.iter().flatten().find_map(|&name| {
                let own = self.own.as_ref().filter(|own| own.names.iter().any(|known| known == name));
                own.or_else(|| found.get(name)).cloned()
            })
        };
        known().or_else(|| {
            self.look();
            known()
        })
    }

    /// The right to use a model, once it is loaded.
    ///
    /// # Errors
    /// There is none of that name; it is still loading at the start; it cannot be loaded, or not now.
    pub(super) async fn lease(self: &Arc<Self>, name: Option<&str>) -> ApiResult<Lease> {
        let entry = self.entry(name)?;
        if let Some(lease) = entry.lease() {
            return Ok(lease);
        }
        if self.loader.is_none() || entry.starting.load(Ordering::SeqCst) {
            return Err(ApiError::unavailable("Loading model"));
        }
        // In a task of its own: whoever leaves while a model loads does not undo the work.
        let pool = self.clone();
        let task = tokio::spawn(async move { pool.load(&entry).await });
        task.await.map_err(|_| ApiError::internal("loading the model failed"))?
    }

    async fn load(&self, entry: &Arc<Entry>) -> ApiResult<Lease> {
        let turn = self.loading.lock().await;
        if let Some(lease) = entry.lease() {
            return Ok(lease);
        }
        self.make_room(entry).await?;
        let Some(loader) = self.loader.clone() else { return Err(ApiError::unavailable("Loading model")) };
        let path = entry.path.clone();
        let loading = tokio::task::spawn_blocking(move || loader(path.as_deref()));
        let loaded = loading.await.map_err(|_| ApiError::internal("loading the model failed"))?;
        let engine = loaded.map_err(|error| {
            // What is wrong may name a path: it is for the log.
            tracing::warn!(model = entry.name(), error = format!("{error:#}"), "a model cannot be loaded");
            let message =
                format!("model '{}' cannot be loaded: its files are damaged or not supported", entry.name());
            ApiError::internal(message).with_code("model_load_failed")
        })?;
        entry.put(engine);
        drop(turn);
        entry.lease().ok_or_else(|| ApiError::unavailable("the model was unloaded at once"))
    }

    /// Unloads models nobody uses, the one least recently used first, until another fits.
    async fn make_room(&self, entry: &Entry) -> ApiResult<()> {
        if let Some(memory) = self.options.memory.filter(|&memory| entry.bytes > memory) {
            let message = format!(
                "model '{}' has {} MiB, more than the {} MiB that all models may have",
                entry.name(),
                entry.bytes >> 20,
                memory >> 20
            );
            return Err(ApiError::invalid(message));
        }
        loop {
            let mut loaded: Vec<Arc<Entry>> =
                self.known().into_iter().filter(|one| one.handle().is_some()).collect();
            let bytes = loaded.iter().map(|one| one.bytes).sum::<u64>() + entry.bytes;
            let fits = self.options.memory.is_none_or(|memory| bytes <= memory)
                && self.options.max_loaded.is_none_or(|most| loaded.len() < most.max(1));
            if fits {
                return Ok(());
            }
            loaded.sort_by_key(|one| one.slot().used);
            let freed = loaded.iter().find_map(|one| one.take(|_| true).map(|loaded| (one.clone(), loaded)));
            let Some((unloaded, engine)) = freed else {
                return Err(ApiError::unavailable(
                    "the other models are in use and leave no room for this one",
                ));
            };
            unload(&unloaded, engine).await;
        }
    }

    /// What is known without looking at the folder.
    fn known(&self) -> Vec<Arc<Entry>> {
        self.own.iter().chain(locked(&self.found).values()).cloned().collect()
    }

    /// Unloads models whose time is over.
    pub(super) async fn unload_idle(&self) {
        for entry in self.known() {
            let due = |slot: &Slot| slot.keep.is_some_and(|keep| slot.used.elapsed() >= keep);
            if let Some(loaded) = entry.take(due) {
                unload(&entry, loaded).await;
            }
        }
    }

    /// Says how long a model stays after its last request; for ever if absent.
    pub(super) fn keep(&self, entry: &Entry, keep: Option<Duration>) {
        entry.slot().keep = keep;
    }

    /// Unloads a model that nobody uses.
    pub(super) async fn unload(&self, entry: &Entry) {
        if let Some(loaded) = entry.take(|_| true) {
            unload(entry, loaded).await;
        }
    }
}

/// Ends a model's engine, which waits for its thread.
async fn unload(entry: &Entry, loaded: Loaded) {
    tracing::info!(model = entry.name(), "unloading");
    if tokio::task::spawn_blocking(move || drop(loaded)).await.is_err() {
        tracing::warn!(model = entry.name(), "unloading failed");
    }
}
