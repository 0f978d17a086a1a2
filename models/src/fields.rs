//! Reading hyper-parameters, wherever they come from: GGUF metadata or `config.json`.

use std::collections::HashMap;
use std::ops::RangeInclusive;

use serde_json::Value;

use crate::error::SpecError;

/// Most elements an array of hyper-parameters may have.
pub const MAX_ELEMENTS: usize = 4096;

/// A value of a key.
#[derive(Clone, Debug, PartialEq)]
pub enum Field<'a> {
    /// An integer of any width.
    Integer(i128),
    /// A number with a fraction.
    Float(f64),
    /// A truth value.
    Bool(bool),
    /// A string.
    Text(&'a str),
    /// An array of up to [`MAX_ELEMENTS`] values.
    Array(Vec<Field<'a>>),
    /// A longer array, of which only the length is told.
    LongArray(usize),
    /// Anything else, described.
    Other(&'static str),
}

impl Field<'_> {
    fn describe(&self) -> String {
        match self {
            Field::Integer(v) => v.to_string(),
            Field::Float(v) => v.to_string(),
            Field::Bool(v) => v.to_string(),
            Field::Text(v) => format!("{:?}", v.chars().take(80).collect::<String>()),
            Field::Array(v) => format!("an array of {} values", v.len()),
            Field::LongArray(len) => format!("an array of {len} values"),
            Field::Other(what) => (*what).to_owned(),
        }
    }
}

/// Something that has values for keys.
pub trait Fields {
    /// The value of a key; `None` where there is none.
    fn field(&self, key: &str) -> Option<Field<'_>>;

    /// How messages name a key.
    fn label(&self, key: &str) -> String {
        key.to_owned()
    }
}

impl Fields for HashMap<String, Field<'_>> {
    fn field(&self, key: &str) -> Option<Field<'_>> {
        self.get(key).cloned()
    }
}

/// An object of a JSON file.
#[derive(Clone, Debug)]
pub struct JsonFields<'a> {
    object: &'a Value,
    path: String,
}

impl<'a> JsonFields<'a> {
    /// Fields of `object`, which messages find under `path` (empty for the file's own object).
    pub fn new(object: &'a Value, path: &str) -> JsonFields<'a> {
        JsonFields { object, path: path.to_owned() }
    }

    /// The object of a key, if there is one.
    pub fn object(&self, key: &str) -> Option<JsonFields<'a>> {
        let object = self.object.get(key).filter(|value| value.is_object())?;
        Some(JsonFields { object, path: self.label(key) })
    }
}

impl Fields for JsonFields<'_> {
    fn field(&self, key: &str) -> Option<Field<'_>> {
        match self.object.get(key)? {
            Value::Null => None,
            value => Some(json_field(value)),
        }
    }

    fn label(&self, key: &str) -> String {
        match self.path.as_str() {
            "" => key.to_owned(),
            path => format!("{path}.{key}"),
        }
    }
}

fn json_field(value: &Value) -> Field<'_> {
    match value {
        Value::Null => Field::Other("null"),
        Value::Bool(v) => Field::Bool(*v),
        Value::String(v) => Field::Text(v),
        Value::Number(v) => match (v.as_i64(), v.as_u64()) {
            (Some(v), _) => Field::Integer(v.into()),
            (None, Some(v)) => Field::Integer(v.into()),
            (None, None) => Field::Float(v.as_f64().unwrap_or(f64::NAN)),
        },
        Value::Array(v) if v.len() > MAX_ELEMENTS => Field::LongArray(v.len()),
        Value::Array(v) => Field::Array(v.iter().map(json_field).collect()),
        Value::Object(_) => Field::Other("an object"),
    }
}

