//! Bytes: what sequences will need, and what the machine has.

use std::path::Path;

use crate::runner::BufferOptions;
use crate::state::cursor::PREFILL_CHUNK;
use crate::state::layout::{PAGE_POSITIONS, StateLayout};
use crate::state::memory::KvType;

/// The most bytes a sequence of `positions` tokens holds.
pub(super) fn sequence_bytes(
    layout: &StateLayout,
    buffer: &BufferOptions,
    kv_type: KvType,
    positions: usize,
) -> usize {
    let taps = layout.linear.iter().map(|layer| layer.spec.conv_width).max().unwrap_or(1);
    let conv = (taps - 1 + buffer.max_window).saturating_mul(layout.conv_row_bytes());
    // A chunk that is read in pieces stays in the log until its end.
    let settled = buffer.fold_interval.saturating_add(2 * buffer.max_window).max(PREFILL_CHUNK);
    let stateless = buffer.stateless_below.unwrap_or_else(|| layout.break_even());
    let entries = |count: usize| count.saturating_mul(layout.log_entry_bytes());
    let linear = if positions < stateless {
        entries(positions + 2 * buffer.max_window)
    } else {
        (layout.state_bytes().saturating_add(entries(settled)))
            .max(entries(stateless + 2 * buffer.max_window))
    };
    let pages = positions.saturating_add(buffer.max_window).div_ceil(PAGE_POSITIONS);
    let kv = pages.saturating_mul(kv_type.bytes(layout.page_len).unwrap_or(usize::MAX));
    conv.saturating_add(linear).saturating_add(kv)
}

/// Bytes of memory of this machine, or of the part of it this process may use; 8 GiB where the system does not say.
pub(super) fn total_memory() -> usize {
    const UNKNOWN: usize = 8 << 30;
    let total = meminfo("MemTotal:").unwrap_or(UNKNOWN);
    total.min(group_limit().unwrap_or(usize::MAX)).min(address_space().unwrap_or(usize::MAX))
}

/// Bytes of memory that could be had now.
pub(super) fn available_memory() -> usize {
    let total = total_memory();
    // What is mapped already counts against the limit on addresses.
    let mapped = kibibytes(&read("/proc/self/status"), "VmSize:").unwrap_or(0);
    let addresses = address_space().map_or(usize::MAX, |limit| limit.saturating_sub(mapped));
    meminfo("MemAvailable:").unwrap_or(total / 2).min(total).min(addresses)
}

fn read(path: impl AsRef<Path>) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

fn meminfo(key: &str) -> Option<usize> {
    kibibytes(&read("/proc/meminfo"), key)
}

fn kibibytes(text: &str, key: &str) -> Option<usize> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    let kib: usize = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// Bytes of addresses that this process may use (`ulimit -v`); absent if there is no limit.
fn address_space() -> Option<usize> {
    soft_limit(&read("/proc/self/limits"), "Max address space")
}

/// A number in the system's table of limits.
fn soft_limit(table: &str, name: &str) -> Option<usize> {
    table.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?.parse().ok()
}

/// Bytes that the control groups of this process may have.
fn group_limit() -> Option<usize> {
    least_limit(&read("/proc/self/cgroup"), Path::new("/sys/fs/cgroup"))
}

/// The least limit of the groups listed in `groups` and those above them, in either version of control groups.
fn least_limit(groups: &str, root: &Path) -> Option<usize> {
    let limits = groups.lines().filter_map(|line| {
        let (_, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        let (base, file) = match controllers {
            "" => (root.to_owned(), "memory.max"),
            _ if controllers.split(',').any(|name| name == "memory") => {
                (root.join("memory"), "memory.limit_in_bytes")
            }
            _ => return None,
        };
        // In a container the path may be that of the machine outside: then only the root is there.
        let inner = base.join(path.trim_start_matches('/'));
        let groups = inner.ancestors().take_while(|group| group.starts_with(&base));
        groups.filter_map(|group| read(group.join(file)).trim().parse().ok()).min()
    });
    limits.min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_of_the_system_are_read() {
        let limits =
            "Limit   Soft Limit  Hard Limit  Units\nMax address space   1048576   unlimited  bytes\n";
        assert_eq!(soft_limit(limits, "Max address space"), Some(1 << 20));
        assert_eq!(soft_limit("Max address space   unlimited   unlimited  bytes", "Max address space"), None);
        assert_eq!(kibibytes("VmPeak: 9 kB\nVmSize:\t   12 kB\n", "VmSize:"), Some(12 << 10));
    }

    #[test]
    fn the_tightest_group_counts() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        let limit = |groups: &str| least_limit(groups, root.path());
        assert_eq!(limit("0::/"), None);
        write("a/memory.max", "3000\n");
        write("a/b/memory.max", "max\n");
        assert_eq!(limit("0::/a/b"), Some(3000), "the one above");
        assert_eq!(limit("0::/x/y"), None);
        write("memory/pond/memory.limit_in_bytes", "2000\n");
        write("memory/memory.limit_in_bytes", "9223372036854771712\n");
        assert_eq!(limit("4:memory:/pond\n3:cpu,cpuacct:/pond\n0::/a/b"), Some(2000));
        assert_eq!(limit("4:memory:/elsewhere"), Some(9_223_372_036_854_771_712));
        write("memory.max", "1000");
        assert_eq!(limit("0::/a/b"), Some(1000));
    }
}
