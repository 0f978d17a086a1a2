//! Large zeroed buffers of f32, on huge pages where the system offers them.

use memmap2::MmapMut;
use zerocopy::FromBytes;

/// A page-aligned buffer of f32 that starts as zeros. Pages are given by the system when they are first written.
pub struct Arena {
    map: MmapMut,
    len: usize,
}

/// Memory the system would not give.
#[derive(Debug, thiserror::Error)]
#[error("cannot allocate {bytes} bytes of {what}: {reason}")]
pub struct AllocationError {
    /// Bytes asked for.
    pub bytes: usize,
    /// What they were for.
    pub what: &'static str,
    /// What the system said.
    pub reason: String,
}

impl Arena {
    /// A zeroed buffer of `len` values for `what`.
    ///
    /// # Errors
    /// [`AllocationError`] when the system refuses or the size overflows.
    pub fn zeroed(len: usize, what: &'static str) -> Result<Arena, AllocationError> {
        let bytes = len.checked_mul(4).ok_or_else(|| AllocationError {
            bytes: usize::MAX,
            what,
            reason: "the size overflows".to_owned(),
        })?;
        let map = MmapMut::map_anon(bytes.max(4)).map_err(|error| AllocationError {
            bytes,
            what,
            reason: error.to_string(),
        })?;
        #[cfg(target_os = "linux")]
        if let Err(error) = map.advise(memmap2::Advice::HugePage) {
            tracing::debug!(%error, what, "huge pages are not available");
        }
        Ok(Arena { map, len })
    }

    /// A copy.
    ///
    /// # Errors
    /// [`AllocationError`] as for [`Arena::zeroed`].
    pub fn duplicate(&self, what: &'static str) -> Result<Arena, AllocationError> {
        let mut copy = Arena::zeroed(self.len, what)?;
        copy.values_mut().copy_from_slice(self.values());
        Ok(copy)
    }

    /// The values.
    pub fn values(&self) -> &[f32] {
        // A map is page-aligned, so the cast cannot fail; an empty slice would be caught by the length checks.
        <[f32]>::ref_from_bytes(&self.map[..self.len * 4]).unwrap_or(&[])
    }

    /// The values, writable.
    pub fn values_mut(&mut self) -> &mut [f32] {
        <[f32]>::mut_from_bytes(&mut self.map[..self.len * 4]).unwrap_or(&mut [])
    }

    /// Bytes of the buffer.
    pub fn bytes(&self) -> usize {
        self.len * 4
    }
}

impl std::fmt::Debug for Arena {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Arena({} f32)", self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arenas_start_as_zeros_and_copies_are_independent() {
        let mut arena = Arena::zeroed(1000, "test").unwrap();
        assert!(arena.values().iter().all(|&x| x == 0.0));
        arena.values_mut()[999] = 3.0;
        let copy = arena.duplicate("test").unwrap();
        arena.values_mut()[999] = 4.0;
        assert_eq!(copy.values()[999], 3.0);
        assert_eq!(Arena::zeroed(0, "test").unwrap().values().len(), 0);
        assert!(Arena::zeroed(usize::MAX, "test").is_err());
    }
}
