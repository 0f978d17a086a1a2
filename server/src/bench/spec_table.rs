//! Results of `bench spec` as a table for people or as JSON, one object a line.

use std::io::Write;

use super::spec::{Header, Row};
use crate::cli::output::line;

/// Prints results.
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
            "\n{}: {} tokens {} times, drafts by {}; {} threads, {}",
            header.model, header.tokens, header.repetitions, header.source, header.threads, header.isa,
        )?;
        if !header.simulated.is_empty() {
            let chances: Vec<String> = header.simulated.iter().map(f64::to_string).collect();
            let given = if header.conditional { ", given that those before it stand" } else { "" };
            let chances = chances.join(", ");
            writeln!(
                out,
                "simulated: the draft token at each place stands with a chance of {chances}{given}"
            )?;
        }
        writeln!(
            out,
            "{:>8}  {:>8} {:>11}  {:>9} {:>10} {:>8}  {:>8} {:>6}",
            "drafts", "accepted", "tokens/step", "draft ms", "verify ms", "x plain", "tok/s", "ratio",
        )?;
        Ok(())
    }

    pub(super) fn row(&mut self, row: &Row) -> anyhow::Result<()> {
        if self.json {
            return line(&serde_json::to_string(row)?);
        }
        let mut out = std::io::stdout().lock();
        let acceptance = row.acceptance.map_or(String::new(), |share| format!("{:.0}%", 100.0 * share));
        writeln!(
            out,
            "{:>8}  {:>8} {:>11.2}  {:>9.2} {:>10.2} {:>8.2}  {:>8.1} {:>6.2}",
            row.drafts.to_string(),
            acceptance,
            row.tokens_per_step,
            row.draft_ms,
            row.verify_ms,
            row.verify_ratio,
            row.tokens_per_second,
            row.ratio,
        )?;
        Ok(())
    }
}
