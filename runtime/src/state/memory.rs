//! What one sequence holds on the CPU: base state, log, convolution inputs, attention pages.
//!
//! Copies are cheap: the base and the pages are shared by reference and copied when one of the sharers writes.

use std::sync::Arc;

use aligned_vec::{AVec, ConstAlign};
use half::f16;
use half::slice::HalfFloatSliceExt;

use super::arena::{AllocationError, Arena};
use super::layout::{LinearLayout, PAGE_POSITIONS, StateLayout};

/// A 64-byte aligned vector, so that vectors never straddle cache lines.
pub type Aligned<T> = AVec<T, ConstAlign<64>>;

/// A zeroed aligned vector.
pub fn zeroed<T: Default + Clone>(len: usize) -> Aligned<T> {
    let mut vector = Aligned::new(64);
    vector.resize(len, T::default());
    vector
}

/// The log of one linear layer, for `capacity` entries. Value heads come in the order of the key heads they read.
#[derive(Clone, Debug)]
pub struct LayerLog {
    /// Entries there is room for.
    pub capacity: usize,
    /// `[key_heads][capacity][key_dim]`, normalised keys.
    pub keys: Aligned<f32>,
    /// `[value_heads][groups][capacity][group lanes]`.
    pub deltas: Aligned<f32>,
    /// `[value_heads][capacity]`, log decays.
    pub gates: Aligned<f32>,
}

impl LayerLog {
    /// An empty log.
    pub fn new(layout: &LinearLayout, capacity: usize) -> LayerLog {
        LayerLog {
            capacity,
            keys: zeroed(layout.spec.key_heads * capacity * layout.spec.key_dim),
            deltas: zeroed(layout.total_groups() * capacity * layout.group_lanes()),
            gates: zeroed(layout.spec.value_heads * capacity),
        }
    }

    /// Copies `count` entries of `from`, starting at `first`, to the front of this log.
    pub fn copy_entries(&mut self, from: &LayerLog, layout: &LinearLayout, first: usize, count: usize) {
        let copy = |to: &mut [f32], source: &[f32], width: usize| {
            let blocks = to.chunks_exact_mut(self.capacity.max(1) * width);
            for (to, source) in blocks.zip(source.chunks_exact(from.capacity.max(1) * width)) {
                to[..count * width].copy_from_slice(&source[first * width..(first + count) * width]);
            }
        };
        copy(&mut self.keys, &from.keys, layout.spec.key_dim);
        copy(&mut self.deltas, &from.deltas, layout.group_lanes());
        copy(&mut self.gates, &from.gates, 1);
    }

    /// Drops the first `first` entries and moves the next `count` to the front.
    pub fn drop_front(&mut self, layout: &LinearLayout, first: usize, count: usize) {
        if first == 0 || count == 0 {
            return;
        }
        let shift = |values: &mut [f32], width: usize| {
            for block in values.chunks_exact_mut(self.capacity * width) {
                block.copy_within(first * width..(first + count) * width, 0);
            }
        };
        shift(&mut self.keys, layout.spec.key_dim);
        shift(&mut self.deltas, layout.group_lanes());
        shift(&mut self.gates, 1);
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        (self.keys.len() + self.deltas.len() + self.gates.len()) * 4
    }
}

/// Keys and values of [`PAGE_POSITIONS`] positions in every attention layer, laid out as
/// [`super::layout::AttentionLayout`] says.
#[derive(Clone, Debug)]
pub enum KvPage {
    /// Single precision.
    F32(Aligned<f32>),
    /// Half precision.
    F16(Aligned<f16>),
    /// Blocks of Q8_0: for each 32 values a half-precision scale and 32 signed bytes.
    Q8(Aligned<u8>),
}

/// Precision of the attention cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum KvType {
    /// Single precision: for comparisons.
    F32,
    /// Half precision.
    #[default]
    F16,
    /// Eight bits and a half-precision scale for each 32 values: for long contexts. Heads must be whole blocks.
    Q8,
}

/// Values of a block of [`KvPage::Q8`], and its bytes.
pub const Q8_VALUES: usize = 32;
/// Bytes of a block of [`KvPage::Q8`].
pub const Q8_BYTES: usize = 34;

impl KvType {
    /// Bytes of `values` values, which are whole heads; `None` when that overflows.
    pub fn bytes(self, values: usize) -> Option<usize> {
        match self {
            KvType::F32 => values.checked_mul(4),
            KvType::F16 => values.checked_mul(2),
            KvType::Q8 => (values / Q8_VALUES).checked_mul(Q8_BYTES),
        }
    }
}

impl KvPage {
    /// A zeroed page of `len` values.
    pub fn new(kind: KvType, len: usize) -> KvPage {
        match kind {
            KvType::F32 => KvPage::F32(zeroed(len)),
            KvType::F16 => KvPage::F16(zeroed(len)),
            KvType::Q8 => KvPage::Q8(zeroed(len / Q8_VALUES * Q8_BYTES)),
        }
    }

    /// Writes `values` at `at`, rounding to the page's precision.
    pub fn write(&mut self, at: usize, values: &[f32]) {
        match self {
            KvPage::F32(page) => page[at..at + values.len()].copy_from_slice(values),
            KvPage::F16(page) => page[at..at + values.len()].convert_from_f32_slice(values),
            KvPage::Q8(page) => {
                let blocks = page[at / Q8_VALUES * Q8_BYTES..].as_chunks_mut::<Q8_BYTES>().0;
                for (block, values) in blocks.iter_mut().zip(values.as_chunks().0) {
                    write_q8(values, block);
                }
            }
        }
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        match self {
            KvPage::F32(page) => page.len() * 4,
            KvPage::F16(page) => page.len() * 2,
            KvPage::Q8(page) => page.len(),
        }
    }
}

