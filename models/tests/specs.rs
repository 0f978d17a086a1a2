//! Specifications from hand-written metadata. Shapes are those of the published models' own configurations.

use std::collections::HashMap;

use millpond_models::fields::Field;
use millpond_models::registry::{from_config, from_gguf};
use millpond_models::{
    AttentionSpec, Decay, FfnSpec, HeadMap, LayerSpec, LinearSpec, MixerSpec, ModelSpec, MoeSpec, MtpSpec,
    SpecError, Write,
};
use serde_json::{Value, json};

type Metadata = HashMap<String, Field<'static>>;

fn metadata(entries: &[(&str, Field<'static>)]) -> Metadata {
    entries.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect()
}

/// Qwen3.5-0.8B as llama.cpp's converter describes it.
fn qwen35_small() -> Metadata {
    use Field::{Float, Integer, LongArray, Text};
    metadata(&[
        ("general.architecture", Text("qwen35")),
        ("qwen35.block_count", Integer(25)),
        ("qwen35.context_length", Integer(262_144)),
        ("qwen35.embedding_length", Integer(1024)),
        ("qwen35.feed_forward_length", Integer(3584)),
        ("qwen35.attention.head_count", Integer(8)),
        ("qwen35.attention.head_count_kv", Integer(2)),
        ("qwen35.attention.key_length", Integer(256)),
        ("qwen35.attention.value_length", Integer(256)),
        ("qwen35.attention.layer_norm_rms_epsilon", Float(1e-6)),
        ("qwen35.rope.freq_base", Float(1e7)),
        ("qwen35.rope.dimension_count", Integer(64)),
        ("qwen35.ssm.conv_kernel", Integer(4)),
        ("qwen35.ssm.state_size", Integer(128)),
        ("qwen35.ssm.group_count", Integer(16)),
        ("qwen35.ssm.time_step_rank", Integer(16)),
        ("qwen35.ssm.inner_size", Integer(2048)),
        ("qwen35.nextn_predict_layers", Integer(1)),
        ("tokenizer.ggml.tokens", LongArray(248_320)),
    ])
}

const ATTENTION_SMALL: AttentionSpec = AttentionSpec {
    heads: 8,
    kv_heads: 2,
    head_dim: 256,
    rotary_dim: 64,
    rope_theta: 1e7,
    output_gate: true,
};

fn linear(key_heads: usize, value_heads: usize, head_map: HeadMap) -> LinearSpec {
    LinearSpec {
        key_heads,
        value_heads,
        key_dim: 128,
        value_dim: 128,
        conv_width: 4,
        decay: Decay::PerHead,
        write: Write::Delta { beta_max: 1.0 },
        head_map,
    }
}

/// Three linear layers, then one of attention, and again.
fn layers(count: usize, linear: &LinearSpec, attention: &AttentionSpec, ffn: &FfnSpec) -> Vec<LayerSpec> {
    let mixer = |i: usize| match i % 4 {
        3 => MixerSpec::Attention(attention.clone()),
        _ => MixerSpec::Linear(linear.clone()),
    };
    (0..count).map(|i| LayerSpec { mixer: mixer(i), ffn: ffn.clone() }).collect()
}

fn no_tensor(_: &str) -> bool {
    false
}

fn read(metadata: &Metadata) -> Result<ModelSpec, SpecError> {
    from_gguf(metadata, &|name| name == "blk.24.nextn.eh_proj.weight")
}

#[test]
fn qwen35_from_gguf() {
    let ffn = FfnSpec::Dense { width: 3584 };
    let expected = ModelSpec {
        arch: "qwen35".to_owned(),
        hidden: 1024,
        vocab: 248_320,
        context: 262_144,
        norm_eps: 1e-6,
        layers: layers(24, &linear(16, 16, HeadMap::Tiled), &ATTENTION_SMALL, &ffn),
        tied_head: true,
        mtp: Some(MtpSpec {
            layer: LayerSpec { mixer: MixerSpec::Attention(ATTENTION_SMALL), ffn },
            own_embedding: false,
            own_head: false,
        }),
    };
    assert_eq!(read(&qwen35_small()), Ok(expected));
}

#[test]
fn what_tensors_there_are_decides_about_heads() {
    let spec = from_gguf(&qwen35_small(), &|name| name == "output.weight").unwrap();
    assert!(!spec.tied_head && spec.mtp.is_none());
    let spec = from_gguf(&qwen35_small(), &|_| true).unwrap();
    assert!(spec.mtp.is_some_and(|mtp| mtp.own_embedding && mtp.own_head));
}

#[test]
fn the_layers_may_be_listed() {
    let mut metadata = qwen35_small();
    let listed = (0..25).map(|i| Field::Bool(i % 3 == 0)).collect();
    metadata.insert("qwen35.attention.recurrent_layers".to_owned(), Field::Array(listed));
    let spec = read(&metadata).unwrap();
    assert_eq!(spec.layers.len(), 24);
    for (i, layer) in spec.layers.iter().enumerate() {
        assert_eq!(matches!(layer.mixer, MixerSpec::Linear(_)), i % 3 == 0, "layer {i}");
    }
}

#[test]
fn the_interval_may_be_given() {
    for interval in [1, 2, 24, 100] {
        let mut metadata = qwen35_small();
        metadata.insert("qwen35.full_attention_interval".to_owned(), Field::Integer(interval));
        for (i, layer) in read(&metadata).unwrap().layers.iter().enumerate() {
            let attention = matches!(layer.mixer, MixerSpec::Attention(_));
            assert_eq!(attention, (i as i128 + 1) % interval == 0, "layer {i}, interval {interval}");
        }
    }
}

#[test]
fn a_number_of_heads_may_be_given_for_each_layer() {
    let mut metadata = qwen35_small();
    metadata.insert("qwen35.attention.head_count".to_owned(), Field::Array(vec![Field::Integer(8); 25]));
    assert_eq!(read(&metadata), read(&qwen35_small()));
    let mut mixed = vec![Field::Integer(8); 25];
    mixed[7] = Field::Integer(4);
    metadata.insert("qwen35.attention.head_count".to_owned(), Field::Array(mixed));
    assert!(matches!(read(&metadata), Err(SpecError::Unsupported { .. })));
    metadata.insert("qwen35.attention.head_count".to_owned(), Field::Array(vec![Field::Integer(8); 24]));
    assert!(matches!(read(&metadata), Err(SpecError::Length { found: 24, .. })));
}

/// ollama's converter: zero key/value heads for linear layers, no interval, and a word on the order of value heads.
#[test]
fn layers_without_key_value_heads_are_linear() {
    let mut metadata = qwen35_small();
    let counts = |attention: &[usize]| {
        let count = |i| Field::Integer(if attention.contains(&i) { 2 } else { 0 });
        Field::Array((0..25).map(count).collect())
    };
    metadata.insert("qwen35.attention.head_count_kv".to_owned(), counts(&[5, 11, 24]));
    metadata.insert("qwen35.ssm.v_head_reordered".to_owned(), Field::Bool(false));
    let spec = read(&metadata).unwrap();
    for (i, layer) in spec.layers.iter().enumerate() {
        match &layer.mixer {
            MixerSpec::Attention(attention) => {
                assert!([5, 11].contains(&i));
                assert_eq!(attention.kv_heads, 2);
            }
            MixerSpec::Linear(linear) => assert_eq!(linear.head_map, HeadMap::Grouped),
        }
    }
    metadata.insert("qwen35.ssm.v_head_reordered".to_owned(), Field::Bool(true));
    let spec = read(&metadata).unwrap();
    assert_eq!(spec.layers[0].mixer.as_linear().map(|linear| linear.head_map), Some(HeadMap::Tiled));
    metadata.insert("qwen35.attention.head_count_kv".to_owned(), counts(&[]));
    assert!(matches!(read(&metadata), Err(SpecError::OutOfRange { .. })));
}

#[test]
fn mixtures_from_gguf() {
    for (arch, head_map) in [("qwen35moe", HeadMap::Tiled), ("qwen3next", HeadMap::Grouped)] {
        let mut metadata = Metadata::new();
        for (key, value) in qwen35_small() {
            metadata.insert(key.replace("qwen35.", &format!("{arch}.")), value);
        }
        let mut set = |key: &str, value| metadata.insert(format!("{arch}.{key}"), Field::Integer(value));
        set("ssm.time_step_rank", 32);
        set("ssm.inner_size", 4096);
        set("expert_count", 256);
        set("expert_used_count", 8);
        set("expert_feed_forward_length", 512);
        set("expert_shared_feed_forward_length", 768);
        metadata.insert("general.architecture".to_owned(), Field::Text(arch));
        let spec = read(&metadata).unwrap();
        let ffn = FfnSpec::Moe(MoeSpec {
            experts: 256,
            top_k: 8,
            expert_width: 512,
            shared_width: 768,
            normalize_weights: true,
        });
        assert_eq!(spec.layers, layers(24, &linear(16, 32, head_map), &ATTENTION_SMALL, &ffn));
        assert_eq!(spec.mtp.as_ref().map(|mtp| &mtp.layer.ffn), Some(&ffn));

        metadata.insert(format!("{arch}.expert_used_count"), Field::Integer(257));
        assert!(matches!(read(&metadata), Err(SpecError::OutOfRange { .. })));
    }
}

#[test]
fn a_missing_key_is_named() {
    const OPTIONAL: [&str; 4] = [
        "qwen35.nextn_predict_layers",
        "qwen35.rope.freq_base",
        "qwen35.attention.head_count_kv",
        "qwen35.attention.value_length",
    ];
    for key in qwen35_small().keys() {
        let mut metadata = qwen35_small();
        metadata.remove(key);
        let result = read(&metadata);
        if OPTIONAL.contains(&key.as_str()) {
            assert!(result.is_ok(), "{key}: {result:?}");
            continue;
        }
        // Without tokens, their number may be given.
        let missing = key.replace("tokenizer.ggml.tokens", "qwen35.vocab_size");
        assert!(
            matches!(&result, Err(SpecError::Missing { key, .. }) if *key == missing),
            "{key}: {result:?}"
        );
    }
}

#[test]
fn a_mistyped_key_is_named() {
    let wrong = |value: &Field<'static>| match value {
        Field::Text(_) => Field::Integer(1),
        _ => Field::Text("1"),
    };
    for (key, value) in qwen35_small() {
        let mut metadata = qwen35_small();
        metadata.insert(key.clone(), wrong(&value));
        let result = read(&metadata);
        assert!(
            matches!(&result, Err(SpecError::Mistyped { key: named, .. }) if *named == key),
            "{key}: {result:?}"
        );
    }
}

#[test]
fn impossible_numbers_are_refused() {
    let cases: [(&str, &[i128]); 15] = [
        ("block_count", &[0, 1, 1025, -1, 1 << 63]),
        ("context_length", &[0, 1 << 63]),
        ("embedding_length", &[0, 1 << 40]),
        ("feed_forward_length", &[0, 1 << 40]),
        ("attention.head_count", &[0, 3, 1 << 31]),
        ("attention.head_count_kv", &[0, 3, 16]),
        ("attention.key_length", &[0, 2048]),
        ("attention.value_length", &[0, 128]),
        ("rope.dimension_count", &[0, 63, 258]),
        ("ssm.conv_kernel", &[0, 64]),
        ("ssm.state_size", &[0, 1 << 31]),
        ("ssm.group_count", &[0, 3, 32]),
        ("ssm.time_step_rank", &[0, 17, 24]),
        ("ssm.inner_size", &[0, 2049, 1 << 30]),
        ("nextn_predict_layers", &[2, 25, -1]),
    ];
    for (key, values) in cases {
        for &value in values {
            let mut metadata = qwen35_small();
            metadata.insert(format!("qwen35.{key}"), Field::Integer(value));
            let error = read(&metadata).expect_err(&format!("{key} = {value}"));
            assert!(error.to_string().contains(&value.to_string()), "{key} = {value}: {error}");
        }
    }
    for (key, values) in [
        ("attention.layer_norm_rms_epsilon", [0.0, f64::NAN, f64::INFINITY, -1e-6]),
        ("rope.freq_base", [0.0, f64::NAN, f64::INFINITY, -1e7]),
    ] {
        for value in values {
            let mut metadata = qwen35_small();
            metadata.insert(format!("qwen35.{key}"), Field::Float(value));
            assert!(matches!(read(&metadata), Err(SpecError::OutOfRange { .. })), "{key} = {value}");
        }
    }
    let mut metadata = qwen35_small();
    metadata.insert("qwen35.full_attention_interval".to_owned(), Field::Integer(0));
    assert!(matches!(read(&metadata), Err(SpecError::OutOfRange { .. })));
    metadata.insert("tokenizer.ggml.tokens".to_owned(), Field::Array(Vec::new()));
    assert!(read(&metadata).is_err());
}

#[test]
fn other_architectures_and_scaled_positions_are_refused() {
    let mut metadata = qwen35_small();
    metadata.insert("qwen35.rope.scaling.type".to_owned(), Field::Text("yarn"));
    assert!(matches!(read(&metadata), Err(SpecError::Unsupported { .. })));
    metadata.insert("qwen35.rope.scaling.type".to_owned(), Field::Text("none"));
    assert!(read(&metadata).is_ok());
    metadata.insert("general.architecture".to_owned(), Field::Text("llama"));
    let error = read(&metadata).unwrap_err().to_string();
    assert!(error.contains("\"llama\"") && error.contains("qwen35moe"), "{error}");
}

/// The text part of Qwen3.5-27B.
fn text_config() -> Value {
    json!({
        "model_type": "qwen3_5_text",
        "attention_bias": false,
        "attn_output_gate": true,
        "full_attention_interval": 4,
        "head_dim": 256,
        "hidden_act": "silu",
        "hidden_size": 5120,
        "intermediate_size": 17408,
        "linear_conv_kernel_dim": 4,
        "linear_key_head_dim": 128,
        "linear_num_key_heads": 16,
        "linear_num_value_heads": 48,
        "linear_value_head_dim": 128,
        "max_position_embeddings": 262144,
        "mtp_num_hidden_layers": 1,
        "num_attention_heads": 24,
        "num_hidden_layers": 64,
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {
            "mrope_interleaved": true, "mrope_section": [11, 11, 10],
            "partial_rotary_factor": 0.25, "rope_theta": 10000000, "rope_type": "default"
        },
        "vocab_size": 248320
    })
}

fn text_spec(tied_head: bool) -> ModelSpec {
    let attention = AttentionSpec {
        heads: 24,
        kv_heads: 4,
        head_dim: 256,
        rotary_dim: 64,
        rope_theta: 1e7,
        output_gate: true,
    };
    let ffn = FfnSpec::Dense { width: 17408 };
    ModelSpec {
        arch: "qwen35".to_owned(),
        hidden: 5120,
        vocab: 248_320,
        context: 262_144,
        norm_eps: 1e-6,
        layers: layers(64, &linear(16, 48, HeadMap::Grouped), &attention, &ffn),
        tied_head,
        mtp: None,
    }
}

#[test]
fn qwen35_from_config_alone_and_in_a_wrapper() {
    assert_eq!(from_config(&text_config(), &no_tensor), Ok(text_spec(false)));
    let wrapper = |tied: Value| {
        json!({
            "model_type": "qwen3_5", "text_config": text_config(), "vision_config": {"depth": 27},
            "tie_word_embeddings": tied,
        })
    };
    assert_eq!(from_config(&wrapper(json!(null)), &no_tensor), Ok(text_spec(false)));
    assert_eq!(from_config(&wrapper(json!(true)), &no_tensor), Ok(text_spec(true)));
    let mut config = wrapper(json!(null));
    config["text_config"]["tie_word_embeddings"] = json!(true);
    assert_eq!(from_config(&config, &no_tensor), Ok(text_spec(true)));
    // Where the two contradict each other, the wrapper's word counts if there is a head.
    config["tie_word_embeddings"] = json!(false);
    assert_eq!(from_config(&config, &no_tensor), Ok(text_spec(true)));
    assert_eq!(from_config(&config, &|name| name == "lm_head.weight"), Ok(text_spec(false)));
}

#[test]
fn the_prediction_head_is_where_its_tensors_are() {
    let has = |name: &str| name == "mtp.fc.weight";
    let spec = from_config(&text_config(), &has).unwrap();
    assert_eq!(spec.mtp.map(|mtp| mtp.layer), text_spec(false).layers.get(3).cloned());
    let mut config = text_config();
    config["mtp_num_hidden_layers"] = json!(0);
    assert_eq!(from_config(&config, &has).unwrap().mtp, None);
    config["mtp_num_hidden_layers"] = json!(2);
    assert!(matches!(from_config(&config, &has), Err(SpecError::OutOfRange { .. })));
}

#[test]
fn older_spellings_mean_the_same() {
    let mut config = text_config();
    config.as_object_mut().unwrap().remove("rope_parameters");
    config["rope_theta"] = json!(1e7);
    config["partial_rotary_factor"] = json!(0.25);
    config["rope_scaling"] = Value::Null;
    assert_eq!(from_config(&config, &no_tensor), Ok(text_spec(false)));
    let kind = |i: usize| if i % 4 == 3 { "full_attention" } else { "linear_attention" };
    config["layer_types"] = (0..64).map(kind).collect();
    assert_eq!(from_config(&config, &no_tensor), Ok(text_spec(false)));
    let object = config.as_object_mut().unwrap();
    object.remove("layer_types");
    object.remove("full_attention_interval");
    // transformers' own default is 256, whatever the hidden width.
    object.remove("head_dim");
    assert_eq!(from_config(&config, &no_tensor), Ok(text_spec(false)));
    config["rope_scaling"] = json!({"type": "yarn", "factor": 4.0});
    assert!(matches!(from_config(&config, &no_tensor), Err(SpecError::Unsupported { .. })));
}

/// Qwen3-Next-80B-A3B with some layers made dense.
#[test]
fn qwen3_next_may_have_dense_layers() {
    let mut config = text_config();
    for (key, value) in [
        ("model_type", json!("qwen3_next")),
        ("num_hidden_layers", json!(6)),
        ("num_experts", json!(512)),
        ("num_experts_per_tok", json!(10)),
        ("moe_intermediate_size", json!(512)),
        ("shared_expert_intermediate_size", json!(0)),
        ("norm_topk_prob", json!(false)),
        ("decoder_sparse_step", json!(2)),
        ("mlp_only_layers", json!([3])),
    ] {
        config[key] = value;
    }
    let spec = from_config(&config, &no_tensor).unwrap();
    let moe =
        MoeSpec { experts: 512, top_k: 10, expert_width: 512, shared_width: 0, normalize_weights: false };
    let dense = FfnSpec::Dense { width: 17408 };
    let expected =
        [dense.clone(), FfnSpec::Moe(moe.clone()), dense.clone(), dense.clone(), dense, FfnSpec::Moe(moe)];
    assert!(spec.layers.iter().map(|layer| &layer.ffn).eq(expected.iter()));
    assert_eq!(spec.arch, "qwen3next");
    config["mlp_only_layers"] = json!([6]);
    assert!(matches!(from_config(&config, &no_tensor), Err(SpecError::OutOfRange { .. })));
}

#[test]
fn configurations_of_other_models_are_refused() {
    let refused = |key: &str, value: Value| {
        let mut config = text_config();
        config[key] = value;
        from_config(&config, &no_tensor).expect_err(key)
    };
    assert!(matches!(refused("model_type", json!("llama")), SpecError::UnknownArchitecture { .. }));
    assert!(matches!(refused("model_type", json!(null)), SpecError::Missing { .. }));
    assert!(matches!(refused("hidden_act", json!("gelu")), SpecError::Unsupported { .. }));
    assert!(matches!(refused("attention_bias", json!(true)), SpecError::Unsupported { .. }));
    assert!(matches!(
        refused("quantization_config", json!({"quant_method": "fp8"})),
        SpecError::Unsupported { .. }
    ));
    assert!(matches!(refused("linear_num_value_heads", json!(24)), SpecError::NotMultiple { .. }));
    assert!(matches!(refused("num_key_value_heads", json!(5)), SpecError::NotMultiple { .. }));
    assert!(matches!(refused("head_dim", json!(2)), SpecError::OutOfRange { .. }));
    assert!(matches!(refused("hidden_size", json!(5120.5)), SpecError::Mistyped { .. }));
    assert!(matches!(refused("hidden_size", json!(-1)), SpecError::OutOfRange { .. }));
    assert!(matches!(refused("layer_types", json!(["linear_attention"])), SpecError::Length { .. }));
    assert!(matches!(refused("layer_types", json!(vec!["mamba"; 64])), SpecError::Unsupported { .. }));
    assert!(from_config(&json!(null), &no_tensor).is_err());
    assert!(from_config(&json!([1, 2]), &no_tensor).is_err());
    let error = from_config(&json!({"model_type": "qwen3_5", "text_config": {}}), &no_tensor).unwrap_err();
    assert!(error.to_string().contains("`text_config.num_hidden_layers`"), "{error}");
}
