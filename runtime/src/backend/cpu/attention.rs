//! The softmax-attention mixer: rotary positions, paged cache, spans of pages merged in a fixed order.

use half::f16;
use millpond_models::AttentionSpec;
use millpond_simd::attention::{AttendPage, KvBlock, Partials};
use millpond_simd::kernels::Kernels;

use super::scratch::{Buffer, grown};
use crate::par::{each_chunk, each_mut, each_pair};
use crate::state::layout::{AttentionLayout, PAGE_POSITIONS};
use crate::state::memory::{KvPage, Q8_BYTES, Q8_VALUES, SequenceMemory};
use crate::weights::AttentionWeights;

/// Pages of a span. Spans start at absolute multiples of it, so a row's result does not depend on how the cache is
/// shared out.
const SPAN_PAGES: usize = 8;

/// Tokens whose queries share a pass over the pages.
const TOKEN_BLOCK: usize = 16;

/// Most query heads of a key/value head.
pub(super) const MAX_GROUP: usize = 64;

/// Cosines and sines of the rotary embedding, grown as positions come into use.
pub(super) struct RotaryTable {
    frequencies: Vec<f32>,
    /// `[positions][rotary_dim / 2]`.
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl RotaryTable {
    /// An empty table for a mixer.
    ///
    /// Frequencies are rounded to f32 and multiplied by the position in f32, as the reference implementations do;
    /// cosine and sine of that angle are exact to rounding.
    pub(super) fn new(spec: &AttentionSpec) -> RotaryTable {
        let half = spec.rotary_dim / 2;
        let frequency =
            |i: usize| (spec.rope_theta as f64).powf(-((2 * i) as f64) / spec.rotary_dim as f64) as f32;
        RotaryTable { frequencies: (0..half).map(frequency).collect(), cos: Vec::new(), sin: Vec::new() }
    }

    /// Makes the table hold positions below `positions`.
    pub(super) fn extend(&mut self, positions: usize) {
        let half = self.frequencies.len();
        let have = self.cos.len().checked_div(half).unwrap_or(positions);
        for position in have..positions.next_multiple_of(PAGE_POSITIONS) {
            for &frequency in &self.frequencies {
                let angle = (position as f32 * frequency) as f64;
                self.cos.push(angle.cos() as f32);
                self.sin.push(angle.sin() as f32);
            }
        }
    }

    fn at(&self, position: usize) -> (&[f32], &[f32]) {
        let half = self.frequencies.len();
        let range = position * half..(position + 1) * half;
        (&self.cos[range.clone()], &self.sin[range])
    }
}

/// Projections of one sequence's rows.
pub(super) struct AttentionRows<'a> {
    /// `[rows][heads][head_dim]`, or `[rows][heads][2][head_dim]` with the gate after each query.
    pub(super) q: &'a [f32],
    /// `[rows][kv_heads][head_dim]`.
    pub(super) k: &'a mut [f32],
    /// `[rows][kv_heads][head_dim]`.
    pub(super) v: &'a [f32],
    /// `[rows][heads][head_dim]`, receives the gated result.
    pub(super) out: &'a mut [f32],
}

/// Working memory of one sequence in one layer.
#[derive(Default)]
pub(super) struct AttentionScratch {
    /// `[kv_heads][rows][group][head_dim]`: scaled queries.
    queries: Buffer,
    /// As `queries`.
    results: Buffer,
    partials: Vec<Partials>,
    key: Buffer,
}

/// Runs one sequence's rows through one attention layer. The pages for the rows must be there and writable.
pub(super) fn mix(
    kernels: &Kernels,
    layout: &AttentionLayout,
    weights: &AttentionWeights,
    rotary: &RotaryTable,
    eps: f32,
    start: usize,
    memory: &mut SequenceMemory,
    scratch: &mut AttentionScratch,
    rows: AttentionRows<'_>,
) {
    let spec = &layout.spec;
    let count = rows.k.len() / (spec.kv_heads * spec.head_dim);
    append(kernels, layout, weights, rotary, eps, start, memory, rows.k, rows.v, &mut scratch.key);
    prepare_queries(kernels, spec, weights, rotary, eps, start, rows.q, scratch);
    let call = Call { kernels, layout, start, rows: count, pages: &memory.pages };
    call.attend(scratch);
    gate(kernels, spec, rows.q, scratch, rows.out);
}

