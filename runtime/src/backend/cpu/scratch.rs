//! Buffers that grow to what a pass needs and stay.

use crate::state::memory::Aligned;

/// A reusable buffer.
pub(super) struct Buffer(Aligned<f32>);

impl Default for Buffer {
    fn default() -> Buffer {
        Buffer(Aligned::new(64))
    }
}

impl std::ops::Deref for Buffer {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.0
    }
}

impl std::ops::DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.0
    }
}

/// The first `len` values of the buffer, grown to hold them. What they hold is left from earlier passes.
pub(super) fn grown(buffer: &mut Buffer, len: usize) -> &mut [f32] {
    if buffer.0.len() < len {
        buffer.0.resize(len, 0.0);
    }
    &mut buffer.0[..len]
}
