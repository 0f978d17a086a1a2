//! Logs of a sequence's linear layers and the rings of their convolutions: one stretch of memory each, so that they lie
//! on few large pages.

use super::arena::{AllocationError, Arena};
use super::layout::{LinearLayout, StateLayout};

/// Values of a cache line, to which arrays are aligned.
const LINE: usize = 16;

/// The log of one linear layer. Value heads come in the order of the key heads they read.
#[derive(Debug)]
pub struct LogMut<'a> {
    /// Entries there is room for.
    pub capacity: usize,
    /// `[key_heads][capacity][key_dim]`, normalised keys.
    pub keys: &'a mut [f32],
    /// `[value_heads][groups][capacity][group lanes]`.
    pub deltas: &'a mut [f32],
    /// `[value_heads][capacity][decay width]`, log decays.
    pub gates: &'a mut [f32],
}

/// The same, to be read.
#[derive(Clone, Copy, Debug)]
pub struct LogRef<'a> {
    /// Entries there is room for.
    pub capacity: usize,
    /// As in [`LogMut`].
    pub keys: &'a [f32],
    /// As in [`LogMut`].
    pub deltas: &'a [f32],
    /// As in [`LogMut`].
    pub gates: &'a [f32],
}

impl<'a> LogRef<'a> {
    /// The log of a layer, of [`log_len`] values.
    pub fn over(values: &'a [f32], layout: &LinearLayout, capacity: usize) -> LogRef<'a> {
        let [keys, deltas, gates] = parts(layout, capacity);
        let (key_values, values) = values.split_at(keys.next_multiple_of(LINE));
        let (delta_values, values) = values.split_at(deltas.next_multiple_of(LINE));
        LogRef {
            capacity,
            keys: &key_values[..keys],
            deltas: &delta_values[..deltas],
            gates: &values[..gates],
        }
    }
}

impl<'a> LogMut<'a> {
    /// The log of a layer, of [`log_len`] values.
    pub fn over(values: &'a mut [f32], layout: &LinearLayout, capacity: usize) -> LogMut<'a> {
        let [keys, deltas, gates] = parts(layout, capacity);
        let (key_values, values) = values.split_at_mut(keys.next_multiple_of(LINE));
        let (delta_values, values) = values.split_at_mut(deltas.next_multiple_of(LINE));
        LogMut {
            capacity,
            keys: &mut key_values[..keys],
            deltas: &mut delta_values[..deltas],
            gates: &mut values[..gates],
        }
    }

    /// Copies `count` entries of `from`, starting at `first`, to the front of this log.
    pub fn copy_entries(&mut self, from: LogRef<'_>, layout: &LinearLayout, first: usize, count: usize) {
        let copy = |to: &mut [f32], source: &[f32], width: usize| {
            let blocks = to.chunks_exact_mut(self.capacity.max(1) * width);
            for (to, source) in blocks.zip(source.chunks_exact(from.capacity.max(1) * width)) {
                to[..count * width].copy_from_slice(&source[first * width..(first + count) * width]);
            }
        };
        copy(self.keys, from.keys, layout.spec.key_dim);
        copy(self.deltas, from.deltas, layout.group_lanes());
        copy(self.gates, from.gates, layout.spec.decay_width());
    }
}

/// Values of the three arrays of a layer's log.
fn parts(layout: &LinearLayout, capacity: usize) -> [usize; 3] {
    let spec = &layout.spec;
    [
        spec.key_heads * capacity * spec.key_dim,
        layout.total_groups() * capacity * layout.group_lanes(),
        spec.value_heads * capacity * spec.decay_width(),
    ]
}

/// Values of a layer's log, with what alignment adds.
pub fn log_len(layout: &LinearLayout, capacity: usize) -> usize {
    parts(layout, capacity).iter().map(|len| len.next_multiple_of(LINE)).sum()
}

/// Logs of some linear layers, all of one capacity.
#[derive(Debug)]
pub struct Logs {
    capacity: usize,
    /// Layer by layer keys, deltas and decays, each aligned to a cache line.
    values: Arena,
}

impl Logs {
    /// Empty logs of `layers` with room for `capacity` entries each.
    ///
    /// # Errors
    /// [`AllocationError`] when the system gives no memory.
    pub fn new(layers: &[LinearLayout], capacity: usize) -> Result<Logs, AllocationError> {
        let len = layers.iter().map(|layer| log_len(layer, capacity)).sum();
        Ok(Logs { capacity, values: Arena::zeroed(len, "logs of linear layers")? })
    }

