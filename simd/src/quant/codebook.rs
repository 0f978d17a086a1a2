//! Formats whose four-bit integers index a table: IQ4_NL, IQ4_XS, MXFP4.

use super::block::{Block, half_at};

/// The sixteen levels of IQ4_NL and IQ4_XS: denser around zero, as weights are.
pub const IQ4_LEVELS: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// The sixteen levels of MXFP4 (E2M1), doubled to be integers.
pub const FP4_LEVELS: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// IQ4_NL: f16 scale, 16 bytes of nibbles: byte `i` holds values `i` and `i + 16`.
pub(super) fn iq4_nl(bytes: &[u8; 18], block: &mut Block) {
    block.scale = half_at(bytes, 0);
    look_up(&bytes[2..], &IQ4_LEVELS, &mut block.quants);
}

/// IQ4_XS: f16 scale, 16 bits with the upper pairs of eight 6-bit scales, 4 bytes with their low nibbles, then eight
/// times 16 bytes of nibbles as in IQ4_NL. Scales are centred on 32.
pub(super) fn iq4_xs(bytes: &[u8; 136], block: &mut Block) {
    block.scale = half_at(bytes, 0);
    let upper = u16::from_le_bytes([bytes[2], bytes[3]]);
    for sub in 0..8 {
        let low = (bytes[4 + sub / 2] >> (4 * (sub % 2))) & 15;
        let scale = (low | (((upper >> (2 * sub)) & 3) << 4) as u8) as i8 - 32;
        block.sub_scales[2 * sub..2 * sub + 2].fill(scale);
        look_up(&bytes[8 + 16 * sub..], &IQ4_LEVELS, &mut block.quants[32 * sub..]);
    }
}

/// MXFP4: one exponent byte (E8M0), 16 bytes of nibbles: byte `i` holds values `i` and `i + 16`.
pub(super) fn mxfp4(bytes: &[u8; 17], block: &mut Block) {
    block.scale = half_power_of_two(bytes[0]);
    look_up(&bytes[1..], &FP4_LEVELS, &mut block.quants);
}

fn look_up(bytes: &[u8], levels: &[i8; 16], quants: &mut [i8]) {
    for i in 0..16 {
        quants[i] = levels[usize::from(bytes[i] & 15)];
        quants[i + 16] = levels[usize::from(bytes[i] >> 4)];
    }
}

/// `2^(exponent - 128)`: half of the E8M0 number, because the levels are doubled. The two smallest are subnormal.
pub(crate) fn half_power_of_two(exponent: u8) -> f32 {
    match exponent {
        0 | 1 => f32::from_bits(0x0020_0000 << exponent),
        _ => f32::from_bits(u32::from(exponent - 1) << 23),
    }
}
