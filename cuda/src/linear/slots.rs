//! What the slots of a layer hold, read, written, copied, and given to more sequences or fewer.

use super::LinearError;
use super::layer::LinearLayer;
use crate::device::{Memory, Plain};

/// What a slot of a layer holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotPart {
    /// `[value_heads][padded value_dim][padded key_dim]` floats.
    Base,
    /// `[key_heads][capacity][padded key_dim]` activations, before normalisation.
    Keys,
    /// `[key_heads][capacity]` floats: one over the length of each key.
    KeyScales,
    /// `[value_heads][capacity][padded value_dim]` floats.
    Deltas,
    /// `[value_heads][capacity]` floats, log decays.
    Gates,
    /// `[conv_rows][channels]` activations.
    Convolution,
}

impl SlotPart {
    /// Every part.
    pub const ALL: [SlotPart; 6] = [
        SlotPart::Base,
        SlotPart::Keys,
        SlotPart::KeyScales,
        SlotPart::Deltas,
        SlotPart::Gates,
        SlotPart::Convolution,
    ];
}

impl LinearLayer {
    fn memory(&self, part: SlotPart) -> &Memory {
        match part {
            SlotPart::Base => &self.base,
            SlotPart::Keys => &self.key_log,
            SlotPart::KeyScales => &self.key_scale,
            SlotPart::Deltas => &self.delta_log,
            SlotPart::Gates => &self.gate_log,
            SlotPart::Convolution => &self.conv_ring,
        }
    }

    fn memory_mut(&mut self, part: SlotPart) -> &mut Memory {
        match part {
            SlotPart::Base => &mut self.base,
            SlotPart::Keys => &mut self.key_log,
            SlotPart::KeyScales => &mut self.key_scale,
            SlotPart::Deltas => &mut self.delta_log,
            SlotPart::Gates => &mut self.gate_log,
            SlotPart::Convolution => &mut self.conv_ring,
        }
    }

    /// Bytes of a part in one slot.
    pub fn slot_bytes(&self, part: SlotPart) -> usize {
        self.memory(part).bytes() / self.options.slots.max(1)
    }

    /// Where its slots' parts start; they move when the layer is given more or fewer.
    pub fn addresses(&self) -> [u64; 6] {
        SlotPart::ALL.map(|part| self.memory(part).address())
    }

    /// Gives the layer memory for another number of slots; the first `kept` keep what they hold.
    ///
    /// # Errors
    /// When there is no room; nothing has changed then.
    pub fn resize(&mut self, slots: usize, kept: usize) -> Result<(), LinearError> {
        let mut fresh = Vec::with_capacity(SlotPart::ALL.len());
        for part in SlotPart::ALL {
            let bytes = self.slot_bytes(part);
            let mut memory = Memory::new(&self.device, bytes * slots)?;
            memory.copy_from(0, self.memory(part), 0, bytes * kept.min(slots).min(self.options.slots))?;
            fresh.push(memory);
        }
        for (part, memory) in SlotPart::ALL.into_iter().zip(fresh) {
            *self.memory_mut(part) = memory;
        }
        self.options.slots = slots;
        Ok(())
    }

    /// Copies all that slot `from` holds to slot `to`.
    ///
    /// # Errors
    /// [`LinearError::Slot`], and what the device says.
    pub fn copy_slot(&mut self, from: usize, to: usize) -> Result<(), LinearError> {
        if from.max(to) >= self.options.slots || from == to {
            return Err(LinearError::Slot(from.max(to)));
        }
        for part in SlotPart::ALL {
            let bytes = self.slot_bytes(part);
            self.memory_mut(part).copy_within(from * bytes, to * bytes, bytes)?;
        }
        Ok(())
    }

    /// Reads a part of a slot.
    ///
    /// # Errors
    /// [`LinearError::Slot`], and what the device says.
    pub fn read_slot<T: Plain>(&self, part: SlotPart, slot: usize, to: &mut [T]) -> Result<(), LinearError> {
        self.check_slot(part, slot, size_of_val(to))?;
        Ok(self.memory(part).read(slot * self.slot_bytes(part), to)?)
    }

    /// Writes a part of a slot.
    ///
    /// # Errors
    /// [`LinearError::Slot`], and what the device says.
    pub fn write_slot<T: Plain>(
        &mut self,
        part: SlotPart,
        slot: usize,
        from: &[T],
    ) -> Result<(), LinearError> {
        self.check_slot(part, slot, size_of_val(from))?;
        let offset = slot * self.slot_bytes(part);
        Ok(self.memory_mut(part).write(offset, from)?)
    }

    fn check_slot(&self, part: SlotPart, slot: usize, found: usize) -> Result<(), LinearError> {
        let expected = self.slot_bytes(part);
        match (slot < self.options.slots, found == expected) {
            (false, _) => Err(LinearError::Slot(slot)),
            (true, false) => Err(LinearError::Length { what: "a part of a slot", found, expected }),
            (true, true) => Ok(()),
        }
    }
}
