use super::*;
use crate::Isa;
use half::f16;
use proptest::prelude::*;

fn random(len: usize, seed: &mut u64) -> Vec<f32> {
    (0..len)
        .map(|_| {
            *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (*seed >> 40) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect()
}

/// A context of one key/value head and the rows that look at it.
#[derive(Debug)]
struct Case {
    head_dim: usize,
    positions: usize,
    queries: Vec<f32>,
    keys: Vec<f32>,
    values: Vec<f32>,
    /// Positions each row sees.
    visible: Vec<usize>,
}

impl Case {
    fn random(mut seed: u64, head_dim: usize, positions: usize, visible: Vec<usize>) -> Case {
        seed ^= 0x1234_5678;
        let rounded = |x: Vec<f32>| x.into_iter().map(|x| f16::from_f32(x).to_f32()).collect();
        let sharpness = 8.0 / (head_dim as f32).sqrt();
        Case {
            head_dim,
            positions,
            queries: random(visible.len() * head_dim, &mut seed).iter().map(|q| q * sharpness).collect(),
            keys: rounded(random(positions * head_dim, &mut seed)),
            values: rounded(random(positions * head_dim, &mut seed)),
            visible,
        }
    }

    /// Direct softmax attention in double precision.
    fn exact(&self) -> Vec<f64> {
        let dim = self.head_dim;
        let mut out = vec![0.0; self.queries.len()];
        for (r, &visible) in self.visible.iter().enumerate() {
            let score = |p: usize| -> f64 {
                (0..dim).map(|i| self.queries[r * dim + i] as f64 * self.keys[p * dim + i] as f64).sum()
            };
            let max = (0..visible).map(score).fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = (0..visible).map(|p| (score(p) - max).exp()).sum();
            for p in 0..visible {
                let weight = (score(p) - max).exp() / sum;
                for i in 0..dim {
                    out[r * dim + i] += weight * self.values[p * dim + i] as f64;
                }
            }
        }
        out
    }

    /// Partials over a span of pages. What no row may see is NaN.
    fn attend(
        &self,
        kernels: &AttentionKernels,
        rows: std::ops::Range<usize>,
        page: usize,
        pages: std::ops::Range<usize>,
        half: bool,
    ) -> Partials {
        let dim = self.head_dim;
        let visible = &self.visible[rows.clone()];
        let last = visible.iter().copied().max().unwrap_or(0);
        let hidden = |x: &[f32]| -> Vec<f32> {
            x.iter().enumerate().map(|(i, &x)| if i / dim < last { x } else { f32::NAN }).collect()
        };
        let (keys, values) = (hidden(&self.keys), hidden(&self.values));
        let to_half = |x: &[f32]| -> Vec<f16> { x.iter().map(|&x| f16::from_f32(x)).collect() };
        let (half_keys, half_values) = (to_half(&keys), to_half(&values));
        let mut partials = Partials::new();
        partials.reset(rows.len(), dim);
        for index in pages {
            let start = (index * page).min(self.positions);
            let end = (start + page).min(self.positions);
            let seen: Vec<usize> = visible.iter().map(|&v| v.clamp(start, end) - start).collect();
            let span = start * dim..end * dim;
            let (keys, values) = if half {
                (KvBlock::F16(&half_keys[span.clone()]), KvBlock::F16(&half_values[span]))
            } else {
                (KvBlock::F32(&keys[span.clone()]), KvBlock::F32(&values[span]))
            };
            let queries = &self.queries[rows.start * dim..rows.end * dim];
            let next_keys = (index % 2 == 0).then_some(keys);
            let page = AttendPage { queries, head_dim: dim, keys, values, visible: &seen, next_keys };
            kernels.attend_page(page, &mut partials);
        }
        partials
    }

    fn finish(&self, kernels: &AttentionKernels, partials: &Partials) -> Vec<f32> {
        let mut out = vec![f32::NAN; partials.rows() * self.head_dim];
        for (row, out) in out.chunks_exact_mut(self.head_dim).enumerate() {
            kernels.finish_row(partials, row, out);
        }
        out
    }
}

fn best() -> &'static AttentionKernels {
    AttentionKernels::for_isa(Isa::detect()).unwrap()
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

fn close(got: &[f32], want: &[f64]) -> bool {
    got.iter().zip(want).all(|(&got, &want)| (got as f64 - want).abs() < 3e-6)
}

fn case() -> impl Strategy<Value = Case> {
    let head_dim =
        prop_oneof![Just(4), Just(8), Just(16), Just(24), Just(64), Just(80), Just(128), Just(256)];
    (any::<u64>(), head_dim, 1_usize..200).prop_flat_map(|(seed, head_dim, positions)| {
        proptest::collection::vec(0..=positions, 1..12).prop_map(move |mut visible| {
            // Query heads of one token see the same positions.
            visible.sort_unstable();
            if visible.len() > 5 {
                let shared = visible[1];
                visible[2..5].fill(shared);
                visible.sort_unstable();
            }
            Case::random(seed, head_dim, positions, visible)
        })
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn pages_give_softmax_attention(case in case(), page in 1_usize..=64, half: bool) {
        let pages = 0..case.positions.div_ceil(page);
        let partials = case.attend(best(), 0..case.visible.len(), page, pages, half);
        prop_assert!(close(&case.finish(best(), &partials), &case.exact()));
    }

    #[test]
    fn bits_depend_neither_on_the_rows_of_a_call_nor_on_the_instruction_set(
        case in case(), page in 1_usize..=64, half: bool
    ) {
        let (rows, pages) = (case.visible.len(), case.positions.div_ceil(page));
        let scalar = AttentionKernels::for_isa(Isa::Scalar).unwrap();
        let want: Vec<f32> = (0..rows)
            .flat_map(|r| case.finish(scalar, &case.attend(scalar, r..r + 1, page, 0..pages, false)))
            .collect();
        for isa in Isa::available() {
            let kernels = AttentionKernels::for_isa(isa).unwrap();
            let got = case.finish(kernels, &case.attend(kernels, 0..rows, page, 0..pages, half));
            prop_assert_eq!(bits(&got), bits(&want), "{}", isa);
        }
    }

    #[test]
    fn merged_spans_give_softmax_attention(case in case(), page in 1_usize..=64, cut in 0.0..1.0_f64) {
        let (rows, pages) = (case.visible.len(), case.positions.div_ceil(page));
        let cut = (cut * pages as f64) as usize;
        let merged = |kernels: &AttentionKernels| {
            let mut first = case.attend(kernels, 0..rows, page, 0..cut, true);
            kernels.merge_partials(&mut first, &case.attend(kernels, 0..rows, page, cut..pages, true));
            case.finish(kernels, &first)
        };
        let want = merged(AttentionKernels::for_isa(Isa::Scalar).unwrap());
        prop_assert!(close(&want, &case.exact()));
        for isa in Isa::available() {
            prop_assert_eq!(bits(&merged(AttentionKernels::for_isa(isa).unwrap())), bits(&want));
        }
    }
}

#[test]
fn a_row_that_sees_nothing_is_zero() {
    let case = Case::random(7, 32, 10, vec![0, 3]);
    let partials = case.attend(best(), 0..2, 64, 0..1, false);
    let out = case.finish(best(), &partials);
    assert_eq!(out[..32], [0.0; 32]);
    assert!(out[32..].iter().any(|&x| x != 0.0));
}

#[test]
fn far_apart_scores_stay_finite() {
    let mut case = Case::random(8, 16, 130, vec![130]);
    case.queries.iter_mut().for_each(|q| *q *= 1e4);
    let partials = case.attend(best(), 0..1, 64, 0..3, false);
    assert!(close(&case.finish(best(), &partials), &case.exact()));
}

/// Pages of Q8_0 against the same values dequantised by the block decoder, on every instruction set.
#[test]
fn eight_bit_pages_have_the_bits_of_their_values() {
    use crate::quant::{QFormat, dequantize_row, quantize_row};
    for (head_dim, visible) in [(32, vec![5, 5, 64]), (96, vec![1; 4]), (256, vec![0, 33, 33, 33, 33, 64])] {
        let case = Case::random(head_dim as u64, head_dim, 64, visible);
        let pack = |values: &[f32]| {
            let mut bytes = vec![0; values.len() / 32 * 34];
            quantize_row(QFormat::Q8_0, values, &mut bytes).unwrap();
            let mut back = vec![0.0; values.len()];
            dequantize_row(QFormat::Q8_0, &bytes, &mut back).unwrap();
            (bytes, back)
        };
        let ((keys, wide_keys), (values, wide_values)) = (pack(&case.keys), pack(&case.values));
        let attend = |kernels: &AttentionKernels, keys, values, next_keys| {
            let mut partials = Partials::new();
            partials.reset(case.visible.len(), head_dim);
            let (queries, visible) = (&case.queries[..], &case.visible[..]);
            kernels.attend_page(
                AttendPage { queries, head_dim, keys, values, visible, next_keys },
                &mut partials,
            );
            bits(&case.finish(kernels, &partials))
        };
        let scalar = AttentionKernels::for_isa(Isa::Scalar).unwrap();
        let want = attend(scalar, KvBlock::F32(&wide_keys), KvBlock::F32(&wide_values), None);
        for isa in Isa::available() {
            let kernels = AttentionKernels::for_isa(isa).unwrap();
            let keys = KvBlock::Q8(&keys);
            assert_eq!(attend(kernels, keys, KvBlock::Q8(&values), Some(keys)), want, "{isa} {head_dim}");
        }
    }
}
