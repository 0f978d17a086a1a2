//! A sequence outside its backend: to be written to a file and read back.

use std::io;
use std::sync::Arc;

use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::arena::AllocationError;
use super::cursor::{Cursor, FoldPolicy};
use super::layout::{PAGE_POSITIONS, StateLayout};
use super::logs::Logs;
use super::memory::{
    Aligned, BaseState, KvPage, KvType, Q8_BYTES, Q8_VALUES, SequenceMemory, StateType, zeroed,
};

/// A sequence without pending rows, and where it stands.
#[derive(Debug)]
pub struct SequenceImage {
    /// What it holds.
    pub memory: SequenceMemory,
    /// Where it stands.
    pub cursor: Cursor,
}

/// The numbers that say how long the arrays of an image are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageShape {
    /// Confirmed tokens.
    pub position: usize,
    /// Tokens the base state holds.
    pub base: usize,
    /// Rows by which the convolution rings allow to go back.
    pub reach_back: usize,
    /// Rows of the convolution rings.
    pub conv_rows: usize,
    /// Precision of the attention pages.
    pub kv_type: KvType,
    /// Precision of the base state.
    pub state_type: StateType,
}

/// Where the bytes of an image go.
pub trait Sink {
    /// Takes some bytes.
    ///
    /// # Errors
    /// Whatever stands behind it.
    fn put(&mut self, bytes: &[u8]) -> io::Result<()>;
}

/// Where the bytes of an image come from.
pub trait Source {
    /// Fills `bytes`.
    ///
    /// # Errors
    /// Whatever stands behind it.
    fn take(&mut self, bytes: &mut [u8]) -> io::Result<()>;
}

/// Why an image could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// The file.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The system gives no memory.
    #[error(transparent)]
    Memory(#[from] AllocationError),
}

impl SequenceImage {
    /// A copy that shares the base and the pages.
    ///
    /// # Errors
    /// [`AllocationError`] when the system gives no memory.
    pub fn fork(&self) -> Result<SequenceImage, AllocationError> {
        Ok(SequenceImage { memory: self.memory.fork()?, cursor: self.cursor.clone() })
    }

    /// The numbers that [`SequenceImage::read`] needs.
    pub fn shape(&self) -> ImageShape {
        ImageShape {
            position: self.cursor.position(),
            base: self.cursor.base(),
            reach_back: self.cursor.reach_back(),
            conv_rows: self.memory.rings.rows(),
            kv_type: self.memory.kv_type,
            state_type: self.memory.base.as_ref().map_or(StateType::F32, |base| base.kind()),
        }
    }

    /// Writes the arrays in a fixed order, in this machine's byte order.
    ///
    /// # Errors
    /// Those of `sink`.
    pub fn write(&self, layout: &StateLayout, sink: &mut dyn Sink) -> io::Result<()> {
        let shape = self.shape();
        if let Some(base) = self.memory.base.as_ref().filter(|_| shape.base > 0) {
            sink.put(base.as_bytes())?;
        }
        for (index, layer) in layout.linear.iter().enumerate() {
            let log = self.memory.logs.layer(&layout.linear, index);
            let widths = [layer.spec.key_dim, layer.group_lanes(), layer.spec.decay_width()];
            for (values, width) in [log.keys, log.deltas, log.gates].into_iter().zip(widths) {
                for block in values.chunks_exact((log.capacity * width).max(1)) {
                    sink.put(block[..shape.log() * width].as_bytes())?;
                }
            }
        }
        for (index, layer) in layout.linear.iter().enumerate() {
            let (ring, channels) =
                (self.memory.rings.layer(&layout.linear, index), layer.spec.conv_channels());
            for row in shape.ring_rows() {
                let at = row % shape.conv_rows * channels;
                sink.put(ring[at..at + channels].as_bytes())?;
            }
        }
        for page in self.memory.pages.iter().take(shape.pages(layout)) {
            match &**page {
                KvPage::F32(values) => sink.put(values.as_bytes())?,
                KvPage::F16(values) => sink.put(values.as_bytes())?,
                KvPage::Q8(values) => sink.put(values)?,
            }
        }
        Ok(())
    }

