//! Random operands for the product tests.
#![allow(dead_code)] // every test binary uses its own part

use millpond_simd::quant::QFormat;

/// SplitMix64: small, seedable, good enough for test data.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in -1..1.
    pub(crate) fn signed(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    /// Roughly normal.
    pub(crate) fn normal(&mut self) -> f32 {
        (0..6).map(|_| self.signed()).sum::<f32>() / std::f32::consts::SQRT_2
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    pub(crate) fn normals(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.normal()).collect()
    }
}

/// Byte offsets of the f16 numbers of a block.
fn halves(format: QFormat) -> &'static [usize] {
    match format {
        QFormat::Q4_1 | QFormat::Q5_1 | QFormat::Q4K | QFormat::Q5K => &[0, 2],
        QFormat::Q2K => &[80, 82],
        QFormat::Q3K => &[108],
        QFormat::Q6K => &[208],
        QFormat::F32 | QFormat::BF16 | QFormat::MXFP4 => &[],
        _ => &[0],
    }
}

/// Weight rows of random bytes with finite numbers; `wild` adds scales of every size, zeros and extremes.
pub(crate) fn random_weights(
    random: &mut Random,
    format: QFormat,
    rows: usize,
    cols: usize,
    wild: bool,
) -> Vec<u8> {
    let mut bytes = vec![0u8; format.row_bytes(cols).expect("whole blocks") * rows];
    match format {
        QFormat::F32 => {
            for chunk in bytes.chunks_exact_mut(4) {
                chunk.copy_from_slice(&random.normal().to_le_bytes());
            }
            return bytes;
        }
        QFormat::BF16 => {
            for chunk in bytes.chunks_exact_mut(2) {
                chunk.copy_from_slice(&half::bf16::from_f32(random.normal()).to_le_bytes());
            }
            return bytes;
        }
        QFormat::F16 => {
            for chunk in bytes.chunks_exact_mut(2) {
                chunk.copy_from_slice(&half::f16::from_f32(random.normal()).to_le_bytes());
            }
            return bytes;
        }
        _ => {}
    }
    for block in bytes.chunks_exact_mut(format.block_bytes()) {
        match random.below(if wild { 6 } else { 1 }) {
            1 => block.fill(0xff),
            2 => block.fill(0),
            3 => block.fill(0x80),
            _ => block.fill_with(|| random.next() as u8),
        }
        if format == QFormat::MXFP4 {
            block[0] = (120 + random.below(12)) as u8;
        }
        for &offset in halves(format) {
            let scale = half::f16::from_f32(random.normal() * 0.02);
            let bits =
                if wild && random.below(4) == 0 { random.next() as u16 & 0xbbff } else { scale.to_bits() };
            block[offset..offset + 2].copy_from_slice(&bits.to_le_bytes());
        }
    }
    bytes
}

/// Activations of ordinary sizes; `wild` adds zeros, huge and tiny blocks and blocks of one value.
pub(crate) fn random_activations(random: &mut Random, count: usize, wild: bool) -> Vec<f32> {
    let mut x = random.normals(count);
    if wild {
        for block in x.chunks_mut(32) {
            match random.below(8) {
                0 => block.fill(0.0),
                1 => block.iter_mut().for_each(|value| *value *= 1e-38),
                2 => block.iter_mut().for_each(|value| *value *= 1e30),
                3 => block.fill(1.0),
                4 => block.fill(-1.0),
                _ => {}
            }
        }
    }
    x
}
