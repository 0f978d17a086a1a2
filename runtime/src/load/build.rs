//! From tensors by name to the weights of a model.

use millpond_models::names::{InputLayout, Names, Place, Role};
use millpond_models::{
    AttentionSpec, FfnSpec, LayerSpec, LinearSpec, MixerSpec, ModelSpec, MoeSpec, MtpSpec,
};

use super::error::LoadError;
use super::store::TensorStore;
use crate::weights::{
    AttentionWeights, FfnWeights, GluWeights, LayerWeights, LinearInput, LinearWeights, Matrix, MixerWeights,
    ModelWeights, MoeWeights, MtpWeights,
};

/// Finds the weights of a model in its files.
pub(super) struct Builder<'a> {
    pub(super) spec: &'a ModelSpec,
    pub(super) store: &'a TensorStore,
    pub(super) names: &'a Names,
}

impl Builder<'_> {
    /// All weights. A tensor that belongs to nothing is refused: it would mean that the model computes something we do
    /// not.
    pub(super) fn model(&self) -> Result<ModelWeights, LoadError> {
        let (vocab, hidden) = (self.spec.vocab, self.spec.hidden);
        let embedding = self.matrix(Place::Model, Role::Embedding, vocab, hidden)?;
        let layers = self.spec.layers.iter().enumerate();
        let layers =
            layers.map(|(i, layer)| self.layer(Place::Layer(i), layer)).collect::<Result<Vec<_>, _>>()?;
        let output_norm = self.vector(Place::Model, Role::OutputNorm, &[hidden])?;
        let output = match self.spec.tied_head {
            true => embedding.clone(),
            false => self.matrix(Place::Model, Role::Output, vocab, hidden)?,
        };
        let mut weights = ModelWeights { embedding, layers, output_norm, output, mtp: None };
        if let Some(mtp) = &self.spec.mtp {
            weights.mtp = Some(self.mtp(mtp, &weights)?);
        }
        match self.store.unused(|name| self.names.may_ignore(name, self.spec.tied_head)) {
            None => Ok(weights),
            Some(name) => Err(LoadError::ExtraTensor { name: name.to_owned(), arch: self.spec.arch.clone() }),
        }
    }

    /// The multi-token-prediction head, which shares what it lacks with the model.
    pub(super) fn mtp(&self, mtp: &MtpSpec, model: &ModelWeights) -> Result<MtpWeights, LoadError> {
        let (vocab, hidden) = (self.spec.vocab, self.spec.hidden);
        let place = Place::Mtp;
        Ok(MtpWeights {
            embedding_norm: self.vector(place, Role::MtpEmbeddingNorm, &[hidden])?,
            hidden_norm: self.vector(place, Role::MtpHiddenNorm, &[hidden])?,
            fc: self.matrix(place, Role::MtpFc, hidden, 2 * hidden)?,
            layer: self.layer(place, &mtp.layer)?,
            output_norm: match self.has(place, Role::MtpOutputNorm) {
                true => self.vector(place, Role::MtpOutputNorm, &[hidden])?,
                false => model.output_norm.clone(),
            },
            embedding: match mtp.own_embedding {
                true => self.matrix(place, Role::MtpEmbedding, vocab, hidden)?,
                false => model.embedding.clone(),
            },
            output: match mtp.own_head {
                true => self.matrix(place, Role::MtpOutput, vocab, hidden)?,
                false => model.output.clone(),
            },
        })
    }

    fn layer(&self, place: Place, layer: &LayerSpec) -> Result<LayerWeights, LoadError> {
        let hidden = self.spec.hidden;
        Ok(LayerWeights {
            mixer_norm: self.vector(place, Role::MixerNorm, &[hidden])?,
            mixer: match &layer.mixer {
                MixerSpec::Linear(linear) => MixerWeights::Linear(Box::new(self.linear(place, linear)?)),
                MixerSpec::Attention(attention) => {
                    MixerWeights::Attention(Box::new(self.attention(place, attention)?))
                }
            },
            ffn_norm: self.vector(place, Role::FfnNorm, &[hidden])?,
            ffn: match &layer.ffn {
                FfnSpec::Dense { width } => FfnWeights::Dense(self.dense(place, *width)?),
                FfnSpec::Moe(moe) => FfnWeights::Moe(Box::new(self.moe(place, moe)?)),
            },
        })
    }

    fn linear(&self, place: Place, linear: &LinearSpec) -> Result<LinearWeights, LoadError> {
        let value_heads = linear.value_heads;
        Ok(LinearWeights {
            input: self.linear_input(place, linear)?,
            conv: self.vector(place, Role::LinearConv, &[linear.conv_channels(), linear.conv_width])?,
            a: self.vector(place, Role::LinearA, &[value_heads])?,
            dt_bias: self.vector(place, Role::LinearDtBias, &[value_heads])?,
            norm: self.vector(place, Role::LinearNorm, &[linear.value_dim])?,
            out: self.matrix(place, Role::LinearOut, self.spec.hidden, value_heads * linear.value_dim)?,
        })
    }

    fn linear_input(&self, place: Place, linear: &LinearSpec) -> Result<LinearInput, LoadError> {
        let (hidden, value_heads) = (self.spec.hidden, linear.value_heads);
        let (channels, values) = (linear.conv_channels(), value_heads * linear.value_dim);
        let matrix = |role, rows| self.matrix(place, role, rows, hidden);
        Ok(match self.names.input_layout(&self.spec.arch, self.has(place, Role::LinearQkvz)) {
            InputLayout::Split => LinearInput::Split {
                qkv: matrix(Role::LinearQkv, channels)?,
                z: matrix(Role::LinearZ, values)?,
                beta: matrix(Role::LinearBeta, value_heads)?,
                alpha: matrix(Role::LinearAlpha, value_heads)?,
            },
            InputLayout::ByKeyHead => LinearInput::ByKeyHead {
                qkvz: matrix(Role::LinearQkvz, channels + values)?,
                ba: matrix(Role::LinearBetaAlpha, 2 * value_heads)?,
            },
            InputLayout::SplitFusedGates => LinearInput::SplitFusedGates {
                qkv: matrix(Role::LinearQkv, channels)?,
                z: matrix(Role::LinearZ, values)?,
                ba: matrix(Role::LinearBetaAlpha, 2 * value_heads)?,
            },
        })
    }

    fn attention(&self, place: Place, attention: &AttentionSpec) -> Result<AttentionWeights, LoadError> {
        let (hidden, head_dim) = (self.spec.hidden, attention.head_dim);
        let queries = attention.heads * head_dim;
        let keys = attention.kv_heads * head_dim;
        let query_rows = if attention.output_gate { 2 * queries } else { queries };
        Ok(AttentionWeights {
            q: self.matrix(place, Role::Query, query_rows, hidden)?,
            k: self.matrix(place, Role::Key, keys, hidden)?,
            v: self.matrix(place, Role::Value, keys, hidden)?,
            q_norm: self.vector(place, Role::QueryNorm, &[head_dim])?,
            k_norm: self.vector(place, Role::KeyNorm, &[head_dim])?,
            out: self.matrix(place, Role::AttentionOut, hidden, queries)?,
        })
    }

    fn dense(&self, place: Place, width: usize) -> Result<GluWeights, LoadError> {
        self.glu(place, [Role::Gate, Role::Up, Role::Down], width)
    }

    fn glu(&self, place: Place, [gate, up, down]: [Role; 3], width: usize) -> Result<GluWeights, LoadError> {
        Ok(GluWeights {
            gate: self.matrix(place, gate, width, self.spec.hidden)?,
            up: self.matrix(place, up, width, self.spec.hidden)?,
            down: self.matrix(place, down, self.spec.hidden, width)?,
        })
    }

    fn moe(&self, place: Place, moe: &MoeSpec) -> Result<MoeWeights, LoadError> {
        let router = self.matrix(place, Role::Router, moe.experts, self.spec.hidden)?;
        let experts = self.experts(place, moe)?;
        let shared = match moe.shared_width {
            0 => None,
            width => {
                let expert = self.glu(place, [Role::SharedGate, Role::SharedUp, Role::SharedDown], width)?;
                Some((expert, self.matrix(place, Role::SharedRouter, 1, self.spec.hidden)?))
            }
        };
        Ok(MoeWeights { router, experts, shared })
    }

    /// The routed experts: gate and up stacked together, stacked apart, or one tensor for each expert.
    fn experts(&self, place: Place, moe: &MoeSpec) -> Result<Vec<GluWeights>, LoadError> {
        let (count, width, hidden) = (moe.experts, moe.expert_width, self.spec.hidden);
        let fused = self.has(place, Role::ExpertsGateUp);
        if !fused && matches!(self.names, Names::HuggingFace { .. }) {
            let one =
                |i| self.glu(place, [Role::ExpertGate(i), Role::ExpertUp(i), Role::ExpertDown(i)], width);
            return (0..count).map(one).collect();
        }
        let down = self.stack(place, Role::ExpertsDown, count, hidden, width)?;
        let gate_up: Vec<(Matrix, Matrix)> = if fused {
            let both = self.stack(place, Role::ExpertsGateUp, count, 2 * width, hidden)?;
            let halves =
                |both: Matrix| Some((both.slice_rows(0..width)?, both.slice_rows(width..2 * width)?));
            both.into_iter().filter_map(halves).collect()
        } else {
            let gate = self.stack(place, Role::ExpertsGate, count, width, hidden)?;
            gate.into_iter().zip(self.stack(place, Role::ExpertsUp, count, width, hidden)?).collect()
        };
        let glu = |((gate, up), down)| GluWeights { gate, up, down };
        Ok(gate_up.into_iter().zip(down).map(glu).collect())
    }

    /// The name of a tensor in these files; a role that this kind of file has no name for is named by the role, and is
    /// missing.
    fn name(&self, place: Place, role: Role) -> String {
        let name = self.names.name(place, role).unwrap_or_else(|| format!("{role:?}"));
        match self.names.other_name(place, role) {
            Some(other) if !self.store.has(&name) && self.store.has(&other) => other,
            _ => name,
        }
    }

    fn has(&self, place: Place, role: Role) -> bool {
        self.names.name(place, role).is_some_and(|name| self.store.has(&name))
    }

    fn matrix(&self, place: Place, role: Role, rows: usize, cols: usize) -> Result<Matrix, LoadError> {
        self.store.matrix(&self.name(place, role), rows, cols)
    }

    fn stack(
        &self,
        place: Place,
        role: Role,
        count: usize,
        rows: usize,
        cols: usize,
    ) -> Result<Vec<Matrix>, LoadError> {
        self.store.stack(&self.name(place, role), count, rows, cols)
    }

    fn vector(&self, place: Place, role: Role, shape: &[usize]) -> Result<Vec<f32>, LoadError> {
        self.store.vector(&self.name(place, role), shape, self.names.transform(role))
    }
}
