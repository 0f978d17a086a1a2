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
        }
    }
}

/// How much memory this process may lock, as the system words it; `None` where it does not say.
#[must_use]
pub(crate) fn lock_limit() -> Option<String> {
    soft_limit(&fs::read_to_string("/proc/self/limits").unwrap_or_default(), "Max locked memory")
}

/// The soft limit in a table of limits, with bytes made readable.
fn soft_limit(table: &str, name: &str) -> Option<String> {
    let rest = table.lines().find_map(|line| line.strip_prefix(name))?;
    let value = rest.split_whitespace().next()?;
    Some(value.parse().map_or_else(|_| value.to_owned(), super::output::bytes))
}

/// Bytes of memory this process holds, as the system counts them.
#[must_use]
pub(crate) fn resident() -> Option<u64> {
    kibibytes(&fs::read_to_string("/proc/self/status").unwrap_or_default(), "VmRSS")
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
        assert_eq!(bracketed("always [madvise] never\n").as_deref(), Some("madvise"));
        let cpu = "model name\t: Some CPU @ 2 GHz\nflags\t\t: fpu avx2 fma avx512f\n";
        assert_eq!(field(cpu, "model name"), Some("Some CPU @ 2 GHz"));
        assert_eq!(features(cpu), ["avx2", "fma", "avx512f"]);
    }
}
