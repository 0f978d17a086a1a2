//! The guide's blocks of C: all compile, those that are programs run.

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

use common::{MODEL, compiler, library};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// The blocks of C in the guide.
fn blocks() -> Vec<String> {
    let guide = std::fs::read_to_string(Path::new(ROOT).join("../../docs/library-c.md")).unwrap();
    let parts = guide.split("```c\n").skip(1);
    parts.map(|part| part.split("```").next().unwrap().to_owned()).collect()
}

#[test]
fn the_c_of_the_guide_compiles_and_runs() {
    let Some(cc) = compiler() else { return };
    let folder = tempfile::tempdir().unwrap();
    let blocks = blocks();
    assert!(blocks.len() >= 3);
    let mut run = 0;
    for (number, block) in blocks.iter().enumerate() {
        let is_program = block.contains("int main(");
        let source = folder.path().join(format!("{number}.c"));
        std::fs::write(&source, block).unwrap();
        let output: PathBuf = folder.path().join(number.to_string());
        let mut command = Command::new(cc);
        command.args(["-std=c11", "-Wall", "-Wextra", "-Werror", "-I"]).arg(Path::new(ROOT).join("include"));
        command.arg(&source).arg("-o").arg(&output);
        if is_program {
            command.arg(library());
        } else {
            command.arg("-c");
        }
        let compiled = command.output().unwrap();
        assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
        if is_program {
            let output = Command::new(&output).arg(MODEL).output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            assert!(!output.stdout.is_empty());
            run += 1;
        }
    }
    assert!(run >= 1);
}
