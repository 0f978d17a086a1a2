//! Writing GGUF files, version 3.
//!
//! ```
//! use millpond::file::gguf_write::{GgufWriter, OwnedValue};
//! use millpond_simd::quant::QFormat;
//!
//! let mut writer = GgufWriter::new();
//! writer.set("general.architecture", OwnedValue::String("qwen35".into()));
//! writer.add_tensor("output_norm.weight", &[2], QFormat::F32)?;
//! let mut file = Vec::new();
//! let mut data = writer.write_header(&mut file)?;
//! data.write(&mut file, &[0; 8])?;
//! data.finish()?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::io::{self, Write};

use super::ggml_type::GgmlType;
use super::gguf::{self, Value, ValueType};

/// A metadata value to be written.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)] // the variants are the format's own names
pub enum OwnedValue {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    String(String),
    U64(u64),
    I64(i64),
    F64(f64),
    Bools(Vec<bool>),
    I32s(Vec<i32>),
    U32s(Vec<u32>),
    F32s(Vec<f32>),
    Strings(Vec<String>),
    /// Any value exactly as another file holds it: its type and its bytes.
    Raw(ValueType, Vec<u8>),
}

impl OwnedValue {
    /// A copy of a value of another file, byte for byte.
    pub fn copy_of(value: &Value<'_>) -> OwnedValue {
        match value {
            Value::U8(v) => OwnedValue::U8(*v),
            Value::I8(v) => OwnedValue::I8(*v),
            Value::U16(v) => OwnedValue::U16(*v),
            Value::I16(v) => OwnedValue::I16(*v),
            Value::U32(v) => OwnedValue::U32(*v),
            Value::I32(v) => OwnedValue::I32(*v),
            Value::F32(v) => OwnedValue::F32(*v),
            Value::Bool(v) => OwnedValue::Bool(*v),
            Value::U64(v) => OwnedValue::U64(*v),
            Value::I64(v) => OwnedValue::I64(*v),
            Value::F64(v) => OwnedValue::F64(*v),
            Value::String(text) => {
                let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
                bytes.extend_from_slice(text);
                OwnedValue::Raw(ValueType::String, bytes)
            }
            Value::Array(array) => OwnedValue::Raw(ValueType::Array, array.encoded()),
        }
    }

    fn encode(&self, out: &mut Vec<u8>) {
        fn array<T, const N: usize>(
            out: &mut Vec<u8>,
            kind: ValueType,
            values: &[T],
            bytes: impl Fn(&T) -> [u8; N],
        ) {
            put_array_head(out, kind, values.len());
            values.iter().for_each(|value| out.extend_from_slice(&bytes(value)));
        }
        put_u32(out, self.kind() as u32);
        match self {
            OwnedValue::U8(v) => out.extend_from_slice(&v.to_le_bytes()),
            OwnedValue::I8(v) => out.extend_from_slice(&v.to_le_bytes()),
            OwnedValue::U16(v) => out.extend_from_slice(&v.to_le_bytes()),
            OwnedValue::I16(v) => out.extend_from_slice(&v.to_le_bytes()),
            OwnedValue::U32(v) => out.extend_from_slice(&v.to_le_bytes()),
            OwnedValue::I32(v) => out.extend_from_slice(&v.to_le_bytes()),
            OwnedValue::F32(v) => out.extend_from_slice(&v.to_le_bytes()),
            OwnedValue::Bool(v) => out.push((*v).into()),
            OwnedValue::String(v) => put_string(out, v),
            OwnedValue::U64(v) => out.extend_from_slice(&v.to_le_bytes()),
            OwnedValue::I64(v) => out.extend_from_slice(&v.to_le_bytes()),
            OwnedValue::F64(v) => out.extend_from_slice(&v.to_le_bytes()),
            OwnedValue::Bools(v) => array(out, ValueType::Bool, v, |&b| [b.into()]),
            OwnedValue::I32s(v) => array(out, ValueType::I32, v, |v| v.to_le_bytes()),
            OwnedValue::U32s(v) => array(out, ValueType::U32, v, |v| v.to_le_bytes()),
            OwnedValue::F32s(v) => array(out, ValueType::F32, v, |v| v.to_le_bytes()),
            OwnedValue::Strings(v) => {
                put_array_head(out, ValueType::String, v.len());
                v.iter().for_each(|text| put_string(out, text));
            }
            OwnedValue::Raw(_, bytes) => out.extend_from_slice(bytes),
        }
    }

