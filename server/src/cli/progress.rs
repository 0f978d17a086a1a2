//! Progress of what takes a while, on standard error and only where that is a terminal.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::terminal;

/// Time between two pictures of something whose end is not known.
const TICK: Duration = Duration::from_millis(120);
/// How often a bar is drawn in a second.
const RATE: u8 = 10;

/// Something under way. It leaves the screen as it was when it is dropped.
#[derive(Debug)]
pub(crate) struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// Something whose end is not known.
    #[must_use]
    pub(crate) fn waiting(what: &str) -> Progress {
        let progress = Progress::shown(None, "{spinner} {msg} {elapsed}", what);
        if !progress.bar.is_hidden() {
            progress.bar.enable_steady_tick(TICK);
        }
        progress
    }

    /// What is at hand now.
    pub(crate) fn say(&self, what: String) {
        self.bar.set_message(what);
    }

    /// Something counted in `unit`s, `total` of them.
    #[must_use]
    pub(crate) fn counted(what: &str, total: u64, unit: &str) -> Progress {
        Progress::shown(Some(total), &format!("{{msg}} [{{bar:30}}] {{pos}}/{{len}} {unit} {{eta}}"), what)
    }

    /// Something of which the share that is done is worth more than a number.
    #[must_use]
    pub(crate) fn share() -> Progress {
        Progress::shown(Some(0), "{bar:30} {percent:>3} %  {eta} left  {wide_msg}", "")
    }

    /// How much is done of how much, and what is at hand.
    pub(crate) fn set_share(&self, done: u64, total: u64, what: String) {
        self.bar.set_length(total);
        self.bar.set_position(done);
        self.bar.set_message(what);
    }

    /// Something counted in bytes, `total` of them.
    #[must_use]
    pub(crate) fn bytes(what: &str, total: u64) -> Progress {
        let form = "{msg} [{bar:30}] {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}";
        Progress::shown(Some(total), form, what)
    }

    fn shown(total: Option<u64>, form: &str, what: &str) -> Progress {
        let hidden = !std::io::stderr().is_terminal() || terminal::is_declined();
        let target =
            if hidden { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr_with_hz(RATE) };
        let bar = ProgressBar::with_draw_target(total, target);
        // Forms are constants of this file; one that is wrong would show as indicatif's own.
        if let Ok(style) = ProgressStyle::with_template(form) {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_message(what.to_owned());
        Progress { bar }
    }

    /// How much is done.
    pub(crate) fn set(&self, done: u64) {
        self.bar.set_position(done);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_are_well_formed() {
        let share = "{bar:30} {percent:>3} %  {eta} left  {wide_msg}";
        for form in ["{spinner} {msg} {elapsed}", "{msg} [{bar:30}] {pos}/{len} x {eta}", share] {
            assert!(ProgressStyle::with_template(form).is_ok(), "{form}");
        }
    }

    #[test]
    fn what_is_not_shown_still_counts() {
        let progress = Progress::counted("loading", 10, "tokens");
        progress.set(4);
        assert_eq!(progress.bar.position(), 4);
    }
}
