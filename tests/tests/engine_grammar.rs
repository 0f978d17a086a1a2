//! Constrained streams, with drafts and without.

use millpond::engine::{EngineOptions, FinishReason, Request, SpecMode, SubmitError};
use millpond::sample::SamplingParams;
use millpond::sample::grammar::GrammarSource;
use millpond_tests::engines::{answer, built_in_model, engine, greedy, options};

fn schema() -> GrammarSource {
    GrammarSource::JsonSchema(serde_json::json!({
        "type": "object",
        "properties": {
            "name": { "type": "string", "maxLength": 12 },
            "legs": { "type": "integer", "minimum": 0, "maximum": 8 },
            "kind": { "enum": ["fish", "frog", "duck"] }
        },
        "required": ["name", "legs", "kind"],
        "additionalProperties": false
    }))
}

/// The text is JSON of the schema, whatever the seed, and the same with drafts as without.
#[test]
fn constrained_streams_obey_and_drafts_change_nothing() {
    let model = built_in_model();
    let tokenizer = model.tokenizer.clone().expect("a tokenizer");
    let prompt = tokenizer.encode("An animal of the pond, as JSON:", false).expect("tokens");
    let plain = engine(&model, options());
    let modes = [SpecMode::Mtp, SpecMode::Ngram];
    let drafting =
        modes.map(|spec| engine(&model, EngineOptions { spec, spec_adaptive: false, ..options() }));
    for seed in 0..6 {
        let sampling = SamplingParams { seed: Some(seed), temperature: 1.0, ..SamplingParams::default() };
        let request =
            Request { grammar: Some(schema()), sampling, ignore_eos: false, ..greedy(&prompt, 200) };
        let reference = answer(&plain, request.clone());
        assert_eq!(reference.reason, FinishReason::Eos);
        let value: serde_json::Value = serde_json::from_str(&reference.text).expect("JSON");
        assert!(value["legs"].as_i64().is_some_and(|legs| (0..=8).contains(&legs)), "{value}");
        assert!(["fish", "frog", "duck"].contains(&value["kind"].as_str().expect("a kind")));
        assert_eq!(value.as_object().expect("an object").len(), 3);
        for engine in &drafting {
            assert_eq!(answer(engine, request.clone()).tokens, reference.tokens, "seed {seed}");
        }
        // A text that must end ends even where the model's own end of text is ignored.
        let endless = answer(&plain, Request { ignore_eos: true, ..request });
        assert_eq!(endless.tokens, reference.tokens);
    }
}

#[test]
fn impossible_grammars_are_refused() {
    let engine = engine(&built_in_model(), options());
    for grammar in [
        GrammarSource::Regex("(unclosed".to_owned()),
        GrammarSource::Lark("start: nobody".to_owned()),
        GrammarSource::JsonSchema(serde_json::json!({ "type": "no such type" })),
    ] {
        let request = Request { grammar: Some(grammar), ..greedy(&[5], 4) };
        assert!(matches!(engine.handle().submit(request), Err(SubmitError::Invalid(_))));
    }
}
