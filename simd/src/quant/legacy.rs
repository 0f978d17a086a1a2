//! Blocks of 32 values with one scale: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0.
//!
//! A block starts with the scale (f16), then the offset (f16; the `_1` formats), then the fifth bits (32 bits, value
//! `i` at bit `i`; the 5-bit formats), then the integers. Four-bit integers: byte `i` holds value `i` in its low and
//! value `i + 16` in its high nibble.

use super::block::{Block, half_at};

/// Q4_0: f16 scale, 16 bytes of nibbles, centred on 8.
pub(super) fn q4_0(bytes: &[u8; 18], block: &mut Block) {
    block.scale = half_at(bytes, 0);
    nibbles(&bytes[2..], 0, -8, &mut block.quants);
}

/// Q4_1: f16 scale, f16 offset, nibbles.
pub(super) fn q4_1(bytes: &[u8; 20], block: &mut Block) {
    block.scale = half_at(bytes, 0);
    added_offset(block, half_at(bytes, 2));
    nibbles(&bytes[4..], 0, 0, &mut block.quants);
}

/// Q5_0: f16 scale, fifth bits, nibbles, centred on 16.
pub(super) fn q5_0(bytes: &[u8; 22], block: &mut Block) {
    block.scale = half_at(bytes, 0);
    nibbles(&bytes[6..], fifth_bits(&bytes[2..6]), -16, &mut block.quants);
}

/// Q5_1: f16 scale, f16 offset, fifth bits, nibbles.
pub(super) fn q5_1(bytes: &[u8; 24], block: &mut Block) {
    block.scale = half_at(bytes, 0);
    added_offset(block, half_at(bytes, 2));
    nibbles(&bytes[8..], fifth_bits(&bytes[4..8]), 0, &mut block.quants);
}

/// Q8_0: f16 scale, 32 signed bytes.
pub(super) fn q8_0(bytes: &[u8; 34], block: &mut Block) {
    block.scale = half_at(bytes, 0);
    for (quant, &byte) in block.quants.iter_mut().zip(&bytes[2..]) {
        *quant = byte as i8;
    }
}

/// The `_1` formats add their offset; a block subtracts its own.
fn added_offset(block: &mut Block, offset: f32) {
    block.min = -offset;
    block.sub_mins[..2].fill(1);
}

fn fifth_bits(bytes: &[u8]) -> u32 {
    u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

fn nibbles(bytes: &[u8], fifth: u32, offset: i8, quants: &mut [i8; 256]) {
    for i in 0..16 {
        let low = (bytes[i] & 15) | (((fifth >> i) & 1) << 4) as u8;
        let high = (bytes[i] >> 4) | (((fifth >> (i + 16)) & 1) << 4) as u8;
        quants[i] = low as i8 + offset;
        quants[i + 16] = high as i8 + offset;
    }
}
