//! Qwen3-Next and Qwen3-Coder-Next: as Qwen3.5 with a mixture of experts, but the input projections of a linear layer
//! are interleaved by key head, some layers may be dense, and GGUF files keep the order of value heads.

use crate::error::SpecError;
use crate::fields::{Fields, JsonFields};
use crate::hybrid::{self, Ffn, HasTensor};
use crate::spec::{HeadMap, ModelSpec};

pub(crate) fn from_gguf(
    arch: &str,
    fields: &dyn Fields,
    has_tensor: HasTensor<'_>,
) -> Result<ModelSpec, SpecError> {
    hybrid::from_gguf(arch, fields, has_tensor, Ffn::Moe, HeadMap::Grouped)
}

pub(crate) fn from_config(
    arch: &str,
    config: &JsonFields<'_>,
    text: &JsonFields<'_>,
    has_tensor: HasTensor<'_>,
) -> Result<ModelSpec, SpecError> {
    hybrid::from_config(arch, config, text, has_tensor, Ffn::Moe)
}
