//! Prompts as text, as token ids, or as a mixture; one or several.

use serde::Deserialize;

use super::error::{ApiError, ApiResult};
use super::integer;
use super::state::Served;

/// Most prompts of a request.
const MAX_PROMPTS: usize = 256;

/// One prompt or several.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub(crate) enum PromptInput {
    /// A text.
    Text(String),
    /// Texts, token ids, or lists of both.
    List(Vec<PromptItem>),
    /// A text that may come with pictures, which are refused.
    Object(PromptObject),
}

/// A prompt, or part of one.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub(crate) enum PromptItem {
    /// A token id.
    Id(#[serde(deserialize_with = "integer::one")] u32),
    /// A text.
    Text(String),
    /// A prompt of several parts.
    Parts(Vec<PromptPart>),
    /// A text as llama.cpp writes it where pictures may come with it.
    Object(PromptObject),
}

/// A text that may come with pictures.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged, deny_unknown_fields)]
pub(crate) enum PromptObject {
    /// A text.
    Whole {
        /// The text.
        prompt_string: String,
    },
    /// A text in parts, as messages have them.
    Parts {
        /// The parts.
        content: Vec<ContentPart>,
    },
}

/// Part of a text.
#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub(crate) enum ContentPart {
    /// Text: there is nothing else that a model here could read.
    Text {
        /// The text.
        text: String,
    },
}

impl PromptObject {
    fn text(self) -> String {
        match self {
            PromptObject::Whole { prompt_string } => prompt_string,
            PromptObject::Parts { content } => {
                content.into_iter().map(|ContentPart::Text { text }| text).collect()
            }
        }
    }
}

/// Part of a prompt.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub(crate) enum PromptPart {
    /// A token id.
    Id(#[serde(deserialize_with = "integer::one")] u32),
    /// A text.
    Text(String),
}

impl PromptInput {
    /// The token ids of each prompt.
    ///
    /// # Errors
    /// None or too many prompts, or an empty one.
    pub(crate) fn tokens(self, served: &Served) -> ApiResult<Vec<Vec<u32>>> {
        let prompts: Vec<Vec<PromptPart>> = match self {
            PromptInput::Text(text) => vec![vec![PromptPart::Text(text)]],
            PromptInput::List(items) => prompts_of(items),
            PromptInput::Object(object) => vec![vec![PromptPart::Text(object.text())]],
        };
        if prompts.is_empty() || prompts.len() > MAX_PROMPTS {
            return Err(ApiError::field("prompt", format!("expected 1 to {MAX_PROMPTS} prompts")));
        }
        prompts.iter().map(|parts| encode(served, parts)).collect()
    }
}

/// A list with a number in it is one prompt, as in llama.cpp; a list of texts is as many.
fn prompts_of(items: Vec<PromptItem>) -> Vec<Vec<PromptPart>> {
    if items.iter().any(|item| matches!(item, PromptItem::Id(_))) {
        let parts = items.into_iter().flat_map(|item| match item {
            PromptItem::Id(id) => vec![PromptPart::Id(id)],
            PromptItem::Text(text) => vec![PromptPart::Text(text)],
            PromptItem::Parts(parts) => parts,
            PromptItem::Object(object) => vec![PromptPart::Text(object.text())],
        });
        return vec![parts.collect()];
    }
    let prompts = items.into_iter().map(|item| match item {
        PromptItem::Id(id) => vec![PromptPart::Id(id)],
        PromptItem::Text(text) => vec![PromptPart::Text(text)],
        PromptItem::Parts(parts) => parts,
        PromptItem::Object(object) => vec![PromptPart::Text(object.text())],
    });
    prompts.collect()
}

fn encode(served: &Served, parts: &[PromptPart]) -> ApiResult<Vec<u32>> {
    let mut ids = Vec::new();
    for (index, part) in parts.iter().enumerate() {
        match part {
            PromptPart::Id(id) => ids.push(*id),
            PromptPart::Text(text) => {
                let tokenizer = served.tokenizer()?;
                if index == 0 && tokenizer.add_bos() {
                    ids.extend(tokenizer.special().bos);
                }
                ids.extend(tokenizer.encode(text, true)?);
            }
        }
    }
    if ids.is_empty() {
        return Err(ApiError::field("prompt", "the prompt is empty"));
    }
    Ok(ids)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lengths(json: &str) -> Vec<usize> {
        match serde_json::from_str(json).unwrap() {
            PromptInput::Text(_) => vec![1],
            PromptInput::List(items) => prompts_of(items).iter().map(Vec::len).collect(),
            PromptInput::Object(_) => vec![1],
        }
    }

    #[test]
    fn every_form_of_a_prompt_is_read() {
        assert_eq!(lengths("\"a\""), [1]);
        assert_eq!(lengths("[1, 2, 3]"), [3]);
        assert_eq!(lengths("[\"a\", \"b\"]"), [1, 1]);
        assert_eq!(lengths("[[1, 2], \"a\", [3, \"b\", 4]]"), [2, 1, 3]);
        assert_eq!(lengths("[1, \"a\", 2]"), [3]);
        assert_eq!(lengths("{\"prompt_string\": \"a\"}"), [1]);
        assert_eq!(lengths("[{\"prompt_string\": \"a\"}, \"b\"]"), [1, 1]);
        assert_eq!(lengths("[{\"content\": [{\"type\": \"text\", \"text\": \"a\"}]}, \"b\"]"), [1, 1]);
        for picture in ["[{\"content\": [{\"type\": \"image_url\"}]}]", "{\"content\": 5}"] {
            assert!(serde_json::from_str::<PromptInput>(picture).is_err(), "{picture}");
        }
        assert!(
            serde_json::from_str::<PromptInput>("{\"prompt_string\": \"a\", \"multimodal_data\": []}")
                .is_err()
        );
        assert!(serde_json::from_str::<PromptInput>("[-1]").is_err());
        assert!(serde_json::from_str::<PromptInput>("{}").is_err());
    }
}
