//! Safetensors files and folders of them.
//!
//! The header is JSON; its entries are read with the `safetensors` crate's types, the checks are ours: names once,
//! sizes without overflow, data that tiles the file exactly. Errors name the tensor.

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use safetensors::Dtype;
use safetensors::tensor::TensorInfo;
use serde::de::{self, Deserialize, Deserializer, MapAccess, Visitor};

use crate::weights::ByteSource;

/// Longest header in bytes (limit of the format).
pub const MAX_HEADER: u64 = 100_000_000;
/// Most dimensions of a tensor.
pub const MAX_DIMS: usize = 8;
/// Longest index file in bytes.
pub const MAX_INDEX: u64 = 100_000_000;
/// Name of the index of a checkpoint in several files.
pub const INDEX_NAME: &str = "model.safetensors.index.json";
/// Name of a checkpoint in one file.
pub const SINGLE_NAME: &str = "model.safetensors";

/// Why bytes are no safetensors file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // the messages say what the fields are
#[non_exhaustive]
pub enum SafetensorsError {
    #[error("the file has {len} bytes; at least the 8 of the header's length expected")]
    Truncated { len: usize },
    #[error(
        "a header of {claimed} bytes cannot be: the file has {available} bytes for it, the limit is {MAX_HEADER}"
    )]
    HeaderLength { claimed: u64, available: usize },
    #[error("the header is not UTF-8")]
    Utf8,
    #[error("the header is not what safetensors files begin with: {message}")]
    Json { message: String },
    #[error("tensor `{name}` has {count} dimensions; at most {MAX_DIMS} expected")]
    Dimensions { name: String, count: usize },
    #[error("tensor `{name}` of {dtype} has impossible dimensions {shape:?}")]
    Size { name: String, dtype: String, shape: Vec<usize> },
    #[error("tensor `{name}` spans bytes {start}..{end}; {expected} bytes expected from its shape and type")]
    Span { name: String, start: usize, end: usize, expected: usize },
    #[error(
        "tensor `{name}` begins at byte {start} of the data; {expected}, the end of the one before, expected"
    )]
    Gap { name: String, start: usize, expected: usize },
    #[error("tensors cover {covered} bytes of data; the file has {available}")]
    Length { covered: usize, available: usize },
}

/// One tensor of the file.
#[derive(Clone, Debug, PartialEq)]
pub struct SafeTensor {
    /// Its name.
    pub name: String,
    /// Type of its values.
    pub dtype: Dtype,
    /// Dimensions, the outermost first.
    pub shape: Vec<usize>,
    /// Its bytes in the file.
    pub range: Range<usize>,
}

/// An open safetensors file.
pub struct SafetensorsFile {
    source: Arc<dyn ByteSource>,
    tensors: Vec<SafeTensor>,
}

impl fmt::Debug for SafetensorsFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SafetensorsFile({} tensors)", self.tensors.len())
    }
}

impl SafetensorsFile {
    /// Reads and checks the header of a safetensors file.
    ///
    /// # Errors
    /// [`SafetensorsError`] for anything but a well-formed file.
    pub fn parse(source: Arc<dyn ByteSource>) -> Result<SafetensorsFile, SafetensorsError> {
        let bytes = source.bytes();
        let (length, rest) =
            bytes.split_first_chunk::<8>().ok_or(SafetensorsError::Truncated { len: bytes.len() })?;
        let claimed = u64::from_le_bytes(*length);
        let header = usize::try_from(claimed)
            .ok()
            .filter(|_| claimed <= MAX_HEADER)
            .and_then(|length| rest.get(..length))
            .ok_or(SafetensorsError::HeaderLength { claimed, available: rest.len() })?;
        let text = std::str::from_utf8(header).map_err(|_| SafetensorsError::Utf8)?;
        let entries: Entries = serde_json::from_str(text)
            .map_err(|error| SafetensorsError::Json { message: error.to_string() })?;
        let data_start = 8 + header.len();
        let tensors = place_tensors(entries.0, data_start, bytes.len())?;
        Ok(SafetensorsFile { source: source.clone(), tensors })
    }

    /// The bytes of the whole file.
    pub fn source(&self) -> &Arc<dyn ByteSource> {
        &self.source
    }

    /// The tensors in the order of their data.
    pub fn tensors(&self) -> &[SafeTensor] {
        &self.tensors
    }
}

fn place_tensors(
    mut entries: Vec<(String, TensorInfo)>,
    data_start: usize,
    file_len: usize,
) -> Result<Vec<SafeTensor>, SafetensorsError> {
    entries.sort_by_key(|(_, info)| info.data_offsets);
    let available = file_len - data_start;
    let mut covered = 0;
    let mut tensors = Vec::with_capacity(entries.len());
    for (name, info) in entries {
        let (start, end) = info.data_offsets;
        if info.shape.len() > MAX_DIMS {
            return Err(SafetensorsError::Dimensions { name, count: info.shape.len() });
        }
        let Some(expected) = byte_size(&info) else {
            return Err(SafetensorsError::Size { name, dtype: info.dtype.to_string(), shape: info.shape });
        };
        if end.checked_sub(start) != Some(expected) {
            return Err(SafetensorsError::Span { name, start, end, expected });
        }
        if start != covered {
            return Err(SafetensorsError::Gap { name, start, expected: covered });
        }
        if end > available {
            return Err(SafetensorsError::Length { covered: end, available });
        }
        covered = end;
        let range = data_start + start..data_start + end;
        tensors.push(SafeTensor { name, dtype: info.dtype, shape: info.shape, range });
    }
    match covered == available {
        true => Ok(tensors),
        false => Err(SafetensorsError::Length { covered, available }),
    }
}

