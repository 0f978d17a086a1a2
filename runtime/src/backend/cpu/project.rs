//! Matrix products: inputs prepared once and shared by every matrix that reads them, outputs split over the team.

use std::ops::Range;

use millpond_simd::matmul::{ActivationKind, ActivationWriter, Activations, MatmulKernels, OutTile};
use millpond_simd::quant::{QFormat, dequantize_row};
use zerocopy::IntoBytes;

use crate::par::{SharedRows, claim_each, each, each_chunk};
use crate::weights::Matrix;

/// Weight bytes one unit of work covers: large enough to hide the cost of claiming it, small enough that a late
/// worker holds nobody up.
const UNIT_BYTES: usize = 96 * 1024;

/// Rows one unit of preparing activations covers.
const PREPARED_ROWS: usize = 4;

/// What quantised weights are multiplied with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Arithmetic {
    /// Activations rounded to 8 bits a block: exact integer products, one rounding per block. The fast way.
    #[default]
    Quantised,
    /// Weights widened to f32 and activations as they are: for comparisons with other implementations.
    Exact,
}

impl Arithmetic {
    fn activations_for(self, format: QFormat) -> ActivationKind {
        match self {
            Arithmetic::Quantised => format.activation_kind(),
            Arithmetic::Exact => ActivationKind::F32,
        }
    }
}

/// How products are computed: the kernels of a level, and what quantised weights are multiplied with.
#[derive(Clone, Copy)]
pub(super) struct Products {
    pub(super) kernels: &'static MatmulKernels,
    pub(super) arithmetic: Arithmetic,
}

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

/// What the forms hold.
const KINDS: [ActivationKind; 3] =
    [ActivationKind::F32, ActivationKind::Q8Block32, ActivationKind::Q8Block256];

fn index(kind: ActivationKind) -> usize {
    match kind {
        ActivationKind::F32 => 0,
        ActivationKind::Q8Block32 => 1,
        ActivationKind::Q8Block256 => 2,
    }
}

impl Inputs {
    /// Takes `rows x cols` values in the forms that `matrices` need.
    pub(super) fn set<'m>(
        &mut self,
        products: Products,
        values: &[f32],
        rows: usize,
        cols: usize,
        matrices: impl IntoIterator<Item = &'m Matrix>,
    ) {
        let writers = self.start(products, rows, cols, matrices);
        let prepare = |row: usize| {
            let values = &values[row * cols..(row + 1) * cols];
            writers.iter().flatten().for_each(|writer| writer.prepare_row(products.kernels, row, values));
        };
        each(rows, PREPARED_ROWS, prepare);
    }

    /// As [`Inputs::set`], with values that `write(row, values)` makes first, while they are close: a norm or an
    /// activation costs no pass over memory of its own.
    pub(super) fn make<'m>(
        &mut self,
        products: Products,
        values: &mut [f32],
        cols: usize,
        matrices: impl IntoIterator<Item = &'m Matrix>,
        write: impl Fn(usize, &mut [f32]) + Sync,
    ) {
        let rows = values.len() / cols;
        let writers = self.start(products, rows, cols, matrices);
        each_chunk(values, cols, PREPARED_ROWS, |row, values| {
            write(row, values);
            writers.iter().flatten().for_each(|writer| writer.prepare_row(products.kernels, row, values));
        });
    }

    /// Takes row `row(order[i])` of other inputs as row `i`, for every `i`, in the forms that `matrices` need and the
    /// others have.
    pub(super) fn gather<'m>(
        &mut self,
        products: Products,
        from: &Inputs,
        order: &[u32],
        row: impl Fn(u32) -> usize + Sync,
        matrices: impl IntoIterator<Item = &'m Matrix>,
    ) {
        let writers = self.start(products, order.len(), from.cols, matrices);
        each(order.len(), PREPARED_ROWS, |place| {
            for (writer, form) in writers.iter().zip(&from.forms) {
                if let Some(writer) = writer {
                    writer.copy_row(place, &form.activations, row(order[place]));
                }
            }
        });
    }

    /// Makes room in the forms that `matrices` need.
    fn start<'m>(
        &mut self,
        products: Products,
        rows: usize,
        cols: usize,
        matrices: impl IntoIterator<Item = &'m Matrix>,
    ) -> [Option<ActivationWriter<'_>>; 3] {
        (self.rows, self.cols) = (rows, cols);
        self.forms.iter_mut().for_each(|form| form.ready = false);
        for matrix in matrices {
            self.forms[index(products.arithmetic.activations_for(matrix.format()))].ready = true;
        }
        let mut kind = KINDS.into_iter();
        self.forms.each_mut().map(|form| {
            let kind = kind.next()?;
            form.ready.then(|| form.activations.start(kind, rows, cols))
        })
    }
}

/// `out[row][..matrix.rows()] = matrix * inputs[row]` for several matrices with one set of inputs, in one parallel
/// region.
pub(super) fn project<const N: usize>(products: Products, inputs: &Inputs, jobs: [(&Matrix, &mut [f32]); N]) {
    let rows = inputs.rows;
    let matrices = jobs.each_ref().map(|(matrix, _)| *matrix);
    let outputs = jobs.map(|(matrix, out)| SharedRows::new(out, rows, matrix.rows()));
    let mut starts = [0; N];
    let mut count = 0;
    for (start, matrix) in starts.iter_mut().zip(matrices) {
        *start = count;
        count += units(matrix);
    }
    claim_each(count, |unit| {
        let job = starts.iter().rposition(|&start| start <= unit).unwrap_or(0);
        let matrix = matrices[job];
        let first = (unit - starts[job]) * unit_rows(matrix);
        let columns = first..(first + unit_rows(matrix)).min(matrix.rows());
        let out = outputs[job].tile(0..rows, columns.clone());
        multiply(products, inputs, 0..rows, matrix, columns, out);
    });
}

/// Some rows of a matrix times some rows of the inputs.
pub(super) fn multiply(
    products: Products,
    inputs: &Inputs,
    rows: Range<usize>,
    matrix: &Matrix,
    range: Range<usize>,
    out: OutTile<'_>,
) {
    let (format, cols) = (matrix.format(), matrix.cols());
    let kind = products.arithmetic.activations_for(format);
    let form = &inputs.forms[index(kind)];
    debug_assert!(form.ready && cols == inputs.cols, "inputs were prepared for another matrix");
    let bytes = matrix.row_range(range.clone());
    if kind == format.activation_kind() {
        products.kernels.matmul(format, bytes, range.len(), cols, &form.activations, rows, out);
        return;
    }
    let mut widened = vec![0.0; range.len() * cols];
    for (bytes, row) in bytes.chunks_exact(matrix.row_bytes()).zip(widened.chunks_exact_mut(cols)) {
        dequantize_row(format, bytes, row).expect("rows of a matrix are whole blocks");
    }
    let widened = widened.as_bytes();
    products.kernels.matmul(QFormat::F32, widened, range.len(), cols, &form.activations, rows, out);
}

/// Units of work in a matrix.
pub(super) fn units(matrix: &Matrix) -> usize {
    matrix.rows().div_ceil(unit_rows(matrix))
}

/// Whole tiles of the kernels, which take 32 weight rows at a time.
pub(super) fn unit_rows(matrix: &Matrix) -> usize {
    (UNIT_BYTES / matrix.row_bytes().max(1)).clamp(32, 4096).next_multiple_of(32)
}