    fn kind(&self) -> ValueType {
        match self {
            OwnedValue::U8(_) => ValueType::U8,
            OwnedValue::I8(_) => ValueType::I8,
            OwnedValue::U16(_) => ValueType::U16,
            OwnedValue::I16(_) => ValueType::I16,
            OwnedValue::U32(_) => ValueType::U32,
            OwnedValue::I32(_) => ValueType::I32,
            OwnedValue::F32(_) => ValueType::F32,
            OwnedValue::Bool(_) => ValueType::Bool,
            OwnedValue::String(_) => ValueType::String,
            OwnedValue::U64(_) => ValueType::U64,
            OwnedValue::I64(_) => ValueType::I64,
            OwnedValue::F64(_) => ValueType::F64,
            OwnedValue::Raw(kind, _) => *kind,
            OwnedValue::Bools(_)
            | OwnedValue::I32s(_)
            | OwnedValue::U32s(_)
            | OwnedValue::F32s(_)
            | OwnedValue::Strings(_) => ValueType::Array,
        }
    }
}

fn put_u32(out: &mut Vec<u8>, value: u32) {
    out.extend_from_slice(&value.to_le_bytes());
}

fn put_u64(out: &mut Vec<u8>, value: u64) {
    out.extend_from_slice(&value.to_le_bytes());
}

fn put_string(out: &mut Vec<u8>, text: &str) {
    put_u64(out, text.len() as u64);
    out.extend_from_slice(text.as_bytes());
}

fn put_array_head(out: &mut Vec<u8>, kind: ValueType, len: usize) {
    put_u32(out, kind as u32);
    put_u64(out, len as u64);
}

/// A tensor that was announced.
#[derive(Clone, Debug)]
struct Announced {
    name: String,
    dims: Vec<u64>,
    kind: GgmlType,
    bytes: u64,
}

/// Collects metadata and the tensor table, then writes them; the data of the tensors follows in the same order.
#[derive(Clone, Debug)]
pub struct GgufWriter {
    alignment: usize,
    metadata: Vec<(String, OwnedValue)>,
    tensors: Vec<Announced>,
}

impl Default for GgufWriter {
    fn default() -> GgufWriter {
        GgufWriter::new()
    }
}

impl GgufWriter {
    /// A file without keys and tensors.
    pub fn new() -> GgufWriter {
        GgufWriter { alignment: gguf::DEFAULT_ALIGNMENT, metadata: Vec::new(), tensors: Vec::new() }
    }

    /// Sets a key; a later value replaces an earlier one.
    pub fn set(&mut self, key: &str, value: OwnedValue) {
        if let (gguf::ALIGNMENT_KEY, OwnedValue::U32(alignment)) = (key, &value) {
            self.alignment = *alignment as usize;
        }
        match self.metadata.iter_mut().find(|entry| entry.0 == key) {
            Some(entry) => entry.1 = value,
            None => self.metadata.push((key.to_owned(), value)),
        }
    }

    /// Removes a key.
    pub fn remove(&mut self, key: &str) {
        self.metadata.retain(|entry| entry.0 != key);
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
        self.tensors.push(Announced { name: name.to_owned(), dims, kind, bytes });
        Ok(())
    }

    /// Writes everything but the tensors' data and says how to write that.
    ///
    /// # Errors
    /// What `out` says; [`io::ErrorKind::InvalidInput`] for an alignment that is no power of two.
    pub fn write_header(&self, out: &mut impl Write) -> io::Result<DataWriter> {
        if !self.alignment.is_power_of_two() {
            return Err(invalid(format!("{} is no alignment", self.alignment)));
        }
        let mut header = b"GGUF".to_vec();
        put_u32(&mut header, 3);
        put_u64(&mut header, self.tensors.len() as u64);
        put_u64(&mut header, self.metadata.len() as u64);
        for (key, value) in &self.metadata {
            put_string(&mut header, key);
            value.encode(&mut header);
        }
        let mut offset = 0u64;
        for tensor in &self.tensors {
            put_string(&mut header, &tensor.name);
            put_u32(&mut header, tensor.dims.len() as u32);
            tensor.dims.iter().for_each(|&dim| put_u64(&mut header, dim));
            put_u32(&mut header, tensor.kind.id);
            put_u64(&mut header, offset);
            offset = (offset + tensor.bytes).next_multiple_of(self.alignment as u64);
        }
        header.resize(header.len().next_multiple_of(self.alignment), 0);
        out.write_all(&header)?;
        let due = self.tensors.iter().map(|tensor| (tensor.name.clone(), tensor.bytes)).collect::<Vec<_>>();
        Ok(DataWriter { alignment: self.alignment, due: due.into_iter(), open: None })
    }

