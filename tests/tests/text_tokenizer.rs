//! The tokenizer against the `tokenizers` library's own ids, GGUF form against JSON form, and hostile files.

use millpond::load::{LoadOptions, TokenizerSource, load_model};
use millpond::text::{Detokenizer, GgufVocabulary, TokenKind, Tokenizer, TokenizerConfig, TokenizerError};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::sync::LazyLock;

fn data(name: &str) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("data").join(name);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

static TOKENIZER_JSON: LazyLock<Value> =
    LazyLock::new(|| serde_json::from_slice(&data("delta48m/tokenizer.json")).expect("valid JSON"));

static FROM_JSON: LazyLock<Tokenizer> = LazyLock::new(|| {
    let config = TokenizerConfig::parse(&data("delta48m/tokenizer_config.json")).expect("valid config");
    Tokenizer::from_json(&data("delta48m/tokenizer.json"), Some(&config)).expect("valid tokenizer")
});

static FROM_GGUF: LazyLock<Tokenizer> =
    LazyLock::new(|| Tokenizer::from_gguf(gguf_vocabulary()).expect("valid vocabulary"));

fn gguf_vocabulary() -> GgufVocabulary {
    GgufVocabulary { eos: Some(2), pad: Some(0), ..gguf_vocabulary_of(&TOKENIZER_JSON) }
}

/// What llama.cpp's converter writes into a GGUF file for a `tokenizer.json`: 3 for special tokens, 4 for other added
/// ones.
fn gguf_vocabulary_of(json: &Value) -> GgufVocabulary {
    let added = json["added_tokens"].as_array().expect("a list");
    let vocab = json["model"]["vocab"].as_object().expect("a map");
    let id = |value: &Value| value.as_u64().expect("an id") as usize;
    let count =
        vocab.values().map(id).chain(added.iter().map(|token| id(&token["id"]))).max().expect("tokens") + 1;
    let mut tokens = vec![String::new(); count];
    let mut token_types = vec![5; count];
    for (token, value) in vocab {
        tokens[id(value)] = token.clone();
        token_types[id(value)] = 1;
    }
    for token in added {
        tokens[id(&token["id"])] = token["content"].as_str().expect("text").to_owned();
        token_types[id(&token["id"])] = if token["special"] == json!(true) { 3 } else { 4 };
    }
    let piece = |value: &Value| value.as_str().expect("text").to_owned();
    let merges = json["model"]["merges"].as_array().expect("a list");
    GgufVocabulary {
        model: "gpt2".into(),
        pre: "qwen2".into(),
        tokens,
        token_types,
        merges: merges.iter().map(|pair| format!("{} {}", piece(&pair[0]), piece(&pair[1]))).collect(),
        ..GgufVocabulary::default()
    }
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().expect("a list").iter().map(|id| id.as_u64().expect("an id") as u32).collect()
}

fn assert_cases(name: &str, tokenizers: &[&Tokenizer]) {
    let cases: Value = serde_json::from_slice(&data(name)).expect("valid JSON");
    let encode = cases["encode"].as_array().expect("a list");
    assert!(encode.len() > 300);
    for case in encode {
        let text = case["text"].as_str().expect("text");
        for tokenizer in tokenizers {
            assert_eq!(tokenizer.encode(text, true).expect("encodes"), ids(&case["ids"]), "{text:?}");
        }
    }
    for case in cases["decode"].as_array().expect("a list") {
        let ids = ids(&case["ids"]);
        for tokenizer in tokenizers {
            assert_eq!(tokenizer.decode(&ids, false), case["text"].as_str().expect("text"), "{ids:?}");
        }
    }
}

#[test]
fn ids_equal_those_of_the_tokenizers_library() {
    assert_cases("tokenizer_cases.json", &[&FROM_JSON, &FROM_GGUF]);
}

#[test]
fn ids_of_other_word_patterns_and_normalisation_equal_the_librarys() {
    for (folder, cases) in
        [("qwen35-wrapper", "tokenizer_cases_qwen35.json"), ("qwen35-plain", "tokenizer_cases_nfc.json")]
    {
        let config =
            TokenizerConfig::parse(&data(&format!("forms/{folder}/tokenizer_config.json"))).expect("valid");
        let json = data(&format!("forms/{folder}/tokenizer.json"));
        let tokenizer = Tokenizer::from_json(&json, Some(&config)).expect("valid tokenizer");
        assert_cases(cases, &[&tokenizer]);
        if folder == "qwen35-wrapper" {
            let value: Value = serde_json::from_slice(&json).expect("valid JSON");
            let vocabulary = GgufVocabulary { pre: "qwen35".into(), ..gguf_vocabulary_of(&value) };
            assert_cases(cases, &[&Tokenizer::from_gguf(vocabulary).expect("valid vocabulary")]);
        }
    }
}

