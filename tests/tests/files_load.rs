//! Every kind of file that models come in loads into the same model: the specification is the one the generator wrote
//! down, the weights are the checkpoint's own values.

use std::path::{Path, PathBuf};

use millpond::file::mmap::Access;
use millpond::load::{
    LoadError, LoadOptions, LoadedModel, TokenizerSource, inspect, load_built_in, load_model,
};
use millpond::weights::{FfnWeights, LayerWeights, LinearInput, LinearWeights, Matrix, MixerWeights};
use millpond_models::{AttentionSpec, FfnSpec, HeadMap, LinearSpec, MixerSpec, MoeSpec};
use millpond_simd::quant::{QFormat, dequantize_row};

fn data(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("data").join(path)
}

fn load(path: &str) -> LoadedModel {
    load_model(&data(path), &LoadOptions::default()).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn linear_spec(model: &LoadedModel) -> &LinearSpec {
    model.spec.layers.iter().find_map(|layer| layer.mixer.as_linear()).unwrap()
}

fn attention_spec(model: &LoadedModel) -> &AttentionSpec {
    model.spec.layers.iter().find_map(|layer| layer.mixer.as_attention()).unwrap()
}

/// `L` for each linear layer, `A` for each attention layer.
fn pattern(model: &LoadedModel) -> String {
    let letter = |mixer: &MixerSpec| match mixer {
        MixerSpec::Linear(_) => 'L',
        MixerSpec::Attention(_) => 'A',
    };
    model.spec.layers.iter().map(|layer| letter(&layer.mixer)).collect()
}

fn values(matrix: &Matrix) -> Vec<f32> {
    let mut out = vec![0.0; matrix.rows() * matrix.cols()];
    dequantize_row(matrix.format(), matrix.bytes(), &mut out).unwrap();
    out
}

/// Value heads of `row` values each, from tiled order to grouped order.
fn grouped(tiled: &[f32], linear: &LinearSpec, row: usize) -> Vec<f32> {
    let (keys, share) = (linear.key_heads, linear.value_heads / linear.key_heads);
    let head = |key: usize, i: usize| &tiled[(i * keys + key) * row..(i * keys + key + 1) * row];
    (0..keys).flat_map(|key| (0..share).flat_map(move |i| head(key, i).iter().copied())).collect()
}

fn linear_weights(layer: &LayerWeights) -> &LinearWeights {
    match &layer.mixer {
        MixerWeights::Linear(linear) => linear,
        MixerWeights::Attention(_) => panic!("a linear layer expected"),
    }
}

fn split(input: &LinearInput) -> [&Matrix; 4] {
    match input {
        LinearInput::Split { qkv, z, beta, alpha } => [qkv, z, beta, alpha],
        other => panic!("split projections expected, not {other:?}"),
    }
}

#[test]
fn specifications_are_those_of_the_generator() {
    let model = load("forms/qwen35-wrapper");
    let spec = &model.spec;
    assert_eq!((spec.arch.as_str(), spec.vocab, spec.tied_head), ("qwen35", 320, true));
    assert_eq!(pattern(&model), "LLLA");
    let linear = linear_spec(&model);
    assert_eq!((linear.key_heads, linear.value_heads, linear.conv_width), (2, 6, 4));
    assert_eq!(linear.head_map, HeadMap::Grouped);
    assert!(spec.mtp.as_ref().is_some_and(|mtp| !mtp.own_embedding && !mtp.own_head));

    let model = load("forms/qwen35-moe-wrapper");
    assert_eq!((model.spec.arch.as_str(), model.spec.tied_head), ("qwen35moe", false));
    assert_eq!(model.files.len(), 3);
    assert!(matches!(model.spec.layers[0].ffn, FfnSpec::Moe(MoeSpec { normalize_weights: true, .. })));

    let model = load("forms/qwen3-next-mtp");
    assert_eq!(model.spec.arch, "qwen3next");
    assert_eq!((linear_spec(&model).key_heads, linear_spec(&model).value_heads), (2, 6));
    assert!(model.spec.mtp.is_some());
    assert!(matches!(linear_weights(&model.weights.layers[0]).input, LinearInput::ByKeyHead { .. }));

    let model = load("forms/qwen35-plain");
    let (linear, attention) = (linear_spec(&model), attention_spec(&model));
    assert_eq!(pattern(&model), "LAL");
    assert_eq!(linear.value_dim, 2 * linear.key_dim);
    assert_eq!(linear.conv_width, 3);
    assert_eq!(attention.rope_theta, 5e5);
    assert_eq!(attention.rotary_dim * 2, attention.head_dim);
    assert!(model.spec.mtp.is_none());
}

#[test]
fn golden_checkpoints_load() {
    for (name, arch, layers) in [
        ("qwen35-dense", "qwen35", "LLLA"),
        ("qwen35-untied", "qwen35", "LLLALLLA"),
        ("qwen35-real-heads", "qwen35", "LLLA"),
        ("qwen35-moe", "qwen35moe", "LLLA"),
        ("qwen3-next", "qwen3next", "LLLA"),
    ] {
        let model = load(&format!("golden/{name}"));
        assert_eq!(model.spec.arch, arch, "{name}");
        assert_eq!(pattern(&model), layers, "{name}");
        assert!(matches!(model.tokenizer, TokenizerSource::Absent), "{name}");
    }
}

/// The checkpoint and its GGUF conversions: equal but for names, the arch's head order and where the MTP head lies.
#[test]
fn gguf_specifications_are_those_of_their_checkpoints() {
    let pairs = [
        ("forms/qwen35-wrapper", "forms/gguf/qwen35-f32.gguf", HeadMap::Tiled),
        ("forms/qwen35-wrapper", "forms/gguf/qwen35-bf16.gguf", HeadMap::Tiled),
        ("forms/qwen35-moe-wrapper", "forms/gguf/qwen35moe-bf16-00001-of-00003.gguf", HeadMap::Tiled),
        ("forms/qwen3-next-mtp", "forms/gguf/qwen3next-bf16.gguf", HeadMap::Grouped),
    ];
    for (folder, file, head_map) in pairs {
        let (folder, gguf) = (load(folder), load(file));
        let mut expected = folder.spec.clone();
        for layer in &mut expected.layers {
            if let MixerSpec::Linear(linear) = &mut layer.mixer {
                linear.head_map = head_map;
            }
        }
        assert_eq!(gguf.spec, expected, "{file}");
        assert!(matches!(gguf.tokenizer, TokenizerSource::Gguf(_)), "{file}");
        assert!(matches!(folder.tokenizer, TokenizerSource::Folder(_)), "{file}");
    }
}

/// In a float GGUF the values are the checkpoint's, so each transformation can be held against the converter's.
#[test]
fn values_of_a_gguf_are_those_of_its_checkpoint() {
    for file in ["forms/gguf/qwen35-f32.gguf", "forms/gguf/qwen35-bf16.gguf"] {
        let (folder, gguf) = (load("forms/qwen35-wrapper"), load(file));
        let spec = linear_spec(&gguf).clone();
        let queries_and_keys = 2 * spec.key_heads * spec.key_dim;
        assert_eq!(folder.weights.output_norm, gguf.weights.output_norm);
        assert_eq!(values(&folder.weights.embedding), values(&gguf.weights.embedding));
        for (a, b) in folder.weights.layers.iter().zip(&gguf.weights.layers) {
            assert_eq!((&a.mixer_norm, &a.ffn_norm), (&b.mixer_norm, &b.ffn_norm));
            let (MixerWeights::Linear(a), MixerWeights::Linear(b)) = (&a.mixer, &b.mixer) else { continue };
            assert_eq!(a.dt_bias, grouped(&b.dt_bias, &spec, 1));
            assert_eq!(a.norm, b.norm);
            let close = |(a, b): (&f32, &f32)| (a - b).abs() <= 4.0 * f32::EPSILON * a.abs();
            assert!(a.a.iter().zip(&grouped(&b.a, &spec, 1)).all(close), "{:?} {:?}", a.a, b.a);
            assert!(a.a.iter().all(|&a| a < 0.0));
            let cut = queries_and_keys * spec.conv_width;
            assert_eq!(a.conv[..cut], b.conv[..cut]);
            assert_eq!(a.conv[cut..], grouped(&b.conv[cut..], &spec, spec.value_dim * spec.conv_width));
            let ([qkv, z, beta, alpha], [b_qkv, b_z, b_beta, b_alpha]) = (split(&a.input), split(&b.input));
            let (qkv, b_qkv, cols) = (values(qkv), values(b_qkv), qkv.cols());
            let cut = queries_and_keys * cols;
            assert_eq!(qkv[..cut], b_qkv[..cut]);
            assert_eq!(qkv[cut..], grouped(&b_qkv[cut..], &spec, spec.value_dim * cols));
            assert_eq!(values(z), grouped(&values(b_z), &spec, spec.value_dim * cols));
            assert_eq!(values(beta), grouped(&values(b_beta), &spec, cols));
            assert_eq!(values(alpha), grouped(&values(b_alpha), &spec, cols));
        }
        let (a, b) = (folder.weights.mtp.as_ref().unwrap(), gguf.weights.mtp.as_ref().unwrap());
        assert_eq!((&a.embedding_norm, &a.hidden_norm), (&b.embedding_norm, &b.hidden_norm));
        assert_eq!(a.output_norm, b.output_norm);
        assert_eq!(values(&a.fc), values(&b.fc));
    }
}

#[test]
fn experts_are_the_same_however_they_are_stored() {
    for (folder, file) in [
        ("forms/qwen35-moe-wrapper", "forms/gguf/qwen35moe-bf16-00001-of-00003.gguf"),
        ("forms/qwen3-next-mtp", "forms/gguf/qwen3next-bf16.gguf"),
    ] {
        let (folder, gguf) = (load(folder), load(file));
        for (a, b) in folder.weights.layers.iter().zip(&gguf.weights.layers) {
            let (FfnWeights::Moe(a), FfnWeights::Moe(b)) = (&a.ffn, &b.ffn) else {
                panic!("experts expected")
            };
            assert_eq!(values(&a.router), values(&b.router));
            assert_eq!(a.experts.len(), b.experts.len());
            for (a, b) in a.experts.iter().zip(&b.experts) {
                assert_eq!(values(&a.gate), values(&b.gate));
                assert_eq!(values(&a.up), values(&b.up));
                assert_eq!(values(&a.down), values(&b.down));
            }
            let ((a, a_gate), (b, b_gate)) = (a.shared.as_ref().unwrap(), b.shared.as_ref().unwrap());
            assert_eq!(values(a_gate), values(b_gate));
            assert_eq!(values(&a.up), values(&b.up));
        }
    }
}

#[test]
fn a_prediction_head_may_come_in_its_own_file() {
    let trunk = load("forms/gguf/qwen35-trunk-v2.gguf");
    assert!(trunk.spec.mtp.is_none() && trunk.weights.mtp.is_none());
    let mtp = Some(data("forms/gguf/mtp-qwen35-bf16.gguf"));
    let options = LoadOptions { mtp, ..LoadOptions::default() };
    let both = load_model(&data("forms/gguf/qwen35-trunk-v2.gguf"), &options).unwrap();
    let inside = load("forms/gguf/qwen35-bf16.gguf");
    assert_eq!(both.spec, inside.spec);
    let (a, b) = (both.weights.mtp.unwrap(), inside.weights.mtp.unwrap());
    assert_eq!(a.hidden_norm, b.hidden_norm);
    assert_eq!(values(&a.fc), values(&b.fc));
    assert_eq!(both.files.len(), 2);

    // The head of another model does not fit.
    let error = load_model(&data("golden/qwen35-dense"), &options).unwrap_err();
    assert!(matches!(error, LoadError::MtpMismatch { .. }), "{error}");
    // A model without a head is no file of a head.
    let options =
        LoadOptions { mtp: Some(data("forms/gguf/qwen35-trunk-v2.gguf")), ..LoadOptions::default() };
    let error = load_model(&data("forms/gguf/qwen35-trunk-v2.gguf"), &options).unwrap_err();
    assert!(matches!(error, LoadError::NoMtp { .. }), "{error}");
    // The head alone is no model.
    let error = load_model(&data("forms/gguf/mtp-qwen35-bf16.gguf"), &LoadOptions::default()).unwrap_err();
    assert!(error.to_string().contains("`blk.0."), "{error}");
}

#[test]
fn reading_into_memory_gives_the_same_model() {
    let options = LoadOptions { access: Access::Read, ..LoadOptions::default() };
    for path in ["forms/qwen35-moe-wrapper", "forms/gguf/qwen35moe-bf16-00001-of-00003.gguf"] {
        let (mapped, read) = (load(path), load_model(&data(path), &options).unwrap());
        assert_eq!(mapped.spec, read.spec);
        assert_eq!(mapped.weights.output.bytes(), read.weights.output.bytes());
    }
}

#[test]
fn a_file_of_a_folder_means_the_folder() {
    for file in ["model.safetensors.index.json", "model-00002-of-00003.safetensors", "config.json"] {
        assert_eq!(
            load(&format!("forms/qwen35-moe-wrapper/{file}")).spec,
            load("forms/qwen35-moe-wrapper").spec
        );
    }
}

#[test]
fn the_built_in_model_loads() {
    static MODEL: &[u8] = include_bytes!("../../server/assets/delta-48m-Q4_K_M.gguf");
    let model = load_built_in(MODEL).unwrap();
    let config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(data("delta48m/config.json")).unwrap()).unwrap();
    let number = |key: &str| config[key].as_u64().unwrap() as usize;
    assert_eq!(model.spec.hidden, number("hidden_size"));
    assert_eq!(model.spec.vocab, number("vocab_size"));
    assert_eq!(model.spec.layers.len(), number("num_hidden_layers"));
    assert_eq!(model.spec.context, number("max_position_embeddings"));
    assert_eq!(linear_spec(&model).value_heads, number("linear_num_value_heads"));
    assert_eq!(attention_spec(&model).head_dim, number("head_dim"));
    assert!(model.spec.tied_head && model.spec.mtp.is_some());
    assert_eq!(model.weights.embedding.format(), QFormat::Q6K);
    let TokenizerSource::Gguf(text) = &model.tokenizer else { panic!("a tokenizer expected") };
    assert_eq!(text.vocabulary.tokens.len(), model.spec.vocab);
    assert_eq!((text.vocabulary.eos, text.vocabulary.pad), (Some(2), Some(0)));
    assert!(text.chat_template.as_ref().is_some_and(|template| template.contains("<|im_start|>")));
}

