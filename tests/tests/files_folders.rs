//! Checkpoint folders and shards that lie: indices that lead elsewhere, files that are missing, doubled, swapped or cut,
//! tensors that are not what `config.json` says.

use std::path::{Path, PathBuf};

use millpond::file::gguf::{Gguf, GgufError};
use millpond::file::gguf_write::{GgufWriter, OwnedValue};
use millpond::file::mmap::{Access, open};
use millpond::file::safetensors::{IndexError, SafetensorsError};
use millpond::load::{LoadError, LoadOptions, LoadedModel, load_model};
use millpond_tests::fuzz;
use millpond_tests::tiny_files::{
    FOLDER_NAMES, TinyTensor, as_bf16, config, safetensors, tensors, tiny_gguf, tiny_spec, write_folder,
};
use proptest::prelude::*;
use safetensors::Dtype;
use serde_json::{Value, json};
use tempfile::TempDir;

const ARCHITECTURES: [&str; 3] = ["qwen35", "qwen35moe", "qwen3next"];

fn load(path: &Path) -> Result<LoadedModel, LoadError> {
    load_model(path, &LoadOptions::default())
}

fn tiny_tensors(arch: &str) -> Vec<(TinyTensor, Dtype)> {
    as_bf16(tensors(&tiny_spec(arch), &FOLDER_NAMES))
}

/// Loads a folder of these tensors.
fn load_tensors(arch: &str, tensors: &[(TinyTensor, Dtype)]) -> Result<LoadedModel, LoadError> {
    let folder = tempfile::tempdir().unwrap();
    write_folder(folder.path(), &config(&tiny_spec(arch)), &safetensors(tensors));
    load(folder.path())
}

#[test]
fn each_tensor_may_be_missing() {
    for arch in ARCHITECTURES {
        let whole = tiny_tensors(arch);
        let spec = load_tensors(arch, &whole).unwrap().spec;
        assert!(spec.mtp.is_some() && !spec.tied_head);
        for i in 0..whole.len() {
            let mut tensors = whole.clone();
            let (gone, _) = tensors.remove(i);
            match load_tensors(arch, &tensors) {
                // Without this one there is no prediction head; without this norm, the model's own stands in.
                Ok(_) => assert!(
                    ["mtp.fc.weight", "mtp.norm.weight"].contains(&gone.name.as_str()),
                    "{}",
                    gone.name
                ),
                // What tells the layout of the names is gone, the plain names are the guess.
                Err(LoadError::MissingTensor { name, .. }) => assert_eq!(name, gone.name),
                Err(error) => panic!("{arch} without {}: {error}", gone.name),
            }
        }
    }
}

#[test]
fn each_tensor_may_have_another_shape_or_type() {
    let whole = tiny_tensors("qwen3next");
    for i in 0..whole.len() {
        let expected = &whole[i].0.name;
        let mut tensors = whole.clone();
        tensors[i].0.shape[0] += 1;
        match load_tensors("qwen3next", &tensors) {
            Err(LoadError::Shape { name, .. }) => assert_eq!(&name, expected),
            other => panic!("more of {expected}: {other:?}"),
        }
        for dtype in [Dtype::F64, Dtype::I32, Dtype::U8, Dtype::BOOL, Dtype::F8_E4M3] {
            let mut tensors = whole.clone();
            tensors[i].1 = dtype;
            match load_tensors("qwen3next", &tensors) {
                Err(LoadError::Format { name, found, .. }) => {
                    assert_eq!((&name, found), (expected, dtype.to_string()))
                }
                other => panic!("{expected} as {dtype:?}: {other:?}"),
            }
        }
        for dtype in [Dtype::F32, Dtype::F16] {
            let mut tensors = whole.clone();
            tensors[i].1 = dtype;
            assert!(load_tensors("qwen3next", &tensors).is_ok(), "{expected} as {dtype:?}");
        }
    }
}

#[test]
fn tensors_that_belong_to_nothing_are_refused() {
    let with = |name: &str| {
        let mut tensors = tiny_tensors("qwen35");
        tensors.push((TinyTensor { name: name.to_owned(), shape: vec![32], is_matrix: false }, Dtype::F32));
        load_tensors("qwen35", &tensors)
    };
    for name in ["model.layers.1.self_attn.q_proj.bias", "model.layers.2.input_layernorm.weight", "extra"] {
        match with(name) {
            Err(LoadError::ExtraTensor { name: named, .. }) => assert_eq!(named, name),
            other => panic!("{name}: {other:?}"),
        }
    }
    for name in ["model.visual.patch_embed.proj.weight", "mtp.layers.1.input_layernorm.weight"] {
        assert!(with(name).is_ok(), "{name}");
    }
}

