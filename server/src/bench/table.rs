//! Results as a table for people or as JSON, one object a line.

use std::io::Write;

use super::linear::{Header, Row, Way};
use crate::cli::output::line;

/// Prints results as they come.
pub(super) struct Table {
    json: bool,
}

impl Table {
    pub(super) fn new(json: bool) -> Table {
        Table { json }
    }

    pub(super) fn header(&mut self, header: &Header) -> anyhow::Result<()> {
        if self.json {
            return line(&serde_json::to_string(header)?);
        }
        let mut out = std::io::stdout().lock();
        writeln!(
            out,
            "\n{}: {} key heads, {} value heads, state {:.2} MiB a sequence and layer, kept in {}; {} threads, {}, cache {} MiB{}",
            header.shape,
            header.key_heads,
            header.value_heads,
            header.state_bytes as f64 / f64::from(1 << 20),
            header.state_type,
            header.threads,
            header.isa,
            header.cache_bytes >> 20,
            header.load.map_or(String::new(), |load| format!(", load {load:.1}")),
        )?;
        let part = if header.mixer { "convolution, gates and delta rule" } else { "the delta rule" };
        writeln!(
            out,
            "memory now: read {:.1}, copy past caches {:.1}, update in place {:.1} GB/s; a step is {part}",
            header.rates.read / 1e9,
            header.rates.copy / 1e9,
            header.rates.update / 1e9,
        )?;
        writeln!(
            out,
            "{:>5}  {:<16} {:>9} {:>9} {:>9} {:>7}  {:>5}/{:<6} {:>9} {:>6}  {:>6} {:>6} {:>6}  compared with",
            "batch",
            "way",
            "us",
            "slowest",
            "MB",
            "GB/s",
            "read",
            "update",
            "bound us",
            "share",
            "ratio",
            "bytes",
            "bound",
        )?;
        Ok(())
    }

    pub(super) fn row(&mut self, row: &Row) -> anyhow::Result<()> {
        if self.json {
            return line(&serde_json::to_string(row)?);
        }
        let mut out = std::io::stdout().lock();
        let ratio = |value: Option<f64>| value.map_or(String::new(), |value| format!("{value:.2}"));
        writeln!(
            out,
            "{:>5}  {:<16} {:>9.1} {:>9.1} {:>9.2} {:>7.1}  {:>5.1}/{:<6.1} {:>9.1} {:>5.0}%  {:>6} {:>6} {:>6}  {}",
            row.batch,
            name(row.way),
            row.us,
            row.slowest_us,
            (row.bytes_read + row.bytes_written) as f64 / 1e6,
            row.gbs,
            row.rates.read / 1e9,
            row.rates.update / 1e9,
            row.bound_us,
            100.0 * row.share,
            ratio(row.ratio),
            ratio(row.byte_ratio),
            ratio(row.bound_ratio),
            row.against.map_or(String::new(), name),
        )?;
        Ok(())
    }
}

fn name(way: Way) -> String {
    match way {
        Way::Recurrence => "recurrence".to_owned(),
        Way::Buffered { interval } => format!("buffer {interval}"),
        Way::VerifyBuffer { tokens } => format!("verify {tokens}"),
        Way::VerifySnapshots { tokens } => format!("snapshots {tokens}"),
    }
}
