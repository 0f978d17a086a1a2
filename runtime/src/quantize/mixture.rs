//! Which format each tensor of a model gets.
//!
//! The mixtures are those that people know by these names from llama.cpp, with two differences: the gates of linear
//! layers stay floats (they are small, and an error in a decay multiplies over the whole context), and the projection
//! that feeds the prediction head gets at least eight bits.

use std::fmt;
use std::str::FromStr;

use millpond_simd::quant::QFormat;

/// What a model is quantised to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(non_camel_case_types)] // the names are the formats' own
pub enum QuantizeType {
    /// Single precision.
    F32,
    /// Half precision.
    F16,
    /// Brain floats.
    BF16,
    /// Four bits, one scale for 32 values; output head in six.
    Q4_0,
    /// Four bits with scales of sub-blocks; half of the value and down projections and the output head in six.
    Q4_K_M,
    /// Five bits with scales of sub-blocks; half of the value and down projections and the output head in six.
    Q5_K_M,
    /// Six bits with scales of sub-blocks.
    Q6_K,
    /// Eight bits, one scale for 32 values.
    Q8_0,
}

/// Type, name, `general.file_type` of GGUF files.
const TYPES: [(QuantizeType, &str, u32); 8] = [
    (QuantizeType::F32, "F32", 0),
    (QuantizeType::F16, "F16", 1),
    (QuantizeType::BF16, "BF16", 32),
    (QuantizeType::Q4_0, "Q4_0", 2),
    (QuantizeType::Q4_K_M, "Q4_K_M", 15),
    (QuantizeType::Q5_K_M, "Q5_K_M", 17),
    (QuantizeType::Q6_K, "Q6_K", 18),
    (QuantizeType::Q8_0, "Q8_0", 7),
];

/// A name that is no type.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown type `{found}`; one of {} expected", QuantizeType::names().join(", "))]
pub struct UnknownType {
    /// The name.
    pub found: String,
}

impl QuantizeType {
    /// Every type.
    pub const ALL: [QuantizeType; 8] = [
        QuantizeType::F32,
        QuantizeType::F16,
        QuantizeType::BF16,
        QuantizeType::Q4_0,
        QuantizeType::Q4_K_M,
        QuantizeType::Q5_K_M,
        QuantizeType::Q6_K,
        QuantizeType::Q8_0,
    ];

    /// The names of all types.
    pub fn names() -> Vec<&'static str> {
        TYPES.iter().map(|row| row.1).collect()
    }

    fn row(self) -> &'static (QuantizeType, &'static str, u32) {
        &TYPES[self as usize]
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        self.row().1
    }

    /// Its number in `general.file_type` of GGUF files.
    pub fn file_type(self) -> u32 {
        self.row().2
    }

    /// Whether matrices stay floats.
    pub fn is_float(self) -> bool {
        matches!(self, QuantizeType::F32 | QuantizeType::F16 | QuantizeType::BF16)
    }

    /// The format of most matrices.
    fn base(self) -> QFormat {
        match self {
            QuantizeType::F32 => QFormat::F32,
            QuantizeType::F16 => QFormat::F16,
            QuantizeType::BF16 => QFormat::BF16,
            QuantizeType::Q4_0 => QFormat::Q4_0,
            QuantizeType::Q4_K_M => QFormat::Q4K,
            QuantizeType::Q5_K_M => QFormat::Q5K,
            QuantizeType::Q6_K => QFormat::Q6K,
            QuantizeType::Q8_0 => QFormat::Q8_0,
        }
    }
}

impl fmt::Display for QuantizeType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Short names of mixtures.
const SHORT_NAMES: [(&str, &str); 2] = [("Q4_K", "Q4_K_M"), ("Q5_K", "Q5_K_M")];

impl FromStr for QuantizeType {
    type Err = UnknownType;

    /// A name in any case, or the number that `general.file_type` has for it.
    fn from_str(name: &str) -> Result<QuantizeType, UnknownType> {
        let short = SHORT_NAMES.iter().find(|names| names.0.eq_ignore_ascii_case(name));
        let wished = short.map_or(name, |names| names.1);
        let is_wished = |row: &&(QuantizeType, &str, u32)| {
            row.1.eq_ignore_ascii_case(wished) || wished.parse() == Ok(row.2)
        };
        let found = TYPES.iter().find(is_wished);
        found.map(|row| row.0).ok_or_else(|| UnknownType { found: name.to_owned() })
    }
}

/// Departures from a mixture.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MixtureOptions {
    /// Every matrix gets the format that the type is named after.
    pub pure: bool,
    /// The output head stays as it is; with a tied embedding, this.
    pub keep_output: bool,
    /// The format of the output head; with a tied embedding, of this.
    pub output: Option<QFormat>,
    /// The format of the embedding.
    pub embedding: Option<QFormat>,
}

