//! The tensors of a model's files by name, and how matrices and vectors are taken from them.

use std::borrow::Cow;
use std::cell::Cell;
use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use millpond_models::names::Transform;
use millpond_simd::quant::{QFormat, dequantize_row};
use safetensors::Dtype;

use super::error::LoadError;
use crate::file::gguf::Gguf;
use crate::file::packed::Packed;
use crate::file::safetensors::SafetensorsFile;
use crate::weights::{ByteSource, Matrix};

/// A tensor of a file.
pub(crate) struct StoredTensor {
    /// Dimensions, the outermost first.
    pub(crate) shape: Vec<usize>,
    /// The format it is computed with; `None` for types that are not.
    pub(crate) format: Option<QFormat>,
    /// Name of its type.
    pub(crate) type_name: Cow<'static, str>,
    pub(crate) range: Range<usize>,
    /// Position of its file in [`TensorStore::files`].
    pub(crate) file: usize,
    /// Whether something asked for it.
    used: Cell<bool>,
}

/// A file of a model.
pub(crate) struct OpenFile {
    pub(crate) path: PathBuf,
    pub(crate) source: Arc<dyn ByteSource>,
}

/// The tensors of a model's files by name.
#[derive(Default)]
pub(crate) struct TensorStore {
    pub(crate) files: Vec<OpenFile>,
    pub(crate) tensors: HashMap<String, StoredTensor>,
}

/// The types of small tensors.
const VECTOR_FORMATS: [QFormat; 3] = [QFormat::F32, QFormat::F16, QFormat::BF16];

impl TensorStore {
    pub(crate) fn add_gguf(&mut self, path: &Path, gguf: &Gguf) -> Result<(), LoadError> {
        let file = self.add_file(path, gguf.source());
        for tensor in gguf.tensors() {
            // Every dimension fits: the bytes they span lie in memory, unless one of them is zero.
            let dim = |&dim: &u64| usize::try_from(dim).unwrap_or(usize::MAX);
            let shape = tensor.dims.iter().rev().map(dim).collect();
            let stored = StoredTensor {
                shape,
                format: tensor.kind.format,
                type_name: Cow::Borrowed(tensor.kind.name),
                range: tensor.range.clone(),
                file,
                used: Cell::new(false),
            };
            self.add(&tensor.name, stored)?;
        }
        Ok(())
    }

    pub(crate) fn add_packed(&mut self, path: &Path, packed: &Packed) -> Result<(), LoadError> {
        let file = self.add_file(path, packed.source());
        for tensor in packed.tensors() {
            let stored = StoredTensor {
                shape: tensor.shape.clone(),
                format: tensor.kind.format,
                type_name: Cow::Borrowed(tensor.kind.name),
                range: tensor.range.clone(),
                file,
                used: Cell::new(false),
            };
            self.add(&tensor.name, stored)?;
        }
        Ok(())
    }

    pub(crate) fn add_safetensors(&mut self, path: &Path, opened: &SafetensorsFile) -> Result<(), LoadError> {
        let file = self.add_file(path, opened.source());
        for tensor in opened.tensors() {
            let format = match tensor.dtype {
                Dtype::F32 => Some(QFormat::F32),
                Dtype::F16 => Some(QFormat::F16),
                Dtype::BF16 => Some(QFormat::BF16),
                _ => None,
            };
            let type_name = match format {
                Some(format) => Cow::Borrowed(format.name()),
                None => Cow::Owned(tensor.dtype.to_string()),
            };
            let (shape, range) = (tensor.shape.clone(), tensor.range.clone());
            self.add(
                &tensor.name,
                StoredTensor { shape, format, type_name, range, file, used: Cell::new(false) },
            )?;
        }
        Ok(())
    }

    fn add_file(&mut self, path: &Path, source: &Arc<dyn ByteSource>) -> usize {
        self.files.push(OpenFile { path: path.to_owned(), source: source.clone() });
        self.files.len() - 1
    }

