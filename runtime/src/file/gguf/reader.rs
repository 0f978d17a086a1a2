//! A cursor over the bytes of a header.

use super::error::GgufError;
use super::value::{Array, Value, ValueType};

/// A cursor over bytes that refuses to pass their end.
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader { bytes, at: 0 }
    }

    /// Where the next byte is read.
    pub(super) fn at(&self) -> usize {
        self.at
    }

    fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    pub(super) fn take(&mut self, count: usize, what: &str) -> Result<&'a [u8], GgufError> {
        if count > self.left() {
            return Err(GgufError::Truncated { what: format!("`{what}`"), len: self.bytes.len() });
        }
        let taken = &self.bytes[self.at..self.at + count];
        self.at += count;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], GgufError> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N, what)?);
        Ok(out)
    }

    pub(super) fn u32(&mut self, what: &str) -> Result<u32, GgufError> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    pub(super) fn u64(&mut self, what: &str) -> Result<u64, GgufError> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    /// A length that was read, as a number of bytes that may or may not exist.
    pub(super) fn string(&mut self, what: &str) -> Result<&'a [u8], GgufError> {
        let len = self.u64(what)?;
        self.take(usize::try_from(len).unwrap_or(usize::MAX), what)
    }

    /// A number of things of at least `smallest` bytes each, if so many can follow.
    pub(super) fn count(&self, count: u64, what: &'static str, smallest: usize) -> Result<usize, GgufError> {
        let refused = GgufError::Count { what, count, available: self.left() };
        let Ok(count) = usize::try_from(count) else { return Err(refused) };
        match count.checked_mul(smallest) {
            Some(bytes) if bytes <= self.left() => Ok(count),
            _ => Err(refused),
        }
    }

    pub(super) fn value(&mut self, kind: ValueType, key: &str) -> Result<Value<'a>, GgufError> {
        match kind {
            ValueType::Array => Ok(Value::Array(self.array_value(key)?)),
            _ => self.scalar(kind, key),
        }
    }

    fn array_value(&mut self, key: &str) -> Result<Array<'a>, GgufError> {
        let id = self.u32(key)?;
        let element =
            ValueType::from_id(id).ok_or_else(|| GgufError::ValueType { key: key.to_owned(), id })?;
        let count = self.u64(key)?;
        if element == ValueType::Array {
            return Err(GgufError::NestedArray { key: key.to_owned() });
        }
        let len = self.count(count, "array elements", element.size().unwrap_or(8))?;
        let start = self.at;
        match element.size() {
            Some(size) if element != ValueType::Bool => {
                self.take(len * size, key)?;
            }
            _ => {
                for _ in 0..len {
                    self.scalar(element, key)?;
                }
            }
        }
        Ok(Array { element, len, bytes: &self.bytes[start..self.at] })
    }

    pub(super) fn scalar(&mut self, kind: ValueType, key: &str) -> Result<Value<'a>, GgufError> {
        Ok(match kind {
            ValueType::U8 => Value::U8(u8::from_le_bytes(self.array(key)?)),
            ValueType::I8 => Value::I8(i8::from_le_bytes(self.array(key)?)),
            ValueType::U16 => Value::U16(u16::from_le_bytes(self.array(key)?)),
            ValueType::I16 => Value::I16(i16::from_le_bytes(self.array(key)?)),
            ValueType::U32 => Value::U32(self.u32(key)?),
            ValueType::I32 => Value::I32(i32::from_le_bytes(self.array(key)?)),
            ValueType::F32 => Value::F32(f32::from_le_bytes(self.array(key)?)),
            ValueType::U64 => Value::U64(self.u64(key)?),
            ValueType::I64 => Value::I64(i64::from_le_bytes(self.array(key)?)),
            ValueType::F64 => Value::F64(f64::from_le_bytes(self.array(key)?)),
            ValueType::String => Value::String(self.string(key)?),
            ValueType::Bool => match self.array::<1>(key)? {
                [0] => Value::Bool(false),
                [1] => Value::Bool(true),
                [value] => return Err(GgufError::Bool { key: key.to_owned(), value }),
            },
            ValueType::Array => return Err(GgufError::NestedArray { key: key.to_owned() }),
        })
    }
}
