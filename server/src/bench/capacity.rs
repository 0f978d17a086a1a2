//! `millpond bench capacity`: how many sequences with drafts fit a budget, with a state for each draft and with the
//! buffer. The sequences are really allocated, and a round of verification runs over all of them.

use std::io::Write;

use clap::Args;
use millpond::par::Team;
use millpond::state::memory::StateType;
use millpond_simd::{Isa, Kernels};
use serde::Serialize;

use super::shapes::Shape;
use super::snapshots::Snapshots;
use super::streams::{Part, Setup, Streams};
use super::{confirmed, median};

/// What to allocate.
#[derive(Clone, Debug, Args)]
pub struct CapacityArgs {
    /// Memory for linear states and logs, e.g. 8GiB or 500MB
    #[arg(long, default_value = "1GiB", value_parser = bytes)]
    pub budget: u64,
    /// Drafts of a window
    #[arg(long = "spec-draft-n-max", default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..=31))]
    pub drafts: u8,
    /// Shape of the linear layers: 0.8b, 4b, 9b, 27b, 35b-a3b, next-80b
    #[arg(long, value_delimiter = ',', default_values = ["0.8b", "4b"])]
    pub shape: Vec<Shape>,
    /// Tokens between folds
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=512))]
    pub buffer: u16,
    /// Threads; 0 for one on each core
    #[arg(short, long, default_value_t = 0)]
    pub threads: usize,
    /// Print JSON, one object a line
    #[arg(long)]
    pub json: bool,
}

/// Bytes as people write them.
fn bytes(text: &str) -> Result<u64, String> {
    let (number, unit) = text.split_at(text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len()));
    let scale: u64 = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "kb" => 1000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        _ => return Err(format!("{unit:?} is no unit of memory; KiB, MiB, GiB, KB, MB and GB are")),
    };
    let number: u64 = number.trim().parse().map_err(|_| format!("{number:?} is no number"))?;
    number.checked_mul(scale).ok_or_else(|| format!("{text} is more than any machine has"))
}

/// One way of keeping what a rejected draft must not change.
#[derive(Clone, Debug, Serialize)]
pub struct Filled {
    /// Shape of the layers.
    pub shape: &'static str,
    /// How the state is kept.
    pub way: String,
    /// Sequences that fit.
    pub slots: usize,
    /// Full states of each.
    pub states: usize,
    /// Log entries each has room for.
    pub log_entries: usize,
    /// Bytes of each sequence's states and log.
    pub bytes_each: usize,
    /// Bytes of each sequence's convolution inputs, outside the budget.
    pub conv_bytes_each: usize,
    /// What all sequences hold by our own count, convolution inputs and operands included.
    pub bytes: usize,
    /// What the system says the process grew by.
    pub resident_bytes: Option<u64>,
    /// Milliseconds of one round of verification over all slots and layers, the median of a few.
    pub round_ms: f64,
    /// Tokens confirmed in a second, at 60 % acceptance, were the linear states all there is.
    pub tokens_per_second: f64,
}

/// Rounds of verification.
const ROUNDS: usize = 5;

/// Runs the benchmark and prints its table.
///
/// # Errors
/// Too little memory, or a closed output.
pub fn run(args: &CapacityArgs) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    for &shape in &args.shape {
        let rows = measure(args, shape)?;
        if args.json {
            for row in &rows {
                writeln!(out, "{}", serde_json::to_string(row)?)?;
            }
            continue;
        }
        writeln!(
            out,
            "\n{}: {} linear layers, {} drafts, budget {:.0} MiB of linear states and logs",
            shape.name,
            shape.layers,
            args.drafts,
            mib(args.budget)
        )?;
        writeln!(
            out,
            "{:<20} {:>6} {:>7} {:>8} {:>10} {:>10} {:>10} {:>10} {:>10} {:>9} {:>7}",
            "way",
            "slots",
            "states",
            "entries",
            "MiB each",
            "conv MiB",
            "all MiB",
            "RSS MiB",
            "round ms",
            "tok/s",
            "fewer"
        )?;
        let most = rows.first().map_or(0, |row| row.bytes_each);
        for row in &rows {
            writeln!(
                out,
                "{:<20} {:>6} {:>7} {:>8} {:>10.2} {:>10.2} {:>10.1} {:>10} {:>10.2} {:>9.0} {:>6.2}x",
                row.way,
                row.slots,
                row.states,
                row.log_entries,
                mib(row.bytes_each as u64),
                mib(row.conv_bytes_each as u64),
                mib(row.bytes as u64),
                row.resident_bytes.map_or("?".to_owned(), |bytes| format!("{:.1}", mib(bytes))),
                row.round_ms,
                row.tokens_per_second,
                most as f64 / row.bytes_each as f64,
            )?;
        }
    }
    Ok(())
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// Fills the budget each way.
///
/// # Errors
/// Too little memory.
pub fn measure(args: &CapacityArgs, shape: Shape) -> anyhow::Result<Vec<Filled>> {
    let isa = Isa::detect();
    let kernels =
        Kernels::for_isa(isa).ok_or_else(|| anyhow::anyhow!("this processor does not have {isa}"))?;
    let team = Team::new(args.threads)?;
    let (tokens, interval) = (1 + usize::from(args.drafts), usize::from(args.buffer));
    let budget = usize::try_from(args.budget).unwrap_or(usize::MAX);
    let mut rows = vec![with_snapshots(kernels, &team, shape, tokens, budget)?];
    rows.push(with_buffer(kernels, &team, shape, (interval, tokens), budget)?);
    // As many entries as tokens between folds: pending and left-over rows have to fit too, so it folds earlier.
    if interval > 2 * tokens {
        rows.push(with_buffer(kernels, &team, shape, (interval - 2 * tokens, tokens), budget)?);
    }
    Ok(rows)
}

