//! Why metadata describes no model.

/// Why metadata describes no model this program can run. Keys are spelled as the file spells them.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[allow(missing_docs)] // the messages say what the fields are
pub enum SpecError {
    #[error("`{key}` is missing; {expected} expected")]
    Missing { key: String, expected: String },
    #[error("`{key}` is {found}; {expected} expected")]
    Mistyped { key: String, found: String, expected: String },
    #[error("`{key}` is {found}; {expected} expected")]
    OutOfRange { key: String, found: String, expected: String },
    #[error("`{key}` is {found:?}, an architecture this program does not run; {} expected", known.join(", "))]
    UnknownArchitecture { key: String, found: String, known: &'static [&'static str] },
    #[error("`{key}` is {found}, which this program does not support; {expected} expected")]
    Unsupported { key: String, found: String, expected: String },
    #[error("`{key}` is {found}, no multiple of `{of_key}`, which is {of}")]
    NotMultiple { key: String, found: usize, of_key: String, of: usize },
    #[error("`{key}` has {found} entries; {expected} expected")]
    Length { key: String, found: usize, expected: String },
}
