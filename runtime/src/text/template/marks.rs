//! Telling the control tokens in somebody's text from those that the template writes.
//!
//! The method is that of transformers' `sanitize_control_tokens`: strings are marked before rendering and the marks
//! found again afterwards, so that it works for any template.

use crate::text::tokenizer::{TokenKind, Tokenizer};

/// Private-use characters around a control token that came in with somebody's text.
const MARK_START: char = '\u{F0000}';
const MARK_END: char = '\u{F0001}';

/// The control tokens of a vocabulary, as text, longest first.
pub(super) struct ControlTokens {
    texts: Vec<String>,
}

impl ControlTokens {
    pub(super) fn of(tokenizer: &Tokenizer) -> Self {
        let mut texts: Vec<String> = tokenizer
            .added_tokens()
            .filter(|&(_, kind)| kind == TokenKind::Control)
            .map(|(text, _)| text.to_owned())
            .collect();
        texts.sort_by_key(|text| std::cmp::Reverse(text.len()));
        Self { texts }
    }

    fn at_start(&self, text: &str) -> Option<&str> {
        self.texts.iter().map(String::as_str).find(|token| text.starts_with(token))
    }

    /// `text` with marks around every control token; marks that were there already are dropped, so none can be forged.
    pub(super) fn mark(&self, text: &str) -> String {
        let text = text.replace([MARK_START, MARK_END], "");
        let mut marked = String::with_capacity(text.len());
        let mut rest = text.as_str();
        while let Some(character) = rest.chars().next() {
            if let Some(token) = self.at_start(rest) {
                marked.push(MARK_START);
                marked.push_str(token);
                marked.push(MARK_END);
                rest = &rest[token.len()..];
            } else {
                marked.push(character);
                rest = &rest[character.len_utf8()..];
            }
        }
        marked
    }

    /// Splits rendered text into pieces, and says of each whether it is a marked control token. Marks that the template
    /// has torn apart still separate pieces, so that no control token can arise across them.
    pub(super) fn pieces<'t>(&self, rendered: &'t str) -> Vec<(&'t str, bool)> {
        let mut pieces = Vec::new();
        let mut rest = rendered;
        while let Some(place) = rest.find([MARK_START, MARK_END]) {
            pieces.push((&rest[..place], false));
            let opens = rest[place..].starts_with(MARK_START);
            rest = &rest[place + MARK_START.len_utf8()..];
            let token = if opens { self.at_start(rest).map_or(0, str::len) } else { 0 };
            if token > 0 && rest[token..].starts_with(MARK_END) {
                pieces.push((&rest[..token], true));
                rest = &rest[token + MARK_END.len_utf8()..];
            }
        }
        pieces.push((rest, false));
        pieces.retain(|(piece, _)| !piece.is_empty());
        pieces
    }
}
