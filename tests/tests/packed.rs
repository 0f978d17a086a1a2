//! Packed files hold the same model as what they were packed from, are used in place, and are refused when they lie.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use millpond::file::gguf_write::{GgufWriter, OwnedValue};
use millpond::file::packed::{MAGIC, PAGE, Packed, PackedError, PackedWriter};
use millpond::load::{self, LoadError, LoadedModel, TokenizerSource, inspect, load_bytes};
use millpond::model::{LoadOptions, Model};
use millpond::quantize::{PackOptions, QuantizeError, QuantizeType, pack};
use millpond::text::tables::encode;
use millpond::text::{GgufVocabulary, TablesError, TokenTables, Tokenizer};
use millpond::weights::{FfnWeights, LinearInput, Matrix, MixerWeights, ModelWeights};
use millpond_simd::quant::QFormat;
use millpond_tests::fuzz;
use millpond_tests::tiny_files::tiny_gguf;
use peak_alloc::PeakAlloc;
use proptest::prelude::*;
use serde_json::Value;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

const ARCHITECTURES: [&str; 3] = ["qwen35", "qwen35moe", "qwen3next"];

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("data").join(name)
}

fn built_in() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../server/assets/delta-48m-Q4_K_M.gguf")
}

/// Packs without watching.
fn run(input: &Path, output: &Path, kind: Option<QuantizeType>) -> Result<(), QuantizeError> {
    let options = PackOptions { kind, threads: 2, ..PackOptions::default() };
    pack(input, output, &options, &mut |_| ControlFlow::Continue(())).map(|_| ())
}

/// A packed file of a tiny model.
fn tiny(arch: &str) -> Vec<u8> {
    static FILES: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
        let folder = tempfile::tempdir().unwrap();
        let (input, output) = (folder.path().join("in.gguf"), folder.path().join("out.mill"));
        let file = |arch: &&str| {
            std::fs::write(&input, tiny_gguf(arch)).unwrap();
            run(&input, &output, None).unwrap();
            std::fs::read(&output).unwrap()
        };
        ARCHITECTURES.iter().map(file).collect()
    });
    FILES[ARCHITECTURES.iter().position(|other| *other == arch).unwrap()].clone()
}

/// All matrices of a model.
fn matrices(weights: &ModelWeights) -> Vec<&Matrix> {
    let mut found = vec![&weights.embedding, &weights.output];
    found.extend(weights.mtp.iter().map(|mtp| &mtp.fc));
    for layer in weights.layers.iter().chain(weights.mtp.iter().map(|mtp| &mtp.layer)) {
        match &layer.mixer {
            MixerWeights::Attention(mixer) => found.extend([&mixer.q, &mixer.k, &mixer.v, &mixer.out]),
            MixerWeights::Linear(mixer) => {
                match &mixer.input {
                    LinearInput::Split { qkv, z, beta, alpha } => found.extend([qkv, z, beta, alpha]),
                    LinearInput::ByKeyHead { qkvz, ba } => found.extend([qkvz, ba]),
                    LinearInput::SplitFusedGates { qkv, z, ba } => found.extend([qkv, z, ba]),
                }
                found.push(&mixer.out);
            }
        }
        match &layer.ffn {
            FfnWeights::Dense(glu) => found.extend([&glu.gate, &glu.up, &glu.down]),
            FfnWeights::Moe(moe) => {
                found.push(&moe.router);
                found.extend(moe.experts.iter().flat_map(|glu| [&glu.gate, &glu.up, &glu.down]));
            }
        }
    }
    found
}

fn same_models(packed: &LoadedModel, original: &LoadedModel) {
    assert_eq!(packed.spec, original.spec);
    assert_eq!(packed.name, original.name);
    let (found, expected) = (matrices(&packed.weights), matrices(&original.weights));
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.into_iter().zip(expected) {
        assert_eq!(found.format(), expected.format());
        assert!(found.bytes() == expected.bytes(), "{found:?}");
    }
    let vectors = |model: &LoadedModel| {
        let mut vectors = vec![model.weights.output_norm.clone()];
        for layer in &model.weights.layers {
            vectors.extend([layer.mixer_norm.clone(), layer.ffn_norm.clone()]);
            if let MixerWeights::Linear(mixer) = &layer.mixer {
                vectors.extend([
                    mixer.conv.clone(),
                    mixer.a.clone(),
                    mixer.dt_bias.clone(),
                    mixer.norm.clone(),
                ]);
            }
        }
        vectors
    };
    assert_eq!(vectors(packed), vectors(original));
}

