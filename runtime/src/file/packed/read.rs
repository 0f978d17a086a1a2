//! Opening packed files: every number is checked before it is used.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

use super::{
    Checksum, GGUF_ROWS, KEYS, MAGIC, MAX_SECTIONS, PAGE, Packed, PackedError, PackedTensor, SECTION_ENTRY,
    SECTIONS_AT, Section, TENSOR_ALIGNMENT, TENSORS, TOKENIZER, VERSION, WEIGHTS,
};
use crate::file::ggml_type::type_of_id;
use crate::file::gguf::{Gguf, MAX_DIMS, MAX_NAME};
use crate::weights::ByteSource;

/// Bytes of the smallest description of a tensor: length of the name, one byte of name, type, number of dimensions, one
/// dimension, offset, length.
const MIN_TENSOR: usize = 4 + 1 + 4 + 4 + 8 + 8 + 8;

/// Some bytes of a source as a source of their own.
struct Part {
    source: Arc<dyn ByteSource>,
    range: Range<usize>,
}

impl ByteSource for Part {
    fn bytes(&self) -> &[u8] {
        &self.source.bytes()[self.range.clone()]
    }
}

/// Reads numbers from bytes and refuses to pass their end.
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
    what: &'static str,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], PackedError> {
        let truncated = PackedError::Truncated { what: self.what, len: self.bytes.len() };
        let end = self.at.checked_add(count).ok_or_else(|| truncated.clone())?;
        let taken = self.bytes.get(self.at..end).ok_or(truncated)?;
        self.at = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], PackedError> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    fn u32(&mut self) -> Result<u32, PackedError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, PackedError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn left(&self) -> usize {
        self.bytes.len() - self.at
    }
}

impl Packed {
    /// Reads and checks everything but the weights.
    ///
    /// # Errors
    /// [`PackedError`] for anything that is not a whole, undamaged file of this version.
    pub fn parse(source: Arc<dyn ByteSource>) -> Result<Packed, PackedError> {
        let bytes = source.bytes();
        let sections = read_page(bytes)?;
        let find = |kind, name| {
            let found = sections.iter().find(|section| section.kind == kind);
            found.ok_or(PackedError::MissingSection { name })
        };
        let (keys, tensors) = (find(KEYS, "keys")?, find(TENSORS, "tensors")?);
        let weights = find(WEIGHTS, "weights")?.range.clone();
        let tokenizer = sections.iter().find(|section| section.kind == TOKENIZER);
        for section in [keys, tensors].into_iter().chain(tokenizer) {
            check_sum(bytes, section)?;
        }
        let part = Part { source: source.clone(), range: keys.range.clone() };
        let keys = Gguf::parse(Arc::new(part))?;
        if !keys.tensors().is_empty() {
            return Err(PackedError::KeysWithTensors);
        }
        let tensors = read_tensors(&bytes[tensors.range.clone()], weights)?;
        Ok(Packed { source: source.clone(), sections, keys, tensors })
    }
}

/// Compares a section with its checksum.
pub(super) fn check_sum(bytes: &[u8], section: &Section) -> Result<(), PackedError> {
    let found = Checksum::of(&bytes[section.range.clone()]);
    match found == section.checksum {
        true => Ok(()),
        false => Err(PackedError::Checksum { name: section.name(), found, expected: section.checksum }),
    }
}

/// The first page: what the file is and where its sections are.
fn read_page(bytes: &[u8]) -> Result<Vec<Section>, PackedError> {
    if !Packed::is_packed(bytes) {
        return Err(PackedError::Magic);
    }
    let page = &bytes[..bytes.len().min(PAGE)];
    let mut cursor = Cursor { bytes: page, at: MAGIC.len(), what: "the first page" };
    let version = cursor.u32()?;
    if version != VERSION {
        return Err(PackedError::Version { found: version, expected: VERSION });
    }
    let mut sum = Cursor { bytes: page, at: PAGE - 8, what: "the first page" };
    let expected = sum.u64()?;
    let found = Checksum::of(&page[..PAGE - 8]);
    if found != expected {
        return Err(PackedError::Checksum { name: "first page", found, expected });
    }
    let layout = cursor.u32()?;
    if layout != GGUF_ROWS {
        return Err(PackedError::Layout { found: layout });
    }
    let expected = cursor.u64()?;
    if expected != bytes.len() as u64 {
        return Err(PackedError::Length { found: bytes.len() as u64, expected });
    }
    let count = cursor.u32()?;
    if count as usize > MAX_SECTIONS {
        return Err(PackedError::SectionCount { found: count, most: MAX_SECTIONS });
    }
    let mut sections: Vec<Section> = Vec::with_capacity(count as usize);
    let mut end = PAGE;
    for index in 0..count as usize {
        cursor.at = SECTIONS_AT + index * SECTION_ENTRY;
        let (kind, _) = (cursor.u32()?, cursor.u32()?);
        let (offset, length, checksum) = (cursor.u64()?, cursor.u64()?, cursor.u64()?);
        let refused = |problem| PackedError::Section { index, kind, offset, length, problem };
        if !offset.is_multiple_of(PAGE as u64) {
            return Err(refused("not at a multiple of 4096"));
        }
        let range = range_within(offset, length, bytes.len()).ok_or_else(|| refused("not in the file"))?;
        if range.start < end {
            return Err(refused("shares bytes with what is before it"));
        }
        if sections.iter().any(|section| section.kind == kind) {
            return Err(refused("the second of its kind"));
        }
        end = range.end;
        sections.push(Section { kind, range, checksum });
    }
    Ok(sections)
}

