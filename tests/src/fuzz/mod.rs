//! What must hold for any bytes: each body takes bytes of a stranger and may refuse them, but not panic, hang, or use
//! more memory than a small multiple of them. The same bodies run over a corpus in the test suite and under `cargo fuzz`.

mod gguf;
mod json;
mod mutate;
mod packed;
mod safetensors;
mod template;

pub use gguf::gguf;
pub use json::{config, tokenizer_json};
pub use mutate::Mutation;
pub use packed::{mend, packed};
pub use safetensors::safetensors;
pub use template::template;

/// A body under the name of its corpus.
pub type Target = (&'static str, fn(&[u8]));

/// All bodies, by the names of their corpora.
pub const TARGETS: [Target; 6] = [
    ("gguf", gguf),
    ("packed", packed),
    ("safetensors", safetensors),
    ("config", config),
    ("tokenizer_json", tokenizer_json),
    ("template", template),
];
