//! Names of tensors: what a tensor is for, and what GGUF files and Hugging Face checkpoints call it.

/// What a tensor is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)] // the variants are the fields of the weights
pub enum Role {
    // The model.
    Embedding,
    OutputNorm,
    Output,
    // Every layer.
    MixerNorm,
    FfnNorm,
    // Linear mixers.
    LinearQkv,
    LinearZ,
    LinearBeta,
    LinearAlpha,
    /// Queries, keys, values and gate interleaved by key head.
    LinearQkvz,
    /// Write strength and decay interleaved by key head.
    LinearBetaAlpha,
    LinearConv,
    LinearA,
    LinearDtBias,
    LinearNorm,
    LinearOut,
    // Softmax attention.
    Query,
    Key,
    Value,
    QueryNorm,
    KeyNorm,
    AttentionOut,
    // Dense feed-forwards.
    Gate,
    Up,
    Down,
    // Mixtures.
    Router,
    /// `[experts][width][hidden]`.
    ExpertsGate,
    /// `[experts][width][hidden]`.
    ExpertsUp,
    /// `[experts][2 width][hidden]`: the gate's rows first.
    ExpertsGateUp,
    /// `[experts][hidden][width]`.
    ExpertsDown,
    /// One expert's.
    ExpertGate(usize),
    /// One expert's.
    ExpertUp(usize),
    /// One expert's.
    ExpertDown(usize),
    SharedGate,
    SharedUp,
    SharedDown,
    /// The sigmoid gate in front of the shared expert.
    SharedRouter,
    // Multi-token prediction.
    MtpEmbeddingNorm,
    MtpHiddenNorm,
    MtpFc,
    MtpOutputNorm,
    MtpEmbedding,
    MtpOutput,
}

/// Where a tensor belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// To the model as a whole.
    Model,
    /// To a layer.
    Layer(usize),
    /// To the multi-token-prediction head.
    Mtp,
}

/// What is done to a small tensor's values when they are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transform {
    /// Nothing.
    Keep,
    /// Norm weights stored around zero get their one.
    AddOne,
    /// `A_log` becomes `-exp(A_log)`.
    NegExp,
}

/// How the input projections of a linear mixer are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InputLayout {
    /// [`Role::LinearQkv`], [`Role::LinearZ`], [`Role::LinearBeta`], [`Role::LinearAlpha`].
    Split,
    /// [`Role::LinearQkvz`], [`Role::LinearBetaAlpha`].
    ByKeyHead,
    /// [`Role::LinearQkv`], [`Role::LinearZ`], [`Role::LinearBetaAlpha`].
    SplitFusedGates,
}

/// The names in one kind of file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Names {
    /// GGUF files; the multi-token-prediction head is the block after the last of `layers`.
    Gguf {
        /// Layers of the model.
        layers: usize,
    },
    /// Hugging Face checkpoints.
    HuggingFace {
        /// What comes before `embed_tokens`, `layers` and `norm`, with its dot.
        prefix: &'static str,
        /// The name of the output head.
        head: &'static str,
        /// What comes before the names of the multi-token-prediction head, with its dot.
        mtp: &'static str,
    },
}

/// Names of the output head in Hugging Face checkpoints.
pub(crate) const HEADS: [&str; 2] = ["lm_head.weight", "language_model.lm_head.weight"];

/// Prefixes of text weights and the head's name: text alone, inside a wrapper, inside an older wrapper, bare.
const LAYOUTS: [(&str, &str); 4] = [
    ("model.", HEADS[0]),
    ("model.language_model.", HEADS[0]),
    ("language_model.model.", HEADS[1]),
    ("", HEADS[0]),
];

impl Names {
    /// The names in a Hugging Face checkpoint that has certain tensors. Where nothing is recognised, the plainest layout
    /// is assumed, so that the first tensor to be missed gets the name people know.
    pub fn hugging_face(has_tensor: &dyn Fn(&str) -> bool) -> Names {
        let found = LAYOUTS.iter().find(|layout| has_tensor(&format!("{}embed_tokens.weight", layout.0)));
        let &(prefix, head) = found.unwrap_or(&LAYOUTS[0]);
        let mtp = match has_tensor("model.mtp.fc.weight") {
            true => "model.mtp.",
            false => "mtp.",
        };
        Names::HuggingFace { prefix, head, mtp }
    }

