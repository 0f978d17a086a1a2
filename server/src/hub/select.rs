//! Which files of a repository make up the model that is wanted.

use std::collections::BTreeMap;

/// Quantisations tried in turn where none is named: good quality for its size first.
const USUAL: [&str; 6] = ["Q4_K_M", "UD-Q4_K_XL", "Q4_0", "Q8_0", "BF16", "F16"];
/// Files of a folder model beside its weights.
const FOLDER_FILES: [&str; 9] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "vocab.json",
    "merges.txt",
    "model.safetensors.index.json",
];

/// The files of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Selection {
    /// Paths in the repository; the first is the one to load, unless the model is the folder.
    pub(crate) files: Vec<String>,
    /// Whether the model is the folder that holds them.
    pub(crate) is_folder: bool,
    /// What the model is called beside its repository: its quantisation, if the file's name has one.
    pub(crate) label: Option<String>,
}

/// The models among the files of a repository, by name.
#[must_use]
pub(crate) fn models(files: &[String]) -> Vec<Selection> {
    let mut groups: BTreeMap<&str, Vec<&String>> = BTreeMap::new();
    for file in files.iter().filter(|file| is_model_gguf(file)) {
        groups.entry(without_shard(file)).or_default().push(file);
    }
    let gguf = |(stem, mut files): (&str, Vec<&String>)| {
        files.sort();
        let label = quantisation(stem).map(str::to_owned);
        Selection { files: files.into_iter().cloned().collect(), is_folder: false, label }
    };
    let mut models: Vec<Selection> = groups.into_iter().map(gguf).collect();
    models.extend(folder(files));
    models
}

/// The model of a repository that is wanted: by the name of its file, by its quantisation, or the usual one.
#[must_use]
pub(crate) fn choose(files: &[String], quant: Option<&str>, file: Option<&str>) -> Option<Selection> {
    let models = models(files);
    let find = |wanted: &str| {
        let named =
            models.iter().filter(|model| !model.is_folder && ends_in(without_shard(&model.files[0]), wanted));
        named.min_by_key(|model| model.files[0].len()).cloned()
    };
    match (file, quant) {
        (Some(file), _) => models.iter().find(|model| model.files.iter().any(|name| name == file)).cloned(),
        (None, Some(quant)) => find(quant),
        (None, None) => USUAL.iter().find_map(|quant| find(quant)).or_else(|| models.first().cloned()),
    }
}

/// What there is to choose from, for a message.
#[must_use]
pub(crate) fn choices(files: &[String]) -> String {
    let names: Vec<String> = models(files)
        .into_iter()
        .map(|model| model.label.unwrap_or_else(|| model.files.first().cloned().unwrap_or_default()))
        .collect();
    if names.is_empty() { "no model in GGUF or safetensors".to_owned() } else { names.join(", ") }
}

fn is_model_gguf(file: &str) -> bool {
    let name = file.rsplit('/').next().unwrap_or(file).to_ascii_lowercase();
    // Image projectors, prediction heads and importance matrices are no models of their own.
    let part =
        ["mmproj", "mtp-", "imatrix"].iter().any(|part| name.starts_with(part)) || name.contains("imatrix");
    name.ends_with(".gguf") && !part
}

fn folder(files: &[String]) -> Option<Selection> {
    let weights = |file: &&String| file.ends_with(".safetensors") && !file.contains('/');
    let mut chosen: Vec<String> = files.iter().filter(weights).cloned().collect();
    if chosen.is_empty() || !files.iter().any(|file| file == "config.json") {
        return None;
    }
    chosen.sort();
    chosen.extend(files.iter().filter(|file| FOLDER_FILES.contains(&file.as_str())).cloned());
    Some(Selection { files: chosen, is_folder: true, label: None })
}

/// A file's path without `-00001-of-00003` and ending.
fn without_shard(file: &str) -> &str {
    let stem = file.rsplit_once('.').map_or(file, |(stem, _)| stem);
    let Some((rest, count)) = stem.rsplit_once("-of-") else { return stem };
    match rest.rsplit_once('-') {
        Some((name, number)) if is_number(number) && is_number(count) => name,
        _ => stem,
    }
}

