//! An answer taken apart as it comes: reasoning, text, tool calls.

use millpond::engine::FinishReason;
use millpond::text::reasoning::{AnswerPart, ReasoningSplitter};
use millpond::text::tool_calls::{CallPart, ToolCallParser};
use serde_json::Value;

use super::chat_input::ChatPrompt;
use super::config::ReasoningForm;
use super::ids;

/// A piece of an answer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Piece {
    /// What the model thinks.
    Reasoning(String),
    /// What it says.
    Text(String),
    /// A tool it calls.
    Call(Call),
}

/// A call of a tool.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Call {
    /// Its place among the calls of the answer.
    pub(crate) index: usize,
    /// A name for it.
    pub(crate) id: String,
    /// The tool.
    pub(crate) name: String,
    /// The arguments as JSON.
    pub(crate) arguments: Value,
}

/// Takes an answer apart.
#[derive(Debug)]
pub(crate) struct AnswerReader {
    reasoning: Option<ReasoningSplitter>,
    form: ReasoningForm,
    tools: Option<ToolCallParser>,
    calls: usize,
}

impl AnswerReader {
    /// For the answer to `prompt`.
    #[must_use]
    pub(crate) fn new(prompt: &ChatPrompt, form: ReasoningForm) -> AnswerReader {
        AnswerReader {
            reasoning: (form != ReasoningForm::InText)
                .then(|| ReasoningSplitter::new(prompt.starts_thinking)),
            form,
            tools: prompt.has_tools.then(|| ToolCallParser::new(prompt.types.clone())),
            calls: 0,
        }
    }

    /// Reads a piece of text.
    pub(crate) fn push(&mut self, text: &str) -> Vec<Piece> {
        let mut parts = Vec::new();
        match &mut self.reasoning {
            Some(splitter) => splitter.push(text, &mut parts),
            None => parts.push(AnswerPart::Content(text.to_owned())),
        }
        if self.form == ReasoningForm::Both {
            parts.retain(|part| matches!(part, AnswerPart::Reasoning(_)));
            parts.push(AnswerPart::Content(text.to_owned()));
        }
        self.read(parts, false)
    }

    /// Ends the answer.
    pub(crate) fn finish(&mut self) -> Vec<Piece> {
        let mut parts = Vec::new();
        if let Some(splitter) = &mut self.reasoning {
            splitter.flush(&mut parts);
        }
        if self.form == ReasoningForm::Both {
            parts.retain(|part| matches!(part, AnswerPart::Reasoning(_)));
        }
        self.read(parts, true)
    }

    /// Calls so far.
    #[must_use]
    pub(crate) fn calls(&self) -> usize {
        self.calls
    }

    fn read(&mut self, parts: Vec<AnswerPart>, last: bool) -> Vec<Piece> {
        let mut pieces = Vec::new();
        let mut found = Vec::new();
        for part in parts {
            match (part, &mut self.tools) {
                (AnswerPart::Reasoning(_), _) if self.form == ReasoningForm::LeftOut => {}
                (AnswerPart::Reasoning(text), _) => pieces.push(Piece::Reasoning(text)),
                (AnswerPart::Content(text), Some(parser)) => parser.push(&text, &mut found),
                (AnswerPart::Content(text), None) => pieces.push(Piece::Text(text)),
            }
        }
        if let Some(parser) = self.tools.as_mut().filter(|_| last) {
            parser.flush(&mut found);
        }
        for part in found {
            pieces.push(match part {
                CallPart::Text(text) | CallPart::Malformed(text) => Piece::Text(text),
                CallPart::Call(call) => {
                    self.calls += 1;
                    Piece::Call(Call {
                        index: self.calls - 1,
                        id: ids::unique("call_"),
                        name: call.name,
                        arguments: Value::Object(call.arguments),
                    })
                }
            });
        }
        pieces
            .retain(|piece| !matches!(piece, Piece::Text(text) | Piece::Reasoning(text) if text.is_empty()));
        pieces
    }
}

/// A whole answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Answer {
    /// What the model thought.
    pub(crate) reasoning: String,
    /// What it said.
    pub(crate) text: String,
    /// The tools it called.
    pub(crate) calls: Vec<Call>,
}

impl Answer {
    /// Adds pieces.
    pub(crate) fn add(&mut self, pieces: Vec<Piece>) {
        for piece in pieces {
            match piece {
                Piece::Reasoning(text) => self.reasoning.push_str(&text),
                Piece::Text(text) => self.text.push_str(&text),
                Piece::Call(call) => self.calls.push(call),
            }
        }
    }
}

/// Why an answer ended, in OpenAI's words.
#[must_use]
pub(crate) fn finish_reason(reason: &FinishReason, calls: usize) -> &'static str {
    match reason {
        FinishReason::Length => "length",
        _ if calls > 0 => "tool_calls",
        _ => "stop",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use millpond::text::tool_calls::ParameterTypes;

    fn reader(starts_thinking: bool, has_tools: bool) -> AnswerReader {
        reader_of(ReasoningForm::Beside, starts_thinking, has_tools)
    }

    fn reader_of(form: ReasoningForm, starts_thinking: bool, has_tools: bool) -> AnswerReader {
        let prompt = ChatPrompt {
            ids: vec![],
            boundaries: vec![],
            starts_thinking,
            types: ParameterTypes::default(),
            has_tools,
        };
        AnswerReader::new(&prompt, form)
    }

    fn answer(mut reader: AnswerReader, text: &str) -> Answer {
        let mut answer = Answer::default();
        for character in text.chars() {
            answer.add(reader.push(&character.to_string()));
        }
        answer.add(reader.finish());
        answer
    }

    #[test]
    fn reasoning_text_and_calls_come_apart() {
        let text = "Let me see.</think>\n\nI look.\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"x\": 1}}\n</tool_call>";
        let answer = answer(reader(true, true), text);
        assert_eq!(answer.reasoning, "Let me see.");
        assert_eq!(answer.text, "I look.");
        assert_eq!(answer.calls.len(), 1);
        assert_eq!((answer.calls[0].name.as_str(), &answer.calls[0].arguments["x"]), ("f", &Value::from(1)));
    }

    #[test]
    fn thoughts_take_the_form_that_is_asked_for() {
        let text = "<think>\nWell.\n</think>\n\nYes.";
        for (name, thoughts, said) in [
            ("auto", "Well.", "Yes."),
            ("deepseek", "Well.", "Yes."),
            ("none", "", text),
            ("deepseek-legacy", "Well.", text),
            ("hidden", "", "Yes."),
        ] {
            let found = answer(reader_of(name.parse().unwrap(), false, false), text);
            assert_eq!((found.reasoning.trim(), found.text.as_str()), (thoughts, said), "{name}");
        }
        assert!("loud".parse::<ReasoningForm>().is_err());
    }

    #[test]
    fn without_tools_a_call_is_text() {
        let text = "<tool_call>{}</tool_call>";
        assert_eq!(answer(reader(false, false), text).text, text);
    }

    #[test]
    fn a_call_that_makes_no_sense_is_text_too() {
        let found = answer(reader(false, true), "a <tool_call>nonsense</tool_call>");
        assert_eq!(found.text, "a <tool_call>nonsense</tool_call>");
        assert!(found.calls.is_empty());
    }
}
