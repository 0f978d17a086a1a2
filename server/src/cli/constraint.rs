//! What an answer has to look like, from the command line.

use millpond::sample::gbnf;
use millpond::sample::grammar::GrammarSource;

use super::args::ConstraintArgs;
use super::failure::usage;
use super::settings;
use crate::http::constraint::json_of;

/// The grammar that `args` ask for.
///
/// # Errors
/// A file that cannot be read; wrong usage: a text that is no grammar or no schema.
pub(crate) fn source(args: &ConstraintArgs) -> anyhow::Result<Option<GrammarSource>> {
    let grammar = settings::text_of(args.grammar.as_deref(), args.grammar_file.as_deref())?;
    let schema = settings::text_of(args.json_schema.as_deref(), args.json_schema_file.as_deref())?;
    match (grammar, schema) {
        (Some(text), _) => Ok(Some(GrammarSource::Lark(lark(text)?))),
        (None, Some(text)) => {
            let schema =
                serde_json::from_str(&text).map_err(|error| usage(format!("--json-schema: {error}")))?;
            Ok(Some(json_of(schema)))
        }
        (None, None) => Ok(None),
    }
}

/// A grammar in Lark, whichever of the two kinds it was written in.
fn lark(text: String) -> anyhow::Result<String> {
    if !text.contains("::=") {
        return Ok(text);
    }
    gbnf::to_lark(&text).map_err(|error| usage(format!("--grammar: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_grammar_and_schemas_are_taken() {
        let of = |args: ConstraintArgs| source(&args).unwrap();
        let gbnf = ConstraintArgs { grammar: Some("root ::= \"a\"".to_owned()), ..Default::default() };
        assert!(matches!(of(gbnf), Some(GrammarSource::Lark(_))));
        let lark = ConstraintArgs { grammar: Some("start: \"a\"".to_owned()), ..Default::default() };
        assert_eq!(of(lark), Some(GrammarSource::Lark("start: \"a\"".to_owned())));
        let schema = ConstraintArgs { json_schema: Some("{}".to_owned()), ..Default::default() };
        assert!(matches!(of(schema), Some(GrammarSource::JsonSchema(_))));
        assert_eq!(of(ConstraintArgs::default()), None);
    }

    #[test]
    fn nonsense_is_wrong_usage() {
        for args in [
            ConstraintArgs { grammar: Some("root ::= (".to_owned()), ..Default::default() },
            ConstraintArgs { json_schema: Some("{".to_owned()), ..Default::default() },
        ] {
            assert_eq!(super::super::failure::exit_code(&source(&args).unwrap_err()), 2, "{args:?}");
        }
    }
}
