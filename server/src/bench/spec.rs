//! `millpond bench spec`: what drafts are worth, for each number of drafts against plain decoding.
//!
//! Every repetition runs the same greedy answer without drafts, with each number of drafts and with the number left to
//! the engine, in alternating order; ratios compare answers of one repetition. An answer that differs from the plain
//! one ends the measurement: drafts change the speed of a stream and never its tokens.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use anyhow::Context;
use clap::Args;
use millpond::engine::{DraftSource, Engine, EngineHandle, EngineOptions, Event, Request, SpecMode, Usage};
use millpond::model::Model;
use millpond::sample::SamplingParams;
use millpond::state::memory::KvType;
use serde::Serialize;

use super::median;
use super::spec_table::Table;
use crate::cli::args::{ComputeArgs, ModelArgs, SpeculationArgs};
use crate::cli::failure::usage;
use crate::cli::settings::{self, Compute};

/// What the answer continues unless a prompt is given.
const PROMPT: &str = "Once upon a time there was a miller who had three sons.";
/// Most drafts of a step.
const MOST: usize = 16;

/// What to measure.
#[derive(Args, Clone, Debug)]
pub struct SpecArgs {
    /// Numbers of drafts: a range like 0..8, or a list like 1,2,4
    #[arg(long, value_name = "RANGE", default_value = "0..8")]
    pub drafts: Counts,
    /// Draft tokens stand with these chances instead of those of the model, one for each place of a draft
    #[arg(long, value_name = "P,..", value_delimiter = ',')]
    pub acceptance: Vec<f64>,
    /// The chances hold for drafts whose earlier tokens stand, and not for all drafts
    #[arg(long, requires = "acceptance")]
    pub conditional: bool,
    /// Tokens of an answer
    #[arg(short = 'n', long, value_name = "N", default_value_t = 256)]
    pub n_gen: usize,
    /// Times each answer is repeated
    #[arg(short, long, value_name = "N", default_value_t = 5)]
    pub repetitions: usize,
    /// Text the answers continue
    #[arg(short, long, value_name = "TEXT", default_value = PROMPT, hide_default_value = true)]
    pub prompt: String,
    /// Print JSON, one object a line
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub model: ModelArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub speculation: SpeculationArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub compute: ComputeArgs,
}

/// Numbers of drafts, ascending.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counts(pub Vec<usize>);

/// A list of numbers of drafts that is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected a range like 0..8 or a list like 1,2,4, of at most {MOST} drafts")]
pub struct NotCounts;

impl FromStr for Counts {
    type Err = NotCounts;

    fn from_str(text: &str) -> Result<Counts, NotCounts> {
        let number = |text: &str| text.trim().parse::<usize>().ok().filter(|&count| count <= MOST);
        let counts = match text.split_once("..") {
            Some((first, last)) => {
                let (first, last) =
                    number(first).zip(number(last.trim_start_matches('='))).ok_or(NotCounts)?;
                (first..=last).collect()
            }
            None => text.split(',').map(number).collect::<Option<Vec<usize>>>().ok_or(NotCounts)?,
        };
        let mut counts: Vec<usize> = counts;
        counts.sort_unstable();
        counts.dedup();
        if counts.is_empty() { Err(NotCounts) } else { Ok(Counts(counts)) }
    }
}

/// How drafts were made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drafts {
    /// None: plain decoding.
    Plain,
    /// As many in every step.
    Fixed(usize),
    /// As many as the engine finds worth it.
    Adaptive,
}

impl fmt::Display for Drafts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Drafts::Plain => f.write_str("plain"),
            Drafts::Fixed(count) => write!(f, "{count}"),
            Drafts::Adaptive => f.write_str("adaptive"),
        }
    }
}

