//! A folder of models: what lies in it, by name. Nothing is opened, so a damaged file is only a name.

use std::path::{Path, PathBuf};

/// Most models of a folder.
const MAX_MODELS: usize = 4096;

/// A model in a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// Name of the file without its ending, or of the subfolder.
    pub(super) name: String,
    /// What to load.
    pub(super) path: PathBuf,
    /// Bytes of its files.
    pub(super) bytes: u64,
}

/// The models of a folder: GGUF files, those in shards counted once, and subfolders with a GGUF file or with the files of
/// a Hugging Face model. What cannot be read is left out.
pub(super) fn scan(folder: &Path) -> Vec<Found> {
    let mut found: Vec<Found> = entries(folder)
        .iter()
        .filter_map(|path| if path.is_dir() { inside(path) } else { file(path) })
        .collect();
    found.sort_by(|a, b| a.name.cmp(&b.name));
    found.dedup_by(|a, b| a.name == b.name);
    found.truncate(MAX_MODELS);
    found
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let read = std::fs::read_dir(folder).into_iter().flatten();
    let mut paths: Vec<PathBuf> = read.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort();
    paths
}

/// A GGUF file that is a model by its name, or the first of its shards.
fn file(path: &Path) -> Option<Found> {
    let stem = path.file_stem()?.to_str()?;
    let is_gguf = path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("gguf"));
    // Parts of models published apart: a vision projector, a prediction head.
    if !is_gguf || ["mmproj", "mtp-"].iter().any(|part| stem.starts_with(part)) {
        return None;
    }
    let Some((name, number, count)) = shard(stem) else {
        return Some(Found { name: stem.to_owned(), path: path.to_owned(), bytes: length(path) });
    };
    if number != 1 {
        return None;
    }
    let sibling = |number: u32| path.with_file_name(format!("{name}-{number:05}-of-{count:05}.gguf"));
    let bytes = (1..=count.min(MAX_MODELS as u32)).map(|number| length(&sibling(number))).sum();
    Some(Found { name: name.to_owned(), path: path.to_owned(), bytes })
}

/// `name-00001-of-00003` taken apart.
fn shard(stem: &str) -> Option<(&str, u32, u32)> {
    let (rest, count) = stem.rsplit_once("-of-")?;
    let (name, number) = rest.rsplit_once('-')?;
    let digits = |text: &str| text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
    (digits(number) && digits(count)).then_some(())?;
    Some((name, number.parse().ok()?, count.parse().ok()?))
}

/// The model in a subfolder, which gives it its name.
fn inside(folder: &Path) -> Option<Found> {
    let name = folder.file_name()?.to_str()?.to_owned();
    let inside = entries(folder);
    if let Some(found) = inside.iter().filter(|path| path.is_file()).find_map(|path| file(path)) {
        return Some(Found { name, ..found });
    }
    let is_weights = |path: &&PathBuf| path.extension().is_some_and(|ending| ending == "safetensors");
    let bytes = inside.iter().filter(is_weights).map(|path| length(path)).sum();
    (folder.join("config.json").is_file() && bytes > 0).then_some(Found {
        name,
        path: folder.to_owned(),
        bytes,
    })
}

fn length(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |metadata| metadata.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_shards_and_folders_are_models_and_parts_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, bytes: usize| {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, vec![0; bytes]).unwrap();
        };
        write("small.gguf", 3);
        write("Big-00001-of-00002.gguf", 10);
        write("Big-00002-of-00002.gguf", 5);
        write("mmproj-small.gguf", 1);
        write("mtp-small.gguf", 1);
        write("readme.md", 1);
        write("hub/config.json", 2);
        write("hub/model.safetensors", 7);
        write("empty/notes.txt", 1);
        write("nested/any-name.gguf", 4);
        let found: Vec<(String, u64)> =
            scan(folder.path()).into_iter().map(|found| (found.name, found.bytes)).collect();
        let expected = [("Big", 15), ("hub", 7), ("nested", 4), ("small", 3)];
        assert_eq!(found, expected.map(|(name, bytes)| (name.to_owned(), bytes)));
        assert_eq!(scan(&folder.path().join("missing")), []);
    }

    #[test]
    fn only_names_of_shards_are_taken_apart() {
        assert_eq!(shard("a-b-00001-of-00003"), Some(("a-b", 1, 3)));
        for stem in ["a-1-of-3", "a-00001-of-x0003", "of-", "a"] {
            assert_eq!(shard(stem), None, "{stem}");
        }
    }
}
