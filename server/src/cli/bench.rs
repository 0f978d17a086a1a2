//! `millpond bench`: how fast a model reads (`pp`) and writes (`tg`), in llama-bench's vocabulary.
//!
//! `tg` also says which share of the memory bandwidth, measured in the same run, the bytes account for that a token
//! cannot do without: the weights once for all streams, and each stream's state, log and attention cache.

use std::time::Instant;

use millpond::backend::WantLogits;
use millpond::model::Model;
use millpond::par::default_threads;
use millpond::runner::{Runner, Sequence, Work};
use millpond::state::PassKind;
use millpond::state::memory::KvType;

use super::args::{BenchArgs, BenchPart};
use super::bench_report::{self, Measurement, Test};
use super::evaluate;
use super::failure::usage;
use super::machine::Machine;
use super::settings::{self, Compute};
use crate::bench::rates::read_rate;

/// Rows of a prefill pass.
const SLICE: usize = 512;

/// Runs the command.
///
/// # Errors
/// Wrong usage, a model that does not load.
pub(crate) fn run(args: &BenchArgs) -> anyhow::Result<()> {
    match &args.part {
        Some(BenchPart::Linear(args)) => return crate::bench::linear::run(args),
        Some(BenchPart::Capacity(args)) => return crate::bench::capacity::run(args),
        Some(BenchPart::Spec(args)) => return crate::bench::spec::run(args),
        None => {}
    }
    if args.repetitions == 0 || args.streams.contains(&0) {
        return Err(usage("repetitions and streams must be at least 1"));
    }
    let compute = Compute::new(&args.compute, KvType::F16)?;
    let tests = tests(args);
    if tests.is_empty() {
        return Err(usage("nothing to measure: -p and -n are 0"));
    }
    let model = settings::load_model(&args.model)?;
    let threads = if compute.threads == 0 { default_threads() } else { compute.threads };
    let bandwidth = read_rate(threads, Machine::look().room())?;
    let longest = tests.iter().map(|test| test.depth + test.tokens).max().unwrap_or(0);
    let runner = evaluate::runner(&model, &compute, longest)?;
    let mut bench = Bench { runner, model: &model, rows: compute.rows(SLICE) };
    let mut results = Vec::new();
    for test in tests {
        let (seconds, bytes) = bench.measure(&test, args.repetitions)?;
        results.push(Measurement { test, seconds, bytes, threads, isa: compute.isa, bandwidth });
    }
    bench_report::print(&model, &results, args.output)
}

fn tests(args: &BenchArgs) -> Vec<Test> {
    let mut tests = Vec::new();
    for &depth in &args.n_depth {
        let prompts = args.n_prompt.iter().map(|&tokens| Test { prefill: true, tokens, depth, streams: 1 });
        tests.extend(prompts);
        for &streams in &args.streams {
            let written = args.n_gen.iter().map(|&tokens| Test { prefill: false, tokens, depth, streams });
            tests.extend(written);
        }
    }
    tests.retain(|test| test.tokens > 0);
    tests
}

struct Bench<'a> {
    runner: Runner,
    model: &'a Model,
    rows: usize,
}

