//! OpenAI's API over a real connection.

mod common;

use common::{Server, joined};
use serde_json::{Value, json};

const KING: &str = "The king looked at the dragon and said";

fn hello() -> Value {
    json!([{"role": "user", "content": "Hello!"}])
}

#[test]
fn a_conversation_is_answered_whole_and_in_pieces_alike() {
    let server = Server::start();
    let whole = server.post("/v1/chat/completions", &json!({"messages": hello(), "max_tokens": 24})).ok();
    assert_eq!(whole["object"], "chat.completion");
    assert_eq!(whole["model"], "pond");
    let text = whole["choices"][0]["message"]["content"].as_str().unwrap();
    assert!(!text.is_empty());
    let usage = &whole["usage"];
    let sum = usage["prompt_tokens"].as_u64().unwrap() + usage["completion_tokens"].as_u64().unwrap();
    assert_eq!(usage["total_tokens"], sum);

    let request = json!({
        "messages": hello(), "max_tokens": 24, "stream": true, "stream_options": {"include_usage": true},
    });
    let chunks = server.stream("/v1/chat/completions", &request);
    assert_eq!(joined(&chunks, "/choices/0/delta/content"), text);
    assert_eq!(chunks[0]["choices"][0]["delta"]["role"], "assistant");
    let last = chunks.last().unwrap();
    assert_eq!(last["choices"], json!([]));
    assert_eq!(last["usage"]["completion_tokens"], usage["completion_tokens"]);
    let reason = &chunks[chunks.len() - 2]["choices"][0]["finish_reason"];
    assert_eq!(reason, &whole["choices"][0]["finish_reason"]);
    assert!(chunks.iter().all(|chunk| chunk["id"] == chunks[0]["id"]));
}

#[test]
fn a_limit_and_a_stop_text_end_an_answer_and_say_so() {
    let server = Server::start();
    let request = |more: Value| {
        let mut request = json!({"prompt": KING, "max_tokens": 12});
        request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        server.post("/v1/completions", &request).ok()["choices"][0].clone()
    };
    let full = request(json!({}));
    assert_eq!(full["finish_reason"], "length");
    assert!(full["text"].as_str().unwrap().starts_with(": \"What a fool"), "{full}");
    let stopped = request(json!({"stop": [" fool"]}));
    assert_eq!((&stopped["text"], &stopped["finish_reason"]), (&json!(": \"What a"), &json!("stop")));
    let text = request(json!({"stop": " fool"}));
    assert_eq!(text, stopped);
    let other = request(json!({"logit_bias": {"16": -100}, "temperature": 0}));
    assert_eq!(other["finish_reason"], "length");
}

#[test]
fn several_answers_and_prompts_come_in_order() {
    let server = Server::start();
    let request = json!({"prompt": [KING, "Once upon a time"], "n": 2, "max_tokens": 4});
    let reply = server.post("/v1/completions", &request).ok();
    let texts: Vec<&str> =
        reply["choices"].as_array().unwrap().iter().map(|choice| choice["text"].as_str().unwrap()).collect();
    assert_eq!(texts.len(), 4);
    assert_eq!(texts[0], texts[1], "greedy answers to one prompt are one");
    assert_eq!(texts[2], texts[3]);
    assert_ne!(texts[0], texts[2]);
    assert_eq!(reply["usage"]["completion_tokens"], 16);
    let request =
        json!({"messages": hello(), "n": 3, "max_tokens": 6, "temperature": 1.5, "seed": 5, "stream": true});
    let chunks = server.stream("/v1/chat/completions", &request);
    for index in 0..3 {
        let own: Vec<Value> =
            chunks.iter().filter(|chunk| chunk["choices"][0]["index"] == index).cloned().collect();
        assert_eq!(own.iter().filter(|chunk| chunk["choices"][0]["finish_reason"].is_string()).count(), 1);
    }
}

#[test]
fn a_seed_repeats_an_answer() {
    let server = Server::start();
    let request = json!({"prompt": "Once", "max_tokens": 10, "temperature": 1.2, "seed": 11});
    let answer = |request: &Value| server.post("/v1/completions", request).ok()["choices"][0]["text"].clone();
    assert_eq!(answer(&request), answer(&request));
    let other = json!({"prompt": "Once", "max_tokens": 10, "temperature": 1.2, "seed": 12});
    assert_ne!(answer(&request), answer(&other));
}

