//! Quantised files: what is in them, how much is lost, and that nothing is left of what fails.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use millpond::file::GgmlType;
use millpond::file::gguf::{Gguf, GgufTensor};
use millpond::file::gguf_write::OwnedValue;
use millpond::file::mmap::{Access, open};
use millpond::load::{LoadOptions, TokenizerSource, load_model};
use millpond::quantize::{QuantizeError, QuantizeOptions, QuantizeType, quantize};
use millpond::text::Tokenizer;
use millpond_simd::quant::{QFormat, dequantize_row};
use millpond_tests::tiny_files::{GGUF_NAMES, as_f32, gguf, gguf_metadata, tensors, tiny_gguf, tiny_spec};
use peak_alloc::PeakAlloc;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("data").join(name)
}

fn read(path: &Path) -> Gguf {
    Gguf::parse(open(path, Access::Map).unwrap()).unwrap()
}

/// Quantises without watching.
fn run(input: &Path, output: &Path, kind: QuantizeType) -> Result<(), QuantizeError> {
    let options = QuantizeOptions { threads: 2, ..QuantizeOptions::new(kind) };
    quantize(input, output, &options, &mut |_| ControlFlow::Continue(())).map(|_| ())
}

/// A tensor and the bytes of its data.
type Stored = (GgufTensor, Vec<u8>);

/// The tensors of one or several files by name.
fn stored(files: &[PathBuf]) -> BTreeMap<String, Stored> {
    let mut all = BTreeMap::new();
    for path in files {
        let file = read(path);
        for tensor in file.tensors() {
            let bytes = file.source().bytes()[tensor.range.clone()].to_vec();
            all.insert(tensor.name.clone(), (tensor.clone(), bytes));
        }
    }
    all
}

fn values(tensor: &Stored) -> Vec<f32> {
    let format = tensor.0.kind.format.unwrap();
    let mut values = vec![0.0; tensor.0.dims.iter().product::<u64>() as usize];
    dequantize_row(format, &tensor.1, &mut values).unwrap();
    values
}

/// Checkpoint folders and what llama.cpp's converter makes of them.
fn conversions() -> [(PathBuf, Vec<PathBuf>); 3] {
    let form = |name: &str| data("forms").join(name);
    let shard = |i| form(&format!("gguf/qwen35moe-bf16-{i:05}-of-00003.gguf"));
    [
        (form("qwen35-wrapper"), vec![form("gguf/qwen35-bf16.gguf")]),
        (form("qwen35-moe-wrapper"), (1..=3).map(shard).collect()),
        (form("qwen3-next-mtp"), vec![form("gguf/qwen3next-bf16.gguf")]),
    ]
}

#[test]
fn folders_become_what_llama_cpp_makes_of_them() {
    let out = tempfile::tempdir().unwrap();
    for (folder, reference) in conversions() {
        let path = out.path().join("converted.gguf");
        run(&folder, &path, QuantizeType::BF16).unwrap();
        let (found, expected) = (stored(std::slice::from_ref(&path)), stored(&reference));
        assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
        for (name, tensor) in &expected {
            assert_eq!(found[name].0.dims, tensor.0.dims, "{name}");
            assert_eq!(found[name].0.kind, tensor.0.kind, "{name}");
            if name.ends_with("ssm_a") {
                // An exponential, whose last bit depends on the library.
                for (found, expected) in values(&found[name]).iter().zip(values(tensor)) {
                    assert!((found - expected).abs() <= 2e-7 * expected.abs(), "{name}: {found}");
                }
            } else {
                assert!(found[name].1 == tensor.1, "{name} has other values");
            }
        }
        same_keys(&read(&path), &read(&reference[0]));
    }
}

/// Every key of the converter's file, but for those that are about the file.
fn same_keys(found: &Gguf, expected: &Gguf) {
    const OWN: [&str; 2] = ["general.name", "general.size_label"];
    for key in expected.keys().filter(|key| !OWN.contains(key) && !key.starts_with("split.")) {
        let value = |file: &Gguf| file.value(key).map(|value| OwnedValue::copy_of(&value));
        assert_eq!(value(found), value(expected), "{key}");
    }
}

