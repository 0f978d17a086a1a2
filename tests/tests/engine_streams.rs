//! Requests through the engine: several at once, limits, stops, cancellation, what a prompt yields.

use std::time::{Duration, Instant};

use millpond::engine::{EngineOptions, FinishReason, Generation, Pooling, Request, SubmitError};
use millpond::sample::SamplingParams;
use millpond_tests::engines::{
    Golden, answer, built_in_model, collect, engine, golden_model, greedy, options,
};

/// transformers' greedy continuations, with all prompts in the engine at once.
#[test]
fn concurrent_greedy_streams_equal_transformers() {
    for name in ["qwen35-dense", "qwen3-next", "qwen35-moe"] {
        let golden = Golden::of(name);
        let engine = engine(&golden_model(name), options());
        let submit = |p| engine.handle().submit(greedy(&golden.prompt(p).0, 32)).expect("room");
        let running: Vec<Generation> = (0..6).map(submit).collect();
        for (p, generation) in running.into_iter().enumerate() {
            let answer = collect(generation);
            assert_eq!(answer.tokens, golden.prompt(p).1, "{name}, prompt {p}");
            assert_eq!(answer.reason, FinishReason::Length);
            assert_eq!(answer.usage.completion_tokens, 32);
        }
    }
}

#[test]
fn text_streams_and_stops() {
    let model = built_in_model();
    let tokenizer = model.tokenizer.clone().expect("a tokenizer");
    let engine = engine(&model, options());
    let prompt = tokenizer.encode("Once upon a time", false).expect("tokens");
    let whole = answer(&engine, greedy(&prompt, 40));
    assert_eq!(whole.text, tokenizer.decode(&whole.tokens, true));
    assert_eq!(whole.reason, FinishReason::Length);
    // Stop at a word of its own making: the text before it comes out whole, and nothing of it.
    let word = whole.text.split_whitespace().nth(5).expect("words").to_owned();
    let before = &whole.text[..whole.text.find(&word).expect("the word")];
    let stopped = answer(&engine, Request { stop: vec![word.clone()], ..greedy(&prompt, 40) });
    assert_eq!(stopped.text, before);
    assert_eq!(stopped.reason, FinishReason::Stop(word));
    assert!(stopped.usage.completion_tokens < 40);
}

#[test]
fn sampled_streams_depend_on_their_seed_and_on_nothing_beside_them() {
    let model = golden_model("qwen35-dense");
    let golden = Golden::of("qwen35-dense");
    let (prompt, greedy_tokens) = golden.prompt(2);
    let sampled = |seed| {
        let sampling = SamplingParams { seed: Some(seed), temperature: 1.5, ..SamplingParams::default() };
        Request { sampling, ..greedy(&prompt, 24) }
    };
    let alone = engine(&model, options());
    let solo: Vec<Vec<u32>> = (0..4).map(|seed| answer(&alone, sampled(seed)).tokens).collect();
    assert_ne!(solo[0], solo[1]);
    assert_ne!(solo[0], greedy_tokens);
    let crowd = engine(&model, options());
    let running: Vec<Generation> =
        (0..4).map(|seed| crowd.handle().submit(sampled(seed)).expect("room")).collect();
    let together: Vec<Vec<u32>> = running.into_iter().map(|generation| collect(generation).tokens).collect();
    assert_eq!(solo, together);
}

#[test]
fn dropped_and_cancelled_streams_give_everything_back() {
    let engine = engine(&built_in_model(), EngineOptions { cache_budget: Some(0), ..options() });
    let handle = engine.handle();
    let endless = Request { max_tokens: None, ..greedy(&[5; 700], 0) };
    let dropped = handle.submit(endless.clone()).expect("room");
    let cancelled = handle.submit(endless.clone()).expect("room");
    let stays = handle.submit(Request { max_tokens: Some(8), ..endless }).expect("room");
    drop(dropped);
    cancelled.cancel();
    assert_eq!(collect(cancelled).reason, FinishReason::Cancelled);
    assert_eq!(collect(stays).reason, FinishReason::Length);
    let deadline = Instant::now() + Duration::from_secs(20);
    while !handle.stats().slots.is_empty() {
        assert!(Instant::now() < deadline, "streams stay");
        std::thread::sleep(Duration::from_millis(5));
    }
    let stats = handle.stats();
    assert_eq!((stats.reserved_bytes, stats.waiting, stats.cache_bytes), (0, 0, 0));
    assert_eq!((stats.cancelled, stats.completed, stats.failed), (2, 1, 0));
}

