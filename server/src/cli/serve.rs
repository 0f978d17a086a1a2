//! `millpond serve`: the HTTP server.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use millpond::engine::{Engine, EngineOptions, SpecMode};
use millpond::state::memory::KvType;
use tokio::net::{TcpListener, UnixListener};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use super::args::{CompatName, ModelArgs, ReasoningArgs, ServeArgs, SpeculationArgs};
use super::failure::usage;
use super::machine::Machine;
use super::running::{RunFile, Running};
use super::settings::{self, Compute};
use super::{answer, conversation, device, models, run, sampling};
use crate::http::config::{DEFAULT_PORT, ServerConfig};
use crate::http::listen::{self, Listener, Tls};
use crate::http::pool::{Loader, Pool, PoolOptions};
use crate::http::state::AppState;

/// Threads that move bytes; computing is the engine's.
const IO_THREADS: usize = 2;
/// Longest file of keys.
const MAX_KEY_FILE: usize = 1 << 20;

/// Runs the command.
///
/// # Errors
/// Wrong usage, an address that cannot be listened at, a model that does not load.
pub(crate) fn run(args: &ServeArgs) -> anyhow::Result<()> {
    let mut args = args.clone();
    args.model.model = args.model.model.or_else(|| args.path.clone());
    let args = &args;
    let compute = Compute::new(&args.compute, KvType::F16)?;
    let config = config(args)?;
    let tls = tls(args)?;
    let pool = pool(args, &compute)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(IO_THREADS)
        .enable_all()
        .build()
        .context("cannot start the server's threads")?;
    let served = runtime.block_on(serve(args, config, tls, pool));
    // Tasks still running belong to clients whose time to finish is over.
    runtime.shutdown_timeout(Duration::from_millis(100));
    served
}

/// The certificate to show, if the server is to speak TLS.
fn tls(args: &ServeArgs) -> anyhow::Result<Option<Tls>> {
    let (Some(key), Some(certificate)) = (&args.ssl_key_file, &args.ssl_cert_file) else { return Ok(None) };
    Tls::read(certificate, key).map(Some)
}

/// The models that are served.
fn pool(args: &ServeArgs, compute: &Compute) -> anyhow::Result<Pool> {
    if let Some(folder) = args.models_dir.as_deref().filter(|folder| !folder.is_dir()) {
        return Err(usage(format!("--models-dir {} is no folder", folder.display())));
    }
    let half = || Machine::look().memory.map(|bytes| bytes / 2);
    let options = PoolOptions {
        folder: args.models_dir.clone(),
        max_loaded: Some(args.models_max).filter(|&most| most > 0),
        memory: args.models_memory.map(|count| count.saturating_mul(1 << 20)).or_else(half),
        keep: u64::try_from(args.idle_unload).ok().map(Duration::from_secs),
    };
    // The folder's models are what is asked for, unless one is named.
    let has_own = args.model.is_named() || args.models_dir.is_none();
    let pool = Pool::new(options, loader(args, compute)?);
    if !has_own {
        return Ok(pool);
    }
    let bytes = match (&args.model.model, &args.model.hf_repo) {
        (Some(path), _) => settings::bytes_on_disk(&models::path_of(path)),
        // How large it is shows when it is fetched.
        (None, Some(_)) => 0,
        (None, None) => crate::built_in::bytes().len() as u64,
    };
    let names = if args.alias.is_empty() { vec![own_name(args)] } else { args.alias.clone() };
    Ok(pool.with_own(names, bytes))
}

/// What the model goes by where the user does not say.
fn own_name(args: &ServeArgs) -> String {
    args.model.hf_repo.clone().unwrap_or_else(|| model_name(args.model.model.as_deref()))
}

fn loader(args: &ServeArgs, compute: &Compute) -> anyhow::Result<Loader> {
    let (own, template, options) =
        (args.model.clone(), args.template.clone(), engine_options(args, compute)?);
    let speculation = args.speculation.clone();
    let (device, warm_up) = (compute.device, !args.no_warmup);
    Ok(Arc::new(move |path: Option<&Path>| -> anyhow::Result<Engine> {
        let (model, options) = match path {
            None => {
                let (model, draft) = settings::load_with_draft(&own, &speculation)?;
                let options = settings::speculation(&speculation, draft, options.clone())?;
                (conversation::apply_template(model, &template)?, options)
            }
            // What drafts for the model named on the command line does not for others.
            Some(path) => {
                let args =
                    ModelArgs { model: Some(path.to_owned()), hf_repo: None, mtp: None, ..own.clone() };
                let own_spec =
                    speculation.spec.filter(|mode| *mode != SpecMode::Draft && *mode != SpecMode::Mtp);
                let speculation =
                    SpeculationArgs { model_draft: None, spec: own_spec, ..speculation.clone() };
                (settings::load_model(&args)?, settings::speculation(&speculation, None, options.clone())?)
            }
        };
        let engine = device::start(model, options, device)?;
        if warm_up {
            engine.handle().warm_up().context("the model does not run")?;
        }
        Ok(engine)
    }))
}

