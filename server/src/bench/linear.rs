//! `millpond bench linear`: one linear layer's state step, three ways.
//!
//! Every figure is a median over rounds; a round measures the machine's rates, then the two ways that a ratio
//! compares, so that ratios come from neighbouring moments. Steps rotate over copies of the layer that together are
//! at least four times the last cache, and buffered steps run whole fold cycles with their cursors advancing.

use std::time::Duration;

use clap::Args;
use millpond::par::Team;
use millpond::state::memory::StateType;
use millpond_simd::{Isa, Kernels};
use serde::Serialize;

use super::rates::{Probe, Rates, last_level_cache};
use super::shapes::Shape;
use super::snapshots::Snapshots;
use super::streams::{Part, Setup, Streams};
use super::table::Table;
use super::traffic::Traffic;
use super::{confirmed, median};
use crate::cli::args::DeviceName;

/// What to measure.
#[derive(Clone, Debug, Args)]
pub struct LinearArgs {
    /// Shapes of the layer: 0.8b, 4b, 9b, 27b, 35b-a3b, next-80b
    #[arg(long, value_delimiter = ',', default_values = ["0.8b", "4b"])]
    pub shape: Vec<Shape>,
    /// Sequences stepped together
    #[arg(long, value_delimiter = ',', default_values_t = [1, 2, 4, 8, 16, 32], value_parser = count(256))]
    pub batch: Vec<usize>,
    /// Tokens between folds; 1 is the recurrence
    #[arg(long, value_delimiter = ',', default_values_t = [1, 4, 8, 16, 32], value_parser = count(512))]
    pub buffer: Vec<usize>,
    /// Tokens of a verified window: one and the drafts
    #[arg(long, value_delimiter = ',', default_values_t = [2, 4, 8], value_parser = count(32))]
    pub verify: Vec<usize>,
    /// Threads; 0 for one on each core
    #[arg(short, long, default_value_t = 0)]
    pub threads: usize,
    /// What computes: the processor, or a CUDA card where the program was built for one
    #[arg(long, value_name = "NAME", default_value = "cpu", ignore_case = true)]
    pub device: DeviceName,
    /// Instruction-set level, or the best there is
    #[arg(long)]
    pub isa: Option<Isa>,
    /// Rounds of each comparison
    #[arg(long, default_value_t = 7, value_parser = count(1000))]
    pub rounds: usize,
    /// Measure convolution, normalisation and gates too
    #[arg(long)]
    pub mixer: bool,
    /// What buffered ways keep the state in, f32 or bf16; snapshots are in f32
    #[arg(long, value_name = "TYPE", default_value_t = StateType::F32)]
    pub state_type: StateType,
    /// Print JSON, one object a line
    #[arg(long)]
    pub json: bool,
}

fn count(most: u64) -> impl clap::builder::TypedValueParser<Value = usize> {
    use clap::builder::TypedValueParser;
    clap::value_parser!(u64).range(1..=most).map(|value| value as usize)
}

/// Fold interval of the verified windows.
pub(super) const VERIFY_INTERVAL: usize = 16;

/// Shortest stretch of steps that is timed as one.
const STRETCH: Duration = Duration::from_millis(30);

/// How a step keeps its state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "way")]
pub enum Way {
    /// Fold and read in every step.
    Recurrence,
    /// Read the base and a log.
    Buffered {
        /// Tokens between folds.
        interval: usize,
    },
    /// Verify a window on base and log.
    VerifyBuffer {
        /// Tokens of the window.
        tokens: usize,
    },
    /// Verify a window with one state for each token.
    VerifySnapshots {
        /// Tokens of the window.
        tokens: usize,
    },
}

/// A measured way.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// Shape of the layer.
    pub shape: &'static str,
    /// Sequences stepped together.
    pub batch: usize,
    /// Copies of the layer in rotation.
    pub layers: usize,
    /// How the state is kept.
    #[serde(flatten)]
    pub way: Way,
    /// Microseconds of one layer's step.
    pub us: f64,
    /// The slowest kind of step in a cycle, the one with most folds.
    pub slowest_us: f64,
    /// Bytes a step reads.
    pub bytes_read: u64,
    /// Bytes a step writes.
    pub bytes_written: u64,
    /// Bytes moved in a second, in 10^9.
    pub gbs: f64,
    /// The machine's rates in the same rounds.
    pub rates: Rates,
    /// Least microseconds for those bytes at those rates.
    pub bound_us: f64,
    /// That bound over the time.
    pub share: f64,
    /// What the ratios compare with.
    pub against: Option<Way>,
    /// Time of the other way over this one's.
    pub ratio: Option<f64>,
    /// The same of bytes.
    pub byte_ratio: Option<f64>,
    /// The same of the least times.
    pub bound_ratio: Option<f64>,
}

