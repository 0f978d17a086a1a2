//! `millpond doctor`: what this machine has, what is used of it, and what would make it faster.

use std::ffi::OsString;
use std::path::PathBuf;

use millpond::par::default_threads;
use millpond::state::memory::KvType;
use millpond_simd::Isa;
use serde_json::json;

use super::args::DoctorArgs;
use super::machine::Machine;
use super::settings::Compute;
use super::{config, device, folders, output};
use crate::bench::rates::read_rate;
use crate::built_in;
use crate::hub::cache::Cache;

/// Runs the command.
///
/// # Errors
/// Wrong usage.
pub(crate) fn run(args: &DoctorArgs) -> anyhow::Result<()> {
    let compute = Compute::new(&args.compute, KvType::F16)?;
    let threads = if compute.threads == 0 { default_threads() } else { compute.threads };
    let machine = Machine::look();
    let read = read_rate(threads, machine.room())?;
    let alone = if threads == 1 { read } else { read_rate(1, machine.room())? };
    let levels: Vec<&str> = Isa::available().iter().map(|isa| isa.name()).collect();
    let advice = advice(&machine, &compute, threads);
    let configuration = configuration()?;
    let cache = Cache::usual().ok().map(|cache| cache.root().to_owned());
    if args.json {
        return output::line(&serde_json::to_string_pretty(&json!({
            "version": env!("CARGO_PKG_VERSION"),
            "machine": machine,
            "threads": threads,
            "kernels": compute.isa.name(),
            "kernels_available": levels,
            "card": device::describe(),
            "read_bandwidth": read,
            "read_bandwidth_one_thread": alone,
            "configuration": configuration,
            "environment": environment(),
            "hub_cache": cache,
            "models": folders::models(),
            "sessions": folders::sessions(),
            "advice": advice,
        }))?);
    }
    let path = |path: Option<PathBuf>| path.map_or("none".to_owned(), |path| path.display().to_string());
    let mut rows = machine_rows(&machine);
    rows.extend([
        ("kernels", format!("{} (of {})", compute.isa, levels.join(", "))),
        ("card", device::describe()),
        ("threads", format!("{threads} (of {} logical processors)", machine.logical)),
        ("bandwidth", format!("{:.1} GB/s read by {threads} threads, {:.1} by one", read / 1e9, alone / 1e9)),
        (
            "",
            format!(
                "so {:.1} tokens/s at most for each GiB of weights read per token",
                read / 1024f64.powi(3)
            ),
        ),
        ("configuration", configuration),
        ("environment", environment().join(" ")),
        ("hub cache", path(cache)),
        ("own models", path(folders::models())),
        ("sessions", path(folders::sessions())),
        ("built-in model", format!("{} ({})", built_in::NAME, output::bytes(built_in::bytes().len() as u64))),
    ]);
    rows.iter().try_for_each(|(name, value)| output::line(format!("{name:15} {value}").trim_end()))?;
    advice.iter().try_for_each(|text| output::line(&format!("{:15} {text}", "advice")))
}

fn machine_rows(machine: &Machine) -> Vec<(&'static str, String)> {
    let unknown = || "unknown".to_owned();
    let bytes = |count: Option<u64>| count.map_or_else(unknown, output::bytes);
    let limit =
        machine.memory_limit.map(|limit| format!(", {} allowed", output::bytes(limit))).unwrap_or_default();
    let quota = machine.processor_quota.map(|quota| format!(" (time of {quota:.1} processors allowed)"));
    vec![
        ("version", env!("CARGO_PKG_VERSION").to_owned()),
        ("processor", machine.processor.clone().unwrap_or_else(unknown) + &quota.unwrap_or_default()),
        ("features", machine.features.join(" ")),
        ("memory", format!("{}, {} available{limit}", bytes(machine.memory), bytes(machine.available))),
        ("memory nodes", machine.memory_nodes.map_or_else(unknown, |nodes| nodes.to_string())),
        ("page", bytes(machine.page)),
        ("large pages", machine.huge_pages.clone().unwrap_or_else(unknown)),
        ("lockable", machine.lock_limit.clone().unwrap_or_else(unknown)),
        ("clock", machine.governor.clone().unwrap_or_else(unknown)),
    ]
}

/// Names of the variables that set options. Values may be secrets: they are not told.
fn environment() -> Vec<String> {
    let ours = |name: &String| name.starts_with("MILLPOND_") || name.starts_with("HF_");
    let mut names: Vec<String> =
        std::env::vars_os().filter_map(|(name, _)| name.into_string().ok()).filter(ours).collect();
    names.sort();
    names
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
    if cfg!(debug_assertions) {
        advice.push("this is a debug build; `cargo build --release` makes a fast one".to_owned());
    }
    if machine.processor_quota.is_some_and(|quota| quota + 0.01 < threads as f64) {
        advice.push(format!("{threads} threads share less time than that; -t below the quota is steadier"));
    }
    if machine.load.is_some_and(|load| load > 0.5 * machine.logical as f64) {
        advice.push(
            "other programs keep the processor busy; what is measured now is less than it can do".to_owned(),
        );
    }
    if machine.governor.as_deref() == Some("powersave") {
        advice.push(
            "the clock saves power; the governor `performance` is faster where it is allowed".to_owned(),
        );
    }
    if machine.memory_nodes.is_some_and(|nodes| nodes > 1) {
        advice.push(
            "several memory nodes: `numactl --interleave=all millpond ...` spreads the weights".to_owned(),
        );
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
        machine.governor = Some("powersave".to_owned());
        machine.processor_quota = Some(1.5);
        machine.memory_nodes = Some(2);
        let texts = advice(&machine, &compute, 4);
        for word in ["saves power", "share less time", "memory nodes"] {
            assert!(texts.iter().any(|text| text.contains(word)), "{word}: {texts:?}");
        }
        assert!(texts.iter().any(|text| text.contains("4 threads for 2")), "{texts:?}");
        assert!(texts.iter().any(|text| text.contains("large pages")), "{texts:?}");
    }
}
