//! From floats to blocks. Scales are searched: among some candidate grids the one with the least weighted squared
//! error wins, its scale (and offset) set by least squares. Integers are rounded with the scales as they are stored.

use half::{bf16, f16};

use super::{QFormat, RowSizeError, check_row};

/// Why a row cannot be quantised.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QuantizeError {
    /// The bytes do not fit the values.
    #[error(transparent)]
    Size(#[from] RowSizeError),
    /// There is no quantiser for this format.
    #[error("quantising to {} is not supported", .0.name())]
    Unsupported(QFormat),
    /// A value is not finite or too large for the format's half-precision numbers.
    #[error("value {index} is not finite or too large for {}", format.name())]
    OutOfRange {
        /// Format asked for.
        format: QFormat,
        /// The first such value, or the start of its block.
        index: usize,
    },
}

/// Whether [`quantize_row`] can write a format.
pub fn can_quantize(format: QFormat) -> bool {
    matches!(
        format,
        QFormat::F32
            | QFormat::F16
            | QFormat::BF16
            | QFormat::Q8_0
            | QFormat::Q4_0
            | QFormat::Q4K
            | QFormat::Q5K
            | QFormat::Q6K
    )
}

/// Quantises a row to F32, F16, BF16, Q8_0, Q4_0, Q4_K, Q5_K or Q6_K.
///
/// # Errors
/// If `out` is not the size of such a row, the format is another, or a value cannot be represented.
pub fn quantize_row(format: QFormat, values: &[f32], out: &mut [u8]) -> Result<(), QuantizeError> {
    check_row(format, values.len(), out.len())?;
    if !can_quantize(format) {
        return Err(QuantizeError::Unsupported(format));
    }
    if let Some(index) = values.iter().position(|value| !value.is_finite()) {
        return Err(QuantizeError::OutOfRange { format, index });
    }
    let blocks = values.chunks_exact(format.block_len()).zip(out.chunks_exact_mut(format.block_bytes()));
    for (b, (values, out)) in blocks.enumerate() {
        let written = match format {
            QFormat::F32 => {
                out.copy_from_slice(&values[0].to_le_bytes());
                Some(())
            }
            QFormat::F16 => put_half(values[0], out),
            QFormat::BF16 => put_bf16(values[0], out),
            QFormat::Q8_0 => q8_0(values, out),
            QFormat::Q4_0 => q4_0(values, out),
            QFormat::Q4K => q4_k(values, out),
            QFormat::Q5K => q5_k(values, out),
            _ => q6_k(values, out),
        };
        if written.is_none() {
            return Err(QuantizeError::OutOfRange { format, index: b * format.block_len() });
        }
    }
    Ok(())
}

/// Writes a half-precision number; `None` if it overflows.
fn put_half(value: f32, out: &mut [u8]) -> Option<()> {
    let half = f16::from_f32(value);
    out.copy_from_slice(&half.to_le_bytes());
    half.is_finite().then_some(())
}

fn put_bf16(value: f32, out: &mut [u8]) -> Option<()> {
    let half = bf16::from_f32(value);
    out.copy_from_slice(&half.to_le_bytes());
    half.is_finite().then_some(())
}

/// A scale as it is stored; `None` if it overflows.
fn stored(value: f32) -> Option<f16> {
    let half = f16::from_f32(value);
    half.is_finite().then_some(half)
}

/// The reciprocal, or zero for zero.
fn inverse(scale: f32) -> f32 {
    if scale == 0.0 { 0.0 } else { 1.0 / scale }
}

/// `value` on the integer grid, held in a range far below 2^22: adding and subtracting 1.5 * 2^23 rounds to nearest
/// even, without the call that rounding takes on processors at large.
fn level(value: f32, lowest: i32, highest: i32) -> i32 {
    const ROUND: f32 = 12_582_912.0;
    (value.clamp(lowest as f32, highest as f32) + ROUND - ROUND) as i32
}

fn largest_magnitude(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |largest, value| value.abs().max(largest))
}

fn q8_0(values: &[f32], out: &mut [u8]) -> Option<()> {
    let scale = stored(largest_magnitude(values) / 127.0)?;
    out[..2].copy_from_slice(&scale.to_le_bytes());
    let inverse = inverse(scale.to_f32());
    for (out, value) in out[2..].iter_mut().zip(values) {
        *out = level(value * inverse, -127, 127) as i8 as u8;
    }
    Some(())
}

