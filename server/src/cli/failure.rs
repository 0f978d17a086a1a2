//! How a command fails, and the exit code that says so.

use std::io;

use super::terminal::Style;

/// A command line that makes no sense, beyond what the parser finds: exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct UsageError(pub String);

/// Ctrl-C: exit code 130.
#[derive(Debug, thiserror::Error)]
#[error("interrupted")]
pub struct Interrupted;

/// A wrong usage as an error of any command.
pub fn usage(message: impl Into<String>) -> anyhow::Error {
    UsageError(message.into()).into()
}

/// The exit code for an error.
#[must_use]
pub fn exit_code(error: &anyhow::Error) -> u8 {
    if is_broken_pipe(error) {
        0
    } else if error.is::<UsageError>() {
        2
    } else if error.is::<Interrupted>() {
        130
    } else {
        1
    }
}

/// Prints an error, unless it is one that needs no words.
pub fn report(error: &anyhow::Error) {
    if !is_broken_pipe(error) && !error.is::<Interrupted>() {
        super::output::note!("{}: {}", Style::stderr().alarm("millpond"), text(error));
    }
}

/// An error and its causes on one line. Many errors tell their cause themselves, or name the file again: neither is told
/// twice.
#[must_use]
pub fn text(error: &anyhow::Error) -> String {
    error.chain().fold(String::new(), |mut text, cause| {
        let cause = cause.to_string();
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            let news = cause.split_once(": ").filter(|(file, _)| text.ends_with(file)).map(|(_, news)| news);
            text.push_str(": ");
            text.push_str(news.unwrap_or(&cause));
        }
        text
    })
}

/// Whether the reader of our output has gone, as `| head` does: no failure.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_told_once() {
        let cause = || io::Error::other("disk on fire");
        let error = anyhow::Error::new(cause()).context("cannot read x: disk on fire");
        assert_eq!(text(&error), "cannot read x: disk on fire");
        let error = anyhow::Error::new(cause()).context("cannot read x");
        assert_eq!(text(&error), "cannot read x: disk on fire");
        let error = anyhow::Error::msg("a/x.gguf: disk on fire").context("cannot load a/x.gguf");
        assert_eq!(text(&error), "cannot load a/x.gguf: disk on fire");
    }

    #[test]
    fn codes_are_those_documented() {
        assert_eq!(exit_code(&usage("x")), 2);
        assert_eq!(exit_code(&Interrupted.into()), 130);
        assert_eq!(exit_code(&anyhow::anyhow!("x")), 1);
        assert_eq!(exit_code(&io::Error::from(io::ErrorKind::BrokenPipe).into()), 0);
    }
}
