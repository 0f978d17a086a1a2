//! What the system says about the machine. Linux only; elsewhere most of it is unknown.

use std::fs;

use serde::Serialize;

/// A machine.
#[derive(Debug, Serialize)]
pub(crate) struct Machine {
    /// Name of the processor.
    pub(crate) processor: Option<String>,
    /// Features of the processor that matter to the kernels.
    pub(crate) features: Vec<String>,
    /// Logical processors this process may use.
    pub(crate) logical: usize,
    /// Bytes of memory.
    pub(crate) memory: Option<u64>,
    /// Bytes of memory not in use.
    pub(crate) available: Option<u64>,
    /// Bytes of a page.
    pub(crate) page: Option<u64>,
    /// Whether large pages are given always, on request, or never.
    pub(crate) huge_pages: Option<String>,
    /// Memory domains; data in another than one's own is slower to reach.
    pub(crate) memory_nodes: Option<usize>,
    /// How the processor's clock is chosen.
    pub(crate) governor: Option<String>,
    /// Processors' worth of time that this process may use, where it is limited.
    pub(crate) processor_quota: Option<f64>,
    /// Bytes of memory that this process may use, where it is limited.
    pub(crate) memory_limit: Option<u64>,
    /// Programs that want to run, averaged over a minute.
    pub(crate) load: Option<f64>,
    /// How much memory may be locked.
    pub(crate) lock_limit: Option<String>,
}

/// Features that decide which kernels run, or how fast.
const FEATURES: [&str; 17] = [
    "sse4_2",
    "avx",
    "avx2",
    "fma",
    "f16c",
    "avx_vnni",
    "avx512f",
    "avx512bw",
    "avx512vl",
    "avx512dq",
    "avx512_vnni",
    "avx512_bf16",
    "amx_int8",
    "asimd",
    "asimddp",
    "i8mm",
    "sve",
];

impl Machine {
    /// This machine.
    #[must_use]
    pub(crate) fn look() -> Machine {
        let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let map = fs::read_to_string("/proc/self/smaps").unwrap_or_default();
        let large = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").unwrap_or_default();
        Machine {
            processor: field(&cpu, "model name").map(str::to_owned),
            features: features(&cpu),
            logical: std::thread::available_parallelism().map_or(1, usize::from),
            memory: kibibytes(&memory, "MemTotal"),
            available: kibibytes(&memory, "MemAvailable"),
            page: kibibytes(&map, "KernelPageSize"),
            huge_pages: bracketed(&large),
            memory_nodes: memory_nodes(),
            governor: word("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
            processor_quota: word("/sys/fs/cgroup/cpu.max").as_deref().and_then(quota),
            memory_limit: word("/sys/fs/cgroup/memory.max").and_then(|limit| limit.parse().ok()),
            load: word("/proc/loadavg").and_then(|line| line.split_whitespace().next()?.parse().ok()),
            lock_limit: lock_limit(),
        }
    }

    /// Bytes of memory that this process could have now, as far as the system says.
    #[must_use]
    pub(crate) fn room(&self) -> Option<u64> {
        [self.available, self.memory_limit].into_iter().flatten().min()
    }
}

/// What a small file of the system says.
fn word(path: &str) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned()).filter(|text| !text.is_empty())
}

fn memory_nodes() -> Option<usize> {
    let entries = fs::read_dir("/sys/devices/system/node").ok()?;
    let is_node = |name: &str| name.strip_prefix("node").is_some_and(|number| number.parse::<u32>().is_ok());
    Some(entries.flatten().filter(|entry| entry.file_name().to_str().is_some_and(is_node)).count())
}

/// Processors' worth of time from `quota period`, in microseconds; `None` for `max`.
fn quota(text: &str) -> Option<f64> {
    let (quota, period) = text.split_once(' ')?;
    let (quota, period) = (quota.parse::<f64>().ok()?, period.parse::<f64>().ok()?);
    (period > 0.0).then(|| quota / period)
}

/// How much memory this process may lock, as the system words it; `None` where it does not say.
#[must_use]
pub(crate) fn lock_limit() -> Option<String> {
    soft_limit(&fs::read_to_string("/proc/self/limits").unwrap_or_default(), "Max locked memory")
}

/// Bytes of addresses that this process may still use; `None` without a limit (`ulimit -v`).
#[must_use]
pub(crate) fn address_room() -> Option<u64> {
    let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let limit = soft_value(&limits, "Max address space")?.parse::<u64>().ok()?;
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    Some(limit.saturating_sub(kibibytes(&status, "VmSize").unwrap_or(0)))
}

/// The soft limit in a table of limits, with bytes made readable.
fn soft_limit(table: &str, name: &str) -> Option<String> {
    let value = soft_value(table, name)?;
    Some(value.parse().map_or_else(|_| value.to_owned(), super::output::bytes))
}

fn soft_value<'a>(table: &'a str, name: &str) -> Option<&'a str> {
    table.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()
}

/// Bytes of memory that a process holds, as the system counts them.
#[must_use]
pub(crate) fn resident(process: u32) -> Option<u64> {
    kibibytes(&fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default(), "VmRSS")
}

/// The value of the first line `name : value`.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then(|| value.trim())
    })
}

fn features(cpu: &str) -> Vec<String> {
    let flags = field(cpu, "flags").or_else(|| field(cpu, "Features")).unwrap_or_default();
    let flags: Vec<&str> = flags.split_whitespace().collect();
    FEATURES.iter().filter(|feature| flags.contains(feature)).map(|feature| (*feature).to_owned()).collect()
}

fn kibibytes(text: &str, name: &str) -> Option<u64> {
    field(text, name)?.strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// The chosen word of `always [madvise] never`.
fn bracketed(text: &str) -> Option<String> {
    let (_, rest) = text.split_once('[')?;
    rest.split_once(']').map(|(word, _)| word.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_systems_files_are_read() {
        assert_eq!(
            kibibytes("MemTotal:       24689068 kB\nMemFree: 1 kB\n", "MemTotal"),
            Some(24_689_068 * 1024)
        );
        assert_eq!(kibibytes("nothing", "MemTotal"), None);
        let limits = "Limit   Soft Limit  Hard Limit  Units\nMax locked memory  8388608  unlimited  bytes\n";
        assert_eq!(soft_limit(limits, "Max locked memory").as_deref(), Some("8.0 MiB"));
        assert_eq!(quota("150000 100000"), Some(1.5));
        assert_eq!(quota("max 100000"), None);
        assert_eq!(bracketed("always [madvise] never\n").as_deref(), Some("madvise"));
        let cpu = "model name\t: Some CPU @ 2 GHz\nflags\t\t: fpu avx2 fma avx512f\n";
        assert_eq!(field(cpu, "model name"), Some("Some CPU @ 2 GHz"));
        assert_eq!(features(cpu), ["avx2", "fma", "avx512f"]);
    }
}
