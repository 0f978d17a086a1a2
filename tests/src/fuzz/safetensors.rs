//! Any bytes as a safetensors file.

use std::sync::Arc;

use millpond::file::safetensors::SafetensorsFile;

/// Reads the header and walks all it describes.
pub fn safetensors(data: &[u8]) {
    let Ok(file) = SafetensorsFile::parse(Arc::new(data.to_vec())) else { return };
    let mut covered = 0;
    for tensor in file.tensors() {
        let bytes = &data[tensor.range.clone()];
        let bits = tensor.shape.iter().product::<usize>() * tensor.dtype.bitsize();
        assert_eq!(bytes.len() * 8, bits);
        covered += bytes.len();
    }
    let header = u64::from_le_bytes(data[..8].try_into().expect("a file has a length"));
    assert_eq!(covered + 8 + header as usize, data.len(), "tensors tile the data");
}