fn byte_size(info: &TensorInfo) -> Option<usize> {
    let values = info.shape.iter().try_fold(1usize, |product, &dim| product.checked_mul(dim))?;
    let bits = values.checked_mul(info.dtype.bitsize())?;
    bits.is_multiple_of(8).then_some(bits / 8)
}

/// The entries of a header, each name once.
struct Entries(Vec<(String, TensorInfo)>);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Entries, D::Error> {
        deserializer.deserialize_map(EntriesVisitor)
    }
}

struct EntriesVisitor;

impl<'de> Visitor<'de> for EntriesVisitor {
    type Value = Entries;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with one entry per tensor")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Entries, M::Error> {
        let mut seen = std::collections::HashSet::new();
        let mut entries = Vec::new();
        while let Some(name) = map.next_key::<String>()? {
            if !seen.insert(name.clone()) {
                return Err(de::Error::custom(format!("tensor `{name}` occurs twice")));
            }
            if name == "__metadata__" {
                map.next_value::<HashMap<String, String>>()?;
            } else {
                let info = map
                    .next_value()
                    .map_err(|error| de::Error::custom(format!("tensor `{name}`: {error}")))?;
                entries.push((name, info));
            }
        }
        Ok(Entries(entries))
    }
}

/// Why a folder is no checkpoint.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the messages say what the fields are
#[non_exhaustive]
pub enum IndexError {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error("{}: {len} bytes; at most {MAX_INDEX} expected", path.display())]
    TooLong { path: PathBuf, len: u64 },
    #[error("{}: not an index: {message}", path.display())]
    Json { path: PathBuf, message: String },
    #[error("{}: tensor `{tensor}` is said to be in {file:?}; the name of a file in the same folder expected", path.display())]
    Escapes { path: PathBuf, tensor: String, file: String },
    #[error("{}: tensor `{tensor}` is said to be in {file:?}, which does not hold it", path.display())]
    Absent { path: PathBuf, tensor: String, file: String },
    #[error("{}: no {SINGLE_NAME} and no {INDEX_NAME}", folder.display())]
    Nothing { folder: PathBuf },
}

/// The files of a checkpoint folder.
#[derive(Debug)]
pub struct Checkpoint {
    /// The files to open, in order of name.
    pub files: Vec<PathBuf>,
    /// What the index says: tensor to position in `files`; empty for a checkpoint in one file.
    pub index: HashMap<String, usize>,
    /// Where the index lies.
    pub index_path: PathBuf,
}

/// Finds the files of a checkpoint: what the index names, or the single file.
///
/// A name in the index must be a bare file name, so nothing outside the folder is opened on its word; a link the
/// folder's owner put there is followed, as caches of downloads consist of them.
///
/// # Errors
/// [`IndexError`].
pub fn find_checkpoint(folder: &Path) -> Result<Checkpoint, IndexError> {
    let index_path = folder.join(INDEX_NAME);
    let single = folder.join(SINGLE_NAME);
    if !index_path.exists() {
        return match single.exists() {
            true => Ok(Checkpoint { files: vec![single], index: HashMap::new(), index_path }),
            false => Err(IndexError::Nothing { folder: folder.to_owned() }),
        };
    }
    let text = read_limited(&index_path)?;
    let refused = |message: String| IndexError::Json { path: index_path.clone(), message };
    let index: Index = serde_json::from_str(&text).map_err(|error| refused(error.to_string()))?;
    if index.weight_map.is_empty() {
        return Err(refused("`weight_map` is empty".to_owned()));
    }
    let mut names: Vec<&str> = index.weight_map.values().map(String::as_str).collect();
    names.sort_unstable();
    names.dedup();
    if let Some(bad) = names.iter().find(|name| !is_bare_file_name(name)) {
        let tensor = index.weight_map.iter().find(|entry| entry.1 == bad).map(|entry| entry.0.clone());
        let tensor = tensor.unwrap_or_default();
        return Err(IndexError::Escapes { path: index_path, tensor, file: (*bad).to_owned() });
    }
    let positions: HashMap<&str, usize> = names.iter().enumerate().map(|(i, &name)| (name, i)).collect();
    let by_tensor =
        index.weight_map.iter().map(|(tensor, file)| (tensor.clone(), positions[file.as_str()])).collect();
    let files = names.iter().map(|name| folder.join(name)).collect();
    Ok(Checkpoint { files, index: by_tensor, index_path })
}

