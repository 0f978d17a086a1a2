//! The CPU backend: walks the layers of a model over a batch of sequences.

mod attention;
mod ffn;
mod forward;
mod head;
mod layers;
pub mod linear;
mod project;
mod scratch;

use std::sync::Arc;

use millpond_models::{Decay, ModelSpec};
use millpond_simd::kernels::Kernels;

use super::{Backend, BackendError, MtpSegment, Outputs, Segment, Slot};
use crate::par::{PassThreads, Team};
use crate::state::layout::{PAGE_POSITIONS, StateLayout};
use crate::state::memory::{KvType, MemoryUsage, Q8_VALUES, SequenceMemory, StateType};
use crate::weights::ModelWeights;
use attention::RotaryTable;
use forward::{Running, Scratch, wanted};
use layers::Context;
use linear::Placement;
pub use project::Arithmetic;

/// How the CPU backend is set up.
#[derive(Clone, Copy, Debug)]
pub struct CpuOptions {
    /// Precision of the attention cache.
    pub kv_type: KvType,
    /// Precision of the base state.
    pub state_type: StateType,
    /// Most rows of a window that may be rolled back: one plus the longest draft.
    pub max_window: usize,
    /// Log entries kept for, once there is a base: the fold interval.
    pub fold_interval: usize,
    /// What quantised weights are multiplied with.
    pub arithmetic: Arithmetic,
}

/// A model on the CPU with the sequences that use it.
pub struct CpuBackend {
    spec: Arc<ModelSpec>,
    weights: Arc<ModelWeights>,
    kernels: &'static Kernels,
    team: Team,
    threads: PassThreads,
    options: CpuOptions,
    layout: StateLayout,
    rotary: Vec<RotaryTable>,
    sequences: Vec<Option<SequenceMemory>>,
    scratch: Scratch,
    /// Memory of earlier passes' lists.
    running: Vec<Running<'static>>,
    idle_placements: Vec<Placement>,
}
impl CpuBackend {
    /// A backend for a model.
    ///
    /// # Errors
    /// [`BackendError::Unsupported`] for shapes the kernels do not know.
    pub fn new(
        spec: Arc<ModelSpec>,
        weights: Arc<ModelWeights>,
        kernels: &'static Kernels,
        team: Team,
        options: CpuOptions,
    ) -> Result<CpuBackend, BackendError> {
        let layout = StateLayout::new(&spec).with_state_type(options.state_type);
        check_shapes(&layout, options.kv_type)?;
        let rotary = layout.attention.iter().map(|layer| RotaryTable::new(&layer.spec)).collect();
        Ok(CpuBackend {
            spec,
            weights,
            kernels,
            threads: PassThreads::new(team.threads(), 0),
            team,
            options,
            layout,
            rotary,
            sequences: Vec::new(),
            scratch: Scratch::default(),
            running: Vec::new(),
            idle_placements: Vec::new(),
        })
    }

    /// The same with other numbers of threads for its passes: as many as the team has at most.
    #[must_use]
    pub fn with_threads(self, threads: PassThreads) -> CpuBackend {
        CpuBackend { threads, ..self }
    }

    /// Shapes of the sequences' memory.
    pub fn layout(&self) -> &StateLayout {
        &self.layout
    }

    /// The kernels in use.
    pub fn kernels(&self) -> &'static Kernels {
        self.kernels
    }

    /// The memory of a sequence, to save it.
    ///
    /// # Errors
    /// [`BackendError::Slot`] for an unknown slot.
    pub fn memory(&self, slot: Slot) -> Result<&SequenceMemory, BackendError> {
        self.sequences.get(slot.0).and_then(Option::as_ref).ok_or(BackendError::Slot(slot.0))
    }

    /// The memory of a sequence, writable: what lies beyond its cursor may be overwritten, the rest must not.
    ///
    /// # Errors
    /// [`BackendError::Slot`] for an unknown slot.
    pub fn memory_mut(&mut self, slot: Slot) -> Result<&mut SequenceMemory, BackendError> {
        self.sequences.get_mut(slot.0).and_then(Option::as_mut).ok_or(BackendError::Slot(slot.0))
    }

    /// Puts memory into a slot of its own: a restored or forked sequence.
    pub fn adopt(&mut self, memory: SequenceMemory) -> Slot {
        let free = self.sequences.iter().position(Option::is_none).unwrap_or(self.sequences.len());
        if free == self.sequences.len() {
            self.sequences.push(None);
        }
        self.sequences[free] = Some(memory);
        Slot(free)
    }
}