fn config(args: &ServeArgs) -> anyhow::Result<ServerConfig> {
    let mut api_keys = args.api_key.clone();
    if let Some(path) = &args.api_key_file {
        let text = settings::read_text(path)?;
        anyhow::ensure!(text.len() <= MAX_KEY_FILE, "{} is no file of keys", path.display());
        api_keys.extend(
            text.lines()
                .map(str::trim)
                .filter(|key| !key.is_empty() && !key.starts_with('#'))
                .map(str::to_owned),
        );
        anyhow::ensure!(!api_keys.is_empty(), "{} holds no key", path.display());
    }
    if api_keys.iter().any(String::is_empty) {
        return Err(usage("--api-key is empty"));
    }
    let reasoning = ReasoningArgs {
        reasoning: Some(args.reasoning),
        reasoning_effort: args.reasoning_effort.clone(),
        reasoning_budget: args.reasoning_budget,
        ..ReasoningArgs::default()
    };
    let mut options = conversation::all_options(&args.template, &reasoning)?;
    Ok(ServerConfig {
        name: own_name(args),
        api_keys,
        allowed_hosts: args.allowed_hosts.clone(),
        allowed_origins: args.cors_origins.clone(),
        max_body: args.max_body,
        max_tokens: run::max_tokens(&args.generation)?,
        stop: args.generation.stops(),
        ignore_eos: args.generation.ignore_eos,
        // The vocabulary is checked with the first request: the model is not loaded yet.
        sampling: sampling::params(&args.sampling, u32::MAX as usize)?,
        thinking: options.remove("enable_thinking").and_then(|thinking| thinking.as_bool()),
        reasoning_form: args.reasoning_format,
        cache_prompt: !args.no_cache_prompt,
        template_options: options,
        metrics: !args.no_metrics,
        slots: !args.no_slots,
        page: !args.no_ui,
        saves_states: args.slot_save_path.is_some(),
        stall_time: Duration::from_secs(args.timeout),
        drain_time: Duration::from_secs(args.drain_seconds),
        ..ServerConfig::default()
    })
}

/// The path of a socket as any process finds it.
fn absolute(path: &str) -> String {
    std::path::absolute(path).map_or_else(|_| path.to_owned(), |path| path.display().to_string())
}

/// The file's name without its ending: shorter and better known to its user than what it calls itself.
fn model_name(path: Option<&Path>) -> String {
    let Some(path) = path else { return crate::built_in::NAME.to_owned() };
    let name = if path.is_dir() { path.file_name() } else { path.file_stem() };
    name.map_or_else(|| "model".to_owned(), |name| name.to_string_lossy().into_owned())
}

async fn serve(
    args: &ServeArgs,
    mut config: ServerConfig,
    tls: Option<Tls>,
    pool: Pool,
) -> anyhow::Result<()> {
    // Before anybody learns that there is a server to be stopped.
    let mut stops = Stops::new()?;
    let (listener, shown) = listen(args, &mut config, tls.is_some()).await?;
    let state = AppState::with_pool(config, pool);
    let app = crate::http::app(state.clone());
    let (stop, stopped) = watch::channel(false);
    let serving = tokio::spawn(listen::serve(listener, tls, app, state.clone(), stopped));
    tokio::spawn(state.clone().sweep());
    super::output::note!("millpond: listening at {shown}");
    let _listed = RunFile::write(&Running {
        process: std::process::id(),
        address: if shown.starts_with("http") { shown.clone() } else { absolute(&shown) },
        model: args.alias.first().cloned().unwrap_or_else(|| own_name(args)),
        started: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
    });
    let pool = state.pool().clone();
    let loading = tokio::task::spawn_blocking(move || pool.load_own());
    let handle = tokio::select! {
        loaded = loading => loaded.context("loading failed")??,
        () = stops.next() => return Ok(()),
    };
    if let Some(handle) = handle {
        super::output::note!(
            "millpond: serving {} with a context of {} tokens for each request",
            state.pool().own_name(),
            handle.context()
        );
    }
    if let Some(folder) = &args.models_dir {
        super::output::note!("millpond: serving the models in {} as they are asked for", folder.display());
    }
    stops.next().await;
    super::output::note!("millpond: stopping; once more to stop at once");
    stop.send_replace(true);
    tokio::select! {
        served = serving => served.context("the server failed")?,
        () = stops.next() => {}
    }
    Ok(())
}

