//! Blocks of 256 values with integer scales of sub-blocks: Q2_K to Q6_K.

use super::block::{Block, half_at};

/// Q2_K: 16 bytes (scale in the low, offset in the high nibble, per 16 values), 64 bytes of 2-bit integers, f16
/// scale, f16 offset unit. Byte `32 n + l` holds values `128 n + 32 j + l` at bits `2 j`.
pub(super) fn q2_k(bytes: &[u8; 84], block: &mut Block) {
    for sub in 0..16 {
        block.sub_scales[sub] = (bytes[sub] & 15) as i8;
        block.sub_mins[sub] = bytes[sub] >> 4;
    }
    for (i, quant) in block.quants.iter_mut().enumerate() {
        let (half, pair, lane) = (i / 128, i / 32 % 4, i % 32);
        *quant = ((bytes[16 + 32 * half + lane] >> (2 * pair)) & 3) as i8;
    }
    block.scale = half_at(bytes, 80);
    block.min = half_at(bytes, 82);
}

/// Q3_K: 32 bytes of third bits, 64 bytes of 2-bit integers as in Q2_K, 12 bytes of sixteen 6-bit scales, f16 scale.
/// The third bit of value `128 n + 32 j + l` is bit `4 n + j` of byte `l`; a clear bit means minus four.
pub(super) fn q3_k(bytes: &[u8; 110], block: &mut Block) {
    let (third, low, scales) = (&bytes[..32], &bytes[32..96], &bytes[96..108]);
    for sub in 0..16 {
        let nibble = (scales[sub % 8] >> (4 * (sub / 8))) & 15;
        let upper = (scales[8 + sub % 4] >> (2 * (sub / 4))) & 3;
        block.sub_scales[sub] = (nibble | (upper << 4)) as i8 - 32;
    }
    for (i, quant) in block.quants.iter_mut().enumerate() {
        let (half, pair, lane) = (i / 128, i / 32 % 4, i % 32);
        let two_bits = (low[32 * half + lane] >> (2 * pair)) & 3;
        let third_bit = (third[lane] >> (4 * half + pair)) & 1;
        *quant = (two_bits | (third_bit << 2)) as i8 - 4;
    }
    block.scale = half_at(bytes, 108);
}

/// Q4_K: f16 scale, f16 offset unit, 12 bytes of eight 6-bit scales and offsets (`scales_and_mins`), 128 bytes of
/// nibbles: byte `32 g + l` holds value `64 g + l` in its low and `64 g + 32 + l` in its high nibble.
pub(super) fn q4_k(bytes: &[u8; 144], block: &mut Block) {
    block.scale = half_at(bytes, 0);
    block.min = half_at(bytes, 2);
    scales_and_mins(&bytes[4..16], block);
    for (i, quant) in block.quants.iter_mut().enumerate() {
        *quant = nibble(&bytes[16..], i) as i8;
    }
}

/// Q5_K: as Q4_K with 32 bytes of fifth bits before the nibbles: bit `j` of byte `l` belongs to value `32 j + l`.
pub(super) fn q5_k(bytes: &[u8; 176], block: &mut Block) {
    block.scale = half_at(bytes, 0);
    block.min = half_at(bytes, 2);
    scales_and_mins(&bytes[4..16], block);
    for (i, quant) in block.quants.iter_mut().enumerate() {
        let fifth = (bytes[16 + i % 32] >> (i / 32)) & 1;
        *quant = (nibble(&bytes[48..], i) | (fifth << 4)) as i8;
    }
}

/// Q6_K: 128 bytes of low nibbles, 64 bytes of upper bit pairs, 16 signed scales, f16 scale; centred on 32. In each
/// half of 128 values, low-nibble byte `l` (of 64) holds values `l` and `64 + l`; upper byte `l` (of 32) holds those
/// of values `32 j + l` at bits `2 j`.
pub(super) fn q6_k(bytes: &[u8; 210], block: &mut Block) {
    let (low, upper) = (&bytes[..128], &bytes[128..192]);
    for (sub_scale, &byte) in block.sub_scales.iter_mut().zip(&bytes[192..208]) {
        *sub_scale = byte as i8;
    }
    for (i, quant) in block.quants.iter_mut().enumerate() {
        let (half, pair, lane) = (i / 128, i / 32 % 4, i % 32);
        let four = (low[64 * half + i % 64] >> (4 * (pair / 2))) & 15;
        let two = (upper[32 * half + lane] >> (2 * pair)) & 3;
        *quant = (four | (two << 4)) as i8 - 32;
    }
    block.scale = half_at(bytes, 208);
}

/// Nibble of value `i` where each 32 bytes hold 64 values.
fn nibble(bytes: &[u8], i: usize) -> u8 {
    (bytes[32 * (i / 64) + i % 32] >> (4 * (i / 32 % 2))) & 15
}

/// Eight 6-bit scales and offsets in 12 bytes: the first four of each in the low six bits of bytes 0-3 and 4-7, the
/// last four as nibbles of bytes 8-11 with their upper two bits in the top of bytes 0-3 and 4-7.
fn scales_and_mins(bytes: &[u8], block: &mut Block) {
    for sub in 0..8 {
        let (scale, min) = if sub < 4 {
            (bytes[sub] & 63, bytes[sub + 4] & 63)
        } else {
            let (scale_top, min_top) = (bytes[sub - 4] >> 6, bytes[sub] >> 6);
            ((bytes[sub + 4] & 15) | (scale_top << 4), (bytes[sub + 4] >> 4) | (min_top << 4))
        };
        block.sub_scales[2 * sub..2 * sub + 2].fill(scale as i8);
        block.sub_mins[2 * sub..2 * sub + 2].fill(min);
    }
}
