//! A request that fails fails alone.

use std::sync::Arc;

use millpond::backend::cpu::{CpuBackend, CpuOptions};
use millpond::engine::{Engine, Generation, Request};
use millpond::par::Team;
use millpond_simd::{Isa, Kernels};
use millpond_tests::engines::{Golden, answer, golden_model, greedy, options, try_collect};
use millpond_tests::faulty::{Faulty, Triggers};

const TRIGGERS: Triggers = Triggers { panic: 61, error: 62, nan: 63 };

fn faulty_engine() -> Engine {
    let (model, options) = (golden_model("qwen35-dense"), options());
    let cpu = CpuOptions {
        kv_type: options.kv_type,
        state_type: options.buffer.state_type,
        max_window: options.buffer.max_window,
        fold_interval: options.buffer.fold_interval,
        arithmetic: options.arithmetic,
    };
    let kernels = Kernels::for_isa(Isa::detect()).expect("an available level");
    let team = Team::new(2).expect("threads");
    let inner =
        CpuBackend::new(model.spec.clone(), model.weights.clone(), kernels, team, cpu).expect("a model");
    Engine::start_on(Box::new(Faulty { inner, triggers: TRIGGERS }), model, options).expect("an engine")
}

/// Prompts without the tokens that make the backend fail.
fn harmless(golden: &Golden) -> Vec<usize> {
    let bad = [TRIGGERS.panic, TRIGGERS.error, TRIGGERS.nan];
    let clean = |tokens: &[u32]| !tokens.iter().any(|token| bad.contains(token));
    (0..6).filter(|&p| clean(&golden.prompt(p).0) && clean(&golden.prompt(p).1)).collect()
}

fn nothing_is_left(engine: &Engine) {
    let stats = engine.handle().stats();
    assert_eq!((stats.reserved_bytes, stats.waiting, stats.slots.len()), (0, 0, 0));
}

#[test]
fn panics_and_errors_stay_with_their_request() {
    let golden = Golden::of("qwen35-dense");
    let good = harmless(&golden);
    assert!(!good.is_empty(), "the golden file has such prompts");
    let engine = faulty_engine();
    for (token, message) in [
        (TRIGGERS.panic, "internal error: token 61 was seen"),
        (TRIGGERS.error, "it does not like the token"),
        (TRIGGERS.nan, "the logit of token 0 is NaN"),
    ] {
        let bad = [&[4; 90][..], &[token, 5]].concat();
        let error =
            try_collect(engine.handle().submit(greedy(&bad, 4)).expect("room")).expect_err("a failure");
        assert!(error.contains(message), "{error}");
        for &p in &good {
            let (prompt, expected) = golden.prompt(p);
            assert_eq!(answer(&engine, greedy(&prompt, 32)).tokens, expected);
        }
        nothing_is_left(&engine);
    }
    let stats = engine.handle().stats();
    assert_eq!((stats.failed, stats.completed), (3, 3 * good.len() as u64));
}

/// An error of a pass with several streams: only the one that causes it fails, the others give what they give alone.
#[test]
fn neighbours_of_a_failing_stream_go_on() {
    let golden = Golden::of("qwen35-dense");
    let good = harmless(&golden);
    let engine = faulty_engine();
    let mut running: Vec<(Option<usize>, Generation)> = Vec::new();
    for &p in &good {
        let request = greedy(&golden.prompt(p).0, 32);
        running.push((Some(p), engine.handle().submit(request).expect("room")));
        let bad = [&[1; 70][..], &[TRIGGERS.error]].concat();
        running.push((None, engine.handle().submit(greedy(&bad, 4)).expect("room")));
    }
    for (p, generation) in running {
        match (p, try_collect(generation)) {
            (Some(p), answer) => assert_eq!(answer.expect("an answer").tokens, golden.prompt(p).1),
            (None, answer) => assert!(answer.expect_err("a failure").contains("does not like")),
        }
    }
    nothing_is_left(&engine);
}

#[test]
fn stopping_an_engine_ends_its_streams() {
    let engine = Engine::start(golden_model("qwen35-dense"), options()).expect("an engine");
    let handle = engine.handle();
    let running: Vec<Generation> = (0..30)
        .map(|i| handle.submit(greedy(&[i; 100], 100_000.min(handle.context() - 100))).expect("room"))
        .collect();
    drop(engine);
    for generation in running {
        let error = try_collect(generation).expect_err("a failure");
        assert!(error.contains("stopped"), "{error}");
    }
    assert!(handle.submit(Request::new(vec![1])).is_err());
    let handle = Arc::new(handle);
    assert_eq!(handle.stats().slots.len(), 0, "nothing runs any more");
}
