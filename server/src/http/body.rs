//! Request bodies: bounded in size and time, JSON of the right shape.

use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{FromRequest, Request};
use axum::http::{StatusCode, header};
use serde::de::DeserializeOwned;

use super::error::ApiError;
use super::state::AppState;

/// A request's body as JSON.
#[derive(Debug)]
pub(crate) struct JsonBody<T>(pub(crate) T);

impl<T: DeserializeOwned> FromRequest<AppState> for JsonBody<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &AppState) -> Result<JsonBody<T>, ApiError> {
        parse(&json_of(request, state).await?).map(JsonBody)
    }
}

/// A body that may be left out.
#[derive(Debug)]
pub(crate) struct MaybeJson<T>(pub(crate) T);

impl<T: DeserializeOwned + Default> FromRequest<AppState> for MaybeJson<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &AppState) -> Result<MaybeJson<T>, ApiError> {
        let bytes = json_of(request, state).await?;
        if bytes.is_empty() { Ok(MaybeJson(T::default())) } else { parse(&bytes).map(MaybeJson) }
    }
}

/// The bytes of a body that says it is JSON.
async fn json_of(request: Request, state: &AppState) -> Result<Bytes, ApiError> {
    check_type(&request)?;
    read(request, state.config().max_body, state.config().body_time).await
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    if bytes.trim_ascii_start().first().is_some_and(|&first| first == b'[') {
        return Err(ApiError::invalid("body: expected an object"));
    }
    serde_json::from_slice(bytes).map_err(|error| ApiError::invalid(format!("body: {error}")))
}

/// Only plain JSON: another type is what a foreign web page can send without asking, and a compressed body could be
/// larger than it looks.
fn check_type(request: &Request) -> Result<(), ApiError> {
    let headers = request.headers();
    if headers.contains_key(header::CONTENT_ENCODING) {
        return Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "compressed bodies are not supported"));
    }
    let Some(kind) = headers.get(header::CONTENT_TYPE) else { return Ok(()) };
    let kind = kind.to_str().unwrap_or_default().split(';').next().unwrap_or_default().trim();
    let json = kind.eq_ignore_ascii_case("application/json")
        || (kind.to_ascii_lowercase().starts_with("application/") && kind.ends_with("+json"));
    // What `curl -d` says, as the examples of Ollama's API use it.
    let form = kind.eq_ignore_ascii_case("application/x-www-form-urlencoded")
        && request.uri().path().starts_with("/api/");
    if json || form {
        return Ok(());
    }
    Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "the body must be of type application/json"))
}

async fn read(request: Request, limit: usize, time: Duration) -> Result<Bytes, ApiError> {
    let announced = request.headers().get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok());
    let announced = announced.and_then(|value| value.parse::<u64>().ok()).unwrap_or(0);
    let too_large =
        || ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, format!("the body is longer than {limit} bytes"));
    if announced > limit as u64 {
        return Err(too_large());
    }
    let reading = axum::body::to_bytes(request.into_body(), limit);
    match tokio::time::timeout(time, reading).await {
        Err(_) => Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, "the body took too long to arrive")),
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(error)) => match is_limit(&error) {
            true => Err(too_large()),
            false => Err(ApiError::invalid("the body could not be read")),
        },
    }
}

/// Whether reading stopped for the limit; the type that says so is not public.
fn is_limit(error: &axum::Error) -> bool {
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        if inner.to_string().contains("length limit") {
            return true;
        }
        source = inner.source();
    }
    false
}
