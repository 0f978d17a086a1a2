//! Sequences that consist of linear layers alone, stepped by the code that steps a model's.

use std::sync::Arc;
use std::time::{Duration, Instant};

use millpond::backend::cpu::linear::{
    LinearParameters, LinearScratch, LinearStream, Placement, RowInputs, first_unit, mix_batch,
};
use millpond::par::Team;
use millpond::state::arena::Arena;
use millpond::state::memory::{BaseState, KvType, MemoryUsage, SequenceMemory, StateType};
use millpond::state::{Cursor, FoldPolicy, PassKind, PassPlan, StateLayout};
use millpond_models::LinearSpec;
use millpond_simd::Kernels;
use millpond_simd::linear::Ahead;

use super::shapes::Shape;
use super::traffic::{self, Traffic};

/// Tokens every sequence starts with: a base and an empty log.
const START: usize = 1 << 12;

/// Values without a pattern, in `-1..1`.
pub(super) struct Noise(u64);

impl Noise {
    pub(super) fn new(seed: u64) -> Noise {
        Noise(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub(super) fn next(&mut self) -> f32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    pub(super) fn values(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.next()).collect()
    }

    /// Rows of `width` values, each of length `norm`.
    fn unit_rows(&mut self, rows: usize, width: usize, norm: f32) -> Vec<f32> {
        let mut values = self.values(rows * width);
        for row in values.chunks_exact_mut(width) {
            let length = row.iter().map(|x| x * x).sum::<f32>().sqrt().max(1e-6);
            row.iter_mut().for_each(|x| *x *= norm / length);
        }
        values
    }
}

/// What a sequence's rows hold, in the forms of [`RowInputs`].
pub(super) struct Operands {
    pub(super) queries: Vec<f32>,
    pub(super) keys: Vec<f32>,
    pub(super) values: Vec<f32>,
    pub(super) beta: Vec<f32>,
    pub(super) decay: Vec<f32>,
    qkv: Vec<f32>,
}

impl Operands {
    /// Operands of `rows` rows. Decays are slow, so that a state neither grows nor fades to denormals.
    pub(super) fn new(spec: &LinearSpec, rows: usize, seed: u64) -> Operands {
        let mut noise = Noise::new(seed);
        let (heads, dk) = (spec.key_heads, spec.key_dim);
        Operands {
            queries: noise.unit_rows(rows * heads, dk, (dk as f32).sqrt().recip()),
            keys: noise.unit_rows(rows * heads, dk, 1.0),
            values: noise.values(rows * spec.value_heads * spec.value_dim),
            beta: noise.values(rows * spec.value_heads).iter().map(|x| 0.5 + 0.4 * x).collect(),
            decay: noise.values(rows * spec.value_heads).iter().map(|x| -0.1 * (x + 1.0)).collect(),
            qkv: noise.values(rows * spec.conv_channels()),
        }
    }

    fn inputs(&self, part: Part) -> RowInputs<'_> {
        match part {
            Part::State => RowInputs::Ready {
                queries: &self.queries,
                keys: &self.keys,
                values: &self.values,
                beta: &self.beta,
                decay: &self.decay,
            },
            Part::Mixer => RowInputs::Projected { qkv: &self.qkv, beta: &self.beta, alpha: &self.decay },
        }
    }
}

/// Which part of a layer a step covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// The delta rule, from normalised queries and keys on.
    State,
    /// The same with convolution, normalisation and gates.
    Mixer,
}

/// What a set of sequences is made for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Setup {
    pub(super) shape: Shape,
    /// Independent copies of the layer.
    pub(super) layers: usize,
    /// Sequences.
    pub(super) batch: usize,
    /// Tokens between folds.
    pub(super) interval: usize,
    /// Tokens of a step.
    pub(super) rows: usize,
    pub(super) part: Part,
    /// What states are kept in.
    pub(super) state_type: StateType,
}

/// A step of all sequences through all layers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Step {
    pub(super) time: Duration,
    /// Of one layer.
    pub(super) traffic: Traffic,
    /// Sequences whose base changed.
    pub(super) folds: usize,
}

/// Sequences of `Setup::layers` linear layers.
pub(super) struct Streams {
    setup: Setup,
    kernels: &'static Kernels,
    layout: StateLayout,
    memories: Vec<SequenceMemory>,
    cursors: Vec<Cursor>,
    scratch: Vec<LinearScratch>,
    operands: Vec<Operands>,
    outputs: Vec<Vec<f32>>,
    conv: Vec<f32>,
    heads: (Vec<f32>, Vec<f32>),
}

impl Streams {
    /// `setup.batch` sequences with a base and an empty log, their fold positions spread evenly.
    ///
    /// # Errors
    /// There is not enough memory.
    pub(super) fn new(kernels: &'static Kernels, setup: Setup) -> anyhow::Result<Streams> {
        let spec = setup.shape.linear();
        let mut streams = Streams {
            layout: StateLayout::new(&setup.shape.model(setup.layers)).with_state_type(setup.state_type),
            setup: Setup { batch: 0, ..setup },
            kernels,
            memories: Vec::new(),
            cursors: Vec::new(),
            scratch: Vec::new(),
            operands: Vec::new(),
            outputs: Vec::new(),
            conv: Noise::new(0).values(spec.conv_channels() * spec.conv_width),
            heads: (vec![-0.1; spec.value_heads], vec![0.0; spec.value_heads]),
        };
        for stream in 0..setup.batch {
            streams.add(stream * setup.interval / setup.batch)?;
        }
        Ok(streams)
    }