    /// The name of a tensor; `None` where this kind of file has no such tensor.
    pub fn name(&self, place: Place, role: Role) -> Option<String> {
        match *self {
            Names::Gguf { layers } => {
                let name = gguf_name(role)?;
                match place {
                    Place::Model => Some(name.to_owned()),
                    Place::Layer(layer) => Some(format!("blk.{layer}.{name}")),
                    Place::Mtp => Some(format!("blk.{layers}.{name}")),
                }
            }
            Names::HuggingFace { prefix, head, mtp } => match (place, role) {
                (Place::Model, Role::Output) => Some(head.to_owned()),
                (Place::Model, _) => Some(format!("{prefix}{}", hugging_face_name(role)?)),
                (Place::Layer(layer), _) => {
                    Some(format!("{prefix}layers.{layer}.{}", hugging_face_name(role)?))
                }
                (Place::Mtp, _) if is_mtp(role) => Some(format!("{mtp}{}", hugging_face_name(role)?)),
                (Place::Mtp, _) => Some(format!("{mtp}layers.0.{}", hugging_face_name(role)?)),
            },
        }
    }

    /// Another name that some files have for a tensor.
    pub fn other_name(&self, place: Place, role: Role) -> Option<String> {
        match (self, role) {
            (Names::Gguf { .. }, Role::LinearDtBias) => {
                self.name(place, role)?.strip_suffix(".bias").map(str::to_owned)
            }
            _ => None,
        }
    }

    /// How a family stores the input projections of a linear mixer. `has_qkvz`: the layer has [`Role::LinearQkvz`], as
    /// early GGUF files of Qwen3-Next do.
    pub fn input_layout(&self, arch: &str, has_qkvz: bool) -> InputLayout {
        match (arch, self) {
            ("qwen3next", Names::HuggingFace { .. }) => InputLayout::ByKeyHead,
            ("qwen3next", Names::Gguf { .. }) if has_qkvz => InputLayout::ByKeyHead,
            ("qwen3next", Names::Gguf { .. }) => InputLayout::SplitFusedGates,
            _ => InputLayout::Split,
        }
    }

    /// What is done to the values of a small tensor of this kind of file. GGUF converters have done it already.
    pub fn transform(&self, role: Role) -> Transform {
        if matches!(self, Names::Gguf { .. }) {
            return Transform::Keep;
        }
        match role {
            Role::LinearA => Transform::NegExp,
            Role::OutputNorm
            | Role::MixerNorm
            | Role::FfnNorm
            | Role::QueryNorm
            | Role::KeyNorm
            | Role::MtpEmbeddingNorm
            | Role::MtpHiddenNorm
            | Role::MtpOutputNorm => Transform::AddOne,
            _ => Transform::Keep,
        }
    }

    /// Whether a tensor that no layer asked for may be left alone: parts for pictures, a prediction head that is not
    /// used, tables that are recomputed, the stored copy of a tied head.
    pub fn may_ignore(&self, name: &str, tied_head: bool) -> bool {
        match *self {
            Names::Gguf { layers } => {
                let block =
                    name.strip_prefix("blk.").and_then(|rest| rest.split('.').next()?.parse::<usize>().ok());
                block.is_some_and(|block| block >= layers)
                    || ["v.", "mm.", "mtp.", "a."].iter().any(|prefix| name.starts_with(prefix))
                    || name == "rope_freqs.weight"
            }
            Names::HuggingFace { head, .. } => {
                const PREFIXES: [&str; 5] =
                    ["model.visual.", "visual.", "mtp.", "model.mtp.", "model.vision_tower."];
                PREFIXES.iter().any(|prefix| name.starts_with(prefix))
                    || name.ends_with(".rotary_emb.inv_freq")
                    || (tied_head && name == head)
            }
        }
    }
}

fn is_mtp(role: Role) -> bool {
    use Role::*;
    matches!(role, MtpEmbeddingNorm | MtpHiddenNorm | MtpFc | MtpOutputNorm | MtpEmbedding | MtpOutput)
}

