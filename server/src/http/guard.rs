//! Who may ask: the names this server answers to, the pages that may use it, the keys.
//!
//! A web page anywhere can make a visitor's browser send requests to `127.0.0.1`. Two checks stop that: the `Host` must be
//! an address of this machine or an allowed name (a page that rebinds its own name to our address shows that name), and
//! an `Origin`, which browsers attach to whatever could change something, must be our own or an allowed one.

use std::net::IpAddr;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use subtle::ConstantTimeEq;

use super::config::ServerConfig;
use super::error::{ApiError, ApiResult, in_form_of};
use super::state::AppState;

/// Routes that need no key: they tell nothing of what is done here and start nothing.
const OPEN: [&str; 5] = ["/", "/openapi.json", "/health", "/v1/health", "/ready"];

/// Checks host, origin and key of a request before any handler sees it.
pub(crate) async fn guard(State(state): State<AppState>, request: Request, next: Next) -> Response {
    state.count_request();
    let path = request.uri().path().to_owned();
    in_form_of(&path, admit_and_run(&state, request, next).await)
}

async fn admit_and_run(state: &AppState, request: Request, next: Next) -> Response {
    let config = state.config();
    let origin = match admit(config, &request) {
        Ok(origin) => origin,
        Err(error) => return error.into_response(),
    };
    // A preflight carries no key; the request it asks for will.
    if request.method() == Method::OPTIONS {
        return allow_origin(StatusCode::NO_CONTENT.into_response(), origin, true);
    }
    let open = OPEN.contains(&request.uri().path());
    if !open && let Err(error) = check_key(config, request.headers()) {
        return allow_origin(error.into_response(), origin, false);
    }
    allow_origin(next.run(request).await, origin, false)
}

/// The foreign origin to which the answer may be shown, if any.
fn admit(config: &ServerConfig, request: &Request) -> ApiResult<Option<HeaderValue>> {
    let host = host_of(request)?;
    if !is_own_host(config, &host) {
        let message = "this server does not answer to that host name (see --allowed-hosts)";
        return Err(ApiError::new(StatusCode::FORBIDDEN, message));
    }
    let Some(origin) = single(request.headers(), &header::ORIGIN)? else { return Ok(None) };
    let text = origin.to_str().unwrap_or_default();
    if is_own_origin(text, &host) {
        return Ok(None);
    }
    let allowed =
        config.allowed_origins.iter().any(|allowed| allowed == "*" || allowed.eq_ignore_ascii_case(text));
    if allowed && text != "null" {
        return Ok(Some(origin.clone()));
    }
    let message = "pages of other origins may not use this server (see --cors-origins)";
    Err(ApiError::new(StatusCode::FORBIDDEN, message))
}

/// The authority a request was sent to, in lower case.
fn host_of(request: &Request) -> ApiResult<String> {
    let header = single(request.headers(), &header::HOST)?.map(|host| host.to_str().unwrap_or_default());
    let host = request.uri().authority().map(axum::http::uri::Authority::as_str).or(header);
    let host =
        host.filter(|host| !host.is_empty()).ok_or_else(|| ApiError::invalid("the request names no host"))?;
    Ok(host.to_ascii_lowercase())
}

/// The only value of a header.
fn single<'a>(headers: &'a HeaderMap, name: &HeaderName) -> ApiResult<Option<&'a HeaderValue>> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (value, None) => Ok(value),
        _ => Err(ApiError::invalid(format!("the request has several {name} headers"))),
    }
}

fn is_own_host(config: &ServerConfig, authority: &str) -> bool {
    let Some(name) = host_name(authority) else { return false };
    if let Some(address) = address(name) {
        // Somebody else's name cannot become an address, so an address is safe wherever it points to us.
        let loopback = config.address.is_none_or(|own| own.is_loopback());
        return address.is_loopback() || !loopback;
    }
    let name = name.strip_suffix('.').unwrap_or(name);
    name == "localhost"
        || config.allowed_hosts.iter().any(|allowed| allowed == "*" || allowed.eq_ignore_ascii_case(name))
}

