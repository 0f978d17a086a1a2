//! The help texts, as snapshots: a change of the command line shows in review.

use std::path::Path;
use std::process::Command;

/// Set to write the snapshots anew.
const UPDATE: &str = "UPDATE_SNAPSHOTS";

fn help(verb: Option<&str>) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_millpond"));
    let output = command.args(verb).arg("--help").env_clear().env("NO_COLOR", "1").output().unwrap();
    assert!(output.status.success());
    assert!(output.stderr.is_empty());
    String::from_utf8(output.stdout).unwrap()
}

/// The verbs that the general help lists.
fn verbs(general: &str) -> Vec<String> {
    let (_, list) = general.split_once("Commands:\n").unwrap();
    let (list, _) = list.split_once("\n\n").unwrap();
    list.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
}

#[test]
fn help_is_as_in_the_snapshots() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/help");
    let general = help(None);
    let verbs = verbs(&general);
    assert!(verbs.len() >= 5, "{verbs:?}");
    let mut texts = vec![("millpond".to_owned(), general)];
    texts.extend(verbs.into_iter().map(|verb| (verb.clone(), help(Some(&verb)))));
    for (name, text) in texts {
        let path = folder.join(format!("{name}.txt"));
        if std::env::var_os(UPDATE).is_some() {
            std::fs::write(&path, &text).unwrap();
        }
        let snapshot = std::fs::read_to_string(&path).unwrap_or_default();
        assert_eq!(text, snapshot, "{name}: run with {UPDATE}=1 if the change is meant");
    }
}
