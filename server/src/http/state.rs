//! What all handlers share.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use millpond::engine::{EngineHandle, Generation, Request};
use millpond::model::Model;
use millpond::text::{ChatTemplate, Tokenizer};
use tokio::sync::Semaphore;

use super::config::ServerConfig;
use super::error::{ApiError, ApiResult};
use super::events::Events;
use super::ids;

/// Prompts tokenised at once: the rest of the machine belongs to the engine.
const PREPARING: usize = 2;

/// What all handlers share; cheap to clone.
#[derive(Clone)]
pub struct AppState(Arc<Shared>);

struct Shared {
    config: ServerConfig,
    engine: OnceLock<EngineHandle>,
    draining: AtomicBool,
    preparing: Arc<Semaphore>,
    started: Instant,
    created: u64,
    requests: AtomicU64,
}

impl AppState {
    /// The state of a server whose model is not there yet.
    #[must_use]
    pub fn new(config: ServerConfig) -> AppState {
        AppState(Arc::new(Shared {
            config,
            engine: OnceLock::new(),
            draining: AtomicBool::new(false),
            preparing: Arc::new(Semaphore::new(PREPARING)),
            started: Instant::now(),
            created: ids::now(),
            requests: AtomicU64::new(0),
        }))
    }

    /// The state of a server with a running engine.
    #[must_use]
    pub fn with_engine(config: ServerConfig, engine: EngineHandle) -> AppState {
        let state = AppState::new(config);
        state.set_engine(engine);
        state
    }

    /// Hands over the engine once its model is loaded. Only the first counts.
    pub fn set_engine(&self, engine: EngineHandle) {
        self.0.engine.get_or_init(|| engine);
    }

    /// How the server is set up.
    #[must_use]
    pub fn config(&self) -> &ServerConfig {
        &self.0.config
    }

    /// Begins to stop: `/ready` says no from now on.
    pub fn drain(&self) {
        self.0.draining.store(true, Ordering::SeqCst);
    }

    /// Whether requests are served.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.0.engine.get().is_some() && !self.0.draining.load(Ordering::SeqCst)
    }

    /// Seconds since the start.
    #[must_use]
    pub(crate) fn uptime(&self) -> f64 {
        self.0.started.elapsed().as_secs_f64()
    }

    /// When the server started, in seconds since 1970.
    #[must_use]
    pub(crate) fn created(&self) -> u64 {
        self.0.created
    }

    pub(crate) fn count_request(&self) {
        self.0.requests.fetch_add(1, Ordering::Relaxed);
    }

    /// HTTP requests since the start.
    #[must_use]
    pub(crate) fn requests(&self) -> u64 {
        self.0.requests.load(Ordering::Relaxed)
    }

    /// The engine.
    ///
    /// # Errors
    /// 503 while the model is loading.
    pub(crate) fn engine(&self) -> ApiResult<&EngineHandle> {
        self.0.engine.get().ok_or_else(|| ApiError::unavailable("Loading model"))
    }

    /// The model.
    ///
    /// # Errors
    /// As [`AppState::engine`].
    pub(crate) fn model(&self) -> ApiResult<&Arc<Model>> {
        self.engine().map(EngineHandle::model)
    }

    /// The model's tokenizer.
    ///
    /// # Errors
    /// As [`AppState::engine`]; the model has none.
    pub(crate) fn tokenizer(&self) -> ApiResult<&Arc<Tokenizer>> {
        let missing = || ApiError::invalid("the model came without a tokenizer: only token ids can be used");
        self.model()?.tokenizer.as_ref().ok_or_else(missing)
    }

    /// The model's chat template.
    ///
    /// # Errors
    /// As [`AppState::engine`]; the model has none.
    pub(crate) fn template(&self) -> ApiResult<&ChatTemplate> {
        let missing = || ApiError::invalid("the model has no chat template; use /v1/completions");
        self.model()?.template.as_ref().ok_or_else(missing)
    }

    /// Name under which the model goes.
    #[must_use]
    pub(crate) fn model_name(&self) -> String {
        let own = || self.model().map_or_else(|_| String::new(), |model| model.info.name.clone());
        self.0.config.alias.clone().unwrap_or_else(own)
    }

    /// Runs work that may take a while (templates, tokenising) beside the server's own threads.
    ///
    /// # Errors
    /// What the work says.
    pub(crate) async fn prepare<T: Send + 'static>(
        &self,
        work: impl FnOnce(&AppState) -> ApiResult<T> + Send + 'static,
    ) -> ApiResult<T> {
        let stopped = || ApiError::unavailable("the server is stopping");
        let permit = self.0.preparing.clone().acquire_owned().await.map_err(|_| stopped())?;
        let state = self.clone();
        let task = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            work(&state)
        });
        task.await.map_err(|_| ApiError::internal("preparing the request failed"))?
    }

    /// Hands requests to the engine, each to be answered `count` times: all or none. Compiling a grammar may take a
    /// while, so this belongs into [`AppState::prepare`].
    ///
    /// # Errors
    /// The first refusal.
    pub(crate) fn submit(&self, requests: Vec<Request>, count: usize) -> ApiResult<Events> {
        if self.0.draining.load(Ordering::SeqCst) {
            return Err(ApiError::unavailable("the server is stopping"));
        }
        let engine = self.engine()?;
        let mut generations: Vec<Generation> = Vec::new();
        for request in requests {
            generations.extend(engine.submit_many(request, count)?);
        }
        Ok(Events::new(generations))
    }
}
