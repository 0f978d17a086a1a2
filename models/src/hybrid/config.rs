//! The hyper-parameters of a hybrid in `config.json`.

use std::ops::RangeInclusive;

use serde_json::Value;

use super::{
    DEFAULT_INTERVAL, DEFAULT_THETA, Ffn, HasTensor, assemble, check_rotary, gated_delta_rule, is_recurrent,
    require_multiple, unsupported,
};
use crate::error::SpecError;
use crate::fields::{Fields, JsonFields, Reader};
use crate::limits;
use crate::names::HEADS;
use crate::spec::{
    AttentionSpec, FfnSpec, HeadMap, LayerSpec, LinearSpec, MixerSpec, ModelSpec, MoeSpec, MtpSpec,
};

/// Width of an attention head where `config.json` does not say: not hidden width by heads, as in other families.
const DEFAULT_HEAD_DIM: usize = 256;

/// Share of a head that is rotated where `config.json` does not say.
const DEFAULT_ROTARY_SHARE: f64 = 0.25;

/// Reads the hyper-parameters of a hybrid's `config.json`. `config` is the whole file, `text` the part about text.
pub(crate) fn from_config(
    arch: &str,
    config: &JsonFields<'_>,
    text: &JsonFields<'_>,
    has_tensor: HasTensor<'_>,
    ffn: Ffn,
) -> Result<ModelSpec, SpecError> {
    let reader = Reader::new(text);
    let layers = reader.size("num_hidden_layers", limits::LAYERS)?;
    refuse_variants(&reader)?;
    for part in [config, text] {
        if part.field("quantization_config").is_some() {
            let key = part.label("quantization_config");
            return Err(unsupported(key, "set", "a checkpoint in F32, F16 or BF16, or a GGUF file"));
        }
    }
    let attention = config_attention(text)?;
    let linear = config_linear(&reader)?;
    let recurrent = config_recurrent(&reader, layers)?;
    let feed_forwards = config_feed_forwards(&reader, ffn, layers)?;
    let mtp = config_mtp(&reader, has_tensor, &attention, ffn)?;
    Ok(ModelSpec {
        arch: arch.to_owned(),
        hidden: reader.size("hidden_size", limits::HIDDEN)?,
        vocab: reader.size("vocab_size", limits::VOCAB)?,
        context: reader.size("max_position_embeddings", limits::CONTEXT)?,
        norm_eps: reader.number("rms_norm_eps", limits::NORM_EPS)? as f32,
        layers: assemble(&recurrent, &linear, &attention, feed_forwards),
        tied_head: config_tied(config, &reader, has_tensor)?,
        mtp,
    })
}

/// Settings of `config.json` that would change what the layers compute.
fn refuse_variants(reader: &Reader<'_>) -> Result<(), SpecError> {
    if let Some(activation) = reader.optional_text("hidden_act")?
        && !matches!(activation.as_str(), "silu" | "swish")
    {
        return Err(unsupported(reader.label("hidden_act"), &activation, "silu"));
    }
    if reader.optional_bool("attention_bias")? == Some(true) {
        return Err(unsupported(reader.label("attention_bias"), "true", "false"));
    }
    Ok(())
}

fn config_linear(reader: &Reader<'_>) -> Result<LinearSpec, SpecError> {
    let key_heads = reader.size("linear_num_key_heads", limits::HEADS)?;
    let value_heads = reader.size("linear_num_value_heads", limits::HEADS)?;
    let (key, of_key) = (reader.label("linear_num_value_heads"), reader.label("linear_num_key_heads"));
    require_multiple(key, value_heads, of_key, key_heads)?;
    let key_dim = reader.size("linear_key_head_dim", limits::HEAD_DIM)?;
    let value_dim = reader.size("linear_value_head_dim", limits::HEAD_DIM)?;
    let conv_width = reader.size("linear_conv_kernel_dim", limits::CONV_WIDTH)?;
    Ok(gated_delta_rule(key_heads, value_heads, key_dim, value_dim, conv_width, HeadMap::Grouped))
}

fn config_attention(text: &JsonFields<'_>) -> Result<AttentionSpec, SpecError> {
    let reader = Reader::new(text);
    let heads = reader.size("num_attention_heads", limits::HEADS)?;
    let kv_heads = reader.optional_size("num_key_value_heads", limits::HEADS)?.unwrap_or(heads);
    let (key, of_key) = (reader.label("num_attention_heads"), reader.label("num_key_value_heads"));
    require_multiple(key, heads, of_key, kv_heads)?;
    let head_dim = reader.optional_size("head_dim", limits::HEAD_DIM)?.unwrap_or(DEFAULT_HEAD_DIM);
    let (rope_theta, share) = config_rope(text)?;
    let rotary = (head_dim as f64 * share) as usize;
    let rotary_dim = check_rotary(reader.label("partial_rotary_factor"), rotary, head_dim)?;
    let output_gate = reader.optional_bool("attn_output_gate")?.unwrap_or(true);
    Ok(AttentionSpec { heads, kv_heads, head_dim, rotary_dim, rope_theta: rope_theta as f32, output_gate })
}