/// Typed and bounded reading of [`Fields`].
#[derive(Clone, Copy)]
pub(crate) struct Reader<'a> {
    fields: &'a dyn Fields,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(fields: &'a dyn Fields) -> Reader<'a> {
        Reader { fields }
    }

    pub(crate) fn label(&self, key: &str) -> String {
        self.fields.label(key)
    }

    fn missing(&self, key: &str, expected: &str) -> SpecError {
        SpecError::Missing { key: self.label(key), expected: expected.to_owned() }
    }

    fn mistyped(&self, key: &str, found: &Field<'_>, expected: &str) -> SpecError {
        SpecError::Mistyped { key: self.label(key), found: found.describe(), expected: expected.to_owned() }
    }

    /// A size within bounds, if the key is there.
    pub(crate) fn optional_size(
        &self,
        key: &str,
        range: RangeInclusive<usize>,
    ) -> Result<Option<usize>, SpecError> {
        match self.fields.field(key) {
            None => Ok(None),
            Some(field) => Ok(Some(self.size_of(key, &field, &range)?)),
        }
    }

    /// A size within bounds.
    pub(crate) fn size(&self, key: &str, range: RangeInclusive<usize>) -> Result<usize, SpecError> {
        let expected = describe_range(&range);
        self.optional_size(key, range)?.ok_or_else(|| self.missing(key, &expected))
    }

    fn size_of(
        &self,
        key: &str,
        field: &Field<'_>,
        range: &RangeInclusive<usize>,
    ) -> Result<usize, SpecError> {
        let Field::Integer(value) = field else { return Err(self.mistyped(key, field, "an integer")) };
        match usize::try_from(*value) {
            Ok(size) if range.contains(&size) => Ok(size),
            _ => {
                let (key, found) = (self.label(key), value.to_string());
                Err(SpecError::OutOfRange { key, found, expected: describe_range(range) })
            }
        }
    }

    /// One size for each of `count` layers: an array with one value for each, or one value for all.
    pub(crate) fn sizes(
        &self,
        key: &str,
        count: usize,
        range: RangeInclusive<usize>,
    ) -> Result<Option<Vec<usize>>, SpecError> {
        match self.fields.field(key) {
            None => Ok(None),
            Some(Field::Array(values)) => {
                self.check_length(key, values.len(), count)?;
                values
                    .iter()
                    .map(|value| self.size_of(key, value, &range))
                    .collect::<Result<_, _>>()
                    .map(Some)
            }
            Some(field) => Ok(Some(vec![self.size_of(key, &field, &range)?; count])),
        }
    }

    fn check_length(&self, key: &str, found: usize, expected: usize) -> Result<(), SpecError> {
        match found == expected {
            true => Ok(()),
            false => Err(SpecError::Length { key: self.label(key), found, expected: expected.to_string() }),
        }
    }

    /// A finite number within bounds, if the key is there.
    pub(crate) fn optional_number(
        &self,
        key: &str,
        range: RangeInclusive<f64>,
    ) -> Result<Option<f64>, SpecError> {
        let value = match self.fields.field(key) {
            None => return Ok(None),
            Some(Field::Float(value)) => value,
            Some(Field::Integer(value)) => value as f64,
            Some(other) => return Err(self.mistyped(key, &other, "a number")),
        };
        match range.contains(&value) {
            true => Ok(Some(value)),
            false => {
                let expected = format!("a number from {} to {}", range.start(), range.end());
                Err(SpecError::OutOfRange { key: self.label(key), found: value.to_string(), expected })
            }
        }
    }

    /// A finite number within bounds.
    pub(crate) fn number(&self, key: &str, range: RangeInclusive<f64>) -> Result<f64, SpecError> {
        self.optional_number(key, range)?.ok_or_else(|| self.missing(key, "a number"))
    }

    /// A truth value, if the key is there.
    pub(crate) fn optional_bool(&self, key: &str) -> Result<Option<bool>, SpecError> {
        match self.fields.field(key) {
            None => Ok(None),
            Some(Field::Bool(value)) => Ok(Some(value)),
            Some(other) => Err(self.mistyped(key, &other, "true or false")),
        }
    }

    /// One truth value for each layer, if the key is there; `counts` are the lengths that are accepted.
    pub(crate) fn optional_bools(&self, key: &str, counts: &[usize]) -> Result<Option<Vec<bool>>, SpecError> {
        let values = match self.fields.field(key) {
            None => return Ok(None),
            Some(Field::Array(values)) => values,
            Some(Field::LongArray(found)) => return Err(self.length(key, found, counts)),
            Some(other) => return Err(self.mistyped(key, &other, "an array of true and false")),
        };
        if !counts.contains(&values.len()) {
            return Err(self.length(key, values.len(), counts));
        }
        let bool_of = |value: &Field<'_>| match value {
            Field::Bool(value) => Ok(*value),
            Field::Integer(0) => Ok(false),
            Field::Integer(1) => Ok(true),
            other => Err(self.mistyped(key, other, "true or false")),
        };
        values.iter().map(bool_of).collect::<Result<_, _>>().map(Some)
    }

    fn length(&self, key: &str, found: usize, counts: &[usize]) -> SpecError {
        let expected = counts.iter().map(usize::to_string).collect::<Vec<_>>().join(" or ");
        SpecError::Length { key: self.label(key), found, expected }
    }

    /// A text, if the key is there.
    pub(crate) fn optional_text(&self, key: &str) -> Result<Option<String>, SpecError> {
        match self.fields.field(key) {
            None => Ok(None),
            Some(Field::Text(value)) => Ok(Some(value.to_owned())),
            Some(other) => Err(self.mistyped(key, &other, "a string")),
        }
    }

    /// The texts of an array, if the key is there.
    pub(crate) fn optional_texts(&self, key: &str) -> Result<Option<Vec<String>>, SpecError> {
        let values = match self.fields.field(key) {
            None => return Ok(None),
            Some(Field::Array(values)) => values,
            Some(other) => return Err(self.mistyped(key, &other, "an array of strings")),
        };
        let text_of = |value: &Field<'_>| match value {
            Field::Text(value) => Ok((*value).to_owned()),
            other => Err(self.mistyped(key, other, "a string")),
        };
        values.iter().map(text_of).collect::<Result<_, _>>().map(Some)
    }

    /// The sizes of an array of any length, if the key is there.
    pub(crate) fn optional_list(
        &self,
        key: &str,
        range: RangeInclusive<usize>,
    ) -> Result<Option<Vec<usize>>, SpecError> {
        match self.fields.field(key) {
            None => Ok(None),
            Some(Field::Array(values)) => values
                .iter()
                .map(|value| self.size_of(key, value, &range))
                .collect::<Result<_, _>>()
                .map(Some),
            Some(other) => Err(self.mistyped(key, &other, "an array of integers")),
        }
    }

    /// The number of elements of an array, if the key is there.
    pub(crate) fn optional_length(
        &self,
        key: &str,
        range: RangeInclusive<usize>,
    ) -> Result<Option<usize>, SpecError> {
        let found = match self.fields.field(key) {
            None => return Ok(None),
            Some(Field::Array(values)) => values.len(),
            Some(Field::LongArray(len)) => len,
            Some(other) => return Err(self.mistyped(key, &other, "an array")),
        };
        match range.contains(&found) {
            true => Ok(Some(found)),
            false => Err(SpecError::Length { key: self.label(key), found, expected: describe_range(&range) }),
        }
    }
}

fn describe_range(range: &RangeInclusive<usize>) -> String {
    format!("{} to {}", range.start(), range.end())
}