fn with_snapshots(
    kernels: &'static Kernels,
    team: &Team,
    shape: Shape,
    tokens: usize,
    budget: usize,
) -> anyhow::Result<Filled> {
    let before = resident();
    let mut all = Snapshots::new(kernels, shape, shape.layers, 1, tokens)?;
    let each = all.bytes_each();
    while (all.len() + 1).saturating_mul(each) <= budget {
        all.add()?;
    }
    let mut times = Vec::new();
    let mut confirmed_tokens = 0;
    for round in 0..ROUNDS {
        let accepted = |stream: usize| confirmed(tokens, round, stream);
        times.push(all.step(team, accepted).0.as_secs_f64());
        confirmed_tokens += (0..all.len()).map(accepted).sum::<usize>();
    }
    let resident_bytes = growth(before);
    Ok(Filled {
        shape: shape.name,
        way: format!("{} states", tokens),
        slots: all.len(),
        states: tokens,
        log_entries: 0,
        bytes_each: each,
        conv_bytes_each: 0,
        bytes: all.len() * each,
        resident_bytes,
        round_ms: median(times.iter().copied()) * 1e3,
        tokens_per_second: confirmed_tokens as f64 / times.iter().sum::<f64>(),
    })
}

fn with_buffer(
    kernels: &'static Kernels,
    team: &Team,
    shape: Shape,
    (interval, tokens): (usize, usize),
    budget: usize,
) -> anyhow::Result<Filled> {
    let before = resident();
    let setup = Setup {
        shape,
        layers: shape.layers,
        batch: 1,
        interval,
        rows: tokens,
        part: Part::State,
        state_type: StateType::F32,
    };
    let mut all = Streams::new(kernels, setup)?;
    let usage = all.usage();
    let each = usage.base + usage.log;
    while (all.len() + 1).saturating_mul(each) <= budget {
        all.add(all.len())?;
    }
    let (mut times, mut confirmed_tokens) = (Vec::new(), 0);
    // Whole fold cycles, or nearly so.
    let rounds = ROUNDS.max(interval);
    for round in 0..rounds {
        times.push(all.step(team, |stream| confirmed(tokens, round, stream))?.time.as_secs_f64());
        confirmed_tokens += (0..all.len()).map(|stream| confirmed(tokens, round, stream)).sum::<usize>();
    }
    let resident_bytes = growth(before);
    Ok(Filled {
        shape: shape.name,
        way: format!("buffer, fold at {interval}"),
        slots: all.len(),
        states: 1,
        log_entries: interval + 2 * tokens,
        bytes_each: each,
        conv_bytes_each: usage.conv,
        bytes: all.len() * usage.total(),
        resident_bytes,
        round_ms: median(times.iter().copied()) * 1e3,
        tokens_per_second: confirmed_tokens as f64 / times.iter().sum::<f64>(),
    })
}

/// Resident bytes of this process, where the system says.
fn resident() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? << 10)
}

fn growth(before: Option<u64>) -> Option<u64> {
    Some(resident()?.saturating_sub(before?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_read_as_people_write_them() {
        assert_eq!(bytes("8GiB"), Ok(8 << 30));
        assert_eq!(bytes("500MB"), Ok(500_000_000));
        assert_eq!(bytes("64m"), Ok(64 << 20));
        assert_eq!(bytes("17"), Ok(17));
        for wrong in ["", "GiB", "8 parsecs", "-1GiB", "99999999999GiB"] {
            assert!(bytes(wrong).is_err(), "{wrong}");
        }
    }

    /// Four drafts: 3.8 times the sequences with two value heads to a key head, 3.5 times with one.
    #[test]
    fn the_buffer_holds_several_times_the_sequences() {
        for (name, at_least) in [("0.8b", 3.5), ("4b", 3.8)] {
            let shape = Shape { layers: 1, ..name.parse().unwrap() };
            let args = CapacityArgs {
                budget: 64 << 20,
                drafts: 4,
                shape: vec![shape],
                buffer: 16,
                threads: 2,
                json: false,
            };
            let rows = measure(&args, shape).unwrap();
            assert_eq!((rows[0].states, rows[1].states, rows[1].log_entries), (5, 1, 26));
            assert!(rows[0].bytes_each as f64 >= at_least * rows[1].bytes_each as f64);
            assert_eq!(rows[2].log_entries, 16);
            for row in &rows {
                assert!(
                    row.slots * row.bytes_each <= 64 << 20 && (row.slots + 1) * row.bytes_each > 64 << 20
                );
                assert!(row.round_ms > 0.0 && row.tokens_per_second > 0.0);
            }
        }
    }
}
