//! Dequantisation against the values gguf-py and llama.cpp give for the same bytes.

use millpond_simd::quant::{QFormat, dequantize_row};
use safetensors::SafeTensors;

fn reference() -> Vec<u8> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/data/quants.safetensors");
    std::fs::read(path).expect("reference data of the repository")
}

#[test]
fn every_format_gives_the_reference_values() {
    let file = reference();
    let tensors = SafeTensors::deserialize(&file).expect("a valid file");
    for format in QFormat::ALL.into_iter().filter(|&format| format != QFormat::F32) {
        for data in ["random", "gaussian"] {
            let bytes = tensors.tensor(&format!("{}.{data}.bytes", format.name())).expect("bytes");
            let values = tensors.tensor(&format!("{}.{data}.values", format.name())).expect("values");
            let expected: Vec<f32> =
                values.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
            let mut found = vec![f32::NAN; expected.len()];
            dequantize_row(format, bytes.data(), &mut found).expect("whole blocks");
            let wrong = (0..found.len()).find(|&i| found[i] != expected[i]);
            assert_eq!(wrong, None, "{} {data}: first wrong value", format.name());
        }
    }
}

#[test]
fn floats_are_read_as_they_are() {
    let values = [1.5f32, -0.0, f32::MIN_POSITIVE / 8.0, f32::MAX];
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let mut found = [0.0; 4];
    dequantize_row(QFormat::F32, &bytes, &mut found).expect("sixteen bytes");
    assert_eq!(found.map(f32::to_bits), values.map(f32::to_bits));
}

#[test]
fn wrong_sizes_are_errors() {
    let mut out = [0.0; 256];
    for format in QFormat::ALL {
        let size = format.row_bytes(256).expect("whole blocks");
        assert!(dequantize_row(format, &vec![0; size - 1], &mut out).is_err());
        assert!(dequantize_row(format, &vec![0; size + 1], &mut out).is_err());
        assert!(dequantize_row(format, &vec![0; size], &mut out).is_ok());
    }
    assert!(dequantize_row(QFormat::Q4K, &[0; 144], &mut out[..255]).is_err());
}
