//! Python's behaviour where the template engine's own differs: how floats print, and methods it lacks.

use super::json::python_float;
use minijinja::value::{Value, ValueKind, from_args};
use minijinja::{Error, ErrorKind, Output, State};

/// The value as Python's `str` gives it, if it is a float; everything else prints right already.
fn float_text(value: &Value) -> Option<String> {
    let is_float = value.kind() == ValueKind::Number && !value.is_integer();
    let float = is_float.then(|| f64::try_from(value.clone()).ok()).flatten()?;
    Some(python_float(float))
}

/// Formatter of `{{ value }}`.
pub(super) fn write(output: &mut Output<'_>, state: &mut State<'_, '_>, value: &Value) -> Result<(), Error> {
    match float_text(value) {
        Some(text) => output.write_str(&text).map_err(Error::from),
        None => minijinja::escape_formatter(output, state, value),
    }
}

/// Filter `string`.
pub(super) fn string(state: &State<'_, '_>, value: &Value) -> Result<Value, Error> {
    match float_text(value) {
        Some(text) => Ok(Value::from(text)),
        None => minijinja::filters::string(state, value),
    }
}

/// Filter `urlencode` for text: everything but letters, digits and `_.-~/` becomes `%XX` of its UTF-8 bytes.
pub(super) fn urlencode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"_.-~/".contains(&byte) {
            encoded.push(byte as char);
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

/// Methods of Python's built-in types.
pub(super) fn method(
    state: &mut State<'_, '_>,
    value: &Value,
    name: &str,
    arguments: &[Value],
) -> Result<Value, Error> {
    match (name, value.as_str()) {
        ("rsplit", Some(text)) => {
            state.consume_fuel(text.len() as u64 / 64)?;
            let (separator, limit): (Option<&str>, Option<i64>) = from_args(arguments)?;
            let limit = limit.and_then(|limit| usize::try_from(limit).ok());
            Ok(rsplit(text, separator, limit).into_iter().map(Value::from).collect())
        }
        ("format", Some(text)) if asks_for_width(text) => {
            Err(Error::new(ErrorKind::InvalidOperation, "format: width or precision too large"))
        }
        _ => minijinja_contrib::pycompat::unknown_method_callback(state, value, name, arguments),
    }
}

/// Whether a format string has a number of more than three digits, which the engine would pad to before it counts.
fn asks_for_width(format: &str) -> bool {
    format.as_bytes().windows(4).any(|digits| digits.iter().all(u8::is_ascii_digit))
}

/// `str.rsplit`: at most `limit` cuts, counted from the end.
fn rsplit<'t>(text: &'t str, separator: Option<&str>, limit: Option<usize>) -> Vec<&'t str> {
    let cuts = limit.unwrap_or(usize::MAX - 1);
    let mut pieces: Vec<&str> = match separator {
        Some(separator) if !separator.is_empty() => text.rsplitn(cuts + 1, separator).collect(),
        _ => {
            let mut pieces = Vec::new();
            let mut rest = text.trim_end();
            while !rest.is_empty() {
                let start = rest.rfind(char::is_whitespace).filter(|_| pieces.len() < cuts);
                let word = start.map_or(rest, |place| rest[place..].trim_start());
                pieces.push(word);
                rest = rest[..rest.len() - word.len()].trim_end();
            }
            pieces
        }
    };
    pieces.reverse();
    pieces
}
