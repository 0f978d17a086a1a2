//! What the families of linear-attention hybrids have in common: their hyper-parameters, checked and assembled.

mod config;
mod gguf;

use crate::error::SpecError;
use crate::spec::{AttentionSpec, Decay, FfnSpec, HeadMap, LayerSpec, LinearSpec, MixerSpec, Write};

pub(crate) use config::{from_config, text_part};
pub(crate) use gguf::from_gguf;

/// Every how many layers there is full attention where the file does not say.
const DEFAULT_INTERVAL: usize = 4;
/// Base of the rotary frequencies where the file does not say.
const DEFAULT_THETA: f64 = 10_000.0;

/// Asks whether the file has a tensor of a name.
pub type HasTensor<'a> = &'a dyn Fn(&str) -> bool;

/// Whether a family's feed-forwards are dense or mixtures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ffn {
    Dense,
    Moe,
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
