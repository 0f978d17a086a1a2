//! The smallest files that are whole models, made from a specification, with every part open to being made wrong.

use std::path::Path;

use millpond::file::GgmlType;
use millpond::file::gguf_write::{GgufWriter, OwnedValue};
use millpond_models::names::{InputLayout, Names, Place, Role};
use millpond_models::{
    AttentionSpec, Decay, FfnSpec, HeadMap, LayerSpec, LinearSpec, MixerSpec, ModelSpec, MoeSpec, MtpSpec,
    Write,
};
use millpond_simd::quant::QFormat;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};

/// A tensor of a tiny file; its data are zeros.
#[derive(Clone, Debug)]
pub struct TinyTensor {
    /// Its name.
    pub name: String,
    /// Its shape, the outermost dimension first.
    pub shape: Vec<usize>,
    /// Whether it is a matrix (of any format) and not a vector (of floats).
    pub is_matrix: bool,
}

/// A model of two layers, one of each mixer, and a prediction head. Widths are multiples of 32 but for the value heads'
/// gates, so that blocks of 32 fit every matrix.
pub fn tiny_spec(arch: &str) -> ModelSpec {
    let linear = LinearSpec {
        key_heads: 1,
        value_heads: 2,
        key_dim: 16,
        value_dim: 16,
        conv_width: 2,
        decay: Decay::PerHead,
        write: Write::Delta { beta_max: 1.0 },
        head_map: HeadMap::Grouped,
    };
    let attention = AttentionSpec {
        heads: 2,
        kv_heads: 1,
        head_dim: 16,
        rotary_dim: 4,
        rope_theta: 1e4,
        output_gate: true,
    };
    let ffn = match arch {
        "qwen35" => FfnSpec::Dense { width: 32 },
        _ => FfnSpec::Moe(MoeSpec {
            experts: 2,
            top_k: 1,
            expert_width: 32,
            shared_width: 32,
            normalize_weights: true,
        }),
    };
    let attention_layer = LayerSpec { mixer: MixerSpec::Attention(attention), ffn: ffn.clone() };
    ModelSpec {
        arch: arch.to_owned(),
        hidden: 32,
        vocab: 8,
        context: 64,
        norm_eps: 1e-6,
        layers: vec![LayerSpec { mixer: MixerSpec::Linear(linear), ffn }, attention_layer.clone()],
        tied_head: false,
        mtp: Some(MtpSpec { layer: attention_layer, own_embedding: false, own_head: false }),
    }
}

/// The names in a GGUF file of [`tiny_spec`].
pub const GGUF_NAMES: Names = Names::Gguf { layers: 2 };

/// The names in a folder of [`tiny_spec`].
pub const FOLDER_NAMES: Names = Names::HuggingFace { prefix: "model.", head: "lm_head.weight", mtp: "mtp." };

/// Every tensor a file of a model has.
pub fn tensors(spec: &ModelSpec, names: &Names) -> Vec<TinyTensor> {
    let mut list = Lister { spec, names, tensors: Vec::new() };
    list.model();
    list.tensors
}

struct Lister<'a> {
    spec: &'a ModelSpec,
    names: &'a Names,
    tensors: Vec<TinyTensor>,
}

