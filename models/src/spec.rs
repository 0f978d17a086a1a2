//! The specification of a model: a list of layers, each a mixer and a feed-forward. One executor runs them all.

/// Everything the executor needs to know about a model besides its weights.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelSpec {
    /// Family name as its files spell it, e.g. `qwen35`, `qwen35moe`, `qwen3next`.
    pub arch: String,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Rows of the embedding and of the output head.
    pub vocab: usize,
    /// Longest context the model was made for, in tokens.
    pub context: usize,
    /// Epsilon of every RMS norm.
    pub norm_eps: f32,
    /// Layers in order.
    pub layers: Vec<LayerSpec>,
    /// Whether the output head is the embedding.
    pub tied_head: bool,
    /// The multi-token-prediction head, where the file carries one.
    pub mtp: Option<MtpSpec>,
}

/// One layer: `x += mixer(norm(x)); x += ffn(norm(x))`.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerSpec {
    /// How tokens see each other.
    pub mixer: MixerSpec,
    /// What happens to each token alone.
    pub ffn: FfnSpec,
}

/// How a layer mixes tokens.
#[derive(Clone, Debug, PartialEq)]
pub enum MixerSpec {
    /// Linear attention with a recurrent state.
    Linear(LinearSpec),
    /// Softmax attention over a key/value cache.
    Attention(AttentionSpec),
}

impl MixerSpec {
    /// The linear mixer, if it is one.
    pub fn as_linear(&self) -> Option<&LinearSpec> {
        match self {
            MixerSpec::Linear(linear) => Some(linear),
            MixerSpec::Attention(_) => None,
        }
    }

    /// The softmax-attention mixer, if it is one.
    pub fn as_attention(&self) -> Option<&AttentionSpec> {
        match self {
            MixerSpec::Linear(_) => None,
            MixerSpec::Attention(attention) => Some(attention),
        }
    }
}

/// A linear-attention mixer.
#[derive(Clone, Debug, PartialEq)]
pub struct LinearSpec {
    /// Key (and query) heads.
    pub key_heads: usize,
    /// Value heads; a multiple of `key_heads`.
    pub value_heads: usize,
    /// Width of a key.
    pub key_dim: usize,
    /// Width of a value.
    pub value_dim: usize,
    /// Taps of the depthwise causal convolution over queries, keys and values.
    pub conv_width: usize,
    /// How the state decays.
    pub decay: Decay,
    /// What a token writes.
    pub write: Write,
    /// Which key head a value head reads.
    pub head_map: HeadMap,
}

/// How the state of a linear mixer decays from token to token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decay {
    /// One factor per value head (Gated DeltaNet).
    PerHead,
    /// One factor per key channel (Kimi Delta Attention).
    PerKeyChannel,
}

/// What a token writes into the state of a linear mixer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Write {
    /// The delta rule: the value minus what the state returns for the key, times beta in `(0, beta_max)`.
    Delta {
        /// 1 for most models, 2 where negative eigenvalues are allowed.
        beta_max: f32,
    },
}

/// Which key head a value head reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadMap {
    /// Value head `h` reads key head `h / r`, `r = value_heads / key_heads` (Hugging Face order).
    Grouped,
    /// Value head `h` reads key head `h % key_heads` (order of GGUF files).
    Tiled,
}

impl LinearSpec {
    /// The key head that value head `value_head` reads.
    pub fn key_head_of(&self, value_head: usize) -> usize {
        match self.head_map {
            HeadMap::Grouped => value_head / (self.value_heads / self.key_heads),
            HeadMap::Tiled => value_head % self.key_heads,
        }
    }

    /// Channels of the convolution: queries, keys, values.
    pub fn conv_channels(&self) -> usize {
        2 * self.key_heads * self.key_dim + self.value_heads * self.value_dim
    }

    /// Bytes of the full recurrent state of one sequence in this layer, in f32.
    pub fn state_bytes(&self) -> usize {
        self.value_heads * self.key_dim * self.value_dim * 4
    }

    /// Log decays of one token and value head.
    pub fn decay_width(&self) -> usize {
        match self.decay {
            Decay::PerHead => 1,
            Decay::PerKeyChannel => self.key_dim,
        }
    }

    /// Bytes of one log entry (key, delta, log decay) of one sequence in this layer, in f32.
    pub fn log_entry_bytes(&self) -> usize {
        (self.key_heads * self.key_dim + self.value_heads * (self.value_dim + self.decay_width())) * 4
    }
}

/// A softmax-attention mixer.
#[derive(Clone, Debug, PartialEq)]
pub struct AttentionSpec {
    /// Query heads; a multiple of `kv_heads`.
    pub heads: usize,
    /// Key/value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Leading dimensions of a head that are rotated.
    pub rotary_dim: usize,
    /// Base of the rotary frequencies.
    pub rope_theta: f32,
    /// Whether the query projection also yields a sigmoid output gate (query and gate interleaved by head).
    pub output_gate: bool,
}

impl AttentionSpec {
    /// Values of keys plus values that one token adds to the cache of this layer.
    pub fn kv_values_per_token(&self) -> usize {
        2 * self.kv_heads * self.head_dim
    }
}

/// A feed-forward.
#[derive(Clone, Debug, PartialEq)]
pub enum FfnSpec {
    /// `down(silu(gate(x)) * up(x))`.
    Dense {
        /// Inner width.
        width: usize,
    },
    /// A mixture of such feed-forwards.
    Moe(MoeSpec),
}

impl FfnSpec {
    /// The mixture of experts, if it is one.
    pub fn as_moe(&self) -> Option<&MoeSpec> {
        match self {
            FfnSpec::Dense { .. } => None,
            FfnSpec::Moe(moe) => Some(moe),
        }
    }
}

/// A mixture of experts.
#[derive(Clone, Debug, PartialEq)]
pub struct MoeSpec {
    /// Routed experts.
    pub experts: usize,
    /// Experts each token visits.
    pub top_k: usize,
    /// Inner width of a routed expert.
    pub expert_width: usize,
    /// Inner width of the shared expert, scaled by a sigmoid gate; 0 where there is none.
    pub shared_width: usize,
    /// Whether the weights of the chosen experts are normalised to sum to one.
    pub normalize_weights: bool,
}

/// The multi-token-prediction head: one attention layer that reads the normed hidden state of token `t` and the
/// embedding of token `t + 1`, and predicts token `t + 2`.
#[derive(Clone, Debug, PartialEq)]
pub struct MtpSpec {
    /// Its only layer.
    pub layer: LayerSpec,
    /// Whether it has an embedding of its own.
    pub own_embedding: bool,
    /// Whether it has an output head of its own.
    pub own_head: bool,
}
