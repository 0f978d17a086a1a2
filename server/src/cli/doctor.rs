//! `millpond doctor`: what this machine has, what is used of it, and what would make it faster.

use std::ffi::OsString;

use millpond::par::default_threads;
use millpond::state::memory::KvType;
use millpond_simd::Isa;
use serde_json::json;

use super::args::DoctorArgs;
use super::machine::Machine;
use super::settings::Compute;
use super::{bandwidth, config, device, output};
use crate::built_in;

/// Runs the command.
///
/// # Errors
/// Wrong usage.
pub(crate) fn run(args: &DoctorArgs) -> anyhow::Result<()> {
    let compute = Compute::new(&args.compute, KvType::F16)?;
    let threads = if compute.threads == 0 { default_threads() } else { compute.threads };
    let machine = Machine::look();
    let read = bandwidth::measure(threads);
    let levels: Vec<&str> = Isa::available().iter().map(|isa| isa.name()).collect();
    let advice = advice(&machine, &compute, threads);
    if args.json {
        return output::line(&serde_json::to_string_pretty(&json!({
            "version": env!("CARGO_PKG_VERSION"),
            "machine": machine,
            "threads": threads,
            "kernels": compute.isa.name(),
            "kernels_available": levels,
            "card": device::describe(),
            "read_bandwidth": read,
            "advice": advice,
        }))?);
    }
    let bytes = |count: Option<u64>| count.map_or("unknown".to_owned(), output::bytes);
    let rows = [
        ("version", env!("CARGO_PKG_VERSION").to_owned()),
        ("processor", machine.processor.clone().unwrap_or_else(|| "unknown".to_owned())),
        ("features", machine.features.join(" ")),
        ("kernels", format!("{} (of {})", compute.isa, levels.join(", "))),
        ("card", device::describe()),
        ("threads", format!("{threads} (of {} logical processors)", machine.logical)),
        ("memory", format!("{}, {} available", bytes(machine.memory), bytes(machine.available))),
        ("page", bytes(machine.page)),
        ("large pages", machine.huge_pages.clone().unwrap_or_else(|| "unknown".to_owned())),
        ("read bandwidth", format!("{:.1} GB/s with {threads} threads", read / 1e9)),
        ("configuration", configuration()?),
        ("built-in model", format!("{} ({})", built_in::NAME, output::bytes(built_in::bytes().len() as u64))),
    ];
    rows.iter().try_for_each(|(name, value)| output::line(&format!("{name:15} {value}")))?;
    advice.iter().try_for_each(|text| output::line(&format!("{:15} {text}", "advice")))
}

/// The configuration file and what it sets.
fn configuration() -> anyhow::Result<String> {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    match config::path(&arguments) {
        Some(path) => Ok(format!("{} ({})", path.display(), config::keys(&path)?.join(", "))),
        None => Ok("none".to_owned()),
    }
}

/// What would make this machine faster.
fn advice(machine: &Machine, compute: &Compute, threads: usize) -> Vec<String> {
    let mut advice = Vec::new();
    if compute.isa < Isa::detect() {
        advice.push(format!("without --isa, the faster {} kernels would run", Isa::detect()));
    }
    if compute.isa == Isa::Scalar {
        advice.push("this processor has none of the vector instructions there are kernels for".to_owned());
    }
    if threads > machine.logical {
        advice.push(format!("{threads} threads for {} processors wait for each other", machine.logical));
    }
    if machine.huge_pages.as_deref() == Some("never") {
        advice.push(
            "large pages are off; `madvise` in /sys/kernel/mm/transparent_hugepage/enabled helps".to_owned(),
        );
    }
    advice
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args::ComputeArgs;

    #[test]
    fn too_many_threads_and_no_large_pages_are_worth_a_word() {
        let mut machine = Machine::look();
        machine.logical = 2;
        machine.huge_pages = Some("never".to_owned());
        let args = ComputeArgs { buffer: 16, ..ComputeArgs::default() };
        let compute = Compute::new(&args, KvType::F16).unwrap();
        let texts = advice(&machine, &compute, 4);
        assert!(texts.iter().any(|text| text.contains("4 threads for 2")), "{texts:?}");
        assert!(texts.iter().any(|text| text.contains("large pages")), "{texts:?}");
    }
}
