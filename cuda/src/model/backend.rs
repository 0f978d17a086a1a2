//! The CUDA backend: plans in, kernels out.

use std::sync::Arc;

use millpond::backend::cpu::Arithmetic;
use millpond::backend::{Backend, BackendError, MtpSegment, Outputs, Segment, Slot, WantLogits};
use millpond::runner::BufferOptions;
use millpond::state::PassKind;
use millpond::state::layout::{PAGE_POSITIONS, StateLayout};
use millpond::state::memory::{KvType, MemoryUsage, SequenceMemory, StateType};
use millpond::weights::{LinearWeights, MixerWeights, ModelWeights};
use millpond_models::{LinearSpec, ModelSpec};

use super::abi::AttentionRow;
use super::ops::{MAX_HEAD_DIM, Ops, RowRange};
use super::pass::{Buffer, Executor, Pass};
use super::recordings::{Key, Recordings};
use super::sequences::{FEWEST_SLOTS, Sequence, Sequences};
use super::weights::{self, DeviceMatrix};
use super::{failed, mixer_failed, saved};
use crate::device::{Device, DeviceError, Plain, Recording};
use crate::linear::{
    Activation, BatchSequence, Cut, LinearLayer, LinearOptions, LinearWeightsView, MAX_ENTRIES,
};

/// How the CUDA backend is set up.
#[derive(Clone, Copy, Debug)]
pub struct CudaOptions {
    /// Precision of the attention cache.
    pub kv_type: KvType,
    /// How the state of sequences is kept.
    pub buffer: BufferOptions,
    /// What quantised weights are multiplied with.
    pub arithmetic: Arithmetic,
}

/// A model on a device with the sequences that use it.
pub struct CudaBackend {
    device: Arc<dyn Device>,
    spec: Arc<ModelSpec>,
    options: CudaOptions,
    executor: Executor,
    sequences: Sequences,
    table: Buffer,
    recordings: Recordings,
    last: Option<Key>,
}

/// Rows of one sequence of a pass.
#[derive(Clone, Copy)]
struct Part {
    slot: Slot,
    start: usize,
    rows: usize,
    prompt: bool,
    logits: WantLogits,
}

impl CudaBackend {
    /// Puts a model on a device.
    ///
    /// # Errors
    /// [`BackendError::Unsupported`] for shapes and options the kernels do not know, [`BackendError::Memory`] when
    /// the device has no room, and what the device says.
    pub fn new(
        device: Arc<dyn Device>,
        spec: Arc<ModelSpec>,
        weights: &ModelWeights,
        options: CudaOptions,
    ) -> Result<CudaBackend, BackendError> {
        let layout = StateLayout::new(&spec);
        check_shapes(&layout, &options)?;
        let linear_options = LinearOptions {
            activation: Activation::F32,
            slots: FEWEST_SLOTS,
            log_capacity: MAX_ENTRIES,
            max_window: options.buffer.max_window,
            processors: device.processors(),
            overlap: true,
        };
        let mut linear = Vec::with_capacity(layout.linear.len());
        for (layer, weights) in layout.linear.iter().zip(linear_weights(weights)) {
            let view = LinearWeightsView {
                conv: &weights.conv,
                dt_bias: &weights.dt_bias,
                a: &weights.a,
                norm: &weights.norm,
            };
            linear.push(LinearLayer::new(&device, &layer.spec, linear_options, view).map_err(mixer_failed)?);
        }
        let specs: Vec<LinearSpec> = layout.linear.iter().map(|layer| layer.spec.clone()).collect();
        let shapes = specs.iter().map(|spec| distinct(&specs).position(|other| other == spec).unwrap_or(0));
        let shapes = shapes.collect();
        let weights = weights::upload(&device, weights, &specs)?;
        let ops = Ops {
            device: device.clone(),
            arithmetic: options.arithmetic,
            half_cache: options.kv_type == KvType::F16,
            overlap: true,
        };
        let executor = Executor::new(ops, spec.clone(), &layout, weights, shapes)?;
        let page_bytes = options.kv_type.bytes(layout.page_len).unwrap_or(0);
        let sequences = Sequences::new(&device, layout, linear, page_bytes);
        Ok(CudaBackend {
            device,
            spec,
            options,
            executor,
            sequences,
            table: Buffer::default(),
            recordings: Recordings::default(),
            last: None,
        })
    }

