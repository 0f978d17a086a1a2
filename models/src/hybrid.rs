//! What the families of linear-attention hybrids have in common: their hyper-parameters, checked and assembled.

use std::ops::RangeInclusive;

use serde_json::Value;

use crate::error::SpecError;
use crate::fields::{Fields, JsonFields, Reader};
use crate::limits;
use crate::spec::{
    AttentionSpec, Decay, FfnSpec, HeadMap, LayerSpec, LinearSpec, MixerSpec, ModelSpec, MoeSpec, MtpSpec,
    Write,
};

/// Every how many layers there is full attention where the file does not say.
const DEFAULT_INTERVAL: usize = 4;
/// Base of the rotary frequencies where the file does not say.
const DEFAULT_THETA: f64 = 10_000.0;
/// Share of a head that is rotated where `config.json` does not say.
const DEFAULT_ROTARY_SHARE: f64 = 0.25;

/// Asks whether the file has a tensor of a name.
pub type HasTensor<'a> = &'a dyn Fn(&str) -> bool;

/// Whether a family's feed-forwards are dense or mixtures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ffn {
    Dense,
    Moe,
}

/// Reads the GGUF metadata of a hybrid. `head_map` is the order of value heads the family's converter writes.
pub(crate) fn from_gguf(
    arch: &str,
    fields: &dyn Fields,
    has_tensor: HasTensor<'_>,
    ffn: Ffn,
    head_map: HeadMap,
) -> Result<ModelSpec, SpecError> {
    let gguf = GgufReader { reader: Reader::new(fields), arch };
    let blocks = gguf.size("block_count", limits::LAYERS)?;
    let mtp_layers = gguf.optional_size("nextn_predict_layers", limits::MTP_LAYERS)?.unwrap_or(0);
    if mtp_layers >= blocks {
        let (key, expected) = (gguf.key("block_count"), format!("more than {mtp_layers} prediction layers"));
        return Err(SpecError::OutOfRange { key, found: blocks.to_string(), expected });
    }
    let layers = blocks - mtp_layers;
    gguf.refuse_scaled_rope()?;
    let linear = gguf.linear(head_map)?;
    let attention = gguf.attention()?;
    let recurrent = gguf.recurrent(layers, blocks)?;
    let feed_forwards = gguf.feed_forwards(ffn, blocks)?;
    let mtp_block = format!("blk.{layers}.nextn");
    let has_mtp = mtp_layers > 0 && has_tensor(&format!("{mtp_block}.eh_proj.weight"));
    let mtp = has_mtp.then(|| MtpSpec {
        layer: LayerSpec {
            mixer: MixerSpec::Attention(attention.clone()),
            ffn: feed_forwards[layers].clone(),
        },
        own_embedding: has_tensor(&format!("{mtp_block}.embed_tokens.weight")),
        own_head: has_tensor(&format!("{mtp_block}.shared_head_head.weight")),
    });
    Ok(ModelSpec {
        arch: arch.to_owned(),
        hidden: gguf.size("embedding_length", limits::HIDDEN)?,
        vocab: gguf.vocab()?,
        context: gguf.size("context_length", limits::CONTEXT)?,
        norm_eps: gguf.number("attention.layer_norm_rms_epsilon", limits::NORM_EPS)? as f32,
        layers: assemble(&recurrent, &linear, &attention, feed_forwards),
        tied_head: !has_tensor("output.weight"),
        mtp,
    })
}

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
        tied_head: config_tied(config, &reader)?,
        mtp,
    })
}

fn assemble(
    recurrent: &[bool],
    linear: &LinearSpec,
    attention: &AttentionSpec,
    feed_forwards: Vec<FfnSpec>,
) -> Vec<LayerSpec> {
    let mixer = |&recurrent: &bool| match recurrent {
        true => MixerSpec::Linear(linear.clone()),
        false => MixerSpec::Attention(attention.clone()),
    };
    recurrent.iter().map(mixer).zip(feed_forwards).map(|(mixer, ffn)| LayerSpec { mixer, ffn }).collect()
}

fn is_recurrent(layer: usize, interval: usize) -> bool {
    !(layer + 1).is_multiple_of(interval)
}

fn require_multiple(key: String, found: usize, of_key: String, of: usize) -> Result<(), SpecError> {
    match found.is_multiple_of(of) {
        true => Ok(()),
        false => Err(SpecError::NotMultiple { key, found, of_key, of }),
    }
}

