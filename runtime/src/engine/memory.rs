//! Bytes: what sequences will need, and what the machine has.

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
    let limit = std::fs::read_to_string("/sys/fs/cgroup/memory.max")
        .ok()
        .and_then(|text| text.trim().parse::<usize>().ok())
        .unwrap_or(usize::MAX);
    total.min(limit)
}

/// Bytes of memory that could be had now.
pub(super) fn available_memory() -> usize {
    let total = total_memory();
    meminfo("MemAvailable:").unwrap_or(total / 2).min(total)
}

fn meminfo(key: &str) -> Option<usize> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    let kib: usize = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}
