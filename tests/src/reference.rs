//! Reference outputs kept in `tests/data`, computed by other people's code.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use safetensors::SafeTensors;

/// The folder of test data.
pub fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("data")
}

/// Named tensors of a reference file.
pub struct Reference {
    floats: BTreeMap<String, Vec<f32>>,
    integers: BTreeMap<String, Vec<i32>>,
}

impl Reference {
    /// Reads a reference file.
    pub fn open(path: &Path) -> Reference {
        let bytes = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
        let mut reference = Reference { floats: BTreeMap::new(), integers: BTreeMap::new() };
        for (name, tensor) in file.tensors() {
            let words = tensor.data().chunks_exact(4).map(|word| [word[0], word[1], word[2], word[3]]);
            match tensor.dtype() {
                safetensors::Dtype::F32 => {
                    reference.floats.insert(name, words.map(f32::from_le_bytes).collect());
                }
                safetensors::Dtype::I32 => {
                    reference.integers.insert(name, words.map(i32::from_le_bytes).collect());
                }
                other => panic!("{name} has type {other:?}"),
            }
        }
        reference
    }

    /// A tensor of floats.
    pub fn floats(&self, name: &str) -> &[f32] {
        self.floats.get(name).unwrap_or_else(|| panic!("no tensor {name}"))
    }

    /// A tensor of floats that may be absent.
    pub fn maybe_floats(&self, name: &str) -> &[f32] {
        self.floats.get(name).map_or(&[], Vec::as_slice)
    }

    /// A tensor of token ids or row numbers that may be absent.
    pub fn integers(&self, name: &str) -> Vec<u32> {
        self.integers.get(name).map_or(Vec::new(), |values| values.iter().map(|&v| v as u32).collect())
    }

    /// Prompts in the file.
    pub fn prompts(&self) -> usize {
        (0..).take_while(|p| self.integers.contains_key(&format!("prompt.{p}.ids"))).count()
    }
}

/// `max|a - b| / max|b|`.
pub fn relative_error(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len(), "compared values are of one shape");
    let scale = b.iter().fold(0.0f32, |m, x| m.max(x.abs()));
    let error = a
        .iter()
        .zip(b)
        .fold(0.0f32, |m, (x, y)| if (x - y).is_nan() { f32::INFINITY } else { m.max((x - y).abs()) });
    error / scale
}

/// Checks logits `[rows][vocab]` of a prompt against its reference by the rule of `tests/data/README.md`: within
/// 2e-5 of the float32 reference, and, in rows where that reference itself is ill-conditioned, within 2e-5 plus its
/// own error of the exact one. Returns the worst error over its bound.
pub fn check_prompt(reference: &Reference, prompt: usize, logits: &[f32]) -> Result<f32, String> {
    const BOUND: f32 = 2e-5;
    let expected = reference.floats(&format!("prompt.{prompt}.logits"));
    if expected.len() != logits.len() {
        return Err(format!("prompt {prompt}: {} logits for {}", logits.len(), expected.len()));
    }
    let ill = reference.integers(&format!("prompt.{prompt}.ill_rows"));
    let exact = reference.maybe_floats(&format!("prompt.{prompt}.ill_exact"));
    let errors = reference.maybe_floats(&format!("prompt.{prompt}.ill_error"));
    let scale = expected.iter().fold(0.0f32, |m, x| m.max(x.abs()));
    let rows = reference.integers(&format!("prompt.{prompt}.ids")).len();
    let vocab = expected.len() / rows;
    let mut worst = 0.0f32;
    for row in 0..rows {
        let range = row * vocab..(row + 1) * vocab;
        let (target, bound) = match ill.iter().position(|&r| r as usize == row) {
            Some(i) => (&exact[i * vocab..(i + 1) * vocab], BOUND + errors[i]),
            None => (&expected[range.clone()], BOUND),
        };
        for (a, b) in logits[range].iter().zip(target) {
            let error = (a - b).abs() / scale;
            if error.is_nan() || error > bound {
                return Err(format!("prompt {prompt} row {row}: error {error:e} over {bound:e}"));
            }
            worst = worst.max(error / bound);
        }
    }
    Ok(worst)
}