/// The largest magnitude becomes 127; what is not finite makes a block that is not a number.
fn write_q8(values: &[f32; Q8_VALUES], block: &mut [u8; Q8_BYTES]) {
    // Magnitudes of floats are ordered like their bits, and what is not finite is above everything.
    let largest = values.iter().fold(0, |largest, value| (value.to_bits() & 0x7fff_ffff).max(largest));
    let scale = f16::from_f32(f32::from_bits(largest) / 127.0);
    let stored = if f32::from_bits(largest).is_finite() { scale } else { f16::NAN };
    let inverse = if scale > f16::ZERO { scale.to_f32().recip() } else { 0.0 };
    block[..2].copy_from_slice(&stored.to_le_bytes());
    for (byte, value) in block[2..].iter_mut().zip(values) {
        // The stored scale is rounded, so that the largest may come out a little above 127.
        *byte = (value * inverse).round_ties_even().clamp(-127.0, 127.0) as i8 as u8;
    }
}

/// Everything one sequence holds.
#[derive(Clone, Debug)]
pub struct SequenceMemory {
    /// The base state of all linear layers; absent while it is zero.
    pub base: Option<Arc<Arena>>,
    /// One log per linear layer, all of one capacity.
    pub logs: Vec<LayerLog>,
    /// One ring of convolution inputs per linear layer, `[conv_rows][channels]`, row `position % conv_rows`.
    pub conv: Vec<Aligned<f32>>,
    /// Rows of a convolution ring.
    pub conv_rows: usize,
    /// Pages of the attention cache, in order.
    pub pages: Vec<Arc<KvPage>>,
    /// Precision of new pages.
    pub kv_type: KvType,
}

impl SequenceMemory {
    /// The memory of an empty sequence whose windows have at most `max_window` rows.
    pub fn new(layout: &StateLayout, kv_type: KvType, max_window: usize) -> SequenceMemory {
        let taps = layout.linear.iter().map(|layer| layer.spec.conv_width).max().unwrap_or(1);
        let conv_rows = taps - 1 + max_window;
        SequenceMemory {
            base: None,
            logs: layout.linear.iter().map(|layer| LayerLog::new(layer, 0)).collect(),
            conv: layout.linear.iter().map(|layer| zeroed(conv_rows * layer.spec.conv_channels())).collect(),
            conv_rows,
            pages: Vec::new(),
            kv_type,
        }
    }

    /// Entries each log has room for.
    pub fn log_capacity(&self) -> usize {
        self.logs.first().map_or(0, |log| log.capacity)
    }

    /// Gives every log room for exactly `capacity` entries, keeping the first `live`.
    pub fn resize_logs(&mut self, layout: &StateLayout, capacity: usize, live: usize) {
        for (log, layer) in self.logs.iter_mut().zip(&layout.linear) {
            let mut resized = LayerLog::new(layer, capacity);
            resized.copy_entries(log, layer, 0, live);
            *log = resized;
        }
    }

    /// The base, writable: allocated as zeros where there is none, copied where it is shared.
    ///
    /// # Errors
    /// [`AllocationError`] when the system gives no memory.
    pub fn base_mut(&mut self, layout: &StateLayout) -> Result<&mut Arena, AllocationError> {
        let unshared = self.base.as_mut().is_some_and(|base| Arc::get_mut(base).is_some());
        if !unshared {
            let own = match &self.base {
                None => Arena::zeroed(layout.base_len, "recurrent state")?,
                Some(shared) => shared.duplicate("recurrent state")?,
            };
            self.base = Some(Arc::new(own));
        }
        // Nobody shares a reference that was just found or made unique.
        Ok(self.base.as_mut().and_then(Arc::get_mut).expect("a unique reference"))
    }

    /// Makes room for attention pages up to `positions`, and makes those from `first` on writable.
    pub fn prepare_pages(&mut self, layout: &StateLayout, first: usize, positions: usize) {
        if layout.page_len == 0 {
            return;
        }
        while self.pages.len() * PAGE_POSITIONS < positions {
            self.pages.push(Arc::new(KvPage::new(self.kv_type, layout.page_len)));
        }
        for page in &mut self.pages[first / PAGE_POSITIONS..positions.div_ceil(PAGE_POSITIONS)] {
            Arc::make_mut(page);
        }
    }

    /// Drops pages that lie wholly at or beyond `positions`.
    pub fn truncate_pages(&mut self, positions: usize) {
        self.pages.truncate(positions.div_ceil(PAGE_POSITIONS));
    }

    /// Bytes by kind. Shared memory counts for every sharer.
    pub fn usage(&self) -> MemoryUsage {
        MemoryUsage {
            base: self.base.as_ref().map_or(0, |base| base.bytes()),
            log: self.logs.iter().map(LayerLog::bytes).sum(),
            conv: self.conv.iter().map(|ring| ring.len() * 4).sum(),
            kv: self.pages.iter().map(|page| page.bytes()).sum(),
        }
    }
}

/// Bytes a sequence holds, by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryUsage {
    /// Base state of the linear layers.
    pub base: usize,
    /// Logs of the linear layers.
    pub log: usize,
    /// Convolution inputs.
    pub conv: usize,
    /// Attention pages.
    pub kv: usize,
}

impl MemoryUsage {
    /// All of it.
    pub fn total(&self) -> usize {
        self.base + self.log + self.conv + self.kv
    }
}
