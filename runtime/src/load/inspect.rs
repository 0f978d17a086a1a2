//! What is inside a model's files, and what running it will need.

use std::collections::BTreeMap;
use std::path::Path;

use millpond_models::{LinearSpec, ModelSpec};
use serde::Serialize;

use super::error::LoadError;
use super::open::OpenGguf;
use super::progress::Opener;
use super::store::TensorStore;
use super::{FileInfo, LoadedModel, file_list, folder_of, load_folder, load_gguf, open, packed};
use crate::file::gguf::{Gguf, Value};
use crate::file::mmap;
use crate::file::packed::VERSION;
use crate::state::StateLayout;
use crate::state::memory::KvType;

/// Longest text of a metadata value shown, in characters.
const PREVIEW: usize = 120;
/// Longest array of numbers shown.
const PREVIEW_ELEMENTS: usize = 16;

/// What is inside a model's files.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Inspection {
    /// `GGUF version 3`, `packed version 1` or `safetensors`.
    pub format: String,
    /// `general.name` of a GGUF file, or the name of the folder.
    pub name: Option<String>,
    /// What the files call the architecture.
    pub architecture: Option<String>,
    /// The files.
    pub files: Vec<FileInfo>,
    /// The model, if it can be run.
    pub model: Option<ModelSummary>,
    /// Why it cannot be run.
    pub problem: Option<String>,
    /// Bytes and tensors of each type, the largest share first.
    pub types: Vec<TypeSummary>,
    /// The tensors in order of name, numbers counted as numbers.
    pub tensors: Vec<TensorSummary>,
    /// Keys and values of a GGUF or packed file in its order, long ones shortened.
    pub metadata: Vec<(String, String)>,
}

/// A model and the memory it takes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ModelSummary {
    /// Width of the residual stream.
    pub hidden: usize,
    /// Rows of the embedding.
    pub vocab: usize,
    /// Longest context in tokens.
    pub context: usize,
    /// Layers, prediction layers not counted.
    pub layers: usize,
    /// Layers with a recurrent state.
    pub linear_layers: usize,
    /// Layers with an attention cache.
    pub attention_layers: usize,
    /// Key heads, value heads, key width, value width of the linear layers.
    pub linear_heads: Option<[usize; 4]>,
    /// Query heads, key/value heads, width of the attention layers.
    pub attention_heads: Option<[usize; 3]>,
    /// Routed experts of a layer and how many a token visits, where there are any.
    pub experts: Option<[usize; 2]>,
    /// Whether the head is the embedding.
    pub tied_head: bool,
    /// Whether there is a multi-token-prediction head.
    pub mtp: bool,
    /// Values in all tensors.
    pub parameters: u64,
    /// Bytes of all tensors.
    pub weight_bytes: u64,
    /// Bytes of one stream's recurrent state, all layers.
    pub state_bytes: usize,
    /// Bytes one buffered token adds, all layers.
    pub log_bytes_per_token: usize,
    /// Tokens whose log is as large as the state: below it a stream is better off without a state.
    pub break_even_tokens: usize,
    /// Bytes one token adds to the attention cache in half precision, all layers.
    pub kv_bytes_per_token: usize,
}

/// The share of a type.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TypeSummary {
    /// Name of the type.
    pub name: String,
    /// Tensors of it.
    pub tensors: usize,
    /// Their bytes.
    pub bytes: u64,
}

/// A tensor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TensorSummary {
    /// Its name.
    pub name: String,
    /// Its type.
    pub kind: String,
    /// Its dimensions, the outermost first.
    pub shape: Vec<usize>,
    /// Its bytes.
    pub bytes: u64,
}

