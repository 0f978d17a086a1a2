//! A backend that fails on demand, around one that does not.

use millpond::backend::{Backend, BackendError, MtpSegment, Outputs, Segment, Slot};
use millpond::state::memory::{MemoryUsage, SequenceMemory};

/// Tokens at whose sight a [`Faulty`] backend fails.
#[derive(Clone, Copy, Debug)]
pub struct Triggers {
    /// It panics.
    pub panic: u32,
    /// It returns an error.
    pub error: u32,
    /// It yields logits that are not numbers.
    pub nan: u32,
}

/// Fails at the sight of some tokens.
pub struct Faulty<B> {
    /// The backend that works.
    pub inner: B,
    /// What makes it fail.
    pub triggers: Triggers,
}

impl<B: Backend> Backend for Faulty<B> {
    fn create(&mut self) -> Result<Slot, BackendError> {
        self.inner.create()
    }

    fn release(&mut self, slot: Slot) {
        self.inner.release(slot);
    }

    fn forward(&mut self, segments: &[Segment<'_>], outputs: &mut Outputs) -> Result<(), BackendError> {
        let sees = |token: u32| segments.iter().any(|segment| segment.tokens.contains(&token));
        assert!(!sees(self.triggers.panic), "token {} was seen", self.triggers.panic);
        if sees(self.triggers.error) {
            return Err(BackendError::Device("it does not like the token".to_owned()));
        }
        self.inner.forward(segments, outputs)?;
        let alone = segments.len() == 1;
        if alone && sees(self.triggers.nan) {
            outputs.logits.fill(f32::NAN);
        }
        Ok(())
    }

    fn forward_mtp(
        &mut self,
        segments: &[MtpSegment<'_>],
        outputs: &mut Outputs,
    ) -> Result<(), BackendError> {
        self.inner.forward_mtp(segments, outputs)
    }

    fn truncate(&mut self, slot: Slot, position: usize) -> Result<(), BackendError> {
        self.inner.truncate(slot, position)
    }

    fn fork(&mut self, slot: Slot) -> Result<Slot, BackendError> {
        self.inner.fork(slot)
    }

    fn export(&self, slot: Slot) -> Result<SequenceMemory, BackendError> {
        self.inner.export(slot)
    }

    fn import(&mut self, memory: SequenceMemory) -> Result<Slot, BackendError> {
        self.inner.import(memory)
    }

    fn compact(&mut self, slot: Slot, live: usize) -> Result<(), BackendError> {
        self.inner.compact(slot, live)
    }

    fn footprint(&self, slots: &[Slot]) -> usize {
        self.inner.footprint(slots)
    }

    fn usage(&self, slot: Slot) -> Result<MemoryUsage, BackendError> {
        self.inner.usage(slot)
    }
}
