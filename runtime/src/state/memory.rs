//! What one sequence holds on the CPU: base state, log, convolution inputs, attention pages.
//!
//! Copies are cheap: the base and the pages are shared by reference and copied when one of the sharers writes.

use std::ops::Range;
use std::sync::Arc;

use aligned_vec::{AVec, ConstAlign};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use millpond_simd::linear::{State, StateMut};
use zerocopy::IntoBytes;

use super::arena::{AllocationError, Arena};
use super::layout::{PAGE_POSITIONS, StateLayout};
use super::logs::{Logs, Rings};

/// A 64-byte aligned vector, so that vectors never straddle cache lines.
pub type Aligned<T> = AVec<T, ConstAlign<64>>;

/// A zeroed aligned vector.
pub fn zeroed<T: Default + Clone>(len: usize) -> Aligned<T> {
    let mut vector = Aligned::new(64);
    vector.resize(len, T::default());
    vector
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

/// What the base state is kept in. Logs and all arithmetic are in single precision either way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum StateType {
    /// Single precision.
    #[default]
    F32,
    /// `bf16`: half the memory and half the traffic, rounded to nearest once a fold.
    Bf16,
}

impl StateType {
    /// Bytes of a value.
    pub fn bytes(self) -> usize {
        match self {
            StateType::F32 => 4,
            StateType::Bf16 => 2,
        }
    }
}

/// A name that is no type of state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no type of state; expected f32 or bf16")]
pub struct UnknownStateType(String);

impl std::str::FromStr for StateType {
    type Err = UnknownStateType;

    fn from_str(name: &str) -> Result<StateType, UnknownStateType> {
        match name {
            "f32" => Ok(StateType::F32),
            "bf16" => Ok(StateType::Bf16),
            _ => Err(UnknownStateType(name.to_owned())),
        }
    }
}

impl std::fmt::Display for StateType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            StateType::F32 => "f32",
            StateType::Bf16 => "bf16",
        })
    }
}

/// The base state of all linear layers.
#[derive(Debug)]
pub enum BaseState {
    /// Single precision.
    F32(Arena<f32>),
    /// Half of that.
    Bf16(Arena<bf16>),
}

/// What memory of states is called in errors.
const WHAT: &str = "recurrent state";

impl BaseState {
    /// A zero state of `len` values.
    ///
    /// # Errors
    /// [`AllocationError`] when the system gives no memory.
    pub fn zeroed(kind: StateType, len: usize) -> Result<BaseState, AllocationError> {
        Ok(match kind {
            StateType::F32 => BaseState::F32(Arena::zeroed(len, WHAT)?),
            StateType::Bf16 => BaseState::Bf16(Arena::zeroed(len, WHAT)?),
        })
    }

    /// A copy.
    ///
    /// # Errors
    /// [`AllocationError`] when the system gives no memory.
    pub fn duplicate(&self) -> Result<BaseState, AllocationError> {
        Ok(match self {
            BaseState::F32(values) => BaseState::F32(values.duplicate(WHAT)?),
            BaseState::Bf16(values) => BaseState::Bf16(values.duplicate(WHAT)?),
        })
    }

    /// What it is kept in.
    pub fn kind(&self) -> StateType {
        match self {
            BaseState::F32(_) => StateType::F32,
            BaseState::Bf16(_) => StateType::Bf16,
        }
    }

    /// Some of its values.
    pub fn part(&self, range: Range<usize>) -> State<'_> {
        match self {
            BaseState::F32(values) => State::F32(&values.values()[range]),
            BaseState::Bf16(values) => State::Bf16(&values.values()[range]),
        }
    }

    /// Some of its values, writable.
    pub fn part_mut(&mut self, range: Range<usize>) -> StateMut<'_> {
        match self {
            BaseState::F32(values) => StateMut::F32(&mut values.values_mut()[range]),
            BaseState::Bf16(values) => StateMut::Bf16(&mut values.values_mut()[range]),
        }
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        match self {
            BaseState::F32(values) => values.bytes(),
            BaseState::Bf16(values) => values.bytes(),
        }
    }

    /// The bytes, in this machine's order.
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            BaseState::F32(values) => values.values().as_bytes(),
            BaseState::Bf16(values) => values.values().as_bytes(),
        }
    }

    /// The bytes, writable.
    pub fn as_bytes_mut(&mut self) -> &mut [u8] {
        match self {
            BaseState::F32(values) => values.values_mut().as_mut_bytes(),
            BaseState::Bf16(values) => values.values_mut().as_mut_bytes(),
        }
    }

    /// The same values kept in `kind`: widened exactly, or rounded to nearest.
    ///
    /// # Errors
    /// [`AllocationError`] when the system gives no memory.
    pub fn converted(self, kind: StateType) -> Result<BaseState, AllocationError> {
        match (self, kind) {
            (BaseState::F32(from), StateType::Bf16) => {
                let mut to = Arena::zeroed(from.values().len(), WHAT)?;
                to.values_mut().convert_from_f32_slice(from.values());
                Ok(BaseState::Bf16(to))
            }
            (BaseState::Bf16(from), StateType::F32) => {
                let mut to = Arena::zeroed(from.values().len(), WHAT)?;
                from.values().convert_to_f32_slice(to.values_mut());
                Ok(BaseState::F32(to))
            }
            (same, _) => Ok(same),
        }
    }
}

