//! The keys of a GGUF file that describe a checkpoint folder's model.

use std::path::Path;

use millpond_models::{AttentionSpec, FfnSpec, LinearSpec, ModelSpec};
use serde_json::Value;

use crate::file::gguf_write::OwnedValue;

/// Rotary sections where the configuration has none: those of the family's first releases.
const DEFAULT_SECTIONS: [i32; 4] = [11, 11, 10, 0];
/// Every how many layers there is full attention where the configuration does not say.
const DEFAULT_INTERVAL: u32 = 4;

/// Everything but the tokenizer.
pub(super) fn keys(folder: &Path, config: &Value, spec: &ModelSpec) -> Vec<(String, OwnedValue)> {
    let mut keys = Keys { arch: &spec.arch, keys: Vec::new() };
    keys.set("general.architecture", OwnedValue::String(spec.arch.clone()));
    keys.set("general.type", OwnedValue::String("model".to_owned()));
    if let Some(name) = folder.canonicalize().ok().as_deref().unwrap_or(folder).file_name() {
        keys.set("general.name", OwnedValue::String(name.to_string_lossy().into_owned()));
    }
    keys.model(spec);
    let text = config.get("text_config").unwrap_or(config);
    keys.attention(spec, text);
    if let Some(linear) = spec.layers.iter().find_map(|layer| layer.mixer.as_linear()) {
        keys.linear(linear);
    }
    keys.recurrent_layers(spec, text);
    keys.feed_forward(spec, text);
    keys.keys
}

struct Keys<'a> {
    arch: &'a str,
    keys: Vec<(String, OwnedValue)>,
}

impl Keys<'_> {
    fn set(&mut self, key: &str, value: OwnedValue) {
        self.keys.push((key.to_owned(), value));
    }

    fn arch(&mut self, key: &str, value: OwnedValue) {
        self.keys.push((format!("{}.{key}", self.arch), value));
    }

    /// Sizes of a specification are within limits far below `u32::MAX`.
    fn size(&mut self, key: &str, value: usize) {
        self.arch(key, OwnedValue::U32(u32::try_from(value).unwrap_or(u32::MAX)));
    }

    fn model(&mut self, spec: &ModelSpec) {
        let prediction_layers = usize::from(spec.mtp.is_some());
        self.size("block_count", spec.layers.len() + prediction_layers);
        if prediction_layers > 0 {
            self.size("nextn_predict_layers", prediction_layers);
        }
        self.size("context_length", spec.context);
        self.size("embedding_length", spec.hidden);
        self.size("vocab_size", spec.vocab);
        self.arch("attention.layer_norm_rms_epsilon", OwnedValue::F32(spec.norm_eps));
    }

    fn attention(&mut self, spec: &ModelSpec, text: &Value) {
        let found: Option<&AttentionSpec> = spec.layers.iter().find_map(|layer| layer.mixer.as_attention());
        let Some(attention) = found else { return };
        self.size("attention.head_count", attention.heads);
        self.size("attention.head_count_kv", attention.kv_heads);
        self.size("attention.key_length", attention.head_dim);
        self.size("attention.value_length", attention.head_dim);
        self.size("rope.dimension_count", attention.rotary_dim);
        self.arch("rope.freq_base", OwnedValue::F32(attention.rope_theta));
        if self.arch != "qwen3next" {
            self.arch("rope.dimension_sections", OwnedValue::I32s(rotary_sections(text)));
        }
    }

    fn linear(&mut self, linear: &LinearSpec) {
        self.size("ssm.conv_kernel", linear.conv_width);
        self.size("ssm.state_size", linear.key_dim);
        self.size("ssm.group_count", linear.key_heads);
        self.size("ssm.time_step_rank", linear.value_heads);
        self.size("ssm.inner_size", linear.value_heads * linear.value_dim);
    }

    fn recurrent_layers(&mut self, spec: &ModelSpec, text: &Value) {
        let layers = spec.layers.iter().chain(spec.mtp.iter().map(|mtp| &mtp.layer));
        let recurrent = layers.map(|layer| layer.mixer.as_linear().is_some()).collect();
        self.arch("attention.recurrent_layers", OwnedValue::Bools(recurrent));
        let interval = text.get("full_attention_interval").and_then(Value::as_u64);
        let interval = interval.and_then(|interval| u32::try_from(interval).ok());
        self.arch("full_attention_interval", OwnedValue::U32(interval.unwrap_or(DEFAULT_INTERVAL)));
    }

    fn feed_forward(&mut self, spec: &ModelSpec, text: &Value) {
        match spec.layers.first().map(|layer| &layer.ffn) {
            None => {}
            Some(FfnSpec::Dense { width }) => self.size("feed_forward_length", *width),
            Some(FfnSpec::Moe(moe)) => {
                // Not used by these models, but other programs ask for it.
                let dense = text.get("intermediate_size").and_then(Value::as_u64);
                if let Some(width) = dense.and_then(|width| u32::try_from(width).ok()) {
                    self.arch("feed_forward_length", OwnedValue::U32(width));
                }
                self.size("expert_count", moe.experts);
                self.size("expert_used_count", moe.top_k);
                self.size("expert_feed_forward_length", moe.expert_width);
                self.size("expert_shared_feed_forward_length", moe.shared_width);
            }
        }
    }
}

/// The four sections of the rotated dimensions, which only pictures tell apart.
fn rotary_sections(text: &Value) -> Vec<i32> {
    let listed = ["rope_parameters", "rope_scaling"]
        .iter()
        .find_map(|key| text.get(key)?.get("mrope_section")?.as_array())
        .filter(|sections| sections.len() <= 4);
    let Some(listed) = listed else { return DEFAULT_SECTIONS.to_vec() };
    let section = |value: &Value| value.as_i64().and_then(|section| i32::try_from(section).ok()).unwrap_or(0);
    let mut sections: Vec<i32> = listed.iter().map(section).collect();
    sections.resize(4, 0);
    sections
}
