//! What a measurement says, for people and for programs.

use millpond::model::Model;
use millpond_simd::Isa;
use serde::Serialize;

use super::args::BenchOutput;
use super::output;

/// What was measured.
#[derive(Clone, Debug)]
pub(crate) struct Test {
    /// Reading a prompt, or writing.
    pub(crate) prefill: bool,
    /// Tokens read, or written by each stream.
    pub(crate) tokens: usize,
    /// Tokens that stood before.
    pub(crate) depth: usize,
    /// Streams at once.
    pub(crate) streams: usize,
}

impl Test {
    /// `pp512`, `tg128`, `tg128x8`, `tg128 @ d4096`.
    fn name(&self) -> String {
        let mut name = format!("{}{}", if self.prefill { "pp" } else { "tg" }, self.tokens);
        if self.streams > 1 {
            name.push_str(&format!("x{}", self.streams));
        }
        if self.depth > 0 {
            name.push_str(&format!(" @ d{}", self.depth));
        }
        name
    }
}

/// A test and how long it took.
#[derive(Clone, Debug)]
pub(crate) struct Measurement {
    /// The test.
    pub(crate) test: Test,
    /// Seconds of each repetition.
    pub(crate) seconds: Vec<f64>,
    /// Bytes a repetition had to read; 0 where arithmetic is what counts.
    pub(crate) bytes: f64,
    /// Threads.
    pub(crate) threads: usize,
    /// Kernels.
    pub(crate) isa: Isa,
    /// Bytes per second that memory gave, measured before.
    pub(crate) bandwidth: f64,
}

/// A measurement as it is written.
#[derive(Debug, Serialize)]
struct Record {
    model_name: String,
    model_type: String,
    model_size: u64,
    model_n_params: u64,
    backend: String,
    n_threads: usize,
    test: String,
    n_prompt: usize,
    n_gen: usize,
    n_depth: usize,
    n_streams: usize,
    /// Mean over the repetitions, all streams together.
    avg_ts: f64,
    stddev_ts: f64,
    samples_ts: Vec<f64>,
    /// Bytes per second a decoding step reads at the mean rate.
    read_bytes_per_second: Option<f64>,
    /// Bytes per second that memory gave.
    memory_bandwidth: f64,
}

impl Record {
    fn new(model: &Model, measured: &Measurement) -> Record {
        let test = &measured.test;
        let tokens = (test.tokens * test.streams) as f64;
        let rates: Vec<f64> = measured.seconds.iter().map(|seconds| tokens / seconds.max(1e-9)).collect();
        let (mean, deviation) = mean_and_deviation(&rates);
        Record {
            model_name: model.info.name.clone(),
            model_type: format!("{} {}", model.spec.arch, model.info.quantization().unwrap_or("-")),
            model_size: model.info.bytes,
            model_n_params: model.info.parameters,
            backend: format!("CPU {}", measured.isa),
            n_threads: measured.threads,
            test: test.name(),
            n_prompt: if test.prefill { test.tokens } else { 0 },
            n_gen: if test.prefill { 0 } else { test.tokens },
            n_depth: test.depth,
            n_streams: test.streams,
            avg_ts: mean,
            stddev_ts: deviation,
            samples_ts: rates,
            read_bytes_per_second: (measured.bytes > 0.0).then(|| measured.bytes * mean / tokens),
            memory_bandwidth: measured.bandwidth,
        }
    }

    fn cells(&self) -> [String; 9] {
        let read = self.read_bytes_per_second;
        [
            format!("{} {}", self.model_name, self.model_type),
            output::bytes(self.model_size),
            format!("{:.2} M", self.model_n_params as f64 / 1e6),
            self.backend.clone(),
            self.n_threads.to_string(),
            self.test.clone(),
            format!("{:.2} ± {:.2}", self.avg_ts, self.stddev_ts),
            read.map_or(String::new(), |bytes| format!("{:.1}", bytes / 1e9)),
            read.map_or(String::new(), |bytes| format!("{:.0} %", 100.0 * bytes / self.memory_bandwidth)),
        ]
    }
}

const HEADINGS: [&str; 9] =
    ["model", "size", "params", "backend", "threads", "test", "t/s", "GB/s", "of bandwidth"];

/// Prints measurements.
///
/// # Errors
/// The reader of the output has gone.
pub(crate) fn print(model: &Model, results: &[Measurement], form: BenchOutput) -> anyhow::Result<()> {
    let records: Vec<Record> = results.iter().map(|measured| Record::new(model, measured)).collect();
    match form {
        BenchOutput::Md => markdown(&records),
        BenchOutput::Json => output::line(&serde_json::to_string_pretty(&records)?),
        BenchOutput::Jsonl => {
            records.iter().try_for_each(|record| output::line(&serde_json::to_string(record)?))
        }
        BenchOutput::Csv => csv(&records),
    }
}

fn markdown(records: &[Record]) -> anyhow::Result<()> {
    let rows: Vec<[String; 9]> = records.iter().map(Record::cells).collect();
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([HEADINGS[column].len()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..HEADINGS.len()).map(width).collect();
    let line = |cells: Vec<String>| {
        let padded = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        format!("| {} |", padded.collect::<Vec<_>>().join(" | "))
    };
    output::line(&line(HEADINGS.iter().map(|heading| (*heading).to_owned()).collect()))?;
    output::line(&line(widths.iter().map(|width| "-".repeat(*width)).collect()))?;
    rows.into_iter().try_for_each(|row| output::line(&line(row.to_vec())))?;
    match records.first() {
        Some(record) => output::line(&format!("\nmemory reads {:.1} GB/s", record.memory_bandwidth / 1e9)),
        None => Ok(()),
    }
}

fn csv(records: &[Record]) -> anyhow::Result<()> {
    let quoted = |text: &str| format!("\"{}\"", text.replace('"', "\"\""));
    for (index, record) in records.iter().enumerate() {
        let serde_json::Value::Object(fields) = serde_json::to_value(record)? else { continue };
        if index == 0 {
            output::line(&fields.keys().map(String::as_str).collect::<Vec<_>>().join(","))?;
        }
        let cells = fields.values().map(|value| match value {
            serde_json::Value::String(text) => quoted(text),
            serde_json::Value::Null => String::new(),
            other => quoted(&other.to_string()),
        });
        output::line(&cells.collect::<Vec<_>>().join(","))?;
    }
    Ok(())
}

fn mean_and_deviation(values: &[f64]) -> (f64, f64) {
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    if values.len() < 2 {
        return (mean, 0.0);
    }
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (mean, (squares / (count - 1.0)).sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_are_named_as_in_llama_bench() {
        let test = |prefill, tokens, depth, streams| Test { prefill, tokens, depth, streams }.name();
        assert_eq!(test(true, 512, 0, 1), "pp512");
        assert_eq!(test(false, 128, 4096, 8), "tg128x8 @ d4096");
    }

    #[test]
    fn deviation_is_that_of_a_sample() {
        let (mean, deviation) = mean_and_deviation(&[1.0, 2.0, 3.0]);
        assert_eq!((mean, deviation), (2.0, 1.0));
        assert_eq!(mean_and_deviation(&[5.0]), (5.0, 0.0));
    }
}
