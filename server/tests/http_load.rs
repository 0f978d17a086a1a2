//! Many clients at once, those that leave, those that come back: small versions of the scenarios of `scripts/load.py`, which
//! measures the times. Nothing here depends on how long anything takes.

mod common;

use std::io::{BufRead, BufReader};
use std::net::TcpStream;
use std::sync::Mutex;
use std::time::Duration;

use common::{Server, alone, config, eventually};
use millpond::engine::EngineOptions;
use serde_json::{Value, json};

fn open_files() -> usize {
    std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count)
}

fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").map_or(0, Iterator::count)
}

#[test]
fn clients_that_leave_anywhere_leave_nothing_behind() {
    let _turn = alone();
    let server = Server::start();
    let story = "Once upon a time there was a frog who lived in a pond. ";
    let files = open_files();
    for i in 0..60 {
        let prompt = story.repeat(1 + i * 7 % 20);
        let body = json!({"prompt": prompt, "max_tokens": 400, "ignore_eos": true, "stream": i % 2 == 0});
        let socket = server.send("/v1/completions", &body);
        match i % 4 {
            // In the queue, or in the middle of the prompt.
            0 => {}
            // After the first byte of the answer, which a whole answer never sends in time.
            1 => eventually("it runs", || !server.stats().slots.is_empty()),
            _ if i % 2 == 0 => {
                let mut line = String::new();
                BufReader::new(&socket).read_line(&mut line).unwrap();
            }
            _ => eventually("it has begun", || server.stats().slots.iter().any(|slot| slot.generated > 2)),
        }
        drop(socket);
    }
    eventually("nothing runs or waits", || server.stats().slots.is_empty() && server.stats().waiting == 0);
    assert_eq!(server.stats().reserved_bytes, 0);
    let stats = server.stats();
    // Every fourth was seen to be answered; how many others came so far is a matter of time.
    assert!(stats.accepted >= 15, "{} came as far as the engine", stats.accepted);
    assert_eq!(stats.completed + stats.cancelled, stats.accepted);
    eventually("their sockets are closed", || open_files() <= files);
}

#[test]
fn mixed_requests_of_many_clients_are_all_answered_and_leave_nothing_behind() {
    let _turn = alone();
    let server = Server::start();
    let requests = [
        ("/v1/completions", json!({"prompt": "Once upon", "max_tokens": 5})),
        ("/v1/chat/completions", json!({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4})),
        (
            "/v1/chat/completions",
            json!({"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4, "stream": true}),
        ),
        ("/v1/messages", json!({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3})),
        ("/completion", json!({"prompt": "The king", "n_predict": 4, "n_probs": 2})),
        ("/tokenize", json!({"content": "a b c"})),
        ("/v1/embeddings", json!({"input": ["a", "b"]})),
        (
            "/v1/completions",
            json!({"prompt": "Well", "max_tokens": 6, "grammar": "root ::= \"yes\" | \"no\""}),
        ),
        ("/v1/responses", json!({"input": "Hi", "max_output_tokens": 3})),
        ("/api/generate", json!({"model": "pond", "prompt": "Hi", "options": {"num_predict": 3}})),
    ];
    let round = |count: usize| {
        let next = Mutex::new(0..count);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    while let Some(i) = { next.lock().unwrap().next() } {
                        let (path, body) = &requests[i % requests.len()];
                        let reply = server.post(path, body);
                        assert_eq!(reply.status, 200, "{path}: {}", reply.text);
                    }
                });
            }
        });
    };
    round(40);
    let settled = || server.stats().slots.is_empty() && server.stats().waiting == 0;
    eventually("nothing runs", settled);
    let (files, threads_before) = (open_files(), threads());
    round(200);
    eventually("nothing runs", settled);
    assert_eq!(server.stats().failed + server.stats().cancelled, 0);
    assert_eq!(server.stats().reserved_bytes, 0);
    eventually("descriptors are what they were", || open_files() <= files);
    // The runtime keeps a few threads for work that may take a while, and no more.
    assert!(threads() <= threads_before + 16, "{} after {threads_before}", threads());
}