#[test]
fn configurations_that_are_none() {
    let folder = tempfile::tempdir().unwrap();
    let weights = safetensors(&tiny_tensors("qwen35"));
    let with = |text: &[u8]| {
        write_folder(folder.path(), &Value::Null, &weights);
        std::fs::write(folder.path().join("config.json"), text).unwrap();
        load(folder.path()).expect_err("a broken configuration is refused")
    };
    for text in [&b""[..], b"{", b"\xff\xff", b"{\"a\":1}{"] {
        assert!(matches!(with(text), LoadError::Json { .. } | LoadError::Io { .. }));
    }
    // Deep nesting must not exhaust the stack.
    assert!(matches!(with(&b"[".repeat(1 << 20)), LoadError::Json { .. }));
    for text in [&b"null"[..], b"[]", b"{}", b"{\"model_type\":3}", b"{\"model_type\":\"qwen3_next\"}"] {
        assert!(matches!(with(text), LoadError::Spec { .. }));
    }
    std::fs::remove_file(folder.path().join("config.json")).unwrap();
    assert!(matches!(load(folder.path()), Err(LoadError::UnknownKind { .. })));
    assert!(matches!(load(&folder.path().join("absent")), Err(LoadError::Io { .. })));
}

/// A folder whose weights lie in two files.
fn two_files(arch: &str) -> (TempDir, Value) {
    let folder = tempfile::tempdir().unwrap();
    let all = tiny_tensors(arch);
    let (first, second) = all.split_at(all.len() / 2);
    write_folder(folder.path(), &config(&tiny_spec(arch)), &[]);
    std::fs::remove_file(folder.path().join("model.safetensors")).unwrap();
    let mut map = serde_json::Map::new();
    for (name, tensors) in [("a.safetensors", first), ("b.safetensors", second)] {
        std::fs::write(folder.path().join(name), safetensors(tensors)).unwrap();
        map.extend(tensors.iter().map(|(tensor, _)| (tensor.name.clone(), json!(name))));
    }
    let index = json!({ "metadata": {}, "weight_map": map });
    write_index(folder.path(), &index);
    (folder, index)
}

fn write_index(folder: &Path, index: &Value) {
    std::fs::write(folder.join("model.safetensors.index.json"), index.to_string()).unwrap();
}

#[test]
fn an_index_leads_nowhere_else() {
    let (folder, index) = two_files("qwen35");
    assert_eq!(load(folder.path()).unwrap().files.len(), 2);
    let outside = tempfile::tempdir().unwrap();
    std::fs::copy(folder.path().join("a.safetensors"), outside.path().join("a.safetensors")).unwrap();
    let absolute = outside.path().join("a.safetensors").to_str().unwrap().to_owned();
    let parent = format!("../{}/a.safetensors", outside.path().file_name().unwrap().to_str().unwrap());
    for elsewhere in
        [absolute.as_str(), &parent, "..", ".", "", "./a.safetensors", "x/../a.safetensors", "a\\b", "a\0"]
    {
        let mut index = index.clone();
        index["weight_map"]["model.norm.weight"] = json!(elsewhere);
        write_index(folder.path(), &index);
        match load(folder.path()) {
            Err(LoadError::Index(IndexError::Escapes { tensor, file, .. })) => {
                assert_eq!((tensor.as_str(), file.as_str()), ("model.norm.weight", elsewhere));
            }
            other => panic!("{elsewhere:?}: {other:?}"),
        }
    }
    // A name of the folder that is no safetensors file: the index itself, the configuration, nothing, a folder.
    std::fs::create_dir(folder.path().join("folder")).unwrap();
    for (file, is_io) in
        [("model.safetensors.index.json", false), ("config.json", false), ("absent", true), ("folder", true)]
    {
        let mut index = index.clone();
        index["weight_map"]["model.norm.weight"] = json!(file);
        write_index(folder.path(), &index);
        match load(folder.path()) {
            Err(LoadError::Safetensors { .. }) => assert!(!is_io, "{file}"),
            Err(LoadError::Io { .. }) => assert!(is_io, "{file}"),
            other => panic!("{file}: {other:?}"),
        }
    }
}

