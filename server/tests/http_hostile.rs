//! Foreign pages, wrong keys, hostile sockets and bodies.

mod common;

use std::io::{Read, Write};
use std::time::Duration;

use common::{Server, alone, config, eventually};
use millpond::engine::EngineOptions;
use millpond_server::http::config::ServerConfig;
use serde_json::{Value, json};

const TYPE: (&str, &str) = ("content-type", "application/json");

#[test]
fn foreign_hosts_and_origins_are_turned_away_before_anything_happens() {
    let server = Server::start();
    let body = json!({"prompt": "Once", "n_predict": 1}).to_string();
    let host = server.address.to_string();
    for foreign in
        ["evil.example", "evil.example.", "EVIL.example:8137", "2130706433", "[::2]", "192.168.1.1"]
    {
        let reply = server.post_with("/completion", &[TYPE, ("host", foreign)], &body);
        reply.refused(403);
    }
    let foreign = ["http://evil.example", "null", "file://", "http://localhost.evil.example"];
    for origin in foreign {
        let reply = server.post_with("/completion", &[TYPE, ("origin", origin)], &body);
        reply.refused(403);
        assert!(reply.header("access-control-allow-origin").is_none());
        // What a page can send without asking first.
        server
            .post_with("/completion", &[("content-type", "text/plain"), ("origin", origin)], &body)
            .refused(403);
    }
    assert_eq!(server.stats().accepted, 0);
    server.post_with("/completion", &[("content-type", "text/plain")], &body).refused(415);
    let own = format!("http://{host}");
    assert_eq!(server.post_with("/completion", &[TYPE, ("origin", &own)], &body).status, 200);
    assert_eq!(server.post_with("/completion", &[TYPE, ("host", "localhost:1")], &body).status, 200);
}

#[test]
fn an_allowed_page_gets_its_answer_and_its_preflight() {
    let origin = "https://pond.example";
    let config = ServerConfig { allowed_origins: vec![origin.to_owned()], ..config() };
    let server = Server::with(config, EngineOptions::default());
    let reply = server.post_with("/tokenize", &[TYPE, ("origin", origin)], "{\"content\": \"x\"}");
    assert_eq!(reply.status, 200);
    assert_eq!(reply.header("access-control-allow-origin"), Some(origin));
    let head = format!(
        "OPTIONS /completion HTTP/1.1\r\nhost: {}\r\norigin: {origin}\r\nconnection: close\r\n\r\n",
        server.address
    );
    let answer = server.raw(head.as_bytes()).to_ascii_lowercase();
    assert!(
        answer.starts_with("http/1.1 204") && answer.contains("access-control-allow-headers"),
        "{answer}"
    );
    server.post_with("/tokenize", &[TYPE, ("origin", "https://other.example")], "{}").refused(403);
    // Pages of the wide net ask for more than an origin before they reach into a home.
    let foreign = format!(
        "OPTIONS /completion HTTP/1.1\r\nhost: {}\r\norigin: https://other.example\r\n\
         access-control-request-method: POST\r\naccess-control-request-private-network: true\r\n\
         connection: close\r\n\r\n",
        server.address
    );
    let answer = server.raw(foreign.as_bytes()).to_ascii_lowercase();
    assert!(answer.starts_with("http/1.1 403") && !answer.contains("access-control-allow"), "{answer}");
}

