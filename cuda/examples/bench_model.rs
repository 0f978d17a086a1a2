//! Time of decoding with a whole model on a GPU: random weights in the shape of Qwen3.5-0.8B, in the formats that
//! llama.cpp's Q4_K_M has for them.
//!
//! Usage: `bench_model [--batches 1,4,16,64] [--steps 64] [--position 100] [--copy GB_PER_S]`

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use millpond::backend::cpu::Arithmetic;
use millpond::backend::{Backend, BackendError, Outputs, Segment, Slot, WantLogits};
use millpond::runner::BufferOptions;
use millpond::state::memory::KvType;
use millpond::state::{Cursor, PassKind, StateLayout};
use millpond::weights::{
    AttentionWeights, FfnWeights, GluWeights, LayerWeights, LinearInput, LinearWeights, Matrix, MixerWeights,
    ModelWeights,
};
use millpond_cuda::driver::Driver;
use millpond_cuda::{CudaBackend, CudaOptions, Device, DeviceError, Memory, Recording};
use millpond_models::{
    AttentionSpec, Decay, FfnSpec, HeadMap, LayerSpec, LinearSpec, MixerSpec, ModelSpec, Write,
};
use millpond_simd::quant::QFormat;

const LAYERS: usize = 24;
const HIDDEN: usize = 1024;
const VOCABULARY: usize = 248_320;
const FEED_FORWARD: usize = 3584;
/// Layers whose wider formats llama.cpp's mixture chooses.
const BETTER: [usize; 12] = [0, 1, 2, 5, 8, 11, 14, 17, 20, 21, 22, 23];

struct Options {
    batches: Vec<usize>,
    steps: usize,
    position: usize,
}

fn options() -> Result<Options, String> {
    let mut options = Options { batches: vec![1, 4, 16, 64], steps: 64, position: 100 };
    let mut arguments: VecDeque<String> = std::env::args().skip(1).collect();
    while let Some(name) = arguments.pop_front() {
        let value = arguments.pop_front().ok_or(format!("{name} needs a value"))?;
        let number = |value: &str| value.parse::<usize>().map_err(|error| format!("{name} {value}: {error}"));
        match name.as_str() {
            "--batches" => options.batches = value.split(',').map(number).collect::<Result<_, _>>()?,
            "--steps" => options.steps = number(&value)?,
            "--position" => options.position = number(&value)?,
            _ => return Err(format!("unknown option {name}")),
        }
    }
    Ok(options)
}

/// A fast source of bits.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn floats(&mut self, len: usize, scale: f32) -> Vec<f32> {
        (0..len).map(|_| ((self.next() >> 40) as f32 / (1_u64 << 23) as f32 - 1.0) * scale).collect()
    }

    /// Random blocks whose values are about as large as those of a trained matrix.
    fn matrix(&mut self, format: QFormat, rows: usize, cols: usize) -> Matrix {
        let row_bytes = format.row_bytes(cols).expect("whole blocks");
        let mut bytes = Vec::with_capacity(rows * row_bytes + 8);
        while bytes.len() < rows * row_bytes {
            bytes.extend_from_slice(&self.next().to_ne_bytes());
        }
        bytes.truncate(rows * row_bytes);
        let halves: &[usize] = if format == QFormat::Q6K { &[208] } else { &[0, 2] };
        for block in bytes.chunks_exact_mut(format.block_bytes()) {
            for &at in halves {
                block[at..at + 2].copy_from_slice(&half::f16::from_f32(1e-4).to_le_bytes());
            }
        }
        let range = 0..bytes.len();
        Matrix::new(format, rows, cols, Arc::new(bytes), range).expect("the shape of its bytes")
    }
}

fn linear_spec() -> LinearSpec {
    LinearSpec {
        key_heads: 16,
        value_heads: 16,
        key_dim: 128,
        value_dim: 128,
        conv_width: 4,
        decay: Decay::PerHead,
        write: Write::Delta { beta_max: 1.0 },
        head_map: HeadMap::Tiled,
    }
}