/// Tokens of a conversation's prompt that were reused, and those there were.
fn reused(server: &Server, messages: &Value) -> (u64, u64, String) {
    let request = json!({"messages": messages, "max_tokens": 8});
    let reply = server.post("/v1/chat/completions", &request).ok();
    let usage = &reply["usage"];
    let text = reply["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
    let cached = usage["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
    (cached, usage["prompt_tokens"].as_u64().unwrap(), text)
}

fn said(role: &str, text: &str) -> Value {
    json!({"role": role, "content": text})
}

#[test]
fn ten_turns_an_edit_and_a_new_date_reuse_what_they_can() {
    let server = Server::start();
    let words = "river stone cloud lantern meadow winter horse garden silver window ".repeat(4);
    let mut messages = vec![said("system", &words)];
    let mut before = 0;
    for turn in 0..10 {
        messages.push(said("user", &format!("{turn} {words}")));
        let (cached, count, answer) = reused(&server, &messages.clone().into());
        assert!(cached * 100 >= before * 95, "turn {turn}: {cached} of {before}");
        before = count;
        messages.push(said("assistant", &answer));
    }
    let mut edited = messages[..messages.len() - 2].to_vec();
    let counted = server.post("/v1/chat/completions/input_tokens", &json!({"messages": edited})).ok();
    let shared = counted["input_tokens"].as_u64().unwrap();
    edited.push(said("user", "Something else."));
    let (cached, ..) = reused(&server, &edited.into());
    // What begins the answer is counted but not shared: a handful of tokens.
    assert!((cached + 8) * 100 >= shared * 95, "an edited turn: {cached} of {shared}");
    let dated = |time: &str| json!([said("user", &format!("{} It is {time}.", words.repeat(4)))]);
    reused(&server, &dated("10:00:00"));
    let (cached, count, _) = reused(&server, &dated("10:07:31"));
    assert!(cached * 100 >= (count - 16) * 95, "a new date: {cached} of {count}");
}

#[test]
fn a_saved_conversation_goes_on_after_a_restart_with_nothing_read_again() {
    let folder = tempfile::tempdir().unwrap();
    let options = || EngineOptions {
        threads: 2,
        session_dir: Some(folder.path().to_owned()),
        ..EngineOptions::default()
    };
    let story = "Once upon a time there was a frog who lived in a pond. ".repeat(12);
    let request =
        |prompt: &str| json!({"prompt": prompt, "max_tokens": 12, "id_slot": 3, "ignore_eos": true});
    let server = Server::with(config(), options());
    let first =
        server.post("/v1/chat/completions", &json!({"messages": [said("user", &story)], "max_tokens": 8}));
    assert_eq!(first.status, 200);
    let text = server.post("/completion", &request(&story)).ok()["content"].as_str().unwrap().to_owned();
    let saved =
        server.post("/slots/3?action=save", &json!({"filename": "frog"})).ok()["n_saved"].as_u64().unwrap();
    drop(server);
    let server = Server::with(config(), options());
    let restored = server.post("/slots/0?action=restore", &json!({"filename": "frog"})).ok();
    assert_eq!(restored["n_restored"], saved);
    let more = server.post("/completion", &request(&format!("{story}{text} And then"))).ok();
    assert_eq!(more["timings"]["cache_n"], saved, "{}", more["timings"]);
}

#[test]
fn streams_go_on_while_a_long_prompt_is_read() {
    let _turn = alone();
    // With so short a time, slices are as small as they can be.
    let options = EngineOptions { threads: 2, max_gap: Duration::from_millis(1), ..EngineOptions::default() };
    let server = Server::with(config(), options);
    let body = json!({"prompt": "Once", "max_tokens": 3500, "ignore_eos": true, "stream": true});
    let sockets: Vec<TcpStream> = (0..3).map(|_| server.send("/v1/completions", &body)).collect();
    let tokens_of = || -> Vec<usize> { server.stats().slots.iter().map(|slot| slot.generated).collect() };
    let readers: Vec<_> = sockets
        .iter()
        .map(|socket| {
            let socket = socket.try_clone().unwrap();
            // Reads on, so that nobody waits for it, until the connection is closed.
            std::thread::spawn(move || BufReader::new(socket).lines().map_while(Result::ok).count())
        })
        .collect();
    eventually("all streams generate", || tokens_of().iter().filter(|&&count| count > 4).count() == 3);
    let before: usize = tokens_of().iter().sum();
    let ids: Vec<u32> = (0..800).map(|i| 300 + i * 37 % 9000).collect();
    let long = json!({"prompt": ids, "n_predict": 1, "stream": true, "return_progress": true});
    let slices = server
        .stream("/completion", &long)
        .iter()
        .filter(|chunk| chunk.get("prompt_progress").is_some())
        .count();
    let after: usize = tokens_of().iter().sum();
    // Each pass with a slice of the prompt holds a row of every stream beside it.
    assert!(slices >= 12, "{slices} slices");
    assert!(after >= before + 3 * (slices - 1), "{before} to {after} tokens during {slices} slices");
    for socket in &sockets {
        socket.shutdown(std::net::Shutdown::Both).unwrap();
    }
    for reader in readers {
        reader.join().unwrap();
    }
    eventually("they are gone", || server.stats().slots.is_empty());
}

/// Jain's index of fairness: 1 where all have the same.
fn fairness(shares: &[usize]) -> f64 {
    let sum: f64 = shares.iter().map(|&share| share as f64).sum();
    let squares: f64 = shares.iter().map(|&share| (share as f64).powi(2)).sum();
    sum * sum / (shares.len() as f64 * squares)
}

#[test]
fn equal_streams_get_equal_shares() {
    let _turn = alone();
    let server = Server::start();
    let sockets: Vec<TcpStream> = (0..8)
        .map(|i| {
            let body = json!({"prompt": format!("Frog {i} said"), "max_tokens": 1500, "ignore_eos": true});
            server.send("/v1/completions", &body)
        })
        .collect();
    eventually("all of them generate", || {
        server.stats().slots.iter().filter(|slot| slot.generated > 0).count() == 8
    });
    let of = || -> Vec<(u64, usize)> {
        server.stats().slots.iter().map(|slot| (slot.id, slot.generated)).collect()
    };
    let before = of();
    let mut after = before.clone();
    eventually("some time has passed", || {
        let now = of();
        let full = now.len() == 8;
        if full {
            after = now;
        }
        !full || after[0].1 > before[0].1 + 100
    });
    let shares: Vec<usize> = before.iter().zip(&after).map(|(before, after)| after.1 - before.1).collect();
    assert!(before.iter().zip(&after).all(|(before, after)| before.0 == after.0));
    assert!(shares.iter().sum::<usize>() > 0 && fairness(&shares) >= 0.9, "{shares:?}");
    drop(sockets);
    eventually("they are gone", || server.stats().slots.is_empty());
}
