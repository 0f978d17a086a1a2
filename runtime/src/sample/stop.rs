//! Stop strings: found across token boundaries, holding back only text that may still become one.

use thiserror::Error;

/// Most stop strings of one request.
pub const MAX_STOPS: usize = 256;
/// Longest stop string in bytes.
pub const MAX_STOP_BYTES: usize = 4096;

/// Why stop strings were refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum StopError {
    /// More than [`MAX_STOPS`].
    #[error("{count} stop strings, more than the limit of {MAX_STOPS}")]
    Count {
        /// How many.
        count: usize,
    },
    /// The empty string, which would stop at once.
    #[error("stop string {index} is empty")]
    Empty {
        /// Its place in the list.
        index: usize,
    },
    /// Longer than [`MAX_STOP_BYTES`].
    #[error("stop string {index} has {bytes} bytes, more than the limit of {MAX_STOP_BYTES}")]
    Length {
        /// Its place in the list.
        index: usize,
        /// Its length.
        bytes: usize,
    },
}

/// One stop string with the automaton of Knuth, Morris and Pratt ("Fast pattern matching in strings", 1977).
#[derive(Debug, Clone)]
struct Pattern {
    text: String,
    /// For each length of prefix: the longest proper prefix of it that is also its suffix.
    fallback: Vec<usize>,
    /// Length of the longest prefix that the text so far ends with.
    state: usize,
}

impl Pattern {
    fn new(text: &str) -> Self {
        let bytes = text.as_bytes();
        let mut fallback = vec![0; bytes.len() + 1];
        let mut state = 0;
        for place in 1..bytes.len() {
            while state > 0 && bytes[state] != bytes[place] {
                state = fallback[state];
            }
            state += usize::from(bytes[state] == bytes[place]);
            fallback[place + 1] = state;
        }
        Self { text: text.to_owned(), fallback, state: 0 }
    }

    /// Takes one byte; whether the string is complete now.
    fn step(&mut self, byte: u8) -> bool {
        let bytes = self.text.as_bytes();
        if self.state == bytes.len() {
            self.state = self.fallback[self.state];
        }
        while self.state > 0 && bytes[self.state] != byte {
            self.state = self.fallback[self.state];
        }
        self.state += usize::from(bytes[self.state] == byte);
        self.state == bytes.len()
    }
}

/// Watches a stream of text. The string that is complete first ends the text; if several are complete at the same
/// character, the longest. How the text is cut into pieces makes no difference.
#[derive(Debug, Clone, Default)]
pub struct StopMatcher {
    patterns: Vec<Pattern>,
    held: String,
    found: Option<usize>,
}

impl StopMatcher {
    /// A matcher for these strings; with none, all text passes at once.
    ///
    /// # Errors
    /// Too many, empty or too long.
    pub fn new<S: AsRef<str>>(stops: &[S]) -> Result<Self, StopError> {
        if stops.len() > MAX_STOPS {
            return Err(StopError::Count { count: stops.len() });
        }
        for (index, stop) in stops.iter().map(AsRef::as_ref).enumerate() {
            if stop.is_empty() {
                return Err(StopError::Empty { index });
            }
            if stop.len() > MAX_STOP_BYTES {
                return Err(StopError::Length { index, bytes: stop.len() });
            }
        }
        let patterns = stops.iter().map(|stop| Pattern::new(stop.as_ref())).collect();
        Ok(Self { patterns, held: String::new(), found: None })
    }

    /// Takes more text and appends to `passed` what can no longer be part of a stop string. Returns the index of the
    /// stop string that has been found, now or before; text after it is dropped.
    pub fn push(&mut self, text: &str, passed: &mut String) -> Option<usize> {
        if self.found.is_some() {
            return self.found;
        }
        if self.patterns.is_empty() {
            passed.push_str(text);
            return None;
        }
        for character in text.chars() {
            self.held.push(character);
            if let Some(index) = self.step(character) {
                let kept = self.held.len() - self.patterns[index].text.len();
                passed.push_str(&self.held[..kept]);
                self.held.clear();
                self.found = Some(index);
                return self.found;
            }
            // Stop strings and text are both whole characters, so the held part begins at one.
            let possible = self.patterns.iter().map(|pattern| pattern.state).max().unwrap_or(0);
            let sure = self.held.len() - possible;
            passed.push_str(&self.held[..sure]);
            self.held.drain(..sure);
        }
        None
    }

    fn step(&mut self, character: char) -> Option<usize> {
        let mut buffer = [0; 4];
        let bytes = character.encode_utf8(&mut buffer).as_bytes();
        let mut longest: Option<usize> = None;
        for index in 0..self.patterns.len() {
            let mut complete = false;
            for &byte in bytes {
                complete = self.patterns[index].step(byte);
            }
            let length = |index: usize| self.patterns[index].text.len();
            if complete && longest.is_none_or(|other| length(index) > length(other)) {
                longest = Some(index);
            }
        }
        longest
    }

    /// Ends the text: what was held back is no stop string after all and passes.
    pub fn flush(&mut self, passed: &mut String) {
        passed.push_str(&self.held);
        self.held.clear();
    }

    /// The stop string that was found.
    #[must_use]
    pub fn found(&self) -> Option<&str> {
        self.found.map(|index| self.patterns[index].text.as_str())
    }

    /// Text that may still become a stop string.
    #[must_use]
    pub fn held(&self) -> &str {
        &self.held
    }
}
