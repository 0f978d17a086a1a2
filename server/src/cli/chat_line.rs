//! What a line of a conversation means.

/// A line.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Line<'a> {
    /// Something to say to the model.
    Say(String),
    /// The end.
    Leave,
    /// The last question is to be changed.
    Edit,
    /// Another command.
    Command {
        /// Its name, without the slash.
        name: &'a str,
        /// The rest of the line.
        argument: &'a str,
    },
}

/// Reads a text that [`complete`] returned. Two slashes say a line that begins with one.
#[must_use]
pub(crate) fn parse(text: &str) -> Line<'_> {
    let Some(rest) = text.strip_prefix('/') else { return Line::Say(text.to_owned()) };
    if rest.starts_with('/') {
        return Line::Say(rest.to_owned());
    }
    let (name, argument) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
    match name {
        "bye" | "exit" | "quit" => Line::Leave,
        "edit" => Line::Edit,
        _ => Line::Command { name, argument: argument.trim() },
    }
}

/// The whole text, once what was typed so far is one; `None` while more lines belong to it.
#[must_use]
pub(crate) fn complete(typed: &str) -> Option<String> {
    if let Some(rest) = typed.strip_prefix("\"\"\"") {
        let text = rest.strip_suffix("\"\"\"")?;
        return Some(text.trim_matches('\n').to_owned());
    }
    if typed.ends_with('\\') { None } else { Some(typed.replace("\\\n", "\n")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_several_lines_are_marked() {
        assert_eq!(complete("hello").as_deref(), Some("hello"));
        assert_eq!(complete("hello \\"), None);
        assert_eq!(complete("hello \\\nworld").as_deref(), Some("hello \nworld"));
        assert_eq!(complete("\"\"\""), None);
        assert_eq!(complete("\"\"\"a\nb"), None);
        assert_eq!(complete("\"\"\"a\nb\n\"\"\"").as_deref(), Some("a\nb"));
    }

    #[test]
    fn commands_begin_with_one_slash() {
        assert_eq!(parse("hello"), Line::Say("hello".to_owned()));
        assert_eq!(parse("//x"), Line::Say("/x".to_owned()));
        assert_eq!(parse("/bye"), Line::Leave);
        assert_eq!(parse("/set temp  0.5"), Line::Command { name: "set", argument: "temp  0.5" });
    }
}