/// Looks into a model's files. Files that are well-formed but no model this program can run are described all the same,
/// with the reason in [`Inspection::problem`].
///
/// # Errors
/// [`LoadError`] when the files cannot be read at all.
pub fn inspect(path: &Path) -> Result<Inspection, LoadError> {
    match folder_of(path)? {
        Some(folder) => {
            let opened = open::open_folder(&folder, &Opener::quiet())?;
            let model = load_folder(&folder, &opened);
            let mut seen = describe("safetensors".to_owned(), &opened.store, model);
            seen.name = folder.file_name().map(|name| name.to_string_lossy().into_owned());
            let architecture = opened.config.get("model_type").and_then(|name| name.as_str());
            seen.architecture = architecture.map(str::to_owned);
            Ok(seen)
        }
        None if open::is_packed(path)? => {
            let opened = packed::open(path, Opener::quiet().open(path)?)?;
            let format = format!("packed version {VERSION}");
            let mut seen = describe(format, &opened.store, packed::load(path, &opened));
            describe_keys(&mut seen, opened.packed.keys());
            Ok(seen)
        }
        None => {
            let opened = open::open_gguf(path, &Opener::quiet())?;
            Ok(describe_gguf(path, &opened))
        }
    }
}

/// Compares all checksums of a packed file, which reads all of it. `false` for other files, which have none.
///
/// # Errors
/// [`LoadError`] when the file cannot be read or is damaged.
pub fn verify(path: &Path) -> Result<bool, LoadError> {
    if folder_of(path)?.is_some() || !open::is_packed(path)? {
        return Ok(false);
    }
    let opened = packed::open(path, Opener::quiet().open(path)?)?;
    let damaged = |source| LoadError::Packed { path: path.to_owned(), source };
    opened.packed.verify().map_err(damaged).map(|()| true)
}

/// Looks into a GGUF model that is part of the program and goes by `name`.
///
/// # Errors
/// As [`inspect`].
pub fn inspect_built_in(bytes: &'static [u8], name: &str) -> Result<Inspection, LoadError> {
    let path = Path::new(name);
    Ok(describe_gguf(path, &open::open_gguf_bytes(path, mmap::built_in(bytes))?))
}

fn describe_gguf(path: &Path, opened: &OpenGguf) -> Inspection {
    let format = format!("GGUF version {}", opened.head.version());
    let mut seen = describe(format, &opened.store, load_gguf(path, opened));
    describe_keys(&mut seen, &opened.head);
    seen
}

fn describe_keys(seen: &mut Inspection, keys: &Gguf) {
    let text = |key| keys.text(key).unwrap_or_default().map(str::to_owned);
    seen.name = text("general.name");
    seen.architecture = text("general.architecture");
    seen.metadata = preview_metadata(keys);
}

fn describe(format: String, store: &TensorStore, model: Result<LoadedModel, LoadError>) -> Inspection {
    let tensors = tensor_summaries(store);
    let weight_bytes = tensors.iter().map(|tensor| tensor.bytes).sum();
    let parameters = store.tensors.values().map(|tensor| tensor.shape.iter().product::<usize>() as u64).sum();
    let (model, problem) = match model {
        Ok(model) => (Some(ModelSummary::new(&model.spec, parameters, weight_bytes)), None),
        Err(error) => (None, Some(error.to_string())),
    };
    let types = type_summaries(&tensors);
    let files = file_list(store);
    Inspection {
        format,
        name: None,
        architecture: None,
        files,
        model,
        problem,
        types,
        tensors,
        metadata: Vec::new(),
    }
}

impl ModelSummary {
    fn new(spec: &ModelSpec, parameters: u64, weight_bytes: u64) -> ModelSummary {
        let layout = StateLayout::new(spec);
        let linear: Vec<&LinearSpec> =
            spec.layers.iter().filter_map(|layer| layer.mixer.as_linear()).collect();
        let mut attention = spec.layers.iter().filter_map(|layer| layer.mixer.as_attention());
        let heads = |spec: &&LinearSpec| [spec.key_heads, spec.value_heads, spec.key_dim, spec.value_dim];
        ModelSummary {
            hidden: spec.hidden,
            vocab: spec.vocab,
            context: spec.context,
            layers: spec.layers.len(),
            linear_layers: linear.len(),
            attention_layers: spec.layers.len() - linear.len(),
            linear_heads: linear.first().map(heads),
            attention_heads: attention.next().map(|spec| [spec.heads, spec.kv_heads, spec.head_dim]),
            experts: spec
                .layers
                .iter()
                .find_map(|layer| layer.ffn.as_moe())
                .map(|moe| [moe.experts, moe.top_k]),
            tied_head: spec.tied_head,
            mtp: spec.mtp.is_some(),
            parameters,
            weight_bytes,
            state_bytes: layout.state_bytes(),
            log_bytes_per_token: layout.log_entry_bytes(),
            break_even_tokens: layout.break_even(),
            kv_bytes_per_token: layout.kv_bytes_per_token(KvType::F16),
        }
    }
}

