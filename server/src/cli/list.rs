//! `millpond list` and `millpond rm`: models on this machine.
//!
//! No file is opened to list it: a damaged one costs no more than its name.

use std::time::SystemTime;

use serde_json::json;

use super::args::{ListArgs, RemoveArgs};
use super::models::{self, LocalModel};
use super::output;
use crate::built_in;
use crate::hub::HubError;
use crate::hub::cache::{Cache, CachedModel};

/// Runs `list`.
///
/// # Errors
/// With `--verify`, a model whose contents are damaged or cannot be read.
pub(crate) fn run(args: &ListArgs) -> anyhow::Result<()> {
    let mut rows = Vec::new();
    let mut damaged = Vec::new();
    for model in cached()? {
        let checked = if args.verify { model.verify()? } else { None };
        if checked == Some(false) {
            damaged.push(model.reference.to_string());
        }
        let name = model.reference.to_string();
        let local = LocalModel { name, path: model.path, bytes: model.bytes, modified: model.modified };
        rows.push(Row { model: local, from: "hub", checked });
    }
    rows.extend(models::own_models().into_iter().map(|model| Row { model, from: "folder", checked: None }));
    if args.json {
        let rows: Vec<_> = rows.iter().map(Row::json).chain([built_in_json()]).collect();
        output::line(&serde_json::to_string_pretty(&rows)?)?;
    } else {
        print(&rows, args.verify)?;
    }
    anyhow::ensure!(damaged.is_empty(), "damaged, to be pulled again: {}", damaged.join(", "));
    Ok(())
}

/// The models of the hub's cache; none for a user without a home.
fn cached() -> anyhow::Result<Vec<CachedModel>> {
    match Cache::usual() {
        Ok(cache) => Ok(cache.models()),
        Err(HubError::NoFolder) => Ok(Vec::new()),
        Err(error) => Err(error.into()),
    }
}

/// Runs `rm`.
///
/// # Errors
/// A model that is not there; the system refuses. Those named before it are gone then.
pub(crate) fn remove(args: &RemoveArgs) -> anyhow::Result<()> {
    for name in &args.models {
        let freed = models::remove(name)?;
        output::line(&format!("{name} removed, {} free again", output::bytes(freed)))?;
    }
    Ok(())
}

struct Row {
    model: LocalModel,
    from: &'static str,
    checked: Option<bool>,
}

impl Row {
    fn json(&self) -> serde_json::Value {
        let seconds =
            |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).ok().map(|time| time.as_secs());
        json!({
            "name": self.model.name,
            "path": self.model.path,
            "bytes": self.model.bytes,
            "modified": self.model.modified.and_then(seconds),
            "from": self.from,
            "intact": self.checked,
        })
    }

    fn cells(&self, verify: bool) -> Vec<String> {
        let mut cells =
            vec![self.model.name.clone(), output::bytes(self.model.bytes), age(self.model.modified)];
        if verify {
            let state = match self.checked {
                Some(true) => "intact",
                Some(false) => "damaged",
                None => "no hash known",
            };
            cells.push(state.to_owned());
        }
        cells.push(self.model.path.display().to_string());
        cells
    }
}

/// The model that is part of the program: it has no path.
fn built_in_json() -> serde_json::Value {
    json!({
        "name": built_in::NAME,
        "path": null,
        "bytes": built_in::bytes().len(),
        "modified": null,
        "from": "program",
        "intact": null,
    })
}

fn print(rows: &[Row], verify: bool) -> anyhow::Result<()> {
    let mut table = vec![["NAME", "SIZE", "AGE"].map(str::to_owned).to_vec()];
    table[0].extend(verify.then(|| "STATE".to_owned()));
    table[0].push("PATH".to_owned());
    table.extend(rows.iter().map(|row| row.cells(verify)));
    let own = [built_in::NAME.to_owned(), output::bytes(built_in::bytes().len() as u64), "-".to_owned()];
    let mut own = own.to_vec();
    own.extend(verify.then(|| "-".to_owned()));
    own.push("(part of the program)".to_owned());
    table.push(own);
    output::table(&table)
}

/// How long ago, roughly.
pub(crate) fn age(time: Option<SystemTime>) -> String {
    let Some(age) = time.and_then(|time| time.elapsed().ok()) else { return "-".to_owned() };
    let seconds = age.as_secs();
    match seconds {
        0..=119 => format!("{seconds} s"),
        120..=7199 => format!("{} min", seconds / 60),
        7200..=172_799 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn ages_are_short() {
        let ago = |seconds| age(SystemTime::now().checked_sub(Duration::from_secs(seconds)));
        assert_eq!(ago(5), "5 s");
        assert_eq!(ago(600), "10 min");
        assert_eq!(ago(3 * 86_400), "3 days");
        assert_eq!(age(None), "-");
    }
}
