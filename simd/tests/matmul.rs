//! Products: the oracle against f64 arithmetic, every instruction set against the oracle, bit for bit.

mod common;

use common::{Random, random_activations, random_weights};
use millpond_simd::isa::Isa;
use millpond_simd::matmul::{ActivationKind, Activations, MatmulKernels, OutTile};
use millpond_simd::quant::{QFormat, dequantize_row};
use proptest::prelude::*;

fn kernels(isa: Isa) -> &'static MatmulKernels {
    MatmulKernels::for_isa(isa).expect("an available level")
}

/// The whole product `[x_rows][w_rows]`, written over NaN so that an element left out shows.
fn product(isa: Isa, format: QFormat, weights: &[u8], w_rows: usize, x: &[f32], cols: usize) -> Vec<f32> {
    let x_rows = x.len() / cols;
    let mut activations = Activations::new();
    activations.prepare(kernels(isa), format.activation_kind(), x, x_rows, cols);
    let mut out = vec![f32::NAN; x_rows * w_rows];
    let tile = OutTile::new(&mut out, w_rows, x_rows, w_rows);
    kernels(isa).matmul(format, weights, w_rows, cols, &activations, 0..x_rows, tile);
    out
}

/// Equal bits, or both not numbers.
fn same(a: f32, b: f32) -> bool {
    a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan())
}

fn first_difference(a: &[f32], b: &[f32]) -> Option<(usize, f32, f32)> {
    assert_eq!(a.len(), b.len());
    (0..a.len()).find(|&i| !same(a[i], b[i])).map(|i| (i, a[i], b[i]))
}

/// Every output lies within what rounding the activations to their 8-bit grid may do, in f64.
#[test]
fn the_oracle_is_the_product_up_to_the_rounding_of_activations() {
    let mut random = Random(3);
    let (w_rows, x_rows, cols) = (5, 3, 512);
    for format in QFormat::ALL {
        let weights = random_weights(&mut random, format, w_rows, cols, false);
        let x = random.normals(x_rows * cols);
        let out = product(Isa::Scalar, format, &weights, w_rows, &x, cols);
        let block = format.activation_kind().block_len();
        for j in 0..w_rows {
            let size = weights.len() / w_rows;
            let mut row = vec![0.0; cols];
            dequantize_row(format, &weights[j * size..(j + 1) * size], &mut row).expect("a row");
            for i in 0..x_rows {
                let (mut exact, mut slack) = (0.0f64, 0.0f64);
                for (w, x) in row.chunks(block).zip(x[i * cols..(i + 1) * cols].chunks(block)) {
                    let largest = x.iter().fold(0.0f32, |m, x| m.max(x.abs()));
                    for (&w, &x) in w.iter().zip(x) {
                        let (w, x) = (f64::from(w), f64::from(x));
                        let rounding = if block == 1 { 0.0 } else { 0.5 * f64::from(largest) / 127.0 };
                        exact += w * x;
                        slack += w.abs() * (1.001 * rounding + 1e-5 * x.abs());
                    }
                }
                let found = f64::from(out[i * w_rows + j]);
                assert!((found - exact).abs() <= slack, "{format:?}: {found} for {exact} +- {slack}");
            }
        }
    }
}

/// Activations that already are on an 8-bit grid are prepared without loss: the product is exact up to f32 rounding.
#[test]
fn activations_on_the_grid_are_exact() {
    let mut random = Random(5);
    let (w_rows, cols) = (7, 768);
    for format in QFormat::ALL {
        let weights = random_weights(&mut random, format, w_rows, cols, false);
        let mut x: Vec<f32> = (0..cols).map(|_| (random.below(255) as f32 - 127.0) * 0.25).collect();
        for block in x.chunks_mut(32) {
            block[random.below(32)] = 127.0 * 0.25;
        }
        let out = product(Isa::Scalar, format, &weights, w_rows, &x, cols);
        for (j, bytes) in weights.chunks(weights.len() / w_rows).enumerate() {
            let mut row = vec![0.0; cols];
            dequantize_row(format, bytes, &mut row).expect("a row");
            let exact: f64 = row.iter().zip(&x).map(|(&w, &x)| f64::from(w) * f64::from(x)).sum();
            // K-quants with offsets cancel two large sums, each rounded relative to its own size.
            let size: f64 = row.iter().zip(&x).map(|(&w, &x)| (f64::from(w) * f64::from(x)).abs()).sum();
            let found = f64::from(out[j]);
            assert!((found - exact).abs() <= 4e-5 * size, "{format:?}: {found} for {exact}, size {size}");
        }
    }
}

#[test]
fn what_is_no_number_spreads_to_its_row_and_no_further() {
    let mut random = Random(8);
    let (w_rows, cols) = (3, 512);
    for format in QFormat::ALL {
        let weights = random_weights(&mut random, format, w_rows, cols, false);
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = random.normals(2 * cols);
            x[300] = bad;
            for isa in Isa::available() {
                let out = product(isa, format, &weights, w_rows, &x, cols);
                assert!(out[..w_rows].iter().all(|value| !value.is_finite()), "{format:?} {isa}: {out:?}");
                assert!(out[w_rows..].iter().all(|value| value.is_finite()), "{format:?} {isa}: {out:?}");
            }
        }
    }
}

#[test]
fn empty_products_are_empty_or_zero() {
    for isa in Isa::available() {
        assert!(product(isa, QFormat::Q4K, &[], 0, &[1.0; 512], 256).is_empty());
        let mut activations = Activations::new();
        activations.prepare(kernels(isa), ActivationKind::F32, &[], 2, 0);
        let mut out = [f32::NAN; 6];
        let tile = OutTile::new(&mut out, 3, 2, 3);
        kernels(isa).matmul(QFormat::F32, &[], 3, 0, &activations, 0..2, tile);
        assert_eq!(out, [0.0; 6]);
    }
}