    /// Options that this backend can carry out and that differ least from `buffer`: its logs have room for a limited
    /// number of tokens, so sequences get their state no later than that.
    pub fn fitting(buffer: BufferOptions, spec: &ModelSpec) -> BufferOptions {
        let layout = StateLayout::new(spec);
        let stateless = buffer.stateless_below.unwrap_or_else(|| layout.break_even());
        let room = MAX_ENTRIES.saturating_sub(buffer.fold_interval + 2 * buffer.max_window);
        BufferOptions { stateless_below: Some(stateless.min(room)), ..buffer }
    }

    /// The device, for people.
    pub fn describe(&self) -> String {
        self.device.describe()
    }

    /// Bytes of weights on the device.
    pub fn weight_bytes(&self) -> usize {
        self.executor.weights.bytes()
    }

    /// The launches of the last pass, if they were recorded: for measurements. They may be run again until the next
    /// call of the backend.
    pub fn last_recording(&self) -> Option<&dyn Recording> {
        self.recordings.get(self.last.as_ref()?)
    }

    /// Where memory stands that launches name and that may move.
    pub(super) fn addresses(&self) -> Vec<u64> {
        let mut addresses = self.executor.addresses();
        addresses.extend(self.sequences.linear.iter().flat_map(LinearLayer::addresses));
        addresses
    }

    /// Layers and head of a pass that is laid out.
    fn run_layers(&mut self, pass: &Pass, outputs: &mut Outputs) -> Result<(), BackendError> {
        let (embedding, output) = (self.executor.weights.embedding, self.executor.weights.output);
        self.executor.embed(&embedding, pass)?;
        let spec = self.spec.clone();
        for (index, layer) in spec.layers.iter().enumerate() {
            if outputs.want_residuals {
                let mut residual = vec![0.0_f32; pass.rows * spec.hidden];
                self.executor.scratch.residual.memory().read(0, &mut residual).map_err(failed)?;
                outputs.residuals.push(residual);
            }
            let (weights, slot) = (self.executor.weights.layers[index], self.sequences.layout.slots[index]);
            let Sequences { layout, linear, .. } = &mut self.sequences;
            self.executor.layer(layer, &weights, slot, layout, linear, pass)?;
        }
        let norm = self.executor.weights.output_norm;
        self.executor.head(pass, norm, &output, outputs.want_hidden)
    }

    /// Runs a pass: as recorded, where the same launches were needed before.
    fn run(&mut self, pass: &Pass, outputs: &mut Outputs) -> Result<(), BackendError> {
        let prompts = pass.ranges.iter().any(|range| range.prompt);
        if prompts || outputs.want_residuals {
            self.last = None;
            return self.run_layers(pass, outputs);
        }
        let key = Key::new(pass, outputs.want_hidden, self.table.address(), self);
        if self.recordings.get(&key).is_none() {
            if !self.recordings.seen(&key) {
                // The first time everything that launches need is allocated and loaded.
                self.last = None;
                return self.run_layers(pass, outputs);
            }
            let (device, mut failure) = (self.device.clone(), None);
            let recorded = device.record(&mut || {
                self.run_layers(pass, outputs).map_err(|error| {
                    let said = DeviceError::Other(error.to_string());
                    failure = Some(error);
                    said
                })
            });
            match (recorded, failure) {
                (_, Some(error)) => return Err(error),
                (Err(error), None) => return Err(failed(error)),
                (Ok(None), None) => return self.run_layers(pass, outputs),
                (Ok(Some(recording)), None) => self.recordings.keep(key.clone(), recording),
            }
        }
        if let Some(recording) = self.recordings.get(&key) {
            // SAFETY: the key holds every address that its launches take besides those of weights, which stay.
            unsafe { recording.run() }.map_err(failed)?;
        }
        self.last = Some(key);
        Ok(())
    }

    fn check_tokens(&self, tokens: &[u32]) -> Result<(), BackendError> {
        match tokens.iter().find(|&&token| token as usize >= self.spec.vocab) {
            Some(&token) => Err(BackendError::Token { token, vocab: self.spec.vocab }),
            None => Ok(()),
        }
    }