fn is_number(text: &str) -> bool {
    text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// Whether a name ends in a quantisation, behind a separator.
fn ends_in(stem: &str, quant: &str) -> bool {
    let Some(at) = stem.len().checked_sub(quant.len()) else { return false };
    let matches = stem.is_char_boundary(at) && stem[at..].eq_ignore_ascii_case(quant);
    matches && (at == 0 || stem[..at].ends_with(['-', '.', '_', '/']))
}

/// The quantisation at the end of a name, with what its publisher puts before it (`UD-Q4_K_XL`).
fn quantisation(stem: &str) -> Option<&str> {
    let name = stem.rsplit('/').next().unwrap_or(stem);
    let at = name.rfind(['-', '.'])?;
    let (before, quant) = (&name[..at], &name[at + 1..]);
    let upper = quant.to_ascii_uppercase();
    let is_quant = ["Q", "IQ", "TQ"].iter().any(|kind| {
        upper.strip_prefix(kind).is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
    }) || ["F16", "BF16", "F32"].contains(&upper.as_str())
        || upper.starts_with("MXFP4");
    let prefixed = before.strip_suffix("UD").is_some_and(|rest| rest.ends_with(['-', '.']));
    is_quant.then(|| if prefixed { &name[at - 2..] } else { quant })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn the_quantisation_named_is_taken_and_the_usual_one_otherwise() {
        let all = files(&[
            "README.md",
            "Qwen3.5-4B-Q8_0.gguf",
            "Qwen3.5-4B-Q4_K_M.gguf",
            "Qwen3.5-4B-UD-Q4_K_XL.gguf",
            "mmproj-F16.gguf",
            "mtp-Qwen3.5-4B-Q8_0.gguf",
        ]);
        let chosen = |quant: Option<&str>| choose(&all, quant, None).map(|model| model.files);
        assert_eq!(chosen(None), Some(files(&["Qwen3.5-4B-Q4_K_M.gguf"])));
        assert_eq!(chosen(Some("q8_0")), Some(files(&["Qwen3.5-4B-Q8_0.gguf"])));
        assert_eq!(chosen(Some("Q4_K_XL")), Some(files(&["Qwen3.5-4B-UD-Q4_K_XL.gguf"])));
        assert_eq!(chosen(Some("K_M")), Some(files(&["Qwen3.5-4B-Q4_K_M.gguf"])));
        assert_eq!(chosen(Some("Q5_K_M")), None);
        assert_eq!(choose(&all, None, Some("Qwen3.5-4B-Q8_0.gguf")).unwrap().label.as_deref(), Some("Q8_0"));
        assert_eq!(choices(&all), "Q4_K_M, Q8_0, UD-Q4_K_XL");
    }

    #[test]
    fn shards_belong_together() {
        let all = files(&["d/m-Q8_0-00002-of-00002.gguf", "d/m-Q8_0-00001-of-00002.gguf", "m-Q4_0.gguf"]);
        let chosen = choose(&all, Some("Q8_0"), None).unwrap();
        assert_eq!(chosen.files, files(&["d/m-Q8_0-00001-of-00002.gguf", "d/m-Q8_0-00002-of-00002.gguf"]));
        assert_eq!(without_shard("a-1-of-2.gguf"), "a-1-of-2");
    }

    #[test]
    fn a_folder_is_a_model_if_it_has_weights_and_a_configuration() {
        let all =
            files(&["model.safetensors", "config.json", "tokenizer.json", "onnx/model.safetensors", "x.py"]);
        let chosen = choose(&all, None, None).unwrap();
        assert!(chosen.is_folder);
        assert_eq!(chosen.files, files(&["model.safetensors", "config.json", "tokenizer.json"]));
        assert_eq!(choose(&files(&["model.safetensors"]), None, None), None);
        assert_eq!(choose(&all, Some("Q4_0"), None), None);
        assert_eq!(choices(&[]), "no model in GGUF or safetensors");
    }

    #[test]
    fn quantisations_are_read_off_names() {
        for (stem, expected) in [
            ("a/Qwen3.5-4B-Q4_K_M", Some("Q4_K_M")),
            ("m.IQ4_XS", Some("IQ4_XS")),
            ("m-UD-IQ2_XXS", Some("UD-IQ2_XXS")),
            ("m-bf16", Some("bf16")),
            ("Qwen3.5-4B", None),
            ("model", None),
        ] {
            assert_eq!(quantisation(stem), expected, "{stem}");
        }
    }
}
