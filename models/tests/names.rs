//! Names of tensors in both kinds of files.

use millpond_models::names::{InputLayout, Names, Place, Role, Transform};

const GGUF: Names = Names::Gguf { layers: 24 };

fn hugging_face(known: &'static str) -> Names {
    Names::hugging_face(&|name| name == known)
}

#[test]
fn names_follow_the_place() {
    let text = hugging_face("model.embed_tokens.weight");
    let wrapper = hugging_face("model.language_model.embed_tokens.weight");
    let old = hugging_face("language_model.model.embed_tokens.weight");
    let bare = hugging_face("embed_tokens.weight");
    let name = |names: &Names, place, role| names.name(place, role).unwrap();
    for (place, role, expected) in [
        (
            Place::Model,
            Role::Embedding,
            ["token_embd.weight", "model.embed_tokens.weight", "model.language_model.embed_tokens.weight"],
        ),
        (Place::Model, Role::Output, ["output.weight", "lm_head.weight", "lm_head.weight"]),
        (
            Place::Model,
            Role::OutputNorm,
            ["output_norm.weight", "model.norm.weight", "model.language_model.norm.weight"],
        ),
        (
            Place::Layer(3),
            Role::QueryNorm,
            [
                "blk.3.attn_q_norm.weight",
                "model.layers.3.self_attn.q_norm.weight",
                "model.language_model.layers.3.self_attn.q_norm.weight",
            ],
        ),
        (
            Place::Layer(0),
            Role::LinearA,
            [
                "blk.0.ssm_a",
                "model.layers.0.linear_attn.A_log",
                "model.language_model.layers.0.linear_attn.A_log",
            ],
        ),
        (
            Place::Mtp,
            Role::FfnNorm,
            [
                "blk.24.post_attention_norm.weight",
                "mtp.layers.0.post_attention_layernorm.weight",
                "mtp.layers.0.post_attention_layernorm.weight",
            ],
        ),
        (
            Place::Mtp,
            Role::MtpOutputNorm,
            ["blk.24.nextn.shared_head_norm.weight", "mtp.norm.weight", "mtp.norm.weight"],
        ),
        (Place::Mtp, Role::MtpFc, ["blk.24.nextn.eh_proj.weight", "mtp.fc.weight", "mtp.fc.weight"]),
    ] {
        assert_eq!([&GGUF, &text, &wrapper].map(|names| name(names, place, role)), expected);
    }
    assert_eq!(name(&old, Place::Model, Role::Output), "language_model.lm_head.weight");
    assert_eq!(name(&bare, Place::Layer(1), Role::Gate), "layers.1.mlp.gate_proj.weight");
    assert_eq!(hugging_face("nothing"), text);
    assert_eq!(name(&hugging_face("model.mtp.fc.weight"), Place::Mtp, Role::MtpFc), "model.mtp.fc.weight");
    assert_eq!(
        name(&text, Place::Layer(1), Role::ExpertUp(17)),
        "model.layers.1.mlp.experts.17.up_proj.weight"
    );
    assert_eq!(GGUF.name(Place::Layer(1), Role::ExpertUp(17)), None);
    assert_eq!(GGUF.other_name(Place::Layer(1), Role::LinearDtBias).as_deref(), Some("blk.1.ssm_dt"));
    assert_eq!(text.other_name(Place::Layer(1), Role::LinearDtBias), None);
}

#[test]
fn only_zero_centred_norms_get_their_one() {
    let text = hugging_face("model.embed_tokens.weight");
    assert_eq!(text.transform(Role::KeyNorm), Transform::AddOne);
    assert_eq!(text.transform(Role::MtpHiddenNorm), Transform::AddOne);
    assert_eq!(text.transform(Role::LinearNorm), Transform::Keep);
    assert_eq!(text.transform(Role::LinearDtBias), Transform::Keep);
    assert_eq!(text.transform(Role::LinearA), Transform::NegExp);
    for role in [Role::KeyNorm, Role::LinearA, Role::OutputNorm] {
        assert_eq!(GGUF.transform(role), Transform::Keep);
    }
}

#[test]
fn qwen3_next_interleaves_its_projections() {
    let text = hugging_face("model.embed_tokens.weight");
    assert_eq!(text.input_layout("qwen3next", true), InputLayout::ByKeyHead);
    assert_eq!(GGUF.input_layout("qwen3next", true), InputLayout::ByKeyHead);
    assert_eq!(GGUF.input_layout("qwen3next", false), InputLayout::SplitFusedGates);
    assert_eq!(GGUF.input_layout("qwen35", true), InputLayout::Split);
    assert_eq!(text.input_layout("qwen35moe", false), InputLayout::Split);
}

#[test]
fn what_may_be_left_alone() {
    let text = hugging_face("model.language_model.embed_tokens.weight");
    for name in ["model.visual.blocks.0.attn.qkv.weight", "mtp.fc.weight"] {
        assert!(text.may_ignore(name, false), "{name}");
    }
    assert!(text.may_ignore("lm_head.weight", true));
    for name in ["lm_head.weight", "model.language_model.layers.0.self_attn.q_proj.bias", "extra"] {
        assert!(!text.may_ignore(name, false), "{name}");
    }
    for name in ["v.patch_embd.weight", "mtp.fc.weight", "blk.24.attn_q.weight", "rope_freqs.weight"] {
        assert!(GGUF.may_ignore(name, false), "{name}");
    }
    for name in ["blk.23.attn_q.bias", "blk.x.attn_q.bias", "output.bias"] {
        assert!(!GGUF.may_ignore(name, false), "{name}");
    }
}