#[test]
fn tokenizers_survive_the_conversion() {
    let out = tempfile::tempdir().unwrap();
    let path = out.path().join("converted.gguf");
    let folder = data("forms/qwen35-wrapper");
    run(&folder, &path, QuantizeType::F32).unwrap();
    let TokenizerSource::Gguf(text) = load_model(&path, &LoadOptions::default()).unwrap().tokenizer else {
        panic!("the tokenizer is in the metadata");
    };
    let found = Tokenizer::from_gguf(text.vocabulary).unwrap();
    let original =
        Tokenizer::from_json(&std::fs::read(folder.join("tokenizer.json")).unwrap(), None).unwrap();
    let heldout = std::fs::read_to_string(data("delta48m/heldout.txt")).unwrap();
    let text = format!("<|im_start|>{}<|im_end|>", heldout.chars().take(20_000).collect::<String>());
    for parse_special in [false, true] {
        assert_eq!(
            found.encode(&text, parse_special).unwrap(),
            original.encode(&text, parse_special).unwrap()
        );
    }
}

/// What may be lost of a matrix, as a share of its root mean square.
fn bound(format: QFormat) -> f64 {
    match format {
        QFormat::F32 | QFormat::F16 | QFormat::BF16 => 0.0,
        QFormat::Q8_0 => 0.006,
        QFormat::Q6K => 0.025,
        QFormat::Q5K | QFormat::Q5_0 | QFormat::Q5_1 => 0.05,
        _ => 0.1,
    }
}

const QUANTIZED: [QuantizeType; 5] =
    [QuantizeType::Q4_0, QuantizeType::Q4_K_M, QuantizeType::Q5_K_M, QuantizeType::Q6_K, QuantizeType::Q8_0];

#[test]
fn each_type_loads_and_loses_little() {
    let out = tempfile::tempdir().unwrap();
    let path = out.path().join("quantised.gguf");
    for (folder, reference) in conversions() {
        let original = stored(&reference);
        for kind in QUANTIZED {
            // From the folder and from the file of the converter: the same.
            run(&folder, &path, kind).unwrap();
            let found = stored(std::slice::from_ref(&path));
            run(&reference[0], &path, kind).unwrap();
            for (name, tensor) in stored(std::slice::from_ref(&path)) {
                assert!(name.ends_with("ssm_a") || tensor.1 == found[&name].1, "{kind} {name}");
            }
            for (name, tensor) in &found {
                let format = tensor.0.kind.format.unwrap();
                let kept = ["norm", "ssm_a", "ssm_b", "ssm_dt", "conv1d", "gate_inp"];
                if kept.iter().any(|part| name.contains(part)) {
                    assert!(bound(format) == 0.0, "{kind}: {name} is {}", format.name());
                }
                if name.ends_with("eh_proj.weight") || name == "output.weight" {
                    assert!(bound(format) < 0.03, "{kind}: {name} is {}", format.name());
                }
                let (values, expected) = (values(tensor), values(&original[name]));
                let size: f64 = expected.iter().map(|&value| f64::from(value).powi(2)).sum();
                let lost: f64 = values.iter().zip(&expected).map(|(a, b)| f64::from(a - b).powi(2)).sum();
                let lost = (lost / size).sqrt();
                assert!(lost <= bound(format).max(2e-7), "{kind} {name} in {}: {lost}", format.name());
            }
            let model = load_model(&path, &LoadOptions::default()).unwrap();
            assert!(model.spec.mtp.is_some());
            let file = read(&path);
            assert_eq!(file.integer("general.file_type"), Ok(Some(kind.file_type().into())));
            assert_eq!(file.integer("general.quantization_version"), Ok(Some(2)));
            assert!(file.keys().all(|key| !key.starts_with("split.")));
        }
    }
}

