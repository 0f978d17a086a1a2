//! Ctrl-C: the first stops what is being generated, the second leaves.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;

/// Whether the user wants to stop.
#[derive(Clone, Debug, Default)]
pub(crate) struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Takes over Ctrl-C (and the signals that ask a process to end). A second one, while the first has not been
    /// [taken](Interrupt::take), ends the process with code 130.
    ///
    /// # Errors
    /// The system refuses, or they were taken over before.
    pub(crate) fn install() -> anyhow::Result<Interrupt> {
        let interrupt = Interrupt::default();
        let flag = interrupt.0.clone();
        ctrlc::set_handler(move || {
            if flag.swap(true, Ordering::SeqCst) {
                std::process::exit(130);
            }
        })
        .context("cannot handle Ctrl-C")?;
        Ok(interrupt)
    }

    /// Whether Ctrl-C was pressed.
    #[must_use]
    pub(crate) fn pressed(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }

    /// Whether Ctrl-C was pressed since the last call.
    pub(crate) fn take(&self) -> bool {
        self.0.swap(false, Ordering::SeqCst)
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_press_is_taken_once() {
        let interrupt = super::Interrupt::default();
        interrupt.0.store(true, super::Ordering::SeqCst);
        assert!(interrupt.pressed());
        assert!(interrupt.take());
        assert!(!interrupt.pressed() && !interrupt.take());
    }
}
