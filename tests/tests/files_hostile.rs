//! GGUF files that lie. Whatever the bytes, the answer is a typed error that names what is wrong, or a model; never a
//! panic, never memory in proportion to a number that the file merely claims.

use std::sync::Arc;

use millpond::file::gguf::{Gguf, GgufError};
use millpond::file::gguf_write::OwnedValue;
use millpond::file::{GgmlType, type_of_id};
use millpond::load::{LoadError, LoadedModel, load_bytes};
use millpond_models::ModelSpec;
use millpond_simd::quant::QFormat;
use millpond_tests::fuzz;
use millpond_tests::tiny_files::{
    GGUF_NAMES, TinyTensor, as_f32, gguf, gguf_metadata, tensors, tiny_gguf, tiny_spec,
};
use peak_alloc::PeakAlloc;
use proptest::prelude::*;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// Most memory the whole file of tests may ever hold.
const MEMORY_LIMIT_MIB: f32 = 64.0;

const ARCHITECTURES: [&str; 3] = ["qwen35", "qwen35moe", "qwen3next"];

fn check_memory() {
    let peak = MEMORY.peak_usage_as_mb();
    assert!(peak < MEMORY_LIMIT_MIB, "{peak} MiB at the peak");
}

fn parse(bytes: Vec<u8>) -> Result<Gguf, GgufError> {
    Gguf::parse(Arc::new(bytes))
}

fn load(bytes: Vec<u8>) -> Result<LoadedModel, LoadError> {
    load_bytes(Arc::new(bytes), "a tiny file")
}

/// A header put together by hand.
#[derive(Clone, Default)]
struct Raw(Vec<u8>);

impl Raw {
    fn file(version: u32, tensors: u64, keys: u64) -> Raw {
        Raw(b"GGUF".to_vec()).u32(version).u64(tensors).u64(keys)
    }

