//! Sequences between the device and the form in which the runtime saves them.

use half::f16;
use millpond::backend::{BackendError, Slot};
use millpond::state::PassPlan;
use millpond::state::arena::Arena;
use millpond::state::layout::{LinearLayout, PAGE_POSITIONS};
use millpond::state::memory::{BaseState, KvPage, KvType, SequenceMemory};
use millpond_simd::LANES;

use super::sequences::Sequences;
use super::{failed, mixer_failed};
use crate::linear::{LinearLayer, SlotPart};

/// Where the saved form and the device keep the numbers of one linear layer.
struct Map<'a> {
    layout: &'a LinearLayout,
    key_dim: usize,
    value_dim: usize,
    capacity: usize,
}

impl<'a> Map<'a> {
    fn new(layout: &'a LinearLayout, layer: &LinearLayer) -> Map<'a> {
        let (key_dim, value_dim) = layer.widths();
        Map { layout, key_dim, value_dim, capacity: layer.log_capacity() }
    }

    /// Value heads in the order of the key heads they read, as the saved form has them.
    fn value_heads(&self) -> Vec<usize> {
        let spec = &self.layout.spec;
        let mut heads: Vec<usize> = (0..spec.value_heads).collect();
        heads.sort_by_key(|&head| (spec.key_head_of(head), head));
        heads
    }

    /// Calls `each(saved, device)` with the places of all numbers of a base.
    fn base(&self, mut each: impl FnMut(usize, usize)) {
        let (layout, spec) = (self.layout, &self.layout.spec);
        let lanes = layout.group * LANES;
        for (place, head) in self.value_heads().into_iter().enumerate() {
            for v in 0..spec.value_dim {
                let group = place * layout.groups() + v / lanes;
                for k in 0..spec.key_dim {
                    let saved = layout.base_offset + group * layout.group_len() + k * lanes + v % lanes;
                    each(saved, (head * self.value_dim + v) * self.key_dim + k);
                }
            }
        }
    }

    /// The same for the keys of a log entry, whose saved logs have room for `room` entries.
    fn keys(&self, room: usize, entry: usize, position: usize, mut each: impl FnMut(usize, usize)) {
        let spec = &self.layout.spec;
        for head in 0..spec.key_heads {
            let device = (head * self.capacity + position % self.capacity) * self.key_dim;
            let saved = (head * room + entry) * spec.key_dim;
            (0..spec.key_dim).for_each(|k| each(saved + k, device + k));
        }
    }

    /// The same for its deltas.
    fn deltas(&self, room: usize, entry: usize, position: usize, mut each: impl FnMut(usize, usize)) {
        let (layout, spec) = (self.layout, &self.layout.spec);
        let lanes = layout.group * LANES;
        for (place, head) in self.value_heads().into_iter().enumerate() {
            let device = (head * self.capacity + position % self.capacity) * self.value_dim;
            for v in 0..spec.value_dim {
                let group = place * layout.groups() + v / lanes;
                each((group * room + entry) * lanes + v % lanes, device + v);
            }
        }
    }

    /// The same for its decays.
    fn gates(&self, room: usize, entry: usize, position: usize, mut each: impl FnMut(usize, usize)) {
        for (place, head) in self.value_heads().into_iter().enumerate() {
            each(place * room + entry, head * self.capacity + position % self.capacity);
        }
    }
}

fn read(layer: &LinearLayer, part: SlotPart, slot: usize) -> Result<Vec<f32>, BackendError> {
    let mut values = vec![0.0_f32; layer.slot_bytes(part) / 4];
    layer.read_slot(part, slot, &mut values).map_err(mixer_failed)?;
    Ok(values)
}

/// A copy of a sequence in the runtime's form. Convolution rings get as many rows as `max_window` needs.
///
/// # Errors
/// [`BackendError::Slot`], and what the device says.
pub(super) fn export(
    sequences: &Sequences,
    slot: Slot,
    kv_type: KvType,
    max_window: usize,
) -> Result<SequenceMemory, BackendError> {
    let sequence = sequences.get(slot)?;
    if let Some(restored) = &sequence.restored {
        return Ok(restored.fork()?);
    }
    let layout = &sequences.layout;
    let mut memory = SequenceMemory::new(layout, kv_type, max_window)?;
    let entries = sequence.position.saturating_sub(sequence.base);
    let mut base = match sequence.base {
        0 => None,
        _ => Some(Arena::zeroed(layout.base_len, "recurrent state")?),
    };
    memory.resize_logs(layout, entries, 0)?;
    let conv_rows = memory.rings.rows();
    for (index, layer) in sequences.linear.iter().enumerate() {
        let map = Map::new(&layout.linear[index], layer);
        if let Some(base) = &mut base {
            let (from, to) = (read(layer, SlotPart::Base, slot.0)?, base.values_mut());
            map.base(|saved, device| to[saved] = from[device]);
        }
        let log = memory.logs.layer_mut(&layout.linear, index);
        let [keys, scales, deltas, gates] =
            [SlotPart::Keys, SlotPart::KeyScales, SlotPart::Deltas, SlotPart::Gates]
                .map(|part| read(layer, part, slot.0));
        let (keys, scales, deltas, gates) = (keys?, scales?, deltas?, gates?);
        for entry in 0..entries {
            let position = sequence.base + entry;
            // A scale belongs to a whole key.
            map.keys(entries, entry, position, |saved, device| {
                log.keys[saved] = keys[device] * scales[device / map.key_dim];
            });
            map.deltas(entries, entry, position, |saved, device| log.deltas[saved] = deltas[device]);
            map.gates(entries, entry, position, |saved, device| log.gates[saved] = gates[device]);
        }
        let channels = map.layout.spec.conv_channels();
        let ring = read(layer, SlotPart::Convolution, slot.0)?;
        let kept = layer.conv_rows().min(conv_rows);
        let own = memory.rings.layer_mut(&layout.linear, index);
        for position in sequence.position.saturating_sub(kept)..sequence.position {
            let from = position % layer.conv_rows() * channels;
            let to = position % conv_rows * channels;
            own[to..to + channels].copy_from_slice(&ring[from..from + channels]);
        }
    }
    memory.base = base.map(|base| std::sync::Arc::new(BaseState::F32(base)));
    for &page in sequence.pages.iter().take(sequence.position.div_ceil(PAGE_POSITIONS)) {
        let mut copy = KvPage::new(kv_type, layout.page_len);
        match &mut copy {
            KvPage::F32(values) => sequences.pages.read(page, &mut values[..]).map_err(failed)?,
            KvPage::F16(values) => sequences.pages.read::<f16>(page, &mut values[..]).map_err(failed)?,
            KvPage::Q8(bytes) => sequences.pages.read::<u8>(page, &mut bytes[..]).map_err(failed)?,
        }
        memory.pages.push(std::sync::Arc::new(copy));
    }
    Ok(memory)
}

/// Puts a restored sequence, which goes on with `plan`, on the device.
///
/// # Errors
/// [`BackendError`] for memory that is not of this model, when there is no room, and what the device says.
pub(super) fn place(
    sequences: &mut Sequences,
    slot: Slot,
    plan: &PassPlan,
    kv_type: KvType,
) -> Result<(), BackendError> {
    let Some(memory) = sequences.get_mut(slot)?.restored.take() else { return Ok(()) };
    check(sequences, &memory, plan, kv_type)?;
    let base = memory.base.as_ref().map(|base| base.part(0..sequences.layout.base_len).to_f32());
    let (layout, conv_rows) = (sequences.layout.clone(), memory.rings.rows());
    for (index, layer) in sequences.linear.iter_mut().enumerate() {
        let map = Map::new(&sequences.layout.linear[index], layer);
        if let Some(base) = &base {
            let mut to = vec![0.0_f32; layer.slot_bytes(SlotPart::Base) / 4];
            map.base(|saved, device| to[device] = base[saved]);
            layer.write_slot(SlotPart::Base, slot.0, &to).map_err(mixer_failed)?;
        }
        let zeros = |part| vec![0.0_f32; layer.slot_bytes(part) / 4];
        let (mut keys, mut deltas) = (zeros(SlotPart::Keys), zeros(SlotPart::Deltas));
        let mut gates = zeros(SlotPart::Gates);
        // Saved keys are normalised.
        let scales = vec![1.0_f32; layer.slot_bytes(SlotPart::KeyScales) / 4];
        let log = memory.logs.layer(&layout.linear, index);
        for entry in 0..plan.log {
            let position = plan.start - plan.log + entry;
            map.keys(log.capacity, entry, position, |saved, device| keys[device] = log.keys[saved]);
            map.deltas(log.capacity, entry, position, |saved, device| deltas[device] = log.deltas[saved]);
            map.gates(log.capacity, entry, position, |saved, device| gates[device] = log.gates[saved]);
        }
        let channels = map.layout.spec.conv_channels();
        let mut ring = zeros(SlotPart::Convolution);
        let kept = layer.conv_rows().min(conv_rows);
        let own = memory.rings.layer(&layout.linear, index);
        for position in plan.start.saturating_sub(kept)..plan.start {
            let from = position % conv_rows * channels;
            let to = position % layer.conv_rows() * channels;
            ring[to..to + channels].copy_from_slice(&own[from..from + channels]);
        }
        for (part, values) in [
            (SlotPart::Keys, &keys),
            (SlotPart::KeyScales, &scales),
            (SlotPart::Deltas, &deltas),
            (SlotPart::Gates, &gates),
            (SlotPart::Convolution, &ring),
        ] {
            layer.write_slot(part, slot.0, values).map_err(mixer_failed)?;
        }
    }
    for page in memory.pages.iter().take(plan.start.div_ceil(PAGE_POSITIONS)) {
        let fresh = sequences.pages.take().map_err(failed)?;
        sequences.get_mut(slot)?.pages.push(fresh);
        match &**page {
            KvPage::F32(values) => sequences.pages.write(fresh, &values[..]).map_err(failed)?,
            KvPage::F16(values) => sequences.pages.write::<f16>(fresh, &values[..]).map_err(failed)?,
            KvPage::Q8(bytes) => sequences.pages.write::<u8>(fresh, &bytes[..]).map_err(failed)?,
        }
    }
    Ok(())
}

/// Whether restored memory has the shapes of this backend and what the plan goes on from.
fn check(
    sequences: &Sequences,
    memory: &SequenceMemory,
    plan: &PassPlan,
    kv_type: KvType,
) -> Result<(), BackendError> {
    let layout = &sequences.layout;
    let pages = if layout.page_len == 0 { 0 } else { plan.start.div_ceil(PAGE_POSITIONS) };
    let layers = memory.logs.fit(&layout.linear) && memory.rings.fit(&layout.linear);
    let logs = memory.logs.capacity() >= plan.log;
    let entries = sequences.linear.iter().all(|layer| layer.log_capacity() >= plan.log);
    let base = memory.base.is_some() || !plan.has_base;
    let kv = memory.kv_type == kv_type && memory.pages.len() >= pages;
    if layers && logs && entries && base && kv {
        return Ok(());
    }
    Err(BackendError::Device("a saved sequence does not fit this model or its options".to_owned()))
}
