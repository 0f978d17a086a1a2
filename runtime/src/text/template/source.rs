//! What is done to a template's source before it is compiled.

use super::TemplateError;

/// Most tags and comments in a template; the largest in use have about 500.
const MAX_TAGS: usize = 8192;
/// Most words and signs in one tag, a string counting as one; real ones stay below 200.
const MAX_TAG_TOKENS: usize = 2048;

/// Refuses sources on which a recursive compiler would run out of stack: nesting depth is at most the number of tags,
/// or of words within one tag.
pub(super) fn check_shape(source: &str) -> Result<(), TemplateError> {
    let mut tags = 0;
    let mut rest = source;
    while let Some((start, close)) = next_tag(rest) {
        tags += 1;
        if tags > MAX_TAGS {
            return Err(TemplateError::Shape { what: "tags", found: tags, limit: MAX_TAGS });
        }
        rest = &rest[start + 2..];
        let (length, tokens) = if close == "#}" { (rest.find(close), 0) } else { scan_tag(rest, close) };
        if tokens > MAX_TAG_TOKENS {
            return Err(TemplateError::Shape {
                what: "words in one tag",
                found: tokens,
                limit: MAX_TAG_TOKENS,
            });
        }
        let Some(length) = length else { break };
        rest = &rest[length + 2..];
    }
    Ok(())
}

/// Where the next tag opens, and what closes it.
fn next_tag(text: &str) -> Option<(usize, &'static str)> {
    let closings = [("{{", "}}"), ("{%", "%}"), ("{#", "#}")];
    let found = closings.iter().filter_map(|&(open, close)| Some((text.find(open)?, close)));
    found.min_by_key(|&(start, _)| start)
}

/// Length of the tag's inside, unless it never closes, and the number of its words and signs.
fn scan_tag(text: &str, close: &str) -> (Option<usize>, usize) {
    let bytes = text.as_bytes();
    let mut tokens = 0;
    let mut place = 0;
    let mut in_word = false;
    while place < bytes.len() {
        let byte = bytes[place];
        if bytes[place..].starts_with(close.as_bytes()) {
            return (Some(place), tokens);
        }
        let is_word = byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80;
        tokens += usize::from(!(byte.is_ascii_whitespace() || is_word && in_word));
        in_word = is_word;
        place += if matches!(byte, b'"' | b'\'') { string_length(&bytes[place..]) } else { 1 };
    }
    (None, tokens)
}

/// Length of the string literal at the start of `bytes`, with its quotes.
fn string_length(bytes: &[u8]) -> usize {
    let mut place = 1;
    while place < bytes.len() {
        match bytes[place] {
            b'\\' => place += 2,
            byte if byte == bytes[0] => return place + 1,
            _ => place += 1,
        }
    }
    bytes.len()
}

/// `{% generation %}` marks what an assistant wrote when preparing training data. Rendering ignores it, so the pair
/// becomes a plain scope with the same whitespace marks.
pub(super) fn without_generation_tags(source: &str) -> String {
    let mut result = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        // From behind the opening, for `{%}` closes nothing.
        let Some(length) = rest[start + 2..].find("%}") else { break };
        let inner = &rest[start + 2..start + 2 + length];
        let word = inner.trim_matches(|c: char| c == '-' || c == '+' || c.is_whitespace());
        let replacement = match word {
            "generation" => Some("with"),
            "endgeneration" => Some("endwith"),
            _ => None,
        };
        match replacement {
            Some(tag) => {
                result.push_str(&rest[..start + 2]);
                result.push_str(&inner.replace(word, &format!(" {tag} ")));
                result.push_str("%}");
                rest = &rest[start + length + 4..];
            }
            None => {
                result.push_str(&rest[..start + 2]);
                rest = &rest[start + 2..];
            }
        }
    }
    result.push_str(rest);
    result
}
