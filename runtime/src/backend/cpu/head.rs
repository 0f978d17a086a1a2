//! The output head, and the multi-token-prediction head before it.

use super::project::project;
use super::scratch::grown;
use super::{Context, Running, Scratch, wanted};
use crate::backend::{MtpSegment, Outputs, Segment};
use crate::state::layout::MixerSlot;
use crate::weights::{Matrix, MtpWeights};

impl Context<'_> {
    /// Final norm, and logits of the rows that want them.
    pub(super) fn head(
        &self,
        segments: &[Segment<'_>],
        rows: usize,
        scratch: &mut Scratch,
        outputs: &mut Outputs,
    ) {
        let len = rows * self.spec.hidden;
        let normed = grown(&mut scratch.normed, len);
        self.norm_rows(&scratch.residual[..len], &self.weights.output_norm, normed);
        if outputs.want_hidden {
            outputs.hidden.extend_from_slice(normed);
        }
        let wanted = segments
            .iter()
            .map(|segment| (segment.tokens.len(), wanted(segment.logits, segment.tokens.len())));
        self.logits(&self.weights.output, wanted, scratch, outputs);
    }

    /// Logits of some rows of `scratch.normed`; `wanted` yields each segment's rows and those that want logits.
    fn logits(
        &self,
        output: &Matrix,
        wanted: impl Iterator<Item = (usize, std::ops::Range<usize>)>,
        scratch: &mut Scratch,
        outputs: &mut Outputs,
    ) {
        let (hidden, mut first, mut count) = (self.spec.hidden, 0, 0);
        for (rows, wanted) in wanted {
            for row in wanted {
                let head = grown(&mut scratch.head, (count + 1) * hidden);
                let from = (first + row) * hidden;
                head[count * hidden..].copy_from_slice(&scratch.normed[from..from + hidden]);
                count += 1;
            }
            first += rows;
        }
        // Not cleared first: every value is written, and filling megabytes with zeros takes its time.
        outputs.logits.resize(count * output.rows(), 0.0);
        if count == 0 {
            return;
        }
        let products = self.products();
        scratch.inputs.set(products, &scratch.head[..count * hidden], count, hidden, [output]);
        project(products, &scratch.inputs, [(output, &mut outputs.logits)]);
    }

    /// The multi-token-prediction head over the rows of a batch.
    pub(super) fn mtp(
        &self,
        weights: &MtpWeights,
        slot: usize,
        segments: &[MtpSegment<'_>],
        running: &mut [Running<'_>],
        rows: usize,
        scratch: &mut Scratch,
        outputs: &mut Outputs,
    ) {
        let (hidden, products) = (self.spec.hidden, self.products());
        let Some(spec) = &self.spec.mtp else { return };
        let tokens = segments.iter().flat_map(|segment| segment.tokens.iter().copied());
        self.embed(&weights.embedding, tokens, scratch);
        let mut joined = std::mem::take(&mut scratch.mixed);
        let both = grown(&mut joined, rows * 2 * hidden);
        let states = segments.iter().flat_map(|segment| segment.hidden.chunks_exact(hidden));
        for ((both, state), embedded) in
            both.chunks_exact_mut(2 * hidden).zip(states).zip(scratch.residual.chunks_exact(hidden))
        {
            let (embedding_half, hidden_half) = both.split_at_mut(hidden);
            let eps = self.spec.norm_eps;
            self.kernels.vector.rms_norm(embedded, &weights.embedding_norm, eps, embedding_half);
            self.kernels.vector.rms_norm(state, &weights.hidden_norm, eps, hidden_half);
        }
        scratch.inputs.set(products, both, rows, 2 * hidden, [&weights.fc]);
        project(products, &scratch.inputs, [(&weights.fc, grown(&mut scratch.residual, rows * hidden))]);
        scratch.mixed = joined;
        self.layer(&spec.layer, &weights.layer, MixerSlot::Attention(slot), running, rows, scratch);
        let len = rows * hidden;
        let normed = grown(&mut scratch.normed, len);
        self.norm_rows(&scratch.residual[..len], &weights.output_norm, normed);
        outputs.hidden.clear();
        if outputs.want_hidden {
            outputs.hidden.extend_from_slice(normed);
        }
        let wanted = segments
            .iter()
            .map(|segment| (segment.tokens.len(), wanted(segment.logits, segment.tokens.len())));
        self.logits(&weights.output, wanted, scratch, outputs);
    }
}
