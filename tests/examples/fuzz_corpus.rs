//! Writes the corpora of the fuzz bodies: `cargo run -p millpond-tests --example fuzz_corpus`. Files that a fuzzer found
//! lie beside them under names of their own and are left alone.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use millpond::file::GgmlType;
use millpond::file::gguf_write::{GgufWriter, OwnedValue};
use millpond::quantize::{PackOptions, pack};
use millpond_simd::quant::QFormat;
use millpond_tests::tiny_files::{
    FOLDER_NAMES, GGUF_NAMES, TinyTensor, as_bf16, config, gguf, gguf_metadata, safetensors, tensors,
    tiny_spec,
};

fn main() -> std::io::Result<()> {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    let corpus = Corpus { root: tests.join("fuzz").join("corpus") };
    for arch in ["qwen35", "qwen35moe", "qwen3next"] {
        let spec = tiny_spec(arch);
        corpus.write("gguf", &format!("{arch}.gguf"), &small_gguf(arch))?;
        corpus.write("packed", &format!("{arch}.packed"), &small_packed(arch)?)?;
        let weights = safetensors(&as_bf16(tensors(&spec, &FOLDER_NAMES)));
        corpus.write("safetensors", &format!("{arch}.safetensors"), &weights)?;
        corpus.write("config", &format!("{arch}.json"), config(&spec).to_string().as_bytes())?;
    }
    corpus.write("gguf", "every-value.gguf", &every_value()?)?;
    corpus.write("gguf", "empty-v2.gguf", b"GGUF\x02\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0")?;
    corpus.write("gguf", "bomb.gguf", b"GGUF\x03\0\0\0\0\0\0\0\0\0\0\0\0\x65\xcd\x1d\0\0\0\0")?;
    corpus.write("safetensors", "empty.safetensors", b"\x02\0\0\0\0\0\0\0{}")?;
    let forms = tests.join("data").join("forms");
    for name in ["qwen35-wrapper", "qwen35-moe-wrapper", "qwen3-next-mtp", "qwen35-plain"] {
        corpus.write(
            "config",
            &format!("{name}.json"),
            &std::fs::read(forms.join(name).join("config.json"))?,
        )?;
    }
    let plain = forms.join("qwen35-plain");
    corpus.write("tokenizer_json", "plain.json", &std::fs::read(plain.join("tokenizer.json"))?)?;
    corpus.write("template", "plain.jinja", &std::fs::read(plain.join("chat_template.jinja"))?)?;
    for (name, source) in TEMPLATES {
        corpus.write("template", name, source.as_bytes())?;
    }
    Ok(())
}

/// Templates with what makes them costly: loops in loops, recursion, growing strings, macros, filters of Python.
const TEMPLATES: [(&str, &str); 5] = [
    (
        "loops.jinja",
        "{% for a in range(1000) %}{% for b in range(1000) %}{{ a * b }}{% endfor %}{% endfor %}",
    ),
    ("recursion.jinja", "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}"),
    (
        "growth.jinja",
        "{% set ns = namespace(s='x') %}{% for i in range(64) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
    ),
    (
        "tools.jinja",
        "{% if tools %}{% for t in tools %}{{ t | tojson(indent=2) }}{% endfor %}{% endif %}{% for m in messages %}\
         {{ m.role.upper() }}: {{ m.content | trim if m.content is string else m.content | tojson }}\
         {% if m.tool_calls %}{{ m.tool_calls[0].function.arguments | items | list }}{% endif %}{% endfor %}",
    ),
    ("refusal.jinja", "{{ raise_exception('no ' + messages[0]['role']) }}{{ strftime_now('%Y') }}"),
];

struct Corpus {
    root: PathBuf,
}

impl Corpus {
    fn write(&self, target: &str, name: &str, bytes: &[u8]) -> std::io::Result<()> {
        let folder = self.root.join(target);
        std::fs::create_dir_all(&folder)?;
        std::fs::write(folder.join(name), bytes)
    }
}

/// A whole model with its matrices in four bits.
fn small_gguf(arch: &str) -> Vec<u8> {
    let spec = tiny_spec(arch);
    let kind = |tensor: TinyTensor| {
        let format = if tensor.is_matrix { QFormat::Q4_0 } else { QFormat::F16 };
        (tensor, GgmlType::from(format))
    };
    let tensors: Vec<_> = tensors(&spec, &GGUF_NAMES).into_iter().map(kind).collect();
    gguf(&gguf_metadata(&spec), &tensors)
}

/// The same, packed.
fn small_packed(arch: &str) -> std::io::Result<Vec<u8>> {
    let folder = std::env::temp_dir().join(format!("millpond-corpus-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let (input, output) = (folder.join("in.gguf"), folder.join("out.mill"));
    std::fs::write(&input, small_gguf(arch))?;
    pack(&input, &output, &PackOptions::default(), &mut |_| ControlFlow::Continue(()))
        .map_err(std::io::Error::other)?;
    let bytes = std::fs::read(&output)?;
    std::fs::remove_dir_all(&folder)?;
    Ok(bytes)
}

/// A file without a model, with a value of every type.
fn every_value() -> std::io::Result<Vec<u8>> {
    let mut writer = GgufWriter::new();
    let values = [
        OwnedValue::U8(1),
        OwnedValue::I8(-1),
        OwnedValue::U16(2),
        OwnedValue::I16(-2),
        OwnedValue::I32(-3),
        OwnedValue::F32(0.5),
        OwnedValue::Bool(true),
        OwnedValue::U64(u64::MAX),
        OwnedValue::I64(i64::MIN),
        OwnedValue::F64(0.25),
        OwnedValue::Bools(vec![true, false]),
        OwnedValue::U32s(vec![4]),
        OwnedValue::F32s(vec![1.5]),
        OwnedValue::Strings(vec!["a".to_owned(), String::new()]),
    ];
    for (i, value) in values.into_iter().enumerate() {
        writer.set(&format!("key.{i}"), value);
    }
    writer.set("general.alignment", OwnedValue::U32(8));
    writer.add_tensor("vector", &[3], QFormat::F32)?;
    writer.to_bytes(&[[0; 12]])
}