#[derive(serde::Deserialize)]
struct Index {
    weight_map: HashMap<String, String>,
}

/// Whether a name is one plain component: no separator of any system, no `..`, no drive, no NUL.
fn is_bare_file_name(name: &str) -> bool {
    let mut components = Path::new(name).components();
    let plain = matches!(components.next(), Some(Component::Normal(_))) && components.next().is_none();
    plain && !name.contains(['/', '\\', ':', '\0'])
}

fn read_limited(path: &Path) -> Result<String, IndexError> {
    let failed = |source| IndexError::Io { path: path.to_owned(), source };
    let metadata = std::fs::metadata(path).map_err(failed)?;
    if !metadata.is_file() {
        return Err(failed(std::io::Error::new(std::io::ErrorKind::InvalidInput, "not a regular file")));
    }
    if metadata.len() > MAX_INDEX {
        return Err(IndexError::TooLong { path: path.to_owned(), len: metadata.len() });
    }
    std::fs::read_to_string(path).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(header: &str, data: &[u8]) -> Result<SafetensorsFile, SafetensorsError> {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(data);
        SafetensorsFile::parse(Arc::new(bytes))
    }

    #[test]
    fn tensors_are_found_in_order_of_their_data() {
        let header = r#"{"b":{"dtype":"BF16","shape":[2],"data_offsets":[4,8]},
            "a":{"dtype":"F32","shape":[1,1],"data_offsets":[0,4]},"__metadata__":{"format":"pt"}}"#;
        let file = file(header, &[1, 1, 1, 1, 2, 2, 2, 2]).unwrap();
        let names: Vec<&str> = file.tensors().iter().map(|tensor| tensor.name.as_str()).collect();
        assert_eq!(names, ["a", "b"]);
        assert_eq!(file.source().bytes()[file.tensors()[1].range.clone()], [2; 4]);
    }

    #[test]
    fn each_way_to_be_wrong_has_its_error() {
        use SafetensorsError as E;
        let one = |offsets: &str, shape: &str, dtype: &str| {
            format!(r#"{{"a":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}}}"#)
        };
        assert!(file(&one("[0,4]", "[1]", "F32"), &[0; 4]).is_ok());
        assert!(matches!(file(&one("[0,4]", "[1]", "F32"), &[0; 5]), Err(E::Length { .. })));
        assert!(matches!(file(&one("[0,4]", "[1]", "F32"), &[0; 3]), Err(E::Length { .. })));
        assert!(matches!(file(&one("[1,5]", "[1]", "F32"), &[0; 5]), Err(E::Gap { .. })));
        assert!(matches!(file(&one("[0,4]", "[2]", "F32"), &[0; 4]), Err(E::Span { .. })));
        assert!(matches!(file(&one("[4,0]", "[1]", "F32"), &[0; 4]), Err(E::Span { .. })));
        assert!(matches!(
            file(&one("[0,4]", "[4611686018427387904,4]", "F32"), &[0; 4]),
            Err(E::Size { .. })
        ));
        assert!(matches!(
            file(&one("[0,4]", "[1,1,1,1,1,1,1,1,1]", "F32"), &[0; 4]),
            Err(E::Dimensions { .. })
        ));
        assert!(matches!(file(&one("[0,4]", "[1]", "F31"), &[0; 4]), Err(E::Json { .. })));
        assert!(matches!(file(&one("[0,4]", "[-1]", "F32"), &[0; 4]), Err(E::Json { .. })));
        assert!(matches!(file("{", &[]), Err(E::Json { .. })));
        assert!(matches!(SafetensorsFile::parse(Arc::new(vec![0; 7])), Err(E::Truncated { len: 7 })));
        assert!(matches!(SafetensorsFile::parse(Arc::new(vec![255; 64])), Err(E::HeaderLength { .. })));
    }

    #[test]
    fn a_name_may_occur_once() {
        let entry = r#""a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}"#;
        let error = file(&format!("{{{entry},{entry}}}"), &[]).unwrap_err();
        assert!(error.to_string().contains("`a` occurs twice"), "{error}");
    }

    #[test]
    fn spans_near_the_largest_integer_do_not_overflow() {
        // Eight tensors that chain up to the largest offset there is.
        let step = usize::MAX / 8;
        let entries: Vec<String> = (0..8)
            .map(|i| {
                format!(
                    r#""{i}":{{"dtype":"U8","shape":[{step}],"data_offsets":[{},{}]}}"#,
                    i * step,
                    (i + 1) * step
                )
            })
            .collect();
        assert!(matches!(
            file(&format!("{{{}}}", entries.join(",")), &[]),
            Err(SafetensorsError::Length { .. })
        ));
    }

    #[test]
    fn only_bare_names_are_file_names() {
        for good in ["model-00001-of-00002.safetensors", "a"] {
            assert!(is_bare_file_name(good), "{good}");
        }
        for bad in ["", ".", "..", "../a", "/a", "a/b", "a\\b", "C:a", "a\0", "./a", "a/"] {
            assert!(!is_bare_file_name(bad), "{bad}");
        }
    }
}
