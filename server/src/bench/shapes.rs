//! Shapes of linear layers as released models have them.

use millpond_models::{Decay, FfnSpec, HeadMap, LayerSpec, LinearSpec, MixerSpec, ModelSpec, Write};

/// The linear layers of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// As `--shape` spells it.
    pub name: &'static str,
    /// Key heads.
    pub key_heads: usize,
    /// Value heads.
    pub value_heads: usize,
    /// Linear layers of the model.
    pub layers: usize,
}

/// Every shape, smallest first. Keys and values are 128 wide and the convolution has 4 taps in all of them.
pub const SHAPES: [Shape; 6] = [
    Shape { name: "0.8b", key_heads: 16, value_heads: 16, layers: 18 },
    Shape { name: "4b", key_heads: 16, value_heads: 32, layers: 24 },
    Shape { name: "9b", key_heads: 16, value_heads: 32, layers: 24 },
    Shape { name: "27b", key_heads: 16, value_heads: 48, layers: 48 },
    Shape { name: "35b-a3b", key_heads: 16, value_heads: 32, layers: 30 },
    Shape { name: "next-80b", key_heads: 16, value_heads: 32, layers: 36 },
];

impl std::str::FromStr for Shape {
    type Err = String;

    fn from_str(name: &str) -> Result<Shape, String> {
        let shape = SHAPES.iter().find(|shape| shape.name == name).copied();
        shape.ok_or_else(|| {
            let names = SHAPES.map(|shape| shape.name);
            format!("there is no shape {name:?}; known are {}", names.join(", "))
        })
    }
}

impl Shape {
    /// The mixer of a layer.
    #[must_use]
    pub fn linear(&self) -> LinearSpec {
        LinearSpec {
            key_heads: self.key_heads,
            value_heads: self.value_heads,
            key_dim: 128,
            value_dim: 128,
            conv_width: 4,
            decay: Decay::PerHead,
            write: Write::Delta { beta_max: 1.0 },
            head_map: HeadMap::Tiled,
        }
    }

    /// A model of `layers` such layers and nothing else.
    #[must_use]
    pub fn model(&self, layers: usize) -> ModelSpec {
        let layer = LayerSpec { mixer: MixerSpec::Linear(self.linear()), ffn: FfnSpec::Dense { width: 0 } };
        ModelSpec {
            arch: self.name.to_owned(),
            hidden: 0,
            vocab: 0,
            context: usize::MAX,
            norm_eps: 1e-6,
            layers: vec![layer; layers],
            tied_head: true,
            mtp: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_are_found_by_name_and_divide_their_heads() {
        for shape in SHAPES {
            assert_eq!(shape.name.parse(), Ok(shape));
            assert_eq!(shape.value_heads % shape.key_heads, 0);
        }
        assert!("1b".parse::<Shape>().unwrap_err().contains("next-80b"));
    }
}
