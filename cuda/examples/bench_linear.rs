//! Time of one linear layer on a GPU: the plain recurrence, buffered decoding over whole fold cycles, and verification
//! of draft windows, each as CUDA graphs over states that no cache holds.
//!
//! Usage: `bench_linear [--batches 1,4,16,64,256] [--heads 32] [--key-heads 16] [--interval 16]`

use std::collections::VecDeque;

use millpond_cuda::Device;
use millpond_cuda::driver::Driver;
use millpond_cuda::linear::LinearError;
use millpond_cuda::linear::bench::{LinearBench, Timing, copy_rate};
use millpond_models::{Decay, HeadMap, LinearSpec, Write};

struct Options {
    batches: Vec<usize>,
    heads: usize,
    key_heads: usize,
    interval: usize,
}

fn options() -> Result<Options, String> {
    let mut options = Options { batches: vec![1, 4, 16, 64, 256], heads: 32, key_heads: 16, interval: 16 };
    let mut arguments: VecDeque<String> = std::env::args().skip(1).collect();
    while let Some(name) = arguments.pop_front() {
        let value = arguments.pop_front().ok_or(format!("{name} needs a value"))?;
        let number = |value: &str| value.parse::<usize>().map_err(|error| format!("{name} {value}: {error}"));
        match name.as_str() {
            "--batches" => options.batches = value.split(',').map(number).collect::<Result<_, _>>()?,
            "--heads" => options.heads = number(&value)?,
            "--key-heads" => options.key_heads = number(&value)?,
            "--interval" => options.interval = number(&value)?,
            _ => return Err(format!("unknown option {name}")),
        }
    }
    Ok(options)
}

fn report(rate: f64, batch: usize, what: &str, timing: Result<Timing, LinearError>) -> Option<f64> {
    match timing {
        Ok(timing) => {
            println!(
                "{batch:4}  {what:30} {:9.2} us, slowest pass {:9.2} us {:9.1} MB {:7.0} GB/s, bound {:7.2} us",
                timing.microseconds,
                timing.slowest,
                timing.bytes() / 1e6,
                timing.bytes() / timing.microseconds / 1e3,
                timing.bytes() / rate * 1e6,
            );
            Some(timing.microseconds)
        }
        Err(error) => {
            println!("{batch:4}  {what:30} {error}");
            None
        }
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let options = options()?;
    let driver = Driver::new(0)?;
    println!("{}, {} processors", driver.describe(), driver.processors());
    let rate = copy_rate(&driver)?;
    println!("copy within the device: {:.0} GB/s read and written", rate / 1e9);
    let spec = LinearSpec {
        key_heads: options.key_heads,
        value_heads: options.heads,
        key_dim: 128,
        value_dim: 128,
        conv_width: 4,
        decay: Decay::PerHead,
        write: Write::Delta { beta_max: 1.0 },
        head_map: HeadMap::Grouped,
    };
    let (before, _) = driver.memory_info()?;
    let bench = LinearBench::new(driver.clone(), spec)?;
    for batch in options.batches {
        let recurrence = report(rate, batch, "recurrence", bench.best_recurrence(batch));
        let buffered = bench.best_buffered(batch, 1, &|_, _| 1, options.interval);
        let buffered = report(rate, batch, "buffered", buffered);
        if let (Some(recurrence), Some(buffered)) = (recurrence, buffered) {
            println!("{batch:4}  less than the recurrence: {:.1} %", 100.0 * (1.0 - buffered / recurrence));
        }
        let whole = bench.whole_mixer(batch, options.interval);
        report(rate, batch, "convolution to gated norm", whole);
        for (rows, accepted) in [(2, 1), (4, 3), (8, 5)] {
            let name = format!("verify {rows}, {accepted} accepted");
            let verified = bench.best_buffered(batch, rows, &|_, _| accepted, options.interval);
            report(rate, batch, &name, verified);
        }
        report(rate, batch, "verify 4, snapshots and commit", bench.by_snapshots(batch, 4));
    }
    drop(bench);
    let (after, _) = driver.memory_info()?;
    println!("memory not given back: {} bytes", before.saturating_sub(after));
    Ok(())
}
