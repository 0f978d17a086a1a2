//! From a model in floats to a smaller one: GGUF files that other programs read as well, and packed files.
//!
//! The input is read through the memory map and the output written as it comes, so memory does not grow with the model;
//! the output appears under its name only when it is whole.

mod encode;
mod error;
mod mixture;
mod pack;
pub(crate) mod source;

use std::ops::ControlFlow;
use std::path::Path;

use millpond_simd::quant::QFormat;

use self::encode::{Encoder, write_error};
use self::mixture::Mixture;
use self::source::Source;
use crate::file::gguf_write::{GgufWriter, OwnedValue};
use crate::file::output::OutputFile;
use crate::par::Team;

pub use error::QuantizeError;
pub use mixture::{MixtureOptions, QuantizeType, UnknownType};
pub use pack::{PackOptions, pack};

/// How to quantise.
#[derive(Clone, Debug)]
pub struct QuantizeOptions {
    /// What to quantise to.
    pub kind: QuantizeType,
    /// Departures from the type's mixture.
    pub mixture: MixtureOptions,
    /// Threads; 0 for one per physical core.
    pub threads: usize,
    /// Whether tensors that are quantised already may be quantised again, with the errors of both.
    pub requantize: bool,
}

impl QuantizeOptions {
    /// As many threads as there are cores, from floats only.
    pub fn new(kind: QuantizeType) -> QuantizeOptions {
        QuantizeOptions { kind, mixture: MixtureOptions::default(), threads: 0, requantize: false }
    }
}

/// How far the work is.
#[derive(Clone, Debug)]
pub struct Progress<'a> {
    /// The tensor at work.
    pub tensor: &'a str,
    /// Its position among all tensors.
    pub index: usize,
    /// Tensors in all.
    pub tensors: usize,
    /// Values done so far.
    pub done: u64,
    /// Values in all.
    pub total: u64,
}

/// Is told how far the work is, and says whether to go on.
pub type OnProgress<'a> = &'a mut dyn FnMut(&Progress<'_>) -> ControlFlow<()>;

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Tensors.
    pub tensors: usize,
    /// Values in them.
    pub values: u64,
    /// Bytes of tensors in the input.
    pub bytes_before: u64,
    /// Bytes of tensors in the output.
    pub bytes_after: u64,
    /// Tensors of each format in the output, and their bytes; most bytes first.
    pub formats: Vec<(&'static str, usize, u64)>,
}

impl Report {
    fn of(source: &Source, formats: &[QFormat]) -> Report {
        let mut report = Report {
            tensors: source.tensors.len(),
            values: source.values(),
            bytes_before: 0,
            bytes_after: 0,
            formats: Vec::new(),
        };
        for (tensor, format) in source.tensors.iter().zip(formats) {
            let bytes = tensor.bytes_in(*format);
            report.bytes_before += tensor.stored().map(|part| part.len() as u64).sum::<u64>();
            report.bytes_after += bytes;
            match report.formats.iter_mut().find(|entry| entry.0 == format.name()) {
                Some(entry) => (entry.1, entry.2) = (entry.1 + 1, entry.2 + bytes),
                None => report.formats.push((format.name(), 1, bytes)),
            }
        }
        report.formats.sort_by_key(|entry| std::cmp::Reverse(entry.2));
        report
    }
}

/// Quantises a model, a GGUF file or a checkpoint folder, into one GGUF file.
///
/// # Errors
/// [`QuantizeError`]; no output is left then, and a file that was there before is untouched.
pub fn quantize(
    input: &Path,
    output: &Path,
    options: &QuantizeOptions,
    on_progress: OnProgress<'_>,
) -> Result<Report, QuantizeError> {
    let source = Source::open(input)?;
    refuse_same_file(&source, output)?;
    let formats = source.formats(Some(options.kind), options.mixture);
    let failed = write_error(output);
    let mut writer = GgufWriter::new();
    for (key, value) in &source.keys {
        writer.set(key, value.clone());
    }
    writer.set("general.file_type", OwnedValue::U32(options.kind.file_type()));
    writer.set("general.quantization_version", OwnedValue::U32(2));
    for (tensor, format) in source.tensors.iter().zip(&formats) {
        writer.add_tensor(&tensor.name, &tensor.shape, *format).map_err(failed)?;
    }
    let mut out = OutputFile::create(output).map_err(failed)?;
    let mut data = writer.write_header(&mut out).map_err(failed)?;
    let work = Work { source: &source, formats: &formats, threads: options.threads };
    work.run(options.requantize, on_progress, &mut |_, bytes| {
        data.write_part(&mut out, bytes).map_err(failed)
    })?;
    data.finish().map_err(failed)?;
    out.finish().map_err(failed)?;
    Ok(Report::of(&source, &formats))
}

/// Writing over a file that is read through its map would feed the output to itself.
fn refuse_same_file(source: &Source, output: &Path) -> Result<(), QuantizeError> {
    let same = |file: &Path| match (file.canonicalize(), output.canonicalize()) {
        (Ok(file), Ok(output)) => file == output,
        _ => false,
    };
    match source.files.iter().any(|file| same(file)) {
        true => Err(QuantizeError::SameFile { path: output.to_owned() }),
        false => Ok(()),
    }
}

impl Source {
    /// The formats of all tensors in a model of a kind; as they are without one.
    fn formats(&self, kind: Option<QuantizeType>, options: MixtureOptions) -> Vec<QFormat> {
        let (blocks, tied_head) = (self.blocks, self.tied_head);
        let mixture = kind.map(|kind| Mixture { kind, blocks, tied_head, options });
        let format = |tensor: &source::SourceTensor| match mixture {
            Some(mixture) if tensor.shape.len() > 1 => {
                mixture.format(&tensor.name, tensor.format, tensor.cols)
            }
            _ => tensor.format,
        };
        self.tensors.iter().map(format).collect()
    }
}

/// Takes the position of a tensor and a part of its bytes.
type WriteTensor<'a> = &'a mut dyn FnMut(usize, &[u8]) -> Result<(), QuantizeError>;

/// All tensors of a model and what becomes of them.
struct Work<'a> {
    source: &'a Source,
    formats: &'a [QFormat],
    threads: usize,
}

impl Work<'_> {
    /// Encodes all tensors in order; `write` gets the position of the tensor and a part of its bytes.
    fn run(
        &self,
        requantize: bool,
        on_progress: OnProgress<'_>,
        write: WriteTensor<'_>,
    ) -> Result<(), QuantizeError> {
        let team = Team::new(self.threads)?;
        let encoder = Encoder { team: &team, requantize };
        let (tensors, total) = (self.source.tensors.len(), self.source.values());
        let mut done = 0;
        for (index, (tensor, format)) in self.source.tensors.iter().zip(self.formats).enumerate() {
            encoder.encode(tensor, *format, &mut |bytes, values| {
                write(index, bytes)?;
                done += values;
                let progress = Progress { tensor: &tensor.name, index, tensors, done, total };
                match on_progress(&progress) {
                    ControlFlow::Continue(()) => Ok(()),
                    ControlFlow::Break(()) => Err(QuantizeError::Interrupted),
                }
            })?;
        }
        Ok(())
    }
}