fn gguf_name(role: Role) -> Option<&'static str> {
    Some(match role {
        Role::Embedding => "token_embd.weight",
        Role::OutputNorm => "output_norm.weight",
        Role::Output => "output.weight",
        Role::MixerNorm => "attn_norm.weight",
        Role::FfnNorm => "post_attention_norm.weight",
        Role::LinearQkv => "attn_qkv.weight",
        Role::LinearZ => "attn_gate.weight",
        Role::LinearBeta => "ssm_beta.weight",
        Role::LinearAlpha => "ssm_alpha.weight",
        Role::LinearQkvz => "ssm_in.weight",
        Role::LinearBetaAlpha => "ssm_ba.weight",
        Role::LinearConv => "ssm_conv1d.weight",
        Role::LinearA => "ssm_a",
        Role::LinearDtBias => "ssm_dt.bias",
        Role::LinearNorm => "ssm_norm.weight",
        Role::LinearOut => "ssm_out.weight",
        Role::Query => "attn_q.weight",
        Role::Key => "attn_k.weight",
        Role::Value => "attn_v.weight",
        Role::QueryNorm => "attn_q_norm.weight",
        Role::KeyNorm => "attn_k_norm.weight",
        Role::AttentionOut => "attn_output.weight",
        Role::Gate => "ffn_gate.weight",
        Role::Up => "ffn_up.weight",
        Role::Down => "ffn_down.weight",
        Role::Router => "ffn_gate_inp.weight",
        Role::ExpertsGate => "ffn_gate_exps.weight",
        Role::ExpertsUp => "ffn_up_exps.weight",
        Role::ExpertsGateUp => "ffn_gate_up_exps.weight",
        Role::ExpertsDown => "ffn_down_exps.weight",
        Role::SharedGate => "ffn_gate_shexp.weight",
        Role::SharedUp => "ffn_up_shexp.weight",
        Role::SharedDown => "ffn_down_shexp.weight",
        Role::SharedRouter => "ffn_gate_inp_shexp.weight",
        Role::MtpEmbeddingNorm => "nextn.enorm.weight",
        Role::MtpHiddenNorm => "nextn.hnorm.weight",
        Role::MtpFc => "nextn.eh_proj.weight",
        Role::MtpOutputNorm => "nextn.shared_head_norm.weight",
        Role::MtpEmbedding => "nextn.embed_tokens.weight",
        Role::MtpOutput => "nextn.shared_head_head.weight",
        Role::ExpertGate(_) | Role::ExpertUp(_) | Role::ExpertDown(_) => return None,
    })
}

fn hugging_face_name(role: Role) -> Option<String> {
    let name = match role {
        Role::Embedding => "embed_tokens.weight",
        Role::OutputNorm => "norm.weight",
        Role::Output => "lm_head.weight",
        Role::MixerNorm => "input_layernorm.weight",
        Role::FfnNorm => "post_attention_layernorm.weight",
        Role::LinearQkv => "linear_attn.in_proj_qkv.weight",
        Role::LinearZ => "linear_attn.in_proj_z.weight",
        Role::LinearBeta => "linear_attn.in_proj_b.weight",
        Role::LinearAlpha => "linear_attn.in_proj_a.weight",
        Role::LinearQkvz => "linear_attn.in_proj_qkvz.weight",
        Role::LinearBetaAlpha => "linear_attn.in_proj_ba.weight",
        Role::LinearConv => "linear_attn.conv1d.weight",
        Role::LinearA => "linear_attn.A_log",
        Role::LinearDtBias => "linear_attn.dt_bias",
        Role::LinearNorm => "linear_attn.norm.weight",
        Role::LinearOut => "linear_attn.out_proj.weight",
        Role::Query => "self_attn.q_proj.weight",
        Role::Key => "self_attn.k_proj.weight",
        Role::Value => "self_attn.v_proj.weight",
        Role::QueryNorm => "self_attn.q_norm.weight",
        Role::KeyNorm => "self_attn.k_norm.weight",
        Role::AttentionOut => "self_attn.o_proj.weight",
        Role::Gate => "mlp.gate_proj.weight",
        Role::Up => "mlp.up_proj.weight",
        Role::Down => "mlp.down_proj.weight",
        Role::Router => "mlp.gate.weight",
        Role::ExpertsGateUp => "mlp.experts.gate_up_proj",
        Role::ExpertsDown => "mlp.experts.down_proj",
        Role::ExpertGate(expert) => return Some(format!("mlp.experts.{expert}.gate_proj.weight")),
        Role::ExpertUp(expert) => return Some(format!("mlp.experts.{expert}.up_proj.weight")),
        Role::ExpertDown(expert) => return Some(format!("mlp.experts.{expert}.down_proj.weight")),
        Role::SharedGate => "mlp.shared_expert.gate_proj.weight",
        Role::SharedUp => "mlp.shared_expert.up_proj.weight",
        Role::SharedDown => "mlp.shared_expert.down_proj.weight",
        Role::SharedRouter => "mlp.shared_expert_gate.weight",
        Role::MtpEmbeddingNorm => "pre_fc_norm_embedding.weight",
        Role::MtpHiddenNorm => "pre_fc_norm_hidden.weight",
        Role::MtpFc => "fc.weight",
        Role::MtpOutputNorm => "norm.weight",
        Role::MtpEmbedding => "embed_tokens.weight",
        Role::MtpOutput => "lm_head.weight",
        Role::ExpertsGate | Role::ExpertsUp => return None,
    };
    Some(name.to_owned())
}