/// Base and rotated share, from `rope_parameters` or, in older files, from the object around it.
fn config_rope(text: &JsonFields<'_>) -> Result<(f64, f64), SpecError> {
    let outer = Reader::new(text);
    let scaling = text.object("rope_scaling");
    let parameters = text.object("rope_parameters");
    for object in [&parameters, &scaling].into_iter().flatten() {
        let reader = Reader::new(object);
        for key in ["rope_type", "type"] {
            // `mrope` and `default` differ only for pictures.
            match reader.optional_text(key)? {
                Some(found) if !matches!(found.as_str(), "default" | "mrope") => {
                    return Err(unsupported(reader.label(key), &found, "default"));
                }
                _ => {}
            }
        }
    }
    let find = |key: &str, range: RangeInclusive<f64>| -> Result<Option<f64>, SpecError> {
        if let Some(object) = &parameters
            && let Some(value) = Reader::new(object).optional_number(key, range.clone())?
        {
            return Ok(Some(value));
        }
        outer.optional_number(key, range)
    };
    let theta = find("rope_theta", limits::ROPE_THETA)?.unwrap_or(DEFAULT_THETA);
    let share = find("partial_rotary_factor", limits::ROTARY_SHARE)?.unwrap_or(DEFAULT_ROTARY_SHARE);
    Ok((theta, share))
}

fn config_recurrent(reader: &Reader<'_>, layers: usize) -> Result<Vec<bool>, SpecError> {
    let Some(kinds) = reader.optional_texts("layer_types")? else {
        let interval =
            reader.optional_size("full_attention_interval", limits::INTERVAL)?.unwrap_or(DEFAULT_INTERVAL);
        return Ok((0..layers).map(|layer| is_recurrent(layer, interval)).collect());
    };
    if kinds.len() != layers {
        let (key, found) = (reader.label("layer_types"), kinds.len());
        return Err(SpecError::Length { key, found, expected: layers.to_string() });
    }
    let recurrent = |kind: &String| match kind.as_str() {
        "linear_attention" => Ok(true),
        "full_attention" => Ok(false),
        other => Err(unsupported(reader.label("layer_types"), other, "linear_attention or full_attention")),
    };
    kinds.iter().map(recurrent).collect()
}

fn config_moe(reader: &Reader<'_>) -> Result<MoeSpec, SpecError> {
    let experts = reader.size("num_experts", limits::EXPERTS)?;
    Ok(MoeSpec {
        experts,
        top_k: reader.size("num_experts_per_tok", 1..=experts)?,
        expert_width: reader.size("moe_intermediate_size", limits::FFN_WIDTH)?,
        shared_width: reader.size("shared_expert_intermediate_size", 0..=*limits::FFN_WIDTH.end())?,
        normalize_weights: reader.optional_bool("norm_topk_prob")?.unwrap_or(true),
    })
}

fn config_feed_forwards(reader: &Reader<'_>, ffn: Ffn, layers: usize) -> Result<Vec<FfnSpec>, SpecError> {
    let dense = |reader: &Reader<'_>| -> Result<FfnSpec, SpecError> {
        Ok(FfnSpec::Dense { width: reader.size("intermediate_size", limits::FFN_WIDTH)? })
    };
    if ffn == Ffn::Dense {
        return Ok(vec![dense(reader)?; layers]);
    }
    let moe = config_moe(reader)?;
    let step = reader.optional_size("decoder_sparse_step", limits::INTERVAL)?.unwrap_or(1);
    let dense_layers = reader.optional_list("mlp_only_layers", 0..=layers - 1)?.unwrap_or_default();
    let feed_forward = |layer: usize| match dense_layers.contains(&layer) || !(layer + 1).is_multiple_of(step)
    {
        true => dense(reader),
        false => Ok(FfnSpec::Moe(moe.clone())),
    };
    (0..layers).map(feed_forward).collect()
}

/// The prediction layer, where the file has one. Whether it does is told by its tensors: some configurations announce
/// one that was left out, others have one that is not announced.
fn config_mtp(
    reader: &Reader<'_>,
    has_tensor: HasTensor<'_>,
    attention: &AttentionSpec,
    ffn: Ffn,
) -> Result<Option<MtpSpec>, SpecError> {
    let announced = reader.optional_size("mtp_num_hidden_layers", limits::MTP_LAYERS)?;
    let has = |name: &str| has_tensor(&format!("mtp.{name}")) || has_tensor(&format!("model.mtp.{name}"));
    if announced == Some(0) || !has("fc.weight") {
        return Ok(None);
    }
    let ffn = match ffn {
        Ffn::Dense => FfnSpec::Dense { width: reader.size("intermediate_size", limits::FFN_WIDTH)? },
        Ffn::Moe => FfnSpec::Moe(config_moe(reader)?),
    };
    Ok(Some(MtpSpec {
        layer: LayerSpec { mixer: MixerSpec::Attention(attention.clone()), ffn },
        own_embedding: has("embed_tokens.weight"),
        own_head: has("lm_head.weight"),
    }))
}

/// Whether the head is the embedding. The whole model's setting counts before that of its text part, unless it asks for
/// a head that is not there.
fn config_tied(
    config: &JsonFields<'_>,
    text: &Reader<'_>,
    has_tensor: HasTensor<'_>,
) -> Result<bool, SpecError> {
    let outer = Reader::new(config).optional_bool("tie_word_embeddings")?;
    let inner = text.optional_bool("tie_word_embeddings")?.unwrap_or(false);
    let has_head = HEADS.iter().any(|head| has_tensor(head));
    Ok(outer.unwrap_or(inner) || (inner && !has_head))
}

/// The part of a `config.json` about text: the object `text_config`, or all of it.
pub(crate) fn text_part(config: &Value) -> JsonFields<'_> {
    let whole = JsonFields::new(config, "");
    whole.object("text_config").unwrap_or(whole)
}