fn q4_0(values: &[f32], out: &mut [u8]) -> Option<()> {
    let scale = stored(fit_scale(values, 8))?;
    out[..2].copy_from_slice(&scale.to_le_bytes());
    let inverse = inverse(scale.to_f32());
    let nibble = |value: f32| (level(value * inverse, -8, 7) + 8) as u8;
    for i in 0..16 {
        out[2 + i] = nibble(values[i]) | (nibble(values[i + 16]) << 4);
    }
    Some(())
}

/// The scale with which integers of `-levels .. levels` come closest to `values`, at most 32. Errors weigh as the squares of the
/// values: large weights matter more to products. The value of the largest magnitude may take the one level more
/// that the negative side has, so the scale may be negative.
fn fit_scale(values: &[f32], levels: i32) -> f32 {
    let extreme = values
        .iter()
        .fold(0.0f32, |extreme, &value| if value.abs() > extreme.abs() { value } else { extreme });
    if extreme == 0.0 {
        return 0.0;
    }
    let mut weights = [0.0f64; 32];
    for (weight, &value) in weights.iter_mut().zip(values) {
        *weight = f64::from(value / extreme).powi(2);
    }
    let (mut best_gain, mut best_scale) = (0.0f64, extreme / -levels as f32);
    for step in -9..=9 {
        let inverse = -(levels as f32 + 0.1 * step as f32) / extreme;
        let (mut cross, mut square) = (0.0f64, 0.0f64);
        for (&value, weight) in values.iter().zip(weights) {
            let level = f64::from(level(value * inverse, -levels, levels - 1));
            cross += weight * f64::from(value) * level;
            square += weight * level * level;
        }
        // The weighted squared error is constant minus this gain.
        if square > 0.0 && cross * cross > best_gain * square {
            best_gain = cross * cross / square;
            best_scale = (cross / square) as f32;
        }
    }
    best_scale
}

/// A grid `scale * level - offset`, both numbers non-negative.
#[derive(Clone, Copy, Default)]
struct Grid {
    scale: f32,
    offset: f32,
}

/// The grid of levels `0 ..= levels` closest to 32 values. An error weighs as the root mean square of the values plus
/// the value's own magnitude. Candidates lie `steps` tenths of a level around the whole range.
fn fit_grid(values: &[f32], levels: i32, steps: std::ops::Range<i32>) -> Grid {
    let lowest = values.iter().fold(0.0f32, |lowest, &value| lowest.min(value));
    let highest = values.iter().fold(f32::NEG_INFINITY, |highest, &value| highest.max(value));
    let range = f64::from(highest) - f64::from(lowest);
    if range <= 0.0 {
        // All values are the same and not positive.
        return Grid { scale: 0.0, offset: -lowest };
    }
    let mean_square = values.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>() / values.len() as f64;
    let base = mean_square.sqrt();
    let mut best = (f64::INFINITY, Grid::default());
    for step in steps {
        let inverse = (f64::from(levels) + 0.1 * f64::from(step)) / range;
        let mut on_grid = [0.0f64; 32];
        for (on_grid, &value) in on_grid.iter_mut().zip(values) {
            let exact = (f64::from(value) - f64::from(lowest)) * inverse;
            *on_grid = f64::from(level(exact as f32, 0, levels));
        }
        let [mut weights, mut x, mut l, mut ll, mut xl] = [0.0f64; 5];
        for (&value, level) in values.iter().zip(on_grid) {
            let value = f64::from(value);
            let weight = base + value.abs();
            weights += weight;
            x += weight * value;
            l += weight * level;
            ll += weight * level * level;
            xl += weight * value * level;
        }
        let determinant = weights * ll - l * l;
        let mut scale = (weights * xl - x * l) / determinant;
        let mut lowest = (ll * x - l * xl) / determinant;
        // An offset cannot be negative, and values of one level do not need one.
        if determinant <= 1e-9 * weights * ll || lowest > 0.0 {
            (scale, lowest) = (xl / ll, 0.0);
        }
        let error: f64 = values
            .iter()
            .zip(on_grid)
            .map(|(&value, level)| {
                let difference = scale * level + lowest - f64::from(value);
                (base + f64::from(value).abs()) * difference * difference
            })
            .sum();
        if error < best.0 && scale > 0.0 {
            best = (error, Grid { scale: scale as f32, offset: -lowest as f32 });
        }
    }
    best.1
}

/// A block of Q4_K or Q5_K before it is packed.
struct SixBitBlock {
    header: [u8; 16],
    levels: [u8; 256],
}