    /// The whole file in memory, given the data of the tensors in order.
    ///
    /// # Errors
    /// As [`GgufWriter::write_header`] and [`DataWriter::write`].
    pub fn to_bytes(&self, data: &[impl AsRef<[u8]>]) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        let mut writer = self.write_header(&mut out)?;
        for bytes in data {
            writer.write(&mut out, bytes.as_ref())?;
        }
        writer.finish()?;
        Ok(out)
    }
}

/// Writes the data of the tensors in the order in which they were announced, each at once or in parts.
#[derive(Debug)]
#[must_use = "a file without its data is no file"]
pub struct DataWriter {
    alignment: usize,
    due: std::vec::IntoIter<(String, u64)>,
    /// The tensor that has got some of its data.
    open: Option<Unfinished>,
}

/// A tensor that has got some of its data.
#[derive(Debug)]
struct Unfinished {
    name: String,
    bytes: u64,
    left: u64,
}

impl DataWriter {
    /// Writes the next tensor's data and its padding.
    ///
    /// # Errors
    /// What `out` says; [`io::ErrorKind::InvalidInput`] when the size is not the announced one or none was announced.
    pub fn write(&mut self, out: &mut impl Write, data: &[u8]) -> io::Result<()> {
        self.write_part(out, data)?;
        match &self.open {
            None => Ok(()),
            Some(tensor) => {
                let (name, bytes) = (&tensor.name, tensor.bytes);
                Err(invalid(format!("tensor `{name}`: {} bytes of data, {bytes} announced", data.len())))
            }
        }
    }

    /// Writes the next part of a tensor's data, and its padding with the last. A tensor without data takes one empty
    /// part.
    ///
    /// # Errors
    /// What `out` says; [`io::ErrorKind::InvalidInput`] when there are more data than announced.
    pub fn write_part(&mut self, out: &mut impl Write, data: &[u8]) -> io::Result<()> {
        let mut tensor = match self.open.take() {
            Some(tensor) => tensor,
            None => {
                let next = self.due.next().ok_or_else(|| invalid("more data than tensors".to_owned()))?;
                Unfinished { name: next.0, bytes: next.1, left: next.1 }
            }
        };
        let Some(left) = tensor.left.checked_sub(data.len() as u64) else {
            let (name, bytes) = (&tensor.name, tensor.bytes);
            return Err(invalid(format!("tensor `{name}`: more data than the {bytes} bytes announced")));
        };
        out.write_all(data)?;
        if left == 0 {
            let padded = tensor.bytes.next_multiple_of(self.alignment as u64);
            return out.write_all(&vec![0; (padded - tensor.bytes) as usize]);
        }
        tensor.left = left;
        self.open = Some(tensor);
        Ok(())
    }

    /// Checks that nothing is missing.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] naming the first tensor without all of its data.
    pub fn finish(mut self) -> io::Result<()> {
        match self.open.map(|tensor| tensor.name).or_else(|| Some(self.due.next()?.0)) {
            None => Ok(()),
            Some(name) => Err(invalid(format!("tensor `{name}`: not all of its data"))),
        }
    }
}