#[test]
fn threads_prepare_the_same_rows() {
    let mut random = Random(13);
    let (rows, cols) = (9, 512);
    let x = random.normals(rows * cols);
    let weights = random_weights(&mut random, QFormat::Q4K, 4, cols, false);
    let kernels = kernels(Isa::detect());
    let mut activations = Activations::new();
    let writer = activations.start(ActivationKind::Q8Block256, rows, cols);
    std::thread::scope(|scope| {
        for first in 0..3 {
            let (writer, x) = (&writer, &x);
            scope.spawn(move || {
                for row in (first..rows).step_by(3) {
                    writer.prepare_row(kernels, row, &x[row * cols..(row + 1) * cols]);
                }
            });
        }
    });
    let mut out = vec![f32::NAN; rows * 4];
    let tile = OutTile::new(&mut out, 4, rows, 4);
    kernels.matmul(QFormat::Q4K, &weights, 4, cols, &activations, 0..rows, tile);
    assert_eq!(first_difference(&out, &product(Isa::Scalar, QFormat::Q4K, &weights, 4, &x, cols)), None);
}

#[test]
#[should_panic(expected = "prepared once")]
fn a_row_is_claimed_once() {
    let mut activations = Activations::new();
    let writer = activations.start(ActivationKind::F32, 2, 4);
    writer.prepare_row(kernels(Isa::Scalar), 1, &[0.0; 4]);
    writer.prepare_row(kernels(Isa::Scalar), 1, &[0.0; 4]);
}

/// Every number of rows that has a kernel of its own, with every format: too many pairs for chance to find.
fn every_number_of_rows_agrees(isa: Isa) {
    let mut random = Random(21);
    for format in QFormat::ALL {
        // Widths of weights beside whole groups, and columns beside whole chunks of blocks.
        for (w_rows, blocks) in [(1, 1), (19, 3), (32, 35)] {
            let cols = if format.block_len() == 256 { 256 * blocks } else { 32 * blocks };
            let weights = random_weights(&mut random, format, w_rows, cols, false);
            for x_rows in 1..=17 {
                let x = random_activations(&mut random, x_rows * cols, false);
                let expected = product(Isa::Scalar, format, &weights, w_rows, &x, cols);
                let found = product(isa, format, &weights, w_rows, &x, cols);
                assert_eq!(first_difference(&found, &expected), None, "{format:?} {isa}: {x_rows} rows");
            }
        }
    }
}

/// The whole suite of one level: the oracle's bits, for any shape, any division of the work.
fn level_agrees(isa: Isa) {
    if !isa.is_available() {
        return;
    }
    every_number_of_rows_agrees(isa);
    let cases = (0..QFormat::ALL.len(), 1..40usize, 1..40usize, 1..9usize, any::<u64>(), any::<bool>());
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) };
    let mut runner = proptest::test_runner::TestRunner::new(config);
    let result = runner.run(&cases, |(format, w_rows, x_rows, blocks, seed, wild)| {
        let format = QFormat::ALL[format];
        let mut random = Random(seed);
        let cols = match format.block_len() {
            1 => 37 * blocks + random.below(64),
            32 => 32 * (blocks + random.below(56)),
            _ => 256 * blocks,
        };
        let weights = random_weights(&mut random, format, w_rows, cols, wild);
        let x = random_activations(&mut random, x_rows * cols, wild);
        let expected = product(Isa::Scalar, format, &weights, w_rows, &x, cols);
        let found = product(isa, format, &weights, w_rows, &x, cols);
        prop_assert_eq!(first_difference(&found, &expected), None, "{:?} {}", format, isa);

        let (i, j) = (random.below(x_rows), random.below(w_rows));
        let size = weights.len() / w_rows;
        let alone =
            product(isa, format, &weights[j * size..(j + 1) * size], 1, &x[i * cols..(i + 1) * cols], cols);
        prop_assert!(same(alone[0], expected[i * w_rows + j]), "{:?} {}: one output alone", format, isa);

        let (start, end) = (random.below(x_rows), x_rows - random.below(x_rows));
        if start < end {
            let mut activations = Activations::new();
            activations.prepare(kernels(isa), format.activation_kind(), &x, x_rows, cols);
            let mut out = vec![f32::NAN; (end - start) * (w_rows + 3)];
            let (left, right) = OutTile::new(&mut out, w_rows + 3, end - start, w_rows).split_at_col(j);
            let (first, rest) = weights.split_at(j * size);
            kernels(isa).matmul(format, first, j, cols, &activations, start..end, left);
            kernels(isa).matmul(format, rest, w_rows - j, cols, &activations, start..end, right);
            for (out, expected) in out.chunks(w_rows + 3).zip(expected.chunks(w_rows).skip(start)) {
                prop_assert_eq!(first_difference(&out[..w_rows], expected), None, "{:?} {}", format, isa);
                prop_assert!(out[w_rows..].iter().all(|value| value.is_nan()), "nothing beside the tile");
            }
        }
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
}

macro_rules! levels_agree {
    ($($name:ident: $isa:expr,)*) => {
        $(#[test]
        fn $name() {
            level_agrees($isa);
        })*
    };
}

levels_agree! {
    scalar_rows_are_independent: Isa::Scalar,
    avx2_is_the_oracle: Isa::Avx2,
    avxvnni_is_the_oracle: Isa::AvxVnni,
    avx512_is_the_oracle: Isa::Avx512,
    avx512vnni_is_the_oracle: Isa::Avx512Vnni,
    neon_is_the_oracle: Isa::Neon,
    neondot_is_the_oracle: Isa::NeonDot,
    neoni8mm_is_the_oracle: Isa::NeonI8mm,
}