#[test]
fn an_index_must_tell_the_truth() {
    let (folder, index) = two_files("qwen35moe");
    // In the other file; nowhere.
    for tensor in ["model.norm.weight", "model.layers.9.input_layernorm.weight"] {
        let mut index = index.clone();
        let other = match index["weight_map"][tensor].as_str() {
            Some("a.safetensors") => "b.safetensors",
            _ => "a.safetensors",
        };
        index["weight_map"][tensor] = json!(other);
        write_index(folder.path(), &index);
        let error = load(folder.path()).unwrap_err();
        assert!(
            matches!(&error, LoadError::Index(IndexError::Absent { tensor: t, .. }) if t == tensor),
            "{error}"
        );
    }
    for index in
        [json!(null), json!({}), json!({"weight_map": {}}), json!({"weight_map": {"a": 1}}), json!([])]
    {
        write_index(folder.path(), &index);
        assert!(matches!(load(folder.path()), Err(LoadError::Index(IndexError::Json { .. }))), "{index}");
    }
    // The same tensors in both files.
    write_index(folder.path(), &index);
    std::fs::copy(folder.path().join("a.safetensors"), folder.path().join("b.safetensors")).unwrap();
    assert!(matches!(load(folder.path()), Err(LoadError::DuplicateTensor { .. })));
}

#[cfg(unix)]
#[test]
fn links_are_followed_but_not_for_ever() {
    use std::os::unix::fs::symlink;
    let (folder, _) = two_files("qwen35");
    let file = folder.path().join("a.safetensors");
    // Caches of downloads keep the files elsewhere.
    let elsewhere = tempfile::tempdir().unwrap();
    std::fs::rename(&file, elsewhere.path().join("blob")).unwrap();
    symlink(elsewhere.path().join("blob"), &file).unwrap();
    assert!(load(folder.path()).is_ok());
    std::fs::remove_file(&file).unwrap();
    symlink(&file, &file).unwrap();
    assert!(matches!(load(folder.path()), Err(LoadError::Io { .. })));
    std::fs::remove_file(&file).unwrap();
    symlink(folder.path().join("absent"), &file).unwrap();
    assert!(matches!(load(folder.path()), Err(LoadError::Io { .. })));
    std::fs::remove_file(&file).unwrap();
    symlink("/dev/zero", &file).unwrap();
    assert!(matches!(load(folder.path()), Err(LoadError::Io { .. })));
}

#[test]
fn weights_cut_anywhere_are_refused() {
    let whole = safetensors(&tiny_tensors("qwen35"));
    let header = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    let parse = |bytes: &[u8]| {
        millpond::file::safetensors::SafetensorsFile::parse(std::sync::Arc::new(bytes.to_vec()))
    };
    assert!(parse(&whole).is_ok());
    for length in (0..header).chain((header..whole.len()).step_by(7)) {
        use SafetensorsError as E;
        match parse(&whole[..length]) {
            Err(E::Truncated { .. } | E::HeaderLength { .. } | E::Length { .. }) => {}
            other => panic!("cut to {length} bytes: {other:?}"),
        }
    }
    let mut longer = whole.clone();
    longer.push(0);
    assert!(matches!(parse(&longer), Err(SafetensorsError::Length { .. })));
}

#[test]
fn every_bit_of_a_safetensors_header_may_be_flipped() {
    let whole = safetensors(&tiny_tensors("qwen35"));
    let header = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    for bit in 0..header.min(4096) * 8 {
        let mut bytes = whole.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        fuzz::safetensors(&bytes);
    }
}

/// A GGUF model in three files, as `llama-gguf-split` makes them.
struct Shards {
    folder: TempDir,
    writers: Vec<(GgufWriter, Vec<Vec<u8>>)>,
}

impl Shards {
    fn new() -> Shards {
        let whole = Gguf::parse(std::sync::Arc::new(tiny_gguf("qwen35"))).unwrap();
        let mut writers = vec![(GgufWriter::new(), Vec::new()); 3];
        for key in whole.keys() {
            writers[0].0.set(key, OwnedValue::copy_of(&whole.value(key).unwrap()));
        }
        for (number, (writer, _)) in writers.iter_mut().enumerate() {
            writer.set("split.no", OwnedValue::U16(number as u16));
            writer.set("split.count", OwnedValue::U16(3));
            writer.set("split.tensors.count", OwnedValue::I32(whole.tensors().len() as i32));
        }
        for (i, tensor) in whole.tensors().iter().enumerate() {
            let (writer, data) = &mut writers[i % 3];
            let shape: Vec<usize> = tensor.dims.iter().rev().map(|&dim| dim as usize).collect();
            writer.add_tensor(&tensor.name, &shape, tensor.kind).unwrap();
            data.push(whole.source().bytes()[tensor.range.clone()].to_vec());
        }
        Shards { folder: tempfile::tempdir().unwrap(), writers }
    }

    fn path(&self, number: usize) -> PathBuf {
        self.folder.path().join(format!("tiny-{:05}-of-00003.gguf", number + 1))
    }

