//! Devices to test on, random layers, and the recurrence in double precision.

use std::sync::{Arc, OnceLock};

use millpond::state::{Cursor, PassKind, PassPlan};
use millpond_cuda::driver::{Driver, driver_present};
use millpond_cuda::emulator::{Emulator, Machine};
use millpond_cuda::linear::{
    Activation, Batch, BatchSequence, LinearInputs, LinearLayer, LinearOptions, LinearWeightsView, Workspace,
};
use millpond_cuda::{Device, Memory};
use millpond_models::{Decay, HeadMap, LinearSpec, Write};

/// The GPU where there is one; otherwise, or where `MILLPOND_TEST_EMULATOR` is set, the emulator in both of its forms,
/// where there is a C++ compiler.
pub(crate) fn devices() -> &'static [(String, Arc<dyn Device>)] {
    static DEVICES: OnceLock<Vec<(String, Arc<dyn Device>)>> = OnceLock::new();
    DEVICES.get_or_init(|| {
        let mut devices: Vec<(String, Arc<dyn Device>)> = Vec::new();
        if driver_present() && std::env::var_os("MILLPOND_TEST_EMULATOR").is_none() {
            devices.push(("GPU".into(), Driver::new(0).unwrap()));
            return devices;
        }
        let directory = std::path::Path::new(env!("CARGO_TARGET_TMPDIR"));
        for machine in [Machine::Sm80, Machine::Sm90] {
            match Emulator::build(directory, machine).unwrap() {
                Some(emulator) => devices.push((format!("{machine:?}"), Arc::new(emulator))),
                None => eprintln!("skipped: there is no C++ compiler to build the emulator with"),
            }
        }
        devices
    })
}

/// Deterministic uniform numbers.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0xABCD)
    }

    /// In `[0, 1)`.
    pub(crate) fn unit(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 40) as f32) / (1_u64 << 24) as f32
    }

    /// In `[-scale, scale)`.
    pub(crate) fn vector(&mut self, len: usize, scale: f32) -> Vec<f32> {
        (0..len).map(|_| (2.0 * self.unit() - 1.0) * scale).collect()
    }
}

pub(crate) fn spec(key_heads: usize, value_heads: usize, key_dim: usize, value_dim: usize) -> LinearSpec {
    LinearSpec {
        key_heads,
        value_heads,
        key_dim,
        value_dim,
        conv_width: 4,
        decay: Decay::PerHead,
        write: Write::Delta { beta_max: 1.0 },
        head_map: HeadMap::Grouped,
    }
}

pub(crate) fn options(activation: Activation, slots: usize) -> LinearOptions {
    LinearOptions { activation, slots, log_capacity: 128, max_window: 8, processors: 1, overlap: true }
}

/// Weights of a layer.
pub(crate) struct Weights {
    pub(crate) conv: Vec<f32>,
    pub(crate) dt_bias: Vec<f32>,
    pub(crate) a: Vec<f32>,
    pub(crate) norm: Vec<f32>,
}

impl Weights {
    pub(crate) fn random(spec: &LinearSpec, random: &mut Random) -> Weights {
        Weights {
            conv: random.vector(spec.conv_channels() * spec.conv_width, 0.7),
            dt_bias: random.vector(spec.value_heads, 1.0),
            a: (0..spec.value_heads).map(|_| -0.5 * random.unit()).collect(),
            norm: random.vector(spec.value_dim, 1.0),
        }
    }

    pub(crate) fn view(&self) -> LinearWeightsView<'_> {
        LinearWeightsView { conv: &self.conv, dt_bias: &self.dt_bias, a: &self.a, norm: &self.norm }
    }
}

/// Projections of some tokens, token by token.
#[derive(Clone, Default)]
pub(crate) struct Tokens {
    pub(crate) qkv: Vec<Vec<f32>>,
    pub(crate) beta: Vec<Vec<f32>>,
    pub(crate) alpha: Vec<Vec<f32>>,
}