fn invalid(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, message)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use millpond_simd::quant::QFormat;

    use super::super::gguf::Gguf;
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let values = [
            OwnedValue::U8(1),
            OwnedValue::I8(-1),
            OwnedValue::U16(2),
            OwnedValue::I16(-2),
            OwnedValue::U32(3),
            OwnedValue::I32(-3),
            OwnedValue::F32(0.5),
            OwnedValue::Bool(true),
            OwnedValue::String("text".into()),
            OwnedValue::U64(u64::MAX),
            OwnedValue::I64(i64::MIN),
            OwnedValue::F64(0.25),
            OwnedValue::Bools(vec![true, false]),
            OwnedValue::I32s(vec![-4, 4]),
            OwnedValue::U32s(vec![4]),
            OwnedValue::F32s(vec![1.5]),
            OwnedValue::Strings(vec!["a".into(), String::new(), "bc".into()]),
        ];
        let mut writer = GgufWriter::new();
        writer.set("general.alignment", OwnedValue::U32(64));
        for (i, value) in values.iter().enumerate() {
            writer.set(&format!("key.{i}"), value.clone());
        }
        writer.add_tensor("a", &[2, 3], QFormat::F32).unwrap();
        writer.add_tensor("b", &[32], QFormat::Q8_0).unwrap();
        let bytes = writer.to_bytes(&[vec![1; 24], vec![2; 34]]).unwrap();

        let file = Gguf::parse(Arc::new(bytes)).unwrap();
        assert_eq!((file.version(), file.alignment()), (3, 64));
        let keys: Vec<&str> = file.keys().collect();
        assert_eq!(keys.len(), values.len() + 1);
        assert_eq!(file.text("key.8"), Ok(Some("text")));
        assert_eq!(file.value("key.9"), Some(Value::U64(u64::MAX)));
        assert_eq!(file.value("key.10"), Some(Value::I64(i64::MIN)));
        assert_eq!(file.texts("key.16"), Ok(Some(vec!["a", "", "bc"])));
        let signed: Vec<_> = file.array("key.13", ValueType::I32).unwrap().unwrap().iter().collect();
        assert_eq!(signed, [Value::I32(-4), Value::I32(4)]);

        let tensor = file.tensor("a").unwrap();
        assert_eq!(tensor.dims, [3, 2]);
        assert_eq!(file.source().bytes()[tensor.range.clone()], [1; 24]);
        let tensor = file.tensor("b").unwrap();
        assert_eq!(file.source().bytes()[tensor.range.clone()], [2; 34]);

        // A copy of all values is the same file.
        let mut copy = GgufWriter::new();
        for key in file.keys() {
            copy.set(key, OwnedValue::copy_of(&file.value(key).unwrap()));
        }
        copy.add_tensor("a", &[2, 3], QFormat::F32).unwrap();
        copy.add_tensor("b", &[32], QFormat::Q8_0).unwrap();
        assert_eq!(copy.to_bytes(&[vec![1; 24], vec![2; 34]]).unwrap(), file.source().bytes());
    }

    #[test]
    fn data_must_be_what_was_announced() {
        let mut writer = GgufWriter::new();
        assert!(writer.add_tensor("a", &[3], QFormat::Q8_0).is_err());
        writer.add_tensor("a", &[3], QFormat::F32).unwrap();
        assert!(writer.to_bytes(&[[0; 8]]).is_err());
        assert!(writer.to_bytes(&[[0; 12], [0; 12]]).is_err());
        assert!(writer.to_bytes(&[] as &[Vec<u8>]).is_err());
    }

    #[test]
    fn data_may_come_in_parts() {
        let mut writer = GgufWriter::new();
        writer.add_tensor("a", &[3], QFormat::F32).unwrap();
        writer.add_tensor("empty", &[0], QFormat::F32).unwrap();
        writer.add_tensor("b", &[1], QFormat::F32).unwrap();
        let whole = writer.to_bytes(&[vec![1; 12], vec![], vec![2; 4]]).unwrap();
        let mut out = Vec::new();
        let mut data = writer.write_header(&mut out).unwrap();
        for part in [&[1; 5][..], &[1; 7], &[], &[2; 4]] {
            data.write_part(&mut out, part).unwrap();
        }
        data.finish().unwrap();
        assert_eq!(out, whole);

        let mut data = writer.write_header(&mut Vec::new()).unwrap();
        data.write_part(&mut Vec::new(), &[1; 5]).unwrap();
        assert!(data.finish().is_err());
        let mut data = writer.write_header(&mut Vec::new()).unwrap();
        assert!(data.write_part(&mut Vec::new(), &[1; 13]).is_err());
    }
}