/// Everything one sequence holds.
#[derive(Debug)]
pub struct SequenceMemory {
    /// The base state of all linear layers; absent while it is zero.
    pub base: Option<Arc<BaseState>>,
    /// One log per linear layer.
    pub logs: Logs,
    /// Convolution inputs of the linear layers.
    pub rings: Rings,
    /// Pages of the attention cache, in order.
    pub pages: Vec<Arc<KvPage>>,
    /// Precision of new pages.
    pub kv_type: KvType,
}

impl SequenceMemory {
    /// The memory of an empty sequence whose windows have at most `max_window` rows.
    ///
    /// # Errors
    /// [`AllocationError`] when the system gives no memory.
    pub fn new(
        layout: &StateLayout,
        kv_type: KvType,
        max_window: usize,
    ) -> Result<SequenceMemory, AllocationError> {
        let taps = layout.linear.iter().map(|layer| layer.spec.conv_width).max().unwrap_or(1);
        Ok(SequenceMemory {
            base: None,
            logs: Logs::new(&layout.linear, 0)?,
            rings: Rings::new(layout, taps - 1 + max_window)?,
            pages: Vec::new(),
            kv_type,
        })
    }

    /// A copy that shares the base and the pages.
    ///
    /// # Errors
    /// [`AllocationError`] when the system gives no memory.
    pub fn fork(&self) -> Result<SequenceMemory, AllocationError> {
        Ok(SequenceMemory {
            base: self.base.clone(),
            logs: self.logs.duplicate()?,
            rings: self.rings.duplicate()?,
            pages: self.pages.clone(),
            kv_type: self.kv_type,
        })
    }

    /// Gives every log room for exactly `capacity` entries, keeping the first `live`.
    ///
    /// # Errors
    /// [`AllocationError`] when the system gives no memory; nothing changes then.
    pub fn resize_logs(
        &mut self,
        layout: &StateLayout,
        capacity: usize,
        live: usize,
    ) -> Result<(), AllocationError> {
        let mut resized = Logs::new(&layout.linear, capacity)?;
        for (index, layer) in layout.linear.iter().enumerate() {
            let old = self.logs.layer(&layout.linear, index);
            resized.layer_mut(&layout.linear, index).copy_entries(old, layer, 0, live);
        }
        self.logs = resized;
        Ok(())
    }

    /// The base, writable: allocated as zeros where there is none, copied where it is shared.
    ///
    /// # Errors
    /// [`AllocationError`] when the system gives no memory.
    pub fn base_mut(&mut self, layout: &StateLayout) -> Result<&mut BaseState, AllocationError> {
        let unshared = self.base.as_mut().is_some_and(|base| Arc::get_mut(base).is_some());
        if !unshared {
            let own = match &self.base {
                None => BaseState::zeroed(layout.state_type, layout.base_len)?,
                Some(shared) => shared.duplicate()?,
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
            log: self.logs.bytes(),
            conv: self.rings.bytes(),
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

impl std::ops::Add for MemoryUsage {
    type Output = MemoryUsage;

    fn add(self, other: MemoryUsage) -> MemoryUsage {
        MemoryUsage {
            base: self.base + other.base,
            log: self.log + other.log,
            conv: self.conv + other.conv,
            kv: self.kv + other.kv,
        }
    }
}

impl MemoryUsage {
    /// All of it.
    pub fn total(&self) -> usize {
        self.base + self.log + self.conv + self.kv
    }
}