impl Serialize for Drafts {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// What is measured.
#[derive(Clone, Debug, Serialize)]
pub struct Header {
    /// The model.
    pub model: String,
    /// Where drafts come from.
    pub source: String,
    /// Threads.
    pub threads: usize,
    /// Instruction-set level.
    pub isa: String,
    /// Tokens of an answer.
    pub tokens: usize,
    /// Repetitions.
    pub repetitions: usize,
    /// Chances that draft tokens were made to stand with, by place; empty for the model's own.
    pub simulated: Vec<f64>,
    /// Whether these hold given that the earlier tokens of the draft stand.
    pub conditional: bool,
}

/// One number of drafts.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// Drafts of a step.
    pub drafts: Drafts,
    /// Share of drafted tokens that stood.
    pub acceptance: Option<f64>,
    /// Tokens a step gave in the mean.
    pub tokens_per_step: f64,
    /// Milliseconds a step spent on drafts, median over repetitions.
    pub draft_ms: f64,
    /// Milliseconds a step spent on verifying them and choosing tokens.
    pub verify_ms: f64,
    /// `verify_ms` over that of plain decoding.
    pub verify_ratio: f64,
    /// Tokens in a second.
    pub tokens_per_second: f64,
    /// Speed over that of plain decoding in the same repetition, median.
    pub ratio: f64,
}

/// Runs the benchmark and prints its table.
///
/// # Errors
/// Wrong usage, a model that does not load or cannot draft, a closed output.
pub fn run(args: &SpecArgs) -> anyhow::Result<()> {
    let mut table = Table::new(args.json);
    let (header, rows) = measure(args)?;
    table.header(&header)?;
    rows.iter().try_for_each(|row| table.row(row))
}

/// Measures plain decoding, every number of drafts, and the engine's own choice.
///
/// # Errors
/// As for [`run`].
pub fn measure(args: &SpecArgs) -> anyhow::Result<(Header, Vec<Row>)> {
    check(args)?;
    let compute = Compute::new(&args.compute, KvType::F16)?;
    let (model, draft) = settings::load_with_draft(&args.model, &args.speculation)?;
    let prompt = tokens(&model, &args.prompt)?;
    let longest = args.drafts.0.iter().copied().max().unwrap_or(0).max(1);
    let source = source(args, &model, draft.is_some());
    let options = EngineOptions {
        threads: compute.threads,
        isa: Some(compute.isa),
        kv_type: compute.kv_type,
        buffer: compute.buffer,
        ..EngineOptions::default()
    };
    let mut options = settings::speculation(&args.speculation, draft, options)?;
    (options.spec, options.spec_draft_max) = (source, longest);
    let request = |spec, longest| Request {
        sampling: SamplingParams::greedy(),
        max_tokens: Some(args.n_gen),
        ignore_eos: true,
        cache_prompt: false,
        spec: Some(spec),
        spec_draft_max: Some(longest),
        ..Request::new(prompt.clone())
    };
    // An engine of its own, in which no prediction head follows.
    let off = EngineOptions { spec: SpecMode::Off, draft_model: None, ..options.clone() };
    let plain = Engine::start(model.clone(), off)?;
    let answer = run_one(&plain.handle(), request(SpecMode::Off, 0))?.tokens;
    if !args.acceptance.is_empty() {
        options.draft_override = Some(Arc::new(Script {
            text: [&prompt[..], &answer].concat(),
            vocab: model.spec.vocab as u32,
            chances: args.acceptance.clone(),
            conditional: args.conditional,
        }));
    }
    let fixed = Engine::start(model.clone(), EngineOptions { spec_adaptive: false, ..options.clone() })?;
    let adaptive = Engine::start(model.clone(), options)?;
    let mut ways = vec![Drafts::Plain];
    ways.extend(args.drafts.0.iter().filter(|&&count| count > 0).map(|&count| Drafts::Fixed(count)));
    ways.push(Drafts::Adaptive);
    let mut runs: Vec<Vec<Run>> = vec![Vec::new(); ways.len()];
    for repetition in 0..=args.repetitions {
        let mut order: Vec<usize> = (0..ways.len()).collect();
        if repetition % 2 == 1 {
            order.reverse();
        }
        for at in order {
            let (engine, request) = match ways[at] {
                Drafts::Plain => (&plain, request(SpecMode::Off, 0)),
                Drafts::Fixed(count) => (&fixed, request(source, count)),
                Drafts::Adaptive => (&adaptive, request(source, longest)),
            };
            let run = run_one(&engine.handle(), request)?;
            anyhow::ensure!(run.tokens == answer, "{} drafts have changed the answer", ways[at]);
            // The first repetition warms up: pages of the file, scratch memory, the engine's knowledge of costs.
            if repetition > 0 {
                runs[at].push(run);
            }
        }
    }
    let header = Header {
        model: model.info.name.clone(),
        source: source.to_string(),
        threads: if compute.threads == 0 { millpond::par::default_threads() } else { compute.threads },
        isa: compute.isa.to_string(),
        tokens: args.n_gen,
        repetitions: args.repetitions,
        simulated: args.acceptance.clone(),
        conditional: args.conditional,
    };
    let rows = ways.iter().zip(&runs).map(|(&way, of)| row(way, of, &runs[0])).collect();
    Ok((header, rows))
}

