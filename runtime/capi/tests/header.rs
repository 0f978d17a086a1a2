//! The header is what the sources say.

use std::path::{Path, PathBuf};

/// Set to write the header anew.
const UPDATE: &str = "UPDATE_SNAPSHOTS";
/// The order of the header: from what a host meets first to what it meets last.
const SOURCES: [&str; 11] = [
    "failure",
    "types",
    "handles",
    "model",
    "text",
    "engine",
    "request",
    "listener",
    "generation",
    "embedding",
    "sessions",
];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn generated() -> String {
    let config = cbindgen::Config::from_file(root().join("cbindgen.toml")).expect("a configuration");
    let sources = SOURCES.map(|name| root().join("src").join(name).with_extension("rs"));
    let builder =
        sources.iter().fold(cbindgen::Builder::new().with_config(config), cbindgen::Builder::with_src);
    let mut header = Vec::new();
    builder.generate().expect("the sources are understood").write(&mut header);
    String::from_utf8(header).expect("text")
}

#[test]
fn the_header_is_generated_from_the_sources() {
    let path = root().join("include/millpond.h");
    let header = generated();
    if std::env::var_os(UPDATE).is_some() {
        std::fs::write(&path, &header).expect("a writable file");
    }
    let committed = std::fs::read_to_string(&path).expect("the header");
    assert!(header == committed, "the sources have changed: run with {UPDATE}=1 if that is meant");
}

/// Functions that are exported from a file that the header leaves out would be missing in it.
#[test]
fn the_header_has_every_exported_function() {
    let header = generated();
    let mut exported = 0;
    for file in std::fs::read_dir(root().join("src")).expect("sources") {
        let path = file.expect("a file").path();
        let text = std::fs::read_to_string(&path).expect("text");
        for part in text.split("#[unsafe(no_mangle)]\n").skip(1) {
            let name = part.split("extern \"C\" fn ").nth(1).and_then(|rest| rest.split('(').next());
            let name = name.expect("a function");
            assert!(header.contains(&format!("{name}(")), "{}: {name}", path.display());
            exported += 1;
        }
        let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        let known = SOURCES.contains(&stem.as_str());
        assert!(known || !text.contains("repr(C)"), "{}: add it to the sources", Path::new(&path).display());
    }
    assert!(exported > 30, "{exported} functions");
}
