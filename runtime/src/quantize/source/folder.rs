//! A checkpoint folder as a GGUF file's tensors.
//!
//! What converters do to such checkpoints, and what is done here: norms stored around zero get their one, `A_log` becomes
//! `-exp(A_log)`, projections interleaved by key head are taken apart, separate experts are stacked, and the value heads
//! of the Qwen3.5 family are put in tiled order (`HeadMap::Tiled`), which Qwen3-Next's are not.

use std::ops::Range;
use std::path::Path;

use millpond_models::names::{InputLayout, Names, Place, Role};
use millpond_models::{
    AttentionSpec, FfnSpec, HeadMap, LayerSpec, LinearSpec, MixerSpec, ModelSpec, MoeSpec, MtpSpec,
};
use millpond_simd::quant::QFormat;

use super::{Source, SourceTensor, keys, text};
use crate::load::LoadedModel;
use crate::load::open::OpenFolder;
use crate::load::store::TensorStore;
use crate::quantize::QuantizeError;
use crate::weights::Matrix;

pub(super) fn source(
    folder: &Path,
    opened: &OpenFolder,
    model: &LoadedModel,
) -> Result<Source, QuantizeError> {
    let spec = &model.spec;
    let has = |name: &str| opened.store.has(name);
    let mut lister = Lister {
        spec,
        store: &opened.store,
        from: Names::hugging_face(&has),
        to: Names::Gguf { layers: spec.layers.len() },
        order: match spec.arch.as_str() {
            "qwen3next" => HeadMap::Grouped,
            _ => HeadMap::Tiled,
        },
        tensors: Vec::new(),
    };
    lister.model()?;
    let mut keys = keys::keys(folder, &opened.config, spec);
    let text = text::read(&model.tokenizer, spec.vocab)?;
    let (vocabulary, composes_text) = match text {
        None => (None, None),
        Some(text) => {
            keys.extend(text.keys());
            (Some(text.vocabulary), Some(text.composes_text))
        }
    };
    Ok(Source {
        arch: spec.arch.clone(),
        blocks: spec.layers.len() + usize::from(spec.mtp.is_some()),
        tied_head: spec.tied_head,
        keys,
        vocabulary,
        vocab: spec.vocab,
        tensors: lister.tensors,
        files: opened.store.files.iter().map(|file| file.path.clone()).collect(),
        composes_text,
    })
}

struct Lister<'a> {
    spec: &'a ModelSpec,
    store: &'a TensorStore,
    from: Names,
    to: Names,
    /// Order of value heads in the result.
    order: HeadMap,
    tensors: Vec<SourceTensor>,
}

/// Rows of value heads, in parts: nothing moves where the order is that of the checkpoint.
fn reordered(matrix: &Matrix, linear: &LinearSpec, order: HeadMap, head: usize, first: usize) -> Vec<Matrix> {
    let mut parts: Vec<Matrix> =
        matrix.slice_rows(0..first).filter(|part| part.rows() > 0).into_iter().collect();
    let pieces = head_pieces(linear, order, head).into_iter();
    parts.extend(pieces.filter_map(|piece| matrix.slice_rows(first + piece.start..first + piece.end)));
    parts
}

/// Where each value head of `width` comes from, in the order of the result.
fn head_pieces(linear: &LinearSpec, order: HeadMap, width: usize) -> Vec<Range<usize>> {
    let (key_heads, each) = (linear.key_heads, linear.value_heads / linear.key_heads);
    (0..linear.value_heads)
        .map(|head| match order {
            HeadMap::Grouped => head,
            HeadMap::Tiled => (head % key_heads) * each + head / key_heads,
        })
        .map(|head| head * width..(head + 1) * width)
        .collect()
}