    fn set(&mut self, number: usize, key: &str, value: OwnedValue) {
        self.writers[number].0.set(key, value);
    }

    fn load(&self) -> Result<LoadedModel, LoadError> {
        for (number, (writer, data)) in self.writers.iter().enumerate() {
            std::fs::write(self.path(number), writer.to_bytes(data).unwrap()).unwrap();
        }
        load(&self.path(0))
    }

    fn refused(&self) -> String {
        self.load().expect_err("broken shards are refused").to_string()
    }
}

#[test]
fn shards_must_be_those_of_the_first() {
    assert_eq!(Shards::new().load().unwrap().files.len(), 3);
    for (number, key, value) in [
        (1, "split.no", OwnedValue::U16(2)),
        (2, "split.no", OwnedValue::U16(1)),
        (0, "split.no", OwnedValue::U16(1)),
        (0, "split.count", OwnedValue::U16(65_535)),
        (0, "split.count", OwnedValue::U16(2)),
        (0, "split.count", OwnedValue::U64(u64::MAX)),
        (1, "split.count", OwnedValue::U16(4)),
        (0, "split.tensors.count", OwnedValue::I32(1)),
    ] {
        let mut shards = Shards::new();
        shards.set(number, key, value.clone());
        let error = shards.load().expect_err("broken shards are refused");
        assert!(matches!(error, LoadError::Shards { .. }), "{number} {key} {value:?}: {error}");
    }
    let mut shards = Shards::new();
    shards.set(0, "split.count", OwnedValue::String("3".to_owned()));
    let error = shards.load().unwrap_err();
    assert!(matches!(error, LoadError::Gguf { source: GgufError::Mistyped { .. }, .. }), "{error}");
    let mut shards = Shards::new();
    shards.set(1, "general.architecture", OwnedValue::String("qwen35moe".to_owned()));
    assert!(shards.refused().contains("general.architecture"));
    let mut shards = Shards::new();
    shards.writers[2].0.remove("split.count");
    assert!(shards.refused().contains("missing"));
}

#[test]
fn shards_must_all_be_there() {
    let shards = Shards::new();
    shards.load().unwrap();
    std::fs::remove_file(shards.path(2)).unwrap();
    assert!(matches!(load(&shards.path(0)), Err(LoadError::Io { path, .. }) if path == shards.path(2)));

    // Another shard of the same number: its tensors are doubled, those of the other are gone.
    let mut shards = Shards::new();
    shards.load().unwrap();
    shards.writers[2] = shards.writers[1].clone();
    shards.set(2, "split.no", OwnedValue::U16(2));
    assert!(matches!(shards.load(), Err(LoadError::DuplicateTensor { .. })));

    // The second opened instead of the first; the first under another name.
    let shards = Shards::new();
    shards.load().unwrap();
    let error = load(&shards.path(1)).unwrap_err().to_string();
    assert!(error.contains("tiny-00001-of-00003.gguf"), "{error}");
    let renamed = shards.folder.path().join("tiny.gguf");
    std::fs::rename(shards.path(0), &renamed).unwrap();
    let error = load(&renamed).unwrap_err().to_string();
    assert!(error.contains("-00001-of-00003.gguf"), "{error}");
}

/// What was read into memory does not change with the file.
#[test]
fn reading_outlives_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    std::fs::write(&path, tiny_gguf("qwen35")).unwrap();
    let options = LoadOptions { access: Access::Read, ..LoadOptions::default() };
    let model = load_model(&path, &options).unwrap();
    std::fs::write(&path, b"").unwrap();
    assert!(model.weights.output.bytes().iter().all(|&byte| byte == 0));
    assert!(open(&path, Access::Map).unwrap().bytes().is_empty());
    assert!(matches!(load(&path), Err(LoadError::Gguf { source: GgufError::Truncated { .. }, .. })));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Any bytes anywhere in a safetensors header.
    #[test]
    fn random_damage(
        damage in prop::collection::vec((any::<prop::sample::Index>(), "[\\[\\]{}:,\"0-9a-z\\PC]{1,6}"), 1..6),
        length in prop::option::of(any::<u64>()),
    ) {
        let mut bytes = safetensors(&tiny_tensors("qwen35"));
        let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        for (at, with) in damage {
            let at = 8 + at.index(header);
            let end = (at + with.len()).min(bytes.len());
            bytes[at..end].copy_from_slice(&with.as_bytes()[..end - at]);
        }
        if let Some(length) = length {
            bytes[..8].copy_from_slice(&length.to_le_bytes());
        }
        fuzz::safetensors(&bytes);
    }
}
