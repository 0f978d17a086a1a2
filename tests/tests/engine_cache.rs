//! The prefix cache: what is reused, that it changes nothing, that it keeps to its budget.

use std::sync::Arc;

use millpond::engine::{Engine, EngineOptions, Request};
use millpond::model::Model;
use millpond_tests::engines::{
    Answer, Golden, answer, built_in_model, collect, engine, golden_model, greedy, options,
};

fn exact() -> EngineOptions {
    EngineOptions { exact_cache: true, ..options() }
}

/// Reads a beginning of a prompt, so that its state is in the cache.
fn warm(engine: &Engine, prompt: &[u32]) {
    answer(engine, greedy(prompt, 0));
}

/// transformers' continuation, whatever beginning of the prompt was there before.
#[test]
fn cached_and_cold_answers_are_transformers_answers() {
    for name in ["qwen35-dense", "qwen3-next"] {
        let (golden, model) = (Golden::of(name), golden_model(name));
        let (prompt, expected) = golden.prompt(5);
        for cut in [1, 2, 31, 63, 64, 65, 100, 127, 128, 130, 150, 191, 192, 193, 199, 200] {
            let engine = engine(&model, options());
            warm(&engine, &prompt[..cut]);
            let Answer { tokens, usage, .. } = answer(&engine, greedy(&prompt, 32));
            assert_eq!(usage.cached_tokens, cut.min(prompt.len() - 1), "{name}");
            assert_eq!(usage.miss_reason, None);
            assert_eq!(tokens, expected, "{name}, cut at {cut}");
        }
    }
}

/// In exact mode a cached run gives the very bits of a cold one, on int8 kernels too.
#[test]
fn exact_reuse_gives_the_bits_of_a_cold_run() {
    let model = built_in_model();
    let prompt: Vec<u32> = (0..300u32).map(|i| 100 + i * 37 % 5000).collect();
    let request = Request { logprobs: Some(4), ..greedy(&prompt, 12) };
    let cold = answer(&engine(&model, options()), request.clone());
    for (cut, cached) in [(20, 20), (64, 64), (200, 192), (256, 256), (280, 280), (300, 299)] {
        let engine = engine(&model, exact());
        warm(&engine, &prompt[..cut]);
        let warm = answer(&engine, request.clone());
        assert_eq!(warm.usage.cached_tokens, cached, "cut at {cut}");
        assert_eq!((&warm.tokens, &warm.logprobs), (&cold.tokens, &cold.logprobs), "cut at {cut}");
    }
    // After an answer, too: the state of its tokens is not used, that of the prompt is.
    let engine = engine(&model, exact());
    answer(&engine, greedy(&prompt[..280], 40));
    let warm = answer(&engine, request);
    assert_eq!((&warm.tokens, &warm.logprobs), (&cold.tokens, &cold.logprobs));
    assert!(warm.usage.cached_tokens >= 256);
}

/// The lengths of a conversation's prompts, and how much of each was reused.
fn converse(model: &Arc<Model>, engine: &Engine) -> Vec<(usize, usize)> {
    let tokenizer = model.tokenizer.as_ref().expect("a tokenizer");
    let encode = |text: &str| tokenizer.encode(text, true).expect("tokens");
    let system = "You tell stories about a pond, a mill and the people who live there. ".repeat(12);
    let mut history = encode(&system);
    let mut shares = Vec::new();
    for turn in 0..6 {
        let boundary = history.len();
        history.extend(encode(&format!("\nUser: what happens on day {turn}?\nMiller:")));
        let request = Request { message_boundaries: vec![boundary], ..greedy(&history, 30) };
        let Answer { tokens, usage, .. } = answer(engine, request);
        shares.push((boundary, usage.cached_tokens));
        history.extend(tokens);
    }
    shares
}

#[test]
fn turns_of_a_conversation_read_only_what_is_new() {
    let model = built_in_model();
    let engine = engine(&model, options());
    let shares = converse(&model, &engine);
    assert_eq!(shares[0].1, 0);
    for &(reusable, cached) in &shares[1..] {
        // All but the last generated token, whose state was never computed.
        assert_eq!(cached, reusable - 1);
    }
    // The same again: nothing is new.
    for (reusable, cached) in converse(&model, &engine) {
        assert!(cached * 20 >= reusable * 19, "{cached} of {reusable}");
    }
}

