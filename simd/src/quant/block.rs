//! The integers inside a block: the one decomposition on which dequantisation and every product are built.

use half::f16;

/// A block of any block format, taken apart. Value `i` is
/// `(scale * sub_scales[i / 16]) * quants[i] - min * sub_mins[i / 16]`.
///
/// Formats of 32 values fill the first 32 entries of `quants` and two of each sub-block array. Sub-blocks have 16
/// values; formats whose sub-blocks have 32 repeat each number.
#[derive(Clone, Debug, PartialEq)]
pub struct Block {
    /// The weights' integers.
    pub quants: [i8; 256],
    /// Integer factor of each 16 values; all one in formats without sub-blocks.
    pub sub_scales: [i8; 16],
    /// Integer factor of the subtracted offset of each 16 values.
    pub sub_mins: [u8; 16],
    /// The block's scale.
    pub scale: f32,
    /// The block's offset unit; zero in formats without offsets.
    pub min: f32,
}

impl Block {
    /// A block of zeros, to be filled by the decoders.
    pub const ZERO: Block =
        Block { quants: [0; 256], sub_scales: [1; 16], sub_mins: [0; 16], scale: 0.0, min: 0.0 };

    /// Writes the block's values, as many as `out` holds (at most 256).
    pub fn values(&self, out: &mut [f32]) {
        for (sub, values) in out.chunks_mut(16).enumerate() {
            let scale = self.scale * f32::from(self.sub_scales[sub]);
            let min = self.min * f32::from(self.sub_mins[sub]);
            for (value, &quant) in values.iter_mut().zip(&self.quants[16 * sub..]) {
                *value = scale * f32::from(quant) - min;
            }
        }
    }
}

/// The little-endian half float at `offset`.
pub(super) fn half_at(bytes: &[u8], offset: usize) -> f32 {
    f16::from_le_bytes([bytes[offset], bytes[offset + 1]]).to_f32()
}
