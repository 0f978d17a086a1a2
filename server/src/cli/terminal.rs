//! What a terminal is shown and a file or a pipe is not: colours.

use std::io::IsTerminal;

/// Colours for standard error; none where they would be noise. Standard output holds answers, which have none.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Style {
    on: bool,
}

impl Style {
    /// For standard error.
    #[must_use]
    pub(crate) fn stderr() -> Style {
        Style { on: wanted(std::io::stderr().is_terminal()) }
    }

    /// Said beside the matter.
    #[must_use]
    pub(crate) fn faint(self, text: &str) -> String {
        self.with("2", text)
    }

    /// What went wrong.
    #[must_use]
    pub(crate) fn alarm(self, text: &str) -> String {
        self.with("31", text)
    }

    fn with(self, code: &str, text: &str) -> String {
        if self.on && !text.is_empty() { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// Whether an output gets colours: a terminal that can show them, and a user who has not declined (<https://no-color.org>).
fn wanted(is_terminal: bool) -> bool {
    is_terminal && !is_declined()
}

/// Whether the user or the terminal declines anything but plain text.
#[must_use]
pub(crate) fn is_declined() -> bool {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    set("NO_COLOR").is_some() || set("TERM").is_some_and(|term| term == "dumb")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_text_stays_plain() {
        let (plain, coloured) = (Style { on: false }, Style { on: true });
        assert_eq!(plain.alarm("x"), "x");
        assert_eq!(coloured.alarm("x"), "\x1b[31mx\x1b[0m");
        assert_eq!(coloured.faint(""), "");
        assert!(!wanted(false));
    }
}
