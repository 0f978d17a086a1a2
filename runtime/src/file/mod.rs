//! Reading weight files from strangers: every size is checked before it is used, every refusal names what was wrong.

mod ggml_type;
pub mod gguf;
pub mod gguf_write;
pub mod mmap;
pub mod output;
pub mod packed;
pub mod safetensors;

pub use ggml_type::{GgmlType, file_type_name, type_of_id};
