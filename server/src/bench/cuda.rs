//! `millpond bench linear --device cuda`: the same comparisons on a card.
//!
//! A way is timed as CUDA graphs over layers that together outgrow every cache; its figure is the median of replays.
//! Rates are those of a copy within the card, read and written.

use millpond::state::memory::StateType;
use millpond_cuda::Device;
use millpond_cuda::driver::Driver;
use millpond_cuda::linear::bench::{LinearBench, Timing, copy_rate};

use super::confirmed;
use super::linear::{Event, Header, LinearArgs, Row, VERIFY_INTERVAL, Way};
use super::rates::Rates;
use super::shapes::Shape;
use super::traffic::Traffic;

/// Measures every shape, batch and way on the first card.
///
/// # Errors
/// There is no card, it has no room, or the output is closed.
pub(super) fn measure(
    args: &LinearArgs,
    report: &mut dyn FnMut(Event<'_>) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    anyhow::ensure!(
        args.state_type == StateType::F32,
        "on a card base states are f32; --state-type must be f32"
    );
    let driver = Driver::new(0)?;
    let rate = copy_rate(&driver)?;
    let rates = Rates { read: rate, copy: rate, update: rate };
    for &shape in &args.shape {
        let spec = shape.linear();
        report(Event::Header(&Header {
            shape: shape.name,
            key_heads: shape.key_heads,
            value_heads: shape.value_heads,
            state_bytes: spec.state_bytes(),
            state_type: args.state_type.to_string(),
            threads: driver.processors(),
            isa: driver.describe(),
            cache_bytes: 0,
            mixer: false,
            load: None,
            rates,
        }))?;
        let bench = LinearBench::new(driver.clone(), spec)?;
        for &batch in &args.batch {
            let card = Card { shape, batch, layers: bench.layers(batch), rates };
            let recurrence = bench.best_recurrence(batch)?;
            if args.buffer.contains(&1) {
                report(Event::Row(&card.row(Way::Recurrence, &recurrence, None)))?;
            }
            for &interval in args.buffer.iter().filter(|&&interval| interval > 1) {
                let timing = bench.best_buffered(batch, 1, &|_, _| 1, interval)?;
                let against = Some((Way::Recurrence, &recurrence));
                report(Event::Row(&card.row(Way::Buffered { interval }, &timing, against)))?;
            }
            for &tokens in &args.verify {
                let snapshots = bench.by_snapshots(batch, tokens)?;
                let way = Way::VerifySnapshots { tokens };
                report(Event::Row(&card.row(way, &snapshots, None)))?;
                let accepted = |round: usize, stream: usize| confirmed(tokens, round, stream);
                let timing = bench.best_buffered(batch, tokens, &accepted, VERIFY_INTERVAL)?;
                let against = Some((way, &snapshots));
                report(Event::Row(&card.row(Way::VerifyBuffer { tokens }, &timing, against)))?;
            }
        }
    }
    Ok(())
}

/// What the rows of one batch share.
struct Card {
    shape: Shape,
    batch: usize,
    layers: usize,
    rates: Rates,
}

impl Card {
    fn row(&self, way: Way, timing: &Timing, against: Option<(Way, &Timing)>) -> Row {
        let traffic = |timing: &Timing| Traffic { read: timing.read as u64, written: timing.written as u64 };
        let bound = |timing: &Timing| self.rates.bound(traffic(timing)) * 1e6;
        let compared =
            |value: &dyn Fn(&Timing) -> f64| against.map(|(_, other)| value(other) / value(timing));
        Row {
            shape: self.shape.name,
            batch: self.batch,
            layers: self.layers,
            way,
            us: timing.microseconds,
            slowest_us: timing.slowest,
            bytes_read: timing.read as u64,
            bytes_written: timing.written as u64,
            gbs: timing.bytes() / timing.microseconds / 1e3,
            rates: self.rates,
            bound_us: bound(timing),
            share: bound(timing) / timing.microseconds,
            against: against.map(|(way, _)| way),
            ratio: compared(&|timing| timing.microseconds),
            byte_ratio: compared(&Timing::bytes),
            bound_ratio: compared(&bound),
        }
    }
}