#[test]
fn echo_and_logprobs_serve_evaluation_tools() {
    let server = Server::start();
    let ids = server.post("/tokenize", &json!({"content": KING})).ok()["tokens"].clone();
    let request = json!({"prompt": ids, "max_tokens": 1, "echo": true, "logprobs": 2});
    let choice = server.post("/v1/completions", &request).ok()["choices"][0].clone();
    assert!(choice["text"].as_str().unwrap().starts_with(KING));
    let count = ids.as_array().unwrap().len() + 1;
    let logprobs = &choice["logprobs"];
    for list in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
        assert_eq!(logprobs[list].as_array().unwrap().len(), count, "{list}");
    }
    assert_eq!(logprobs["token_logprobs"][0], Value::Null);
    assert_eq!(logprobs["text_offset"][1], logprobs["tokens"][0].as_str().unwrap().chars().count());
    for (place, value) in logprobs["token_logprobs"].as_array().unwrap().iter().enumerate().skip(1) {
        let own = value.as_f64().unwrap();
        let top = logprobs["top_logprobs"][place].as_object().unwrap();
        let best = top.values().filter_map(Value::as_f64).fold(f64::NEG_INFINITY, f64::max);
        assert!(own <= 1e-6 && own <= best + 1e-5, "place {place}: {own} {best}");
    }
    // The token that a greedy answer takes is the likeliest.
    let last = logprobs["top_logprobs"][count - 1].as_object().unwrap();
    let best = last.values().filter_map(Value::as_f64).fold(f64::NEG_INFINITY, f64::max);
    assert!((logprobs["token_logprobs"][count - 1].as_f64().unwrap() - best).abs() < 1e-6);
}

#[test]
fn probabilities_of_a_chat_answer_belong_to_its_tokens() {
    let server = Server::start();
    let request = json!({"messages": hello(), "max_tokens": 6, "logprobs": true, "top_logprobs": 3});
    let choice = server.post("/v1/chat/completions", &request).ok()["choices"][0].clone();
    let content = choice["logprobs"]["content"].as_array().unwrap();
    let text: String = content.iter().map(|entry| entry["token"].as_str().unwrap()).collect();
    assert!(text.starts_with(choice["message"]["content"].as_str().unwrap()), "{text}");
    assert!(content.iter().all(|entry| entry["top_logprobs"].as_array().unwrap().len() == 3));
    server.post("/v1/chat/completions", &json!({"messages": hello(), "top_logprobs": 3})).refused(400);
}

#[test]
fn models_are_listed_and_found_by_name() {
    let server = Server::start();
    let list = server.get("/v1/models").ok();
    assert_eq!(list["data"][0]["id"], "pond");
    assert_eq!(server.get("/v1/models/pond").ok(), list["data"][0]);
    server.get("/v1/models/other").refused(404);
}

#[test]
fn responses_are_whole_and_streamed_alike_and_keep_nothing() {
    let server = Server::start();
    let request = json!({"input": "Hello!", "max_output_tokens": 24});
    let whole = server.post("/v1/responses", &request).ok();
    assert_eq!(whole["object"], "response");
    assert_eq!(whole["store"], false);
    let text = whole["output"][0]["content"][0]["text"].as_str().unwrap();
    let mut streamed = request.clone();
    streamed["stream"] = true.into();
    let events = server.stream("/v1/responses", &streamed);
    let numbers: Vec<u64> = events.iter().map(|event| event["sequence_number"].as_u64().unwrap()).collect();
    assert_eq!(numbers, (0..events.len() as u64).collect::<Vec<_>>());
    let deltas: Vec<Value> =
        events.iter().filter(|event| event["type"] == "response.output_text.delta").cloned().collect();
    assert_eq!(joined(&deltas, "/delta"), text);
    let last = events.last().unwrap();
    assert_eq!(last["response"]["output"][0]["content"][0]["text"], text);
    assert_eq!(last["response"]["status"], whole["status"]);
    let short = server.post("/v1/responses", &json!({"input": "Hello!", "max_output_tokens": 2})).ok();
    assert_eq!(short["status"], "incomplete");
    server.post("/v1/responses", &json!({"input": "x", "previous_response_id": "resp_1"})).refused(400);
}

