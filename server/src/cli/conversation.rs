//! How a conversation is written for the model, and what of its answers are thoughts.

use std::sync::Arc;

use anyhow::Context;
use millpond::model::Model;
use millpond::text::template::CHATML;
use millpond::text::{ChatInput, ChatTemplate, TemplateTokens};
use serde_json::{Map, Value};

use super::args::{ReasoningArgs, ReasoningName, TemplateArgs};
use super::failure::usage;
use super::settings;

/// Tokens at the end of a prompt among which the beginning of thoughts is looked for.
const TAIL: usize = 8;

/// Gives the model the chat template that `args` name, if they name one.
///
/// # Errors
/// A file that cannot be read, or a text that is no template.
pub(crate) fn apply_template(mut model: Arc<Model>, args: &TemplateArgs) -> anyhow::Result<Arc<Model>> {
    let source = settings::text_of(args.chat_template.as_deref(), args.chat_template_file.as_deref())?;
    let Some(source) = source else { return Ok(model) };
    let source = match source.as_str() {
        "chatml" => CHATML,
        // llama.cpp knows many by name; as Jinja they would say their name and nothing else.
        name if !name.contains('{') => {
            return Err(usage(format!(
                "--chat-template {name}: of templates only chatml goes by name; --chat-template-file reads any other"
            )));
        }
        text => text,
    };
    let tokens = TemplateTokens::of(settings::tokenizer(&model)?);
    let template =
        ChatTemplate::parse(source, tokens).map_err(|error| usage(format!("--chat-template: {error}")))?;
    Arc::get_mut(&mut model).context("the model is already in use")?.template = Some(template);
    Ok(model)
}

/// Further variables for the template.
///
/// # Errors
/// Wrong usage: what is given is no JSON object.
fn template_options(args: &TemplateArgs) -> anyhow::Result<Map<String, Value>> {
    let Some(text) = &args.chat_template_kwargs else { return Ok(Map::new()) };
    serde_json::from_str(text)
        .map_err(|error| usage(format!("--chat-template-kwargs: a JSON object expected: {error}")))
}

/// The same, with what `reasoning` says about thinking.
///
/// # Errors
/// Wrong usage.
pub(crate) fn all_options(
    args: &TemplateArgs,
    reasoning: &ReasoningArgs,
) -> anyhow::Result<Map<String, Value>> {
    let mut options = template_options(args)?;
    if let Some(thinking) = thinking(reasoning)? {
        options.insert("enable_thinking".to_owned(), thinking.into());
    }
    // llama.cpp's word for leaving it alone.
    if let Some(effort) = reasoning.reasoning_effort.as_ref().filter(|effort| *effort != "default") {
        options.insert("reasoning_effort".to_owned(), effort.as_str().into());
    }
    Ok(options)
}

/// Whether the model is to think; `None` where nothing says so.
fn thinking(args: &ReasoningArgs) -> anyhow::Result<Option<bool>> {
    let off_by_effort = args.reasoning_effort.as_deref() == Some("none");
    match (args.reasoning, args.reasoning_budget) {
        (Some(ReasoningName::On), Some(0)) => Err(usage("--reasoning on contradicts --reasoning-budget 0")),
        (_, Some(budget)) if budget != 0 && budget != -1 => Err(usage(format!(
            "--reasoning-budget {budget}: 0 (no thoughts) or -1 (as many as the model likes)"
        ))),
        (Some(ReasoningName::On), _) => Ok(Some(true)),
        (Some(ReasoningName::Off), _) | (_, Some(0)) => Ok(Some(false)),
        _ if off_by_effort => Ok(Some(false)),
        _ => Ok(None),
    }
}

/// Tokens of a conversation up to where the assistant's next answer begins.
///
/// # Errors
/// The model has no chat template, or it refuses the conversation.
pub(crate) fn encode(
    model: &Model,
    messages: &[Value],
    options: &Map<String, Value>,
) -> anyhow::Result<Vec<u32>> {
    let template = model.template.as_ref().context("the model has no chat template")?;
    let input =
        ChatInput { messages, add_generation_prompt: true, options: options.clone(), ..ChatInput::default() };
    Ok(template.encode(&input, settings::tokenizer(model)?)?)
}

/// Whether the answer to a prompt begins inside thoughts: the template has opened them.
#[must_use]
pub(crate) fn starts_thinking(model: &Model, prompt: &[u32]) -> bool {
    let Some(tokenizer) = &model.tokenizer else { return false };
    let tail = &prompt[prompt.len().saturating_sub(TAIL)..];
    let bytes: Vec<u8> = tail.iter().flat_map(|&id| tokenizer.token_bytes(id)).copied().collect();
    String::from_utf8_lossy(&bytes).trim_end().ends_with("<think>")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thinking_follows_the_clearest_wish() {
        let of = |reasoning, budget, effort: Option<&str>| {
            thinking(&ReasoningArgs {
                reasoning,
                reasoning_budget: budget,
                reasoning_effort: effort.map(str::to_owned),
                ..ReasoningArgs::default()
            })
        };
        assert_eq!(of(None, None, None).unwrap(), None);
        assert_eq!(of(Some(ReasoningName::On), Some(-1), None).unwrap(), Some(true));
        assert_eq!(of(Some(ReasoningName::Auto), Some(0), None).unwrap(), Some(false));
        assert_eq!(of(None, None, Some("none")).unwrap(), Some(false));
        assert_eq!(of(None, None, Some("high")).unwrap(), None);
        assert!(of(Some(ReasoningName::On), Some(0), None).is_err());
        assert!(of(None, Some(200), None).is_err());
    }

    #[test]
    fn options_are_an_object() {
        let args =
            |text: &str| TemplateArgs { chat_template_kwargs: Some(text.to_owned()), ..Default::default() };
        assert_eq!(template_options(&args("{\"a\": 1}")).unwrap()["a"], 1);
        assert!(template_options(&args("[1]")).is_err());
    }
}