/// Norms and rotates the keys and writes keys and values into the pages.
fn append(
    kernels: &Kernels,
    layout: &AttentionLayout,
    weights: &AttentionWeights,
    rotary: &RotaryTable,
    eps: f32,
    start: usize,
    memory: &mut SequenceMemory,
    keys: &mut [f32],
    values: &[f32],
    normed: &mut Buffer,
) {
    let spec = &layout.spec;
    let (dim, width) = (spec.head_dim, spec.kv_heads * spec.head_dim);
    let normed = grown(normed, dim);
    for (row, (keys, values)) in keys.chunks_exact(width).zip(values.chunks_exact(width)).enumerate() {
        let position = start + row;
        let (cos, sin) = rotary.at(position);
        let page = std::sync::Arc::get_mut(&mut memory.pages[position / PAGE_POSITIONS])
            .expect("pages of a pass are made writable before it");
        let at = position % PAGE_POSITIONS * dim;
        for head in 0..spec.kv_heads {
            let range = head * dim..(head + 1) * dim;
            kernels.vector.rms_norm(&keys[range.clone()], &weights.k_norm, eps, normed);
            kernels.vector.rope(normed, cos, sin);
            page.write(layout.keys_at(head) + at, normed);
            page.write(layout.values_at(head) + at, &values[range]);
        }
    }
}

/// Norms, rotates and scales the queries, grouped by the key/value head they read.
fn prepare_queries(
    kernels: &Kernels,
    spec: &AttentionSpec,
    weights: &AttentionWeights,
    rotary: &RotaryTable,
    eps: f32,
    start: usize,
    q: &[f32],
    scratch: &mut AttentionScratch,
) {
    let (dim, group) = (spec.head_dim, spec.heads / spec.kv_heads);
    let stride = if spec.output_gate { 2 * dim } else { dim };
    let rows = q.len() / (spec.heads * stride);
    let scale = (dim as f32).sqrt().recip();
    let queries = grown(&mut scratch.queries, rows * spec.heads * dim);
    each_chunk(queries, group * dim, 4, |block, queries| {
        let (kv_head, row) = (block / rows, block % rows);
        let (cos, sin) = rotary.at(start + row);
        for (member, query) in queries.chunks_exact_mut(dim).enumerate() {
            let at = (row * spec.heads + kv_head * group + member) * stride;
            kernels.vector.rms_norm(&q[at..at + dim], &weights.q_norm, eps, query);
            kernels.vector.rope(query, cos, sin);
            kernels.vector.scale(query, scale);
        }
    });
}

/// Multiplies by the sigmoid of the gate and brings the rows into the order of the output projection.
fn gate(kernels: &Kernels, spec: &AttentionSpec, q: &[f32], scratch: &AttentionScratch, out: &mut [f32]) {
    let (dim, group) = (spec.head_dim, spec.heads / spec.kv_heads);
    let rows = out.len() / (spec.heads * dim);
    for (row, out) in out.chunks_exact_mut(spec.heads * dim).enumerate() {
        for (head, out) in out.chunks_exact_mut(dim).enumerate() {
            let at = ((head / group * rows + row) * group + head % group) * dim;
            out.copy_from_slice(&scratch.results[at..at + dim]);
            if spec.output_gate {
                let gate = ((row * spec.heads + head) * 2 + 1) * dim;
                kernels.vector.mul_sigmoid(out, &q[gate..gate + dim]);
            }
        }
    }
}

/// One sequence's rows against its pages.
struct Call<'a> {
    kernels: &'a Kernels,
    layout: &'a AttentionLayout,
    start: usize,
    rows: usize,
    pages: &'a [std::sync::Arc<KvPage>],
}

