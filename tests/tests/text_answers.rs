//! Reasoning and tool calls in streamed answers: known forms, forms that models get wrong, and any text at all.

use millpond::text::reasoning::{AnswerPart, ReasoningSplitter, split_reasoning};
use millpond::text::tool_calls::{CallPart, ParameterTypes, ToolCall, ToolCallParser, find_tool_calls};
use proptest::prelude::*;
use serde_json::{Value, json};

fn call(name: &str, arguments: Value) -> ToolCall {
    ToolCall { name: name.to_owned(), arguments: arguments.as_object().expect("an object").clone() }
}

fn types() -> ParameterTypes {
    let tool = json!({"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {
        "text": {"type": "string"}, "count": {"type": "integer"}, "maybe": {"type": ["string", "null"]},
        "list": {"type": "array"}, "choice": {"enum": ["1", "2"]}, "any": {}}}}});
    ParameterTypes::of(&[tool])
}

#[test]
fn thoughts_stand_between_their_tags() {
    let split = |text: &str, inside| split_reasoning(text, inside);
    let both = |reasoning: &str, content: &str| (reasoning.to_owned(), content.to_owned());
    assert_eq!(split("<think>\nhm\n</think>\n\nYes.", false), both("hm", "Yes."));
    assert_eq!(split("hm\n</think>\n\nYes.", true), both("hm", "Yes."));
    assert_eq!(split("\n\n</think>\n\nYes.", true), both("", "Yes."));
    assert_eq!(split("<think>\n\n</think>\n\nYes.", false), both("", "Yes."));
    assert_eq!(split("Yes.", false), both("", "Yes."));
    assert_eq!(split(" \n Yes.", false), both("", " \n Yes."));
    assert_eq!(split("<think>\nno end", false), both("no end", ""));
    assert_eq!(split("no end </thi", true), both("no end </thi", ""));
    assert_eq!(split("Say <think> and </think>.", false), both("", "Say <think> and </think>."));
    assert_eq!(split("a</think>b</think>c", true), both("a", "b</think>c"));
    assert_eq!(split("<think>a <b> < /think> c</think>d", false), both("a <b> < /think> c", "d"));
    assert_eq!(split("<thinking>", false), both("", "<thinking>"));
    assert_eq!(split("", false), both("", ""));
    let mut splitter = ReasoningSplitter::new(false);
    let mut parts = Vec::new();
    splitter.push("<think>a", &mut parts);
    assert!(splitter.is_thinking());
    assert_eq!(parts, [AnswerPart::Reasoning("a".into())], "thoughts stream");
    splitter.push("</think>b", &mut parts);
    assert!(!splitter.is_thinking());
}

#[test]
fn both_forms_of_calls_are_read() {
    let hermes = "Let me see.\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"text\": \"a\", \"count\": 2}}\n</tool_call>";
    let expected = vec![call("f", json!({"text": "a", "count": 2}))];
    assert_eq!(find_tool_calls(hermes, types()), ("Let me see.".to_owned(), expected));
    let elements = "<tool_call>\n<function=f>\n<parameter=text>\n5\n</parameter>\n<parameter=count>\n5\n</parameter>\n\
        <parameter=list>\n[1, \"a\"]\n</parameter>\n<parameter=choice>\n1\n</parameter>\n<parameter=any>\nTrue\n</parameter>\n\
        <parameter=maybe>\nnull\n</parameter>\n</function>\n</tool_call>";
    let arguments =
        json!({"text": "5", "count": 5, "list": [1, "a"], "choice": "1", "any": true, "maybe": "null"});
    assert_eq!(find_tool_calls(elements, types()), (String::new(), vec![call("f", arguments)]));
    let two = "<tool_call>\n{\"name\": \"f\"}\n</tool_call>\n<tool_call>\n<function=g>\n</function>\n</tool_call>\n";
    let expected = vec![call("f", json!({})), call("g", json!({}))];
    assert_eq!(find_tool_calls(two, types()), (String::new(), expected));
}