#[test]
fn requests_that_cannot_be_served_are_refused_at_once() {
    let model = golden_model("qwen35-dense");
    let small = engine(&model, EngineOptions { context: 100, max_queue: 0, ..options() });
    let refuse = |request: Request| small.handle().submit(request).expect_err("a refusal");
    assert!(matches!(refuse(Request::new(vec![])), SubmitError::Invalid(_)));
    assert!(matches!(refuse(Request::new(vec![u32::MAX])), SubmitError::Invalid(_)));
    let hot = SamplingParams { temperature: f32::NAN, ..SamplingParams::default() };
    assert!(matches!(refuse(Request { sampling: hot, ..greedy(&[1], 1) }), SubmitError::Invalid(_)));
    assert_eq!(
        refuse(greedy(&[1; 50], 51)).to_string(),
        "50 prompt tokens and 51 tokens to generate exceed the context of 100"
    );
    assert!(matches!(refuse(Request::new(vec![1])), SubmitError::QueueFull { waiting: 0, .. }));
    let poor = engine(&model, EngineOptions { memory_budget: Some(1000), ..options() });
    let error = poor.handle().submit(Request::new(vec![1])).expect_err("a refusal");
    assert!(matches!(error, SubmitError::TooLarge { budget: 1000, .. }));
}

/// Requests that do not fit side by side wait for each other; each still gets the whole of its answer.
#[test]
fn a_memory_budget_is_respected() {
    let golden = Golden::of("qwen35-dense");
    let model = golden_model("qwen35-dense");
    let (prompt, expected) = golden.prompt(5);
    let one = {
        let engine = engine(&model, options());
        let generation = engine.handle().submit(greedy(&prompt, 32)).expect("room");
        let mut most = 0;
        for _ in generation {
            most = most.max(engine.handle().stats().reserved_bytes);
        }
        most
    };
    assert!(one > 0);
    let engine = engine(&model, EngineOptions { memory_budget: Some(one * 2), ..options() });
    let running: Vec<Generation> =
        (0..5).map(|_| engine.handle().submit(greedy(&prompt, 32)).expect("room")).collect();
    for generation in running {
        for event in generation {
            let stats = engine.handle().stats();
            assert!(stats.reserved_bytes <= one * 2 && stats.slots.len() <= 2);
            if let millpond::engine::Event::Done { usage, .. } = event {
                assert_eq!(usage.completion_tokens, expected.len());
            }
        }
    }
}

/// Probabilities of the prompt are those of its tokens one by one; embeddings are the hidden states.
#[test]
fn prompts_yield_probabilities_and_vectors() {
    let golden = Golden::of("qwen35-dense");
    let engine = engine(&golden_model("qwen35-dense"), options());
    let (prompt, _) = golden.prompt(4);
    let echoed = answer(&engine, Request { echo: true, logprobs: Some(3), ..greedy(&prompt, 1) });
    assert_eq!(echoed.prompt.len(), prompt.len());
    assert!(echoed.prompt[0].is_none());
    let vocab = engine.handle().model().spec.vocab;
    let logits = golden.floats("prompt.4.logits");
    for (t, logprob) in echoed.prompt.iter().enumerate().skip(1) {
        let logprob = logprob.as_ref().expect("a probability");
        let row: Vec<f64> = logits[(t - 1) * vocab..t * vocab].iter().map(|&x| f64::from(x)).collect();
        let normaliser = row.iter().map(|x| x.exp()).sum::<f64>().ln();
        assert_eq!(logprob.id, prompt[t]);
        assert!(
            (f64::from(logprob.logprob) - (row[prompt[t] as usize] - normaliser)).abs() < 1e-3,
            "row {t}"
        );
        assert_eq!(logprob.top.len(), 3);
        assert!(logprob.top[0].1 >= logprob.top[1].1 && logprob.top[0].1 >= logprob.logprob);
    }
    let vector = |pooling, prompt: &[u32]| {
        answer(&engine, Request { embeddings: Some(pooling), ..greedy(prompt, 0) }).embedding
    };
    // The mean over a prompt is the mean of the last states of all its beginnings.
    let prompt = &prompt[..9];
    let states: Vec<Vec<f32>> = (1..=9).map(|n| vector(Pooling::Last, &prompt[..n])).collect();
    for (i, &mean) in vector(Pooling::Mean, prompt).iter().enumerate() {
        let expected = states.iter().map(|state| state[i]).sum::<f32>() / 9.0;
        assert!((mean - expected).abs() <= 1e-5 * expected.abs().max(1.0));
    }
    assert_eq!(states[0].len(), engine.handle().model().spec.hidden);
}

/// Several answers to one request read its prompt once, and each is what it would be alone.
#[test]
fn many_answers_share_one_prompt() {
    let (golden, model) = (Golden::of("qwen35-dense"), golden_model("qwen35-dense"));
    let (prompt, _) = golden.prompt(5);
    let sampled = |seed| {
        let sampling = SamplingParams { seed: Some(seed), temperature: 1.2, ..SamplingParams::default() };
        Request { sampling, ..greedy(&prompt, 20) }
    };
    let alone = engine(&model, options());
    let solo: Vec<Vec<u32>> = (7..12).map(|seed| answer(&alone, sampled(seed)).tokens).collect();
    // Without a cache, so that nothing but the fork can be at work.
    let engine = engine(&model, EngineOptions { cache_budget: Some(0), ..options() });
    let request = Request { cache_prompt: false, ..sampled(7) };
    let answers = engine.handle().submit_many(request, 5).expect("room");
    let answers: Vec<_> = answers.into_iter().map(collect).collect();
    let tokens: Vec<Vec<u32>> = answers.iter().map(|answer| answer.tokens.clone()).collect();
    assert_eq!(tokens, solo);
    let cached: Vec<usize> = answers.iter().map(|answer| answer.usage.cached_tokens).collect();
    assert_eq!(cached, [0, 200, 200, 200, 200]);
}