fn attention_spec() -> AttentionSpec {
    AttentionSpec { heads: 8, kv_heads: 2, head_dim: 256, rotary_dim: 64, rope_theta: 1e7, output_gate: true }
}

fn model() -> (ModelSpec, ModelWeights) {
    let mut noise = Noise(88_172_645_463_325_252);
    let (mut specs, mut layers) = (Vec::new(), Vec::new());
    for layer in 0..LAYERS {
        let better = if BETTER.contains(&layer) { QFormat::Q6K } else { QFormat::Q4K };
        let (mixer_spec, mixer) = if layer % 4 == 3 {
            let weights = AttentionWeights {
                q: noise.matrix(QFormat::Q4K, 4096, HIDDEN),
                k: noise.matrix(QFormat::Q4K, 512, HIDDEN),
                v: noise.matrix(better, 512, HIDDEN),
                q_norm: vec![1.0; 256],
                k_norm: vec![1.0; 256],
                out: noise.matrix(QFormat::Q4K, HIDDEN, 2048),
            };
            (MixerSpec::Attention(attention_spec()), MixerWeights::Attention(Box::new(weights)))
        } else {
            let weights = LinearWeights {
                input: LinearInput::Split {
                    qkv: noise.matrix(better, 6144, HIDDEN),
                    z: noise.matrix(QFormat::Q4K, 2048, HIDDEN),
                    beta: noise.matrix(QFormat::Q4K, 16, HIDDEN),
                    alpha: noise.matrix(QFormat::Q4K, 16, HIDDEN),
                },
                conv: noise.floats(6144 * 4, 0.5),
                a: vec![-0.05; 16],
                dt_bias: vec![0.5; 16],
                norm: vec![1.0; 128],
                out: noise.matrix(QFormat::Q4K, HIDDEN, 2048),
            };
            (MixerSpec::Linear(linear_spec()), MixerWeights::Linear(Box::new(weights)))
        };
        specs.push(LayerSpec { mixer: mixer_spec, ffn: FfnSpec::Dense { width: FEED_FORWARD } });
        layers.push(LayerWeights {
            mixer_norm: vec![1.0; HIDDEN],
            mixer,
            ffn_norm: vec![1.0; HIDDEN],
            ffn: FfnWeights::Dense(GluWeights {
                gate: noise.matrix(QFormat::Q4K, FEED_FORWARD, HIDDEN),
                up: noise.matrix(QFormat::Q4K, FEED_FORWARD, HIDDEN),
                down: noise.matrix(better, HIDDEN, FEED_FORWARD),
            }),
        });
    }
    let embedding = noise.matrix(QFormat::Q6K, VOCABULARY, HIDDEN);
    let spec = ModelSpec {
        arch: "qwen35".to_owned(),
        hidden: HIDDEN,
        vocab: VOCABULARY,
        context: 262_144,
        norm_eps: 1e-6,
        layers: specs,
        tied_head: true,
        mtp: None,
    };
    let output = embedding.clone();
    (spec, ModelWeights { embedding, layers, output_norm: vec![1.0; HIDDEN], output, mtp: None })
}

/// Sequences that decode together.
struct Streams {
    backend: CudaBackend,
    streams: Vec<(Slot, Cursor)>,
    outputs: Outputs,
}

impl Streams {
    fn pass(&mut self, rows: usize, kind: PassKind) -> Result<(), BackendError> {
        let plans: Vec<_> = self.streams.iter().map(|(_, cursor)| cursor.plan(rows, kind)).collect();
        let tokens = vec![7_u32; rows];
        let segments: Vec<Segment<'_>> = self
            .streams
            .iter()
            .zip(&plans)
            .map(|((slot, _), plan)| Segment { slot: *slot, tokens: &tokens, plan, logits: WantLogits::Last })
            .collect();
        self.backend.forward(&segments, &mut self.outputs)?;
        for ((_, cursor), plan) in self.streams.iter_mut().zip(&plans) {
            cursor.advance(plan);
            if kind == PassKind::Window {
                cursor.commit(rows).expect("rows are pending");
            }
        }
        Ok(())
    }
}