/// What is known about a model before its tensors get their formats.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mixture {
    pub(crate) kind: QuantizeType,
    /// Layers of the file, prediction layers included.
    pub(crate) blocks: usize,
    /// Whether the output head is the embedding.
    pub(crate) tied_head: bool,
    pub(crate) options: MixtureOptions,
}

/// What a tensor is for, as far as formats depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// Small or delicate: stays as it is.
    Kept,
    Embedding,
    Output,
    /// Values, alone or with queries and keys.
    Values,
    Down,
    /// The projection of the prediction head.
    Prediction,
    Matrix,
}

/// Names of matrices, without the layer, and what they are for. What is not listed is kept.
const PARTS: [(&str, Part); 23] = [
    ("token_embd.weight", Part::Embedding),
    ("output.weight", Part::Output),
    ("nextn.embed_tokens.weight", Part::Embedding),
    ("nextn.shared_head_head.weight", Part::Output),
    ("nextn.eh_proj.weight", Part::Prediction),
    ("attn_v.weight", Part::Values),
    ("attn_qkv.weight", Part::Values),
    ("ssm_in.weight", Part::Matrix),
    ("ffn_down.weight", Part::Down),
    ("ffn_down_exps.weight", Part::Down),
    ("ffn_down_shexp.weight", Part::Down),
    ("attn_q.weight", Part::Matrix),
    ("attn_k.weight", Part::Matrix),
    ("attn_output.weight", Part::Matrix),
    ("attn_gate.weight", Part::Matrix),
    ("ssm_out.weight", Part::Matrix),
    ("ffn_gate.weight", Part::Matrix),
    ("ffn_up.weight", Part::Matrix),
    ("ffn_gate_exps.weight", Part::Matrix),
    ("ffn_up_exps.weight", Part::Matrix),
    ("ffn_gate_up_exps.weight", Part::Matrix),
    ("ffn_gate_shexp.weight", Part::Matrix),
    ("ffn_up_shexp.weight", Part::Matrix),
];

/// The layer in a tensor's name, and the rest of the name.
fn split_name(name: &str) -> (usize, &str) {
    let parts = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.'));
    match parts.and_then(|(layer, rest)| Some((layer.parse().ok()?, rest))) {
        Some(parts) => parts,
        None => (0, name),
    }
}

/// The first and last eighth of the layers, and every third between, are worth more bits.
fn deserves_more_bits(layer: usize, blocks: usize) -> bool {
    let eighth = blocks / 8;
    layer < eighth || layer >= 7 * blocks / 8 || (layer - eighth) % 3 == 2
}

impl Mixture {
    /// The format of a tensor of `cols` columns that is stored in `stored`.
    pub(crate) fn format(&self, name: &str, stored: QFormat, cols: usize) -> QFormat {
        let (layer, rest) = split_name(name);
        let part = PARTS.iter().find(|part| part.0 == rest).map_or(Part::Kept, |part| part.1);
        let base = self.kind.base();
        let is_output = part == Part::Output || part == Part::Embedding && self.tied_head;
        if part == Part::Kept || is_output && self.options.keep_output {
            return stored;
        }
        let embedding = self.options.embedding.filter(|_| part == Part::Embedding);
        let output = self.options.output.filter(|_| is_output);
        if let Some(asked) = embedding.or(output) {
            return fitting(asked, cols).unwrap_or(stored);
        }
        if self.kind.is_float() {
            return base;
        }
        let wished = match (part, self.kind) {
            _ if self.options.pure => base,
            (_, QuantizeType::Q8_0) => base,
            (Part::Output, _) => QFormat::Q6K,
            (Part::Embedding, _) if self.tied_head => QFormat::Q6K,
            (Part::Prediction, _) => QFormat::Q8_0,
            (Part::Values | Part::Down, QuantizeType::Q4_K_M | QuantizeType::Q5_K_M)
                if deserves_more_bits(layer, self.blocks) =>
            {
                QFormat::Q6K
            }
            _ => base,
        };
        fitting(wished, cols).unwrap_or(stored)
    }
}