/// A receiver that does not read does not run up memory, holds nobody else up, and is given up in the end.
#[test]
fn receivers_that_do_not_read_are_given_up() {
    let stall_timeout = Duration::from_millis(300);
    let engine = engine(&golden_model("qwen35-dense"), EngineOptions { stall_timeout, ..options() });
    let handle = engine.handle();
    let most = handle.context() - 1;
    let ignored = handle.submit(greedy(&[1], most)).expect("room");
    assert_eq!(answer(&engine, greedy(&[2; 40], 30)).tokens.len(), 30);
    let deadline = Instant::now() + Duration::from_secs(20);
    while !handle.stats().slots.is_empty() {
        assert!(Instant::now() < deadline, "it is kept");
        std::thread::sleep(Duration::from_millis(5));
    }
    let answer = collect(ignored);
    assert_eq!(answer.reason, FinishReason::Cancelled);
    assert!(answer.tokens.len() < most, "{} tokens", answer.tokens.len());
}

/// Short prompts that arrive together are read in few passes.
#[test]
fn short_prompts_share_a_pass() {
    let engine = engine(&golden_model("qwen35-dense"), EngineOptions { cache_budget: Some(0), ..options() });
    // So that the engine is busy while they arrive.
    let first = engine.handle().submit(greedy(&[1; 3000], 1)).expect("room");
    let running: Vec<Generation> =
        (0..12).map(|i| engine.handle().submit(greedy(&[i + 2, 3, 4, 5, 6], 2)).expect("room")).collect();
    let tokens: Vec<Vec<u32>> = running.into_iter().map(|generation| collect(generation).tokens).collect();
    drop(first);
    for (i, expected) in tokens.iter().enumerate() {
        let alone = answer(&engine, greedy(&[i as u32 + 2, 3, 4, 5, 6], 2));
        assert_eq!(&alone.tokens, expected);
    }
}

/// Neither the threads that read a prompt, nor how many of its rows a pass takes, nor drafts beside Mirostat's memory.
#[test]
fn how_prompts_are_read_changes_no_token() {
    use millpond::engine::SpecMode;
    use millpond::sample::Mirostat;
    let model = built_in_model();
    let tokenizer = model.tokenizer.clone().expect("a tokenizer");
    let prompt =
        tokenizer.encode(&"The mill turned and the pond was still. ".repeat(40), false).expect("tokens");
    let sampling = SamplingParams {
        mirostat: Mirostat::V2,
        mirostat_tau: 3.0,
        temperature: 0.7,
        seed: Some(9),
        ..SamplingParams::default()
    };
    let ways = [
        options(),
        EngineOptions { threads: 1, prefill_threads: 3, ..options() },
        EngineOptions { threads: 3, prefill_threads: 1, prefill_rows: 64, ..options() },
        EngineOptions { spec: SpecMode::Ngram, spec_adaptive: false, prefill_rows: 200, ..options() },
    ];
    let answers = ways.map(|options| {
        let engine = engine(&model, options);
        let request = Request { sampling: sampling.clone(), ..greedy(&prompt, 48) };
        answer(&engine, request).tokens
    });
    assert!(answers.iter().all(|tokens| *tokens == answers[0]), "{answers:?}");
}

#[test]
fn a_warm_up_leaves_nothing_behind() {
    let model = built_in_model();
    let options = || EngineOptions { context: 512, ..options() };
    let prompt =
        model.tokenizer.clone().expect("a tokenizer").encode("Once upon a time", false).expect("tokens");
    let expected = answer(&engine(&model, options()), greedy(&prompt, 24));
    let engine = engine(&model, options());
    let handle = engine.handle();
    let before = handle.stats();
    handle.warm_up().expect("the model runs");
    assert_eq!(handle.stats(), before);
    let found = answer(&engine, greedy(&prompt, 24));
    assert_eq!((found.tokens, found.usage.cached_tokens), (expected.tokens, 0));
    // Beside others, or where there is no room, nothing is run.
    let running = handle.submit(Request { ignore_eos: true, ..greedy(&prompt, 300) }).expect("room");
    handle.warm_up().expect("nothing to do");
    assert_eq!(collect(running).tokens.len(), 300);
    let small = millpond_tests::engines::engine(&model, EngineOptions { context: 4, ..options() });
    small.handle().warm_up().expect("nothing to do");
    let poor =
        millpond_tests::engines::engine(&model, EngineOptions { memory_budget: Some(1000), ..options() });
    poor.handle().warm_up().expect("nothing to do");
}
