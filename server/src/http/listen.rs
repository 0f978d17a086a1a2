//! Listening: connections bounded in number, headers in size and time; an orderly end.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{Semaphore, watch};

use super::config::ServerConfig;
use super::stall::StallGuard;
use super::state::AppState;

/// Most headers of a request.
const MAX_HEADERS: usize = 100;
/// Longest head of a request in bytes: the first line and all headers.
const MAX_HEAD: usize = 32 << 10;
/// Pause after the system refused a connection, as it does when there are no descriptors left.
const REFUSED_PAUSE: Duration = Duration::from_millis(50);

/// Where to listen.
#[derive(Debug)]
pub enum Listener {
    /// At an address and port.
    Tcp(TcpListener),
    /// At a path.
    Unix(UnixListener),
}

/// A connection of either kind.
pub(super) trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Connection for T {}

impl Listener {
    async fn accept(&self) -> std::io::Result<Box<dyn Connection>> {
        match self {
            Listener::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                // Tokens are small: without this, each would wait for the last one's acknowledgement.
                stream.set_nodelay(true)?;
                Ok(Box::new(stream))
            }
            Listener::Unix(listener) => Ok(Box::new(listener.accept().await?.0)),
        }
    }
}

#[cfg(feature = "tls")]
pub use super::tls::Tls;

/// What would be needed to speak TLS; this build cannot.
#[cfg(not(feature = "tls"))]
#[derive(Clone, Debug)]
pub enum Tls {}

#[cfg(not(feature = "tls"))]
impl Tls {
    /// Refuses: this build cannot speak TLS.
    ///
    /// # Errors
    /// Always.
    pub fn read(_certificate: &std::path::Path, _key: &std::path::Path) -> anyhow::Result<Tls> {
        anyhow::bail!("this build cannot speak TLS: build it with the feature tls, or put a proxy before it")
    }

    async fn wrap(&self, _stream: Box<dyn Connection>) -> std::io::Result<Box<dyn Connection>> {
        match *self {}
    }
}

/// Serves `app` until `stop` turns true; then requests under way get [`ServerConfig::drain_time`] to finish.
pub async fn serve(
    listener: Listener,
    tls: Option<Tls>,
    app: Router,
    state: AppState,
    mut stop: watch::Receiver<bool>,
) {
    let config = state.config().clone();
    let places = Arc::new(Semaphore::new(config.max_connections));
    let (closing, closed) = watch::channel(false);
    loop {
        let place = tokio::select! {
            place = places.clone().acquire_owned() => place,
            () = stopped(&mut stop) => break,
        };
        let Ok(place) = place else { break };
        let stream = tokio::select! {
            stream = listener.accept() => stream,
            () = stopped(&mut stop) => break,
        };
        match stream {
            Ok(stream) => {
                let (tls, app, config, closed) = (tls.clone(), app.clone(), config.clone(), closed.clone());
                tokio::spawn(async move {
                    if let Some(stream) = greeted(stream, tls, config.header_time).await {
                        connection(stream, app, config, closed).await;
                    }
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(REFUSED_PAUSE).await;
            }
        }
    }
    drop(listener);
    state.drain();
    closing.send_replace(true);
    let all = u32::try_from(config.max_connections).unwrap_or(u32::MAX);
    if tokio::time::timeout(config.drain_time, places.acquire_many(all)).await.is_err() {
        tracing::warn!("requests were still running when the time to finish them was over");
    }
}

/// Returns once `stop` is true, or nobody is left to say so.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    if stop.wait_for(|stop| *stop).await.is_err() {
        tracing::debug!("nobody is left to stop the server");
    }
}

/// The connection once TLS is agreed on, where it is spoken; that has as much time as headers have.
async fn greeted(
    stream: Box<dyn Connection>,
    tls: Option<Tls>,
    time: Duration,
) -> Option<Box<dyn Connection>> {
    let Some(tls) = tls else { return Some(stream) };
    match tokio::time::timeout(time, tls.wrap(stream)).await {
        Ok(Ok(stream)) => Some(stream),
        Ok(Err(error)) => {
            tracing::debug!(%error, "no TLS");
            None
        }
        Err(_) => None,
    }
}

async fn connection(
    stream: Box<dyn Connection>,
    app: Router,
    config: ServerConfig,
    mut closed: watch::Receiver<bool>,
) {
    let io = TokioIo::new(StallGuard::new(stream, config.stall_time));
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(config.header_time)
        // Clients that look for a name as it is written in books find it.
        .title_case_headers(true)
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_HEAD);
    let serving = builder.serve_connection(io, TowerToHyperService::new(app));
    tokio::pin!(serving);
    let ended = tokio::select! {
        ended = serving.as_mut() => ended,
        () = stopped(&mut closed) => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "connection ended");
    }
}