impl Call<'_> {
    fn spans(&self) -> usize {
        (self.start + self.rows).div_ceil(PAGE_POSITIONS * SPAN_PAGES)
    }

    /// Units are (key/value head, block of tokens, span); the spans of a block are then merged in order.
    fn attend(&self, scratch: &mut AttentionScratch) {
        let spec = &self.layout.spec;
        let (dim, group) = (spec.head_dim, spec.heads / spec.kv_heads);
        let (blocks, spans) = (self.rows.div_ceil(TOKEN_BLOCK), self.spans());
        let units = spec.kv_heads * blocks * spans;
        if scratch.partials.len() < units {
            scratch.partials.resize_with(units, Partials::default);
        }
        let queries = &scratch.queries;
        let partials = &mut scratch.partials[..units];
        each_mut(partials, 1, |unit, partial| {
            let (kv_head, block, span) = (unit / spans / blocks, unit / spans % blocks, unit % spans);
            let tokens = block * TOKEN_BLOCK..self.rows.min((block + 1) * TOKEN_BLOCK);
            let at = (kv_head * self.rows + tokens.start) * group * dim;
            let queries = &queries[at..at + tokens.len() * group * dim];
            self.span(kv_head, tokens, span, queries, partial);
        });
        let results = grown(&mut scratch.results, self.rows * spec.heads * dim);
        let (results, partials) = ((results, self.rows * group * dim), (partials, blocks * spans));
        each_pair(results, partials, 1, |_, results, partials| {
            let blocks = results.chunks_mut(TOKEN_BLOCK * group * dim);
            for (results, partials) in blocks.zip(partials.chunks_exact_mut(spans)) {
                let Some((first, others)) = partials.split_first_mut() else { continue };
                for other in others {
                    self.kernels.attention.merge_partials(first, other);
                }
                for (row, out) in results.chunks_exact_mut(dim).enumerate() {
                    self.kernels.attention.finish_row(first, row, out);
                }
            }
        });
    }

    /// Some tokens of one key/value head against the pages of one span.
    fn span(
        &self,
        kv_head: usize,
        tokens: std::ops::Range<usize>,
        span: usize,
        queries: &[f32],
        partial: &mut Partials,
    ) {
        let spec = &self.layout.spec;
        let group = spec.heads / spec.kv_heads;
        partial.reset(tokens.len() * group, spec.head_dim);
        let end = self.start + tokens.end;
        let mut visible = [0; TOKEN_BLOCK * MAX_GROUP];
        let pages = span * SPAN_PAGES..((span + 1) * SPAN_PAGES).min(end.div_ceil(PAGE_POSITIONS));
        for page in pages.clone() {
            let first = page * PAGE_POSITIONS;
            for (visible, token) in visible.chunks_exact_mut(group).zip(tokens.clone()) {
                visible.fill((self.start + token + 1).saturating_sub(first).min(PAGE_POSITIONS));
            }
            let positions = (end - first).min(PAGE_POSITIONS);
            let (keys, values) = self.blocks(page, kv_head, positions);
            let next = (page + 1 < pages.end).then(|| self.blocks(page + 1, kv_head, PAGE_POSITIONS).0);
            let page = AttendPage {
                queries,
                head_dim: spec.head_dim,
                keys,
                values,
                visible: &visible[..tokens.len() * group],
                next_keys: next,
            };
            self.kernels.attention.attend_page(page, partial);
        }
    }

    fn blocks(&self, page: usize, kv_head: usize, positions: usize) -> (KvBlock<'_>, KvBlock<'_>) {
        let (keys, values) = (self.layout.keys_at(kv_head), self.layout.values_at(kv_head));
        let len = positions * self.layout.spec.head_dim;
        match &*self.pages[page] {
            KvPage::F32(page) => {
                (KvBlock::F32(&page[keys..keys + len]), KvBlock::F32(&page[values..values + len]))
            }
            KvPage::F16(page) => {
                let page: &[f16] = page;
                (KvBlock::F16(&page[keys..keys + len]), KvBlock::F16(&page[values..values + len]))
            }
            KvPage::Q8(page) => {
                let bytes = |from: usize| from / Q8_VALUES * Q8_BYTES..(from + len) / Q8_VALUES * Q8_BYTES;
                (KvBlock::Q8(&page[bytes(keys)]), KvBlock::Q8(&page[bytes(values)]))
            }
        }
    }
}