#[test]
fn edited_and_dated_prompts_reuse_what_they_share() {
    let engine = engine(&built_in_model(), options());
    let history: Vec<u32> = (0..900u32).map(|i| 100 + i * 31 % 4000).collect();
    let with = |tail: &[u32]| [&history[..], tail].concat();
    let boundaries = vec![700, 900];
    let ask = |tail: &[u32]| {
        let request = Request { message_boundaries: boundaries.clone(), ..greedy(&with(tail), 4) };
        answer(&engine, request).usage
    };
    ask(&[7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18]);
    // The last message edited: all whole chunks before it are there.
    let edited = ask(&[20; 30]);
    assert!(edited.cached_tokens * 20 >= 900 * 19, "{edited:?}");
    // Another date at the end: from the second on, all there is in common.
    ask(&[7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 99]);
    let dated = ask(&[7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 77]);
    assert_eq!(dated.cached_tokens, 911, "{dated:?}");
}

#[test]
fn misses_are_explained() {
    let engine = engine(&golden_model("qwen35-dense"), options());
    let (prompt, other) = ([3u32; 150], [4u32; 150]);
    let reason = |request: Request| answer(&engine, request).usage.miss_reason.unwrap_or_default();
    assert_eq!(reason(greedy(&prompt, 1)), "no earlier prompt begins like this one");
    assert_eq!(reason(greedy(&other, 1)), "no earlier prompt begins like this one");
    assert_eq!(reason(greedy(&prompt, 1)), "");
    let parted = [&prompt[..100], &other[..50]].concat();
    assert_eq!(
        reason(greedy(&parted, 1)),
        "100 tokens are known, but the last state kept among them is that after 64"
    );
    assert_eq!(
        reason(Request { cache_prompt: false, ..greedy(&prompt, 1) }),
        "the request asked for no cache"
    );
    assert!(reason(Request { echo: true, ..greedy(&prompt, 1) }).contains("probabilities"));
    // The parting of the ways was worth a snapshot: a third prompt that goes its own way there finds it.
    let third = [&prompt[..100], &[5u32; 50]].concat();
    let usage = answer(&engine, greedy(&third, 1)).usage;
    assert_eq!(usage.cached_tokens, 64);
}

/// Prompts that arrive together and begin alike are read once as far as they do.
#[test]
fn prompts_that_arrive_together_share_their_beginning() {
    let engine = engine(&golden_model("qwen35-dense"), options());
    let prompt = |last: u32| [&[9u32; 640][..], &[last; 20]].concat();
    let running: Vec<_> =
        (1..5).map(|last| engine.handle().submit(greedy(&prompt(last), 2)).expect("room")).collect();
    let cached: Vec<usize> =
        running.into_iter().map(|generation| collect(generation).usage.cached_tokens).collect();
    assert_eq!(cached.iter().filter(|&&cached| cached == 640).count(), 3, "{cached:?}");
}

#[test]
fn the_cache_keeps_to_its_budget() {
    let model = golden_model("qwen35-dense");
    let large = engine(&model, options());
    answer(&large, greedy(&[1; 200], 4));
    let few = large.handle().stats().cache_bytes;
    assert!(few > 0);
    let small = engine(&model, EngineOptions { cache_budget: Some(few), ..options() });
    for i in 0..30 {
        answer(&small, greedy(&[i; 200], 4));
        let stats = small.handle().stats();
        assert!(stats.cache_bytes <= few && stats.cache_entries > 0, "{stats:?}");
    }
    // Of what came last, the snapshot that saves most is there; of what came long before, nothing.
    assert!(answer(&small, greedy(&[29; 200], 4)).usage.cached_tokens >= 128);
    assert_eq!(answer(&small, greedy(&[2; 200], 4)).usage.cached_tokens, 0);
    let none = engine(&model, EngineOptions { cache_budget: Some(0), ..options() });
    answer(&none, greedy(&[1; 200], 4));
    assert_eq!(none.handle().stats().cache_bytes, 0);
}
