//! Writing packed files.

use std::io::{self, Write};

use super::{
    Checksum, GGUF_ROWS, KEYS, MAGIC, PAGE, SECTION_ENTRY, SECTIONS_AT, TENSOR_ALIGNMENT, TENSORS, TOKENIZER,
    VERSION, WEIGHTS,
};
use crate::file::ggml_type::GgmlType;
use crate::file::gguf_write::GgufWriter;

/// A tensor that was announced.
#[derive(Clone, Debug)]
struct Announced {
    name: String,
    shape: Vec<usize>,
    kind: GgmlType,
    offset: u64,
    bytes: u64,
}

/// Collects what comes before the weights of a packed file, then writes it; the weights follow.
#[derive(Clone, Debug)]
pub struct PackedWriter {
    keys: GgufWriter,
    tokenizer: Option<Vec<u8>>,
    tensors: Vec<Announced>,
    weights: u64,
}

/// A section as it is listed.
#[derive(Clone, Copy, Debug)]
struct Listed {
    kind: u32,
    offset: u64,
    length: u64,
    checksum: u64,
}

impl PackedWriter {
    /// A file with keys, which announce no tensors, and the tables of a tokenizer.
    pub fn new(keys: GgufWriter, tokenizer: Option<Vec<u8>>) -> PackedWriter {
        PackedWriter { keys, tokenizer, tensors: Vec::new(), weights: 0 }
    }

    /// Announces a tensor. `shape` is row-major, the outermost dimension first.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] when the shape does not fit the format.
    pub fn add_tensor(&mut self, name: &str, shape: &[usize], kind: impl Into<GgmlType>) -> io::Result<()> {
        let kind = kind.into();
        let dims: Vec<u64> = shape.iter().rev().map(|&dim| dim as u64).collect();
        let bytes = kind
            .bytes_of(&dims)
            .ok_or_else(|| invalid(format!("tensor `{name}`: {shape:?} is no shape of {}", kind.name)))?;
        let offset = self.weights.next_multiple_of(TENSOR_ALIGNMENT as u64);
        self.weights = offset
            .checked_add(bytes)
            .ok_or_else(|| invalid(format!("tensor `{name}`: larger than a file can be")))?;
        self.tensors.push(Announced { name: name.to_owned(), shape: shape.to_vec(), kind, offset, bytes });
        Ok(())
    }

    /// Writes everything before the weights, with an empty first page, and says how to write the weights.
    ///
    /// # Errors
    /// What `out` says.
    pub fn start(&self, out: &mut impl Write) -> io::Result<WeightsWriter> {
        let mut keys = Vec::new();
        self.keys.write_header(&mut keys)?.finish()?;
        let list = self.tensor_list();
        let mut small = vec![(KEYS, &keys), (TENSORS, &list)];
        small.extend(self.tokenizer.iter().map(|tables| (TOKENIZER, tables)));
        out.write_all(&[0; PAGE])?;
        let mut sections = Vec::new();
        let mut offset = PAGE as u64;
        for (kind, bytes) in small {
            let length = bytes.len() as u64;
            sections.push(Listed { kind, offset, length, checksum: Checksum::of(bytes) });
            out.write_all(bytes)?;
            let end = (offset + length).next_multiple_of(PAGE as u64);
            out.write_all(&vec![0; (end - offset - length) as usize])?;
            offset = end;
        }
        let weights = Listed { kind: WEIGHTS, offset, length: self.weights, checksum: 0 };
        let due = self.tensors.iter().map(|tensor| (tensor.offset, tensor.bytes)).collect();
        Ok(WeightsWriter { sections, weights, due, next: 0, at: 0, checksum: Checksum::new() })
    }

    fn tensor_list(&self) -> Vec<u8> {
        let mut list = (self.tensors.len() as u64).to_le_bytes().to_vec();
        for tensor in &self.tensors {
            list.extend_from_slice(&(tensor.name.len() as u32).to_le_bytes());
            list.extend_from_slice(tensor.name.as_bytes());
            list.extend_from_slice(&tensor.kind.id.to_le_bytes());
            list.extend_from_slice(&(tensor.shape.len() as u32).to_le_bytes());
            tensor.shape.iter().for_each(|&dim| list.extend_from_slice(&(dim as u64).to_le_bytes()));
            list.extend_from_slice(&tensor.offset.to_le_bytes());
            list.extend_from_slice(&tensor.bytes.to_le_bytes());
        }
        list
    }

