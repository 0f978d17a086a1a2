//! GGUF files, versions 2 and 3, little endian: metadata and tensor table.
//!
//! The header is walked once with every size checked against the bytes that are left; nothing is allocated in
//! proportion to a number the file merely claims. Values stay where they are in the file: strings and arrays are
//! decoded when asked for. Layout after ggml's `docs/gguf.md`.

mod error;
mod reader;
mod value;

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use self::reader::Reader;
use super::ggml_type::{GgmlType, type_of_id};
use crate::weights::ByteSource;

pub use error::GgufError;
pub use value::{Array, Value, ValueType};

/// The key that names the alignment of tensor data.
pub const ALIGNMENT_KEY: &str = "general.alignment";
/// Alignment of tensor data where the file names none.
pub const DEFAULT_ALIGNMENT: usize = 32;
/// Largest alignment a file may ask for.
pub const MAX_ALIGNMENT: usize = 1 << 20;
/// Longest metadata key in bytes (limit of the format).
pub const MAX_KEY: usize = 65_535;
/// Longest tensor name in bytes (limit of the format).
pub const MAX_NAME: usize = 64;
/// Most dimensions of a tensor (limit of the format).
pub const MAX_DIMS: u32 = 4;

/// Bytes of the smallest metadata entry: key length, one byte of key, type, one byte of value.
const MIN_ENTRY: usize = 8 + 1 + 4 + 1;
/// Bytes of the smallest tensor entry: name length, one byte of name, dimension count, one dimension, type, offset.
const MIN_TENSOR: usize = 8 + 1 + 4 + 8 + 4 + 8;

/// One tensor of the table.
#[derive(Clone, Debug, PartialEq)]
pub struct GgufTensor {
    /// Its name.
    pub name: String,
    /// Dimensions as the file lists them: the contiguous one first.
    pub dims: Vec<u64>,
    /// Its type.
    pub kind: GgmlType,
    /// Its bytes in the file.
    pub range: Range<usize>,
}

/// Where a value lies in the file.
#[derive(Clone, Debug)]
struct Stored {
    kind: ValueType,
    range: Range<usize>,
}

/// An open GGUF file.
pub struct Gguf {
    source: Arc<dyn ByteSource>,
    version: u32,
    alignment: usize,
    data_start: usize,
    keys: Vec<String>,
    values: HashMap<String, Stored>,
    tensors: Vec<GgufTensor>,
    by_name: HashMap<String, usize>,
}

impl fmt::Debug for Gguf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Gguf(version {}, {} keys, {} tensors)", self.version, self.keys.len(), self.tensors.len())
    }
}

impl Gguf {
    /// Reads and checks the header of a GGUF file.
    ///
    /// # Errors
    /// [`GgufError`] for anything that is not a well-formed file whose tensors all lie inside it without sharing bytes.
    pub fn parse(source: Arc<dyn ByteSource>) -> Result<Gguf, GgufError> {
        let mut reader = Reader::new(source.bytes());
        let (version, tensor_count, key_count) = read_preamble(&mut reader)?;
        let (keys, values) = read_metadata(&mut reader, key_count)?;
        let alignment = read_alignment(source.bytes(), &values)?;
        let entries = read_tensor_table(&mut reader, tensor_count)?;
        let data_start = match entries.is_empty() {
            true => reader.at(),
            // A header that ends inside its own padding has no data.
            false => reader.at().next_multiple_of(alignment).min(source.bytes().len()),
        };
        let tensors = place_tensors(entries, data_start, alignment, source.bytes().len())?;
        let by_name = index_by_name(&tensors)?;
        Ok(Gguf { source: source.clone(), version, alignment, data_start, keys, values, tensors, by_name })
    }

    /// Version of the format.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// Alignment of tensor data in bytes.
    pub fn alignment(&self) -> usize {
        self.alignment
    }

    /// First byte of the tensor data.
    pub fn data_start(&self) -> usize {
        self.data_start
    }

    /// The bytes of the whole file.
    pub fn source(&self) -> &Arc<dyn ByteSource> {
        &self.source
    }

