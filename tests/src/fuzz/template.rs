//! Any text as a chat template.

use std::hint::black_box;

use millpond::text::template::{ChatInput, ChatTemplate, MAX_OUTPUT_BYTES, TemplateTokens};
use serde_json::json;

/// Compiles a template and renders a short chat with tools.
pub fn template(data: &[u8]) {
    let Ok(source) = std::str::from_utf8(data) else { return };
    let tokens = TemplateTokens { bos: None, eos: Some("<|im_end|>".to_owned()), pad: None };
    let Ok(template) = ChatTemplate::parse(source, tokens) else { return };
    let messages = [
        json!({"role": "system", "content": "Be brief."}),
        json!({"role": "user", "content": [{"type": "text", "text": "Hello"}]}),
        json!({"role": "assistant", "content": null, "tool_calls": [
            {"type": "function", "function": {"name": "f", "arguments": "{\"a\": [1, 2.5, null]}"}}]}),
        json!({"role": "tool", "content": "<|im_end|>"}),
    ];
    let tools = [json!({"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}})];
    for convert in [true, false] {
        let input = ChatInput {
            messages: &messages,
            tools: Some(&tools),
            add_generation_prompt: true,
            convert,
            ..ChatInput::default()
        };
        if let Ok(text) = template.render(&input) {
            assert!(text.len() <= MAX_OUTPUT_BYTES);
            black_box(text);
        }
    }
}