impl Lister<'_> {
    fn add(&mut self, place: Place, role: Role, shape: &[usize], is_matrix: bool) {
        let name = self.names.name(place, role).expect("this kind of file has such a tensor");
        self.tensors.push(TinyTensor { name, shape: shape.to_vec(), is_matrix });
    }

    fn matrix(&mut self, place: Place, role: Role, rows: usize, cols: usize) {
        self.add(place, role, &[rows, cols], true);
    }

    fn vector(&mut self, place: Place, role: Role, shape: &[usize]) {
        self.add(place, role, shape, false);
    }

    fn model(&mut self) {
        let (vocab, hidden) = (self.spec.vocab, self.spec.hidden);
        self.matrix(Place::Model, Role::Embedding, vocab, hidden);
        self.vector(Place::Model, Role::OutputNorm, &[hidden]);
        if !self.spec.tied_head {
            self.matrix(Place::Model, Role::Output, vocab, hidden);
        }
        for (i, layer) in self.spec.layers.iter().enumerate() {
            self.layer(Place::Layer(i), layer);
        }
        if let Some(mtp) = &self.spec.mtp {
            self.vector(Place::Mtp, Role::MtpEmbeddingNorm, &[hidden]);
            self.vector(Place::Mtp, Role::MtpHiddenNorm, &[hidden]);
            self.matrix(Place::Mtp, Role::MtpFc, hidden, 2 * hidden);
            self.vector(Place::Mtp, Role::MtpOutputNorm, &[hidden]);
            self.layer(Place::Mtp, &mtp.layer);
        }
    }

    fn layer(&mut self, place: Place, layer: &LayerSpec) {
        let hidden = self.spec.hidden;
        self.vector(place, Role::MixerNorm, &[hidden]);
        self.vector(place, Role::FfnNorm, &[hidden]);
        match &layer.mixer {
            MixerSpec::Linear(linear) => self.linear(place, linear),
            MixerSpec::Attention(attention) => self.attention(place, attention),
        }
        match &layer.ffn {
            FfnSpec::Dense { width } => self.glu(place, [Role::Gate, Role::Up, Role::Down], *width),
            FfnSpec::Moe(moe) => self.moe(place, moe),
        }
    }

    fn linear(&mut self, place: Place, linear: &LinearSpec) {
        let (hidden, heads) = (self.spec.hidden, linear.value_heads);
        let (channels, values) = (linear.conv_channels(), heads * linear.value_dim);
        match self.names.input_layout(&self.spec.arch, false) {
            InputLayout::Split => {
                self.matrix(place, Role::LinearQkv, channels, hidden);
                self.matrix(place, Role::LinearZ, values, hidden);
                self.matrix(place, Role::LinearBeta, heads, hidden);
                self.matrix(place, Role::LinearAlpha, heads, hidden);
            }
            InputLayout::ByKeyHead => {
                self.matrix(place, Role::LinearQkvz, channels + values, hidden);
                self.matrix(place, Role::LinearBetaAlpha, 2 * heads, hidden);
            }
            InputLayout::SplitFusedGates => {
                self.matrix(place, Role::LinearQkv, channels, hidden);
                self.matrix(place, Role::LinearZ, values, hidden);
                self.matrix(place, Role::LinearBetaAlpha, 2 * heads, hidden);
            }
        }
        self.vector(place, Role::LinearConv, &[channels, linear.conv_width]);
        self.vector(place, Role::LinearA, &[heads]);
        self.vector(place, Role::LinearDtBias, &[heads]);
        self.vector(place, Role::LinearNorm, &[linear.value_dim]);
        self.matrix(place, Role::LinearOut, hidden, values);
    }

    fn attention(&mut self, place: Place, attention: &AttentionSpec) {
        let (hidden, head_dim) = (self.spec.hidden, attention.head_dim);
        let (queries, keys) = (attention.heads * head_dim, attention.kv_heads * head_dim);
        self.matrix(place, Role::Query, 2 * queries, hidden);
        self.matrix(place, Role::Key, keys, hidden);
        self.matrix(place, Role::Value, keys, hidden);
        self.vector(place, Role::QueryNorm, &[head_dim]);
        self.vector(place, Role::KeyNorm, &[head_dim]);
        self.matrix(place, Role::AttentionOut, hidden, queries);
    }

    fn glu(&mut self, place: Place, [gate, up, down]: [Role; 3], width: usize) {
        self.matrix(place, gate, width, self.spec.hidden);
        self.matrix(place, up, width, self.spec.hidden);
        self.matrix(place, down, self.spec.hidden, width);
    }

    fn moe(&mut self, place: Place, moe: &MoeSpec) {
        let (hidden, count, width) = (self.spec.hidden, moe.experts, moe.expert_width);
        self.matrix(place, Role::Router, count, hidden);
        if matches!(self.names, Names::Gguf { .. }) {
            self.add(place, Role::ExpertsGate, &[count, width, hidden], true);
            self.add(place, Role::ExpertsUp, &[count, width, hidden], true);
            self.add(place, Role::ExpertsDown, &[count, hidden, width], true);
        } else {
            for i in 0..count {
                self.glu(place, [Role::ExpertGate(i), Role::ExpertUp(i), Role::ExpertDown(i)], width);
            }
        }
        self.glu(place, [Role::SharedGate, Role::SharedUp, Role::SharedDown], moe.shared_width);
        self.matrix(place, Role::SharedRouter, 1, hidden);
    }
}