#[test]
fn a_prompt_that_does_not_fit_is_refused_with_both_numbers() {
    let options = millpond::engine::EngineOptions { context: 64, ..Default::default() };
    let server = Server::with(common::config(), options);
    let prompt: Vec<u32> = (100..160).collect();
    let error = server.post("/v1/completions", &json!({"prompt": prompt, "max_tokens": 5})).refused(400);
    let message = error["message"].as_str().unwrap();
    assert!(message.contains("60") && message.contains('5') && message.contains("64"), "{message}");
    assert!(message.contains("exceeds the available context size"), "{message}");
    assert_eq!(error["code"], "context_length_exceeded");
    server.post("/v1/completions", &json!({"prompt": prompt, "max_tokens": 4})).ok();
}

#[test]
fn an_answer_goes_on_with_the_assistants_last_message_unless_told_otherwise() {
    let server = Server::start();
    let count = |fields: Value| {
        let mut request = json!({"messages": [
            {"role": "user", "content": "Tell me a story."}, {"role": "assistant", "content": "Once upon"},
        ]});
        request.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        server.post("/v1/chat/completions/input_tokens", &request)
    };
    let tokens = |fields: Value| count(fields).ok()["input_tokens"].as_u64().unwrap();
    let goes_on = tokens(json!({}));
    assert_eq!(tokens(json!({"continue_final_message": true, "add_generation_prompt": false})), goes_on);
    assert!(tokens(json!({"add_generation_prompt": true})) > goes_on);
    assert!(tokens(json!({"continue_final_message": false})) > goes_on);
    count(json!({"add_generation_prompt": true, "continue_final_message": true})).refused(400);
}

#[test]
fn thinking_is_kept_apart_from_the_answer() {
    let server = Server::start();
    // The template of the built-in model knows no thinking, but an answer may begin with it all the same.
    let messages = json!([
        {"role": "user", "content": "Hello!"},
        {"role": "assistant", "content": "<think>"},
    ]);
    let request = json!({"messages": messages, "max_tokens": 8});
    let message = server.post("/v1/chat/completions", &request).ok()["choices"][0]["message"].clone();
    assert_eq!(message["content"], "");
    assert!(!message["reasoning_content"].as_str().unwrap().is_empty(), "{message}");
    let request = json!({"messages": messages, "max_tokens": 8, "reasoning_format": "none"});
    let message = server.post("/v1/chat/completions", &request).ok()["choices"][0]["message"].clone();
    assert!(message.get("reasoning_content").is_none() && message["content"] != "", "{message}");
}

#[test]
fn answers_keep_to_a_schema_and_to_a_grammar() {
    let server = Server::start();
    let schema = json!({
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "maximum": 99}},
        "required": ["name", "age"],
        "additionalProperties": false,
    });
    let format = json!({"type": "json_schema", "json_schema": {"name": "person", "schema": schema}});
    let request = json!({"messages": hello(), "max_tokens": 120, "response_format": format, "seed": 3});
    let reply = server.post("/v1/chat/completions", &request).ok();
    assert_eq!(reply["choices"][0]["finish_reason"], "stop", "{reply}");
    let text = reply["choices"][0]["message"]["content"].as_str().unwrap();
    let person: Value = serde_json::from_str(text).unwrap();
    assert!(person["name"].is_string() && person["age"].is_i64(), "{person}");
    assert_eq!(person.as_object().unwrap().len(), 2);

    let grammar = "root ::= \"yes\" | \"no\"";
    let request = json!({"messages": hello(), "max_tokens": 20, "grammar": grammar});
    let reply = server.post("/v1/chat/completions", &request).ok();
    let text = reply["choices"][0]["message"]["content"].as_str().unwrap();
    assert!(text == "yes" || text == "no", "{text}");
}

fn weather() -> Value {
    let parameters = json!({"type": "object", "properties": {"city": {"enum": ["Bonn", "Paris"]}}, "required": ["city"],
        "additionalProperties": false});
    json!([{"type": "function", "function": {"name": "weather", "parameters": parameters}}])
}