#[test]
fn values_keep_their_lines_and_markup() {
    let value = "  fn main() {\n\n    if a < b && c > d { \"</p>\" }\n}\n";
    let text = format!(
        "<tool_call>\n<function=f>\n<parameter=text>\n{value}\n</parameter>\n</function>\n</tool_call>"
    );
    assert_eq!(find_tool_calls(&text, types()).1, [call("f", json!({ "text": value }))]);
    let json = json!({"name": "f", "arguments": {"text": "say </function> and <parameter=x>"}});
    let (text, calls) = find_tool_calls(&format!("<tool_call>{json}</tool_call>"), types());
    assert_eq!((text.as_str(), calls.as_slice()), ("", &[call("f", json["arguments"].clone())][..]));
}

/// Seen in reports about several runtimes: each must give its call.
#[test]
fn calls_that_models_get_wrong_are_understood() {
    let expected = [call("f", json!({"text": "a", "count": 1}))];
    for wrong in [
        // closing tags that are missing, doubled or of another element
        "<tool_call>\n<function=f>\n<parameter=text>\na\n</parameter>\n<parameter=count>\n1\n</parameter>\n</tool_call>",
        "<tool_call>\n<function=f>\n<parameter=text>\na\n</parameter>\n<parameter=count>\n1\n</parameter>\n</function>",
        "<tool_call>\n<function=f>\n<parameter=text>\na\n</function>\n<parameter=count>\n1\n</function>\n</tool_call>",
        "<tool_call>\n<function=f>\n<parameter=text>\na\n</parameter>\n</parameter>\n<parameter=count>\n1\n</parameter>\n</parameter>\n</function>\n</tool_call>",
        "<tool_call>\n<function=f>\n<parameter=text>\na\n<parameter=count>\n1\n</function>\n</tool_call>",
        "<tool_call>\n<function=f>\n<parameter=text>a</parameter>\n<parameter=count>1</parameter>\n</function>\n</tool_call>",
        // no outer tags
        "<function=f>\n<parameter=text>\na\n</parameter>\n<parameter=count>\n1\n</parameter>\n</function>",
        "<function=f>\n<parameter=text>\na\n</parameter>\n<parameter=count>\n1\n</parameter>\n</function>\n</tool_call>",
        // quotes and spaces
        "<tool_call><function=\"f\"><parameter='text'>\na\n</parameter><parameter= count >\n1\n</parameter></function></tool_call>",
        // JSON with other keys, arguments as text, fences, lists
        "<tool_call>{\"name\": \"f\", \"parameters\": {\"text\": \"a\", \"count\": 1}}</tool_call>",
        "<tool_call>{\"name\": \"f\", \"arguments\": \"{\\\"text\\\": \\\"a\\\", \\\"count\\\": 1}\"}</tool_call>",
        "<tool_call>```json\n{\"name\": \"f\", \"arguments\": {\"text\": \"a\", \"count\": 1}}\n```</tool_call>",
        "<tool_call>[{\"name\": \"f\", \"arguments\": {\"text\": \"a\", \"count\": 1}}]</tool_call>",
        "<tool_call>{\"type\": \"function\", \"function\": {\"name\": \"f\", \"arguments\": {\"text\": \"a\", \"count\": 1}}}</tool_call>",
        "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"text\": \"a\", \"count\": 1}}",
    ] {
        let (text, calls) = find_tool_calls(wrong, types());
        assert_eq!(calls, expected, "{wrong}");
        assert!(text.trim().is_empty() || text.trim() == "</tool_call>", "{wrong}: {text:?}");
    }
    let unclosed = "<tool_call>{\"name\": \"f\"}<tool_call>{\"name\": \"g\"}</tool_call>";
    assert_eq!(find_tool_calls(unclosed, types()).1, [call("f", json!({})), call("g", json!({}))]);
    let in_one = "<tool_call>{\"name\": \"f\"}\n{\"name\": \"g\"}</tool_call>";
    assert_eq!(find_tool_calls(in_one, types()).1, [call("f", json!({})), call("g", json!({}))]);
}