/// What llama-quantize (build 11434) loses on the same weights, read with gguf-py: type, format, tensors of it, and the
/// root mean square of their errors as a share of the weights' own, both weighed with the squares of the weights.
const LLAMA_CPP: [(QuantizeType, QFormat, usize, f64); 8] = [
    (QuantizeType::Q4_0, QFormat::Q4_0, 25, 0.048956),
    (QuantizeType::Q4_0, QFormat::Q6K, 1, 0.008760),
    (QuantizeType::Q4_K_M, QFormat::Q4K, 21, 0.038776),
    (QuantizeType::Q4_K_M, QFormat::Q6K, 5, 0.008767),
    (QuantizeType::Q5_K_M, QFormat::Q5K, 21, 0.020252),
    (QuantizeType::Q5_K_M, QFormat::Q6K, 5, 0.008767),
    (QuantizeType::Q6_K, QFormat::Q6K, 26, 0.008761),
    (QuantizeType::Q8_0, QFormat::Q8_0, 26, 0.002913),
];

#[test]
fn no_more_is_lost_than_by_llama_cpp() {
    let out = tempfile::tempdir().unwrap();
    let path = out.path().join("model.gguf");
    let input = data("golden/qwen35-real-heads");
    run(&input, &path, QuantizeType::F32).unwrap();
    let original = stored(std::slice::from_ref(&path));
    for (kind, format, tensors, theirs) in LLAMA_CPP {
        run(&input, &path, kind).unwrap();
        let (mut found, mut lost, mut whole) = (0, 0.0, 0.0);
        for (name, tensor) in stored(std::slice::from_ref(&path)) {
            if tensor.0.kind.format == Some(format) {
                found += 1;
                for (value, expected) in values(&tensor).iter().zip(values(&original[&name])) {
                    let (error, expected) = (f64::from(value - expected), f64::from(expected));
                    lost += (expected * error).powi(2);
                    whole += expected.powi(4);
                }
            }
        }
        let ours = (lost / whole).sqrt();
        assert_eq!(found, tensors, "{kind} {}", format.name());
        assert!(ours <= 1.002 * theirs, "{kind} {}: {ours}, llama.cpp's {theirs}", format.name());
    }
}

#[test]
fn threads_do_not_change_the_file() {
    let out = tempfile::tempdir().unwrap();
    let input = data("golden/qwen35-real-heads");
    let bytes = [1, 3].map(|threads| {
        let path = out.path().join("quantised.gguf");
        let options = QuantizeOptions { threads, ..QuantizeOptions::new(QuantizeType::Q4_K_M) };
        let report = quantize(&input, &path, &options, &mut |_| ControlFlow::Continue(())).unwrap();
        assert!(report.bytes_after * 3 < report.bytes_before * 2, "{report:?}");
        assert_eq!(report.bytes_after, report.formats.iter().map(|entry| entry.2).sum::<u64>());
        std::fs::read(path).unwrap()
    });
    assert!(bytes[0] == bytes[1]);
}