    fn check_slots(&self, slots: impl Iterator<Item = Slot>) -> Result<(), BackendError> {
        let mut seen = Vec::new();
        for slot in slots {
            self.sequences.get(slot)?;
            if seen.contains(&slot) {
                return Err(BackendError::Slot(slot.0));
            }
            seen.push(slot);
        }
        Ok(())
    }

    fn check(&self, segments: &[Segment<'_>]) -> Result<(), BackendError> {
        self.check_slots(segments.iter().map(|segment| segment.slot))?;
        for Segment { tokens, plan, .. } in segments {
            if tokens.len() != plan.rows {
                return Err(BackendError::Segment { tokens: tokens.len(), rows: plan.rows });
            }
            let max = self.options.buffer.max_window;
            if plan.kind == PassKind::Window && plan.rows > max {
                return Err(BackendError::Window { rows: plan.rows, max });
            }
            self.check_tokens(tokens)?;
        }
        Ok(())
    }

    /// Lays out what kernels read of a pass, and sends it to the device in one piece.
    fn lay_out(
        &mut self,
        parts: &[Part],
        tokens: impl Iterator<Item = u32>,
        cuts: Vec<Cut>,
    ) -> Result<Pass, BackendError> {
        let tokens: Vec<u32> = tokens.collect();
        let (mut rows, mut pages, mut gather) = (Vec::new(), Vec::new(), Vec::new());
        let (mut ranges, mut end): (Vec<RowRange>, usize) = (Vec::new(), 0);
        for part in parts {
            let (first, table) = (rows.len(), pages.len() as i32);
            let sequence = self.sequences.get(part.slot)?;
            pages.extend(sequence.pages.iter().map(|&page| self.sequences.pages.address(page)));
            rows.extend(
                (part.start..part.start + part.rows)
                    .map(|position| AttentionRow { position: position as i32, table }),
            );
            gather.extend(wanted(part.logits, part.rows).map(|row| (first + row) as u32));
            end = end.max(part.start + part.rows);
            match ranges.last_mut() {
                Some(last) if last.prompt == part.prompt => last.rows += part.rows,
                _ => ranges.push(RowRange { first, rows: part.rows, prompt: part.prompt }),
            }
        }
        let bytes = tokens.len() * 4 + rows.len() * 8 + pages.len() * 8 + gather.len() * 4;
        let plans: usize = cuts.iter().map(Cut::bytes).sum();
        let launches = 8 + cuts.len() * rows.len();
        self.table.reserve(&self.device, bytes + plans + launches * ALIGNMENT).map_err(failed)?;
        let mut table = Table { base: self.table.address(), bytes: Vec::new() };
        let (token_at, rows_at) = (table.push(&tokens), table.push(&rows));
        let gather_at = table.push(&gather);
        let mut batches = Vec::with_capacity(cuts.len());
        for cut in cuts {
            batches.push(cut.place(|plans| Ok::<u64, BackendError>(table.push(plans)))?);
        }
        // Last, as their number changes from step to step: nothing else moves then.
        let pages_at = table.push(&pages);
        self.table.memory_mut().write(0, &table.bytes).map_err(failed)?;
        Ok(Pass {
            rows: rows.len(),
            ranges,
            tokens: token_at,
            attention_rows: rows_at,
            page_table: pages_at,
            end,
            batches,
            gather: gather_at,
            head_rows: gather.len(),
        })
    }

    /// Reads what a pass has left, `[head_rows][output.rows]` logits among it.
    fn collect(&self, pass: &Pass, output: &DeviceMatrix, outputs: &mut Outputs) -> Result<(), BackendError> {
        let scratch = &self.executor.scratch;
        if outputs.want_hidden {
            outputs.hidden.resize(pass.rows * self.spec.hidden, 0.0);
            scratch.hidden.memory().read(0, &mut outputs.hidden[..]).map_err(failed)?;
        }
        if pass.head_rows > 0 {
            outputs.logits.resize(pass.head_rows * output.rows, 0.0);
            scratch.logits.memory().read(0, &mut outputs.logits[..]).map_err(failed)?;
        }
        Ok(())
    }
}

/// Parts of a table start at multiples of it.
const ALIGNMENT: usize = 16;

/// What kernels read of a pass, on its way to the device.
struct Table {
    base: u64,
    bytes: Vec<u8>,
}

impl Table {
    /// Adds values; returns where they will stand.
    fn push<T: Plain>(&mut self, values: &[T]) -> u64 {
        self.bytes.resize(self.bytes.len().next_multiple_of(ALIGNMENT), 0);
        let at = self.base + self.bytes.len() as u64;
        self.bytes.extend_from_slice(crate::device::bytes_of(values));
        at
    }
}

fn linear_weights(weights: &ModelWeights) -> impl Iterator<Item = &LinearWeights> {
    weights.layers.iter().filter_map(|layer| match &layer.mixer {
        MixerWeights::Linear(mixer) => Some(&**mixer),
        MixerWeights::Attention(_) => None,
    })
}

/// Each specification once, in the order of its first layer.
fn distinct(specs: &[LinearSpec]) -> impl Iterator<Item = &LinearSpec> {
    specs.iter().enumerate().filter(|(index, spec)| !specs[..*index].contains(spec)).map(|(_, spec)| spec)
}

/// Refuses shapes and options beyond what the kernels are written for.
fn check_shapes(layout: &StateLayout, options: &CudaOptions) -> Result<(), BackendError> {
    if options.kv_type == KvType::Q8 {
        return Err(BackendError::Device("an attention cache of 8 bits is not supported".to_owned()));
    }
    for layer in &layout.attention {
        let found = layer.spec.head_dim;
        if !found.is_multiple_of(4) {
            return Err(BackendError::Device(format!("attention heads of {found} values are not supported")));
        }
        if found > MAX_HEAD_DIM {
            return Err(BackendError::Unsupported {
                what: "values of an attention head",
                found,
                max: MAX_HEAD_DIM,
            });
        }
    }
    let BufferOptions { fold_interval, stateless_below, max_window, state_type } = options.buffer;
    if state_type != StateType::F32 {
        return Err(BackendError::Device(format!("a state in {state_type} is not supported")));
    }
    let stateless = stateless_below.unwrap_or_else(|| layout.break_even());
    // A log is longest just before its first fold, with one window confirmed beyond it and one pending.
    let found = stateless.saturating_add(fold_interval).saturating_add(2 * max_window);
    if !layout.linear.is_empty() && found > MAX_ENTRIES {
        return Err(BackendError::Unsupported { what: "tokens in a log", found, max: MAX_ENTRIES });
    }
    Ok(())
}

/// Rows of a part that want logits, counted from its first.
fn wanted(want: WantLogits, rows: usize) -> std::ops::Range<usize> {
    match want {
        WantLogits::None => rows..rows,
        WantLogits::Last => rows.saturating_sub(1)..rows,
        WantLogits::All => 0..rows,
    }
}

impl Backend for CudaBackend {
    fn create(&mut self) -> Result<Slot, BackendError> {
        self.sequences.create(Sequence::default())
    }