#[test]
fn what_is_no_call_stays_text() {
    for text in [
        "<tool_call>",
        "<tool_call></tool_call>",
        "<tool_call>not json</tool_call>",
        "<tool_call>{\"name\": \"f\", \"arguments\": </tool_call> and more",
        "<tool_call>{\"name\": 7}</tool_call>",
        "<tool_call>{\"name\": \"f\", \"arguments\": [1]}</tool_call>",
        "<tool_call>{\"name\": \"f\", \"argu",
        "<tool_call><function=></function></tool_call>",
        "<tool_call><function=f><parameter=></parameter></function></tool_call>",
        "<function=never closed",
        "a <tool_cal b </tool_call>",
        "</tool_call></function>",
    ] {
        assert_eq!(find_tool_calls(text, types()), (text.to_owned(), vec![]), "{text}");
    }
    let repeated = "<tool_call>".repeat(50_000);
    assert_eq!(find_tool_calls(&repeated, types()), (repeated.clone(), vec![]));
    let endless = format!("<tool_call>{}", "x".repeat(3 << 20));
    assert_eq!(find_tool_calls(&endless, types()).0, endless);
}

fn cut(text: &str, lengths: &[usize]) -> Vec<String> {
    let mut characters = text.chars();
    let mut pieces: Vec<String> =
        lengths.iter().map(|&length| characters.by_ref().take(length).collect()).collect();
    pieces.push(characters.collect());
    pieces
}

fn answer() -> impl Strategy<Value = String> {
    let piece = prop::sample::select(vec![
        "<tool_call>",
        "</tool_call>",
        "<function=f>",
        "<function=",
        "</function>",
        "<parameter=text>",
        "<parameter=count>",
        "</parameter>",
        "{\"name\": \"f\", \"arguments\": {}}",
        "{\"name\"",
        "1",
        "a",
        "\n",
        " ",
        "<",
        ">",
        "</",
        "é🦀",
        "<think>",
        "</think>",
        "[",
        "}",
    ]);
    prop::collection::vec(piece, 0..16).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn calls_do_not_depend_on_how_the_text_is_cut(text in answer(), lengths in prop::collection::vec(0usize..9, 0..20)) {
        let mut whole = Vec::new();
        let mut parser = ToolCallParser::new(types());
        parser.push(&text, &mut whole);
        parser.flush(&mut whole);
        // As a server does it: every piece is sent on before the next one comes.
        let mut streamed: Vec<CallPart> = Vec::new();
        let mut parser = ToolCallParser::new(types());
        for piece in cut(&text, &lengths).into_iter().map(Some).chain([None]) {
            let mut parts = Vec::new();
            match piece {
                Some(piece) => parser.push(&piece, &mut parts),
                None => parser.flush(&mut parts),
            }
            for part in parts {
                match (streamed.last_mut(), part) {
                    (Some(CallPart::Text(last)), CallPart::Text(more)) => last.push_str(&more),
                    (_, part) => streamed.push(part),
                }
            }
        }
        prop_assert_eq!(&streamed, &whole);
        if !whole.iter().any(|part| matches!(part, CallPart::Call(_))) {
            let (found, _) = find_tool_calls(&text, types());
            prop_assert_eq!(found, text);
        }
    }

    #[test]
    fn thoughts_do_not_depend_on_how_the_text_is_cut(text in answer(), inside: bool, lengths in prop::collection::vec(0usize..9, 0..20)) {
        let mut splitter = ReasoningSplitter::new(inside);
        let mut parts = Vec::new();
        for piece in cut(&text, &lengths) {
            splitter.push(&piece, &mut parts);
        }
        splitter.flush(&mut parts);
        let (mut reasoning, mut content) = (String::new(), String::new());
        for part in parts {
            match part {
                AnswerPart::Reasoning(piece) => reasoning.push_str(&piece),
                AnswerPart::Content(piece) => content.push_str(&piece),
            }
        }
        prop_assert_eq!((&reasoning, &content), (&split_reasoning(&text, inside).0, &split_reasoning(&text, inside).1));
        // By definition: thoughts end at the first closing tag.
        let opened = if inside { Some(text.as_str()) } else { text.trim_start().strip_prefix("<think>") };
        let expected = match opened {
            None => ("", text.as_str()),
            Some(body) => match body.split_once("</think>") {
                Some((thoughts, rest)) => (thoughts.trim(), rest.trim_start()),
                None => (body.trim(), ""),
            },
        };
        prop_assert_eq!((reasoning.as_str(), content.as_str()), expected);
    }
}
