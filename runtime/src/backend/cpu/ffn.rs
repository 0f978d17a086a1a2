//! Feed-forwards: dense, and mixtures of experts with rows grouped by expert.

use millpond_models::MoeSpec;
use millpond_simd::kernels::Kernels;

use super::project::{Inputs, Products, multiply, project, unit_rows, units};
use super::scratch::{Buffer, grown};
use crate::par::{SharedRows, claim_each, each_chunk, each_pair};
use crate::weights::{FfnWeights, GluWeights, Matrix, MoeWeights};

/// Working memory of the feed-forwards.
#[derive(Default)]
pub(super) struct FfnScratch {
    gate: Buffer,
    up: Buffer,
    activated: Buffer,
    inner: Inputs,
    experts: ExpertScratch,
}

/// Working memory of mixtures of experts. A *place* is a row of an expert's: choices in the order of their experts.
#[derive(Default)]
struct ExpertScratch {
    scores: Buffer,
    /// For each row, its experts with their weights, best first.
    choices: Vec<(u32, f32)>,
    /// The choice at each place.
    order: Vec<u32>,
    /// The place of each choice.
    places: Vec<u32>,
    groups: Vec<Group>,
    /// Rows at their places, prepared.
    gathered: Inputs,
    /// `[places][width]`.
    gate: Buffer,
    up: Buffer,
    activated: Buffer,
    inner: Inputs,
    /// `[places][hidden]`: what each chosen expert returned.
    returned: Buffer,
    /// `[rows][hidden]`: what the shared expert returned, and the weight of it.
    shared: Buffer,
    shared_gate: Buffer,
}

/// The places of one expert.
#[derive(Clone, Copy)]
struct Group {
    expert: u32,
    start: u32,
    end: u32,
}

impl Group {
    fn places(self) -> std::ops::Range<usize> {
        self.start as usize..self.end as usize
    }
}

/// How a feed-forward is computed, and for how many rows.
#[derive(Clone, Copy)]
pub(super) struct Call<'a> {
    pub(super) kernels: &'a Kernels,
    pub(super) products: Products,
    pub(super) rows: usize,
}

/// The rows a feed-forward takes: `norm(row, values)` writes them.
pub(super) struct Normed<'a, N> {
    /// `[rows][hidden]`, to be written.
    pub(super) values: &'a mut [f32],
    pub(super) norm: N,
}

/// `out[row] = ffn(normed[row])`.
pub(super) fn run(
    call: Call<'_>,
    spec: Option<&MoeSpec>,
    weights: &FfnWeights,
    normed: Normed<'_, impl Fn(usize, &mut [f32]) + Sync>,
    inputs: &mut Inputs,
    scratch: &mut FfnScratch,
    out: &mut [f32],
) {
    let Normed { values, norm } = normed;
    match (weights, spec) {
        (FfnWeights::Moe(weights), Some(spec)) => {
            let first = &weights.experts[0];
            let own = [&weights.router, &first.gate, &first.up];
            let shared = weights.shared.iter().flat_map(|(shared, gate)| [&shared.gate, &shared.up, gate]);
            let matrices = own.into_iter().chain(shared);
            inputs.make(call.products, values, weights.router.cols(), matrices, norm);
            moe(call, spec, weights, inputs, scratch, out);
        }
        (FfnWeights::Dense(weights), _) => {
            inputs.make(call.products, values, weights.gate.cols(), [&weights.gate, &weights.up], norm);
            glu(call, weights, inputs, scratch, out);
        }
        (FfnWeights::Moe(_), None) => unreachable!("weights are loaded to the specification"),
    }
}

/// `down(silu(gate(x)) * up(x))` for rows that `inputs` holds.
fn glu(call: Call<'_>, weights: &GluWeights, inputs: &Inputs, scratch: &mut FfnScratch, out: &mut [f32]) {
    let (rows, width) = (call.rows, weights.gate.rows());
    let gate = grown(&mut scratch.gate, rows * width);
    let up = grown(&mut scratch.up, rows * width);
    project(call.products, inputs, [(&weights.gate, &mut *gate), (&weights.up, &mut *up)]);
    let activated = grown(&mut scratch.activated, rows * width);
    scratch.inner.make(call.products, activated, width, [&weights.down], activate(call, gate, up));
    project(call.products, &scratch.inner, [(&weights.down, out)]);
}

/// `out = silu(gate[row]) * up[row]`.
fn activate<'a>(call: Call<'a>, gate: &'a [f32], up: &'a [f32]) -> impl Fn(usize, &mut [f32]) + Sync + 'a {
    move |row, out| {
        let range = row * out.len()..(row + 1) * out.len();
        call.kernels.vector.silu_mul(&gate[range.clone()], &up[range], out);
    }
}

