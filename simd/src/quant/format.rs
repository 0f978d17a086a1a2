//! The list of formats and their sizes.

/// A format of weights. Block formats are laid out as in GGUF files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)] // the variants are the formats' own names
pub enum QFormat {
    F32,
    F16,
    BF16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
    IQ4NL,
    IQ4XS,
    MXFP4,
}

/// Name, GGUF type id, values in a block, bytes of a block.
const TABLE: [(QFormat, &str, u32, usize, usize); 16] = [
    (QFormat::F32, "F32", 0, 1, 4),
    (QFormat::F16, "F16", 1, 1, 2),
    (QFormat::BF16, "BF16", 30, 1, 2),
    (QFormat::Q4_0, "Q4_0", 2, 32, 18),
    (QFormat::Q4_1, "Q4_1", 3, 32, 20),
    (QFormat::Q5_0, "Q5_0", 6, 32, 22),
    (QFormat::Q5_1, "Q5_1", 7, 32, 24),
    (QFormat::Q8_0, "Q8_0", 8, 32, 34),
    (QFormat::Q2K, "Q2_K", 10, 256, 84),
    (QFormat::Q3K, "Q3_K", 11, 256, 110),
    (QFormat::Q4K, "Q4_K", 12, 256, 144),
    (QFormat::Q5K, "Q5_K", 13, 256, 176),
    (QFormat::Q6K, "Q6_K", 14, 256, 210),
    (QFormat::IQ4NL, "IQ4_NL", 20, 32, 18),
    (QFormat::IQ4XS, "IQ4_XS", 23, 256, 136),
    (QFormat::MXFP4, "MXFP4", 39, 32, 17),
];

impl QFormat {
    /// Every format.
    pub const ALL: [QFormat; 16] = {
        let mut all = [QFormat::F32; 16];
        let mut i = 0;
        while i < 16 {
            all[i] = TABLE[i].0;
            i += 1;
        }
        all
    };

    const fn row(self) -> &'static (QFormat, &'static str, u32, usize, usize) {
        &TABLE[self as usize]
    }

    /// The name GGUF tools print.
    pub const fn name(self) -> &'static str {
        self.row().1
    }

    /// The type id in GGUF files.
    pub const fn ggml_type(self) -> u32 {
        self.row().2
    }

    /// The format with a GGUF type id, if it is one of ours.
    pub fn from_ggml_type(id: u32) -> Option<QFormat> {
        TABLE.iter().find(|row| row.2 == id).map(|row| row.0)
    }

    /// Values in a block.
    pub const fn block_len(self) -> usize {
        self.row().3
    }

    /// Bytes of a block.
    pub const fn block_bytes(self) -> usize {
        self.row().4
    }

    /// Bytes of a row of `cols` values; `None` when `cols` is no multiple of the block or the size overflows.
    pub fn row_bytes(self, cols: usize) -> Option<usize> {
        if !cols.is_multiple_of(self.block_len()) {
            return None;
        }
        (cols / self.block_len()).checked_mul(self.block_bytes())
    }

    /// Bits a weight takes, scales included.
    pub fn bits_per_weight(self) -> f64 {
        8.0 * self.block_bytes() as f64 / self.block_len() as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_the_order_of_the_variants() {
        for (i, format) in QFormat::ALL.into_iter().enumerate() {
            assert_eq!(format as usize, i);
            assert_eq!(QFormat::from_ggml_type(format.ggml_type()), Some(format));
        }
    }

    #[test]
    fn row_bytes_checks_blocks_and_overflow() {
        assert_eq!(QFormat::Q4K.row_bytes(512), Some(288));
        assert_eq!(QFormat::Q4K.row_bytes(255), None);
        assert_eq!(QFormat::F32.row_bytes(usize::MAX), None);
    }
}