impl Tokens {
    pub(crate) fn random(spec: &LinearSpec, count: usize, random: &mut Random) -> Tokens {
        let mut tokens = Tokens::default();
        for _ in 0..count {
            // Every bfloat16 is a float, so both activations see the same inputs.
            let round = |x: f32| half::bf16::from_f32(x).to_f32();
            tokens.qkv.push(random.vector(spec.conv_channels(), 1.5).into_iter().map(round).collect());
            tokens.beta.push(random.vector(spec.value_heads, 3.0));
            tokens.alpha.push(random.vector(spec.value_heads, 3.0));
        }
        tokens
    }
}

/// The layer in double precision: plain recurrence, convolution over all tokens so far.
#[derive(Clone)]
pub(crate) struct Oracle {
    spec: LinearSpec,
    conv: Vec<f64>,
    dt_bias: Vec<f64>,
    a: Vec<f64>,
    history: Vec<Vec<f64>>,
    /// `[value_heads][key_dim][value_dim]`.
    pub(crate) state: Vec<f64>,
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&x| x as f64).collect()
}

impl Oracle {
    pub(crate) fn new(spec: &LinearSpec, weights: &Weights) -> Oracle {
        Oracle {
            spec: spec.clone(),
            conv: wide(&weights.conv),
            dt_bias: wide(&weights.dt_bias),
            a: wide(&weights.a),
            history: Vec::new(),
            state: vec![0.0; spec.value_heads * spec.key_dim * spec.value_dim],
        }
    }

    fn convolved(&self, channel: usize) -> f64 {
        let width = self.spec.conv_width;
        let mut sum = 0.0;
        for (age, row) in self.history.iter().rev().take(width).enumerate() {
            sum += self.conv[channel * width + width - 1 - age] * row[channel];
        }
        sum / (1.0 + (-sum).exp())
    }

    /// One token; returns `[value_heads][value_dim]`.
    pub(crate) fn step(&mut self, qkv: &[f32], beta: &[f32], alpha: &[f32]) -> Vec<f64> {
        let spec = self.spec.clone();
        let (dk, dv) = (spec.key_dim, spec.value_dim);
        self.history.push(wide(qkv));
        let convolved: Vec<f64> = (0..spec.conv_channels()).map(|channel| self.convolved(channel)).collect();
        let head = |first: usize, len: usize| convolved[first..first + len].to_vec();
        let normal = |x: Vec<f64>, factor: f64| -> Vec<f64> {
            let length = (x.iter().map(|x| x * x).sum::<f64>() + 1e-6).sqrt();
            x.into_iter().map(|x| x / length * factor).collect()
        };
        let mut out = Vec::new();
        for h in 0..spec.value_heads {
            let kh = spec.key_head_of(h);
            let q = normal(head(kh * dk, dk), (dk as f64).sqrt().recip());
            let k = normal(head((spec.key_heads + kh) * dk, dk), 1.0);
            let v = head(2 * spec.key_heads * dk + h * dv, dv);
            let Write::Delta { beta_max } = spec.write;
            let beta = beta_max as f64 / (1.0 + (-beta[h] as f64).exp());
            let x = alpha[h] as f64 + self.dt_bias[h];
            let softplus = if x > 20.0 { x } else { x.exp().ln_1p() };
            let decay = (self.a[h] * softplus).exp();
            let state = &mut self.state[h * dk * dv..(h + 1) * dk * dv];
            for v_index in 0..dv {
                let mut returned = 0.0;
                for i in 0..dk {
                    state[i * dv + v_index] *= decay;
                    returned += state[i * dv + v_index] * k[i];
                }
                let delta = beta * (v[v_index] - returned);
                let mut o = 0.0;
                for i in 0..dk {
                    state[i * dv + v_index] += k[i] * delta;
                    o += state[i * dv + v_index] * q[i];
                }
                out.push(o);
            }
        }
        out
    }
}

/// A layer on a device with what a pass needs.
pub(crate) struct Rig {
    pub(crate) device: Arc<dyn Device>,
    pub(crate) spec: LinearSpec,
    pub(crate) options: LinearOptions,
    pub(crate) layer: LinearLayer,
    pub(crate) workspace: Workspace,
}

/// Activations as the device stores them.
fn stored(activation: Activation, values: &[f32]) -> Vec<u8> {
    match activation {
        Activation::F32 => values.iter().flat_map(|x| x.to_ne_bytes()).collect(),
        Activation::Bf16 => values.iter().flat_map(|&x| half::bf16::from_f32(x).to_ne_bytes()).collect(),
    }
}