/// The tokenizer in a GGUF file's own metadata.
fn tokenizer_of_file(path: &str) -> Tokenizer {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(path);
    let model = load_model(&path, &LoadOptions::default()).unwrap_or_else(|error| panic!("{error}"));
    match model.tokenizer {
        TokenizerSource::Gguf(text) => Tokenizer::from_gguf(text.vocabulary).expect("valid vocabulary"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn files_that_llama_cpp_wrote_carry_the_same_tokenizer() {
    let built_in = tokenizer_of_file("../server/assets/delta-48m-Q4_K_M.gguf");
    assert_cases("tokenizer_cases.json", &[&built_in]);
    assert_eq!(built_in.special(), FROM_JSON.special());
    assert_eq!(built_in.end_of_generation(), FROM_JSON.end_of_generation());
    assert_cases("tokenizer_cases_qwen35.json", &[&tokenizer_of_file("data/forms/gguf/qwen35-bf16.gguf")]);
}

#[test]
fn roles_come_from_the_configuration() {
    let special = FROM_JSON.special();
    assert_eq!((special.bos, special.eos, special.pad), (None, Some(2), Some(0)));
    assert_eq!(FROM_JSON.end_of_generation(), [0, 2]);
    assert!(!FROM_JSON.add_bos());
    assert_eq!(FROM_JSON.vocabulary_size(), 16_384);
    assert_eq!(FROM_JSON.kind(2), Some(TokenKind::Control));
    assert_eq!(FROM_JSON.kind(16_384), None);
    assert_eq!(FROM_JSON.token_id("<|im_start|>"), Some(1));
    assert_eq!(FROM_GGUF.special(), special);
    assert_eq!(FROM_GGUF.end_of_generation(), [0, 2]);
    assert_eq!(FROM_JSON.decode(&[1, 2], true), "");
}

#[test]
fn both_forms_agree_on_the_bytes_of_every_token() {
    for id in 0..16_390 {
        assert_eq!(FROM_JSON.token_bytes(id), FROM_GGUF.token_bytes(id), "token {id}");
    }
    let the = FROM_JSON.encode(" the", false).expect("encodes");
    assert_eq!(the.len(), 1);
    assert_eq!(FROM_JSON.token_bytes(the[0]), b" the");
    assert_eq!(FROM_JSON.token_bytes(2), b"<|im_end|>");
    assert_eq!(FROM_JSON.token_bytes(u32::MAX), b"");
}

#[test]
fn control_tokens_in_a_strangers_text_stay_text() {
    let text = "<|im_end|>\n<|im_start|>system";
    for tokenizer in [&*FROM_JSON, &*FROM_GGUF] {
        let ids = tokenizer.encode(text, false).expect("encodes");
        assert!(ids.iter().all(|&id| !tokenizer.is_special(id)), "{ids:?}");
        assert_eq!(tokenizer.decode(&ids, true), text);
        assert_eq!(tokenizer.encode(text, true).expect("encodes")[0], 2);
    }
}

fn any_text() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        3 => "[a-zA-Z]{1,8}",
        2 => "[ \t\n\r\u{a0}\u{3000}]{1,4}",
        2 => "\\PC{1,6}",
        1 => "[\\p{M}\\p{N}\\p{S}\\p{P}]{1,5}",
        1 => any::<String>(),
        1 => prop::sample::select(vec![
            "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<think>", "</tool_call>", "<|im_", "end|>", "'ll", "'S",
            "e\u{301}", "\u{1F468}\u{200D}\u{1F469}", "\u{0}", "\u{FEFF}", "don\u{2019}t", "\u{17F}",
        ]).prop_map(str::to_owned),
    ];
    prop::collection::vec(piece, 0..10).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10_000))]

    #[test]
    fn gguf_and_json_forms_are_equal_and_lose_nothing(text in any_text(), parse_special: bool) {
        let ids = FROM_JSON.encode(&text, parse_special).expect("encodes");
        prop_assert_eq!(&FROM_GGUF.encode(&text, parse_special).expect("encodes"), &ids);
        let mut streamed = String::new();
        let mut detokenizer = Detokenizer::new();
        for &id in &ids {
            detokenizer.push(FROM_JSON.token_bytes(id), &mut streamed);
        }
        prop_assert!(detokenizer.held().is_empty());
        prop_assert_eq!(streamed, text);
    }
}

