//! `\n` and its kin in texts on the command line, as llama.cpp reads them.

/// The text with `\n`, `\r`, `\t`, `\'`, `\"`, `\\` and `\xHH` replaced; other backslashes stay.
#[must_use]
pub(crate) fn replaced(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        let (value, length) = match (byte, after) {
            (b'\\', [b'n', ..]) => (b'\n', 1),
            (b'\\', [b'r', ..]) => (b'\r', 1),
            (b'\\', [b't', ..]) => (b'\t', 1),
            (b'\\', [quoted @ (b'\'' | b'"' | b'\\'), ..]) => (*quoted, 1),
            (b'\\', [b'x', high, low, ..]) => match (digit(*high), digit(*low)) {
                (Some(high), Some(low)) => (16 * high + low, 3),
                _ => (byte, 0),
            },
            _ => (byte, 0),
        };
        bytes.push(value);
        rest = &rest[length..];
    }
    // Only `\x` can make anything but UTF-8; a text that it breaks stays as it was.
    String::from_utf8(bytes).unwrap_or_else(|_| text.to_owned())
}

fn digit(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

#[cfg(test)]
mod tests {
    use super::replaced;

    #[test]
    fn escapes_are_those_of_llama_cpp() {
        assert_eq!(replaced(r"a\nb\tc\\n\'\x41"), "a\nb\tc\\n'A");
        assert_eq!(replaced(r"\q \x4 \xzz \"), r"\q \x4 \xzz \");
        assert_eq!(replaced(r"\xe9"), r"\xe9");
        assert_eq!(replaced("größe\\n"), "größe\n");
    }
}