    fn add(&mut self, name: &str, tensor: StoredTensor) -> Result<(), LoadError> {
        if let Some(other) = self.tensors.get(name) {
            return Err(LoadError::DuplicateTensor {
                name: name.to_owned(),
                first: self.files[other.file].path.clone(),
                second: self.files[tensor.file].path.clone(),
            });
        }
        self.tensors.insert(name.to_owned(), tensor);
        Ok(())
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// The first name, in alphabetical order, that nothing asked for and `may_ignore` does not excuse.
    pub(crate) fn unused(&self, may_ignore: impl Fn(&str) -> bool) -> Option<&str> {
        let unused = self.tensors.iter().filter(|(name, tensor)| !tensor.used.get() && !may_ignore(name));
        unused.map(|(name, _)| name.as_str()).min()
    }

    /// The tensor of a name and a shape. Dimensions of one do not count: `[n]`, `[1, n]` and `[n, 1]` are the same bytes.
    fn find(&self, name: &str, expected: &[usize]) -> Result<&StoredTensor, LoadError> {
        let Some(tensor) = self.tensors.get(name) else {
            return Err(LoadError::MissingTensor { name: name.to_owned(), expected: expected.to_vec() });
        };
        let wide = |shape: &[usize]| shape.iter().copied().filter(|&dim| dim != 1).collect::<Vec<_>>();
        if wide(&tensor.shape) != wide(expected) {
            let (name, found) = (name.to_owned(), tensor.shape.clone());
            return Err(LoadError::Shape { name, found, expected: expected.to_vec() });
        }
        tensor.used.set(true);
        Ok(tensor)
    }

    /// A matrix, left where it is.
    pub(crate) fn matrix(&self, name: &str, rows: usize, cols: usize) -> Result<Matrix, LoadError> {
        self.view(name, &[rows, cols], rows, cols)
    }

    /// `count` matrices stored as one tensor, left where they are.
    pub(crate) fn stack(
        &self,
        name: &str,
        count: usize,
        rows: usize,
        cols: usize,
    ) -> Result<Vec<Matrix>, LoadError> {
        let all = self.view(name, &[count, rows, cols], count.saturating_mul(rows), cols)?;
        (0..count)
            .map(|i| {
                let part = all.slice_rows(i * rows..(i + 1) * rows);
                part.ok_or_else(|| LoadError::MissingTensor {
                    name: name.to_owned(),
                    expected: vec![rows, cols],
                })
            })
            .collect()
    }

    /// A tensor of any shape as rows of its innermost dimension.
    pub(crate) fn whole(&self, name: &str) -> Result<Matrix, LoadError> {
        let shape = self.tensors.get(name).map_or(&[][..], |tensor| &tensor.shape);
        let cols = shape.last().copied().unwrap_or(1);
        let rows = shape.iter().rev().skip(1).fold(1usize, |rows, &dim| rows.saturating_mul(dim));
        self.view(name, shape, rows, cols)
    }

    fn view(&self, name: &str, shape: &[usize], rows: usize, cols: usize) -> Result<Matrix, LoadError> {
        let tensor = self.find(name, shape)?;
        let Some(format) = tensor.format else {
            let known = QFormat::ALL.map(QFormat::name).join(", ");
            let found = tensor.type_name.clone().into_owned();
            return Err(LoadError::Format {
                name: name.to_owned(),
                found,
                expected: format!("one of {known}"),
            });
        };
        let source = self.files[tensor.file].source.clone();
        Matrix::new(format, rows, cols, source, tensor.range.clone())
            .map_err(|source| LoadError::Matrix { name: name.to_owned(), source })
    }

    /// A small tensor, copied to f32 and transformed.
    pub(crate) fn vector(
        &self,
        name: &str,
        shape: &[usize],
        transform: Transform,
    ) -> Result<Vec<f32>, LoadError> {
        let tensor = self.find(name, shape)?;
        let Some(format) = tensor.format.filter(|format| VECTOR_FORMATS.contains(format)) else {
            let known = VECTOR_FORMATS.map(QFormat::name).join(", ");
            let found = tensor.type_name.clone().into_owned();
            return Err(LoadError::Format {
                name: name.to_owned(),
                found,
                expected: format!("one of {known}"),
            });
        };
        let bytes = &self.files[tensor.file].source.bytes()[tensor.range.clone()];
        // As many values as there are bytes for, which `dequantize_row` holds against the shape.
        let mut values = vec![0.0; bytes.len() / format.block_bytes()];
        dequantize_row(format, bytes, &mut values).map_err(|error| LoadError::Format {
            name: name.to_owned(),
            found: error.to_string(),
            expected: format!("{shape:?}"),
        })?;
        for value in &mut values {
            *value = match transform {
                Transform::Keep => *value,
                Transform::AddOne => *value + 1.0,
                Transform::NegExp => -value.exp(),
            };
        }
        match values.iter().position(|value| !value.is_finite()) {
            None => Ok(values),
            Some(index) => Err(LoadError::NotFinite { name: name.to_owned(), index, value: values[index] }),
        }
    }
}
