//! From any model to a packed file.

use std::path::Path;

use super::encode::write_error;
use super::source::Source;
use super::{MixtureOptions, OnProgress, QuantizeError, QuantizeType, Report, Work, refuse_same_file};
use crate::file::gguf_write::{GgufWriter, OwnedValue};
use crate::file::output::OutputFile;
use crate::file::packed::PackedWriter;
use crate::text::tables;

/// How to pack.
#[derive(Clone, Debug, Default)]
pub struct PackOptions {
    /// What to quantise to; the tensors stay as they are without it.
    pub kind: Option<QuantizeType>,
    /// Departures from the type's mixture.
    pub mixture: MixtureOptions,
    /// Threads; 0 for one per physical core.
    pub threads: usize,
    /// Whether tensors that are quantised already may be quantised again, with the errors of both.
    pub requantize: bool,
}

/// Keys whose contents are in the tokenizer's section.
const IN_TABLES: [&str; 4] =
    ["tokenizer.ggml.tokens", "tokenizer.ggml.token_type", "tokenizer.ggml.merges", "tokenizer.ggml.scores"];

/// Packs a model, a GGUF file or a checkpoint folder, into one packed file.
///
/// # Errors
/// [`QuantizeError`]; no output is left then, and a file that was there before is untouched.
pub fn pack(
    input: &Path,
    output: &Path,
    options: &PackOptions,
    on_progress: OnProgress<'_>,
) -> Result<Report, QuantizeError> {
    let mut source = Source::open(input)?;
    refuse_same_file(&source, output)?;
    let formats = source.formats(options.kind, options.mixture);
    let failed = write_error(output);
    let vocabulary = source.vocabulary.take();
    let tables = vocabulary.map(|vocabulary| tables::encode(vocabulary, source.composes_text)).transpose()?;
    let mut writer = PackedWriter::new(keys(&source, options.kind), tables);
    for (tensor, format) in source.tensors.iter().zip(&formats) {
        writer.add_tensor(&tensor.name, &tensor.shape, *format).map_err(failed)?;
    }
    let mut out = OutputFile::create(output).map_err(failed)?;
    let mut weights = writer.start(&mut out).map_err(failed)?;
    let work = Work { source: &source, formats: &formats, threads: options.threads };
    work.run(options.requantize, on_progress, &mut |index, bytes| {
        weights.write_part(&mut out, index, bytes).map_err(failed)
    })?;
    let page = weights.finish().map_err(failed)?;
    out.write_at(0, &page).map_err(failed)?;
    out.finish().map_err(failed)?;
    Ok(Report::of(&source, &formats))
}

/// The keys of the source without the tokenizer's tables.
fn keys(source: &Source, kind: Option<QuantizeType>) -> GgufWriter {
    let mut writer = GgufWriter::new();
    for (key, value) in source.keys.iter().filter(|(key, _)| !IN_TABLES.contains(&key.as_str())) {
        writer.set(key, value.clone());
    }
    // Otherwise told by the number of tokens.
    let vocab = u32::try_from(source.vocab).unwrap_or(u32::MAX);
    writer.set(&format!("{}.vocab_size", source.arch), OwnedValue::U32(vocab));
    if let Some(kind) = kind {
        writer.set("general.file_type", OwnedValue::U32(kind.file_type()));
    }
    writer
}
