//! Matrix products: inputs prepared once and shared by every matrix that reads them, outputs split over the team.

use millpond_simd::matmul::{ActivationKind, Activations, MatmulKernels, OutTile};
use rayon::prelude::*;

use crate::par::SharedRows;
use crate::weights::Matrix;

/// Weight bytes one unit of work covers: large enough to hide the cost of claiming it, small enough that a late
/// worker holds nobody up.
const UNIT_BYTES: usize = 96 * 1024;

/// Rows of activations, in every form a matrix of the model multiplies with.
#[derive(Default)]
pub(super) struct Inputs {
    rows: usize,
    cols: usize,
    forms: [Form; 3],
}

#[derive(Default)]
struct Form {
    ready: bool,
    activations: Activations,
}

fn index(kind: ActivationKind) -> usize {
    match kind {
        ActivationKind::F32 => 0,
        ActivationKind::Q8Block32 => 1,
        ActivationKind::Q8Block256 => 2,
    }
}

impl Inputs {
    /// Takes `rows x cols` new values in the forms that `matrices` need.
    pub(super) fn set<'m>(
        &mut self,
        kernels: &MatmulKernels,
        values: &[f32],
        rows: usize,
        cols: usize,
        matrices: impl IntoIterator<Item = &'m Matrix>,
    ) {
        (self.rows, self.cols) = (rows, cols);
        self.forms.iter_mut().for_each(|form| form.ready = false);
        for matrix in matrices {
            let kind = matrix.format().activation_kind();
            let form = &mut self.forms[index(kind)];
            if !form.ready {
                form.activations.prepare(kernels, kind, values, rows, cols);
                form.ready = true;
            }
        }
    }

    fn form(&self, matrix: &Matrix) -> &Activations {
        let form = &self.forms[index(matrix.format().activation_kind())];
        debug_assert!(form.ready && matrix.cols() == self.cols, "inputs were prepared for another matrix");
        &form.activations
    }
}

/// `out[row][..matrix.rows()] = matrix * inputs[row]` for several matrices with one set of inputs, in one parallel
/// region.
pub(super) fn project<const N: usize>(
    kernels: &MatmulKernels,
    inputs: &Inputs,
    jobs: [(&Matrix, &mut [f32]); N],
) {
    let rows = inputs.rows;
    let matrices = jobs.each_ref().map(|(matrix, _)| *matrix);
    let outputs = jobs.map(|(matrix, out)| SharedRows::new(out, rows, matrix.rows()));
    let mut starts = [0; N];
    let mut units = 0;
    for (start, matrix) in starts.iter_mut().zip(matrices) {
        *start = units;
        units += matrix.rows().div_ceil(unit_rows(matrix));
    }
    (0..units).into_par_iter().for_each(|unit| {
        let job = starts.iter().rposition(|&start| start <= unit).unwrap_or(0);
        let matrix = matrices[job];
        let first = (unit - starts[job]) * unit_rows(matrix);
        let last = (first + unit_rows(matrix)).min(matrix.rows());
        let tile: OutTile<'_> = outputs[job].columns(first..last);
        kernels.matmul(
            matrix.format(),
            matrix.row_range(first..last),
            last - first,
            matrix.cols(),
            inputs.form(matrix),
            0..rows,
            tile,
        );
    });
}

fn unit_rows(matrix: &Matrix) -> usize {
    (UNIT_BYTES / matrix.row_bytes().max(1)).clamp(16, 4096).next_multiple_of(16)
}
