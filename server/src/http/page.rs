//! The chat page: one file that fetches nothing from elsewhere.

use axum::extract::State;
use axum::http::header;
use axum::response::{Html, IntoResponse};

use super::error::{ApiError, ApiResult};
use super::state::AppState;

const PAGE: &str = include_str!("page.html");
/// The page may run what stands in it and talk to this server, and nobody may frame it.
const POLICY: &str = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; \
                      connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The page.
pub(crate) async fn show(State(state): State<AppState>) -> ApiResult {
    if !state.config().page {
        return Err(ApiError::not_found("the chat page is switched off"));
    }
    Ok(([(header::CONTENT_SECURITY_POLICY, POLICY)], Html(PAGE)).into_response())
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_page_names_no_other_place() {
        for text in ["http://", "https://", "//cdn", "@import", "src=", "innerHTML"] {
            assert!(!super::PAGE.contains(text), "{text}");
        }
    }
}
