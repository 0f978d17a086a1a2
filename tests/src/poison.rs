//! A backend that fills everything dead with NaN after every pass, so that a read of it shows in the output.

use std::collections::HashMap;
use std::sync::Arc;

use half::f16;
use millpond::backend::cpu::CpuBackend;
use millpond::backend::{Backend, BackendError, MtpSegment, Outputs, Segment, Slot};
use millpond::state::StateLayout;
use millpond::state::layout::PAGE_POSITIONS;
use millpond::state::memory::{KvPage, MemoryUsage, Q8_BYTES, Q8_VALUES};

/// Where a sequence's memory is alive.
#[derive(Clone, Copy, Default)]
struct Live {
    /// Tokens in the base.
    base: usize,
    /// Tokens in all, pending ones included.
    end: usize,
}

/// The CPU backend with dead memory poisoned.
pub struct Poisoned {
    inner: CpuBackend,
    layout: StateLayout,
    live: HashMap<Slot, Live>,
}

impl Poisoned {
    /// Poisons the dead memory of `inner`'s sequences.
    pub fn new(inner: CpuBackend) -> Poisoned {
        let layout = inner.layout().clone();
        Poisoned { inner, layout, live: HashMap::new() }
    }

    fn poison(&mut self, slot: Slot) -> Result<(), BackendError> {
        let live = self.live.get(&slot).copied().unwrap_or_default();
        let memory = self.inner.memory_mut(slot)?;
        let entries = live.end - live.base;
        for (index, layer) in self.layout.linear.iter().enumerate() {
            let log = memory.logs.layer_mut(&self.layout.linear, index);
            let capacity = log.capacity;
            let dead = |values: &mut [f32], width: usize| {
                for block in values.chunks_exact_mut((capacity * width).max(1)) {
                    block[entries.min(capacity) * width..].fill(f32::NAN);
                }
            };
            if capacity > 0 {
                dead(log.keys, layer.spec.key_dim);
                dead(log.deltas, layer.group_lanes());
                dead(log.gates, layer.spec.decay_width());
            }
        }
        let rows = memory.rings.rows();
        for (index, layer) in self.layout.linear.iter().enumerate() {
            let ring = memory.rings.layer_mut(&self.layout.linear, index);
            let (width, taps) = (layer.spec.conv_channels(), layer.spec.conv_width);
            // The taps before the end are all that an unrewound sequence can still need; rewinds need more, so only
            // rows that hold no live position at all are dead.
            let oldest = live.end.saturating_sub(rows);
            for row in 0..rows {
                let alive = (oldest..live.end).any(|position| position % rows == row);
                if !alive && taps > 1 {
                    ring[row * width..(row + 1) * width].fill(f32::NAN);
                }
            }
        }
        for (index, page) in memory.pages.iter_mut().enumerate() {
            let alive = live.end.saturating_sub(index * PAGE_POSITIONS).min(PAGE_POSITIONS);
            if alive == PAGE_POSITIONS || Arc::strong_count(page) > 1 {
                continue;
            }
            for layer in &self.layout.attention {
                for head in 0..layer.spec.kv_heads {
                    for start in [layer.keys_at(head), layer.values_at(head)] {
                        let dead = start + alive * layer.spec.head_dim..start + layer.head_len();
                        match Arc::make_mut(page) {
                            KvPage::F32(page) => page[dead].fill(f32::NAN),
                            KvPage::F16(page) => page[dead].fill(f16::NAN),
                            // Ones everywhere: a scale that is not a number.
                            KvPage::Q8(page) => {
                                page[dead.start / Q8_VALUES * Q8_BYTES..dead.end / Q8_VALUES * Q8_BYTES]
                                    .fill(0xff);
                            }
                        }
                    }
                }
            }
        }
        Ok(())
    }
}

impl Backend for Poisoned {
    fn create(&mut self) -> Result<Slot, BackendError> {
        let slot = self.inner.create()?;
        self.live.insert(slot, Live::default());
        self.poison(slot)?;
        Ok(slot)
    }

    fn release(&mut self, slot: Slot) {
        self.live.remove(&slot);
        self.inner.release(slot);
    }

    fn forward(&mut self, segments: &[Segment<'_>], outputs: &mut Outputs) -> Result<(), BackendError> {
        self.inner.forward(segments, outputs)?;
        for segment in segments {
            let plan = segment.plan;
            let base = plan.start - plan.log + plan.durably_folded();
            self.live.insert(segment.slot, Live { base, end: plan.start + plan.rows });
            self.poison(segment.slot)?;
        }
        Ok(())
    }

    fn forward_mtp(
        &mut self,
        segments: &[MtpSegment<'_>],
        outputs: &mut Outputs,
    ) -> Result<(), BackendError> {
        self.inner.forward_mtp(segments, outputs)
    }

    fn truncate(&mut self, slot: Slot, position: usize) -> Result<(), BackendError> {
        self.inner.truncate(slot, position)?;
        if let Some(live) = self.live.get_mut(&slot) {
            live.end = position;
        }
        self.poison(slot)
    }

    fn fork(&mut self, slot: Slot) -> Result<Slot, BackendError> {
        let copy = self.inner.fork(slot)?;
        let live = self.live.get(&slot).copied().unwrap_or_default();
        self.live.insert(copy, live);
        Ok(copy)
    }

    fn usage(&self, slot: Slot) -> Result<MemoryUsage, BackendError> {
        self.inner.usage(slot)
    }
}
