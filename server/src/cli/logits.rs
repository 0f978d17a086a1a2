//! `millpond logits`: logits of every position, for anyone who wants to compare.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::Context;
use millpond::model::Model;
use millpond::state::memory::KvType;

use super::args::LogitsArgs;
use super::evaluate::Evaluator;
use super::failure::usage;
use super::settings::{self, Compute};

/// Runs the command.
///
/// # Errors
/// Wrong usage, a model that does not load, an output that cannot be written.
pub(crate) fn run(args: &LogitsArgs) -> anyhow::Result<()> {
    let compute = Compute::new(&args.compute, KvType::F32)?.with_arithmetic(args.arithmetic);
    let model = settings::load_model(&args.model)?;
    let ids = token_ids(args, &model)?;
    if ids.is_empty() {
        return Err(usage("no tokens"));
    }
    let mut evaluator = Evaluator::new(&model, &compute, ids.len().max(model.spec.context))?;
    let mut output = TensorFile::create(&args.output, ids.len(), model.spec.vocab)?;
    let failed = || format!("cannot write {}", args.output.display());
    evaluator.logits(&ids, 0, |_, row| output.row(row)).with_context(failed)?;
    output.finish().with_context(failed)
}

fn token_ids(args: &LogitsArgs, model: &Model) -> anyhow::Result<Vec<u32>> {
    if let Some(ids) = &args.ids {
        return parse_ids(ids);
    }
    let text = settings::text_of(args.text.as_deref(), args.file.as_deref())?.unwrap_or_default();
    Ok(settings::tokenizer(model)?.encode(&text, true)?)
}

fn parse_ids(text: &str) -> anyhow::Result<Vec<u32>> {
    text.split(|c: char| c == ',' || c.is_whitespace())
        .filter(|word| !word.is_empty())
        .map(|word| word.parse().map_err(|_| usage(format!("--ids: '{word}' is no token id"))))
        .collect()
}

/// A safetensors file with one f32 matrix, written row by row.
struct TensorFile {
    writer: BufWriter<File>,
}

impl TensorFile {
    fn create(path: &Path, rows: usize, cols: usize) -> anyhow::Result<TensorFile> {
        let bytes = rows as u64 * cols as u64 * 4;
        let header = serde_json::json!({
            "logits": { "dtype": "F32", "shape": [rows, cols], "data_offsets": [0, bytes] }
        });
        let mut header = header.to_string();
        // Data starts at a multiple of eight, as the format recommends.
        while !header.len().is_multiple_of(8) {
            header.push(' ');
        }
        let file = File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
        let mut writer = BufWriter::new(file);
        writer.write_all(&(header.len() as u64).to_le_bytes())?;
        writer.write_all(header.as_bytes())?;
        Ok(TensorFile { writer })
    }

    fn row(&mut self, row: &[f32]) -> anyhow::Result<()> {
        for value in row {
            self.writer.write_all(&value.to_le_bytes())?;
        }
        Ok(())
    }

    fn finish(self) -> std::io::Result<()> {
        self.writer.into_inner()?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use millpond::file::mmap::{Access, open};
    use millpond::file::safetensors::SafetensorsFile;

    #[test]
    fn ids_may_be_separated_by_commas_or_spaces() {
        assert_eq!(parse_ids("1, 2,3 4").unwrap(), [1, 2, 3, 4]);
        assert!(parse_ids("1,x").is_err());
        assert!(parse_ids("-1").is_err());
    }

    #[test]
    fn the_file_is_safetensors() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out.safetensors");
        let mut file = TensorFile::create(&path, 2, 3).unwrap();
        file.row(&[0.0, 1.0, -2.5]).unwrap();
        file.row(&[3.0, f32::INFINITY, 5.0]).unwrap();
        file.finish().unwrap();
        let file = SafetensorsFile::parse(open(&path, Access::Map).unwrap()).unwrap();
        let tensor = &file.tensors()[0];
        assert_eq!((tensor.name.as_str(), tensor.shape.as_slice()), ("logits", [2, 3].as_slice()));
        let bytes = &file.source().bytes()[tensor.range.clone()];
        assert_eq!(bytes[8..12], (-2.5f32).to_le_bytes());
        assert_eq!(bytes.len(), 24);
    }
}
