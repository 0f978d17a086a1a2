//! What all handlers share, and what a handler has once it knows its model.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use millpond::engine::{EngineHandle, Generation, Request};
use millpond::model::Model;
use millpond::text::{ChatTemplate, Tokenizer};
use tokio::sync::Semaphore;

use super::config::ServerConfig;
use super::error::{ApiError, ApiResult};
use super::events::Events;
use super::ids;
use super::places::slot_number;
use super::pool::{Entry, Lease, Pool};

/// Prompts tokenised at once: the rest of the machine belongs to the engine.
const PREPARING: usize = 2;
/// How often models whose time is over are looked for.
const SWEEP: Duration = Duration::from_millis(500);

/// What all handlers share; cheap to clone.
#[derive(Clone)]
pub struct AppState(Arc<Shared>);

struct Shared {
    config: ServerConfig,
    pool: Arc<Pool>,
    draining: AtomicBool,
    preparing: Arc<Semaphore>,
    started: Instant,
    created: u64,
    requests: AtomicU64,
}

impl AppState {
    /// The state of a server of one model that is not there yet.
    #[must_use]
    pub fn new(config: ServerConfig) -> AppState {
        let pool = Pool::of_one(config.name.clone());
        AppState::with_pool(config, pool)
    }

    /// The state of a server of one model with a running engine.
    #[must_use]
    pub fn with_engine(config: ServerConfig, engine: EngineHandle) -> AppState {
        let state = AppState::new(config);
        state.0.pool.set_engine(engine);
        state
    }

    /// The state of a server of the models of a pool.
    #[must_use]
    pub fn with_pool(config: ServerConfig, pool: Pool) -> AppState {
        AppState(Arc::new(Shared {
            config,
            pool: Arc::new(pool),
            draining: AtomicBool::new(false),
            preparing: Arc::new(Semaphore::new(PREPARING)),
            started: Instant::now(),
            created: ids::now(),
            requests: AtomicU64::new(0),
        }))
    }

    /// How the server is set up.
    #[must_use]
    pub fn config(&self) -> &ServerConfig {
        &self.0.config
    }

    /// The models.
    #[must_use]
    pub fn pool(&self) -> &Arc<Pool> {
        &self.0.pool
    }

    /// Begins to stop: `/ready` says no from now on.
    pub fn drain(&self) {
        self.0.draining.store(true, Ordering::SeqCst);
    }

    fn is_draining(&self) -> bool {
        self.0.draining.load(Ordering::SeqCst)
    }

    /// Says why requests are not served, if they are not.
    pub(crate) fn check_ready(&self) -> ApiResult<()> {
        if self.is_draining() {
            return Err(stopping());
        }
        if self.0.pool.is_ready() { Ok(()) } else { Err(ApiError::unavailable("Loading model")) }
    }

    /// Unloads models whose time is over, until the server stops.
    pub async fn sweep(self) {
        while !self.is_draining() {
            tokio::time::sleep(SWEEP).await;
            self.0.pool.unload_idle().await;
        }
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

    /// The model of a name, loaded if it has to be; the default one for requests that name none.
    ///
    /// # Errors
    /// 404 where there is none of that name, 503 while it loads at the start or finds no room, 500 if its files are damaged.
    pub(crate) async fn select(&self, name: Option<&str>) -> ApiResult<Served> {
        let lease = self.0.pool.lease(name).await?;
        Ok(Served { state: self.clone(), lease })
    }
}

fn stopping() -> ApiError {
    ApiError::unavailable("the server is stopping")
}

/// The server with the model that a request is for, which stays in memory as long.
#[derive(Clone)]
pub(crate) struct Served {
    state: AppState,
    lease: Lease,
}

impl Served {
    /// How the server is set up.
    #[must_use]
    pub(crate) fn config(&self) -> &ServerConfig {
        self.state.config()
    }

    /// The engine.
    #[must_use]
    pub(crate) fn engine(&self) -> &EngineHandle {
        self.lease.handle()
    }

    /// The model among those of the server.
    #[must_use]
    pub(crate) fn entry(&self) -> &Entry {
        self.lease.entry()
    }

    /// The model.
    #[must_use]
    pub(crate) fn model(&self) -> &Arc<Model> {
        self.engine().model()
    }

    /// The model's tokenizer.
    ///
    /// # Errors
    /// The model has none.
    pub(crate) fn tokenizer(&self) -> ApiResult<&Arc<Tokenizer>> {
        let missing = || ApiError::invalid("the model came without a tokenizer: only token ids can be used");
        self.model().tokenizer.as_ref().ok_or_else(missing)
    }

    /// The model's chat template.
    ///
    /// # Errors
    /// The model has none.
    pub(crate) fn template(&self) -> ApiResult<&ChatTemplate> {
        let missing = || ApiError::invalid("the model has no chat template; use /v1/completions");
        self.model().template.as_ref().ok_or_else(missing)
    }

    /// Name under which the model goes.
    #[must_use]
    pub(crate) fn name(&self) -> String {
        self.entry().name().to_owned()
    }

    /// Runs work that may take a while (templates, tokenising) beside the server's own threads.
    ///
    /// # Errors
    /// What the work says.
    pub(crate) async fn prepare<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Served) -> ApiResult<T> + Send + 'static,
    ) -> ApiResult<T> {
        let permit = self.state.0.preparing.clone().acquire_owned().await.map_err(|_| stopping())?;
        let served = self.clone();
        let task = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            work(&served)
        });
        task.await.map_err(|_| ApiError::internal("preparing the request failed"))?
    }

    /// Hands requests to the engine, each to be answered `count` times: all or none. Compiling a grammar may take a
    /// while, so this belongs into [`Served::prepare`].
    ///
    /// # Errors
    /// The first refusal.
    pub(crate) fn submit(&self, mut requests: Vec<Request>, count: usize) -> ApiResult<Events> {
        if self.state.is_draining() {
            return Err(stopping());
        }
        let most = self.engine().options().max_running;
        let places =
            requests.iter_mut().filter_map(|request| self.entry().places().of(request, most)).collect();
        let slot = |request: &Request| request.session.as_deref().and_then(slot_number);
        let slots = requests.iter().flat_map(|request| std::iter::repeat_n(slot(request), count)).collect();
        let mut generations: Vec<Generation> = Vec::new();
        for request in requests {
            generations.extend(self.engine().submit_many(request, count)?);
        }
        Ok(Events::new(generations, slots, places, self.lease.clone()))
    }
}