    /// The whole file in memory, given the data of the tensors in order.
    ///
    /// # Errors
    /// As [`WeightsWriter::write_part`] and [`WeightsWriter::finish`].
    pub fn to_bytes(&self, data: &[impl AsRef<[u8]>]) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        let mut writer = self.start(&mut out)?;
        for (index, bytes) in data.iter().enumerate() {
            writer.write_part(&mut out, index, bytes.as_ref())?;
        }
        let page = writer.finish()?;
        out[..PAGE].copy_from_slice(&page);
        Ok(out)
    }
}

/// Writes the weights, in the order in which the tensors were announced, and then knows the first page.
#[derive(Debug)]
#[must_use = "a file without weights is no file"]
pub struct WeightsWriter {
    sections: Vec<Listed>,
    weights: Listed,
    /// Offset and length of each tensor.
    due: Vec<(u64, u64)>,
    /// The tensor whose part was written last.
    next: usize,
    /// Bytes of weights written.
    at: u64,
    checksum: Checksum,
}

impl WeightsWriter {
    /// Writes the next part of tensor `index`.
    ///
    /// # Errors
    /// What `out` says; [`io::ErrorKind::InvalidInput`] when tensors come out of order or with more or less data than
    /// announced.
    pub fn write_part(&mut self, out: &mut impl Write, index: usize, data: &[u8]) -> io::Result<()> {
        let wrong = || invalid(format!("tensor {index}: not the data that were announced"));
        let &(offset, bytes) = self.due.get(index).ok_or_else(wrong)?;
        if index != self.next {
            self.end_tensor(index)?;
        }
        if self.at < offset {
            let padding = vec![0; (offset - self.at) as usize];
            self.put(out, &padding)?;
        }
        if self.at + data.len() as u64 > offset + bytes {
            return Err(wrong());
        }
        self.put(out, data)
    }

    /// Moves on to tensor `index`: those before it must be whole.
    fn end_tensor(&mut self, index: usize) -> io::Result<()> {
        let whole = self.due[self.next..index.max(self.next)]
            .iter()
            .all(|&(offset, bytes)| bytes == 0 || self.at >= offset + bytes);
        if index < self.next || !whole {
            return Err(invalid(format!("tensor {index}: the one before it lacks data")));
        }
        self.next = index;
        Ok(())
    }

    fn put(&mut self, out: &mut impl Write, data: &[u8]) -> io::Result<()> {
        out.write_all(data)?;
        self.checksum.add(data);
        self.at += data.len() as u64;
        Ok(())
    }

    /// The first page, to be written at the beginning of the file.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] when data are missing.
    pub fn finish(mut self) -> io::Result<[u8; PAGE]> {
        if self.at < self.weights.length {
            return Err(invalid(format!("{} bytes of weights, not {}", self.at, self.weights.length)));
        }
        self.weights.checksum = self.checksum.finish();
        let mut page = [0; PAGE];
        let mut put = |at: usize, bytes: &[u8]| page[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, MAGIC);
        put(8, &VERSION.to_le_bytes());
        put(12, &GGUF_ROWS.to_le_bytes());
        put(16, &(self.weights.offset + self.weights.length).to_le_bytes());
        put(24, &(self.sections.len() as u32 + 1).to_le_bytes());
        for (i, section) in self.sections.iter().chain([&self.weights]).enumerate() {
            let at = SECTIONS_AT + i * SECTION_ENTRY;
            put(at, &section.kind.to_le_bytes());
            put(at + 8, &section.offset.to_le_bytes());
            put(at + 16, &section.length.to_le_bytes());
            put(at + 24, &section.checksum.to_le_bytes());
        }
        let checksum = Checksum::of(&page[..PAGE - 8]);
        page[PAGE - 8..].copy_from_slice(&checksum.to_le_bytes());
        Ok(page)
    }
}

fn invalid(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, message)
}