fn load_model(path: &Path) -> LoadedModel {
    load::load_model(path, &load::LoadOptions::default()).unwrap()
}

#[test]
fn a_packed_model_is_the_same_model() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out.mill");
    let inputs = [
        built_in(),
        data("forms/gguf/qwen35-bf16.gguf"),
        data("forms/gguf/qwen35moe-bf16-00001-of-00003.gguf"),
        data("forms/gguf/qwen3next-bf16.gguf"),
    ];
    for input in inputs {
        run(&input, &path, None).unwrap();
        same_models(&load_model(&path), &load_model(&input));
        let file = Packed::parse(Arc::new(std::fs::read(&path).unwrap())).unwrap();
        file.verify().unwrap();
        assert!(file.sections().iter().all(|section| section.range.start.is_multiple_of(PAGE)));
        assert!(file.tensors().iter().all(|tensor| tensor.range.start.is_multiple_of(64)));
        let options = LoadOptions::default();
        let (packed, original) =
            (Model::load(&path, &options).unwrap(), Model::load(&input, &options).unwrap());
        assert_eq!(packed.info.fingerprint, original.info.fingerprint);
        assert_eq!(packed.template.is_some(), original.template.is_some());
        let seen = inspect(&path).unwrap();
        assert_eq!((seen.format.as_str(), seen.problem), ("packed version 1", None));
    }
}

#[test]
fn weights_are_used_in_place() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out.mill");
    run(&built_in(), &path, None).unwrap();
    let before = MEMORY.current_usage_as_mb();
    let model = load_model(&path);
    let grown = MEMORY.current_usage_as_mb() - before;
    // The file has thirty; other tests run beside this one.
    assert!(grown < 16.0, "{grown} MiB");
    for matrix in matrices(&model.weights) {
        assert_eq!(matrix.bytes().as_ptr().align_offset(64), 0, "{matrix:?}");
    }
    let access = millpond::file::mmap::Access::Read;
    let read = load::LoadOptions { access, ..load::LoadOptions::default() };
    same_models(&load::load_model(&path, &read).unwrap(), &model);
}

#[test]
fn folders_and_types() {
    let folder = tempfile::tempdir().unwrap();
    let (one, other) = (folder.path().join("one.mill"), folder.path().join("other.mill"));
    for kind in [QuantizeType::Q4_K_M, QuantizeType::Q8_0] {
        run(&data("forms/qwen35-wrapper"), &one, Some(kind)).unwrap();
        run(&data("forms/gguf/qwen35-bf16.gguf"), &other, Some(kind)).unwrap();
        let (one, other) = (load_model(&one), load_model(&other));
        assert_eq!(one.spec, other.spec);
        assert_eq!(one.weights.embedding.format(), QFormat::Q8_0);
        for (one, other) in matrices(&one.weights).into_iter().zip(matrices(&other.weights)) {
            assert!(one.format() == other.format() && one.bytes() == other.bytes());
        }
    }
    // A packed file is an output, no input.
    assert!(matches!(run(&one, &other, None), Err(QuantizeError::Load(_))));
    let options = PackOptions::default();
    let stopped =
        pack(&built_in(), &folder.path().join("third.mill"), &options, &mut |_| ControlFlow::Break(()));
    assert!(matches!(stopped, Err(QuantizeError::Interrupted)));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

/// Ids of the `tokenizers` library for thousands of texts, from the tables of packed files.
#[test]
fn tokenizers_in_place_give_the_librarys_ids() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out.mill");
    let inputs = [
        (built_in(), "tokenizer_cases.json"),
        (data("forms/qwen35-wrapper"), "tokenizer_cases_qwen35.json"),
        (data("forms/qwen35-plain"), "tokenizer_cases_nfc.json"),
    ];
    for (input, cases) in inputs {
        run(&input, &path, None).unwrap();
        let model = Model::load(&path, &LoadOptions::default()).unwrap();
        let tokenizer = model.tokenizer.as_ref().unwrap();
        let cases: Value = serde_json::from_slice(&std::fs::read(data(cases)).unwrap()).unwrap();
        for case in cases["encode"].as_array().unwrap() {
            let text = case["text"].as_str().unwrap();
            assert_eq!(tokenizer.encode(text, true).unwrap(), ids(&case["ids"]), "{text:?}");
        }
        for case in cases["decode"].as_array().unwrap() {
            assert_eq!(tokenizer.decode(&ids(&case["ids"]), false), case["text"].as_str().unwrap());
        }
        let original = Model::load(&input, &LoadOptions::default()).unwrap();
        let original = original.tokenizer.as_ref().unwrap();
        assert_eq!(tokenizer.special(), original.special());
        assert_eq!(tokenizer.end_of_generation(), original.end_of_generation());
        assert_eq!(tokenizer.add_bos(), original.add_bos());
        for id in 0..original.vocabulary_size() as u32 + 2 {
            assert_eq!(tokenizer.token_bytes(id), original.token_bytes(id));
            assert!(original.kind(id).is_none() || tokenizer.kind(id) == original.kind(id));
        }
        assert_eq!(tokenizer.token_id("<|im_end|>"), original.token_id("<|im_end|>"));
        assert_eq!(tokenizer.token_id("no such token"), None);
    }
}