    /// Reads what [`SequenceImage::write`] wrote, to go on under `policy`. The convolution rings get room for its
    /// windows, whatever they had, and the base becomes what the layout says. The caller has checked [`ImageShape::is_sound`] and compared [`ImageShape::bytes`] with the bytes there are, so that nothing is allocated in vain.
    ///
    /// # Errors
    /// [`ImageError`] from `source` or for want of memory.
    pub fn read(
        layout: &StateLayout,
        shape: &ImageShape,
        policy: FoldPolicy,
        source: &mut dyn Source,
    ) -> Result<SequenceImage, ImageError> {
        let mut memory = SequenceMemory::new(layout, shape.kv_type, policy.window)?;
        if shape.base > 0 {
            let mut base = BaseState::zeroed(shape.state_type, layout.base_len)?;
            source.take(base.as_bytes_mut())?;
            memory.base = Some(Arc::new(base.converted(layout.state_type)?));
        }
        memory.logs = Logs::new(&layout.linear, shape.log())?;
        for (index, layer) in layout.linear.iter().enumerate() {
            let log = memory.logs.layer_mut(&layout.linear, index);
            let widths = [layer.spec.key_dim, layer.group_lanes(), layer.spec.decay_width()];
            for (values, width) in [log.keys, log.deltas, log.gates].into_iter().zip(widths) {
                // In the pieces in which they were written: checksums tell pieces apart.
                for block in values.chunks_exact_mut((log.capacity * width).max(1)) {
                    source.take(block.as_mut_bytes())?;
                }
            }
        }
        let conv_rows = memory.rings.rows();
        for (index, layer) in layout.linear.iter().enumerate() {
            let channels = layer.spec.conv_channels();
            let ring = memory.rings.layer_mut(&layout.linear, index);
            for row in shape.ring_rows() {
                // Later rows of the file take the place of earlier ones where this ring is shorter.
                let at = row % conv_rows * channels;
                source.take(ring[at..at + channels].as_mut_bytes())?;
            }
        }
        for _ in 0..shape.pages(layout) {
            let page = match shape.kv_type {
                KvType::F32 => KvPage::F32(read_values(layout.page_len, source)?),
                KvType::F16 => KvPage::F16(read_values(layout.page_len, source)?),
                KvType::Q8 => KvPage::Q8(read_values(layout.page_len / Q8_VALUES * Q8_BYTES, source)?),
            };
            memory.pages.push(Arc::new(page));
        }
        let cursor = Cursor::restore(policy, shape.position, shape.base, shape.reach_back);
        let cursor = cursor.ok_or_else(|| io::Error::other("the base state is ahead of the sequence"))?;
        Ok(SequenceImage { memory, cursor })
    }
}

fn read_values<T>(len: usize, source: &mut dyn Source) -> io::Result<Aligned<T>>
where
    T: Default + Clone + FromBytes + IntoBytes + Immutable,
{
    let mut values = zeroed::<T>(len);
    source.take(values.as_mut_bytes())?;
    Ok(values)
}

impl ImageShape {
    /// Entries of the logs.
    pub fn log(&self) -> usize {
        self.position.saturating_sub(self.base)
    }

    /// Positions whose convolution inputs are kept.
    fn ring_rows(&self) -> std::ops::Range<usize> {
        self.position.saturating_sub(self.conv_rows)..self.position
    }

    fn pages(&self, layout: &StateLayout) -> usize {
        if layout.page_len == 0 { 0 } else { self.position.div_ceil(PAGE_POSITIONS) }
    }

    /// Whether the numbers make sense together for a model's layout.
    pub fn is_sound(&self, layout: &StateLayout) -> bool {
        let taps = layout.linear.iter().map(|layer| layer.spec.conv_width).max().unwrap_or(1);
        self.base <= self.position
            && self.conv_rows >= (taps - 1).max(1)
            && self.reach_back <= self.conv_rows - (taps - 1)
    }

    /// Bytes of the arrays; `None` when that overflows.
    pub fn bytes(&self, layout: &StateLayout) -> Option<usize> {
        let base = if self.base > 0 { layout.base_len.checked_mul(self.state_type.bytes())? } else { 0 };
        let mut values: usize = 0;
        for layer in &layout.linear {
            let spec = &layer.spec;
            let entry = spec.key_heads * spec.key_dim
                + layer.total_groups() * layer.group_lanes()
                + spec.value_heads * spec.decay_width();
            let ring = self.ring_rows().len().checked_mul(spec.conv_channels())?;
            values = values.checked_add(self.log().checked_mul(entry)?)?.checked_add(ring)?;
        }
        let page = self.kv_type.bytes(layout.page_len)?;
        let pages = self.pages(layout).checked_mul(page)?;
        values.checked_mul(4)?.checked_add(base)?.checked_add(pages)
    }
}