    fn u32(mut self, value: u32) -> Raw {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    fn u64(mut self, value: u64) -> Raw {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    fn text(self, text: &str) -> Raw {
        let mut raw = self.u64(text.len() as u64);
        raw.0.extend_from_slice(text.as_bytes());
        raw
    }

    fn key(self, key: &str, kind: u32) -> Raw {
        self.text(key).u32(kind)
    }

    fn tensor(self, name: &str, dims: &[u64], kind: u32, offset: u64) -> Raw {
        let raw = self.text(name).u32(dims.len() as u32);
        dims.iter().fold(raw, |raw, &dim| raw.u64(dim)).u32(kind).u64(offset)
    }

    /// Zeros up to the alignment, then `count` more.
    fn data(mut self, count: usize) -> Raw {
        self.0.resize(self.0.len().next_multiple_of(32) + count, 0);
        self
    }

    fn error(self) -> GgufError {
        parse(self.0).expect_err("a broken file is refused")
    }
}

#[test]
fn broken_preambles() {
    use GgufError as E;
    assert!(matches!(Raw::default().error(), E::Truncated { .. }));
    assert!(matches!(Raw(b"GGUF".to_vec()).error(), E::Truncated { .. }));
    assert!(matches!(Raw(b"GGML\x03\0\0\0".to_vec()).error(), E::Magic));
    for version in [0, 1, 4, u32::MAX] {
        assert_eq!(Raw::file(version, 0, 0).error(), E::Version { version });
    }
    for version in [2u32, 3] {
        assert_eq!(Raw::file(version.swap_bytes(), 0, 0).error(), E::BigEndian);
        assert!(parse(Raw::file(version, 0, 0).0).is_ok());
    }
    // The 24 bytes that made other readers allocate 61 GB are among these.
    for count in [1, 500_000_000, 1 << 40, 1 << 63, u64::MAX] {
        assert!(matches!(Raw::file(3, count, 0).error(), E::Count { .. }));
        assert!(matches!(Raw::file(3, 0, count).error(), E::Count { .. }));
    }
    check_memory();
}

#[test]
fn broken_metadata() {
    use GgufError as E;
    let with = |count| Raw::file(3, 0, count);
    for length in [1 << 20, 1 << 31, 1 << 63, u64::MAX] {
        assert!(matches!(with(1).u64(length).u64(0).error(), E::Truncated { .. }));
        // A string value, then an array, of a length that is not there.
        assert!(matches!(with(1).key("k", 8).u64(length).u64(0).error(), E::Truncated { .. }));
        for element in [0, 4, 7, 8, 12] {
            assert!(matches!(with(1).key("k", 9).u32(element).u64(length).u64(0).error(), E::Count { .. }));
        }
    }
    assert!(matches!(with(1).key("", 4).u32(0).error(), E::Key { .. }));
    assert!(matches!(with(1).key(&"k".repeat(65_536), 4).u32(0).error(), E::Key { .. }));
    let mut not_text = with(1).key("k", 4).u32(0);
    not_text.0[32] = 0xff;
    assert!(matches!(not_text.error(), E::Key { .. }));
    for kind in [13, 255, u32::MAX] {
        assert!(matches!(with(1).key("k", kind).u64(0).error(), E::ValueType { id, .. } if id == kind));
        assert!(
            matches!(with(1).key("k", 9).u32(kind).u64(0).error(), E::ValueType { id, .. } if id == kind)
        );
    }
    assert!(matches!(with(1).key("k", 9).u32(9).u64(1).u32(0).u64(0).error(), E::NestedArray { .. }));
    let twice = with(2).key("k", 4).u32(0).key("k", 4).u32(0);
    assert_eq!(twice.error(), E::DuplicateKey { key: "k".to_owned() });
    let mut bool_of_two = with(1).key("k", 7);
    bool_of_two.0.push(2);
    assert!(matches!(bool_of_two.error(), E::Bool { value: 2, .. }));
    for alignment in [0, 13, 48, 1 << 31] {
        assert!(matches!(with(1).key("general.alignment", 4).u32(alignment).error(), E::Alignment { .. }));
    }
    assert!(matches!(with(1).key("general.alignment", 10).u64(32).error(), E::Mistyped { .. }));
    assert!(matches!(with(1).key("general.alignment", 8).text("32").error(), E::Mistyped { .. }));
    check_memory();
}

#[test]
fn broken_tensor_tables() {
    use GgufError as E;
    let with = |count| Raw::file(3, count, 0);
    let one = |name: &str, dims: &[u64], kind, offset| with(1).tensor(name, dims, kind, offset).data(64);
    assert!(parse(one("t", &[16], 0, 0).0).is_ok());
    assert!(parse(one("t", &[0, 16], 0, 0).0).is_ok());
    assert!(matches!(one("", &[16], 0, 0).error(), E::Name { .. }));
    assert!(matches!(one(&"t".repeat(65), &[16], 0, 0).error(), E::Name { .. }));
    assert!(matches!(with(1).u64(u64::MAX).data(64).error(), E::Truncated { .. }));
    assert!(matches!(one("t", &[], 0, 0).error(), E::Dimensions { count: 0, .. }));
    assert!(matches!(one("t", &[1; 5], 0, 0).error(), E::Dimensions { count: 5, .. }));
    assert!(matches!(with(1).text("t").u32(u32::MAX).data(64).error(), E::Dimensions { .. }));
    for dims in [&[1u64 << 40, 1 << 40][..], &[u64::MAX, 2], &[1 << 63, 1 << 63], &[u64::MAX; 4]] {
        assert!(matches!(one("t", dims, 0, 0).error(), E::Size { .. }), "{dims:?}");
    }
    for dims in [&[1u64 << 42][..], &[(1 << 42) + 1], &[1 << 61], &[17], &[16, 2]] {
        assert!(matches!(one("t", dims, 0, 0).error(), E::OutOfFile { .. }), "{dims:?}");
    }
    // No whole number of blocks.
    assert!(matches!(one("t", &[33], 2, 0).error(), E::Size { .. }));
    for kind in [4, 5, 31, 36, 43, u32::MAX] {
        assert_eq!(type_of_id(kind), None);
        assert!(matches!(one("t", &[32], kind, 0).error(), E::Type { id, .. } if id == kind));
    }
    for offset in [1, 31, 33] {
        assert!(matches!(one("t", &[1], 0, offset).error(), E::Misaligned { .. }));
    }
    for offset in [64, 1 << 20, 1 << 63, u64::MAX - 31] {
        assert!(matches!(one("t", &[1], 0, offset).error(), E::OutOfFile { .. }), "{offset}");
    }
    // One byte short.
    let mut short = one("t", &[16], 0, 0);
    short.0.pop();
    assert!(matches!(short.error(), E::OutOfFile { bytes: 64, available: 63, .. }));
    // No data at all, the header ending before its own padding.
    assert!(matches!(with(1).tensor("t", &[16], 0, 0).error(), E::OutOfFile { .. }));
    assert!(parse(with(1).tensor("t", &[0], 0, 0).0).is_ok());
    let twice = with(2).tensor("t", &[8], 0, 0).tensor("t", &[8], 0, 32).data(64);
    assert!(matches!(twice.error(), E::DuplicateTensor { .. }));
    let shared = with(2).tensor("a", &[16], 0, 0).tensor("b", &[8], 0, 32).data(64);
    assert!(matches!(shared.error(), E::Overlap { .. }));
    // Sizes that a sum of padded sizes would wrap.
    let huge = 0x7FFF_FFFF_FFFF_FFC0 / 4;
    let wrap = with(2).tensor("a", &[huge], 0, 0).tensor("b", &[huge], 0, huge * 4).data(64);
    assert!(matches!(wrap.error(), E::OutOfFile { .. }));
    check_memory();
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    for arch in ARCHITECTURES {
        let whole = tiny_gguf(arch);
        let header = parse(whole.clone()).unwrap().data_start();
        for length in (0..header).chain((header..whole.len()).step_by(7)) {
            let error = parse(whole[..length].to_vec()).expect_err("a cut file is refused");
            use GgufError as E;
            let names_a_cause = matches!(error, E::Truncated { .. } | E::Count { .. } | E::OutOfFile { .. });
            assert!(names_a_cause, "{arch} cut to {length} bytes: {error}");
        }
        assert!(load(whole).is_ok());
    }
    check_memory();
}

#[test]
fn every_bit_of_the_header_may_be_flipped() {
    let whole = tiny_gguf("qwen35moe");
    let header = parse(whole.clone()).unwrap().data_start();
    let mut accepted = 0;
    for bit in 0..header.min(4096) * 8 {
        let mut bytes = whole.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        accepted += usize::from(load(bytes).is_ok());
    }
    // Text of tokens, spare bits of floats: most flips are caught, some cannot be.
    assert!(accepted > 0);
    check_memory();
}

/// Metadata, tensors and their types of a tiny model.
struct Parts {
    metadata: Vec<(String, OwnedValue)>,
    tensors: Vec<(TinyTensor, GgmlType)>,
}

fn parts(spec: &ModelSpec) -> Parts {
    Parts { metadata: gguf_metadata(spec), tensors: as_f32(tensors(spec, &GGUF_NAMES)) }
}

impl Parts {
    fn load(&self) -> Result<LoadedModel, LoadError> {
        load(gguf(&self.metadata, &self.tensors))
    }

    fn set(&mut self, key: &str, value: OwnedValue) {
        self.metadata.retain(|entry| entry.0 != key);
        self.metadata.push((key.to_owned(), value));
    }
}

/// Without it there is no such thing as a prediction head, or there is another one to stand in.
fn is_optional(name: &str) -> bool {
    name == "output.weight"
        || name.ends_with("nextn.eh_proj.weight")
        || name.ends_with("nextn.shared_head_norm.weight")
}

#[test]
fn each_tensor_may_be_missing() {
    for arch in ARCHITECTURES {
        let whole = parts(&tiny_spec(arch));
        for i in 0..whole.tensors.len() {
            let mut parts = Parts { metadata: whole.metadata.clone(), tensors: whole.tensors.clone() };
            let (gone, _) = parts.tensors.remove(i);
            match parts.load() {
                Ok(_) => assert!(is_optional(&gone.name), "{arch} without {}", gone.name),
                Err(LoadError::MissingTensor { name, .. }) => assert_eq!(name, gone.name),
                Err(error) => panic!("{arch} without {}: {error}", gone.name),
            }
        }
    }
    check_memory();
}

#[test]
fn each_tensor_may_have_another_shape() {
    for arch in ARCHITECTURES {
        let whole = parts(&tiny_spec(arch));
        for i in 0..whole.tensors.len() {
            for grown in 0..whole.tensors[i].0.shape.len() {
                let mut parts = Parts { metadata: whole.metadata.clone(), tensors: whole.tensors.clone() };
                parts.tensors[i].0.shape[grown] += 1;
                let expected = &whole.tensors[i].0.name;
                match parts.load() {
                    Err(LoadError::Shape { name, .. }) => assert_eq!(&name, expected),
                    other => panic!("{arch} with more of {expected}: {other:?}"),
                }
            }
        }
    }
    check_memory();
}

/// Every type there is for every tensor: matrices take the formats that are computed with, vectors floats.
#[test]
fn each_tensor_may_be_of_each_type() {
    let types: Vec<GgmlType> = (0..64).filter_map(type_of_id).collect();
    assert_eq!(types.iter().filter(|kind| kind.format.is_some()).count(), QFormat::ALL.len());
    let whole = parts(&tiny_spec("qwen35"));
    for (i, (tensor, _)) in whole.tensors.iter().enumerate() {
        let width = tensor.shape.last().copied().unwrap_or(1);
        for kind in types.iter().filter(|kind| width.is_multiple_of(kind.block_len)) {
            let mut parts = Parts { metadata: whole.metadata.clone(), tensors: whole.tensors.clone() };
            parts.tensors[i].1 = *kind;
            let is_float = matches!(kind.format, Some(QFormat::F32 | QFormat::F16 | QFormat::BF16));
            let fits = if tensor.is_matrix { kind.format.is_some() } else { is_float };
            match parts.load() {
                Ok(_) => assert!(fits, "{} as {}", tensor.name, kind.name),
                Err(LoadError::Format { name, found, .. }) => {
                    assert!(!fits, "{} as {}", tensor.name, kind.name);
                    assert_eq!((name.as_str(), found.as_str()), (tensor.name.as_str(), kind.name));
                }
                Err(error) => panic!("{} as {}: {error}", tensor.name, kind.name),
            }
        }
    }
    check_memory();
}

#[test]
fn tensors_that_belong_to_nothing_are_refused() {
    let extra = |name: &str| {
        let mut parts = parts(&tiny_spec("qwen35"));
        let tensor = TinyTensor { name: name.to_owned(), shape: vec![32], is_matrix: false };
        parts.tensors.push((tensor, QFormat::F32.into()));
        parts.load()
    };
    for name in ["blk.1.attn_q.bias", "blk.0.attn_q.weight", "token_types.weight", "output.bias"] {
        match extra(name) {
            Err(LoadError::ExtraTensor { name: named, .. }) => assert_eq!(named, name),
            other => panic!("{name}: {other:?}"),
        }
    }
    for name in ["v.blk.0.attn_q.weight", "mm.0.weight", "mtp.fc.weight", "rope_freqs.weight"] {
        assert!(extra(name).is_ok(), "{name}");
    }
}

#[test]
fn the_bias_of_the_decay_has_two_names() {
    let mut parts = parts(&tiny_spec("qwen35"));
    let (tensor, _) =
        parts.tensors.iter_mut().find(|(tensor, _)| tensor.name == "blk.0.ssm_dt.bias").unwrap();
    tensor.name = "blk.0.ssm_dt".to_owned();
    assert!(parts.load().is_ok());
}

#[test]
fn numbers_that_are_none_are_refused() {
    let bytes = tiny_gguf("qwen35");
    let range = parse(bytes.clone()).unwrap().tensor("blk.0.ssm_a").unwrap().range.clone();
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut bytes = bytes.clone();
        bytes[range.start + 4..range.end].copy_from_slice(&value.to_le_bytes());
        let error = load(bytes).unwrap_err();
        assert!(
            matches!(&error, LoadError::NotFinite { name, index: 1, .. } if name == "blk.0.ssm_a"),
            "{error}"
        );
    }
}

#[test]
fn tokens_must_be_those_of_the_embedding() {
    let with = |key: &str, value: OwnedValue| {
        let mut parts = parts(&tiny_spec("qwen35"));
        parts.set(&format!("tokenizer.ggml.{key}"), value);
        parts.load()
    };
    for key in ["bos_token_id", "eos_token_id", "eot_token_id", "padding_token_id"] {
        for id in [8, 1 << 20, u32::MAX - 1] {
            assert!(
                matches!(with(key, OwnedValue::U32(id)), Err(LoadError::TokenId { vocab: 8, .. })),
                "{key} {id}"
            );
        }
        assert!(with(key, OwnedValue::U32(7)).is_ok());
        // How some writers say that there is none.
        assert!(with(key, OwnedValue::U32(u32::MAX)).is_ok());
        assert!(with(key, OwnedValue::I32(-1)).is_ok());
        assert!(with(key, OwnedValue::I32(-2)).is_err());
        assert!(with(key, OwnedValue::String("0".to_owned())).is_err());
    }
    for count in [0, 7, 9, 100_000] {
        let error = with("tokens", OwnedValue::Strings(vec![String::new(); count])).unwrap_err();
        assert!(matches!(error, LoadError::Shape { .. } | LoadError::Spec { .. }), "{count}: {error}");
    }
    assert!(with("tokens", OwnedValue::I32s(vec![0; 8])).is_err());
    assert!(with("merges", OwnedValue::U32(0)).is_err());
    assert!(with("token_type", OwnedValue::Strings(Vec::new())).is_err());
    check_memory();
}

#[test]
fn text_that_is_none_is_refused_where_it_is_needed() {
    let with = |key: &str| {
        let mut bytes = tiny_gguf("qwen35");
        let at = bytes.windows(key.len()).position(|window| window == key.as_bytes()).unwrap();
        bytes[at] = 0xff;
        load(bytes)
    };
    assert!(matches!(
        with("<|end|>"),
        Err(LoadError::Gguf { source: GgufError::Utf8 { element: Some(0), .. }, .. })
    ));
    assert!(matches!(
        with("gpt2"),
        Err(LoadError::Gguf { source: GgufError::Utf8 { element: None, .. }, .. })
    ));
}

#[test]
fn each_number_of_the_metadata_may_be_anything() {
    let whole = parts(&tiny_spec("qwen3next"));
    let numbers = [0, 1, 2, 3, 7, 31, 64, 255, 1 << 16, 1 << 24, 1 << 31, u32::MAX];
    for (key, value) in &whole.metadata {
        if !matches!(value, OwnedValue::U32(_)) {
            continue;
        }
        for number in numbers {
            let mut parts = Parts { metadata: whole.metadata.clone(), tensors: whole.tensors.clone() };
            parts.set(key, OwnedValue::U32(number));
            // Some are as good as the original; what must not be is a panic or a large allocation.
            let result = parts.load();
            let may_be_large = key.ends_with("context_length") || key.ends_with("token_id");
            assert!(number < 1 << 16 || result.is_err() || may_be_large, "{key} = {number}");
            parts.set(key, OwnedValue::U64(u64::MAX - u64::from(number)));
            assert!(parts.load().is_err(), "{key} near the largest number");
        }
    }
    check_memory();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Any bytes anywhere in a file, several times over.
    #[test]
    fn random_damage(
        arch in prop::sample::select(&ARCHITECTURES[..]),
        damage in prop::collection::vec((any::<prop::sample::Index>(), prop::collection::vec(any::<u8>(), 1..9)), 1..6),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut bytes = tiny_gguf(arch);
        let header = parse(bytes.clone()).unwrap().data_start();
        for (at, with) in damage {
            let at = at.index(header);
            let end = (at + with.len()).min(bytes.len());
            bytes[at..end].copy_from_slice(&with[..end - at]);
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        fuzz::gguf(&bytes);
        check_memory();
    }

    /// Numbers of special size where numbers stand.
    #[test]
    fn special_numbers(
        at in any::<prop::sample::Index>(),
        number in prop::sample::select(&[0u64, 1, 1 << 31, 1 << 32, 1 << 62, 1 << 63, u64::MAX, u64::MAX - 31][..]),
    ) {
        let mut bytes = tiny_gguf("qwen35");
        let header = parse(bytes.clone()).unwrap().data_start();
        let at = at.index(header - 8);
        bytes[at..at + 8].copy_from_slice(&number.to_le_bytes());
        fuzz::gguf(&bytes);
        check_memory();
    }
}