    fn release(&mut self, slot: Slot) {
        self.sequences.release(slot);
    }

    fn forward(&mut self, segments: &[Segment<'_>], outputs: &mut Outputs) -> Result<(), BackendError> {
        self.check(segments)?;
        outputs.logits.clear();
        outputs.hidden.clear();
        outputs.residuals.clear();
        for Segment { slot, plan, .. } in segments {
            saved::place(&mut self.sequences, *slot, plan, self.options.kv_type)?;
            self.sequences.prepare_pages(*slot, plan.start, plan.start + plan.rows)?;
        }
        let sequences: Vec<BatchSequence<'_>> = segments
            .iter()
            .map(|segment| BatchSequence { slot: segment.slot.0, plan: segment.plan })
            .collect();
        let mut cuts = Vec::new();
        let specs: Vec<LinearSpec> =
            self.sequences.layout.linear.iter().map(|layer| layer.spec.clone()).collect();
        if let Some(layer) = self.sequences.linear.first() {
            for spec in distinct(&specs) {
                cuts.push(Cut::new(spec, layer.options(), &sequences).map_err(mixer_failed)?);
            }
        }
        let parts: Vec<Part> = segments
            .iter()
            .map(|segment| Part {
                slot: segment.slot,
                start: segment.plan.start,
                rows: segment.plan.rows,
                prompt: segment.plan.kind.is_prompt(),
                logits: segment.logits,
            })
            .collect();
        let tokens = segments.iter().flat_map(|segment| segment.tokens.iter().copied());
        let pass = self.lay_out(&parts, tokens, cuts)?;
        let output = self.executor.weights.output;
        self.executor.reserve(pass.rows, pass.end, pass.head_rows, output.rows)?;
        self.run(&pass, outputs)?;
        self.collect(&pass, &output, outputs)?;
        for Segment { slot, plan, .. } in segments {
            self.sequences.advance(*slot, plan)?;
        }
        Ok(())
    }

    fn forward_mtp(
        &mut self,
        segments: &[MtpSegment<'_>],
        outputs: &mut Outputs,
    ) -> Result<(), BackendError> {
        let (Some(mtp), Some(index)) = (self.executor.weights.mtp, self.sequences.layout.mtp) else {
            return Err(BackendError::NoMtp);
        };
        let spec = self.spec.clone();
        let Some(mtp_spec) = &spec.mtp else { return Err(BackendError::NoMtp) };
        self.check_slots(segments.iter().map(|segment| segment.slot))?;
        for segment in segments {
            if segment.hidden.len() != segment.tokens.len() * spec.hidden {
                let rows = segment.hidden.len() / spec.hidden;
                return Err(BackendError::Segment { tokens: segment.tokens.len(), rows });
            }
            self.check_tokens(segment.tokens)?;
        }
        outputs.logits.clear();
        outputs.hidden.clear();
        let mut parts = Vec::with_capacity(segments.len());
        for segment in segments {
            let end = segment.start + segment.tokens.len();
            self.sequences.prepare_pages(segment.slot, segment.start, end)?;
            parts.push(Part {
                slot: segment.slot,
                start: segment.start,
                rows: segment.tokens.len(),
                prompt: segment.tokens.len() > self.options.buffer.max_window,
                logits: segment.logits,
            });
        }
        let tokens = segments.iter().flat_map(|segment| segment.tokens.iter().copied());
        let pass = self.lay_out(&parts, tokens, Vec::new())?;
        self.executor.reserve(pass.rows, pass.end, pass.head_rows, mtp.output.rows)?;
        let hidden: Vec<f32> = segments.iter().flat_map(|segment| segment.hidden.iter().copied()).collect();
        self.executor.scratch.hidden.memory_mut().write(0, &hidden).map_err(failed)?;
        self.executor.join(&mtp, &pass)?;
        let slot = millpond::state::layout::MixerSlot::Attention(index);
        let Sequences { layout, linear, .. } = &mut self.sequences;
        self.executor.layer(&mtp_spec.layer, &mtp.layer, slot, layout, linear, &pass)?;
        self.executor.head(&pass, mtp.output_norm, &mtp.output, outputs.want_hidden)?;
        self.collect(&pass, &mtp.output, outputs)
    }

    fn truncate(&mut self, slot: Slot, position: usize) -> Result<(), BackendError> {
        self.sequences.truncate(slot, position)
    }

    fn fork(&mut self, slot: Slot) -> Result<Slot, BackendError> {
        self.sequences.fork(slot)
    }

    fn export(&self, slot: Slot) -> Result<SequenceMemory, BackendError> {
        saved::export(&self.sequences, slot, self.options.kv_type, self.options.buffer.max_window)
    }

    fn import(&mut self, memory: SequenceMemory) -> Result<Slot, BackendError> {
        self.sequences.create(Sequence { restored: Some(Box::new(memory)), ..Sequence::default() })
    }

    fn footprint(&self, slots: &[Slot]) -> usize {
        self.sequences.footprint(slots)
    }

    fn usage(&self, slot: Slot) -> Result<MemoryUsage, BackendError> {
        self.sequences.usage(slot)
    }
}

const _: () = assert!(PAGE_POSITIONS == 64, "kernels/model_attention.cuh counts on it");
