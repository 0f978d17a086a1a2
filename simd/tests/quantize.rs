//! Quantisers: what comes back, and what llama.cpp's own blocks become.

mod common;

use common::Random;
use millpond_simd::quant::{QFormat, QuantizeError, can_quantize, dequantize_row, quantize_row};
use proptest::prelude::*;
use safetensors::SafeTensors;

fn formats() -> impl Iterator<Item = QFormat> {
    QFormat::ALL.into_iter().filter(|&format| can_quantize(format))
}

fn round_trip(format: QFormat, values: &[f32]) -> Vec<f32> {
    let mut bytes = vec![0xaa; format.row_bytes(values.len()).expect("whole blocks")];
    quantize_row(format, values, &mut bytes).expect("finite values");
    let mut back = vec![f32::NAN; values.len()];
    dequantize_row(format, &bytes, &mut back).expect("a row");
    back
}

/// Root mean square error relative to the root mean square of the values.
fn relative_error(values: &[f32], back: &[f32]) -> f64 {
    let sum = |f: &dyn Fn(usize) -> f64| (0..values.len()).map(f).sum::<f64>();
    let error = sum(&|i| (f64::from(values[i]) - f64::from(back[i])).powi(2));
    if error == 0.0 { 0.0 } else { (error / sum(&|i| f64::from(values[i]).powi(2))).sqrt() }
}

/// The step of an ideal uniform grid of `bits` bits over 32 normal values (about +-2.1 deviations) makes an error of
/// step / sqrt(12): 0.081, 0.039, 0.0096 deviations for 4, 5 and 7 bits; scales cost a little more.
#[test]
fn normal_values_come_back_within_the_error_of_the_bits() {
    let mut random = Random(17);
    let values: Vec<f32> = (0..65536).map(|_| random.normal() * 0.02).collect();
    for (format, bound) in [
        (QFormat::F32, 0.0),
        (QFormat::F16, 0.0003),
        (QFormat::BF16, 0.0025),
        (QFormat::Q8_0, 0.006),
        (QFormat::Q6K, 0.02),
        (QFormat::Q5K, 0.042),
        (QFormat::Q4K, 0.084),
        (QFormat::Q4_0, 0.095),
    ] {
        let error = relative_error(&values, &round_trip(format, &values));
        assert!(error <= bound, "{format:?}: {error}");
    }
}

/// Blocks that llama.cpp wrote lie on a grid, which the search must find again.
#[test]
fn blocks_of_llama_cpp_survive() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/data/quants.safetensors");
    let file = std::fs::read(path).expect("reference data of the repository");
    let tensors = SafeTensors::deserialize(&file).expect("a valid file");
    for format in formats().filter(|&format| format != QFormat::F32) {
        let values = tensors.tensor(&format!("{}.gaussian.values", format.name())).expect("values");
        let values: Vec<f32> =
            values.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        let lossless = matches!(format, QFormat::F16 | QFormat::BF16 | QFormat::Q8_0 | QFormat::Q4_0);
        let bound = match format {
            _ if lossless => 1e-6,
            QFormat::Q6K => 0.01,
            QFormat::Q5K => 0.03,
            _ => 0.05,
        };
        let error = relative_error(&values, &round_trip(format, &values));
        assert!(error <= bound, "{format:?}: {error}");
    }
}

#[test]
fn what_cannot_be_represented_is_an_error() {
    for format in formats() {
        for bad in [f32::NAN, f32::INFINITY] {
            let mut values = vec![0.5; 512];
            values[300] = bad;
            let mut bytes = vec![0; format.row_bytes(512).expect("whole blocks")];
            let error = quantize_row(format, &values, &mut bytes);
            assert_eq!(error, Err(QuantizeError::OutOfRange { format, index: 300 }));
        }
        assert!(matches!(quantize_row(format, &[0.0; 256], &mut [0; 3]), Err(QuantizeError::Size(_))));
    }
    let mut bytes = [0; 34];
    assert!(quantize_row(QFormat::Q8_0, &[1e9; 32], &mut bytes).is_err());
    let mut bytes = [0; 84];
    assert_eq!(
        quantize_row(QFormat::Q2K, &[0.0; 256], &mut bytes),
        Err(QuantizeError::Unsupported(QFormat::Q2K))
    );
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

    /// No value strays further than two steps of its block's grid, whatever the values.
    #[test]
    fn values_stay_near(seed in any::<u64>(), exponent in -30i32..5, kind in 0..4usize) {
        let mut random = Random(seed);
        let values: Vec<f32> = (0..512)
            .map(|i| {
                let value = match kind {
                    0 => random.signed(),
                    1 => random.signed().abs(),
                    2 => if random.below(20) == 0 { random.normal() } else { 0.0 },
                    _ => if i % 256 < 100 { 0.25 } else { -0.25 },
                };
                value * 2f32.powi(exponent)
            })
            .collect();
        for (format, steps) in [
            (QFormat::Q8_0, 127.0), (QFormat::Q6K, 31.0), (QFormat::Q5K, 31.0), (QFormat::Q4K, 15.0), (QFormat::Q4_0, 7.0),
        ] {
            let back = round_trip(format, &values);
            for (block, back) in values.chunks(format.block_len()).zip(back.chunks(format.block_len())) {
                let largest = block.iter().fold(0.0f32, |m, v| m.max(v.abs()));
                // Half-precision scales have a smallest step of their own, which sub-scales multiply.
                let slack = 2.0 * largest / steps + 128.0 * 63.0 * 6e-8;
                for (value, back) in block.iter().zip(back) {
                    prop_assert!((value - back).abs() <= slack, "{format:?}: {value} became {back}");
                }
            }
        }
    }
}