#[test]
fn progress_is_told_and_may_stop() {
    let out = tempfile::tempdir().unwrap();
    let path = out.path().join("quantised.gguf");
    std::fs::write(&path, b"an older file").unwrap();
    let input = data("forms/gguf/qwen35-bf16.gguf");
    let options = QuantizeOptions { threads: 1, ..QuantizeOptions::new(QuantizeType::Q8_0) };
    let mut last = 0;
    let stopped = quantize(&input, &path, &options, &mut |progress| {
        assert!(progress.done > last && progress.done <= progress.total);
        last = progress.done;
        if progress.index == 10 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert!(matches!(stopped, Err(QuantizeError::Interrupted)));
    assert_eq!(std::fs::read(&path).unwrap(), b"an older file");
    assert_eq!(std::fs::read_dir(out.path()).unwrap().count(), 1);

    let mut ended = false;
    quantize(&input, &path, &options, &mut |progress| {
        ended = progress.done == progress.total && progress.index + 1 == progress.tensors;
        ControlFlow::Continue(())
    })
    .unwrap();
    assert!(ended);
    assert_eq!(std::fs::read_dir(out.path()).unwrap().count(), 1);
}

#[test]
fn quantising_twice_must_be_asked_for() {
    let out = tempfile::tempdir().unwrap();
    let (eight, four) = (out.path().join("eight.gguf"), out.path().join("four.gguf"));
    run(&data("forms/gguf/qwen35-bf16.gguf"), &eight, QuantizeType::Q8_0).unwrap();
    match run(&eight, &four, QuantizeType::Q4_0) {
        Err(QuantizeError::AlreadyQuantized { found: "Q8_0", .. }) => {}
        other => panic!("{other:?}"),
    }
    assert!(!four.exists());
    let options = QuantizeOptions { requantize: true, ..QuantizeOptions::new(QuantizeType::Q4_0) };
    quantize(&eight, &four, &options, &mut |_| ControlFlow::Continue(())).unwrap();
    assert!(load_model(&four, &LoadOptions::default()).is_ok());
    // The same type again is a copy.
    let copy = out.path().join("copy.gguf");
    run(&eight, &copy, QuantizeType::Q8_0).unwrap();
    let (copy, eight) = (stored(&[copy]), stored(&[eight]));
    assert!(eight.iter().all(|(name, tensor)| copy[name].1 == tensor.1));
}

#[test]
fn inputs_that_are_no_models_leave_nothing() {
    let out = tempfile::tempdir().unwrap();
    let path = out.path().join("quantised.gguf");
    let broken = out.path().join("broken.gguf");
    let mut bytes = tiny_gguf("qwen35");
    bytes.truncate(bytes.len() - 100);
    std::fs::write(&broken, bytes).unwrap();
    for input in [broken.clone(), out.path().to_owned(), out.path().join("absent.gguf")] {
        assert!(matches!(run(&input, &path, QuantizeType::Q8_0), Err(QuantizeError::Load(_))));
    }
    // A weight that is no number, in a matrix and in a norm.
    for (name, is_matrix) in [("blk.1.attn_k.weight", true), ("output_norm.weight", false)] {
        let mut bytes = tiny_gguf("qwen35");
        let at = Gguf::parse(std::sync::Arc::new(bytes.clone())).unwrap().tensor(name).unwrap().range.start;
        let at = if is_matrix { at + 4 * 37 } else { at };
        bytes[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
        std::fs::write(&broken, bytes).unwrap();
        match run(&broken, &path, QuantizeType::Q8_0) {
            Err(QuantizeError::Values { name: named, row: 1, .. }) => assert!(is_matrix && named == name),
            Err(QuantizeError::Load(_)) => assert!(!is_matrix),
            other => panic!("{other:?}"),
        }
    }
    let good = out.path().join("good.gguf");
    std::fs::write(&good, tiny_gguf("qwen35")).unwrap();
    assert!(matches!(run(&good, &good, QuantizeType::Q8_0), Err(QuantizeError::SameFile { .. })));
    let nowhere = out.path().join("absent").join("quantised.gguf");
    assert!(matches!(run(&good, &nowhere, QuantizeType::Q8_0), Err(QuantizeError::Io { .. })));
    assert!(matches!(run(&good, out.path(), QuantizeType::Q8_0), Err(QuantizeError::Io { .. })));
    assert_eq!(std::fs::read(&good).unwrap(), tiny_gguf("qwen35"));
    assert_eq!(std::fs::read_dir(out.path()).unwrap().count(), 2);
}

#[test]
fn memory_does_not_grow_with_the_model() {
    let out = tempfile::tempdir().unwrap();
    let (input, path) = (out.path().join("large.gguf"), out.path().join("quantised.gguf"));
    let mut spec = tiny_spec("qwen35");
    spec.vocab = 400_000;
    let mut metadata = gguf_metadata(&spec);
    metadata.retain(|(key, _)| !key.starts_with("tokenizer."));
    metadata.push(("qwen35.vocab_size".to_owned(), OwnedValue::U32(400_000)));
    let kinds: Vec<(_, GgmlType)> = as_f32(tensors(&spec, &GGUF_NAMES));
    std::fs::write(&input, gguf(&metadata, &kinds)).unwrap();
    drop(kinds);
    let size = std::fs::metadata(&input).unwrap().len() as f32 / (1 << 20) as f32;
    let before = MEMORY.current_usage_as_mb();
    MEMORY.reset_peak_usage();
    run(&input, &path, QuantizeType::Q8_0).unwrap();
    let grown = MEMORY.peak_usage_as_mb() - before;
    assert!(size > 90.0 && grown < 24.0, "{grown} MiB for {size} MiB");
}
