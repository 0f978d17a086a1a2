//! Separating what a model thinks from what it answers, while the text streams.
//!
//! Thinking stands between `<think>` and `</think>` at the beginning of an answer. Templates may write the opening tag into
//! the prompt, so an answer can begin inside; a model may also leave out either tag.

/// A piece of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AnswerPart {
    /// Thinking, without its tags.
    Reasoning(String),
    /// The answer proper.
    Content(String),
}

const OPEN: &str = "<think>";
const CLOSE: &str = "</think>";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Before anything but white space.
    Start,
    /// White space after `<think>` is not part of the thoughts.
    Opened,
    Thinking,
    /// White space after `</think>` is not part of the answer.
    Closed,
    Answer,
}

/// Splits a stream of text. Text is held back only as long as it may become part of a tag, or is white space that may
/// turn out to stand next to one.
#[derive(Debug, Clone)]
pub struct ReasoningSplitter {
    place: Place,
    held: String,
}

impl ReasoningSplitter {
    /// A splitter for an answer whose prompt ended inside the thoughts (`starts_inside`) or before them.
    #[must_use]
    pub fn new(starts_inside: bool) -> Self {
        Self { place: if starts_inside { Place::Opened } else { Place::Start }, held: String::new() }
    }

    /// Whether the text so far ends inside the thoughts.
    #[must_use]
    pub fn is_thinking(&self) -> bool {
        matches!(self.place, Place::Opened | Place::Thinking)
    }

    /// Takes more text and appends what is decided to `parts`; neighbours of one kind are joined.
    pub fn push(&mut self, text: &str, parts: &mut Vec<AnswerPart>) {
        self.held.push_str(text);
        while self.step(parts) {}
    }

    /// Ends the answer. White space at the end of thoughts is dropped, an unfinished tag is text.
    pub fn flush(&mut self, parts: &mut Vec<AnswerPart>) {
        let rest = std::mem::take(&mut self.held);
        match self.place {
            Place::Opened | Place::Thinking => emit(parts, AnswerPart::Reasoning, rest.trim_end()),
            Place::Closed => emit(parts, AnswerPart::Content, rest.trim_start()),
            Place::Start | Place::Answer => emit(parts, AnswerPart::Content, &rest),
        }
    }

    /// Consumes a piece of what is held; false if more text is needed.
    fn step(&mut self, parts: &mut Vec<AnswerPart>) -> bool {
        match self.place {
            Place::Start => {
                let text = self.held.trim_start();
                if let Some(rest) = text.strip_prefix(OPEN) {
                    self.held = rest.to_owned();
                    self.place = Place::Opened;
                } else if OPEN.starts_with(text) {
                    return false;
                } else {
                    self.place = Place::Answer;
                }
                true
            }
            Place::Opened | Place::Closed => {
                let text = self.held.trim_start();
                if text.is_empty() {
                    self.held.clear();
                    return false;
                }
                self.held = text.to_owned();
                self.place = if self.place == Place::Opened { Place::Thinking } else { Place::Answer };
                true
            }
            Place::Thinking => {
                if let Some(end) = self.held.find(CLOSE) {
                    emit(parts, AnswerPart::Reasoning, self.held[..end].trim_end());
                    self.held.drain(..end + CLOSE.len());
                    self.place = Place::Closed;
                    return true;
                }
                let tag = self.held.len() - tag_beginning(&self.held, CLOSE);
                let sure = self.held[..tag].trim_end().len();
                emit(parts, AnswerPart::Reasoning, &self.held[..sure]);
                self.held.drain(..sure);
                false
            }
            Place::Answer => {
                emit(parts, AnswerPart::Content, &self.held);
                self.held.clear();
                false
            }
        }
    }
}

/// Length of the longest end of `text` that is a beginning of `tag`, but not all of it.
pub(super) fn tag_beginning(text: &str, tag: &str) -> usize {
    let longest = tag.len().saturating_sub(1).min(text.len());
    (1..=longest).rev().find(|&length| text.as_bytes().ends_with(&tag.as_bytes()[..length])).unwrap_or(0)
}

fn emit(parts: &mut Vec<AnswerPart>, kind: fn(String) -> AnswerPart, text: &str) {
    if text.is_empty() {
        return;
    }
    match (parts.last_mut(), kind(String::new())) {
        (Some(AnswerPart::Reasoning(last)), AnswerPart::Reasoning(_))
        | (Some(AnswerPart::Content(last)), AnswerPart::Content(_)) => last.push_str(text),
        _ => parts.push(kind(text.to_owned())),
    }
}

/// Splits a whole answer into thoughts and answer.
#[must_use]
pub fn split_reasoning(text: &str, starts_inside: bool) -> (String, String) {
    let mut splitter = ReasoningSplitter::new(starts_inside);
    let mut parts = Vec::new();
    splitter.push(text, &mut parts);
    splitter.flush(&mut parts);
    let (mut reasoning, mut content) = (String::new(), String::new());
    for part in parts {
        match part {
            AnswerPart::Reasoning(text) => reasoning.push_str(&text),
            AnswerPart::Content(text) => content.push_str(&text),
        }
    }
    (reasoning, content)
}
