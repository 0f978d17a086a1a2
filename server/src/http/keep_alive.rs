//! How long a model stays in memory after a request, as Ollama's API writes it: seconds, or a text such as `1h30m`.

use std::time::Duration;

use serde_json::Value;

use super::error::{ApiError, ApiResult};

/// A model's time in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum KeepAlive {
    /// As long as the server runs.
    Forever,
    /// So long after its last request.
    For(Duration),
}

/// Reads `keep_alive`.
///
/// # Errors
/// It is no time.
pub(super) fn read(value: Option<&Value>) -> ApiResult<Option<KeepAlive>> {
    let wrong = || ApiError::field("keep_alive", "keep_alive must be seconds or a time such as \"5m\"");
    let seconds = match value {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::Number(seconds)) => seconds.as_f64().ok_or_else(wrong)?,
        Some(Value::String(text)) => parse(text).ok_or_else(wrong)?,
        Some(_) => return Err(wrong()),
    };
    if seconds < 0.0 {
        return Ok(Some(KeepAlive::Forever));
    }
    // More than the time can hold is for ever.
    Ok(Some(Duration::try_from_secs_f64(seconds).map_or(KeepAlive::Forever, KeepAlive::For)))
}

/// Seconds of a text such as `-1m`, `300ms` or `1h30m`.
fn parse(text: &str) -> Option<f64> {
    let (sign, mut rest) = text.strip_prefix('-').map_or((1.0, text), |rest| (-1.0, rest));
    let mut seconds = 0.0;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..end].parse().ok()?;
        let tail = &rest[end..];
        let units = [("ns", 1e-9), ("us", 1e-6), ("ms", 1e-3), ("s", 1.0), ("m", 60.0), ("h", 3600.0)];
        let (unit, scale) = units.into_iter().find(|(unit, _)| tail.starts_with(unit))?;
        seconds += number * scale;
        rest = &tail[unit.len()..];
    }
    Some(sign * seconds)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn times_are_read_in_both_forms() {
        let seconds = |seconds: f64| Some(KeepAlive::For(Duration::from_secs_f64(seconds)));
        for (value, expected) in [
            (json!(null), None),
            (json!(0), seconds(0.0)),
            (json!(300), seconds(300.0)),
            (json!("5m"), seconds(300.0)),
            (json!("1h30m"), seconds(5400.0)),
            (json!("250ms"), seconds(0.25)),
            (json!(-1), Some(KeepAlive::Forever)),
            (json!("-1m"), Some(KeepAlive::Forever)),
            (json!(1e300), Some(KeepAlive::Forever)),
        ] {
            assert_eq!(read(Some(&value)).unwrap(), expected, "{value}");
        }
        for value in [
            json!("5"),
            json!(""),
            json!("-"),
            json!("m"),
            json!("5x"),
            json!("1..2s"),
            json!(true),
            json!([]),
        ] {
            assert!(read(Some(&value)).is_err(), "{value}");
        }
    }
}