/// Bytes per second of a copy within the device, read and written.
fn copy_rate(driver: &Arc<Driver>) -> Result<f64, DeviceError> {
    const BYTES: usize = 1 << 30;
    let device: Arc<dyn Device> = driver.clone();
    let (from, mut to) = (Memory::filled(&device, BYTES, 1)?, Memory::filled(&device, BYTES, 1)?);
    let mut times = Vec::new();
    for _ in 0..9 {
        times.push(driver.time(|| to.copy_from(0, &from, 0, BYTES))?);
    }
    Ok(2.0 * BYTES as f64 / median(times) / 1e-3)
}

fn median(mut values: Vec<f32>) -> f64 {
    values.sort_by(f32::total_cmp);
    f64::from(values[values.len() / 2])
}

/// Microseconds that the recorded launches of the last step take on the device.
fn device_time(driver: &Arc<Driver>, recording: &dyn Recording) -> Result<f64, DeviceError> {
    let mut times = Vec::new();
    for _ in 0..15 {
        // SAFETY: nothing has moved since the step that was recorded.
        times.push(driver.time(|| unsafe { recording.run() })?);
    }
    Ok(median(times) * 1e3)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let options = options()?;
    let driver = Driver::new(0)?;
    println!("{}", driver.describe());
    let rate = copy_rate(&driver)?;
    println!("copy within the device: {:.0} GB/s read and written", rate / 1e9);
    let started = Instant::now();
    let (spec, weights) = model();
    let spec = Arc::new(spec);
    let buffer = CudaBackend::fitting(BufferOptions::default(), &spec);
    let cuda = CudaOptions { kv_type: KvType::F16, buffer, arithmetic: Arithmetic::Quantised };
    println!("made a model in {:.1} s", started.elapsed().as_secs_f64());
    for &batch in &options.batches {
        let started = Instant::now();
        let mut backend = CudaBackend::new(driver.clone(), spec.clone(), &weights, cuda)?;
        let loaded = started.elapsed().as_secs_f64();
        let layout = StateLayout::new(&spec);
        let mut streams = Vec::new();
        for stream in 0..batch {
            streams.push((backend.create()?, Cursor::new(buffer.policy(&layout, stream as u32))));
        }
        let bytes = backend.weight_bytes() as f64;
        let mut all = Streams { backend, streams, outputs: Outputs::default() };
        let started = Instant::now();
        all.pass(options.position, PassKind::Prefill)?;
        let first = started.elapsed();
        let mut times = Vec::new();
        for step in 0..16 + options.steps {
            let started = Instant::now();
            all.pass(1, PassKind::Window)?;
            if step >= 16 {
                times.push(started.elapsed().as_secs_f32() * 1e6);
            }
        }
        let finite = all.outputs.logits.iter().all(|logit| logit.is_finite());
        let step = median(times);
        let on_device = match all.backend.last_recording() {
            Some(recording) => device_time(&driver, recording)?,
            None => f64::NAN,
        };
        println!(
            "batch {batch:3}: {step:8.1} us a step ({:7.0} tokens/s), {on_device:8.1} us of them on the device; \
             weights {:.0} MB, {:.0} us at the copy rate ({:4.1} % of the device's time); prompt of {} in {:.1} ms, \
             loaded in {loaded:.2} s, finite {finite}",
            batch as f64 / step * 1e6,
            bytes / 1e6,
            bytes / rate * 1e6,
            100.0 * bytes / rate * 1e6 / on_device,
            batch * options.position,
            first.as_secs_f64() * 1e3,
        );
    }
    Ok(())
}