impl Lister<'_> {
    fn model(&mut self) -> Result<(), QuantizeError> {
        let (vocab, hidden) = (self.spec.vocab, self.spec.hidden);
        self.matrix(Place::Model, Role::Embedding, vocab, hidden)?;
        self.vector(Place::Model, Role::OutputNorm, hidden)?;
        if !self.spec.tied_head {
            self.matrix(Place::Model, Role::Output, vocab, hidden)?;
        }
        let spec = self.spec;
        for (i, layer) in spec.layers.iter().enumerate() {
            self.layer(Place::Layer(i), layer)?;
        }
        match &spec.mtp {
            None => Ok(()),
            Some(mtp) => self.mtp(mtp),
        }
    }

    fn mtp(&mut self, mtp: &MtpSpec) -> Result<(), QuantizeError> {
        let (place, vocab, hidden) = (Place::Mtp, self.spec.vocab, self.spec.hidden);
        self.vector(place, Role::MtpEmbeddingNorm, hidden)?;
        self.vector(place, Role::MtpHiddenNorm, hidden)?;
        self.matrix(place, Role::MtpFc, hidden, 2 * hidden)?;
        if self.has(place, Role::MtpOutputNorm) {
            self.vector(place, Role::MtpOutputNorm, hidden)?;
        }
        if mtp.own_embedding {
            self.matrix(place, Role::MtpEmbedding, vocab, hidden)?;
        }
        if mtp.own_head {
            self.matrix(place, Role::MtpOutput, vocab, hidden)?;
        }
        self.layer(place, &mtp.layer)
    }

    fn layer(&mut self, place: Place, layer: &LayerSpec) -> Result<(), QuantizeError> {
        self.vector(place, Role::MixerNorm, self.spec.hidden)?;
        self.vector(place, Role::FfnNorm, self.spec.hidden)?;
        match &layer.mixer {
            MixerSpec::Linear(linear) => self.linear(place, linear)?,
            MixerSpec::Attention(attention) => self.attention(place, attention)?,
        }
        match &layer.ffn {
            FfnSpec::Dense { width } => self.glu(place, [Role::Gate, Role::Up, Role::Down], *width),
            FfnSpec::Moe(moe) => self.moe(place, moe),
        }
    }

    fn linear(&mut self, place: Place, linear: &LinearSpec) -> Result<(), QuantizeError> {
        let (hidden, heads, order) = (self.spec.hidden, linear.value_heads, self.order);
        let (channels, values) = (linear.conv_channels(), heads * linear.value_dim);
        let keys = channels - values;
        let has_qkvz = self.has(place, Role::LinearQkvz);
        match self.from.input_layout(&self.spec.arch, has_qkvz) {
            InputLayout::ByKeyHead => {
                let both = self.find(place, Role::LinearQkvz, channels + values, hidden)?;
                let (qkv, z) = by_part(&both, linear);
                self.add(place, Role::LinearQkv, &[channels, hidden], qkv);
                self.add(place, Role::LinearZ, &[values, hidden], z);
                self.matrix(place, Role::LinearBetaAlpha, 2 * heads, hidden)?;
            }
            InputLayout::SplitFusedGates => {
                self.matrix(place, Role::LinearQkv, channels, hidden)?;
                self.matrix(place, Role::LinearZ, values, hidden)?;
                self.matrix(place, Role::LinearBetaAlpha, 2 * heads, hidden)?;
            }
            InputLayout::Split => {
                let of_values = [
                    (Role::LinearQkv, channels, linear.value_dim, keys),
                    (Role::LinearZ, values, linear.value_dim, 0),
                    (Role::LinearBeta, heads, 1, 0),
                    (Role::LinearAlpha, heads, 1, 0),
                ];
                for (role, rows, head, first) in of_values {
                    let matrix = self.find(place, role, rows, hidden)?;
                    self.add(place, role, &[rows, hidden], reordered(&matrix, linear, order, head, first));
                }
            }
        }
        let conv = self.find(place, Role::LinearConv, channels, linear.conv_width)?;
        let conv_parts = reordered(&conv, linear, order, linear.value_dim, keys);
        self.add_small(place, Role::LinearConv, &[channels, linear.conv_width], conv_parts);
        for role in [Role::LinearA, Role::LinearDtBias] {
            let vector = self.find(place, role, heads, 1)?;
            self.add_small(place, role, &[heads], reordered(&vector, linear, order, 1, 0));
        }
        self.vector(place, Role::LinearNorm, linear.value_dim)?;
        self.matrix(place, Role::LinearOut, hidden, values)?;
        if order == HeadMap::Tiled
            && linear.key_heads < heads
            && let Some(out) = self.tensors.last_mut()
        {
            out.columns = head_pieces(linear, order, linear.value_dim);
        }
        Ok(())
    }

    fn attention(&mut self, place: Place, attention: &AttentionSpec) -> Result<(), QuantizeError> {
        let (hidden, head_dim) = (self.spec.hidden, attention.head_dim);
        let (queries, keys) = (attention.heads * head_dim, attention.kv_heads * head_dim);
        let query_rows = if attention.output_gate { 2 * queries } else { queries };
        self.matrix(place, Role::Query, query_rows, hidden)?;
        self.matrix(place, Role::Key, keys, hidden)?;
        self.matrix(place, Role::Value, keys, hidden)?;
        self.vector(place, Role::QueryNorm, head_dim)?;
        self.vector(place, Role::KeyNorm, head_dim)?;
        self.matrix(place, Role::AttentionOut, hidden, queries)
    }

    fn glu(&mut self, place: Place, [gate, up, down]: [Role; 3], width: usize) -> Result<(), QuantizeError> {
        self.matrix(place, gate, width, self.spec.hidden)?;
        self.matrix(place, up, width, self.spec.hidden)?;
        self.matrix(place, down, self.spec.hidden, width)
    }

    fn moe(&mut self, place: Place, moe: &MoeSpec) -> Result<(), QuantizeError> {
        let (hidden, count, width) = (self.spec.hidden, moe.experts, moe.expert_width);
        let router = self.find(place, Role::Router, count, hidden)?;
        self.add_small(place, Role::Router, &[count, hidden], vec![router]);
        let (gates, ups, downs) = self.experts(place, moe)?;
        self.add(place, Role::ExpertsGate, &[count, width, hidden], gates);
        self.add(place, Role::ExpertsUp, &[count, width, hidden], ups);
        self.add(place, Role::ExpertsDown, &[count, hidden, width], downs);
        if moe.shared_width > 0 {
            self.glu(place, [Role::SharedGate, Role::SharedUp, Role::SharedDown], moe.shared_width)?;
            let gate = self.find(place, Role::SharedRouter, 1, hidden)?;
            self.add_small(place, Role::SharedRouter, &[1, hidden], vec![gate]);
        }
        Ok(())
    }

    /// Gates, ups and downs of all experts: from one tensor for each expert, or from gate and up stacked together.
    #[allow(clippy::type_complexity)] // three lists of the same kind
    fn experts(
        &self,
        place: Place,
        moe: &MoeSpec,
    ) -> Result<(Vec<Matrix>, Vec<Matrix>, Vec<Matrix>), QuantizeError> {
        let (hidden, count, width) = (self.spec.hidden, moe.experts, moe.expert_width);
        if !self.has(place, Role::ExpertsGateUp) {
            let all = |role: fn(usize) -> Role, rows, cols| {
                (0..count).map(|i| self.find(place, role(i), rows, cols)).collect::<Result<Vec<_>, _>>()
            };
            let (gates, ups) = (all(Role::ExpertGate, width, hidden)?, all(Role::ExpertUp, width, hidden)?);
            return Ok((gates, ups, all(Role::ExpertDown, hidden, width)?));
        }
        let both = self.store.stack(&self.name(place, Role::ExpertsGateUp), count, 2 * width, hidden)?;
        let half =
            |rows: Range<usize>| both.iter().filter_map(|both| both.slice_rows(rows.clone())).collect();
        let downs = self.store.stack(&self.name(place, Role::ExpertsDown), count, hidden, width)?;
        Ok((half(0..width), half(width..2 * width), downs))
    }

    fn name(&self, place: Place, role: Role) -> String {
        self.from.name(place, role).unwrap_or_else(|| format!("{role:?}"))
    }

    fn has(&self, place: Place, role: Role) -> bool {
        self.from.name(place, role).is_some_and(|name| self.store.has(&name))
    }

    fn find(&self, place: Place, role: Role, rows: usize, cols: usize) -> Result<Matrix, QuantizeError> {
        Ok(self.store.matrix(&self.name(place, role), rows, cols)?)
    }

    fn matrix(&mut self, place: Place, role: Role, rows: usize, cols: usize) -> Result<(), QuantizeError> {
        let matrix = self.find(place, role, rows, cols)?;
        self.add(place, role, &[rows, cols], vec![matrix]);
        Ok(())
    }

    fn vector(&mut self, place: Place, role: Role, len: usize) -> Result<(), QuantizeError> {
        let vector = self.find(place, role, len, 1)?;
        self.add_small(place, role, &[len], vec![vector]);
        Ok(())
    }

    fn add(&mut self, place: Place, role: Role, shape: &[usize], parts: Vec<Matrix>) {
        let name = self.to.name(place, role).unwrap_or_else(|| format!("{role:?}"));
        self.tensors.push(SourceTensor::new(name, shape.to_vec(), parts));
    }

    /// A small tensor: kept in single precision, with what converters do to its values.
    fn add_small(&mut self, place: Place, role: Role, shape: &[usize], parts: Vec<Matrix>) {
        self.add(place, role, shape, parts);
        let transform = self.from.transform(role);
        if let Some(tensor) = self.tensors.last_mut() {
            (tensor.format, tensor.transform) = (QFormat::F32, transform);
        }
    }
}

/// Queries, keys and values of all key heads, and the gates of all, from rows interleaved by key head.
fn by_part(both: &Matrix, linear: &LinearSpec) -> (Vec<Matrix>, Vec<Matrix>) {
    let values = linear.value_heads / linear.key_heads * linear.value_dim;
    let group = 2 * linear.key_dim + 2 * values;
    let part = |first: usize, rows: usize| {
        (0..linear.key_heads)
            .filter_map(move |head| both.slice_rows(head * group + first..head * group + first + rows))
    };
    let (queries, keys) = (part(0, linear.key_dim), part(linear.key_dim, linear.key_dim));
    let qkv = queries.chain(keys).chain(part(2 * linear.key_dim, values)).collect();
    (qkv, part(2 * linear.key_dim + values, values).collect())
}