impl Bench<'_> {
    /// Seconds of each repetition, and the bytes that one of them has to read. What lies before the measured tokens is
    /// read once, and each repetition goes on from a fork of it. One repetition more comes first and does not count: it
    /// brings in pages of the file and grows scratch memory.
    fn measure(&mut self, test: &Test, repetitions: usize) -> anyhow::Result<(Vec<f64>, f64)> {
        let mut before = Vec::new();
        for stream in 0..test.streams {
            let mut sequence = self.runner.create()?;
            if test.depth > 0 {
                let tokens = self.tokens(test.depth, stream);
                self.runner.prefill(&mut sequence, &tokens, self.rows, WantLogits::None)?;
            }
            before.push(sequence);
        }
        let (mut seconds, mut bytes) = (Vec::new(), 0.0);
        for repetition in 0..repetitions + 1 {
            let mut sequences = Vec::new();
            for sequence in &before {
                sequences.push(self.runner.fork(sequence)?);
            }
            let start = Instant::now();
            if test.prefill {
                let tokens = self.tokens(test.tokens, repetition + 1);
                self.runner.prefill(&mut sequences[0], &tokens, self.rows, WantLogits::Last)?;
            } else {
                bytes = self.generate(test, &mut sequences)?;
            }
            seconds.push(start.elapsed().as_secs_f64());
            sequences.into_iter().for_each(|sequence| self.runner.release(sequence));
        }
        before.into_iter().for_each(|sequence| self.runner.release(sequence));
        seconds.remove(0);
        Ok((seconds, bytes))
    }

    /// Writes tokens on all streams and returns the bytes that takes.
    fn generate(&mut self, test: &Test, sequences: &mut [Sequence]) -> anyhow::Result<f64> {
        let weights = weight_bytes(self.model);
        let mut bytes = 0.0;
        for step in 0..test.tokens {
            let tokens: Vec<[u32; 1]> =
                (0..sequences.len()).map(|stream| [self.token(step + 31 * stream)]).collect();
            let mut work: Vec<Work<'_>> = sequences
                .iter_mut()
                .zip(&tokens)
                .map(|(sequence, tokens)| Work {
                    sequence,
                    tokens,
                    kind: PassKind::Window,
                    logits: WantLogits::Last,
                })
                .collect();
            self.runner.step(&mut work)?;
            bytes += weights;
            for sequence in sequences.iter_mut() {
                self.runner.commit(sequence, 1)?;
                let usage = self.runner.usage(sequence)?;
                bytes += (usage.base + usage.kv) as f64;
            }
        }
        Ok(bytes)
    }

    /// Some token; which ones does not matter as nothing is chosen, but a mixture of experts should not get always the
    /// same.
    fn token(&self, index: usize) -> u32 {
        let mixed = (index as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 33;
        (mixed % self.model.spec.vocab as u64) as u32
    }

    fn tokens(&self, count: usize, salt: usize) -> Vec<u32> {
        (0..count).map(|index| self.token(index + 7919 * salt)).collect()
    }
}

/// Bytes of weights that one decoding step reads: all matrices but the rows of the embedding that are not looked up, the
/// experts that are not visited, and the multi-token-prediction head.
fn weight_bytes(model: &Model) -> f64 {
    use millpond::weights::{FfnWeights, LinearInput, MixerWeights};
    let glu = |weights: &millpond::weights::GluWeights| {
        weights.gate.bytes().len() + weights.up.bytes().len() + weights.down.bytes().len()
    };
    let mut bytes = model.weights.output.bytes().len() as f64;
    for (layer, spec) in model.weights.layers.iter().zip(&model.spec.layers) {
        let mixer: usize = match &layer.mixer {
            MixerWeights::Linear(weights) => {
                let input: Vec<_> = match &weights.input {
                    LinearInput::Split { qkv, z, beta, alpha } => vec![qkv, z, beta, alpha],
                    LinearInput::ByKeyHead { qkvz, ba } => vec![qkvz, ba],
                    LinearInput::SplitFusedGates { qkv, z, ba } => vec![qkv, z, ba],
                };
                input.iter().map(|matrix| matrix.bytes().len()).sum::<usize>() + weights.out.bytes().len()
            }
            MixerWeights::Attention(weights) => [&weights.q, &weights.k, &weights.v, &weights.out]
                .iter()
                .map(|matrix| matrix.bytes().len())
                .sum(),
        };
        let ffn = match &layer.ffn {
            FfnWeights::Dense(weights) => glu(weights) as f64,
            FfnWeights::Moe(weights) => {
                let all: usize = weights.experts.iter().map(glu).sum();
                let visited =
                    spec.ffn.as_moe().map_or(1.0, |moe| moe.top_k as f64 / moe.experts.max(1) as f64);
                let shared = weights.shared.as_ref().map_or(0, |(expert, _)| glu(expert));
                all as f64 * visited + (shared + weights.router.bytes().len()) as f64
            }
        };
        bytes += mixer as f64 + ffn;
    }
    bytes
}