/// The format, or eight bits if its blocks do not fit the columns; `None` when these do not either.
fn fitting(wished: QFormat, cols: usize) -> Option<QFormat> {
    [wished, QFormat::Q8_0].into_iter().find(|format| cols.is_multiple_of(format.block_len()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::file::gguf::Gguf;
    use crate::file::mmap::{self, Access};

    #[test]
    fn types_have_names() {
        for (i, kind) in QuantizeType::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, i);
            assert_eq!(TYPES[i].0, kind);
            assert_eq!(kind.to_string().to_lowercase().parse(), Ok(kind));
            assert_eq!(kind.file_type().to_string().parse(), Ok(kind));
        }
        assert_eq!("q4_k".parse(), Ok(QuantizeType::Q4_K_M));
        assert!("Q9_9".parse::<QuantizeType>().unwrap_err().to_string().contains("Q4_K_M"));
    }

    #[test]
    fn gates_norms_and_routers_are_kept() {
        let mixture = Mixture {
            kind: QuantizeType::Q4_0,
            blocks: 4,
            tied_head: false,
            options: MixtureOptions::default(),
        };
        let kept = [
            "blk.0.ssm_alpha.weight",
            "blk.0.ssm_beta.weight",
            "blk.0.ssm_ba.weight",
            "blk.0.ssm_conv1d.weight",
            "blk.0.ssm_a",
            "blk.0.ssm_dt.bias",
            "blk.0.attn_norm.weight",
            "blk.0.ffn_gate_inp.weight",
            "blk.0.ffn_gate_inp_shexp.weight",
            "output_norm.weight",
            "rope_freqs.weight",
        ];
        for name in kept {
            assert_eq!(mixture.format(name, QFormat::BF16, 256), QFormat::BF16, "{name}");
        }
        assert_eq!(mixture.format("token_embd.weight", QFormat::BF16, 256), QFormat::Q4_0);
        assert_eq!(mixture.format("output.weight", QFormat::BF16, 256), QFormat::Q6K);
        assert_eq!(mixture.format("blk.3.nextn.eh_proj.weight", QFormat::BF16, 512), QFormat::Q8_0);
    }

    /// The built-in model is a Q4_K_M file of llama.cpp's: the same mixture but for the two differences.
    #[test]
    fn the_mixture_is_that_of_llama_cpp() {
        let path =
            std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../server/assets/delta-48m-Q4_K_M.gguf");
        let file = Gguf::parse(mmap::open(&path, Access::Map).unwrap()).unwrap();
        let mixture = Mixture {
            kind: QuantizeType::Q4_K_M,
            blocks: 13,
            tied_head: true,
            options: MixtureOptions::default(),
        };
        let mut matrices = 0;
        for tensor in file.tensors().iter().filter(|tensor| tensor.dims.len() > 1) {
            let (name, theirs) = (&tensor.name, tensor.kind.format.unwrap());
            let stored = if theirs == QFormat::F32 { QFormat::F32 } else { QFormat::BF16 };
            let ours = mixture.format(name, stored, tensor.dims[0] as usize);
            let expected = match split_name(name).1 {
                "ssm_alpha.weight" | "ssm_beta.weight" => QFormat::BF16,
                "nextn.eh_proj.weight" => QFormat::Q8_0,
                _ => theirs,
            };
            assert_eq!(ours, expected, "{name}");
            matrices += 1;
        }
        assert!(matrices > 100);
    }

    #[test]
    fn options_depart_from_the_mixture() {
        let of = |options: MixtureOptions, tied_head, name| {
            Mixture { kind: QuantizeType::Q4_K_M, blocks: 4, tied_head, options }.format(
                name,
                QFormat::BF16,
                256,
            )
        };
        let pure = MixtureOptions { pure: true, ..MixtureOptions::default() };
        for name in ["output.weight", "blk.0.attn_v.weight", "blk.3.nextn.eh_proj.weight"] {
            assert_eq!(of(pure, false, name), QFormat::Q4K);
        }
        assert_eq!(of(pure, true, "blk.0.ssm_alpha.weight"), QFormat::BF16);
        let kept = MixtureOptions { keep_output: true, ..MixtureOptions::default() };
        assert_eq!(of(kept, false, "output.weight"), QFormat::BF16);
        assert_eq!(of(kept, false, "token_embd.weight"), QFormat::Q4K);
        assert_eq!(of(kept, true, "token_embd.weight"), QFormat::BF16);
        let asked = MixtureOptions { output: Some(QFormat::Q8_0), embedding: Some(QFormat::Q5K), ..kept };
        let asked = MixtureOptions { keep_output: false, ..asked };
        assert_eq!(of(asked, false, "output.weight"), QFormat::Q8_0);
        assert_eq!(of(asked, true, "token_embd.weight"), QFormat::Q5K);
        assert_eq!(of(MixtureOptions { embedding: None, ..asked }, true, "token_embd.weight"), QFormat::Q8_0);
        assert_eq!(of(asked, true, "blk.1.ffn_up.weight"), QFormat::Q4K);
    }

    #[test]
    fn narrow_matrices_get_eight_bits_or_stay() {
        let mixture = Mixture {
            kind: QuantizeType::Q4_K_M,
            blocks: 16,
            tied_head: true,
            options: MixtureOptions::default(),
        };
        let of = |name, cols| mixture.format(name, QFormat::F16, cols);
        assert_eq!(of("blk.4.attn_q.weight", 256), QFormat::Q4K);
        assert_eq!(of("blk.4.attn_q.weight", 96), QFormat::Q8_0);
        assert_eq!(of("token_embd.weight", 96), QFormat::Q8_0);
        assert_eq!(of("blk.4.attn_q.weight", 33), QFormat::F16);
    }
}
