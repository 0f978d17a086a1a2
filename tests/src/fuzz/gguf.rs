//! Any bytes as a GGUF file.

use std::hint::black_box;
use std::sync::Arc;

use millpond::file::gguf::{Gguf, Value};
use millpond::load::{TokenizerSource, load_bytes};
use millpond::text::Tokenizer;

/// Reads the header, walks all it describes, and loads the model if it is one.
pub fn gguf(data: &[u8]) {
    let source: Arc<Vec<u8>> = Arc::new(data.to_vec());
    let Ok(file) = Gguf::parse(source.clone()) else { return };
    for key in file.keys() {
        let value = file.value(key).expect("a key that is listed has a value");
        black_box(value.describe());
        if let Value::Array(array) = value {
            assert_eq!(array.iter().count(), array.len(), "an array has as many elements as it says");
        }
    }
    for tensor in file.tensors() {
        let bytes = &data[tensor.range.clone()];
        assert_eq!(Some(bytes.len() as u64), tensor.kind.bytes_of(&tensor.dims));
        assert!(file.tensor(&tensor.name).is_some());
    }
    let Ok(model) = load_bytes(source, "fuzz") else { return };
    if let TokenizerSource::Gguf(text) = model.tokenizer
        && let Ok(tokenizer) = Tokenizer::from_gguf(text.vocabulary)
    {
        black_box(tokenizer.encode("abc <|end|> text", true).is_ok());
    }
}
