//! JSON text as Python's `json.dumps` writes it, which is what templates were trained with.

use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Error, ErrorKind};
use std::fmt::Write;

/// Deepest nesting that is written; Python's own limit is about a thousand.
const MAX_DEPTH: usize = 128;
/// Widest indentation.
const MAX_INDENT: usize = 32;

/// The keyword arguments of `json.dumps` that transformers passes on.
pub(super) struct Style {
    ascii: bool,
    sort_keys: bool,
    indent: Option<String>,
    item_separator: String,
    key_separator: String,
}

impl Style {
    pub(super) fn from_options(options: &Kwargs) -> Result<Self, Error> {
        let indent = match options.get::<Option<Value>>("indent")?.filter(|value| !value.is_none()) {
            None => None,
            Some(value) => Some(indentation(&value)?),
        };
        let separators = match options.get::<Option<Value>>("separators")?.filter(|value| !value.is_none()) {
            None => None,
            Some(value) => Some((separator(&value, 0)?, separator(&value, 1)?)),
        };
        let spaced = if indent.is_some() { "," } else { ", " };
        let (item_separator, key_separator) =
            separators.unwrap_or_else(|| (spaced.to_owned(), ": ".to_owned()));
        Ok(Self {
            ascii: options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
            sort_keys: options.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
            indent,
            item_separator,
            key_separator,
        })
    }
}

fn separator(pair: &Value, index: usize) -> Result<String, Error> {
    let text = pair.get_item_by_index(index)?;
    text.as_str()
        .map(str::to_owned)
        .ok_or_else(|| Error::new(ErrorKind::InvalidOperation, "tojson: separators must be two strings"))
}

fn indentation(value: &Value) -> Result<String, Error> {
    if let Some(text) = value.as_str() {
        return Ok(text.chars().take(MAX_INDENT).collect());
    }
    let width = i64::try_from(value.clone())?.clamp(0, MAX_INDENT as i64);
    Ok(" ".repeat(width as usize))
}

/// Writes `value`.
pub(super) fn dump(value: &Value, style: &Style) -> Result<String, Error> {
    let mut text = String::new();
    write_value(&mut text, value, style, 0)?;
    Ok(text)
}

fn write_value(text: &mut String, value: &Value, style: &Style, depth: usize) -> Result<(), Error> {
    if depth > MAX_DEPTH {
        return Err(Error::new(ErrorKind::BadSerialization, "tojson: nested too deeply"));
    }
    match value.kind() {
        ValueKind::None => text.push_str("null"),
        ValueKind::Bool => text.push_str(if value.is_true() { "true" } else { "false" }),
        ValueKind::Number => text.push_str(&number(value)),
        ValueKind::String => write_string(text, value.as_str().unwrap_or_default(), style),
        ValueKind::Seq | ValueKind::Iterable => {
            let items: Vec<Value> = value.try_iter()?.collect();
            let write = |text: &mut String, item: &Value| write_value(text, item, style, depth + 1);
            write_list(text, ('[', ']'), &items, style, depth, write)?;
        }
        ValueKind::Map => {
            let mut entries = Vec::new();
            for key in value.try_iter()? {
                entries.push((key_text(&key)?, value.get_item(&key)?));
            }
            if style.sort_keys {
                entries.sort_by(|left, right| left.0.cmp(&right.0));
            }
            write_list(text, ('{', '}'), &entries, style, depth, |text, (key, value)| {
                write_string(text, key, style);
                text.push_str(&style.key_separator);
                write_value(text, value, style, depth + 1)
            })?;
        }
        kind => {
            let message = format!("tojson: {kind} is not JSON serializable");
            return Err(Error::new(ErrorKind::BadSerialization, message));
        }
    }
    Ok(())
}

fn write_list<T>(
    text: &mut String,
    (open, close): (char, char),
    items: &[T],
    style: &Style,
    depth: usize,
    mut write: impl FnMut(&mut String, &T) -> Result<(), Error>,
) -> Result<(), Error> {
    text.push(open);
    for (index, item) in items.iter().enumerate() {
        if index > 0 {
            text.push_str(&style.item_separator);
        }
        new_line(text, style, depth + 1);
        write(text, item)?;
    }
    if !items.is_empty() {
        new_line(text, style, depth);
    }
    text.push(close);
    Ok(())
}

fn new_line(text: &mut String, style: &Style, depth: usize) {
    if let Some(indent) = &style.indent {
        text.push('\n');
        (0..depth).for_each(|_| text.push_str(indent));
    }
}

/// Python turns the keys that are not text into text as JSON would write them.
fn key_text(key: &Value) -> Result<String, Error> {
    match key.kind() {
        ValueKind::String => Ok(key.as_str().unwrap_or_default().to_owned()),
        ValueKind::None => Ok("null".to_owned()),
        ValueKind::Bool => Ok(key.is_true().to_string()),
        ValueKind::Number => Ok(number(key)),
        kind => Err(Error::new(ErrorKind::BadSerialization, format!("tojson: a key of type {kind}"))),
    }
}

fn number(value: &Value) -> String {
    if value.is_integer() {
        return value.to_string();
    }
    match f64::try_from(value.clone()) {
        Ok(float) if float.is_nan() => "NaN".to_owned(),
        Ok(float) if float.is_infinite() => if float > 0.0 { "Infinity" } else { "-Infinity" }.to_owned(),
        Ok(float) => python_float(float),
        Err(_) => value.to_string(),
    }
}

/// `repr` of a Python float: the shortest digits that read back, in scientific notation below 1e-4 and from 1e16.
pub(super) fn python_float(value: f64) -> String {
    if !value.is_finite() {
        return value.to_string().to_lowercase(); // nan, inf, -inf
    }
    let magnitude = value.abs();
    if value != 0.0 && !(1e-4..1e16).contains(&magnitude) {
        let scientific = format!("{value:e}");
        let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
        let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |exponent| ('-', exponent));
        return format!("{digits}e{sign}{exponent:0>2}");
    }
    format!("{value:?}")
}

fn write_string(text: &mut String, string: &str, style: &Style) {
    text.push('"');
    for character in string.chars() {
        match character {
            '"' => text.push_str("\\\""),
            '\\' => text.push_str("\\\\"),
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            '\t' => text.push_str("\\t"),
            '\u{8}' => text.push_str("\\b"),
            '\u{c}' => text.push_str("\\f"),
            control if control < ' ' => write_escape(text, control as u16),
            other if style.ascii && !other.is_ascii() => {
                let mut units = [0; 2];
                other.encode_utf16(&mut units).iter().for_each(|&unit| write_escape(text, unit));
            }
            other => text.push(other),
        }
    }
    text.push('"');
}

fn write_escape(text: &mut String, unit: u16) {
    // Writing to a String cannot fail.
    let _ = write!(text, "\\u{unit:04x}");
}
