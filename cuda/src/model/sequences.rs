//! What sequences hold on the device: slots of the linear layers and pages of the attention cache.

use std::sync::Arc;

use millpond::backend::{BackendError, Slot};
use millpond::state::PassPlan;
use millpond::state::layout::{PAGE_POSITIONS, StateLayout};
use millpond::state::memory::{MemoryUsage, SequenceMemory};

use super::pages::{Page, PagePool};
use super::{failed, mixer_failed};
use crate::device::Device;
use crate::linear::{LinearLayer, SlotPart};

/// Slots there is memory for while few sequences are in use.
pub(super) const FEWEST_SLOTS: usize = 4;

/// One sequence.
#[derive(Default)]
pub(super) struct Sequence {
    pub(super) pages: Vec<Page>,
    /// One past the last row that counts.
    pub(super) position: usize,
    /// Tokens in the base state.
    pub(super) base: usize,
    /// Memory that was restored and is not on the device yet: where it belongs there depends on the position, which
    /// the next plan tells.
    pub(super) restored: Option<Box<SequenceMemory>>,
}

/// All sequences of a backend.
pub(super) struct Sequences {
    pub(super) layout: StateLayout,
    /// Linear layers, each with memory for [`Sequences::slots`] sequences.
    pub(super) linear: Vec<LinearLayer>,
    pub(super) pages: PagePool,
    in_use: Vec<Option<Sequence>>,
    slots: usize,
}

impl Sequences {
    /// No sequences. The layers have memory for [`FEWEST_SLOTS`].
    pub(super) fn new(
        device: &Arc<dyn Device>,
        layout: StateLayout,
        linear: Vec<LinearLayer>,
        page_bytes: usize,
    ) -> Sequences {
        let pages = PagePool::new(device, page_bytes);
        Sequences { layout, linear, pages, in_use: Vec::new(), slots: FEWEST_SLOTS }
    }

    /// A sequence.
    ///
    /// # Errors
    /// [`BackendError::Slot`].
    pub(super) fn get(&self, slot: Slot) -> Result<&Sequence, BackendError> {
        self.in_use.get(slot.0).and_then(Option::as_ref).ok_or(BackendError::Slot(slot.0))
    }

    /// A sequence, writable.
    ///
    /// # Errors
    /// [`BackendError::Slot`].
    pub(super) fn get_mut(&mut self, slot: Slot) -> Result<&mut Sequence, BackendError> {
        self.in_use.get_mut(slot.0).and_then(Option::as_mut).ok_or(BackendError::Slot(slot.0))
    }

    /// A new slot for a sequence.
    ///
    /// # Errors
    /// When there is no room.
    pub(super) fn create(&mut self, sequence: Sequence) -> Result<Slot, BackendError> {
        let free = self.in_use.iter().position(Option::is_none).unwrap_or(self.in_use.len());
        if free >= self.slots {
            self.resize(self.slots * 2)?;
        }
        if free == self.in_use.len() {
            self.in_use.push(None);
        }
        self.in_use[free] = Some(sequence);
        Ok(Slot(free))
    }

    fn resize(&mut self, slots: usize) -> Result<(), BackendError> {
        let kept = self.in_use.len().min(slots);
        for layer in &mut self.linear {
            if layer.options().slots != slots {
                layer.resize(slots, kept).map_err(mixer_failed)?;
            }
        }
        self.slots = slots;
        Ok(())
    }

    /// Frees a sequence. With the last one the memory of idle slots goes back.
    pub(super) fn release(&mut self, slot: Slot) {
        let Some(sequence) = self.in_use.get_mut(slot.0).and_then(Option::take) else { return };
        sequence.pages.into_iter().for_each(|page| self.pages.release(page));
        while let Some(None) = self.in_use.last() {
            self.in_use.pop();
        }
        if self.in_use.is_empty() && self.slots > FEWEST_SLOTS {
            // Where this fails there is more memory than needed, and whatever comes next says why.
            let _ = self.resize(FEWEST_SLOTS);
        }
    }

    /// Cuts a sequence back.
    ///
    /// # Errors
    /// [`BackendError::Slot`].
    pub(super) fn truncate(&mut self, slot: Slot, position: usize) -> Result<(), BackendError> {
        let sequence = self.get_mut(slot)?;
        sequence.position = sequence.position.min(position);
        if let Some(restored) = &mut sequence.restored {
            restored.truncate_pages(position);
        }
        let keep = position.div_ceil(PAGE_POSITIONS).min(sequence.pages.len());
        let dropped: Vec<Page> = sequence.pages.drain(keep..).collect();
        dropped.into_iter().for_each(|page| self.pages.release(page));
        Ok(())
    }

