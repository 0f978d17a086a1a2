//! GGUF metadata as hyper-parameters.

use millpond_models::fields::{Field, Fields, MAX_ELEMENTS};

use crate::file::gguf::{Gguf, Value};

impl Fields for Gguf {
    fn field(&self, key: &str) -> Option<Field<'_>> {
        self.value(key).map(field_of)
    }
}

fn field_of(value: Value<'_>) -> Field<'_> {
    match value {
        Value::F32(v) => Field::Float(v.into()),
        Value::F64(v) => Field::Float(v),
        Value::Bool(v) => Field::Bool(v),
        Value::String(bytes) => match std::str::from_utf8(bytes) {
            Ok(text) => Field::Text(text),
            Err(_) => Field::Other("a string that is not UTF-8"),
        },
        Value::Array(array) if array.len() > MAX_ELEMENTS => Field::LongArray(array.len()),
        Value::Array(array) => Field::Array(array.iter().map(field_of).collect()),
        integer => integer.as_integer().map_or(Field::Other("a value"), Field::Integer),
    }
}
