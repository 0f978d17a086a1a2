//! The hyper-parameters of a hybrid in GGUF metadata.

use std::ops::RangeInclusive;

use super::{
    DEFAULT_INTERVAL, DEFAULT_THETA, Ffn, HasTensor, assemble, check_rotary, gated_delta_rule, is_recurrent,
    require_multiple, unsupported,
};
use crate::error::SpecError;
use crate::fields::{Fields, Reader};
use crate::limits;
use crate::spec::{
    AttentionSpec, FfnSpec, HeadMap, LayerSpec, LinearSpec, MixerSpec, ModelSpec, MoeSpec, MtpSpec,
};

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
            Some(found) if !matches!(found.as_str(), "none" | "default" | "mrope") => {
                Err(unsupported(key, &found, "no scaling of rotary positions"))
            }
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
        // Another converter than llama.cpp's says whether it reordered the value heads.
        let head_map = match self.reader.optional_bool(&self.key("ssm.v_head_reordered"))? {
            None => head_map,
            Some(true) => HeadMap::Tiled,
            Some(false) => HeadMap::Grouped,
        };
        Ok(gated_delta_rule(key_heads, value_heads, key_dim, value_dim, conv_width, head_map))
    }

    fn attention(&self) -> Result<AttentionSpec, SpecError> {
        let heads = self.uniform_size("attention.head_count", limits::HEADS)?;
        let heads = heads.ok_or_else(|| self.missing("attention.head_count", "a number of heads"))?;
        let kv_heads = self.kv_heads_by_block()?.into_iter().find(|&count| count > 0).unwrap_or(heads);
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

    /// Key/value heads where files give them for each block; some write zero for linear layers. Empty where they do not.
    fn kv_heads_by_block(&self) -> Result<Vec<usize>, SpecError> {
        let (key, blocks) = ("attention.head_count_kv", self.size("block_count", limits::LAYERS)?);
        let counts = self.reader.sizes(&self.key(key), blocks, 0..=*limits::HEADS.end())?.unwrap_or_default();
        let mut used = counts.iter().copied().filter(|&count| count > 0);
        let first = used.next();
        if first.is_none() && !counts.is_empty() {
            let expected = format!("{} to {} in some layer", limits::HEADS.start(), limits::HEADS.end());
            return Err(SpecError::OutOfRange { key: self.key(key), found: "0".to_owned(), expected });
        }
        match used.find(|&count| Some(count) != first) {
            None => Ok(counts),
            Some(other) => {
                let found = format!("{} and {other}", first.unwrap_or_default());
                Err(unsupported(self.key(key), &found, "one value for all attention layers"))
            }
        }
    }

    /// Which layers are linear: listed, or told by the key/value heads they lack, or all but every n-th.
    fn recurrent(&self, layers: usize, blocks: usize) -> Result<Vec<bool>, SpecError> {
        let listed =
            self.reader.optional_bools(&self.key("attention.recurrent_layers"), &[layers, blocks])?;
        if let Some(mut listed) = listed {
            listed.truncate(layers);
            return Ok(listed);
        }
        let kv_heads = self.kv_heads_by_block()?;
        if kv_heads.contains(&0) {
            return Ok(kv_heads.iter().take(layers).map(|&count| count == 0).collect());
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