/// Where drafts come from: as told, or of what there is the best.
fn source(args: &SpecArgs, model: &Model, draft: bool) -> SpecMode {
    match args.speculation.spec {
        Some(mode) if mode != SpecMode::Auto => mode,
        _ if draft => SpecMode::Draft,
        _ if model.weights.mtp.is_some() => SpecMode::Mtp,
        _ => SpecMode::Ngram,
    }
}

fn check(args: &SpecArgs) -> anyhow::Result<()> {
    if args.repetitions == 0 || args.n_gen < 2 {
        return Err(usage("at least 1 repetition and 2 tokens are needed"));
    }
    if let Some(chance) = args.acceptance.iter().find(|chance| !(0.0..=1.0).contains(*chance)) {
        return Err(usage(format!("--acceptance {chance} is not between 0 and 1")));
    }
    if !args.conditional && args.acceptance.windows(2).any(|pair| pair[1] > pair[0]) {
        return Err(usage(
            "--acceptance grows from one place to the next: no draft stands longer than it is",
        ));
    }
    Ok(())
}

fn tokens(model: &Model, prompt: &str) -> anyhow::Result<Vec<u32>> {
    let tokens = settings::tokenizer(model)?.encode(prompt, false)?;
    if tokens.is_empty() { Err(usage("the prompt is empty")) } else { Ok(tokens) }
}

/// One answer.
#[derive(Clone, Debug)]
struct Run {
    tokens: Vec<u32>,
    usage: Usage,
    /// Seconds of the engine's decode steps, and those of them spent on drafts.
    decode: f64,
    draft: f64,
}

impl Run {
    fn steps(&self) -> f64 {
        // The first token comes with the prompt.
        (self.tokens.len() - 1).saturating_sub(self.usage.accepted).max(1) as f64
    }

    fn rate(&self) -> f64 {
        (self.tokens.len() - 1) as f64 / self.usage.decode.as_secs_f64().max(1e-9)
    }
}

fn run_one(engine: &EngineHandle, request: Request) -> anyhow::Result<Run> {
    let before = engine.stats();
    let mut tokens = Vec::new();
    let mut last = None;
    for event in engine.submit(request)? {
        match event {
            Event::Token { id, .. } => tokens.push(id),
            Event::Done { usage, .. } => last = Some(usage),
            Event::Error(error) => return Err(error.into()),
            _ => {}
        }
    }
    let usage = last.context("the engine has ended")?;
    let after = engine.stats();
    Ok(Run {
        tokens,
        usage,
        decode: after.decode_seconds - before.decode_seconds,
        draft: after.draft_seconds - before.draft_seconds,
    })
}