async fn listen(
    args: &ServeArgs,
    config: &mut ServerConfig,
    tls: bool,
) -> anyhow::Result<(Listener, String)> {
    let socket = args.host.strip_prefix("unix:");
    if let Some(path) = socket.or_else(|| args.host.ends_with(".sock").then_some(args.host.as_str())) {
        let path = PathBuf::from(path);
        let listener = bind_unix(&path).with_context(|| format!("cannot listen at {}", path.display()))?;
        return Ok((Listener::Unix(listener), path.display().to_string()));
    }
    let address = match args.host.as_str() {
        "localhost" => IpAddr::from([127, 0, 0, 1]),
        host => host
            .parse()
            .map_err(|_| usage(format!("--host {host} is neither an address nor a socket (unix:PATH)")))?,
    };
    let address =
        SocketAddr::new(address, args.port.or(args.compat.map(CompatName::port)).unwrap_or(DEFAULT_PORT));
    let listener = TcpListener::bind(address).await.with_context(|| format!("cannot listen at {address}"))?;
    let address = listener.local_addr()?;
    config.address = Some(address.ip());
    if !address.ip().is_loopback() && config.api_keys.is_empty() {
        super::output::note!(
            "millpond: anyone who can reach {address} may use this server; --api-key asks for a key"
        );
    }
    let scheme = if tls { "https" } else { "http" };
    Ok((Listener::Tcp(listener), format!("{scheme}://{address}")))
}

/// A socket at a path where there is none, or one that nobody listens at any more.
fn bind_unix(path: &Path) -> std::io::Result<UnixListener> {
    match UnixListener::bind(path) {
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
            if std::os::unix::net::UnixStream::connect(path).is_ok() {
                return Err(error);
            }
            std::fs::remove_file(path)?;
            UnixListener::bind(path)
        }
        other => other,
    }
}

fn engine_options(args: &ServeArgs, compute: &Compute) -> anyhow::Result<EngineOptions> {
    let base = answer::options(compute, args.generation.ctx_size);
    let state_budget = args.state_budget.as_deref().map(size).transpose()?;
    Ok(EngineOptions {
        memory_budget: args.memory.map(mebibytes).or(state_budget),
        cache_budget: args.cache_ram.map(cache_budget).transpose()?,
        cache_dir: args.cache_disk.clone(),
        cache_dir_budget: args.cache_disk_limit.saturating_mul(1 << 20),
        max_queue: args.max_queue.unwrap_or(base.max_queue),
        max_running: args.parallel.map_or(Ok(base.max_running), |count| places(count, &base))?,
        session_dir: args.slot_save_path.clone(),
        max_gap: Duration::from_millis(args.max_gap_ms),
        ..base
    })
}

/// Bytes from `1000`, `500K`, `200M` or `4G`.
fn size(text: &str) -> anyhow::Result<usize> {
    let wrong = || usage(format!("--state-budget {text}: a number of bytes expected, or one with K, M or G"));
    let (number, unit) = match text.char_indices().next_back() {
        Some((at, 'K' | 'k')) => (&text[..at], 1 << 10),
        Some((at, 'M' | 'm')) => (&text[..at], 1 << 20),
        Some((at, 'G' | 'g')) => (&text[..at], 1 << 30),
        _ => (text, 1),
    };
    number.parse::<usize>().ok().and_then(|number| number.checked_mul(unit)).ok_or_else(wrong)
}

/// Bytes of the prompt cache: -1 sets no limit.
fn cache_budget(count: i64) -> anyhow::Result<usize> {
    match usize::try_from(count) {
        Ok(count) => Ok(mebibytes(count)),
        Err(_) if count == -1 => Ok(usize::MAX),
        Err(_) => Err(usage(format!("--cache-ram {count}: 0 or more expected, or -1 for no limit"))),
    }
}

/// Requests that run at once: -1 leaves the number to us.
fn places(count: i64, base: &EngineOptions) -> anyhow::Result<usize> {
    match usize::try_from(count) {
        Ok(count) if count > 0 => Ok(count),
        Err(_) if count == -1 => Ok(base.max_running),
        _ => Err(usage(format!("--parallel {count}: 1 or more expected, or -1"))),
    }
}

fn mebibytes(count: usize) -> usize {
    count.saturating_mul(1 << 20)
}

/// The ways a process is asked to end; none is missed from when this exists.
struct Stops {
    interrupt: Signal,
    terminate: Signal,
}

impl Stops {
    fn new() -> anyhow::Result<Stops> {
        let listen = |kind| signal(kind).context("cannot handle signals");
        Ok(Stops { interrupt: listen(SignalKind::interrupt())?, terminate: listen(SignalKind::terminate())? })
    }

    /// Returns when the process is asked to end.
    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::size;

    #[test]
    fn sizes_have_units() {
        for (text, bytes) in [("7", 7), ("2k", 2 << 10), ("3M", 3 << 20), ("1G", 1 << 30)] {
            assert_eq!(size(text).unwrap(), bytes);
        }
        for text in ["", "G", "-1", "1T", "1.5G", "99999999999999999999G", "17179869184G"] {
            assert!(size(text).is_err(), "{text}");
        }
    }
}
