//! Errors as the APIs spell them.

use std::time::Duration;

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use millpond::engine::{RequestError, SpecError, SubmitError};
use millpond::text::{TemplateError, TokenizerError};
use serde_json::{Value, json};

/// Why a request was refused or failed. Messages name what the client sent, never paths or addresses of ours.
#[derive(Clone, Debug)]
pub struct ApiError {
    status: StatusCode,
    message: String,
    param: Option<String>,
    code: Option<&'static str>,
    /// Tokens of a prompt that does not fit, and of the context.
    sizes: Option<(usize, usize)>,
    retry_after: Option<Duration>,
}

/// What a handler answers.
pub type ApiResult<T = Response> = Result<T, ApiError>;

impl ApiError {
    /// An error with a status of its own.
    pub fn new(status: StatusCode, message: impl Into<String>) -> ApiError {
        ApiError { status, message: message.into(), param: None, code: None, sizes: None, retry_after: None }
    }

    /// The client asked for something that makes no sense.
    pub fn invalid(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::BAD_REQUEST, message)
    }

    /// The same about one field.
    pub fn field(param: &str, message: impl Into<String>) -> ApiError {
        ApiError { param: Some(param.to_owned()), ..ApiError::invalid(message) }
    }

    /// The same with a word for programs.
    #[must_use]
    pub fn with_code(self, code: &'static str) -> ApiError {
        ApiError { code: Some(code), ..self }
    }

    /// There is no such thing.
    pub fn not_found(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::NOT_FOUND, message)
    }

    /// Not now.
    pub fn unavailable(message: impl Into<String>) -> ApiError {
        ApiError {
            retry_after: Some(Duration::from_secs(1)),
            ..ApiError::new(StatusCode::SERVICE_UNAVAILABLE, message)
        }
    }

    /// A defect of ours.
    pub fn internal(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    }

    /// The status.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// The class of the error in OpenAI's words.
    fn kind(&self) -> &'static str {
        match self.status.as_u16() {
            400 if self.sizes.is_some() => "exceed_context_size_error",
            401 => "authentication_error",
            403 => "permission_error",
            404 => "not_found_error",
            429 => "rate_limit_error",
            503 => "unavailable_error",
            400..=499 => "invalid_request_error",
            _ => "server_error",
        }
    }

    /// As OpenAI's API and llama.cpp write it.
    #[must_use]
    pub fn openai(&self) -> Value {
        let mut error = json!({
            "message": self.message,
            "type": self.kind(),
            "param": self.param,
            "code": self.code,
        });
        if let Some((prompt, context)) = self.sizes {
            error["n_prompt_tokens"] = prompt.into();
            error["n_ctx"] = context.into();
        }
        json!({ "error": error })
    }

    /// As Anthropic's API writes it.
    #[must_use]
    pub fn anthropic(&self) -> Value {
        let kind = match self.status.as_u16() {
            413 => "request_too_large",
            400 => "invalid_request_error",
            503 => "overloaded_error",
            500..=599 => "api_error",
            _ => self.kind(),
        };
        json!({ "type": "error", "error": { "type": kind, "message": self.message } })
    }

    /// As Ollama's API writes it.
    #[must_use]
    pub fn ollama(&self) -> Value {
        json!({ "error": self.message })
    }

    fn respond(&self, body: Value) -> Response {
        let mut response = (self.status, Json(body)).into_response();
        if let Some(wait) = self.retry_after {
            let seconds = wait.as_secs_f64().ceil().max(1.0) as u64;
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = self.respond(self.openai());
        response.extensions_mut().insert(self);
        response
    }
}

impl From<SubmitError> for ApiError {
    fn from(error: SubmitError) -> ApiError {
        let message = error.to_string();
        match error {
            SubmitError::QueueFull { retry_after, .. } => ApiError {
                retry_after: Some(retry_after),
                code: Some("queue_full"),
                ..ApiError::new(StatusCode::TOO_MANY_REQUESTS, message)
            },
            SubmitError::PromptTooLong { prompt, context, .. } => ApiError {
                code: Some("context_length_exceeded"),
                sizes: Some((prompt, context)),
                // Agents look for llama-server's words, to shorten their conversation.
                ..ApiError::invalid(format!("{message}: the request exceeds the available context size"))
            },
            SubmitError::Stopped => ApiError::unavailable(message),
            // What such a request asks for is sound, but not here.
            SubmitError::Spec(SpecError::NoHead | SpecError::NoDraftModel) => {
                ApiError::new(StatusCode::NOT_FOUND, message)
            }
            _ => ApiError::invalid(message),
        }
    }
}

impl From<RequestError> for ApiError {
    fn from(error: RequestError) -> ApiError {
        match error {
            RequestError::Stopped => ApiError::unavailable(error.to_string()),
            RequestError::Grammar(_) => ApiError::invalid(error.to_string()),
            _ => ApiError::internal(error.to_string()),
        }
    }
}

impl From<TemplateError> for ApiError {
    fn from(error: TemplateError) -> ApiError {
        ApiError::field("messages", error.to_string())
    }
}

impl From<TokenizerError> for ApiError {
    fn from(error: TokenizerError) -> ApiError {
        ApiError::invalid(error.to_string())
    }
}

/// Rewrites an error into the form of the API that the path belongs to.
pub(crate) fn in_form_of(path: &str, mut response: Response) -> Response {
    let Some(error) = response.extensions_mut().remove::<ApiError>() else { return response };
    let body = if path == "/v1/messages" || path.starts_with("/v1/messages/") {
        error.anthropic()
    } else if path.starts_with("/api/") {
        error.ollama()
    } else {
        return response;
    };
    let mut rewritten = error.respond(body);
    // What says which methods there are stays.
    if let Some(allow) = response.headers_mut().remove(header::ALLOW) {
        rewritten.headers_mut().insert(header::ALLOW, allow);
    }
    rewritten
}