/// The metadata of a GGUF file of [`tiny_spec`], with a tokenizer of `vocab` tokens.
pub fn gguf_metadata(spec: &ModelSpec) -> Vec<(String, OwnedValue)> {
    let arch = &spec.arch;
    let linear = spec.layers.iter().find_map(|layer| layer.mixer.as_linear()).expect("a linear layer");
    let attention =
        spec.layers.iter().find_map(|layer| layer.mixer.as_attention()).expect("an attention layer");
    let blocks = spec.layers.len() + usize::from(spec.mtp.is_some());
    let mut keys = vec![
        ("general.architecture".to_owned(), OwnedValue::String(arch.clone())),
        (format!("{arch}.attention.layer_norm_rms_epsilon"), OwnedValue::F32(spec.norm_eps)),
        (format!("{arch}.rope.freq_base"), OwnedValue::F32(attention.rope_theta)),
    ];
    let mut number =
        |key: &str, value: usize| keys.push((format!("{arch}.{key}"), OwnedValue::U32(value as u32)));
    number("block_count", blocks);
    number("context_length", spec.context);
    number("embedding_length", spec.hidden);
    number("nextn_predict_layers", usize::from(spec.mtp.is_some()));
    number("full_attention_interval", 2);
    number("attention.head_count", attention.heads);
    number("attention.head_count_kv", attention.kv_heads);
    number("attention.key_length", attention.head_dim);
    number("attention.value_length", attention.head_dim);
    number("rope.dimension_count", attention.rotary_dim);
    number("ssm.conv_kernel", linear.conv_width);
    number("ssm.state_size", linear.key_dim);
    number("ssm.group_count", linear.key_heads);
    number("ssm.time_step_rank", linear.value_heads);
    number("ssm.inner_size", linear.value_heads * linear.value_dim);
    match &spec.layers[0].ffn {
        FfnSpec::Dense { width } => number("feed_forward_length", *width),
        FfnSpec::Moe(moe) => {
            number("expert_count", moe.experts);
            number("expert_used_count", moe.top_k);
            number("expert_feed_forward_length", moe.expert_width);
            number("expert_shared_feed_forward_length", moe.shared_width);
        }
    }
    keys.extend(tokenizer_metadata(spec.vocab));
    keys
}

fn tokenizer_metadata(vocab: usize) -> Vec<(String, OwnedValue)> {
    let tokens: Vec<String> = ["<|end|>", "a", "b", "c", "ab", "abc"].map(str::to_owned).to_vec();
    let unused = (tokens.len()..vocab).map(|id| format!("[PAD{id}]"));
    let types = (0..vocab)
        .map(|id| {
            if id == 0 {
                3
            } else if id < tokens.len() {
                1
            } else {
                5
            }
        })
        .collect();
    let tokens = tokens.iter().cloned().chain(unused).collect();
    [
        ("model", OwnedValue::String("gpt2".to_owned())),
        ("pre", OwnedValue::String("qwen2".to_owned())),
        ("tokens", OwnedValue::Strings(tokens)),
        ("token_type", OwnedValue::I32s(types)),
        ("merges", OwnedValue::Strings(vec!["a b".to_owned(), "ab c".to_owned()])),
        ("eos_token_id", OwnedValue::U32(0)),
    ]
    .map(|(key, value)| (format!("tokenizer.ggml.{key}"), value))
    .to_vec()
}

/// A GGUF file of zeros.
pub fn gguf(metadata: &[(String, OwnedValue)], tensors: &[(TinyTensor, GgmlType)]) -> Vec<u8> {
    let mut writer = GgufWriter::new();
    for (key, value) in metadata {
        writer.set(key, value.clone());
    }
    let mut data = Vec::new();
    for (tensor, kind) in tensors {
        writer.add_tensor(&tensor.name, &tensor.shape, *kind).expect("the format fits the shape");
        let dims: Vec<u64> = tensor.shape.iter().rev().map(|&dim| dim as u64).collect();
        data.push(vec![0u8; kind.bytes_of(&dims).expect("a size") as usize]);
    }
    writer.to_bytes(&data).expect("writing to memory")
}

