//! Any bytes as a packed file.

use std::hint::black_box;
use std::sync::Arc;

use millpond::file::packed::{Checksum, PAGE, Packed};
use millpond::load::{TokenizerSource, load_bytes};
use millpond::text::Tokenizer;

/// Where the sections are listed, the bytes of one, and its checksum among them.
const SECTIONS_AT: usize = 32;
const SECTION_ENTRY: usize = 32;
const CHECKSUM_AT: usize = 24;

/// Reads the file as it is, and once more with checksums that fit, so that damage gets past them.
pub fn packed(data: &[u8]) {
    read(data);
    let mut mended = data.to_vec();
    mend(&mut mended);
    read(&mended);
}

fn read(data: &[u8]) {
    let source: Arc<Vec<u8>> = Arc::new(data.to_vec());
    let Ok(file) = Packed::parse(source.clone()) else { return };
    for tensor in file.tensors() {
        let dims: Vec<u64> = tensor.shape.iter().rev().map(|&dim| dim as u64).collect();
        assert_eq!(Some(data[tensor.range.clone()].len() as u64), tensor.kind.bytes_of(&dims));
        assert!(tensor.range.start.is_multiple_of(64));
    }
    black_box(file.verify().is_ok());
    let Ok(model) = load_bytes(source, "fuzz") else { return };
    if let TokenizerSource::Tables(text) = model.tokenizer
        && let Ok(tokenizer) = Tokenizer::from_tables(text.tables)
    {
        let ids = tokenizer.encode("abc <|end|> text \u{e9}", true).unwrap_or_default();
        assert!(ids.iter().all(|&id| (id as usize) < tokenizer.vocabulary_size()));
        black_box(tokenizer.decode(&ids, false));
    }
}

/// Makes the checksums of the first page and of the sections it lists those of their bytes.
pub fn mend(bytes: &mut [u8]) {
    if bytes.len() < PAGE {
        return;
    }
    let number = |bytes: &[u8], at: usize| {
        let number: [u8; 8] = bytes[at..at + 8].try_into().expect("eight bytes");
        usize::try_from(u64::from_le_bytes(number)).unwrap_or(usize::MAX)
    };
    let count = number(bytes, 24) & 63;
    for entry in (0..count).map(|i| SECTIONS_AT + i * SECTION_ENTRY) {
        let (offset, length) = (number(bytes, entry + 8), number(bytes, entry + 16));
        let end = offset.saturating_add(length);
        if let Some(section) = bytes.get(offset..end) {
            let checksum = Checksum::of(section);
            bytes[entry + CHECKSUM_AT..entry + SECTION_ENTRY].copy_from_slice(&checksum.to_le_bytes());
        }
    }
    let checksum = Checksum::of(&bytes[..PAGE - 8]);
    bytes[PAGE - 8..PAGE].copy_from_slice(&checksum.to_le_bytes());
}