/// Grids of eight sub-blocks, their scales and offsets rounded to six bits of common half-precision units.
fn six_bit_block(values: &[f32], levels: i32, steps: std::ops::Range<i32>) -> Option<SixBitBlock> {
    let mut grids = [Grid::default(); 8];
    for (grid, values) in grids.iter_mut().zip(values.chunks_exact(32)) {
        *grid = fit_grid(values, levels, steps.clone());
    }
    let largest = |part: fn(&Grid) -> f32| grids.iter().map(part).fold(0.0f32, f32::max);
    let (scale, min) =
        (stored(largest(|grid| grid.scale) / 63.0)?, stored(largest(|grid| grid.offset) / 63.0)?);
    let mut block = SixBitBlock { header: [0; 16], levels: [0; 256] };
    block.header[..2].copy_from_slice(&scale.to_le_bytes());
    block.header[2..4].copy_from_slice(&min.to_le_bytes());
    let (scale, min) = (scale.to_f32(), min.to_f32());
    for (sub, grid) in grids.iter().enumerate() {
        let sub_scale = level(grid.scale * inverse(scale), 0, 63);
        let sub_min = level(grid.offset * inverse(min), 0, 63);
        put_six_bits(&mut block.header[4..], sub, sub_scale as u8, sub_min as u8);
        let inverse = inverse(scale * sub_scale as f32);
        let offset = min * sub_min as f32;
        for i in 32 * sub..32 * sub + 32 {
            block.levels[i] = level((values[i] + offset) * inverse, 0, levels) as u8;
        }
    }
    Some(block)
}

/// Packs scale and offset `sub` of eight: see the decoder.
fn put_six_bits(bytes: &mut [u8], sub: usize, scale: u8, min: u8) {
    if sub < 4 {
        bytes[sub] |= scale;
        bytes[sub + 4] |= min;
    } else {
        bytes[sub + 4] = (scale & 15) | ((min & 15) << 4);
        bytes[sub - 4] |= (scale >> 4) << 6;
        bytes[sub] |= (min >> 4) << 6;
    }
}

/// Packs the low nibbles of 256 levels, 64 in each 32 bytes.
fn put_nibbles(levels: &[u8; 256], out: &mut [u8]) {
    for (i, byte) in out.iter_mut().enumerate() {
        let first = 64 * (i / 32) + i % 32;
        *byte = (levels[first] & 15) | ((levels[first + 32] & 15) << 4);
    }
}

fn q4_k(values: &[f32], out: &mut [u8]) -> Option<()> {
    let block = six_bit_block(values, 15, -10..11)?;
    out[..16].copy_from_slice(&block.header);
    put_nibbles(&block.levels, &mut out[16..]);
    Some(())
}

fn q5_k(values: &[f32], out: &mut [u8]) -> Option<()> {
    let block = six_bit_block(values, 31, -5..11)?;
    out[..16].copy_from_slice(&block.header);
    out[16..48].fill(0);
    for (i, level) in block.levels.iter().enumerate() {
        out[16 + i % 32] |= (level >> 4) << (i / 32);
    }
    put_nibbles(&block.levels, &mut out[48..]);
    Some(())
}

fn q6_k(values: &[f32], out: &mut [u8]) -> Option<()> {
    let mut scales = [0.0f32; 16];
    for (scale, values) in scales.iter_mut().zip(values.chunks_exact(16)) {
        *scale = fit_scale(values, 32);
    }
    let extreme = scales
        .iter()
        .fold(0.0f32, |extreme, &scale| if scale.abs() > extreme.abs() { scale } else { extreme });
    // The extreme scale takes -128, the one level more.
    let scale = stored(extreme / -128.0)?;
    out[208..].copy_from_slice(&scale.to_le_bytes());
    let scale = scale.to_f32();
    let mut levels = [0u8; 256];
    for (sub, values) in values.chunks_exact(16).enumerate() {
        let sub_scale = level(scales[sub] * inverse(scale), -128, 127);
        out[192 + sub] = sub_scale as i8 as u8;
        let inverse = inverse(scale * sub_scale as f32);
        for (level_out, value) in levels[16 * sub..].iter_mut().zip(values) {
            *level_out = (level(value * inverse, -32, 31) + 32) as u8;
        }
    }
    for half in 0..2 {
        let levels = &levels[128 * half..128 * half + 128];
        for l in 0..64 {
            out[64 * half + l] = (levels[l] & 15) | ((levels[l + 64] & 15) << 4);
        }
        for l in 0..32 {
            out[128 + 32 * half + l] = (levels[l] >> 4)
                | ((levels[l + 32] >> 4) << 2)
                | ((levels[l + 64] >> 4) << 4)
                | ((levels[l + 96] >> 4) << 6);
        }
    }
    Some(())
}