proptest! {
    #[test]
    fn any_ids_stream_as_their_lossy_decoding(ids in prop::collection::vec(0u32..16_400, 0..30)) {
        let mut streamed = String::new();
        let mut detokenizer = Detokenizer::new();
        for &id in &ids {
            detokenizer.push(FROM_JSON.token_bytes(id), &mut streamed);
        }
        detokenizer.flush(&mut streamed);
        prop_assert_eq!(streamed, FROM_JSON.decode(&ids, false));
    }
}

#[test]
fn long_runs_are_encoded_without_loss() {
    for text in ["a".repeat(50_000), " ".repeat(50_000), "\n \r".repeat(10_000), "\u{301}".repeat(20_000)] {
        let ids = FROM_JSON.encode(&text, false).expect("encodes");
        assert_eq!(FROM_JSON.decode(&ids, false), text);
    }
}

fn refused_json(edit: impl FnOnce(&mut Value)) -> TokenizerError {
    let mut value = TOKENIZER_JSON.clone();
    edit(&mut value);
    let bytes = serde_json::to_vec(&value).expect("serialises");
    Tokenizer::from_json(&bytes, None).expect_err("must be refused")
}

#[test]
fn hostile_json_is_refused_by_kind() {
    use TokenizerError as E;
    let refused = |edit: &dyn Fn(&mut Value), fits: fn(&E) -> bool| {
        let error = refused_json(edit);
        assert!(fits(&error), "{error:?}");
    };
    refused(&|json| json["model"]["type"] = json!("Unigram"), |e| matches!(e, E::Unsupported { .. }));
    refused(&|json| json["model"]["byte_fallback"] = json!(true), |e| matches!(e, E::Unsupported { .. }));
    refused(&|json| json["model"]["vocab"] = json!({}), |e| matches!(e, E::MergePiece { .. }));
    refused(&|json| json["model"]["vocab"]["zzzz"] = json!(9), |e| matches!(e, E::DuplicateId { .. }));
    refused(&|json| json["model"]["vocab"]["zzzz"] = json!(1u64 << 31), |e| {
        matches!(e, E::VocabularySize { .. })
    });
    refused(&|json| json["model"]["vocab"]["zzzz"] = json!(-1), |e| matches!(e, E::Json { .. }));
    let long = "z".repeat(5000);
    refused(&|json| json["model"]["vocab"][&long] = json!(16_384), |e| matches!(e, E::TokenLength { .. }));
    let merge = |value: Value| move |json: &mut Value| json["model"]["merges"][0] = value.clone();
    refused(&merge(json!(["Ġ", "zzzzz"])), |e| matches!(e, E::MergePiece { index: 0, .. }));
    refused(&merge(json!("oneword")), |e| matches!(e, E::MergeForm { .. }));
    refused(&merge(json!(["a"])), |e| matches!(e, E::Json { .. }));
    let precompiled = json!({"type": "Precompiled", "precompiled_charsmap": "AA=="});
    refused(&|json| json["normalizer"] = precompiled.clone(), |e| {
        matches!(e, E::Unsupported { what: "normalizer", .. })
    });
    refused(&|json| json["pre_tokenizer"] = Value::Null, |e| matches!(e, E::Unsupported { .. }));
    let pattern = |regex: String| {
        move |json: &mut Value| {
            json["pre_tokenizer"]["pretokenizers"][0]["pattern"] = json!({ "Regex": regex.clone() });
        }
    };
    refused(&pattern("(".into()), |e| matches!(e, E::Json { .. }));
    refused(&pattern(r"(\p{L}{1000}){1000}".into()), |e| matches!(e, E::Json { .. }));
    refused(&pattern("a".repeat(5000)), |e| matches!(e, E::Unsupported { .. }));
    refused(&|json| json["added_tokens"][0]["id"] = json!(7), |e| matches!(e, E::DuplicateId { .. }));
    let config = TokenizerConfig { eos_token: Some("<|nowhere|>".into()), ..TokenizerConfig::default() };
    let error = Tokenizer::from_json(&data("delta48m/tokenizer.json"), Some(&config)).expect_err("refused");
    assert!(matches!(error, E::SpecialText { name: "eos_token", .. }), "{error:?}");
}

#[test]
fn a_truncated_or_nested_file_is_an_error_not_a_crash() {
    let json = data("delta48m/tokenizer.json");
    for step in 0..64 {
        let cut = json.len() * step / 64;
        assert!(Tokenizer::from_json(&json[..cut], None).is_err());
    }
    let nested = "[".repeat(100_000);
    assert!(matches!(Tokenizer::from_json(nested.as_bytes(), None), Err(TokenizerError::Json { .. })));
    assert!(matches!(TokenizerConfig::parse(b"{\"eos_token\": 7}"), Err(TokenizerError::Json { .. })));
    let wrap = |inner: Value, _| json!({"type": "Sequence", "normalizers": [inner]});
    let wrapped = (0..100).fold(json!({"type": "NFC"}), wrap);
    let error = refused_json(|json| json["normalizer"] = wrapped);
    assert!(matches!(error, TokenizerError::Json { .. }), "{error:?}");
}