#[test]
fn a_key_is_needed_where_one_is_set() {
    let config = ServerConfig { api_keys: vec!["first".to_owned(), "second".to_owned()], ..config() };
    let server = Server::with(config, EngineOptions::default());
    let body = "{\"content\": \"x\"}";
    let long = "x".repeat(10_000);
    for header in [
        ("authorization", "Bearer wrong"),
        ("authorization", "Bearer "),
        ("authorization", "first"),
        ("authorization", "Basic first"),
        ("x-api-key", "firs"),
        ("x-api-key", long.as_str()),
    ] {
        let error = server.post_with("/tokenize", &[TYPE, header], body).refused(401);
        assert!(!error.to_string().contains("first"));
    }
    server.post_with("/tokenize?api_key=first", &[TYPE], body).refused(401);
    server.get("/metrics").refused(401);
    for header in
        [("authorization", "Bearer first"), ("authorization", "bearer second"), ("x-api-key", "second")]
    {
        assert_eq!(server.post_with("/tokenize", &[TYPE, header], body).status, 200);
    }
    assert_eq!(server.get("/health").text, "{\"status\":\"ok\"}");
}

#[test]
fn bodies_are_bounded_in_size_depth_and_kind() {
    let config = ServerConfig { max_body: 4096, ..config() };
    let server = Server::with(config, EngineOptions::default());
    let body = |length: usize| {
        let frame = "{\"content\": \"\"}".len();
        format!("{{\"content\": \"{}\"}}", "a".repeat(length - frame))
    };
    assert_eq!(server.post_with("/tokenize", &[TYPE], &body(4096)).status, 200);
    server.post_with("/tokenize", &[TYPE], &body(4097)).refused(413);
    let chunked = format!(
        "POST /tokenize HTTP/1.1\r\nhost: {}\r\ncontent-type: application/json\r\n\
         transfer-encoding: chunked\r\nconnection: close\r\n\r\n{}0\r\n\r\n",
        server.address,
        format!("400\r\n{}\r\n", " ".repeat(1024)).repeat(8)
    );
    assert!(server.raw(chunked.as_bytes()).starts_with("HTTP/1.1 413"));
    server.post_with("/tokenize", &[TYPE, ("content-encoding", "gzip")], "x").refused(415);
    for text in [
        "",
        "{",
        "[]",
        "[null, \"x\"]",
        "nonsense",
        "{\"content\": 5}",
        "{\"content\": null}",
        "{\"content\": \"\\ud800\"}",
        "{\"content\": \"x\", \"content\": \"y\"}",
        "\u{feff}{\"content\": \"x\"}",
        "{\"content\": \"x\", \"add_special\": \"yes\"}",
        "{\"content\": 1e400}",
    ] {
        server.post_with("/tokenize", &[TYPE], text).refused(400);
    }
    let deep = format!("{{\"content\": {}", "[".repeat(2000));
    server.post_with("/tokenize", &[TYPE], &deep).refused(400);
    let shallow = format!("{{\"content\": \"x\", \"y\": {}{}}}", "[".repeat(10), "]".repeat(10));
    assert_eq!(server.post_with("/tokenize", &[TYPE], &shallow).status, 200, "nested, but not deep");
}

#[test]
fn large_bodies_of_every_shape_are_taken_or_refused_in_time() {
    let server = Server::start();
    let deep = |depth: usize| format!("{{\"content\": {}", "[".repeat(depth));
    for depth in [10_000, 100_000] {
        server.post_with("/tokenize", &[TYPE], &deep(depth)).refused(400);
    }
    for depth in [128, 10_000, 100_000] {
        let messages = format!("{{\"messages\": {}1{}}}", "[".repeat(depth), "]".repeat(depth));
        server.post_with("/v1/chat/completions", &[TYPE], &messages).refused(400);
    }
    let keys: Vec<String> = (0..600_000).map(|key| format!("\"{key}\":0")).collect();
    let keys = format!("{{\"content\": \"x\", {}}}", keys.join(","));
    assert_eq!(server.post_with("/tokenize", &[TYPE], &keys).status, 200, "unknown fields are ignored");
    let frame = "{\"content\": \"x\"}".len();
    let body = |length: usize| format!("{{\"content\": \"x\"{}}}", " ".repeat(length - frame));
    assert_eq!(server.post_with("/tokenize", &[TYPE], &body(8 << 20)).status, 200);
    // Refused by what it announces: nobody has to read it first.
    let head = format!(
        "POST /tokenize HTTP/1.1\r\nhost: {}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        server.address,
        (8 << 20) + 1
    );
    assert!(server.raw(head.as_bytes()).starts_with("HTTP/1.1 413"));
}