/// A vocabulary of few letters, so that merges overlap in every way, some listed twice.
fn small_vocabulary() -> impl Strategy<Value = GgufVocabulary> {
    prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>()), 0..24).prop_map(
        |picks| {
            let mut tokens: Vec<String> = ["<|end|>", "a", "b", "c", "\u{120}"].map(str::to_owned).to_vec();
            let mut merges = Vec::new();
            for (left, right) in picks {
                let (left, right) = (left.index(tokens.len() - 1) + 1, right.index(tokens.len() - 1) + 1);
                let merged = format!("{}{}", tokens[left], tokens[right]);
                merges.push(format!("{} {}", tokens[left], tokens[right]));
                if !tokens.contains(&merged) && merged.len() < 40 {
                    tokens.push(merged);
                } else if !tokens.contains(&merged) {
                    merges.pop();
                }
            }
            let mut token_types = vec![1; tokens.len()];
            token_types[0] = 3;
            GgufVocabulary {
                model: "gpt2".to_owned(),
                pre: "qwen2".to_owned(),
                tokens,
                token_types,
                merges,
                eos: Some(0),
                ..GgufVocabulary::default()
            }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn merging_in_place_equals_the_librarys(vocabulary in small_vocabulary(), text in "[abc ]{0,40}|[a-d<|>endé\u{0301} ]{0,20}") {
        let built = Tokenizer::from_gguf(vocabulary.clone()).unwrap();
        let bytes: Arc<Vec<u8>> = Arc::new(encode(vocabulary, None).unwrap());
        let tables = TokenTables::open(bytes.clone(), 0..bytes.len()).unwrap();
        let tables = Tokenizer::from_tables(tables).unwrap();
        let text = format!("{text}<|end|>{text}");
        for parse_special in [false, true] {
            prop_assert_eq!(
                tables.encode(&text, parse_special).unwrap(),
                built.encode(&text, parse_special).unwrap()
            );
        }
    }

    /// Any text at all on the built-in model's vocabulary.
    #[test]
    fn any_text_is_cut_alike(text in "\\PC{0,60}|[ \\n\\t]{0,12}|[a-z]{0,300}") {
        static BOTH: LazyLock<[Tokenizer; 2]> = LazyLock::new(|| {
            let TokenizerSource::Gguf(text) = load_model(&built_in()).tokenizer else { panic!("a vocabulary") };
            let bytes: Arc<Vec<u8>> = Arc::new(encode(text.vocabulary.clone(), None).unwrap());
            let tables = TokenTables::open(bytes.clone(), 0..bytes.len()).unwrap();
            [Tokenizer::from_gguf(text.vocabulary).unwrap(), Tokenizer::from_tables(tables).unwrap()]
        });
        let [built, tables] = &*BOTH;
        prop_assert_eq!(tables.encode(&text, true).unwrap(), built.encode(&text, true).unwrap());
    }

    /// Any bytes anywhere, with checksums that fit and without.
    #[test]
    fn random_damage(
        arch in prop::sample::select(&ARCHITECTURES[..]),
        damage in prop::collection::vec((any::<prop::sample::Index>(), prop::collection::vec(any::<u8>(), 1..9)), 1..6),
        in_page in any::<bool>(),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut bytes = tiny(arch);
        let within = if in_page { 200 } else { bytes.len() };
        for (at, with) in damage {
            let at = at.index(within);
            let end = (at + with.len()).min(bytes.len());
            bytes[at..end].copy_from_slice(&with[..end - at]);
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        fuzz::packed(&bytes);
    }

    /// Numbers of special size where numbers stand: the page, the list of tensors, the tables.
    #[test]
    fn special_numbers(
        section in 0usize..4,
        at in any::<prop::sample::Index>(),
        number in prop::sample::select(&[0u64, 1, 63, 1 << 20, 1 << 31, 1 << 32, 1 << 62, 1 << 63, u64::MAX, u64::MAX - 63][..]),
        wide in any::<bool>(),
    ) {
        let mut bytes = tiny("qwen35");
        let file = Packed::parse(Arc::new(bytes.clone())).unwrap();
        let range = match section {
            0 => 8..200,
            section => file.sections()[section - 1].range.clone(),
        };
        let width = if wide { 8 } else { 4 };
        let at = range.start + at.index((range.len() - width) / 4) * 4;
        bytes[at..at + width].copy_from_slice(&number.to_le_bytes()[..width]);
        fuzz::packed(&bytes);
        prop_assert!(MEMORY.peak_usage_as_mb() < 400.0);
    }
}

/// A token whose place in the tables is lost must not be given an id beyond the vocabulary.
#[test]
fn every_number_of_the_tokenizer_may_be_zero() {
    let whole = tiny("qwen35");
    let range = Packed::parse(Arc::new(whole.clone())).unwrap().sections()[2].range.clone();
    for at in range.step_by(4) {
        let mut bytes = whole.clone();
        bytes[at..at + 4].fill(0);
        fuzz::packed(&bytes);
    }
}

fn parse(bytes: Vec<u8>) -> Result<Packed, PackedError> {
    Packed::parse(Arc::new(bytes))
}

#[test]
fn every_bit_of_the_first_page_counts() {
    let whole = tiny("qwen35");
    assert!(parse(whole.clone()).is_ok());
    for bit in (0..8 * 200).chain(8 * (PAGE - 9)..8 * PAGE) {
        let mut bytes = whole.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let error = parse(bytes).expect_err("a damaged page is refused");
        let expected = match bit / 8 {
            0..8 => matches!(error, PackedError::Magic),
            8..12 => matches!(error, PackedError::Version { .. }),
            _ => matches!(error, PackedError::Checksum { name: "first page", .. }),
        };
        assert!(expected, "bit {bit}: {error}");
    }
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let whole = tiny("qwen3next");
    for length in (0..PAGE + 1).chain((PAGE..whole.len()).step_by(101)) {
        let error = parse(whole[..length].to_vec()).expect_err("a cut file is refused");
        let names_a_cause =
            matches!(error, PackedError::Magic | PackedError::Truncated { .. } | PackedError::Length { .. });
        assert!(names_a_cause, "{length}: {error}");
    }
    let mut longer = whole;
    longer.push(0);
    assert!(matches!(parse(longer), Err(PackedError::Length { .. })));
}

#[test]
fn damage_is_found_in_every_section() {
    let whole = tiny("qwen35moe");
    let sections = parse(whole.clone()).unwrap().sections().to_vec();
    assert_eq!(
        sections.iter().map(|section| section.name()).collect::<Vec<_>>(),
        ["keys", "tensors", "tokenizer", "weights"]
    );
    for section in sections {
        let mut bytes = whole.clone();
        bytes[section.range.start + section.range.len() / 2] ^= 16;
        let found = match parse(bytes) {
            Ok(file) => {
                assert_eq!(section.name(), "weights");
                file.verify()
            }
            Err(error) => Err(error),
        };
        assert!(matches!(found, Err(PackedError::Checksum { name, .. }) if name == section.name()));
    }
}

/// A file whose first page says something else, with checksums that fit.
fn with_page(change: impl Fn(&mut [u8])) -> PackedError {
    let mut bytes = tiny("qwen35");
    change(&mut bytes);
    fuzz::mend(&mut bytes);
    parse(bytes).expect_err("a lie is refused")
}

#[test]
fn pages_that_lie() {
    use PackedError as E;
    let number = |at: usize, value: u64| {
        move |bytes: &mut [u8]| bytes[at..at + 8].copy_from_slice(&value.to_le_bytes())
    };
    assert!(matches!(with_page(number(0, 7)), E::Magic));
    assert!(matches!(with_page(|bytes| bytes[8] = 2), E::Version { found: 2, expected: 1 }));
    assert!(matches!(with_page(|bytes| bytes[12] = 1), E::Layout { found: 1 }));
    for length in [0, PAGE as u64, u64::MAX] {
        assert!(matches!(with_page(number(16, length)), E::Length { .. }));
    }
    for count in [65u64, 1 << 31, 0xFFFF_FFFF] {
        let error = {
            let mut bytes = tiny("qwen35");
            bytes[24..28].copy_from_slice(&(count as u32).to_le_bytes());
            let checksum = millpond::file::packed::Checksum::of(&bytes[..PAGE - 8]);
            bytes[PAGE - 8..PAGE].copy_from_slice(&checksum.to_le_bytes());
            parse(bytes).expect_err("too many sections")
        };
        assert!(matches!(error, E::SectionCount { .. }), "{error}");
    }
    assert!(matches!(with_page(|bytes| bytes[24] = 0), E::MissingSection { name: "keys" }));
    assert!(matches!(with_page(|bytes| bytes[24] = 2), E::MissingSection { name: "weights" }));
    let section = |at: usize| 32 + 32 * at;
    for offset in [0, 1, 4097, u64::MAX, u64::MAX - 4095, 1 << 40] {
        assert!(matches!(with_page(number(section(1) + 8, offset)), E::Section { index: 1, .. }), "{offset}");
    }
    for length in [u64::MAX, 1 << 63, 1 << 40, 5000] {
        assert!(matches!(with_page(number(section(0) + 16, length)), E::Section { .. }), "{length}");
    }
    assert!(matches!(with_page(|bytes| bytes[section(1)] = 1), E::Section { index: 1, .. }));
    // A kind that a later version may know is left alone.
    let mut bytes = tiny("qwen35");
    bytes[section(2)] = 77;
    fuzz::mend(&mut bytes);
    let file = parse(bytes).unwrap();
    assert_eq!((file.tokenizer(), file.sections()[2].name()), (None, "of unknown kind"));
}

/// A file with other keys and tensors, put together by the writer.
fn written(change: impl Fn(&mut PackedWriter)) -> Result<Vec<u8>, std::io::Error> {
    let mut writer = PackedWriter::new(GgufWriter::new(), None);
    change(&mut writer);
    writer.to_bytes(&[vec![1u8; 64], vec![2u8; 4]])
}

#[test]
fn what_is_written_is_read_back() {
    let bytes = written(|writer| {
        writer.add_tensor("a", &[2, 8], QFormat::F32).unwrap();
        writer.add_tensor("b", &[1], QFormat::F32).unwrap();
    })
    .unwrap();
    assert_eq!(&bytes[..8], MAGIC);
    let file = parse(bytes.clone()).unwrap();
    file.verify().unwrap();
    assert_eq!(file.tensors()[0].shape, [2, 8]);
    assert_eq!(bytes[file.tensors()[0].range.clone()], [1; 64]);
    assert_eq!(bytes[file.tensors()[1].range.clone()], [2; 4]);
    assert!(matches!(load_bytes(Arc::new(bytes), "no model"), Err(LoadError::Spec { .. })));

    assert!(written(|writer| writer.add_tensor("a", &[2, 8], QFormat::F32).unwrap()).is_err());
    assert!(written(|_| {}).is_err());
    let short = written(|writer| {
        writer.add_tensor("a", &[17], QFormat::F32).unwrap();
        writer.add_tensor("b", &[1], QFormat::F32).unwrap();
    });
    assert!(short.is_err());
    let mut writer = PackedWriter::new(GgufWriter::new(), None);
    assert!(writer.add_tensor("a", &[33], QFormat::Q8_0).is_err());
}

/// The list of tensors of a tiny file changed from `at` on (behind the count).
fn with_tensors(at: usize, with: &[u8]) -> PackedError {
    let mut bytes = tiny("qwen35");
    let start = parse(bytes.clone()).unwrap().sections()[1].range.start;
    bytes[start + at..start + at + with.len()].copy_from_slice(with);
    fuzz::mend(&mut bytes);
    parse(bytes).expect_err("a lie is refused")
}

#[test]
fn tensors_that_lie() {
    use PackedError as E;
    // The first is `token_embd.weight`, [8, 32] in F32: 17 bytes of name behind the count and the length.
    let (length, name) = (8, 12);
    let (kind, count, first, second) = (name + 17, name + 21, name + 25, name + 33);
    let (offset, size) = (name + 41, name + 49);
    for found in [u64::MAX, 1 << 40, 10_000] {
        assert!(matches!(with_tensors(0, &found.to_le_bytes()), E::TensorCount { .. }));
    }
    assert!(matches!(with_tensors(0, &1u64.to_le_bytes()), E::Trailing(_)));
    for found in [0, 65, u32::MAX] {
        assert!(matches!(with_tensors(length, &found.to_le_bytes()), E::Name { index: 0, .. }));
    }
    assert!(matches!(with_tensors(name, &[0xff]), E::Name { .. }));
    assert!(matches!(with_tensors(kind, &4u32.to_le_bytes()), E::Type { id: 4, .. }));
    for found in [0, 5, u32::MAX] {
        assert!(matches!(with_tensors(count, &found.to_le_bytes()), E::Dimensions { .. }));
    }
    for dim in [0, 9, 1 << 61, u64::MAX] {
        assert!(matches!(with_tensors(first, &dim.to_le_bytes()), E::Size { .. }));
        assert!(matches!(with_tensors(second, &dim.to_le_bytes()), E::Size { .. }));
    }
    for found in [1, 32, u64::MAX] {
        assert!(matches!(with_tensors(offset, &found.to_le_bytes()), E::Misaligned { .. }));
    }
    for found in [1u64 << 20, 1 << 63, u64::MAX - 63] {
        assert!(matches!(with_tensors(offset, &found.to_le_bytes()), E::OutOfFile { .. }), "{found}");
    }
    assert!(matches!(with_tensors(offset, &64u64.to_le_bytes()), E::Overlap { .. }));
    assert!(matches!(with_tensors(size, &0u64.to_le_bytes()), E::Size { .. }));
    let mut twice = PackedWriter::new(GgufWriter::new(), None);
    twice.add_tensor("a", &[16], QFormat::F32).unwrap();
    twice.add_tensor("a", &[1], QFormat::F32).unwrap();
    let bytes = twice.to_bytes(&[vec![0u8; 64], vec![0; 4]]).unwrap();
    assert!(matches!(parse(bytes), Err(E::DuplicateTensor { .. })));
    // Keys that announce tensors of their own.
    let mut keys = GgufWriter::new();
    keys.set("general.architecture", OwnedValue::String("qwen35".into()));
    keys.add_tensor("t", &[0], QFormat::F32).unwrap();
    assert!(PackedWriter::new(keys, None).to_bytes(&[] as &[Vec<u8>]).is_err());
}

/// Tables of a tiny vocabulary changed at a word of the header, or behind it.
fn with_tables(change: impl Fn(&mut Vec<u8>)) -> Result<TokenTables, TablesError> {
    let mut bytes = tiny("qwen35");
    let range = parse(bytes.clone()).unwrap().tokenizer().unwrap();
    let mut tables: Vec<u8> = bytes.drain(range).collect();
    change(&mut tables);
    let length = tables.len();
    TokenTables::open(Arc::new(tables), 0..length)
}

#[test]
fn tables_that_lie() {
    use TablesError as E;
    let word = |at: usize, value: u32| {
        move |bytes: &mut Vec<u8>| bytes[4 * at..4 * at + 4].copy_from_slice(&value.to_le_bytes())
    };
    assert!(with_tables(|_| {}).is_ok());
    assert!(matches!(with_tables(|bytes| bytes.truncate(63)), Err(E::Length { .. })));
    assert!(matches!(with_tables(|bytes| bytes.push(0)), Err(E::Length { .. })));
    assert!(matches!(with_tables(word(0, 2)), Err(E::Version { found: 2 })));
    for tokens in [7, 9] {
        assert!(matches!(with_tables(word(1, tokens)), Err(E::Length { .. })));
    }
    for (at, values) in [
        (1, [1 << 21, u32::MAX]),
        (2, [4, u32::MAX]),
        (3, [2, u32::MAX]),
        (4, [8, u32::MAX - 1]),
        (5, [8, 1 << 31]),
        (8, [0, 96]),
        (9, [3, 1 << 31]),
        (10, [1 << 27, u32::MAX]),
        (11, [1 << 27, u32::MAX]),
        (12, [9, u32::MAX]),
        (13, [1, u32::MAX]),
    ] {
        for value in values {
            assert!(matches!(with_tables(word(at, value)), Err(E::Header { .. })), "word {at} is {value}");
        }
    }
    // Eight tokens: text ends, byte ends, one added token, 64 slots of texts, 64 of merges, kinds, texts.
    let (text_ends, byte_ends, added, text_slots) = (16, 24, 32, 33);
    let merge_slots = text_slots + 64;
    let kinds = 4 * (merge_slots + 256);
    for (at, value) in
        [(text_ends, 1 << 20), (text_ends + 3, 0), (byte_ends + 2, u32::MAX), (byte_ends + 7, 0)]
    {
        assert!(matches!(with_tables(word(at, value)), Err(E::Entry { .. })), "word {at} is {value}");
    }
    for value in [1, 8, u32::MAX] {
        assert!(matches!(with_tables(word(added, value)), Err(E::Entry { what: "added tokens", .. })));
    }
    for slot in 0..64 {
        assert!(matches!(with_tables(word(text_slots + slot, 9)), Err(E::Entry { what: "text slots", .. })));
        let merges = |bytes: &mut Vec<u8>| {
            word(merge_slots + 4 * slot + 2, 0)(bytes);
            word(merge_slots + 4 * slot + 3, 8)(bytes);
        };
        assert!(matches!(with_tables(merges), Err(E::Entry { what: "merge slots", .. })));
    }
    assert!(matches!(with_tables(|bytes| bytes[kinds] = 4), Err(E::Entry { what: "kinds", .. })));
    assert!(matches!(with_tables(|bytes| bytes[kinds + 8] = 0xff), Err(E::Entry { what: "texts", .. })));
    // Tables without a free slot end a search all the same.
    let full = with_tables(|bytes| {
        (0..64).for_each(|slot| word(text_slots + slot, 1)(bytes));
        (0..64).for_each(|slot| word(merge_slots + 4 * slot + 2, 0)(bytes));
    });
    let full = full.unwrap();
    assert_eq!((full.id("abc"), full.merge(7, 7)), (None, None));
}

#[test]
fn a_tokenizer_for_another_model_is_refused() {
    let bytes = tiny("qwen35");
    let file = parse(bytes.clone()).unwrap();
    let mut keys = GgufWriter::new();
    for key in file.keys().keys() {
        keys.set(key, OwnedValue::copy_of(&file.keys().value(key).unwrap()));
    }
    let vocabulary = GgufVocabulary {
        model: "gpt2".to_owned(),
        pre: "qwen2".to_owned(),
        tokens: vec!["a".to_owned()],
        ..GgufVocabulary::default()
    };
    let mut writer = PackedWriter::new(keys, Some(encode(vocabulary, None).unwrap()));
    let data: Vec<&[u8]> = file.tensors().iter().map(|tensor| &bytes[tensor.range.clone()]).collect();
    for tensor in file.tensors() {
        writer.add_tensor(&tensor.name, &tensor.shape, tensor.kind).unwrap();
    }
    let bytes = writer.to_bytes(&data).unwrap();
    assert!(matches!(load_bytes(Arc::new(bytes), "tiny"), Err(LoadError::Tokens { found: 1, vocab: 8, .. })));
}