/// The host without its port.
fn host_name(authority: &str) -> Option<&str> {
    if authority.contains('@') {
        return None;
    }
    let (name, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (inside, rest) = rest.split_once(']')?;
            (&authority[..inside.len() + 2], rest)
        }
        None => authority.split_at(authority.find(':').unwrap_or(authority.len())),
    };
    let port = if port.is_empty() { port } else { port.strip_prefix(':')? };
    let fits = port.is_empty() || port.parse::<u16>().is_ok();
    fits.then_some(name)
}

fn address(name: &str) -> Option<IpAddr> {
    match name.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']')?.parse().ok().map(IpAddr::V6),
        None => name.parse().ok().map(IpAddr::V4),
    }
}

/// Whether a page of this origin came from this server itself.
fn is_own_origin(origin: &str, host: &str) -> bool {
    let Ok(uri) = origin.parse::<Uri>() else { return false };
    let http = matches!(uri.scheme_str(), Some("http" | "https"));
    http && uri.authority().is_some_and(|authority| authority.as_str().eq_ignore_ascii_case(host))
}

/// Compares with every key in full, so that the time tells nothing.
fn check_key(config: &ServerConfig, headers: &HeaderMap) -> ApiResult<()> {
    if config.api_keys.is_empty() {
        return Ok(());
    }
    let bearer = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let bearer = bearer.and_then(|text| {
        let (scheme, key) = text.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then_some(key.trim())
    });
    let anthropic = || headers.get("x-api-key").and_then(|value| value.to_str().ok());
    let shown = bearer.or_else(anthropic).unwrap_or_default().as_bytes();
    let fits =
        config.api_keys.iter().fold(subtle::Choice::from(0), |fits, key| fits | shown.ct_eq(key.as_bytes()));
    if bool::from(fits) {
        return Ok(());
    }
    Err(ApiError::new(StatusCode::UNAUTHORIZED, "Invalid API Key"))
}

/// Tells a browser that the page of an allowed origin may see the answer.
fn allow_origin(mut response: Response, origin: Option<HeaderValue>, preflight: bool) -> Response {
    let headers = response.headers_mut();
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    let Some(origin) = origin else { return response };
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    headers.append(header::VARY, HeaderValue::from_static("origin"));
    if preflight {
        let names = "authorization, content-type, x-api-key, anthropic-version, anthropic-beta";
        headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static(names));
        headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, POST, OPTIONS"));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_of_this_machine_and_allowed_names_are_ours() {
        let config = ServerConfig { allowed_hosts: vec!["pond.lan".to_owned()], ..ServerConfig::default() };
        for host in [
            "127.0.0.1",
            "127.0.0.1:8137",
            "localhost",
            "localhost:1",
            "localhost.",
            "[::1]",
            "[::1]:8137",
            "pond.lan",
            "pond.lan:80",
            "127.1.2.3:5",
        ] {
            assert!(is_own_host(&config, host), "{host}");
        }
        for host in [
            "evil.example",
            "evil.example.",
            "evil.example:8137",
            "localhost.evil.example",
            "2130706433",
            "0x7f.1",
            "192.168.1.5",
            "[::2]",
            "::1",
            "127.0.0.1.evil.example",
            "evil@127.0.0.1",
            "127.0.0.1:99999",
            "[::1]x",
            "127.0.0.1:8137:1",
            "",
        ] {
            assert!(!is_own_host(&config, host), "{host}");
        }
    }

    #[test]
    fn a_server_for_the_network_answers_to_any_address_but_no_foreign_name() {
        let config = ServerConfig { address: Some("0.0.0.0".parse().unwrap()), ..ServerConfig::default() };
        assert!(is_own_host(&config, "192.168.1.5:8137"));
        assert!(!is_own_host(&config, "evil.example"));
    }

    #[test]
    fn an_origin_is_ours_if_it_is_the_host() {
        assert!(is_own_origin("http://127.0.0.1:8137", "127.0.0.1:8137"));
        assert!(is_own_origin("http://LOCALHOST:8137", "localhost:8137"));
        for origin in ["null", "http://evil.example", "http://127.0.0.1:1", "file://", "", "127.0.0.1:8137"] {
            assert!(!is_own_origin(origin, "127.0.0.1:8137"), "{origin}");
        }
    }
}
