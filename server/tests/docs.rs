//! The README and the user guide against the command line. `guide.rs` runs what this reads.

use std::ffi::OsString;
use std::path::Path;

use clap::CommandFactory;
use millpond_server::cli::args::Cli;
use millpond_server::cli::argv;

/// Lines of the guide's shell blocks that call the binary, with where they stand.
fn command_lines() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut pages: Vec<_> =
        std::fs::read_dir(root.join("docs")).unwrap().map(|file| file.unwrap().path()).collect();
    pages.push(root.join("README.md"));
    let mut found = Vec::new();
    for path in pages {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let mut in_shell = false;
        for (number, line) in std::fs::read_to_string(&path).unwrap().lines().enumerate() {
            let line = line.trim();
            match line.strip_prefix("```") {
                Some(language) => in_shell = language == "sh",
                None if in_shell && line.starts_with("millpond ") => {
                    found.push((format!("{name}:{}", number + 1), line.to_owned()));
                }
                None => {}
            }
        }
    }
    found
}

/// Words of a line up to a remark, as a shell splits them; double quotes are the only ones the guide uses.
fn words(line: &str) -> Vec<OsString> {
    let line = line.split_once(" # ").map_or(line, |(line, _)| line);
    let mut words = Vec::new();
    for (number, part) in line.split('"').enumerate() {
        if number % 2 == 1 {
            words.push(part.into());
        } else {
            words.extend(part.split_whitespace().map(OsString::from));
        }
    }
    words
}

#[test]
fn every_command_line_of_the_guide_parses() {
    let lines = command_lines();
    assert!(lines.len() >= 60, "{} lines", lines.len());
    for (place, line) in lines {
        let command = Cli::command();
        let normal = argv::normalize(&command, words(&line));
        assert!(normal.ignored.is_empty(), "{place}: {:?}", normal.ignored);
        if let Err(error) = command.try_get_matches_from(normal.arguments) {
            assert!(error.exit_code() == 0, "{place}: {line}: {error}");
        }
    }
}

#[test]
fn links_of_the_guide_lead_somewhere() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
    let mut links = 0;
    for file in std::fs::read_dir(&folder).unwrap() {
        let path = file.unwrap().path();
        for part in std::fs::read_to_string(&path).unwrap().split("](").skip(1) {
            let target = part.split(')').next().unwrap();
            assert!(folder.join(target).exists(), "{}: {target}", path.display());
            links += 1;
        }
    }
    assert!(links >= 8);
}