/// `length` bytes from `offset`, if they lie in `available` bytes.
fn range_within(offset: u64, length: u64, available: usize) -> Option<Range<usize>> {
    let end = usize::try_from(offset.checked_add(length)?).ok()?;
    (end <= available).then(|| end - length as usize..end)
}

fn read_tensors(bytes: &[u8], weights: Range<usize>) -> Result<Vec<PackedTensor>, PackedError> {
    let mut cursor = Cursor { bytes, at: 0, what: "the list of tensors" };
    let count = cursor.u64()?;
    if count > (cursor.left() / MIN_TENSOR) as u64 {
        return Err(PackedError::TensorCount { count, available: cursor.left() });
    }
    let mut tensors = Vec::new();
    let mut names = HashSet::new();
    for index in 0..count as usize {
        let tensor = read_tensor(&mut cursor, index, &weights)?;
        if !names.insert(tensor.name.clone()) {
            return Err(PackedError::DuplicateTensor { name: tensor.name });
        }
        tensors.push(tensor);
    }
    if cursor.left() > 0 {
        return Err(PackedError::Trailing(cursor.left()));
    }
    let mut order: Vec<&PackedTensor> = tensors.iter().filter(|tensor| !tensor.range.is_empty()).collect();
    order.sort_by_key(|tensor| tensor.range.start);
    for pair in order.windows(2) {
        if pair[0].range.end > pair[1].range.start {
            let (name, other) = (pair[0].name.clone(), pair[1].name.clone());
            return Err(PackedError::Overlap { name, other });
        }
    }
    Ok(tensors)
}

fn read_tensor(
    cursor: &mut Cursor<'_>,
    index: usize,
    weights: &Range<usize>,
) -> Result<PackedTensor, PackedError> {
    let bad_name = |problem| PackedError::Name { index, problem };
    let length = cursor.u32()? as usize;
    if length == 0 || length > MAX_NAME {
        return Err(bad_name("is not 1 to 64 bytes long"));
    }
    let name = std::str::from_utf8(cursor.take(length)?).map_err(|_| bad_name("is not UTF-8"))?.to_owned();
    let id = cursor.u32()?;
    let Some(kind) = type_of_id(id) else { return Err(PackedError::Type { name, id }) };
    let count = cursor.u32()?;
    if !(1..=MAX_DIMS).contains(&count) {
        return Err(PackedError::Dimensions { name, count });
    }
    let dims = (0..count).map(|_| cursor.u64()).collect::<Result<Vec<_>, _>>()?;
    let (offset, bytes) = (cursor.u64()?, cursor.u64()?);
    let contiguous_first: Vec<u64> = dims.iter().rev().copied().collect();
    let shape: Result<Vec<usize>, _> = dims.iter().map(|&dim| usize::try_from(dim)).collect();
    let (Some(true), Ok(shape)) = (kind.bytes_of(&contiguous_first).map(|size| size == bytes), shape) else {
        return Err(PackedError::Size { name, kind: kind.name, shape: dims, bytes });
    };
    if !offset.is_multiple_of(TENSOR_ALIGNMENT as u64) {
        return Err(PackedError::Misaligned { name, offset });
    }
    match range_within(offset, bytes, weights.len()) {
        None => Err(PackedError::OutOfFile { name, offset, bytes, available: weights.len() }),
        Some(range) => {
            let range = weights.start + range.start..weights.start + range.end;
            Ok(PackedTensor { name, kind, shape, range })
        }
    }
}