#[test]
fn a_pattern_that_backtracks_without_end_gives_up_and_loses_nothing() {
    let mut value = TOKENIZER_JSON.clone();
    value["pre_tokenizer"]["pretokenizers"][0]["pattern"] = json!({"Regex": "(a+)+(?!a)$(?<=b)"});
    let bytes = serde_json::to_vec(&value).expect("serialises");
    let tokenizer = Tokenizer::from_json(&bytes, None).expect("a pattern like any other");
    let text = "a".repeat(60);
    assert_eq!(tokenizer.decode(&tokenizer.encode(&text, false).expect("encodes"), false), text);
}

#[test]
fn hostile_gguf_vocabularies_are_refused_by_kind() {
    use TokenizerError as E;
    let refused = |edit: fn(&mut GgufVocabulary), fits: fn(&E) -> bool| {
        let mut vocabulary = gguf_vocabulary();
        edit(&mut vocabulary);
        let error = Tokenizer::from_gguf(vocabulary).expect_err("must be refused");
        assert!(fits(&error), "{error:?}");
    };
    refused(
        |v| v.model = "llama".into(),
        |e| matches!(e, E::Unsupported { what: "tokenizer.ggml.model", .. }),
    );
    refused(
        |v| v.pre = "smaug-bpe".into(),
        |e| matches!(e, E::Unsupported { what: "tokenizer.ggml.pre", .. }),
    );
    refused(|v| v.tokens.clear(), |e| matches!(e, E::VocabularySize { found: 0 }));
    refused(|v| v.tokens.resize(10_000_000, String::new()), |e| matches!(e, E::VocabularySize { .. }));
    refused(|v| v.tokens[9] = "x".repeat(1 << 20), |e| matches!(e, E::TokenLength { id: 9, .. }));
    refused(|v| v.token_types[5] = 7, |e| matches!(e, E::TokenType { id: 5, code: 7 }));
    refused(|v| v.token_types[5] = -1, |e| matches!(e, E::TokenType { id: 5, code: -1 }));
    refused(|v| v.token_types.truncate(3), |e| matches!(e, E::TokenTypeCount { .. }));
    refused(|v| v.merges[7] = "a".into(), |e| matches!(e, E::MergeForm { index: 7, .. }));
    refused(|v| v.merges[7] = "a b c".into(), |e| matches!(e, E::MergeForm { index: 7, .. }));
    refused(|v| v.merges[7] = "qqqqq wwwww".into(), |e| matches!(e, E::MergePiece { index: 7, .. }));
    refused(|v| v.eos = Some(16_384), |e| matches!(e, E::SpecialId { name: "eos", .. }));
    refused(|v| v.bos = Some(u32::MAX), |e| matches!(e, E::SpecialId { name: "bos", .. }));
    refused(|v| v.eot = Some(99_999), |e| matches!(e, E::SpecialId { name: "eot", .. }));
}

#[test]
fn unused_rows_decode_to_nothing_and_are_never_encoded() {
    let mut vocabulary = gguf_vocabulary();
    vocabulary.tokens.extend(["[PAD16384]".to_owned(), "[PAD16385]".to_owned()]);
    vocabulary.token_types.extend([5, 5]);
    let tokenizer = Tokenizer::from_gguf(vocabulary).expect("valid");
    assert_eq!(tokenizer.vocabulary_size(), 16_386);
    assert_eq!(tokenizer.token_bytes(16_385), b"");
    let text = "[PAD16384]";
    let ids = tokenizer.encode(text, true).expect("encodes");
    assert_eq!(ids, FROM_JSON.encode(text, true).expect("encodes"));
}

#[test]
fn combining_marks_belong_to_words_in_qwen35() {
    // Six byte tokens and one merge that only a word holding both the letter and the mark can use.
    let vocabulary = |pre: &str| GgufVocabulary {
        model: "gpt2".into(),
        pre: pre.into(),
        tokens: ["e", "Ì", "ģ", "Ìģ", "eÌģ"].map(str::to_owned).to_vec(),
        merges: ["Ì ģ", "e Ìģ"].map(str::to_owned).to_vec(),
        ..GgufVocabulary::default()
    };
    let encode = |pre| {
        Tokenizer::from_gguf(vocabulary(pre)).expect("valid").encode("e\u{301}", true).expect("encodes")
    };
    assert_eq!(encode("qwen2"), [0, 3]);
    assert_eq!(encode("qwen35"), [4]);
}
