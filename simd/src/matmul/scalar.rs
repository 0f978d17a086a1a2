//! The oracle: products as the module documentation defines them, in plain code.

use half::{bf16, f16};

use super::activations::ActivationRow;
use super::tile::OutTile;
use super::{ActivationKind, ActivationRowMut, Product};
use crate::LANES;
use crate::quant::{Block, QFormat, unpack_block};

/// A block whose largest magnitude is below this counts as zero: the reciprocal of its scale would overflow.
const SMALLEST_BLOCK: f32 = 127.0 * f32::MIN_POSITIVE;

/// Prepares one row of activations.
#[inline(always)]
pub(super) fn prepare_row(kind: ActivationKind, x: &[f32], place: ActivationRowMut<'_>) {
    match kind {
        ActivationKind::F32 => {
            place.floats[..x.len()].copy_from_slice(x);
            place.floats[x.len()..].fill(0.0);
        }
        ActivationKind::Q8Block32 => {
            for (b, x) in x.chunks_exact(32).enumerate() {
                let quants = &mut place.quants[32 * b..32 * b + 32];
                place.scales[b] = quantize_block(x, quants);
                place.sums[b] = sum(quants);
            }
        }
        ActivationKind::Q8Block256 => {
            for (b, x) in x.chunks_exact(256).enumerate() {
                let quants = &mut place.quants[256 * b..256 * b + 256];
                place.scales[b] = quantize_block(x, quants);
                for sub in 0..16 {
                    place.sums16[16 * b + sub] = sum(&quants[16 * sub..16 * sub + 16]) as i16;
                }
                for sub in 0..8 {
                    let pair = 16 * b + 2 * sub;
                    place.sums32[8 * b + sub] = place.sums16[pair] + place.sums16[pair + 1];
                }
            }
        }
    }
}

/// Writes `x` as integers of -127 to 127 and returns their scale: `max |x| / 127`, or NaN if an `x` is not finite.
#[inline(always)]
fn quantize_block(x: &[f32], quants: &mut [i8]) -> f32 {
    /// Adding this to a number of magnitude below 2^22 leaves the number, rounded to nearest even, in the low bits.
    const ROUND: f32 = 12_582_912.0;
    // Magnitudes of floats are ordered like their bits, and what is not finite is above everything.
    let largest = x.iter().fold(0, |largest, value| (value.to_bits() & 0x7fff_ffff).max(largest));
    let largest = f32::from_bits(largest);
    if !largest.is_finite() || largest < SMALLEST_BLOCK {
        quants.fill(0);
        return if largest.is_finite() { 0.0 } else { f32::NAN };
    }
    let inverse = 127.0 / largest;
    for (quant, value) in quants.iter_mut().zip(x) {
        *quant = (value * inverse + ROUND).to_bits() as i8;
    }
    largest / 127.0
}

#[inline(always)]
fn sum(quants: &[i8]) -> i32 {
    quants.iter().map(|&quant| i32::from(quant)).sum()
}

/// The product, one output at a time.
pub(super) fn matmul(product: &Product<'_>, out: &mut OutTile<'_>) {
    for (j, row) in product.weights.chunks_exact(product.row_bytes).enumerate() {
        match product.format.activation_kind() {
            ActivationKind::F32 => {
                for i in 0..out.rows() {
                    let x = product.row(i);
                    out.row_mut(i)[j] = float_dot(product.format, row, x.floats, product.cols);
                }
            }
            _ => block_row(product, row, j, out),
        }
    }
}

/// Column `j` of the product for weights in blocks. The outputs hold the chains, so that a block is taken apart once.
fn block_row(product: &Product<'_>, row: &[u8], j: usize, out: &mut OutTile<'_>) {
    for i in 0..out.rows() {
        out.row_mut(i)[j] = 0.0;
    }
    let mut block = Block::ZERO;
    for (b, bytes) in row.chunks_exact(product.format.block_bytes()).enumerate() {
        unpack_block(product.format, bytes, &mut block);
        for i in 0..out.rows() {
            let output = &mut out.row_mut(i)[j];
            *output = add_block(product.format, &block, product.row(i), b, *output);
        }
    }
}

/// One step of the chain of an output.
fn add_block(format: QFormat, block: &Block, x: ActivationRow<'_>, b: usize, chain: f32) -> f32 {
    let len = format.block_len();
    let quants = &x.quants[len * b..len * b + len];
    let (mut product, mut offset) = (0i32, 0i32);
    for sub in 0..len / 16 {
        let (w, x) = (&block.quants[16 * sub..16 * sub + 16], &quants[16 * sub..16 * sub + 16]);
        let dot: i32 = w.iter().zip(x).map(|(&w, &x)| i32::from(w) * i32::from(x)).sum();
        product += i32::from(block.sub_scales[sub]) * dot;
        offset += i32::from(block.sub_mins[sub]) * sum(x);
    }
    let chain = (product as f32).mul_add(block.scale * x.scales[b], chain);
    if has_offset(format) { (offset as f32).mul_add(-(block.min * x.scales[b]), chain) } else { chain }
}

/// Whether a format's blocks carry an offset.
pub(super) const fn has_offset(format: QFormat) -> bool {
    matches!(format, QFormat::Q4_1 | QFormat::Q5_1 | QFormat::Q2K | QFormat::Q4K | QFormat::Q5K)
}

/// The canonical float dot product: sixteen chains, then a tree. `x` is padded.
fn float_dot(format: QFormat, row: &[u8], x: &[f32], cols: usize) -> f32 {
    let mut lanes = [0.0f32; LANES];
    for start in (0..cols).step_by(LANES) {
        for (lane, sum) in lanes.iter_mut().enumerate() {
            let k = start + lane;
            let weight = if k < cols { float_weight(format, row, k) } else { 0.0 };
            *sum = weight.mul_add(x[k], *sum);
        }
    }
    for half in [8, 4, 2, 1] {
        for lane in 0..half {
            lanes[lane] += lanes[lane + half];
        }
    }
    lanes[0]
}

fn float_weight(format: QFormat, row: &[u8], i: usize) -> f32 {
    match format {
        QFormat::F16 => f16::from_le_bytes([row[2 * i], row[2 * i + 1]]).to_f32(),
        QFormat::BF16 => bf16::from_le_bytes([row[2 * i], row[2 * i + 1]]).to_f32(),
        _ => f32::from_le_bytes([row[4 * i], row[4 * i + 1], row[4 * i + 2], row[4 * i + 3]]),
    }
}