#[test]
fn inspection_tells_what_running_needs() {
    let seen = inspect(&data("../../server/assets/delta-48m-Q4_K_M.gguf")).unwrap();
    assert_eq!((seen.format.as_str(), seen.architecture.as_deref()), ("GGUF version 3", Some("qwen35")));
    assert_eq!(seen.problem, None);
    let model = seen.model.unwrap();
    assert_eq!((model.layers, model.linear_layers, model.attention_layers), (12, 9, 3));
    assert_eq!(model.linear_heads, Some([2, 4, 128, 128]));
    assert_eq!(model.attention_heads, Some([4, 1, 128]));
    // Nine layers of four heads of 128 x 128 in f32; a key of 2 heads, a delta and a gate of 4 for each token.
    assert_eq!(model.state_bytes, 9 * 4 * 128 * 128 * 4);
    assert_eq!(model.log_bytes_per_token, 9 * (2 * 128 + 4 * (128 + 1)) * 4);
    // The figure of the model's own description: 47.7 million, prediction head included.
    assert_eq!((model.parameters as f64 / 1e5).round(), 477.0);
    assert_eq!(seen.tensors.len(), 176);
    assert_eq!(seen.types.iter().map(|share| share.tensors).sum::<usize>(), 176);
    assert_eq!(seen.types.iter().map(|share| share.bytes).sum::<u64>(), model.weight_bytes);
    assert!(seen.metadata.iter().any(|(key, value)| key == "qwen35.block_count" && value == "13"));

    let seen = inspect(&data("forms/qwen35-moe-wrapper")).unwrap();
    assert_eq!((seen.format.as_str(), seen.architecture.as_deref()), ("safetensors", Some("qwen3_5_moe")));
    assert_eq!(seen.files.len(), 3);
    assert!(seen.model.is_some_and(|model| model.experts.is_some() && model.mtp));
    assert!(
        serde_json::to_string(&inspect(&data("forms/qwen35-plain")).unwrap()).unwrap().contains("\"BF16\"")
    );

    // A file that is no whole model is described all the same.
    let seen = inspect(&data("forms/gguf/mtp-qwen35-bf16.gguf")).unwrap();
    assert!(seen.model.is_none());
    assert!(seen.problem.is_some_and(|problem| problem.contains("`blk.0.")));
    assert!(!seen.tensors.is_empty());
}