fn row(drafts: Drafts, runs: &[Run], plain: &[Run]) -> Row {
    let drafted: usize = runs.iter().map(|run| run.usage.drafted).sum();
    let accepted: usize = runs.iter().map(|run| run.usage.accepted).sum();
    let tokens: usize = runs.iter().map(|run| run.tokens.len() - 1).sum();
    let steps: f64 = runs.iter().map(Run::steps).sum();
    let ms = |seconds: f64, run: &Run| 1e3 * seconds / run.steps();
    let verify = |runs: &[Run]| median(runs.iter().map(|run| ms(run.decode - run.draft, run)));
    Row {
        drafts,
        acceptance: (drafted > 0).then(|| accepted as f64 / drafted as f64),
        tokens_per_step: tokens as f64 / steps,
        draft_ms: median(runs.iter().map(|run| ms(run.draft, run))),
        verify_ms: verify(runs),
        verify_ratio: verify(runs) / verify(plain).max(1e-9),
        tokens_per_second: median(runs.iter().map(Run::rate)),
        ratio: median(runs.iter().zip(plain).map(|(run, plain)| run.rate() / plain.rate())),
    }
}

/// Drafts of a known text whose tokens are wrong as often as they are told to be.
struct Script {
    text: Vec<u32>,
    vocab: u32,
    chances: Vec<f64>,
    conditional: bool,
}

impl DraftSource for Script {
    fn draft(&self, tokens: &[u32], longest: usize, draft: &mut Vec<u32>) {
        let right = self.text.iter().skip(tokens.len()).take(longest);
        for (place, &token) in right.enumerate() {
            let seed = if self.conditional { place } else { 0 };
            // Nothing stands at places beyond the chances given.
            let chance = self.chances.get(place).copied().unwrap_or(0.0);
            let stands = draw(tokens.len() as u64, seed as u64) < chance;
            draft.push(if stands { token } else { (token + 1) % self.vocab.max(1) });
        }
    }
}

/// A number in [0, 1) that depends on nothing but its arguments (splitmix64).
fn draw(position: u64, place: u64) -> f64 {
    let mut bits =
        (position + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ (place + 1).wrapping_mul(0xD1B5_4A32_D192_ED03);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    ((bits ^ (bits >> 31)) >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_drafts_are_ranges_or_lists() {
        assert_eq!("0..3".parse(), Ok(Counts(vec![0, 1, 2, 3])));
        assert_eq!("4, 1,1".parse(), Ok(Counts(vec![1, 4])));
        assert_eq!("5".parse(), Ok(Counts(vec![5])));
        for wrong in ["", "1..", "3..1", "17", "0..1000000000000", "a"] {
            assert_eq!(wrong.parse::<Counts>(), Err(NotCounts), "{wrong}");
        }
    }

    /// Share of drafts whose tokens stand up to each place.
    fn shares(script: &Script, places: usize) -> Vec<f64> {
        let mut stood = vec![0.0; places];
        for start in 1..script.text.len() - places {
            let mut draft = Vec::new();
            script.draft(&script.text[..start], places, &mut draft);
            let right = draft.iter().zip(&script.text[start..]).take_while(|(a, b)| a == b).count();
            stood[..right].iter_mut().for_each(|count| *count += 1.0);
        }
        stood.iter().map(|count| count / (script.text.len() - places) as f64).collect()
    }

    #[test]
    fn simulated_drafts_stand_as_often_as_asked() {
        let text: Vec<u32> = (0..40_000).map(|i| i % 97).collect();
        let chances = vec![0.8, 0.6, 0.45];
        let close = |shares: Vec<f64>, expected: [f64; 3]| {
            assert!(shares.iter().zip(expected).all(|(a, b)| (a - b).abs() < 0.01), "{shares:?}");
        };
        let mut script = Script { text, vocab: 97, chances, conditional: false };
        close(shares(&script, 3), [0.8, 0.6, 0.45]);
        script.conditional = true;
        close(shares(&script, 3), [0.8, 0.48, 0.216]);
    }
}
