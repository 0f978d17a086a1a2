//! From tokens to text: whole characters, and nothing that may turn out to belong to a stop text.

use crate::sample::StopMatcher;
use crate::text::Detokenizer;

/// Text of one generation on its way out.
#[derive(Debug)]
pub(super) struct TextEmitter {
    detokenizer: Detokenizer,
    stops: StopMatcher,
    /// Whole characters of the last token.
    characters: String,
}

impl TextEmitter {
    pub(super) fn new(stops: StopMatcher) -> TextEmitter {
        TextEmitter { detokenizer: Detokenizer::new(), stops, characters: String::new() }
    }

    /// Takes the bytes of a token; returns what may be emitted, and the stop text that has come up.
    pub(super) fn push(&mut self, bytes: &[u8]) -> (String, Option<String>) {
        self.characters.clear();
        self.detokenizer.push(bytes, &mut self.characters);
        let mut passed = String::new();
        self.stops.push(&self.characters, &mut passed);
        (passed, self.stops.found().map(str::to_owned))
    }

    /// Ends the text: what was held back.
    pub(super) fn finish(&mut self) -> String {
        self.characters.clear();
        self.detokenizer.flush(&mut self.characters);
        let mut passed = String::new();
        self.stops.push(&self.characters, &mut passed);
        self.stops.flush(&mut passed);
        passed
    }
}