fn tensor_summaries(store: &TensorStore) -> Vec<TensorSummary> {
    let summary = |(name, tensor): (&String, &super::store::StoredTensor)| TensorSummary {
        name: name.clone(),
        kind: tensor.type_name.to_string(),
        shape: tensor.shape.clone(),
        bytes: tensor.range.len() as u64,
    };
    let mut tensors: Vec<TensorSummary> = store.tensors.iter().map(summary).collect();
    tensors.sort_by_cached_key(|tensor| natural_key(&tensor.name));
    tensors
}

/// Splits a name so that numbers in it compare as numbers.
fn natural_key(name: &str) -> Vec<(u64, String)> {
    let part = |part: &str| match part.parse::<u64>() {
        Ok(number) => (number, String::new()),
        Err(_) => (0, part.to_owned()),
    };
    name.split('.').map(part).collect()
}

fn type_summaries(tensors: &[TensorSummary]) -> Vec<TypeSummary> {
    let mut by_name: BTreeMap<&str, TypeSummary> = BTreeMap::new();
    for tensor in tensors {
        let empty = || TypeSummary { name: tensor.kind.clone(), tensors: 0, bytes: 0 };
        let summary = by_name.entry(&tensor.kind).or_insert_with(empty);
        summary.tensors += 1;
        summary.bytes += tensor.bytes;
    }
    let mut types: Vec<TypeSummary> = by_name.into_values().collect();
    types.sort_by_key(|summary| std::cmp::Reverse(summary.bytes));
    types
}

fn preview_metadata(gguf: &Gguf) -> Vec<(String, String)> {
    let entry = |key: &str| Some((key.escape_debug().to_string(), preview(&gguf.value(key)?)));
    gguf.keys().filter_map(entry).collect()
}

/// A value for people to read: no control characters, not too long.
fn preview(value: &Value<'_>) -> String {
    match value {
        Value::String(bytes) => {
            // Cut before decoding, so that a huge string costs no more than its preview.
            let cut = &bytes[..bytes.len().min(4 * PREVIEW)];
            let text: String = String::from_utf8_lossy(cut).chars().take(PREVIEW).collect();
            let rest = if text.len() < bytes.len() { "..." } else { "" };
            format!("\"{}\"{rest}", text.escape_debug())
        }
        Value::Array(array) if array.len() <= PREVIEW_ELEMENTS => {
            format!("[{}]", array.iter().map(|value| preview(&value)).collect::<Vec<_>>().join(", "))
        }
        Value::Array(array) => format!("{} values of type {}", array.len(), array.element().name()),
        Value::F32(value) => value.to_string(),
        Value::F64(value) => value.to_string(),
        Value::Bool(value) => value.to_string(),
        integer => integer.as_integer().unwrap_or_default().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_names_are_numbers() {
        let mut names = ["blk.10.a", "blk.9.b", "blk.9.a", "a"];
        names.sort_by_cached_key(|name| natural_key(name));
        assert_eq!(names, ["a", "blk.9.a", "blk.9.b", "blk.10.a"]);
    }

    #[test]
    fn previews_are_short_and_harmless() {
        assert_eq!(preview(&Value::String(b"a\x1b[31m\"b")), r#""a\u{1b}[31m\"b""#);
        let long = preview(&Value::String(&[b'x'; 100_000]));
        assert!(long.len() < 200 && long.ends_with("\"..."), "{long}");
        assert_eq!(preview(&Value::String(&[0xff])), "\"\u{fffd}\"");
    }
}