#[test]
fn a_tool_call_is_forced_when_asked_for() {
    let server = Server::start();
    let mut request = json!({
        "messages": [{"role": "user", "content": "Weather in Bonn?"}],
        "tools": weather(), "tool_choice": "required", "max_tokens": 60,
    });
    let reply = server.post("/v1/chat/completions", &request).ok();
    let choice = &reply["choices"][0];
    assert_eq!(choice["finish_reason"], "tool_calls", "{reply}");
    let call = &choice["message"]["tool_calls"][0];
    assert_eq!(call["function"]["name"], "weather");
    let arguments: Value = serde_json::from_str(call["function"]["arguments"].as_str().unwrap()).unwrap();
    assert!(arguments["city"] == "Bonn" || arguments["city"] == "Paris", "{arguments}");

    request["tool_choice"] = json!({"type": "function", "function": {"name": "weather"}});
    request["stream"] = true.into();
    let chunks = server.stream("/v1/chat/completions", &request);
    let calls = joined(&chunks, "/choices/0/delta/tool_calls/0/function/arguments");
    assert_eq!(serde_json::from_str::<Value>(&calls).unwrap(), arguments);
    let last = chunks.iter().rev().find(|chunk| chunk["choices"][0]["finish_reason"].is_string()).unwrap();
    assert_eq!(last["choices"][0]["finish_reason"], "tool_calls");
    assert!(joined(&chunks, "/choices/0/delta/content").is_empty());
}

#[test]
fn a_conversation_goes_on_after_a_tool_has_answered() {
    let server = Server::start();
    let request = json!({
        "messages": [
            {"role": "user", "content": "Weather in Bonn?"},
            {"role": "assistant", "content": null, "tool_calls": [
                {"id": "a", "type": "function", "function": {"name": "weather", "arguments": "{\"city\": \"Bonn\"}"}},
            ]},
            {"role": "tool", "tool_call_id": "a", "content": "rain"},
        ],
        "tools": weather(), "max_tokens": 4,
    });
    assert!(
        server.post("/v1/chat/completions", &request).ok()["choices"][0]["message"]["content"].is_string()
    );
}

#[test]
fn the_next_turn_computes_only_what_is_new() {
    let server = Server::start();
    let story = "Once upon a time there was a frog who lived in a pond. ".repeat(12);
    let mut messages = json!([{"role": "user", "content": story}]);
    let first = server.post("/v1/chat/completions", &json!({"messages": messages, "max_tokens": 8})).ok();
    let answer = first["choices"][0]["message"].clone();
    let list = messages.as_array_mut().unwrap();
    list.push(answer);
    list.push(json!({"role": "user", "content": "And then?"}));
    let second = server.post("/v1/chat/completions", &json!({"messages": messages, "max_tokens": 8})).ok();
    let cached = second["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
    let before = first["usage"]["prompt_tokens"].as_u64().unwrap();
    assert!(cached * 100 >= before * 95, "{cached} of {before}");
    assert_eq!(second["timings"]["cache_n"], cached);
}

#[test]
fn a_wish_that_cannot_be_kept_is_refused_not_ignored() {
    let server = Server::start();
    for (field, wish) in [
        ("response_format", json!({"type": "xml"})),
        ("response_format", json!({"type": "json_schema", "json_schema": {"schema": {"type": "nonsense"}}})),
        ("grammar", json!("root ::= (")),
        ("tool_choice", json!({"type": "function", "function": {"name": "missing"}})),
        ("n", json!(1_000_000)),
        ("max_tokens", json!(-5)),
        ("top_p", json!(7)),
    ] {
        let mut request = json!({"messages": hello(), "max_tokens": 4});
        request[field] = wish;
        server.post("/v1/chat/completions", &request).refused(400);
    }
}

#[test]
fn routes_that_generate_nothing_check_as_those_that_do() {
    let server = Server::start();
    for (field, value) in [
        ("speculative.n_min", json!(-1)),
        ("top_k", json!(1u64 << 31)),
        ("spec", json!("eagle")),
        ("n", json!(65)),
    ] {
        let mut request = json!({"messages": hello(), "max_tokens": 1});
        request[field] = value;
        for path in ["/v1/chat/completions", "/v1/chat/completions/input_tokens", "/apply-template"] {
            let reply = server.post(path, &request);
            assert_eq!(reply.status, 400, "{path} {field}: {}", reply.text);
        }
    }
    let request = json!({"messages": hello(), "max_tokens": 1, "spec": "draft"});
    server.post("/v1/chat/completions", &request).refused(404);
}