/// All tensors as F32.
pub fn as_f32(tensors: Vec<TinyTensor>) -> Vec<(TinyTensor, GgmlType)> {
    tensors.into_iter().map(|tensor| (tensor, QFormat::F32.into())).collect()
}

/// The whole GGUF file of a tiny model.
pub fn tiny_gguf(arch: &str) -> Vec<u8> {
    let spec = tiny_spec(arch);
    gguf(&gguf_metadata(&spec), &as_f32(tensors(&spec, &GGUF_NAMES)))
}

/// The `config.json` of [`tiny_spec`].
pub fn config(spec: &ModelSpec) -> Value {
    let linear = spec.layers.iter().find_map(|layer| layer.mixer.as_linear()).expect("a linear layer");
    let attention =
        spec.layers.iter().find_map(|layer| layer.mixer.as_attention()).expect("an attention layer");
    let model_type = match spec.arch.as_str() {
        "qwen35" => "qwen3_5_text",
        "qwen35moe" => "qwen3_5_moe_text",
        _ => "qwen3_next",
    };
    let mut config = json!({
        "model_type": model_type,
        "full_attention_interval": 2,
        "head_dim": attention.head_dim,
        "hidden_act": "silu",
        "hidden_size": spec.hidden,
        "linear_conv_kernel_dim": linear.conv_width,
        "linear_key_head_dim": linear.key_dim,
        "linear_num_key_heads": linear.key_heads,
        "linear_num_value_heads": linear.value_heads,
        "linear_value_head_dim": linear.value_dim,
        "max_position_embeddings": spec.context,
        "num_attention_heads": attention.heads,
        "num_hidden_layers": spec.layers.len(),
        "num_key_value_heads": attention.kv_heads,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"partial_rotary_factor": 0.25, "rope_theta": 10000.0, "rope_type": "default"},
        "tie_word_embeddings": spec.tied_head,
        "vocab_size": spec.vocab,
        "eos_token_id": 0,
    });
    match &spec.layers[0].ffn {
        FfnSpec::Dense { width } => config["intermediate_size"] = json!(width),
        FfnSpec::Moe(moe) => {
            config["num_experts"] = json!(moe.experts);
            config["num_experts_per_tok"] = json!(moe.top_k);
            config["moe_intermediate_size"] = json!(moe.expert_width);
            config["shared_expert_intermediate_size"] = json!(moe.shared_width);
        }
    }
    config
}

/// A safetensors file of zeros.
pub fn safetensors(tensors: &[(TinyTensor, Dtype)]) -> Vec<u8> {
    let size =
        |tensor: &TinyTensor, dtype: Dtype| tensor.shape.iter().product::<usize>() * dtype.bitsize() / 8;
    let largest = tensors.iter().map(|(tensor, dtype)| size(tensor, *dtype)).max().unwrap_or(0);
    let zeros = vec![0u8; largest];
    let views = tensors.iter().map(|(tensor, dtype)| {
        let bytes = &zeros[..size(tensor, *dtype)];
        (tensor.name.clone(), TensorView::new(*dtype, tensor.shape.clone(), bytes).expect("sizes agree"))
    });
    safetensors::serialize(views, None).expect("writing to memory")
}

/// All tensors as BF16.
pub fn as_bf16(tensors: Vec<TinyTensor>) -> Vec<(TinyTensor, Dtype)> {
    tensors.into_iter().map(|tensor| (tensor, Dtype::BF16)).collect()
}

/// Writes a checkpoint folder.
pub fn write_folder(folder: &Path, config: &Value, weights: &[u8]) {
    std::fs::create_dir_all(folder).expect("a folder");
    std::fs::write(folder.join("config.json"), config.to_string()).expect("a file");
    std::fs::write(folder.join("model.safetensors"), weights).expect("a file");
}
