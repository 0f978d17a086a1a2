//! Qwen3.5, 3.6 and 3.8: gated delta rule with a gated full attention every few layers, dense (`qwen35`) or with a
//! mixture of experts (`qwen35moe`).
//!
//! Hugging Face names: `qwen3_5`, `qwen3_5_moe` for the wrapper with pictures, `qwen3_5_text`, `qwen3_5_moe_text` for
//! text alone. In GGUF files the value heads are reordered so that value head `h` reads key head `h mod key_heads`.

use crate::error::SpecError;
use crate::fields::{Fields, JsonFields};
use crate::hybrid::{self, Ffn, HasTensor};
use crate::spec::{HeadMap, ModelSpec};

fn ffn_of(arch: &str) -> Ffn {
    match arch {
        "qwen35moe" => Ffn::Moe,
        _ => Ffn::Dense,
    }
}

pub(crate) fn from_gguf(
    arch: &str,
    fields: &dyn Fields,
    has_tensor: HasTensor<'_>,
) -> Result<ModelSpec, SpecError> {
    hybrid::from_gguf(arch, fields, has_tensor, ffn_of(arch), HeadMap::Tiled)
}

pub(crate) fn from_config(
    arch: &str,
    config: &JsonFields<'_>,
    text: &JsonFields<'_>,
    has_tensor: HasTensor<'_>,
) -> Result<ModelSpec, SpecError> {
    hybrid::from_config(arch, config, text, has_tensor, ffn_of(arch))
}
