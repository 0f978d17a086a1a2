//! From the name of an architecture to the function that reads its metadata.

use serde_json::Value;

use crate::error::SpecError;
use crate::fields::{Fields, JsonFields, Reader};
use crate::hybrid::{HasTensor, text_part};
use crate::spec::ModelSpec;
use crate::{qwen3next, qwen35};

type FromGguf = fn(&str, &dyn Fields, HasTensor<'_>) -> Result<ModelSpec, SpecError>;
type FromConfig = fn(&str, &JsonFields<'_>, &JsonFields<'_>, HasTensor<'_>) -> Result<ModelSpec, SpecError>;

/// Architectures by the names GGUF files give them.
const GGUF: [(&str, FromGguf); 3] =
    [("qwen35", qwen35::from_gguf), ("qwen35moe", qwen35::from_gguf), ("qwen3next", qwen3next::from_gguf)];

/// The architectures that GGUF files may name.
pub const GGUF_ARCHITECTURES: &[&str] = &["qwen35", "qwen35moe", "qwen3next"];

/// `model_type` of `config.json`, the architecture it is, and its reader.
const CONFIG: [(&str, &str, FromConfig); 5] = [
    ("qwen3_5", "qwen35", qwen35::from_config),
    ("qwen3_5_text", "qwen35", qwen35::from_config),
    ("qwen3_5_moe", "qwen35moe", qwen35::from_config),
    ("qwen3_5_moe_text", "qwen35moe", qwen35::from_config),
    ("qwen3_next", "qwen3next", qwen3next::from_config),
];

/// The values of `model_type` that configuration files may have.
pub const MODEL_TYPES: &[&str] =
    &["qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text", "qwen3_next"];

const ARCHITECTURE_KEY: &str = "general.architecture";

/// The specification of a model from the metadata of a GGUF file. `has_tensor` tells which tensors the file has.
///
/// # Errors
/// [`SpecError`] naming the key that is missing, mistyped, out of range, or names something that is not supported.
pub fn from_gguf(fields: &dyn Fields, has_tensor: HasTensor<'_>) -> Result<ModelSpec, SpecError> {
    let expected = || GGUF_ARCHITECTURES.join(", ");
    let arch = Reader::new(fields)
        .optional_text(ARCHITECTURE_KEY)?
        .ok_or_else(|| SpecError::Missing { key: ARCHITECTURE_KEY.to_owned(), expected: expected() })?;
    match GGUF.iter().find(|entry| entry.0 == arch) {
        Some((name, read)) => read(name, fields, has_tensor),
        None => Err(SpecError::UnknownArchitecture {
            key: ARCHITECTURE_KEY.to_owned(),
            found: arch,
            known: GGUF_ARCHITECTURES,
        }),
    }
}

/// The specification of a model from its `config.json`. `has_tensor` tells which tensors the checkpoint has.
///
/// # Errors
/// [`SpecError`] naming the key that is missing, mistyped, out of range, or names something that is not supported.
pub fn from_config(config: &Value, has_tensor: HasTensor<'_>) -> Result<ModelSpec, SpecError> {
    let whole = JsonFields::new(config, "");
    let text = text_part(config);
    let outer = Reader::new(&whole).optional_text("model_type")?;
    let inner = Reader::new(&text).optional_text("model_type")?;
    let find = |name: &Option<String>| CONFIG.iter().find(|entry| Some(entry.0) == name.as_deref());
    match find(&inner).or_else(|| find(&outer)) {
        Some((_, arch, read)) => read(arch, &whole, &text, has_tensor),
        None => match outer.or(inner) {
            None => {
                Err(SpecError::Missing { key: "model_type".to_owned(), expected: MODEL_TYPES.join(", ") })
            }
            Some(found) => Err(SpecError::UnknownArchitecture {
                key: "model_type".to_owned(),
                found,
                known: MODEL_TYPES,
            }),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lists_of_names_are_the_tables() {
        assert!(GGUF.iter().map(|entry| entry.0).eq(GGUF_ARCHITECTURES.iter().copied()));
        assert!(CONFIG.iter().map(|entry| entry.0).eq(MODEL_TYPES.iter().copied()));
    }
}