    /// A copy of a sequence. Pages are shared until one of the two writes them.
    ///
    /// # Errors
    /// [`BackendError::Slot`], or when there is no room.
    pub(super) fn fork(&mut self, slot: Slot) -> Result<Slot, BackendError> {
        let parent = self.get(slot)?;
        let copy = Sequence {
            pages: parent.pages.clone(),
            position: parent.position,
            base: parent.base,
            restored: parent.restored.as_ref().map(|memory| memory.fork().map(Box::new)).transpose()?,
        };
        let (pages, on_device) = (copy.pages.clone(), copy.restored.is_none());
        let fork = self.create(copy)?;
        pages.into_iter().for_each(|page| self.pages.share(page));
        if on_device {
            for layer in &mut self.linear {
                layer.copy_slot(slot.0, fork.0).map_err(mixer_failed)?;
            }
        }
        Ok(fork)
    }

    /// Makes pages up to `end` available, those from `start` on writable.
    ///
    /// # Errors
    /// When there is no room.
    pub(super) fn prepare_pages(&mut self, slot: Slot, start: usize, end: usize) -> Result<(), BackendError> {
        if self.layout.page_len == 0 {
            return Ok(());
        }
        let mut sequence = std::mem::take(self.get_mut(slot)?);
        let outcome = self.grow_pages(&mut sequence.pages, start, end);
        *self.get_mut(slot)? = sequence;
        outcome
    }

    fn grow_pages(&mut self, pages: &mut Vec<Page>, start: usize, end: usize) -> Result<(), BackendError> {
        let shared = start / PAGE_POSITIONS..end.div_ceil(PAGE_POSITIONS).min(pages.len());
        for index in shared {
            pages[index] = self.pages.writable(pages[index]).map_err(failed)?;
        }
        while pages.len() * PAGE_POSITIONS < end {
            pages.push(self.pages.take().map_err(failed)?);
        }
        Ok(())
    }

    /// Records a pass.
    ///
    /// # Errors
    /// [`BackendError::Slot`].
    pub(super) fn advance(&mut self, slot: Slot, plan: &PassPlan) -> Result<(), BackendError> {
        let sequence = self.get_mut(slot)?;
        sequence.position = plan.start + plan.rows;
        sequence.base = sequence.position - plan.log_after();
        Ok(())
    }

    /// Bytes that a slot takes in every linear layer, of some of its parts.
    fn slot_bytes(&self, parts: &[SlotPart]) -> usize {
        let of = |layer: &LinearLayer| parts.iter().map(|&part| layer.slot_bytes(part)).sum::<usize>();
        self.linear.iter().map(of).sum()
    }

    /// Bytes a sequence holds. A slot's memory is there whether it is used or not.
    ///
    /// # Errors
    /// [`BackendError::Slot`].
    pub(super) fn usage(&self, slot: Slot) -> Result<MemoryUsage, BackendError> {
        let sequence = self.get(slot)?;
        if let Some(restored) = &sequence.restored {
            return Ok(restored.usage());
        }
        Ok(MemoryUsage {
            base: self.slot_bytes(&[SlotPart::Base]),
            log: self.slot_bytes(&[SlotPart::Keys, SlotPart::KeyScales, SlotPart::Deltas, SlotPart::Gates]),
            conv: self.slot_bytes(&[SlotPart::Convolution]),
            kv: sequence.pages.len() * self.pages.page_bytes(),
        })
    }

    /// Bytes that some sequences hold together.
    pub(super) fn footprint(&self, slots: &[Slot]) -> usize {
        let usages = slots.iter().filter_map(|&slot| self.usage(slot).ok());
        let own: usize = usages.map(|usage| usage.base + usage.log + usage.conv).sum();
        let sequences = || slots.iter().filter_map(|&slot| self.get(slot).ok());
        let mut pages: Vec<Page> = sequences().flat_map(|sequence| sequence.pages.iter().copied()).collect();
        pages.sort_unstable();
        pages.dedup();
        let restored = sequences().filter_map(|sequence| sequence.restored.as_ref());
        let kept: usize = restored.map(|memory| memory.usage().kv).sum();
        own + kept + pages.len() * self.pages.page_bytes()
    }
}