/// Refuses shapes beyond what the kernels are written for.
fn check_shapes(layout: &StateLayout, kv_type: KvType) -> Result<(), BackendError> {
    let unsupported =
        |what: &'static str, found: usize, max: usize| Err(BackendError::Unsupported { what, found, max });
    for layer in &layout.linear {
        if layer.spec.conv_width > linear::MAX_TAPS {
            return unsupported("taps of the convolution", layer.spec.conv_width, linear::MAX_TAPS);
        }
        if layer.spec.decay != Decay::PerHead {
            return unsupported("decays per head", layer.spec.key_dim, 1);
        }
    }
    for layer in &layout.attention {
        if kv_type == KvType::Q8 && !layer.spec.head_dim.is_multiple_of(Q8_VALUES) {
            return unsupported(
                "values of a head over the last whole block of an 8-bit cache",
                layer.spec.head_dim % Q8_VALUES,
                0,
            );
        }
        let group = layer.spec.heads / layer.spec.kv_heads;
        if group > attention::MAX_GROUP {
            return unsupported("query heads of a key/value head", group, attention::MAX_GROUP);
        }
    }
    Ok(())
}

impl Backend for CpuBackend {
    fn create(&mut self) -> Result<Slot, BackendError> {
        let memory = SequenceMemory::new(&self.layout, self.options.kv_type, self.options.max_window)?;
        Ok(self.adopt(memory))
    }

    fn release(&mut self, slot: Slot) {
        if let Some(memory) = self.sequences.get_mut(slot.0) {
            *memory = None;
        }
    }

    fn forward(&mut self, segments: &[Segment<'_>], outputs: &mut Outputs) -> Result<(), BackendError> {
        self.run_batch(segments, outputs)
    }

    fn forward_mtp(
        &mut self,
        segments: &[MtpSegment<'_>],
        outputs: &mut Outputs,
    ) -> Result<(), BackendError> {
        self.run_mtp(segments, outputs)
    }

    fn truncate(&mut self, slot: Slot, position: usize) -> Result<(), BackendError> {
        let memory = self.sequences.get_mut(slot.0).and_then(Option::as_mut);
        memory.ok_or(BackendError::Slot(slot.0))?.truncate_pages(position);
        Ok(())
    }

    fn fork(&mut self, slot: Slot) -> Result<Slot, BackendError> {
        let copy = self.memory(slot)?.fork()?;
        Ok(self.adopt(copy))
    }

    fn export(&self, slot: Slot) -> Result<SequenceMemory, BackendError> {
        Ok(self.memory(slot)?.fork()?)
    }

    fn import(&mut self, memory: SequenceMemory) -> Result<Slot, BackendError> {
        Ok(self.adopt(memory))
    }

    fn compact(&mut self, slot: Slot, live: usize) -> Result<(), BackendError> {
        let memory = self.sequences.get_mut(slot.0).and_then(Option::as_mut);
        Ok(memory.ok_or(BackendError::Slot(slot.0))?.resize_logs(&self.layout, live, live)?)
    }

    fn footprint(&self, slots: &[Slot]) -> usize {
        let memories = || slots.iter().filter_map(|slot| self.memory(*slot).ok());
        let own: usize = memories().map(|memory| memory.usage()).map(|usage| usage.log + usage.conv).sum();
        let bases = memories().filter_map(|memory| memory.base.as_ref());
        let pages = memories().flat_map(|memory| &memory.pages);
        let mut shared: Vec<(usize, usize)> =
            bases.map(|base| (Arc::as_ptr(base).addr(), base.bytes())).collect();
        shared.extend(pages.map(|page| (Arc::as_ptr(page).addr(), page.bytes())));
        shared.sort_unstable();
        shared.dedup();
        own + shared.iter().map(|&(_, bytes)| bytes).sum::<usize>()
    }

    fn usage(&self, slot: Slot) -> Result<MemoryUsage, BackendError> {
        Ok(self.memory(slot)?.usage())
    }
}

const _: () = assert!(PAGE_POSITIONS.is_power_of_two());
