//! Which tokens a constraint allows next.

/// One bit for each token of the vocabulary; ids beyond its size are not allowed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TokenMask {
    words: Vec<u32>,
    size: usize,
}

impl TokenMask {
    /// A mask of `size` tokens that allows none.
    #[must_use]
    pub fn none(size: usize) -> Self {
        Self { words: vec![0; size.div_ceil(32)], size }
    }

    /// A mask of `size` tokens that allows all.
    #[must_use]
    pub fn all(size: usize) -> Self {
        let mut mask = Self::none(size);
        (0..size as u32).for_each(|id| mask.allow(id));
        mask
    }

    /// Takes over the bits of `words`, lowest id in the lowest bit. Bits beyond `size` are ignored.
    pub fn copy_from(&mut self, words: &[u32], size: usize) {
        self.size = size;
        self.words.clear();
        self.words.extend_from_slice(&words[..words.len().min(size.div_ceil(32))]);
        self.words.resize(size.div_ceil(32), 0);
        if let Some(last) = self.words.last_mut().filter(|_| !size.is_multiple_of(32)) {
            *last &= (1 << (size % 32)) - 1;
        }
    }

    /// Number of tokens that the mask speaks of.
    #[must_use]
    pub fn size(&self) -> usize {
        self.size
    }

    /// Allows a token; ids beyond the size are ignored.
    pub fn allow(&mut self, id: u32) {
        if (id as usize) < self.size {
            self.words[id as usize / 32] |= 1 << (id % 32);
        }
    }

    /// Forbids a token.
    pub fn forbid(&mut self, id: u32) {
        if (id as usize) < self.size {
            self.words[id as usize / 32] &= !(1 << (id % 32));
        }
    }

    /// Whether a token is allowed.
    #[must_use]
    pub fn allows(&self, id: u32) -> bool {
        self.words.get(id as usize / 32).is_some_and(|word| word >> (id % 32) & 1 == 1)
    }

    /// Number of allowed tokens.
    #[must_use]
    pub fn count(&self) -> usize {
        self.words.iter().map(|word| word.count_ones() as usize).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_beyond_the_size_do_not_count() {
        let mut mask = TokenMask::none(0);
        mask.copy_from(&[u32::MAX, u32::MAX], 35);
        assert_eq!((mask.size(), mask.count()), (35, 35));
        assert!(mask.allows(34) && !mask.allows(35) && !mask.allows(u32::MAX));
        mask.copy_from(&[1], 70);
        assert_eq!(mask.count(), 1);
        mask.allow(69);
        mask.allow(70);
        mask.forbid(0);
        assert_eq!(mask.count(), 1);
        assert_eq!(TokenMask::all(70).count(), 70);
    }
}
