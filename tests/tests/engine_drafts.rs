//! Where drafts come from: draft models, per-request settings, and what is refused.

use std::sync::Arc;

use millpond::engine::{
    DraftSource, Engine, EngineError, EngineOptions, Request, SpecError, SpecMode, SubmitError,
};
use millpond::model::Model;
use millpond::runner::BufferOptions;
use millpond_tests::engines::{
    Golden, answer, built_in_model, collect, engine, golden_model, greedy, options,
};

fn story(model: &Arc<Model>) -> Vec<u32> {
    let tokenizer = model.tokenizer.as_ref().expect("a tokenizer");
    tokenizer.encode("Once upon a time there was a miller who had three sons.", false).expect("tokens")
}

/// Puts a wrong token at some positions, and leaves the others to whoever drafts.
struct Slips {
    vocab: u32,
    /// One in so many positions.
    one_in: u64,
}

impl Slips {
    fn at(&self, position: usize) -> bool {
        ((position as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32).is_multiple_of(self.one_in)
    }

    /// Drafted tokens that stand if all others are right: `count` tokens after the first, in drafts of `longest`.
    fn standing(&self, prompt: usize, count: usize, longest: usize) -> usize {
        let (mut at, mut standing) = (prompt + 1, 0);
        while at < prompt + count {
            let most = longest.min(prompt + count - at - 1);
            let right = (0..most).take_while(|place| !self.at(at + place)).count();
            standing += right;
            at += right + 1;
        }
        standing
    }
}

impl DraftSource for Slips {
    fn draft(&self, tokens: &[u32], longest: usize, draft: &mut Vec<u32>) {
        // Only the last token asked for counts; one beyond the vocabulary stands for the drafter's own.
        let place = longest - 1;
        draft.resize(place, 0);
        draft.push(if self.at(tokens.len() + place) { (tokens[0] + 1) % self.vocab } else { u32::MAX });
    }
}

fn with_draft_model(model: &Arc<Model>, longest: usize) -> EngineOptions {
    EngineOptions {
        spec: SpecMode::Draft,
        spec_adaptive: false,
        spec_draft_max: longest,
        draft_model: Some(model.clone()),
        ..options()
    }
}

/// A model that drafts for itself is always right where it is let; so its sequences go back to where they were,
/// whatever was rejected, across folds of its state.
#[test]
fn a_draft_model_goes_back_exactly() {
    let model = built_in_model();
    let prompt = story(&model);
    let count = 90;
    let request = Request { logprobs: Some(1), ..greedy(&prompt, count) };
    let plain = answer(&engine(&model, options()), request.clone());
    for (one_in, longest, interval) in [(u64::MAX, 4, 16), (3, 4, 16), (2, 7, 1), (5, 3, 4)] {
        let slips = Slips { vocab: model.spec.vocab as u32, one_in };
        let expected = slips.standing(prompt.len(), count, longest);
        let buffer =
            BufferOptions { fold_interval: interval, stateless_below: Some(20), ..Default::default() };
        let plain = match interval {
            16 => plain.clone(),
            _ => answer(&engine(&model, EngineOptions { buffer, ..options() }), request.clone()),
        };
        let buffer = if interval == 16 { BufferOptions::default() } else { buffer };
        let drafting = EngineOptions {
            draft_override: Some(Arc::new(slips)),
            buffer,
            ..with_draft_model(&model, longest)
        };
        let drafted = answer(&engine(&model, drafting), request.clone());
        assert_eq!((&drafted.tokens, &drafted.logprobs), (&plain.tokens, &plain.logprobs), "{one_in}");
        assert_eq!(drafted.usage.accepted, expected, "1 in {one_in}, {longest} drafts, C = {interval}");
    }
}

/// Streams that share a prompt, enter and end at different times, and draft beside each other.
#[test]
fn streams_with_a_draft_model_equal_plain_ones() {
    for name in ["qwen35-dense", "qwen3-next"] {
        let (golden, model) = (Golden::of(name), golden_model(name));
        let other = golden_model(name);
        let drafting = engine(&model, with_draft_model(&other, 3));
        let running: Vec<_> = (0..10)
            .map(|i| {
                let p = [4, 2, 4, 3, 5][i % 5];
                let spec = if i == 7 { Some(SpecMode::Off) } else { None };
                let request = Request { spec, ..greedy(&golden.prompt(p).0, 32 - i) };
                (p, 32 - i, drafting.handle().submit(request).expect("room"))
            })
            .collect();
        for (p, count, generation) in running {
            let answer = collect(generation);
            assert_eq!(answer.tokens, golden.prompt(p).1[..count], "{name} {p}");
        }
        assert!(drafting.handle().stats().drafted_tokens > 100);
    }
}

/// Answers to one prompt, and turns that go on from the prefix cache, have a draft model that has read what they have.
#[test]
fn a_draft_model_follows_shared_and_reused_prompts() {
    let model = built_in_model();
    let drafting = engine(&model, with_draft_model(&model, 3));
    let prompt: Vec<u32> = story(&model).into_iter().cycle().take(150).collect();
    let first = drafting.handle().submit_many(greedy(&prompt, 40), 3).expect("room");
    let answers: Vec<_> = first.into_iter().map(collect).collect();
    for answer in &answers {
        assert_eq!(answer.tokens, answers[0].tokens);
        assert_eq!(answer.usage.accepted, answer.usage.drafted, "the model agrees with itself");
    }
    let longer = [&prompt[..], &answers[0].tokens].concat();
    let read = drafting.handle().stats().draft_model_tokens;
    let turn = answer(&drafting, greedy(&longer, 40));
    assert_eq!(turn.usage.cached_tokens, longer.len() - 1);
    assert!(turn.usage.drafted > 0);
    assert_eq!(turn.usage.accepted, turn.usage.drafted);
    let more = drafting.handle().stats().draft_model_tokens - read;
    assert!(more <= 40 + 8, "the draft model has read {more} tokens anew");
}

/// An edited prompt takes from a snapshot what the draft model had read of the shared beginning, and no more.
#[test]
fn a_draft_model_follows_edited_prompts() {
    let model = built_in_model();
    let drafting = engine(&model, with_draft_model(&model, 3));
    let story: Vec<u32> = story(&model).into_iter().cycle().take(400).collect();
    answer(&drafting, greedy(&story, 8));
    let mut edited = story.clone();
    edited.truncate(330);
    edited.extend(story[..50].iter().rev());
    let read = drafting.handle().stats().draft_model_tokens;
    let again = answer(&drafting, greedy(&edited, 24));
    assert!(again.usage.cached_tokens >= 256, "{:?}", again.usage);
    assert_eq!(again.usage.accepted, again.usage.drafted, "the model agrees with itself");
    assert!(again.usage.drafted > 0);
    let more = (drafting.handle().stats().draft_model_tokens - read) as usize;
    assert!(more <= 380 - again.usage.cached_tokens + 32, "the draft model has read {more} tokens anew");
    let cold = engine(&model, options());
    assert_eq!(again.tokens, answer(&cold, greedy(&edited, 24)).tokens);
}

#[test]
fn requests_set_their_own_drafts() {
    let model = built_in_model();
    let engine = engine(
        &model,
        EngineOptions { spec: SpecMode::Mtp, spec_adaptive: false, spec_draft_max: 4, ..options() },
    );
    let prompt = story(&model);
    let plain = answer(&engine, Request { spec: Some(SpecMode::Off), ..greedy(&prompt, 60) });
    assert_eq!(plain.usage.drafted, 0);
    let mut before = 0;
    for most in [0, 1, 2, 4, 9] {
        let run = answer(&engine, Request { spec_draft_max: Some(most), ..greedy(&prompt, 60) });
        assert_eq!(run.tokens, plain.tokens);
        let steps = 59 - run.usage.accepted;
        let most = most.min(4);
        assert!(run.usage.drafted <= most * steps, "{most} drafts: {:?}", run.usage);
        assert!(run.usage.drafted >= before, "{most} drafts: {:?}", run.usage);
        before = run.usage.drafted;
    }
    // Drafts of less than four tokens are dropped: those at the end, where fewer are left.
    let request = Request { spec_draft_min: Some(4), ..greedy(&prompt, 60) };
    let run = answer(&engine, request.clone());
    assert_eq!((run.tokens, run.usage.drafted % 4), (plain.tokens.clone(), 0));
    // The longest length bounds the shortest.
    let run = answer(&engine, Request { spec_draft_max: Some(3), ..request });
    assert_eq!((run.tokens, run.usage.drafted % 3), (plain.tokens, 0));
    assert!(run.usage.drafted > 0);
}

#[test]
fn sources_that_are_not_there_are_refused() {
    let (dense, built_in) = (golden_model("qwen35-dense"), built_in_model());
    let refused = |model: &Arc<Model>, options: EngineOptions| match Engine::start(model.clone(), options) {
        Err(EngineError::Spec(error)) => error,
        other => panic!("{:?}", other.err()),
    };
    assert_eq!(refused(&dense, EngineOptions { spec: SpecMode::Mtp, ..options() }), SpecError::NoHead);
    assert_eq!(
        refused(&dense, EngineOptions { spec: SpecMode::Draft, ..options() }),
        SpecError::NoDraftModel
    );
    let (found, expected) = (built_in.spec.vocab, dense.spec.vocab);
    assert_eq!(
        refused(&dense, EngineOptions { draft_model: Some(built_in), ..options() }),
        SpecError::VocabularySize { found, expected }
    );
    let lengths = EngineOptions { spec_draft_min: 5, spec_draft_max: 4, ..options() };
    assert_eq!(refused(&dense, lengths), SpecError::Lengths { least: 5, most: 4 });
    let engine = engine(&dense, options());
    for (mode, expected) in [(SpecMode::Mtp, SpecError::NoHead), (SpecMode::Draft, SpecError::NoDraftModel)] {
        let request = Request { spec: Some(mode), ..greedy(&[1], 1) };
        assert_eq!(engine.handle().submit(request).err(), Some(SubmitError::Spec(expected)));
    }
}

#[test]
fn modes_have_names() {
    for mode in [SpecMode::Off, SpecMode::Auto, SpecMode::Ngram, SpecMode::Mtp, SpecMode::Draft] {
        assert_eq!(mode.to_string().parse(), Ok(mode));
    }
    // llama.cpp's names.
    let names = ["none", "draft-mtp", "draft-simple", "ngram-map-k"];
    let modes = [SpecMode::Off, SpecMode::Mtp, SpecMode::Draft, SpecMode::Ngram];
    for (name, mode) in names.into_iter().zip(modes) {
        assert_eq!(name.parse(), Ok(mode));
    }
    assert!("eagle".parse::<SpecMode>().is_err());
}
