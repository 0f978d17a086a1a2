//! Feed-forwards: dense, and mixtures of experts with rows grouped by expert.

use millpond_models::MoeSpec;
use millpond_simd::kernels::Kernels;
use rayon::prelude::*;

use super::project::{Inputs, Products, project};
use super::scratch::{Buffer, grown};
use crate::weights::{FfnWeights, GluWeights, MoeWeights};

/// Working memory of the feed-forwards.
#[derive(Default)]
pub(super) struct FfnScratch {
    gate: Buffer,
    up: Buffer,
    activated: Buffer,
    inner: Inputs,
    router: Buffer,
    router_inputs: Inputs,
    gathered: Buffer,
    gathered_inputs: Inputs,
    expert_out: Buffer,
    shared_gate: Buffer,
    /// For each row, its experts with their weights, best first.
    choices: Vec<(u32, f32)>,
    order: Vec<u32>,
    /// `[rows][top_k][hidden]`: what each chosen expert returned.
    returned: Buffer,
}

/// `out[row] = ffn(x[row])` for `rows` normed rows.
pub(super) fn run(
    kernels: &Kernels,
    products: Products,
    spec: Option<&MoeSpec>,
    weights: &FfnWeights,
    x: &[f32],
    rows: usize,
    inputs: &mut Inputs,
    scratch: &mut FfnScratch,
    out: &mut [f32],
) {
    match (weights, spec) {
        (FfnWeights::Moe(weights), Some(spec)) => {
            moe(kernels, products, spec, weights, x, rows, inputs, scratch, out)
        }
        (FfnWeights::Dense(weights), _) => {
            inputs.set(products, x, rows, weights.gate.cols(), [&weights.gate, &weights.up]);
            glu(kernels, products, weights, inputs, rows, scratch, out);
        }
        (FfnWeights::Moe(_), None) => unreachable!("weights are loaded to the specification"),
    }
}

/// `down(silu(gate(x)) * up(x))` for rows that `inputs` holds.
fn glu(
    kernels: &Kernels,
    products: Products,
    weights: &GluWeights,
    inputs: &Inputs,
    rows: usize,
    scratch: &mut FfnScratch,
    out: &mut [f32],
) {
    let width = weights.gate.rows();
    let gate = grown(&mut scratch.gate, rows * width);
    let up = grown(&mut scratch.up, rows * width);
    project(products, inputs, [(&weights.gate, gate), (&weights.up, up)]);
    let activated = grown(&mut scratch.activated, rows * width);
    activated
        .par_chunks_mut(ELEMENTS)
        .zip(gate.par_chunks(ELEMENTS).zip(up.par_chunks(ELEMENTS)))
        .for_each(|(activated, (gate, up))| kernels.vector.silu_mul(gate, up, activated));
    scratch.inner.set(products, activated, rows, width, [&weights.down]);
    project(products, &scratch.inner, [(&weights.down, out)]);
}

/// Values one unit of element-wise work covers.
const ELEMENTS: usize = 8192;

fn moe(
    kernels: &Kernels,
    products: Products,
    spec: &MoeSpec,
    weights: &MoeWeights,
    x: &[f32],
    rows: usize,
    inputs: &mut Inputs,
    scratch: &mut FfnScratch,
    out: &mut [f32],
) {
    let hidden = weights.router.cols();
    route(kernels, products, spec, weights, x, rows, scratch);
    let returned = rows * spec.top_k * hidden;
    grown(&mut scratch.returned, returned);
    group_by_expert(scratch);
    let order = std::mem::take(&mut scratch.order);
    let same_expert = |a: &u32, b: &u32| scratch.choices[*a as usize].0 == scratch.choices[*b as usize].0;
    let groups: Vec<&[u32]> = order.chunk_by(same_expert).collect();
    for group in groups {
        let expert = &weights.experts[scratch.choices[group[0] as usize].0 as usize];
        run_expert(kernels, products, spec, expert, x, hidden, group, scratch);
    }
    scratch.order = order;
    sum_choices(kernels, spec, hidden, scratch, &mut out[..rows * hidden]);
    if let Some((shared, shared_gate)) = &weights.shared {
        inputs.set(products, x, rows, hidden, [&shared.gate, &shared.up, shared_gate]);
        let mut gates = std::mem::take(&mut scratch.shared_gate);
        project(products, inputs, [(shared_gate, grown(&mut gates, rows))]);
        kernels.vector.sigmoid(&mut gates[..rows]);
        let mut result = std::mem::take(&mut scratch.expert_out);
        glu(kernels, products, shared, inputs, rows, scratch, grown(&mut result, rows * hidden));
        for (row, out) in out.chunks_exact_mut(hidden).take(rows).enumerate() {
            kernels.vector.add_scaled(out, &result[row * hidden..(row + 1) * hidden], gates[row]);
        }
        (scratch.shared_gate, scratch.expert_out) = (gates, result);
    }
}