/// A mixture of experts. All matrices of the same stage, the shared expert's apart, are one parallel region.
fn moe(
    call: Call<'_>,
    spec: &MoeSpec,
    weights: &MoeWeights,
    inputs: &Inputs,
    scratch: &mut FfnScratch,
    out: &mut [f32],
) {
    let (rows, hidden, products) = (call.rows, weights.router.cols(), call.products);
    let experts = &mut scratch.experts;
    route(call, spec, weights, inputs, experts);
    experts.group();
    let (places, width) = (experts.order.len(), weights.experts[0].gate.rows());
    let of = |group: &Group| &weights.experts[group.expert as usize];
    let ExpertScratch { order, groups, gathered, gate, up, activated, inner, returned, .. } = experts;
    let matrices = groups.iter().flat_map(|group| [&of(group).gate, &of(group).up]);
    gathered.gather(products, inputs, order, |choice| choice as usize / spec.top_k, matrices);
    let (gate, up) = (grown(gate, places * width), grown(up, places * width));
    {
        let outputs = [SharedRows::new(gate, places, width), SharedRows::new(up, places, width)];
        grouped(products, gathered, groups, |group, part| [&of(group).gate, &of(group).up][part], &outputs);
    }
    let activated = grown(activated, places * width);
    let down = groups.iter().map(|group| &of(group).down);
    inner.make(products, activated, width, down, activate(call, gate, up));
    {
        let outputs = [SharedRows::new(grown(returned, places * hidden), places, hidden)];
        grouped(products, inner, groups, |group, _| &of(group).down, &outputs);
    }

    let mut result = std::mem::take(&mut scratch.experts.shared);
    let mut gates = std::mem::take(&mut scratch.experts.shared_gate);
    if let Some((shared, shared_gate)) = &weights.shared {
        project(products, inputs, [(shared_gate, grown(&mut gates, rows))]);
        call.kernels.vector.sigmoid(&mut gates[..rows]);
        glu(call, shared, inputs, scratch, grown(&mut result, rows * hidden));
    }
    let shared = weights.shared.is_some().then(|| (&result[..rows * hidden], &gates[..rows]));
    scratch.experts.sum(call, spec.top_k, shared, &mut out[..rows * hidden]);
    (scratch.experts.shared, scratch.experts.shared_gate) = (result, gates);
}

/// Softmax over all experts, then the `top_k` best of each row; equal probabilities go to the lower expert.
fn route(call: Call<'_>, spec: &MoeSpec, weights: &MoeWeights, inputs: &Inputs, scratch: &mut ExpertScratch) {
    let scores = grown(&mut scratch.scores, call.rows * spec.experts);
    project(call.products, inputs, [(&weights.router, &mut *scores)]);
    scratch.choices.resize(call.rows * spec.top_k, (0, 0.0));
    let choices = (&mut scratch.choices[..], spec.top_k);
    each_pair(choices, (scores, spec.experts), 8, |_, choices, scores| {
        call.kernels.vector.softmax(scores);
        for choice in choices.iter_mut() {
            let best = call.kernels.vector.argmax(scores);
            *choice = (best as u32, scores[best]);
            scores[best] = f32::NEG_INFINITY;
        }
        if spec.normalize_weights {
            let sum: f32 = choices.iter().map(|choice| choice.1).sum();
            choices.iter_mut().for_each(|choice| choice.1 /= sum);
        }
    });
}

/// Every expert's matrices with the rows at its places, into as many outputs as it has matrices, in one parallel region.
/// Matrices of one part are of one shape.
fn grouped<'m, const N: usize>(
    products: Products,
    inputs: &Inputs,
    groups: &[Group],
    matrix: impl Fn(&Group, usize) -> &'m Matrix + Sync,
    outputs: &[SharedRows<'_>; N],
) {
    let Some(first) = groups.first() else { return };
    let mut starts = [0; N];
    let mut per_group = 0;
    for (part, start) in starts.iter_mut().enumerate() {
        *start = per_group;
        per_group += units(matrix(first, part));
    }
    claim_each(groups.len() * per_group, |unit| {
        let (group, unit) = (&groups[unit / per_group], unit % per_group);
        let part = starts.iter().rposition(|&start| start <= unit).unwrap_or(0);
        let matrix = matrix(group, part);
        let first = (unit - starts[part]) * unit_rows(matrix);
        let columns = first..(first + unit_rows(matrix)).min(matrix.rows());
        let out = outputs[part].tile(group.places(), columns.clone());
        multiply(products, inputs, group.places(), matrix, columns, out);
    });
}

impl ExpertScratch {
    /// Choices in the order of their experts, so that each expert's weights are read once.
    fn group(&mut self) {
        let choices = &self.choices;
        self.order.clear();
        self.order.extend(0..choices.len() as u32);
        self.order.sort_unstable_by_key(|&choice| (choices[choice as usize].0, choice));
        self.places.resize(choices.len(), 0);
        self.groups.clear();
        for (place, &choice) in self.order.iter().enumerate() {
            self.places[choice as usize] = place as u32;
            let (expert, end) = (choices[choice as usize].0, place as u32 + 1);
            match self.groups.last_mut() {
                Some(group) if group.expert == expert => group.end = end,
                _ => self.groups.push(Group { expert, start: place as u32, end }),
            }
        }
    }

    /// Each row's experts, weighted, summed from best to worst, then the shared one.
    fn sum(&self, call: Call<'_>, top_k: usize, shared: Option<(&[f32], &[f32])>, out: &mut [f32]) {
        let hidden = out.len() / call.rows.max(1);
        each_chunk(out, hidden, 4, |row, out| {
            out.fill(0.0);
            for choice in row * top_k..(row + 1) * top_k {
                let at = self.places[choice] as usize * hidden;
                let from = &self.returned[at..at + hidden];
                call.kernels.vector.add_scaled(out, from, self.choices[choice].1);
            }
            if let Some((result, gates)) = shared {
                let from = &result[row * hidden..(row + 1) * hidden];
                call.kernels.vector.add_scaled(out, from, gates[row]);
            }
        });
    }
}