/// Runs the benchmark and prints rows as they come.
///
/// # Errors
/// Too little memory, an unknown instruction set, or a closed output.
pub fn run(args: &LinearArgs) -> anyhow::Result<()> {
    let mut table = Table::new(args.json);
    measure(args, &mut |event| match event {
        Event::Header(header) => table.header(header),
        Event::Row(row) => table.row(row),
    })
}

/// What a measurement reports as it goes.
pub enum Event<'a> {
    /// A shape is about to be measured.
    Header(&'a Header),
    /// A way was measured.
    Row(&'a Row),
}

/// The machine and what is measured on it.
#[derive(Clone, Debug, Serialize)]
pub struct Header {
    /// Shape of the layer.
    pub shape: &'static str,
    /// Key heads.
    pub key_heads: usize,
    /// Value heads.
    pub value_heads: usize,
    /// Bytes of one sequence's state in one layer, in f32.
    pub state_bytes: usize,
    /// What buffered ways keep it in.
    pub state_type: String,
    /// Threads.
    pub threads: usize,
    /// Instruction-set level.
    pub isa: String,
    /// Bytes of the last cache.
    pub cache_bytes: usize,
    /// Whether convolution and gates are part of a step.
    pub mixer: bool,
    /// Runnable processes of the machine, where it says.
    pub load: Option<f64>,
    /// Rates at the start.
    pub rates: Rates,
}

/// Measures every shape, batch and way.
///
/// # Errors
/// As for [`run`].
pub fn measure(
    args: &LinearArgs,
    report: &mut dyn FnMut(Event<'_>) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    if on_card(args, report)? {
        return Ok(());
    }
    let isa = args.isa.unwrap_or_else(Isa::detect);
    let kernels =
        Kernels::for_isa(isa).ok_or_else(|| anyhow::anyhow!("this processor does not have {isa}"))?;
    let team = Team::new(args.threads)?;
    let cache = last_level_cache();
    let mut probe = Probe::new(&team, isa, 4 * cache)?;
    for &shape in &args.shape {
        let spec = shape.linear();
        report(Event::Header(&Header {
            shape: shape.name,
            key_heads: shape.key_heads,
            value_heads: shape.value_heads,
            state_bytes: spec.state_bytes(),
            state_type: args.state_type.to_string(),
            threads: team.threads(),
            isa: isa.to_string(),
            cache_bytes: cache,
            mixer: args.mixer,
            load: load_average(),
            rates: probe.measure(&team),
        }))?;
        for &batch in &args.batch {
            let state_bytes = spec.state_bytes() / 4 * args.state_type.bytes();
            let layers = (4 * cache).div_ceil(batch * state_bytes);
            let part = if args.mixer { Part::Mixer } else { Part::State };
            let (team, rounds, state_type) = (&team, args.rounds, args.state_type);
            let bench = Bench { kernels, team, shape, layers, batch, part, state_type, rounds };
            for row in bench.run(&args.buffer, &args.verify, &mut probe)? {
                report(Event::Row(&row))?;
            }
        }
    }
    Ok(())
}

/// Measures on a card, if that was asked for.
#[cfg(feature = "cuda")]
fn on_card(
    args: &LinearArgs,
    report: &mut dyn FnMut(Event<'_>) -> anyhow::Result<()>,
) -> anyhow::Result<bool> {
    let wanted = match args.device {
        DeviceName::Cpu => false,
        DeviceName::Cuda => true,
        DeviceName::Auto => millpond_cuda::driver::driver_present(),
    };
    if wanted {
        super::cuda::measure(args, report)?;
    }
    Ok(wanted)
}

/// No card: an error where one was asked for.
#[cfg(not(feature = "cuda"))]
fn on_card(args: &LinearArgs, _: &mut dyn FnMut(Event<'_>) -> anyhow::Result<()>) -> anyhow::Result<bool> {
    anyhow::ensure!(args.device != DeviceName::Cuda, "--device cuda: this build has no CUDA backend");
    Ok(false)
}

/// Runnable processes over the last minute.
fn load_average() -> Option<f64> {
    std::fs::read_to_string("/proc/loadavg").ok()?.split(' ').next()?.parse().ok()
}

/// Comparisons of one shape and batch.
struct Bench<'a> {
    kernels: &'static Kernels,
    team: &'a Team,
    shape: Shape,
    layers: usize,
    batch: usize,
    part: Part,
    state_type: StateType,
    rounds: usize,
}

/// A stretch of steps: seconds and bytes of one layer's step.
#[derive(Clone, Debug)]
struct Stretch {
    seconds: f64,
    /// Seconds of each kind of step in a cycle.
    places: Vec<f64>,
    traffic: Traffic,
}

/// A way of keeping the state that can be stepped for a while.
trait Runs {
    fn stretch(&mut self, bench: &Bench<'_>) -> anyhow::Result<Stretch>;
}

/// Appends windows to buffered sequences.
struct Buffered {
    streams: Streams,
    /// Steps of a whole cycle of folds.
    cycle: usize,
    rows: usize,
    round: usize,
}

impl Runs for Buffered {
    fn stretch(&mut self, bench: &Bench<'_>) -> anyhow::Result<Stretch> {
        let (mut time, mut traffic, mut steps) = (Duration::ZERO, Traffic::default(), 0);
        // Steps of a cycle by place, so that the slowest place can be told from a slow moment over many rounds.
        let mut places = vec![Vec::new(); self.cycle];
        while steps == 0 || time < STRETCH {
            for place in &mut places {
                let (rows, round) = (self.rows, self.round);
                let step = self.streams.step(bench.team, |stream| confirmed(rows, round, stream))?;
                self.round += 1;
                time += step.time;
                traffic += step.traffic;
                steps += 1;
                place.push(step.time.as_secs_f64());
            }
        }
        let each = (steps * bench.layers) as f64;
        let places = places.into_iter().map(|place| median(place) / bench.layers as f64).collect();
        let traffic = Traffic { read: traffic.read / steps as u64, written: traffic.written / steps as u64 };
        Ok(Stretch { seconds: time.as_secs_f64() / each, places, traffic })
    }
}

/// Verifies windows by snapshots.
struct BySnapshots {
    snapshots: Snapshots,
    rows: usize,
    round: usize,
}

impl Runs for BySnapshots {
    fn stretch(&mut self, bench: &Bench<'_>) -> anyhow::Result<Stretch> {
        let (mut times, mut traffic) = (Vec::new(), Traffic::default());
        while times.iter().sum::<f64>() < STRETCH.as_secs_f64() {
            let (rows, round) = (self.rows, self.round);
            let (time, moved) = self.snapshots.step(bench.team, |stream| confirmed(rows, round, stream));
            self.round += 1;
            times.push(time.as_secs_f64());
            traffic += moved;
        }
        let (steps, layers) = (times.len() as u64, bench.layers as f64);
        Ok(Stretch {
            seconds: times.iter().sum::<f64>() / times.len() as f64 / layers,
            places: vec![median(times.iter().copied()) / layers],
            traffic: Traffic { read: traffic.read / steps, written: traffic.written / steps },
        })
    }
}

impl Bench<'_> {
    fn buffered(&self, interval: usize, rows: usize, cycle: usize) -> anyhow::Result<Box<dyn Runs>> {
        let Bench { shape, layers, batch, part, state_type, .. } = *self;
        let setup = Setup { shape, layers, batch, interval, rows, part, state_type };
        let mut streams = Streams::new(self.kernels, setup)?;
        // From empty logs to the rhythm of later cycles.
        for round in 0..cycle {
            streams.step(self.team, |stream| confirmed(rows, round, stream))?;
        }
        Ok(Box::new(Buffered { streams, cycle, rows, round: cycle }))
    }

    fn run(&self, buffers: &[usize], windows: &[usize], probe: &mut Probe) -> anyhow::Result<Vec<Row>> {
        let mut rows = Vec::new();
        let mut recurrence = self.buffered(1, 1, 4)?;
        let mut alone = Vec::new();
        for &interval in buffers.iter().filter(|&&interval| interval > 1) {
            let mut other = self.buffered(interval, 1, interval)?;
            let rounds = self.compare(probe, &mut *recurrence, &mut *other)?;
            alone.extend(rounds.iter().map(|round| (round.0, round.1.clone())));
            rows.push(self.row(Way::Buffered { interval }, Some(Way::Recurrence), &rounds));
        }
        if buffers.contains(&1) {
            if alone.is_empty() {
                let mut again = self.buffered(1, 1, 4)?;
                let rounds = self.compare(probe, &mut *recurrence, &mut *again)?;
                alone.extend(rounds.iter().map(|round| (round.0, round.1.clone())));
            }
            let rounds: Vec<Round> =
                alone.into_iter().map(|(rates, one)| (rates, one.clone(), one)).collect();
            rows.insert(0, self.row(Way::Recurrence, None, &rounds));
        }
        for &tokens in windows {
            let snapshots = Snapshots::new(self.kernels, self.shape, self.layers, self.batch, tokens)?;
            let mut snapshots = BySnapshots { snapshots, rows: tokens, round: 0 };
            // The acceptance pattern and the folds both repeat after this many steps, or nearly so.
            let mut buffer = self.buffered(VERIFY_INTERVAL, tokens, 2 * VERIFY_INTERVAL)?;
            let rounds = self.compare(probe, &mut snapshots, &mut *buffer)?;
            let swapped: Vec<Round> =
                rounds.iter().map(|round| (round.0, round.1.clone(), round.1.clone())).collect();
            rows.push(self.row(Way::VerifySnapshots { tokens }, None, &swapped));
            let way = Way::VerifyBuffer { tokens };
            rows.push(self.row(way, Some(Way::VerifySnapshots { tokens }), &rounds));
        }
        Ok(rows)
    }

    /// Alternates the machine's rates and the two ways.
    fn compare(
        &self,
        probe: &mut Probe,
        one: &mut dyn Runs,
        other: &mut dyn Runs,
    ) -> anyhow::Result<Vec<Round>> {
        let mut rounds = Vec::new();
        for _ in 0..self.rounds {
            let before = probe.measure(self.team);
            let (first, second) = (one.stretch(self)?, other.stretch(self)?);
            let after = probe.measure(self.team);
            rounds.push((Rates::median(&[before, after]), first, second));
        }
        Ok(rounds)
    }

    fn row(&self, way: Way, against: Option<Way>, rounds: &[Round]) -> Row {
        let own = |value: fn(&Round) -> f64| median(rounds.iter().map(value));
        let traffic = rounds.first().map_or(Traffic::default(), |round| round.2.traffic);
        let compared = |value: fn(&Round) -> f64| against.map(|_| own(value));
        Row {
            shape: self.shape.name,
            batch: self.batch,
            layers: self.layers,
            way,
            us: own(|round| round.2.seconds) * 1e6,
            slowest_us: slowest(rounds) * 1e6,
            bytes_read: traffic.read,
            bytes_written: traffic.written,
            gbs: own(|round| round.2.traffic.total() as f64 / round.2.seconds) / 1e9,
            rates: Rates::median(&rounds.iter().map(|round| round.0).collect::<Vec<_>>()),
            bound_us: own(|round| round.0.bound(round.2.traffic)) * 1e6,
            share: own(|round| round.0.bound(round.2.traffic) / round.2.seconds),
            against,
            ratio: compared(|round| round.1.seconds / round.2.seconds),
            byte_ratio: compared(|round| round.1.traffic.total() as f64 / round.2.traffic.total() as f64),
            bound_ratio: compared(|round| round.0.bound(round.1.traffic) / round.0.bound(round.2.traffic)),
        }
    }
}

/// Seconds of the slowest kind of step in a cycle.
fn slowest(rounds: &[Round]) -> f64 {
    let kinds = rounds.first().map_or(0, |round| round.2.places.len());
    let of = |kind: usize| median(rounds.iter().filter_map(|round| round.2.places.get(kind).copied()));
    (0..kinds).map(of).fold(0.0, f64::max)
}

/// Rates, and the two ways that were compared.
type Round = (Rates, Stretch, Stretch);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::shapes::SHAPES;

    #[test]
    fn all_shapes_are_offered() {
        use clap::{CommandFactory, Parser};
        #[derive(Parser)]
        struct Line {
            #[command(flatten)]
            args: LinearArgs,
        }
        let help = Line::command().render_long_help().to_string();
        assert!(SHAPES.iter().all(|shape| help.contains(shape.name)));
        let line = Line::try_parse_from(["bench", "--shape", "9b", "--batch", "1,3", "--buffer", "1,16"]);
        let args = line.unwrap().args;
        assert_eq!((args.shape[0].name, args.batch, args.buffer), ("9b", vec![1, 3], vec![1, 16]));
        assert!(Line::try_parse_from(["bench", "--batch", "0"]).is_err());
    }
}