/// Softmax over all experts, then the `top_k` best of each row; equal probabilities go to the lower expert.
fn route(
    kernels: &Kernels,
    products: Products,
    spec: &MoeSpec,
    weights: &MoeWeights,
    x: &[f32],
    rows: usize,
    scratch: &mut FfnScratch,
) {
    scratch.router_inputs.set(products, x, rows, weights.router.cols(), [&weights.router]);
    let scores = grown(&mut scratch.router, rows * spec.experts);
    project(products, &scratch.router_inputs, [(&weights.router, scores)]);
    scratch.choices.clear();
    for scores in scores.chunks_exact_mut(spec.experts) {
        kernels.vector.softmax(scores);
        let first = scratch.choices.len();
        for _ in 0..spec.top_k {
            let best = kernels.vector.argmax(scores);
            scratch.choices.push((best as u32, scores[best]));
            scores[best] = f32::NEG_INFINITY;
        }
        if spec.normalize_weights {
            let chosen = &mut scratch.choices[first..];
            let sum: f32 = chosen.iter().map(|choice| choice.1).sum();
            chosen.iter_mut().for_each(|choice| choice.1 /= sum);
        }
    }
}

/// Choices in the order of their experts, so that each expert's weights are read once.
fn group_by_expert(scratch: &mut FfnScratch) {
    scratch.order.clear();
    scratch.order.extend(0..scratch.choices.len() as u32);
    let choices = &scratch.choices;
    scratch.order.sort_unstable_by_key(|&choice| (choices[choice as usize].0, choice));
}

/// Runs one expert over the rows that chose it; results go to their places in `returned`.
fn run_expert(
    kernels: &Kernels,
    products: Products,
    spec: &MoeSpec,
    expert: &GluWeights,
    x: &[f32],
    hidden: usize,
    group: &[u32],
    scratch: &mut FfnScratch,
) {
    let rows = group.len();
    let mut gathered = std::mem::take(&mut scratch.gathered);
    let mut inputs = std::mem::take(&mut scratch.gathered_inputs);
    let mut result = std::mem::take(&mut scratch.expert_out);
    let values = grown(&mut gathered, rows * hidden);
    for (&choice, to) in group.iter().zip(values.chunks_exact_mut(hidden)) {
        let row = choice as usize / spec.top_k;
        to.copy_from_slice(&x[row * hidden..(row + 1) * hidden]);
    }
    inputs.set(products, values, rows, hidden, [&expert.gate, &expert.up]);
    glu(kernels, products, expert, &inputs, rows, scratch, grown(&mut result, rows * hidden));
    for (&choice, from) in group.iter().zip(result.chunks_exact(hidden)) {
        let at = choice as usize * hidden;
        scratch.returned[at..at + hidden].copy_from_slice(from);
    }
    (scratch.gathered, scratch.gathered_inputs, scratch.expert_out) = (gathered, inputs, result);
}

/// Each row's experts, weighted, summed from best to worst.
fn sum_choices(kernels: &Kernels, spec: &MoeSpec, hidden: usize, scratch: &FfnScratch, out: &mut [f32]) {
    out.fill(0.0);
    for (row, out) in out.chunks_exact_mut(hidden).enumerate() {
        for choice in row * spec.top_k..(row + 1) * spec.top_k {
            let from = &scratch.returned[choice * hidden..(choice + 1) * hidden];
            kernels.vector.add_scaled(out, from, scratch.choices[choice].1);
        }
    }
}