fn check_rotary(key: String, rotary_dim: usize, head_dim: usize) -> Result<usize, SpecError> {
    match rotary_dim.is_multiple_of(2) && rotary_dim > 0 && rotary_dim <= head_dim {
        true => Ok(rotary_dim),
        false => {
            let expected = format!("an even number of dimensions up to {head_dim}");
            Err(SpecError::OutOfRange { key, found: format!("{rotary_dim} dimensions"), expected })
        }
    }
}

/// Reads keys of one architecture.
struct GgufReader<'a> {
    reader: Reader<'a>,
    arch: &'a str,
}

impl GgufReader<'_> {
    fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.arch)
    }

    fn missing(&self, key: &str, expected: &str) -> SpecError {
        SpecError::Missing { key: self.key(key), expected: expected.to_owned() }
    }

    fn size(&self, key: &str, range: RangeInclusive<usize>) -> Result<usize, SpecError> {
        self.reader.size(&self.key(key), range)
    }

    fn optional_size(&self, key: &str, range: RangeInclusive<usize>) -> Result<Option<usize>, SpecError> {
        self.reader.optional_size(&self.key(key), range)
    }

    fn number(&self, key: &str, range: RangeInclusive<f64>) -> Result<f64, SpecError> {
        self.reader.number(&self.key(key), range)
    }

    /// A size that files may give for each block, if it is the same in all of them.
    fn uniform_size(&self, key: &str, range: RangeInclusive<usize>) -> Result<Option<usize>, SpecError> {
        let blocks = self.size("block_count", limits::LAYERS)?;
        let Some(sizes) = self.reader.sizes(&self.key(key), blocks, range)? else { return Ok(None) };
        match sizes.iter().find(|&&size| size != sizes[0]) {
            None => Ok(sizes.first().copied()),
            Some(other) => {
                let found = format!("{} and {other}", sizes[0]);
                Err(unsupported(self.key(key), &found, "one value for all layers"))
            }
        }
    }

    /// Rows of the embedding: as many as there are tokens.
    fn vocab(&self) -> Result<usize, SpecError> {
        match self.reader.optional_length("tokenizer.ggml.tokens", limits::VOCAB)? {
            Some(tokens) => Ok(tokens),
            None => self.size("vocab_size", limits::VOCAB),
        }
    }

    fn refuse_scaled_rope(&self) -> Result<(), SpecError> {
        let key = self.key("rope.scaling.type");
        match self.reader.optional_text(&key)? {
            Some(found) if found != "none" => Err(unsupported(key, &found, "no scaling of rotary positions")),
            _ => Ok(()),
        }
    }

    fn linear(&self, head_map: HeadMap) -> Result<LinearSpec, SpecError> {
        let key_dim = self.size("ssm.state_size", limits::HEAD_DIM)?;
        let key_heads = self.size("ssm.group_count", limits::HEADS)?;
        let value_heads = self.size("ssm.time_step_rank", limits::HEADS)?;
        require_multiple(
            self.key("ssm.time_step_rank"),
            value_heads,
            self.key("ssm.group_count"),
            key_heads,
        )?;
        let inner = self.size("ssm.inner_size", 1..=limits::HEADS.end() * limits::HEAD_DIM.end())?;
        require_multiple(self.key("ssm.inner_size"), inner, self.key("ssm.time_step_rank"), value_heads)?;
        let value_dim = inner / value_heads;
        if !limits::HEAD_DIM.contains(&value_dim) {
            let (key, expected) = (self.key("ssm.inner_size"), format!("at most {value_heads} times 1024"));
            return Err(SpecError::OutOfRange { key, found: inner.to_string(), expected });
        }
        let conv_width = self.size("ssm.conv_kernel", limits::CONV_WIDTH)?;
        Ok(gated_delta_rule(key_heads, value_heads, key_dim, value_dim, conv_width, head_map))
    }

    fn attention(&self) -> Result<AttentionSpec, SpecError> {
        let heads = self.uniform_size("attention.head_count", limits::HEADS)?;
        let heads = heads.ok_or_else(|| self.missing("attention.head_count", "a number of heads"))?;
        let kv_heads = self.uniform_size("attention.head_count_kv", limits::HEADS)?.unwrap_or(heads);
        require_multiple(
            self.key("attention.head_count"),
            heads,
            self.key("attention.head_count_kv"),
            kv_heads,
        )?;
        let head_dim = self.size("attention.key_length", limits::HEAD_DIM)?;
        let value_length =
            self.optional_size("attention.value_length", limits::HEAD_DIM)?.unwrap_or(head_dim);
        if value_length != head_dim {
            let key = self.key("attention.value_length");
            return Err(unsupported(
                key,
                &value_length.to_string(),
                &format!("{head_dim}, as `attention.key_length`"),
            ));
        }
        let rotary = self.size("rope.dimension_count", limits::HEAD_DIM)?;
        let rotary_dim = check_rotary(self.key("rope.dimension_count"), rotary, head_dim)?;
        let theta = self.reader.optional_number(&self.key("rope.freq_base"), limits::ROPE_THETA)?;
        let rope_theta = theta.unwrap_or(DEFAULT_THETA) as f32;
        Ok(AttentionSpec { heads, kv_heads, head_dim, rotary_dim, rope_theta, output_gate: true })
    }

    fn recurrent(&self, layers: usize, blocks: usize) -> Result<Vec<bool>, SpecError> {
        let listed =
            self.reader.optional_bools(&self.key("attention.recurrent_layers"), &[layers, blocks])?;
        if let Some(mut listed) = listed {
            listed.truncate(layers);
            return Ok(listed);
        }
        let interval =
            self.optional_size("full_attention_interval", limits::INTERVAL)?.unwrap_or(DEFAULT_INTERVAL);
        Ok((0..layers).map(|layer| is_recurrent(layer, interval)).collect())
    }

    /// One for each block, prediction layers included.
    fn feed_forwards(&self, ffn: Ffn, blocks: usize) -> Result<Vec<FfnSpec>, SpecError> {
        let dense = self.reader.sizes(&self.key("feed_forward_length"), blocks, limits::FFN_WIDTH);
        if ffn == Ffn::Dense {
            let widths = dense?.ok_or_else(|| self.missing("feed_forward_length", "a width"))?;
            return Ok(widths.into_iter().map(|width| FfnSpec::Dense { width }).collect());
        }
        let experts = self.size("expert_count", limits::EXPERTS)?;
        let top_k = self.size("expert_used_count", 1..=experts)?;
        let key = "expert_feed_forward_length";
        let widths = self.reader.sizes(&self.key(key), blocks, limits::FFN_WIDTH)?;
        let widths = widths.ok_or_else(|| self.missing(key, "a width"))?;
        let key = "expert_shared_feed_forward_length";
        let shared_widths = match self.optional_size(key, limits::FFN_WIDTH)? {
            Some(width) => vec![width; blocks],
            // Early converters wrote the shared expert's width as the dense one.
            None => dense?.ok_or_else(|| self.missing(key, "a width"))?,
        };
        let moe = |(expert_width, shared_width)| {
            FfnSpec::Moe(MoeSpec { experts, top_k, expert_width, shared_width, normalize_weights: true })
        };
        Ok(widths.into_iter().zip(shared_widths).map(moe).collect())
    }
}