pub(crate) fn loaded(activation: Activation, memory: &Memory, len: usize) -> Vec<f32> {
    match activation {
        Activation::F32 => {
            let mut values = vec![0.0_f32; len];
            memory.read(0, &mut values).unwrap();
            values
        }
        Activation::Bf16 => {
            let mut values = vec![half::bf16::ZERO; len];
            memory.read(0, &mut values).unwrap();
            values.into_iter().map(|x| x.to_f32()).collect()
        }
    }
}

/// Rows that a sequence appends in a pass.
pub(crate) struct Rows<'a> {
    pub(crate) slot: usize,
    pub(crate) plan: &'a PassPlan,
    pub(crate) tokens: &'a Tokens,
    /// The first of them.
    pub(crate) first: usize,
}

impl Rig {
    pub(crate) fn new(
        device: &Arc<dyn Device>,
        spec: &LinearSpec,
        options: LinearOptions,
        weights: &Weights,
    ) -> Rig {
        let layer = LinearLayer::new(device, spec, options, weights.view()).unwrap();
        Rig { device: device.clone(), spec: spec.clone(), options, layer, workspace: Workspace::default() }
    }

    pub(crate) fn upload(&self, values: &[f32]) -> Memory {
        Memory::of(&self.device, &stored(self.options.activation, values)).unwrap()
    }

    /// Runs a pass; returns `[rows][value_heads][value_dim]` of each sequence.
    pub(crate) fn pass(&mut self, rows: &[Rows<'_>]) -> Vec<Vec<f32>> {
        let gather = |part: fn(&Tokens) -> &Vec<Vec<f32>>| -> Vec<f32> {
            let of = |r: &Rows<'_>| part(r.tokens)[r.first..r.first + r.plan.rows].concat();
            rows.iter().flat_map(of).collect()
        };
        let qkv = self.upload(&gather(|t| &t.qkv));
        let beta = Memory::of(&self.device, &gather(|t| &t.beta)).unwrap();
        let alpha = Memory::of(&self.device, &gather(|t| &t.alpha)).unwrap();
        let sequences: Vec<BatchSequence<'_>> =
            rows.iter().map(|r| BatchSequence { slot: r.slot, plan: r.plan }).collect();
        let batch = Batch::new(&self.device, &self.spec, &self.options, &sequences).unwrap();
        let mut out = Memory::filled(&self.device, self.layer.output_bytes(batch.rows()), 0xff).unwrap();
        let inputs = LinearInputs { qkv: &qkv, beta: &beta, alpha: &alpha };
        self.layer.forward(&batch, &mut self.workspace, inputs, &mut out).unwrap();
        let (heads, padded) = (self.spec.value_heads, self.layer.padded_value_dim());
        let all = loaded(self.options.activation, &out, batch.rows() * heads * padded);
        let mut result = Vec::new();
        let mut heads_of_rows = all.chunks_exact(padded);
        for r in rows {
            let mut own = Vec::new();
            for head in heads_of_rows.by_ref().take(r.plan.rows * heads) {
                own.extend_from_slice(&head[..self.spec.value_dim]);
            }
            result.push(own);
        }
        result
    }

    /// Appends tokens to one sequence as the cursor plans it.
    pub(crate) fn append(
        &mut self,
        slot: usize,
        cursor: &mut Cursor,
        tokens: &Tokens,
        first: usize,
        count: usize,
        kind: PassKind,
    ) -> Vec<f32> {
        let plan = cursor.plan(count, kind);
        let out = self.pass(&[Rows { slot, plan: &plan, tokens, first }]).remove(0);
        cursor.advance(&plan);
        out
    }
}

/// Largest difference relative to the largest value.
pub(crate) fn error(got: &[f32], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    let scale = want.iter().fold(1e-3_f64, |max, x| max.max(x.abs()));
    got.iter().zip(want).fold(0.0, |max, (&got, &want)| {
        assert!(got.is_finite(), "a result is not finite");
        f64::max(max, (got as f64 - want).abs() / scale)
    })
}

pub(crate) fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}