    /// Adds a sequence that folds at positions congruent to `phase`.
    ///
    /// # Errors
    /// There is not enough memory.
    pub(super) fn add(&mut self, phase: usize) -> anyhow::Result<()> {
        let Setup { interval, rows, .. } = self.setup;
        let (layout, spec, seed) = (&self.layout, &self.layout.linear[0].spec, self.setup.batch as u64 + 1);
        let mut noise = Noise::new(seed);
        let mut memory = SequenceMemory::new(layout, KvType::F16, rows)?;
        memory.resize_logs(layout, interval + 2 * rows, 0)?;
        let mut base = Arena::zeroed(layout.base_len, "recurrent state")?;
        base.values_mut().iter_mut().for_each(|x| *x = 0.1 * noise.next());
        memory.base = Some(Arc::new(BaseState::F32(base).converted(layout.state_type)?));
        for index in 0..layout.linear.len() {
            let ring = memory.rings.layer_mut(&layout.linear, index);
            ring.iter_mut().for_each(|x| *x = noise.next());
        }
        self.memories.push(memory);
        let policy = FoldPolicy { interval, phase: phase % interval, stateless: 0, window: rows };
        self.cursors.extend(Cursor::restore(policy, START, START, policy.window));
        self.scratch.push(LinearScratch::default());
        self.operands.push(Operands::new(spec, rows, seed));
        self.outputs.push(vec![0.0; rows * spec.value_heads * spec.value_dim]);
        self.setup.batch += 1;
        Ok(())
    }

    /// Sequences.
    pub(super) fn len(&self) -> usize {
        self.memories.len()
    }

    /// What a sequence holds.
    pub(super) fn usage(&self) -> MemoryUsage {
        self.memories.first().map_or(MemoryUsage::default(), SequenceMemory::usage)
    }

    /// Appends `Setup::rows` tokens to every sequence and confirms the first `accepted(sequence)` of them.
    pub(super) fn step(
        &mut self,
        team: &Team,
        mut accepted: impl FnMut(usize) -> usize,
    ) -> anyhow::Result<Step> {
        let rows = self.setup.rows;
        let plans: Vec<PassPlan> =
            self.cursors.iter().map(|cursor| cursor.plan(rows, PassKind::Window)).collect();
        let placements: Vec<Placement> = plans.iter().map(Placement::new).collect();
        let parameters = LinearParameters { conv: &self.conv, a: &self.heads.0, dt_bias: &self.heads.1 };
        let (kernels, layout, part) = (self.kernels, &self.layout, self.setup.part);
        let (memories, scratch) = (&mut self.memories, &mut self.scratch);
        let (operands, outputs) = (&self.operands, &mut self.outputs);
        let start = Instant::now();
        team.run(|| {
            for layer in 0..layout.linear.len() {
                let firsts: Vec<Ahead> = plans
                    .iter()
                    .zip(memories.iter())
                    .map(|(plan, memory)| first_unit(layout, layer, plan, memory))
                    .collect();
                let nexts = firsts.into_iter().skip(1).chain([Ahead::NONE]);
                let streams = memories.iter_mut().zip(scratch.iter_mut()).zip(outputs.iter_mut());
                let streams: Vec<LinearStream<'_>> = streams
                    .zip(plans.iter().zip(&placements).zip(operands))
                    .zip(nexts)
                    .map(|((((memory, scratch), out), ((plan, placement), operands)), next)| LinearStream {
                        plan,
                        placement,
                        memory,
                        scratch,
                        inputs: operands.inputs(part),
                        next,
                        out,
                    })
                    .collect();
                mix_batch(kernels, layout, layer, parameters, streams);
            }
        });
        let time = start.elapsed();
        let spec = &self.layout.linear[0].spec;
        let mut step = Step { time, traffic: Traffic::default(), folds: 0 };
        for (stream, (cursor, plan)) in self.cursors.iter_mut().zip(&plans).enumerate() {
            step.traffic += traffic::buffered(spec, self.setup.state_type, plan);
            if part == Part::Mixer {
                step.traffic += traffic::convolution(spec, rows);
            }
            step.folds += usize::from(plan.durably_folded() > 0);
            cursor.advance(plan);
            cursor.commit(accepted(stream))?;
        }
        Ok(step)
    }

    /// What the last step of a sequence returned, `[rows][Hv dv]`.
    #[cfg(test)]
    pub(super) fn outputs(&self, stream: usize) -> &[f32] {
        &self.outputs[stream]
    }

    /// The base of a sequence in one layer, value heads in the order of their key heads.
    #[cfg(test)]
    pub(super) fn base(&self, stream: usize, layer: usize) -> Vec<f32> {
        let layout = &self.layout.linear[layer];
        let base = self.memories[stream].base.as_ref().unwrap();
        base.part(layout.base_offset..layout.base_offset + layout.base_len()).to_f32()
    }
}