    /// Metadata keys in the order of the file.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.keys.iter().map(String::as_str)
    }

    /// The tensors in the order of the file.
    pub fn tensors(&self) -> &[GgufTensor] {
        &self.tensors
    }

    /// The tensor with a name.
    pub fn tensor(&self, name: &str) -> Option<&GgufTensor> {
        self.by_name.get(name).map(|&i| &self.tensors[i])
    }

    /// The value of a key.
    pub fn value(&self, key: &str) -> Option<Value<'_>> {
        let stored = self.values.get(key)?;
        let mut reader = Reader::new(&self.source.bytes()[stored.range.clone()]);
        // The value was walked when the file was opened, so reading it again cannot fail.
        reader.value(stored.kind, key).ok()
    }

    /// The text of a key.
    ///
    /// # Errors
    /// When the key holds something else or no UTF-8.
    pub fn text(&self, key: &str) -> Result<Option<&str>, GgufError> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::String(bytes)) => match std::str::from_utf8(bytes) {
                Ok(text) => Ok(Some(text)),
                Err(_) => Err(GgufError::Utf8 { key: key.to_owned(), element: None }),
            },
            Some(other) => Err(mistyped(key, &other, "a string")),
        }
    }

    /// The array of a key whose elements are of type `element`.
    ///
    /// # Errors
    /// When the key holds something else.
    pub fn array(&self, key: &str, element: ValueType) -> Result<Option<Array<'_>>, GgufError> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::Array(array)) if array.element() == element => Ok(Some(array)),
            Some(other) => Err(mistyped(key, &other, "an array of another type")),
        }
    }

    /// The texts of an array of strings.
    ///
    /// # Errors
    /// When the key holds something else or an element is no UTF-8.
    pub fn texts(&self, key: &str) -> Result<Option<Vec<&str>>, GgufError> {
        let Some(array) = self.array(key, ValueType::String)? else { return Ok(None) };
        let mut texts = Vec::with_capacity(array.len());
        for (i, value) in array.iter().enumerate() {
            let Value::String(bytes) = value else { return Err(mistyped(key, &value, "a string")) };
            let text = std::str::from_utf8(bytes)
                .map_err(|_| GgufError::Utf8 { key: key.to_owned(), element: Some(i) })?;
            texts.push(text);
        }
        Ok(Some(texts))
    }

    /// The integer of a key, of any width.
    ///
    /// # Errors
    /// When the key holds something else.
    pub fn integer(&self, key: &str) -> Result<Option<i128>, GgufError> {
        match self.value(key) {
            None => Ok(None),
            Some(value) => match value.as_integer() {
                Some(integer) => Ok(Some(integer)),
                None => Err(mistyped(key, &value, "an integer")),
            },
        }
    }

    /// The boolean of a key.
    ///
    /// # Errors
    /// When the key holds something else.
    pub fn boolean(&self, key: &str) -> Result<Option<bool>, GgufError> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(value)),
            Some(other) => Err(mistyped(key, &other, "a boolean")),
        }
    }
}

/// Magic, version and the two counts.
fn read_preamble(reader: &mut Reader<'_>) -> Result<(u32, u64, u64), GgufError> {
    let magic = reader.take(4, "the magic")?;
    if magic != b"GGUF" {
        return Err(GgufError::Magic);
    }
    let version = reader.u32("the version")?;
    if matches!(version.swap_bytes(), 1..=3) {
        return Err(GgufError::BigEndian);
    }
    if !matches!(version, 2 | 3) {
        return Err(GgufError::Version { version });
    }
    let tensors = reader.u64("the number of tensors")?;
    let keys = reader.u64("the number of metadata keys")?;
    Ok((version, tensors, keys))
}

type Metadata = (Vec<String>, HashMap<String, Stored>);

fn read_metadata(reader: &mut Reader<'_>, count: u64) -> Result<Metadata, GgufError> {
    let count = reader.count(count, "metadata entries", MIN_ENTRY)?;
    let mut keys = Vec::new();
    let mut values = HashMap::new();
    for index in 0..count {
        let key = reader.string("a metadata key")?;
        let problem = |problem| GgufError::Key { index, problem };
        let key = std::str::from_utf8(key).map_err(|_| problem("is not UTF-8"))?;
        if key.is_empty() {
            return Err(problem("is empty"));
        }
        if key.len() > MAX_KEY {
            return Err(problem("is longer than 65,535 bytes"));
        }
        let id = reader.u32(key)?;
        let kind = ValueType::from_id(id).ok_or_else(|| GgufError::ValueType { key: key.to_owned(), id })?;
        let start = reader.at();
        reader.value(kind, key)?;
        let stored = Stored { kind, range: start..reader.at() };
        if values.insert(key.to_owned(), stored).is_some() {
            return Err(GgufError::DuplicateKey { key: key.to_owned() });
        }
        keys.push(key.to_owned());
    }
    Ok((keys, values))
}