    /// A copy.
    ///
    /// # Errors
    /// [`AllocationError`] when the system gives no memory.
    pub fn duplicate(&self) -> Result<Logs, AllocationError> {
        Ok(Logs { capacity: self.capacity, values: self.values.duplicate("logs of linear layers")? })
    }

    /// Entries each log has room for.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.values.bytes()
    }

    /// Whether they are those of `layers`.
    pub fn fit(&self, layers: &[LinearLayout]) -> bool {
        self.values.values().len() == self.start(layers, layers.len())
    }

    fn start(&self, layers: &[LinearLayout], index: usize) -> usize {
        layers[..index].iter().map(|layer| log_len(layer, self.capacity)).sum()
    }

    /// The log of layer `index` of the `layers` the logs were made for.
    pub fn layer(&self, layers: &[LinearLayout], index: usize) -> LogRef<'_> {
        let start = self.start(layers, index);
        LogRef::over(&self.values.values()[start..], &layers[index], self.capacity)
    }

    /// The same, writable.
    pub fn layer_mut(&mut self, layers: &[LinearLayout], index: usize) -> LogMut<'_> {
        let start = self.start(layers, index);
        LogMut::over(&mut self.values.values_mut()[start..], &layers[index], self.capacity)
    }
}

/// Rings of convolution inputs, one per linear layer, `[rows][channels]`, row `position % rows`.
#[derive(Debug)]
pub struct Rings {
    rows: usize,
    values: Arena,
}

impl Rings {
    /// Rings of `rows` rows.
    ///
    /// # Errors
    /// [`AllocationError`] when the system gives no memory.
    pub fn new(layout: &StateLayout, rows: usize) -> Result<Rings, AllocationError> {
        let channels: usize = layout.linear.iter().map(|layer| layer.spec.conv_channels()).sum();
        Ok(Rings { rows, values: Arena::zeroed(rows * channels, "convolution rings")? })
    }

    /// A copy.
    ///
    /// # Errors
    /// [`AllocationError`] when the system gives no memory.
    pub fn duplicate(&self) -> Result<Rings, AllocationError> {
        Ok(Rings { rows: self.rows, values: self.values.duplicate("convolution rings")? })
    }

    /// Rows of each ring.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.values.bytes()
    }

    /// Whether they are those of `layers`.
    pub fn fit(&self, layers: &[LinearLayout]) -> bool {
        let channels: usize = layers.iter().map(|layer| layer.spec.conv_channels()).sum();
        self.values.values().len() == self.rows * channels
    }

    fn range(&self, layers: &[LinearLayout], index: usize) -> std::ops::Range<usize> {
        let before: usize = layers[..index].iter().map(|layer| layer.spec.conv_channels()).sum();
        self.rows * before..self.rows * (before + layers[index].spec.conv_channels())
    }

    /// The ring of layer `index` of the layout's.
    pub fn layer(&self, layers: &[LinearLayout], index: usize) -> &[f32] {
        &self.values.values()[self.range(layers, index)]
    }

    /// The same, writable.
    pub fn layer_mut(&mut self, layers: &[LinearLayout], index: usize) -> &mut [f32] {
        let range = self.range(layers, index);
        &mut self.values.values_mut()[range]
    }
}
