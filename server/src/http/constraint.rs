//! What an answer must look like: JSON of some shape, or the text of a grammar. Asked for, it is kept or refused; an
//! answer without it is never given.

use millpond::sample::gbnf;
use millpond::sample::grammar::GrammarSource;
use serde::Deserialize;
use serde_json::{Value, json};

use super::error::{ApiError, ApiResult};
use super::object;

/// `response_format` of OpenAI's API.
#[derive(Clone, Debug, Deserialize, PartialEq)]
pub(crate) struct ResponseFormat {
    #[serde(rename = "type")]
    kind: String,
    json_schema: Option<Value>,
    schema: Option<Value>,
}

/// Text that is JSON of a shape. Models that lose their way write blanks for ever, where blanks are allowed, so there are
/// only so many between two parts.
#[must_use]
pub(crate) fn json_of(mut schema: Value) -> GrammarSource {
    if let Value::Object(fields) = &mut schema {
        fields.entry("x-guidance").or_insert_with(blanks);
    }
    GrammarSource::JsonSchema(schema)
}

/// Options for the compiler of schemas: what blanks may stand between two parts, as in llama.cpp one space, or one or two
/// line breaks and an indent.
fn blanks() -> Value {
    json!({ "whitespace_pattern": "\\x20|\\x0A{1,2}[\\x20\\x09]{0,20}" })
}

/// Options for the compiler of schemas: blanks only where models were trained to put them in calls of tools.
#[must_use]
pub(crate) fn no_blanks() -> Value {
    json!({ "whitespace_flexible": false, "item_separator": ", ", "key_separator": ": " })
}

/// Text that is any JSON object.
#[must_use]
pub(crate) fn json_object() -> GrammarSource {
    json_of(json!({ "type": "object" }))
}

/// Fields that constrain an answer.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
pub(crate) struct ConstraintFields {
    #[serde(default, deserialize_with = "object::maybe")]
    response_format: Option<ResponseFormat>,
    json_schema: Option<Value>,
    grammar: Option<String>,
    /// `gbnf` or `lark`; told by its look if absent.
    grammar_type: Option<String>,
    regex: Option<String>,
}

impl ConstraintFields {
    /// What the answer must look like.
    ///
    /// # Errors
    /// Several wishes at once, or one that is not known.
    pub(crate) fn source(&self) -> ApiResult<Option<GrammarSource>> {
        let format = self.response_format.as_ref().map(ResponseFormat::source).transpose()?.flatten();
        let schema = self.json_schema.clone().filter(|schema| !schema.is_null()).map(json_of);
        let grammar = self.grammar.as_deref().filter(|text| !text.is_empty());
        let grammar = grammar.map(|text| self.grammar_source(text)).transpose()?;
        let regex = self.regex.clone().map(GrammarSource::Regex);
        let mut wishes = [format, schema, grammar, regex].into_iter().flatten();
        let first = wishes.next();
        if wishes.next().is_some() {
            return Err(ApiError::invalid(
                "only one of response_format, json_schema, grammar and regex can be kept at once",
            ));
        }
        Ok(first)
    }

    fn grammar_source(&self, text: &str) -> ApiResult<GrammarSource> {
        let is_gbnf = match self.grammar_type.as_deref() {
            Some("gbnf") => true,
            Some("lark") => false,
            Some(other) => {
                let message = format!("grammar_type {other:?}: expected gbnf or lark");
                return Err(ApiError::field("grammar_type", message));
            }
            None => text.contains("::="),
        };
        if !is_gbnf {
            return Ok(GrammarSource::Lark(text.to_owned()));
        }
        let lark = gbnf::to_lark(text).map_err(|error| ApiError::field("grammar", error.to_string()))?;
        Ok(GrammarSource::Lark(lark))
    }
}

impl ResponseFormat {
    fn source(&self) -> ApiResult<Option<GrammarSource>> {
        let wrong = |message: String| ApiError::field("response_format", message);
        match self.kind.as_str() {
            "text" => Ok(None),
            "json_object" => Ok(Some(match &self.schema {
                Some(schema) => json_of(schema.clone()),
                None => json_object(),
            })),
            "json_schema" => {
                // OpenAI wraps the schema with its name; llama.cpp's clients may not.
                let wrapped = self.json_schema.as_ref().and_then(|wrapper| wrapper.get("schema"));
                let schema = wrapped.or(self.schema.as_ref()).or(self.json_schema.as_ref());
                let schema = schema.ok_or_else(|| wrong("response_format has no json_schema".to_owned()))?;
                Ok(Some(json_of(schema.clone())))
            }
            other => Err(wrong(format!("response_format of type {other:?} is not known"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(fields: Value) -> ApiResult<Option<GrammarSource>> {
        serde_json::from_value::<ConstraintFields>(fields).unwrap().source()
    }

    #[test]
    fn every_spelling_of_a_wish_is_understood() {
        let schema = json!({"type": "object"});
        let expected = Some(json_of(schema.clone()));
        for fields in [
            json!({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}),
            json!({"response_format": {"type": "json_schema", "schema": schema}}),
            json!({"response_format": {"type": "json_object", "schema": schema}}),
            json!({"json_schema": schema}),
        ] {
            assert_eq!(source(fields.clone()).unwrap(), expected, "{fields}");
        }
        assert_eq!(source(json!({"response_format": {"type": "text"}})).unwrap(), None);
        assert_eq!(source(json!({})).unwrap(), None);
        let json_object = source(json!({"response_format": {"type": "json_object"}})).unwrap();
        assert_eq!(json_object, Some(super::json_object()));
        assert!(matches!(
            source(json!({"grammar": "root ::= \"a\""})).unwrap(),
            Some(GrammarSource::Lark(_))
        ));
    }

    #[test]
    fn unclear_wishes_are_refused() {
        for fields in [
            json!({"response_format": {"type": "xml"}}),
            json!({"response_format": {"type": "json_schema"}}),
            json!({"grammar": "root ::= (", "grammar_type": "gbnf"}),
            json!({"grammar": "x", "grammar_type": "yacc"}),
            json!({"json_schema": {}, "regex": "a"}),
        ] {
            assert!(source(fields.clone()).is_err(), "{fields}");
        }
    }
}