#[test]
fn a_body_that_trickles_in_is_given_up() {
    let config = ServerConfig { body_time: Duration::from_millis(300), ..config() };
    let server = Server::with(config, EngineOptions::default());
    let mut slow = server.connect();
    let head = format!(
        "POST /tokenize HTTP/1.1\r\nhost: {}\r\ncontent-type: application/json\r\ncontent-length: 50\r\n\r\n",
        server.address
    );
    slow.write_all(head.as_bytes()).unwrap();
    let mut answer = String::new();
    let mut reader = slow.try_clone().unwrap();
    let trickle = std::thread::spawn(move || {
        // Fewer bytes than announced, however long it takes.
        for _ in 0..40 {
            if slow.write_all(b" ").is_err() {
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    });
    // The connection is of no more use, so it is closed; a reset may cut what comes after the answer.
    let _ended = reader.read_to_string(&mut answer);
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    trickle.join().unwrap();
}

/// A stream whose reader has stopped is kept as long as it may stall, and holds no more than its channel.
#[test]
fn a_reader_that_stops_is_dropped_and_its_work_ends() {
    let _turn = alone();
    let config = ServerConfig { stall_time: Duration::from_millis(500), ..config() };
    let options = EngineOptions { stall_timeout: Duration::from_millis(500), ..EngineOptions::default() };
    let server = Server::with(config, options);
    // So much comes with each token that the system's buffers do not hold the answer.
    let body =
        json!({"prompt": "Once", "n_predict": 3800, "ignore_eos": true, "stream": true, "n_probs": 64});
    let socket = server.send("/completion", &body);
    eventually("it is given up", || server.stats().cancelled == 1);
    assert_eq!((server.stats().reserved_bytes, server.stats().completed), (0, 0));
    drop(socket);
}

#[test]
fn parameters_out_of_range_are_refused_and_nothing_breaks() {
    let server = Server::start();
    let many: Vec<String> = (0..10_000).map(|index| index.to_string()).collect();
    let biases: serde_json::Map<String, Value> = (0..100_000).map(|id| (id.to_string(), json!(1))).collect();
    let cases = [
        ("max_tokens", json!(-1)),
        ("max_tokens", json!(1u64 << 31)),
        ("max_tokens", json!(1u64 << 63)),
        ("n", json!(1_000_000)),
        ("n", json!(0)),
        ("temperature", json!(1e308)),
        ("top_p", json!(-1)),
        ("logit_bias", json!(biases)),
        ("logit_bias", json!({"16384": 1})),
        ("logit_bias", json!({"1": 1e308})),
        ("stop", json!(many)),
        ("logprobs", json!(1000)),
        ("prompt", json!([-1])),
        ("prompt", json!([16384])),
        ("prompt", json!([])),
        ("prompt", json!("")),
        ("prompt", json!([[]])),
        ("prompt", json!(vec![5; 5000])),
        ("prompt", json!(vec!["x"; 10_000])),
        ("suffix", json!("x")),
    ];
    for (field, value) in cases {
        let mut request = json!({"prompt": "Once", "max_tokens": 1});
        request[field] = value;
        server.post("/v1/completions", &request).refused(400);
    }
    for (field, value) in [
        ("top_k", json!(-5)),
        ("temperature", json!(-1)),
        ("stop", json!([])),
        ("seed", json!(-3)),
        ("n_keep", json!(-7)),
        ("unknown_field", json!({"a": [1, 2]})),
    ] {
        let mut request = json!({"prompt": "Once", "max_tokens": 1});
        request[field] = value;
        server.post("/v1/completions", &request).ok();
    }
    for (field, value) in [
        ("n_predict", json!(-2)),
        ("id_slot", json!(-2)),
        ("n_probs", json!(1_000_000)),
        ("n_probs", json!(-1)),
        ("prompt", json!(vec![5; 4096])),
        ("temperature", json!("NaN")),
    ] {
        let mut request = json!({"prompt": "Once", "n_predict": 1});
        request[field] = value.clone();
        let reply = server.post("/completion", &request);
        assert_eq!(reply.status, 400, "{field}: {}", reply.text);
    }
    for (field, value) in [
        ("n_discard", json!(-5)),
        ("n_keep", json!(-1)),
        ("n_predict", json!(0)),
        ("stop", json!([""])),
        ("temperature", json!(-0.0)),
        ("id_slot", json!(-1)),
    ] {
        let mut request = json!({"prompt": "Once", "n_predict": 1});
        request[field] = value.clone();
        let reply = server.post("/completion", &request);
        assert!(matches!(reply.status, 200 | 400), "{field}: {}", reply.text);
    }
    for messages in
        [json!([]), json!([{"role": "wizard", "content": "x"}]), json!([{"content": "x"}]), json!([5])]
    {
        let reply = server.post("/v1/chat/completions", &json!({"messages": messages, "max_tokens": 1}));
        assert_eq!(reply.status, 400, "{messages}: {}", reply.text);
    }
    let tools: Vec<Value> =
        (0..10_000).map(|index| json!({"function": {"name": index.to_string()}})).collect();
    let request = json!({"messages": [{"role": "user", "content": "x"}], "tools": tools, "max_tokens": 1});
    server.post("/v1/chat/completions", &request).refused(400);
}

#[test]
fn grammars_that_ask_too_much_are_refused_in_time() {
    let _turn = alone();
    let server = Server::start();
    let nested = format!("root ::= {}\"a\"{}", "(".repeat(60_000), ")".repeat(60_000));
    let values: Vec<String> = (0..100_000).map(|index| format!("value {index}")).collect();
    let mut cyclic = json!({"$ref": "#/$defs/a"});
    cyclic["$defs"] = json!({"a": {"$ref": "#/$defs/a"}});
    let wishes = [
        ("grammar", json!(nested)),
        ("grammar", json!("root ::= root")),
        ("grammar", json!("root ::= missing")),
        ("grammar", json!("root ::= \"a\"{1,100000}{1,100000}")),
        ("json_schema", json!({"enum": values})),
        ("json_schema", cyclic),
        ("json_schema", json!({"$ref": "http://example.com/schema.json"})),
        ("json_schema", json!({"type": "nonsense"})),
        ("regex", json!("(?<=a)b")),
        ("regex", json!("(")),
    ];
    for (field, wish) in wishes {
        let mut request = json!({"prompt": "Once", "max_tokens": 2});
        request[field] = wish.clone();
        let reply = server.post("/v1/completions", &request);
        assert!(reply.status == 400 || reply.status == 413, "{field}: {} {}", reply.status, reply.text);
    }
    assert_eq!(server.stats().generated_tokens, 0, "nothing was generated without its constraint");
    // What a backtracking matcher would take for ever on is no danger to one that does not.
    let wish = json!({"prompt": "Once", "max_tokens": 24, "regex": "(a+)+$"});
    let text = server.post("/v1/completions", &wish).ok()["choices"][0]["text"].clone();
    assert!(text.as_str().unwrap().bytes().all(|byte| byte == b'a'), "{text}");
    let left = json!({"prompt": "Once", "max_tokens": 8, "grammar": "root ::= root \"a\" | \"b\""});
    let reply = server.post("/v1/completions", &left);
    if reply.status == 200 {
        let text = reply.json()["choices"][0]["text"].as_str().unwrap().to_owned();
        assert!(text.starts_with('b') && text[1..].bytes().all(|byte| byte == b'a'), "{text}");
    } else {
        reply.refused(400);
    }
}

/// Heads that a careful server refuses or closes on, and after which it still serves others.
#[test]
fn malformed_requests_are_refused() {
    let server = Server::start();
    let host = server.address;
    let with =
        |line: &str, headers: &str| format!("{line}\r\nhost: {host}\r\nconnection: close\r\n{headers}\r\n");
    let many: String = (0..101).map(|index| format!("x-{index}: y\r\n")).collect();
    let body = "{\"content\": \"x\"}";
    let cases = [
        with("GET /health HTTP/1.1", &many),
        with("GET /health HTTP/1.1", &format!("x: {}\r\n", "y".repeat(64 << 10))),
        with(&format!("GET /{} HTTP/1.1", "a".repeat(64 << 10)), ""),
        with("GET /health HTTP/1.1", "x: a\0b\r\n"),
        with("G\u{1}T /health HTTP/1.1", ""),
        with("POST /tokenize HTTP/1.1", &format!("content-length: -5\r\n\r\n{body}")),
        with("POST /tokenize HTTP/1.1", &format!("content-length: 16\r\ncontent-length: 5\r\n\r\n{body}")),
        with("POST /tokenize HTTP/1.1", &format!("content-length: +16\r\n\r\n{body}")),
        with("POST /tokenize HTTP/1.1", &format!("content-length: 9\r\n\r\n{body}")),
        with("POST /tokenize HTTP/1.1", "transfer-encoding: gzip, x\r\n\r\nx"),
        with("GET /health HTTP/1.1", "x: a\r\n folded\r\n"),
        with("GET /health HTTP/1.1", "x: a\rb\r\n"),
        with("GET /health HTTP/1.1", "x\u{e9}: a\r\n"),
        with("GET /health HTTP/1.1", "x : a\r\n"),
        "GET /health\r\n\r\n".to_owned(),
        with("GET /health HTTP/3.7", ""),
        "GET /health HTTP/1.1\r\nconnection: close\r\n\r\n".to_owned(),
        format!("GET /health HTTP/1.1\r\nhost: {host}\r\nhost: evil.example\r\nconnection: close\r\n\r\n"),
    ];
    for case in cases {
        let answer = server.raw(case.as_bytes());
        let shown: String = case.chars().take(120).collect();
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{shown:?}: {answer}");
    }
    assert_eq!(server.get("/health").status, 200);
}

#[test]
fn slow_sockets_do_not_keep_others_waiting() {
    let _turn = alone();
    let config = ServerConfig { header_time: Duration::from_secs(2), ..config() };
    let server = Server::with(config, EngineOptions::default());
    let mut slow: Vec<_> = (0..300).map(|_| server.connect()).collect();
    for socket in &mut slow {
        socket.write_all(b"GET /health HTTP/1.1\r\nho").unwrap();
    }
    server.post("/v1/completions", &json!({"prompt": "Once", "max_tokens": 1})).ok();
    // Each is closed once the time for its headers is over.
    for socket in &mut slow {
        let mut rest = Vec::new();
        let closed = socket.read_to_end(&mut rest);
        assert!(closed.is_ok() || closed.unwrap_err().kind() == std::io::ErrorKind::ConnectionReset);
    }
}

#[test]
fn a_client_that_leaves_stops_its_generation() {
    let _turn = alone();
    let server = Server::start();
    let body = json!({"prompt": "Once", "max_tokens": 3000, "ignore_eos": true, "stream": true}).to_string();
    for stream in [true, false] {
        let body = if stream { body.clone() } else { body.replace(",\"stream\":true", "") };
        let mut socket = server.connect();
        let head = format!(
            "POST /v1/completions HTTP/1.1\r\nhost: {}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            server.address,
            body.len()
        );
        socket.write_all(head.as_bytes()).unwrap();
        socket.write_all(body.as_bytes()).unwrap();
        eventually("the generation runs", || !server.stats().slots.is_empty());
        let before = server.stats().cancelled;
        drop(socket);
        eventually("the generation is cancelled", || server.stats().cancelled == before + 1);
        eventually("its memory is free", || server.stats().reserved_bytes == 0);
    }
    assert_eq!(server.stats().completed, 0);
}

#[test]
fn a_full_queue_refuses_at_once_and_says_when_to_come_again() {
    let _turn = alone();
    let options = EngineOptions { max_queue: 2, max_running: 1, ..EngineOptions::default() };
    let server = Server::with(config(), options);
    let long = json!({"prompt": "Once", "max_tokens": 400, "ignore_eos": true});
    std::thread::scope(|scope| {
        let waiting: Vec<_> = (0..8).map(|_| scope.spawn(|| server.post("/v1/completions", &long))).collect();
        let replies: Vec<_> = waiting.into_iter().map(|thread| thread.join().unwrap()).collect();
        let refused: Vec<_> = replies.iter().filter(|reply| reply.status != 200).collect();
        assert!(!refused.is_empty(), "eight requests do not fit into three places");
        for reply in refused {
            assert_eq!(reply.refused(429)["code"], "queue_full");
            assert!(reply.header("retry-after").unwrap().parse::<u64>().unwrap() >= 1);
        }
        assert!(replies.iter().any(|reply| reply.status == 200));
    });
    server.post("/v1/completions", &json!({"prompt": "Once", "max_tokens": 1})).ok();
}

#[test]
fn a_server_that_stops_finishes_what_it_has_begun() {
    let _turn = alone();
    let mut server = Server::start();
    let request = json!({"prompt": "Once", "max_tokens": 200, "ignore_eos": true});
    let url = server.url("/v1/completions");
    let running = std::thread::spawn(move || {
        let mut response = ureq::post(&url).send_json(&request).unwrap();
        response.body_mut().read_json::<Value>().unwrap()
    });
    eventually("the generation runs", || !server.stats().slots.is_empty());
    server.begin_stop();
    let answer = running.join().unwrap();
    assert_eq!(answer["usage"]["completion_tokens"], 200);
    server.join();
    assert!(std::net::TcpStream::connect(server.address).is_err(), "nobody listens any more");
}

#[test]
fn requests_in_a_row_on_one_connection_are_answered_in_order() {
    let server = Server::start();
    let one = |path: &str, last: bool| {
        let end = if last { "connection: close\r\n" } else { "" };
        format!("GET {path} HTTP/1.1\r\nhost: {}\r\n{end}\r\n", server.address)
    };
    let mut requests: String = (0..1000).map(|_| one("/health", false)).collect();
    requests.push_str(&one("/nowhere", true));
    let answer = server.raw(requests.as_bytes());
    assert_eq!(answer.matches("HTTP/1.1 200").count(), 1000);
    assert_eq!(answer.matches("HTTP/1.1 404").count(), 1);
}

/// A proxy that goes by the length and a server that goes by the chunks must not come to see two requests where the other
/// sees one: such a request is the last of its connection.
#[test]
fn a_request_with_two_lengths_is_the_last_of_its_connection() {
    let server = Server::start();
    for headers in
        ["content-length: 3\r\ntransfer-encoding: chunked", "transfer-encoding: chunked\r\ncontent-length: 3"]
    {
        let body = "{\"content\": \"x\"}";
        let answer = server.raw(
            format!(
                "POST /tokenize HTTP/1.1\r\nhost: {0}\r\ncontent-type: application/json\r\n{headers}\r\n\r\n\
                 10\r\n{body}\r\n0\r\n\r\nGET /health HTTP/1.1\r\nhost: {0}\r\nconnection: close\r\n\r\n",
                server.address
            )
            .as_bytes(),
        );
        assert!(answer.matches("HTTP/1.1 ").count() <= 1, "{answer}");
    }
}
