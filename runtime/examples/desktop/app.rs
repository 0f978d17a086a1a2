//! What the app holds: a model, a conversation, and perhaps a model that is being loaded.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use millpond::conversation::Conversation;
use millpond::engine::{Engine, EngineHandle, EngineOptions, Request};
use millpond::model::{LoadOptions, Model, Progress};
use serde_json::{Value, json};

/// Longest answer in tokens, unless the page asks for another.
const LONGEST: usize = 400;

/// The app.
pub(crate) struct App {
    models: Vec<PathBuf>,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    /// The engine in use. Replacing it ends what still runs on it.
    engine: Mutex<Option<Engine>>,
    loading: Mutex<Option<Arc<Loading>>>,
    /// Why the last load failed.
    problem: Mutex<Option<String>>,
    /// The conversation; it outlives a change of models.
    messages: Mutex<Vec<Value>>,
    /// Set while somebody is answered.
    answering: Mutex<()>,
    stop: AtomicBool,
}

struct Loading {
    path: PathBuf,
    done: AtomicU64,
    total: AtomicU64,
    cancelled: AtomicBool,
}

/// Nothing here is left half changed by a panic.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl App {
    /// An app that offers some models.
    pub(crate) fn new(models: Vec<PathBuf>) -> App {
        App { models, shared: Arc::default() }
    }

    /// Loads a model, the first one if none is named, in the background. The one in use stays in use until then, and
    /// stays if this one fails.
    pub(crate) fn load(&self, path: Option<PathBuf>) {
        let Some(path) = path.or_else(|| self.models.first().cloned()) else { return };
        let loading = Arc::new(Loading {
            path,
            done: AtomicU64::new(0),
            total: AtomicU64::new(0),
            cancelled: AtomicBool::new(false),
        });
        if let Some(before) = lock(&self.shared.loading).replace(loading.clone()) {
            before.cancelled.store(true, Ordering::Relaxed);
        }
        let shared = self.shared.clone();
        std::thread::spawn(move || {
            let engine = start(&loading);
            let mut current = lock(&shared.loading);
            if !current.as_ref().is_some_and(|current| Arc::ptr_eq(current, &loading)) {
                return; // another model was asked for meanwhile
            }
            *current = None;
            match engine {
                Ok(engine) => {
                    *lock(&shared.problem) = None;
                    *lock(&shared.engine) = Some(engine);
                }
                Err(problem) => *lock(&shared.problem) = Some(problem),
            }
        });
    }

    /// Gives up the model that is being loaded.
    pub(crate) fn cancel_loading(&self) {
        if let Some(loading) = &*lock(&self.shared.loading) {
            loading.cancelled.store(true, Ordering::Relaxed);
        }
    }

    /// What the page shows.
    pub(crate) fn state(&self) -> Value {
        let loading = lock(&self.shared.loading).clone().map(|loading| {
            let (done, total) =
                (loading.done.load(Ordering::Relaxed), loading.total.load(Ordering::Relaxed).max(1));
            json!({ "path": name(&loading.path), "share": done as f64 / total as f64 })
        });
        let model =
            lock(&self.shared.engine).as_ref().map(|engine| engine.handle().model().info.name.clone());
        json!({
            "model": model,
            "models": self.models.iter().map(|path| path.display().to_string()).collect::<Vec<_>>(),
            "loading": loading,
            "problem": *lock(&self.shared.problem),
            "messages": *lock(&self.shared.messages),
        })
    }

    /// Answers a question piece by piece. `show` fails when nobody looks any more; the answer then ends.
    pub(crate) fn ask(
        &self,
        question: &str,
        longest: Option<usize>,
        mut show: impl FnMut(&str) -> std::io::Result<()>,
    ) -> Result<(), String> {
        let shared = &self.shared;
        let Ok(_one_at_a_time) = shared.answering.try_lock() else {
            return Err("an answer is under way already".to_owned());
        };
        let handle = lock(&shared.engine).as_ref().map(Engine::handle).ok_or("no model is loaded")?;
        let mut talk = self.conversation(&handle)?;
        shared.stop.store(false, Ordering::Relaxed);
        let request = Request { max_tokens: Some(longest.unwrap_or(LONGEST)), ..Request::default() };
        let mut failure = None;
        let mut reply = talk.ask(question, request).map_err(|error| error.to_string())?;
        for piece in &mut reply {
            match piece {
                Ok(piece) if shared.stop.load(Ordering::Relaxed) || show(&piece).is_err() => break,
                Ok(_) => {}
                Err(error) => failure = Some(error.to_string()),
            }
        }
        drop(reply); // cancels what has not come yet, and makes a message of what has
        *lock(&shared.messages) = talk.messages().to_vec();
        failure.map_or(Ok(()), Err)
    }

    /// The conversation so far, on the engine in use: another model goes on where the last one stood.
    fn conversation(&self, handle: &EngineHandle) -> Result<Conversation, String> {
        let mut talk = Conversation::new(handle).map_err(|error| error.to_string())?;
        for message in &*lock(&self.shared.messages) {
            talk.push(message.clone());
        }
        Ok(talk)
    }

    /// Ends the answer under way.
    pub(crate) fn stop(&self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }

    /// Forgets the conversation.
    pub(crate) fn reset(&self) {
        self.stop();
        let _answered = lock(&self.shared.answering);
        lock(&self.shared.messages).clear();
    }
}

fn start(loading: &Arc<Loading>) -> Result<Engine, String> {
    let watched = loading.clone();
    let progress = Progress::new(move |loaded| {
        watched.done.store(loaded.done, Ordering::Relaxed);
        watched.total.store(loaded.total, Ordering::Relaxed);
        match watched.cancelled.load(Ordering::Relaxed) {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    });
    let options = LoadOptions { preload: true, progress: Some(progress), ..LoadOptions::default() };
    let model = Model::load(&loading.path, &options).map_err(|error| error.to_string())?;
    let options = EngineOptions { context: model.spec.context.min(8192), ..EngineOptions::default() };
    Engine::start(model, options).map_err(|error| error.to_string())
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}