fn unsupported(key: String, found: &str, expected: &str) -> SpecError {
    SpecError::Unsupported { key, found: found.to_owned(), expected: expected.to_owned() }
}

fn gated_delta_rule(
    key_heads: usize,
    value_heads: usize,
    key_dim: usize,
    value_dim: usize,
    conv_width: usize,
    head_map: HeadMap,
) -> LinearSpec {
    LinearSpec {
        key_heads,
        value_heads,
        key_dim,
        value_dim,
        conv_width,
        decay: Decay::PerHead,
        write: Write::Delta { beta_max: 1.0 },
        head_map,
    }
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
    let head_dim = match reader.optional_size("head_dim", limits::HEAD_DIM)? {
        Some(head_dim) => head_dim,
        None => {
            let hidden = reader.size("hidden_size", limits::HIDDEN)?;
            require_multiple(
                reader.label("hidden_size"),
                hidden,
                reader.label("num_attention_heads"),
                heads,
            )?;
            hidden / heads
        }
    };
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

/// Whether the head is the embedding: the whole model's setting counts before that of its text part.
fn config_tied(config: &JsonFields<'_>, text: &Reader<'_>) -> Result<bool, SpecError> {
    let outer = Reader::new(config).optional_bool("tie_word_embeddings")?;
    let inner = text.optional_bool("tie_word_embeddings")?;
    Ok(outer.or(inner).unwrap_or(false))
}

/// The part of a `config.json` about text: the object `text_config`, or all of it.
pub(crate) fn text_part(config: &Value) -> JsonFields<'_> {
    let whole = JsonFields::new(config, "");
    whole.object("text_config").unwrap_or(whole)
}
