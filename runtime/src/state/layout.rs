//! How much memory of which shape the sequences of a model need.

use millpond_models::{AttentionSpec, LinearSpec, MixerSpec, ModelSpec};
use millpond_simd::LANES;

use super::memory::{KvType, StateType};

/// Positions in a page of the attention cache.
pub const PAGE_POSITIONS: usize = 64;

/// Most tiles of a group: enough independent sums to keep the arithmetic units busy with one row of one head.
const MAX_GROUP: usize = 4;

/// Shape of the state of one linear layer.
#[derive(Clone, Debug, PartialEq)]
pub struct LinearLayout {
    /// The mixer.
    pub spec: LinearSpec,
    /// Tiles of [`LANES`] values in a value head; the last is zero-padded.
    pub tiles: usize,
    /// Tiles computed together by one unit of work; divides `tiles`.
    pub group: usize,
    /// Where the layer's base state starts in the base arena, in values. Its shape is
    /// `[value_heads][groups][key_dim][group lanes]`, value heads in the order of the key heads they read.
    pub base_offset: usize,
}

impl LinearLayout {
    /// Groups of tiles in a value head.
    pub fn groups(&self) -> usize {
        self.tiles / self.group
    }

    /// Groups of tiles in the layer.
    pub fn total_groups(&self) -> usize {
        self.spec.value_heads * self.groups()
    }

    /// Lanes of a group: values of one token it covers.
    pub fn group_lanes(&self) -> usize {
        self.group * LANES
    }

    /// Values of the base in one group.
    pub fn group_len(&self) -> usize {
        self.group_lanes() * self.spec.key_dim
    }

    /// Values of the layer's base.
    pub fn base_len(&self) -> usize {
        self.total_groups() * self.group_len()
    }
}

/// Shape of the cache of one attention layer.
#[derive(Clone, Debug, PartialEq)]
pub struct AttentionLayout {
    /// The mixer.
    pub spec: AttentionSpec,
    /// Where the layer starts in a page, in values. Its shape is `[keys, values][kv_heads][positions][head_dim]`.
    pub page_offset: usize,
}

impl AttentionLayout {
    /// Values of one head's keys (or values) in a page.
    pub fn head_len(&self) -> usize {
        PAGE_POSITIONS * self.spec.head_dim
    }

    /// Where the keys of a head start in a page.
    pub fn keys_at(&self, kv_head: usize) -> usize {
        self.page_offset + kv_head * self.head_len()
    }

    /// Where the values of a head start in a page.
    pub fn values_at(&self, kv_head: usize) -> usize {
        self.page_offset + (self.spec.kv_heads + kv_head) * self.head_len()
    }
}

/// Which memory a layer's mixer uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MixerSlot {
    /// Index into [`StateLayout::linear`].
    Linear(usize),
    /// Index into [`StateLayout::attention`].
    Attention(usize),
}

/// Shapes of everything a sequence may hold.
#[derive(Clone, Debug, PartialEq)]
pub struct StateLayout {
    /// The linear layers in order.
    pub linear: Vec<LinearLayout>,
    /// The attention layers in order; the one of the multi-token-prediction head comes last.
    pub attention: Vec<AttentionLayout>,
    /// For each layer of the model, the memory of its mixer.
    pub slots: Vec<MixerSlot>,
    /// The attention layer of the multi-token-prediction head.
    pub mtp: Option<usize>,
    /// Values of a base arena.
    pub base_len: usize,
    /// What they are kept in.
    pub state_type: StateType,
    /// Values of a page of the attention cache.
    pub page_len: usize,
}

impl StateLayout {
    /// The layout of a model's sequences, with states in single precision.
    pub fn new(spec: &ModelSpec) -> StateLayout {
        let mut layout = StateLayout {
            linear: Vec::new(),
            attention: Vec::new(),
            slots: Vec::new(),
            mtp: None,
            base_len: 0,
            state_type: StateType::F32,
            page_len: 0,
        };
        for layer in &spec.layers {
            let slot = layout.add(&layer.mixer);
            layout.slots.push(slot);
        }
        if let Some(mtp) = &spec.mtp
            && let MixerSlot::Attention(index) = layout.add(&mtp.layer.mixer)
        {
            layout.mtp = Some(index);
        }
        layout
    }

    /// The same with states kept in `state_type`.
    #[must_use]
    pub fn with_state_type(self, state_type: StateType) -> StateLayout {
        StateLayout { state_type, ..self }
    }

    fn add(&mut self, mixer: &MixerSpec) -> MixerSlot {
        match mixer {
            MixerSpec::Linear(spec) => {
                let tiles = spec.value_dim.div_ceil(LANES);
                let group = (1..=MAX_GROUP).rev().find(|group| tiles.is_multiple_of(*group)).unwrap_or(1);
                let layout = LinearLayout { spec: spec.clone(), tiles, group, base_offset: self.base_len };
                self.base_len += layout.base_len();
                self.linear.push(layout);
                MixerSlot::Linear(self.linear.len() - 1)
            }
            MixerSpec::Attention(spec) => {
                let layout = AttentionLayout { spec: spec.clone(), page_offset: self.page_len };
                self.page_len += spec.kv_values_per_token() * PAGE_POSITIONS;
                self.attention.push(layout);
                MixerSlot::Attention(self.attention.len() - 1)
            }
        }
    }

    /// Bytes of a sequence's full recurrent state.
    pub fn state_bytes(&self) -> usize {
        self.base_len * self.state_type.bytes()
    }

    /// Bytes one token adds to the log, over all layers.
    pub fn log_entry_bytes(&self) -> usize {
        self.linear.iter().map(|layer| layer.spec.log_entry_bytes()).sum()
    }

    /// Bytes of convolution inputs a sequence keeps for each row of its rings.
    pub fn conv_row_bytes(&self) -> usize {
        self.linear.iter().map(|layer| layer.spec.conv_channels() * 4).sum()
    }

    /// Bytes one token adds to the attention cache.
    pub fn kv_bytes_per_token(&self, kv_type: KvType) -> usize {
        kv_type.bytes(self.page_len / PAGE_POSITIONS).unwrap_or(usize::MAX)
    }

    /// The length up to which a sequence's log is no larger than its state: no state is kept below it.
    pub fn break_even(&self) -> usize {
        self.state_bytes().checked_div(self.log_entry_bytes()).unwrap_or(0)
    }
}
