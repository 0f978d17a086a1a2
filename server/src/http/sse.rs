//! Server-sent events: a task writes, the connection reads at its own pace.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use futures_core::Stream;
use millpond::engine::Event;
use serde_json::Value;
use tokio::sync::mpsc;

use super::events::Events;

/// Silence after which a comment shows that the connection is alive.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// Pieces a slow reader may leave unread before the writer waits.
const PIECES: usize = 16;

/// The client has gone.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Gone;

/// How pieces are marked off from each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    /// Server-sent events.
    Sse,
    /// One JSON value a line, as Ollama's API does.
    Lines,
}

/// The writing end.
#[derive(Debug)]
pub(crate) struct Sender {
    pieces: mpsc::Sender<Bytes>,
    framing: Framing,
}

/// The reading end, as the body of a response.
struct Pieces(mpsc::Receiver<Bytes>);

impl Stream for Pieces {
    type Item = Result<Bytes, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(context).map(|piece| piece.map(Ok))
    }
}

/// A response that `write` fills as it runs, in a task of its own that ends when the client goes.
pub(crate) fn respond<W, F>(framing: Framing, write: W) -> Response
where
    W: FnOnce(Sender) -> F,
    F: Future<Output = Result<(), Gone>> + Send + 'static,
{
    let (pieces, reader) = mpsc::channel(PIECES);
    let writing = write(Sender { pieces, framing });
    tokio::spawn(async move {
        if let Err(Gone) = writing.await {
            tracing::debug!("client left in mid-answer");
        }
    });
    let kind = match framing {
        Framing::Sse => "text/event-stream; charset=utf-8",
        Framing::Lines => "application/x-ndjson",
    };
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static(kind)),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
        // Proxies that buffer would hold the answer back.
        (header::HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no")),
    ];
    (headers, Body::from_stream(Pieces(reader))).into_response()
}

impl Sender {
    /// Sends a value.
    pub(crate) async fn data(&self, value: &Value) -> Result<(), Gone> {
        self.raw(match self.framing {
            Framing::Sse => format!("data: {value}\n\n"),
            Framing::Lines => format!("{value}\n"),
        })
        .await
    }

    /// Sends a value as an event with a name.
    pub(crate) async fn event(&self, name: &str, value: &Value) -> Result<(), Gone> {
        self.raw(format!("event: {name}\ndata: {value}\n\n")).await
    }

    /// Sends the end mark of OpenAI's API.
    pub(crate) async fn done(&self) -> Result<(), Gone> {
        self.raw("data: [DONE]\n\n".to_owned()).await
    }

    async fn raw(&self, text: String) -> Result<(), Gone> {
        self.pieces.send(Bytes::from(text)).await.map_err(|_| Gone)
    }

    /// The next event, with signs of life while there is none.
    ///
    /// # Errors
    /// The client has gone, whether or not anything was to be sent.
    pub(crate) async fn next(&self, events: &mut Events) -> Result<Option<(usize, Event)>, Gone> {
        loop {
            tokio::select! {
                event = events.next() => return Ok(event),
                () = self.pieces.closed() => return Err(Gone),
                () = tokio::time::sleep(KEEP_ALIVE) => {
                    if self.framing == Framing::Sse {
                        self.raw(": still here\n\n".to_owned()).await?;
                    }
                }
            }
        }
    }
}