fn read_alignment(bytes: &[u8], values: &HashMap<String, Stored>) -> Result<usize, GgufError> {
    let Some(stored) = values.get(ALIGNMENT_KEY) else { return Ok(DEFAULT_ALIGNMENT) };
    let value = Reader::new(&bytes[stored.range.clone()]).value(stored.kind, ALIGNMENT_KEY)?;
    let Value::U32(found) = value else { return Err(mistyped(ALIGNMENT_KEY, &value, "a u32")) };
    match usize::try_from(found) {
        Ok(alignment) if alignment.is_power_of_two() && alignment <= MAX_ALIGNMENT => Ok(alignment),
        _ => Err(GgufError::Alignment { found: found.into() }),
    }
}

/// A tensor entry before its bytes are placed.
struct Entry {
    name: String,
    dims: Vec<u64>,
    kind: GgmlType,
    offset: u64,
}

fn read_tensor_table(reader: &mut Reader<'_>, count: u64) -> Result<Vec<Entry>, GgufError> {
    let count = reader.count(count, "tensor entries", MIN_TENSOR)?;
    let mut entries = Vec::new();
    for index in 0..count {
        let name = reader.string("a tensor name")?;
        let problem = |problem| GgufError::Name { index, problem };
        let name = std::str::from_utf8(name).map_err(|_| problem("is not UTF-8"))?;
        if name.is_empty() {
            return Err(problem("is empty"));
        }
        if name.len() > MAX_NAME {
            return Err(problem("is longer than 64 bytes"));
        }
        let count = reader.u32(name)?;
        if !(1..=MAX_DIMS).contains(&count) {
            return Err(GgufError::Dimensions { name: name.to_owned(), count });
        }
        let dims = (0..count).map(|_| reader.u64(name)).collect::<Result<Vec<_>, _>>()?;
        let id = reader.u32(name)?;
        let kind = type_of_id(id).ok_or_else(|| GgufError::Type { name: name.to_owned(), id })?;
        let offset = reader.u64(name)?;
        entries.push(Entry { name: name.to_owned(), dims, kind, offset });
    }
    Ok(entries)
}

/// Finds each tensor's bytes and checks that they lie in the file, aligned, without sharing any.
fn place_tensors(
    entries: Vec<Entry>,
    data_start: usize,
    alignment: usize,
    file_len: usize,
) -> Result<Vec<GgufTensor>, GgufError> {
    let available = file_len.saturating_sub(data_start);
    let mut tensors = Vec::with_capacity(entries.len());
    for Entry { name, dims, kind, offset } in entries {
        let Some(bytes) = kind.bytes_of(&dims) else {
            return Err(GgufError::Size { name, format: kind.name, dims });
        };
        if !offset.is_multiple_of(alignment as u64) {
            return Err(GgufError::Misaligned { name, offset, alignment });
        }
        let end = offset.checked_add(bytes).and_then(|end| usize::try_from(end).ok());
        let Some(end) = end.filter(|&end| end <= available) else {
            return Err(GgufError::OutOfFile { name, offset, bytes, available });
        };
        let range = data_start + (end - bytes as usize)..data_start + end;
        tensors.push(GgufTensor { name, dims, kind, range });
    }
    let mut order: Vec<&GgufTensor> = tensors.iter().filter(|tensor| !tensor.range.is_empty()).collect();
    order.sort_by_key(|tensor| tensor.range.start);
    for pair in order.windows(2) {
        if pair[0].range.end > pair[1].range.start {
            return Err(GgufError::Overlap { name: pair[0].name.clone(), other: pair[1].name.clone() });
        }
    }
    Ok(tensors)
}

fn index_by_name(tensors: &[GgufTensor]) -> Result<HashMap<String, usize>, GgufError> {
    let mut by_name = HashMap::with_capacity(tensors.len());
    for (i, tensor) in tensors.iter().enumerate() {
        if by_name.insert(tensor.name.clone(), i).is_some() {
            return Err(GgufError::DuplicateTensor { name: tensor.name.clone() });
        }
    }
    Ok(by_name)
}

fn mistyped(key: &str, found: &Value<'_>, expected: &'static str) -> GgufError {
    GgufError::Mistyped { key: key.to_owned(), found: found.describe(), expected }
}
