//! The tensor types a GGUF file may name, those included that are known but not computed with.

use millpond_simd::quant::QFormat;

/// A tensor type of GGUF files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GgmlType {
    /// The id in the file.
    pub id: u32,
    /// The name GGUF tools print.
    pub name: &'static str,
    /// Values in a block.
    pub block_len: usize,
    /// Bytes of a block.
    pub block_bytes: usize,
    /// The format it is computed with; `None` for types that only other programs compute with.
    pub format: Option<QFormat>,
}

/// Types without a [`QFormat`]: id, name, values in a block, bytes of a block (ggml's `GGML_QUANT_SIZES`).
const FOREIGN: [(u32, &str, usize, usize); 19] = [
    (9, "Q8_1", 32, 36),
    (15, "Q8_K", 256, 292),
    (16, "IQ2_XXS", 256, 66),
    (17, "IQ2_XS", 256, 74),
    (18, "IQ3_XXS", 256, 98),
    (19, "IQ1_S", 256, 50),
    (21, "IQ3_S", 256, 110),
    (22, "IQ2_S", 256, 82),
    (24, "I8", 1, 1),
    (25, "I16", 1, 2),
    (26, "I32", 1, 4),
    (27, "I64", 1, 8),
    (28, "F64", 1, 8),
    (29, "IQ1_M", 256, 56),
    (34, "TQ1_0", 256, 54),
    (35, "TQ2_0", 256, 66),
    (40, "NVFP4", 64, 36),
    (41, "Q1_0", 128, 18),
    (42, "Q2_0", 64, 18),
];

/// The type with an id of a GGUF file; `None` for ids no known version of the format defines.
pub fn type_of_id(id: u32) -> Option<GgmlType> {
    if let Some(format) = QFormat::from_ggml_type(id) {
        return Some(GgmlType::from(format));
    }
    let &(id, name, block_len, block_bytes) = FOREIGN.iter().find(|row| row.0 == id)?;
    Some(GgmlType { id, name, block_len, block_bytes, format: None })
}

impl From<QFormat> for GgmlType {
    fn from(format: QFormat) -> GgmlType {
        GgmlType {
            id: format.ggml_type(),
            name: format.name(),
            block_len: format.block_len(),
            block_bytes: format.block_bytes(),
            format: Some(format),
        }
    }
}

impl GgmlType {
    /// Bytes of a tensor with these dimensions, the contiguous one first; `None` when a row is no whole number of
    /// blocks or the size overflows.
    pub fn bytes_of(&self, dims: &[u64]) -> Option<u64> {
        let (&width, rest) = dims.split_first()?;
        if !width.is_multiple_of(self.block_len as u64) {
            return None;
        }
        let row = (width / self.block_len as u64).checked_mul(self.block_bytes as u64)?;
        rest.iter().try_fold(row, |bytes, &dim| bytes.checked_mul(dim))
    }
}

/// Numbers of `general.file_type` and what llama.cpp calls them.
const FILE_TYPES: [(u32, &str); 35] = [
    (0, "F32"),
    (1, "F16"),
    (2, "Q4_0"),
    (3, "Q4_1"),
    (7, "Q8_0"),
    (8, "Q5_0"),
    (9, "Q5_1"),
    (10, "Q2_K"),
    (11, "Q3_K_S"),
    (12, "Q3_K_M"),
    (13, "Q3_K_L"),
    (14, "Q4_K_S"),
    (15, "Q4_K_M"),
    (16, "Q5_K_S"),
    (17, "Q5_K_M"),
    (18, "Q6_K"),
    (19, "IQ2_XXS"),
    (20, "IQ2_XS"),
    (21, "Q2_K_S"),
    (22, "IQ3_XS"),
    (23, "IQ3_XXS"),
    (24, "IQ1_S"),
    (25, "IQ4_NL"),
    (26, "IQ3_S"),
    (27, "IQ3_M"),
    (28, "IQ2_S"),
    (29, "IQ2_M"),
    (30, "IQ4_XS"),
    (31, "IQ1_M"),
    (32, "BF16"),
    (36, "TQ1_0"),
    (37, "TQ2_0"),
    (38, "MXFP4_MOE"),
    (39, "NVFP4"),
    (40, "Q1_0"),
];

/// What llama.cpp calls a mixture of formats by its number in `general.file_type`.
pub fn file_type_name(number: u32) -> Option<&'static str> {
    FILE_TYPES.iter().find(|row| row.0 == number).map(|row| row.1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quantize::QuantizeType;

    #[test]
    fn no_id_is_listed_twice() {
        for (id, ..) in FOREIGN {
            assert_eq!(QFormat::from_ggml_type(id), None);
            assert_eq!(FOREIGN.iter().filter(|row| row.0 == id).count(), 1);
        }
        assert_eq!(type_of_id(4), None);
        assert_eq!(type_of_id(1000), None);
    }

    #[test]
    fn sizes_are_checked() {
        let q4k = GgmlType::from(QFormat::Q4K);
        assert_eq!(q4k.bytes_of(&[512, 3, 2]), Some(288 * 6));
        assert_eq!(q4k.bytes_of(&[100]), None);
        assert_eq!(q4k.bytes_of(&[1 << 62, 1 << 40]), None);
        assert_eq!(q4k.bytes_of(&[]), None);
    }
    #[test]
    fn mixtures_have_the_names_that_quantising_gives_them() {
        for kind in QuantizeType::ALL {
            assert_eq!(file_type_name(kind.file_type()), Some(kind.name()));
        }
        assert_eq!(file_type_name(4), None);
    }
}
