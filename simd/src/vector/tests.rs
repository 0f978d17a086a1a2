use super::*;
use crate::Isa;
use proptest::prelude::*;

fn tables() -> Vec<(Isa, &'static VectorKernels)> {
    Isa::available().into_iter().map(|isa| (isa, VectorKernels::for_isa(isa).unwrap())).collect()
}

fn scalar() -> &'static VectorKernels {
    VectorKernels::for_isa(Isa::Scalar).unwrap()
}

fn best() -> &'static VectorKernels {
    VectorKernels::for_isa(Isa::detect()).unwrap()
}

/// Bits, with one representative for all NaN.
fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| if x.is_nan() { f32::NAN.to_bits() } else { x.to_bits() }).collect()
}

/// Distance in units of the last place of the true value.
fn ulps(got: f32, want: f64) -> f64 {
    let exponent = want.abs().max(f32::MIN_POSITIVE as f64).log2().floor();
    (got as f64 - want).abs() / (exponent - 23.0).exp2()
}

/// Largest error of a function over a range, both ends included.
fn worst(function: impl Fn(&mut [f32]), truth: impl Fn(f64) -> f64, low: f32, high: f32) -> f64 {
    let count = 2_000_003;
    let x: Vec<f32> =
        (0..count).map(|i| low + (high - low) * (i as f64 / (count - 1) as f64) as f32).collect();
    let mut y = x.clone();
    function(&mut y);
    x.iter().zip(&y).map(|(&x, &y)| ulps(y, truth(x as f64))).fold(0.0, f64::max)
}

#[test]
fn exp_is_accurate_everywhere_and_defined_at_the_edges() {
    let exp = |x: &mut [f32]| best().exp(x);
    for (low, high) in [(-87.3, 88.722_83), (-1.0, 1.0), (-1e-3, 1e-3), (88.0, 88.722_83), (-87.3, -86.0)] {
        let error = worst(exp, f64::exp, low, high);
        assert!(error <= 1.0, "{error} ulp in {low}..{high}");
    }
    let mut edges =
        [0.0, -0.0, f32::NEG_INFINITY, f32::INFINITY, f32::NAN, -1e4, 1e4, f32::MIN, f32::MAX, -87.5, 88.73];
    best().exp(&mut edges);
    let inf = f32::INFINITY;
    assert_eq!(bits(&edges), bits(&[1.0, 1.0, 0.0, inf, f32::NAN, 0.0, inf, 0.0, inf, 0.0, inf]));
}

#[test]
fn exp_is_zero_or_normal_around_the_smallest_normal_number() {
    let mut x: Vec<f32> = (0..4096).map(|i| f32::from_bits((-87.5_f32).to_bits() - i * 32)).collect();
    best().exp(&mut x);
    assert!(x.iter().all(|&y| y == 0.0 || y.is_normal()));
}

#[test]
fn sigmoid_silu_and_softplus_are_accurate() {
    let error = worst(|x| best().sigmoid(x), |x| 1.0 / (1.0 + (-x).exp()), -85.0, 40.0);
    assert!(error <= 3.0, "sigmoid {error}");
    let error = worst(|x| best().silu(x), |x| x / (1.0 + (-x).exp()), -80.0, 40.0);
    assert!(error <= 3.0, "silu {error}");
    for (low, high) in [(-80.0, 19.9), (-1.0, 1.0), (-20.0, -10.0)] {
        let error = worst(|x| best().softplus(x), |x| x.exp().ln_1p(), low, high);
        assert!(error <= 3.0, "softplus {error}");
    }
    let mut x = [20.5, 1e30, -1e30, f32::INFINITY, f32::NEG_INFINITY, f32::NAN];
    best().softplus(&mut x);
    assert_eq!(bits(&x), bits(&[20.5, 1e30, 0.0, f32::INFINITY, 0.0, f32::NAN]));
}

/// Numbers of every size, with special values among them.
fn floats(len: impl Into<proptest::collection::SizeRange>) -> impl Strategy<Value = Vec<f32>> {
    let value = prop_oneof![
        8 => -4.0_f32..4.0,
        2 => -200.0_f32..200.0,
        1 => any::<f32>(),
        1 => prop_oneof![Just(f32::NEG_INFINITY), Just(f32::INFINITY), Just(f32::NAN), Just(0.0), Just(-0.0)],
    ];
    proptest::collection::vec(value, len)
}

/// Runs one operation on a copy of `x` under every instruction set and expects the scalar bits.
fn agree(x: &[f32], op: impl Fn(&VectorKernels, &mut [f32])) {
    let mut want = x.to_vec();
    op(scalar(), &mut want);
    for (isa, kernels) in tables() {
        let mut got = x.to_vec();
        op(kernels, &mut got);
        assert_eq!(bits(&got), bits(&want), "{isa}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn every_instruction_set_gives_the_scalar_bits(
        (x, y, z) in (0_usize..100).prop_flat_map(|n| (floats(n), floats(n), floats(n)))
    ) {
        agree(&x, |k, x| k.exp(x));
        agree(&x, |k, x| k.sigmoid(x));
        agree(&x, |k, x| k.silu(x));
        agree(&x, |k, x| k.softplus(x));
        agree(&x, |k, x| k.softmax(x));
        agree(&x, |k, x| k.scale(x, 0.3));
        agree(&x, |k, x| k.add_assign(x, &y));
        agree(&x, |k, x| k.add_scaled(x, &y, 0.7));
        agree(&x, |k, x| k.mul_sigmoid(x, &y));
        agree(&x, |k, x| k.l2_normalize(x, 1e-6, 0.25));
        agree(&x, |k, out| k.silu_mul(&x, &y, out));
        agree(&x, |k, out| k.decay_gates(&x, &y, &z, out));
        agree(&x, |k, out| k.rms_norm(&x, &y, 1e-6, out));
        agree(&x, |k, out| k.gated_rms_norm(&x, &y, &z, 1e-6, out));
        agree(&[0.0], |k, out| out[0] = k.dot(&x, &y));
        agree(&[0.0], |k, out| out[0] = k.argmax(&x) as f32);
        let half = x.len() / 3;
        agree(&x, |k, x| k.rope(x, &y[..half], &z[..half]));
    }

    #[test]
    fn convolutions_agree(
        (width, channels, rows) in (1_usize..6, 1_usize..40, 1_usize..7),
        seed in floats(600),
    ) {
        let take = |count: usize, offset: usize| -> Vec<f32> {
            (0..count).map(|i| seed[(i * 7 + offset) % seed.len()]).collect()
        };
        let (history, new) = (take((width - 1) * channels, 1), take(rows * channels, 2));
        let weight = take(channels * width, 3);
        agree(&vec![0.0; rows * channels], |k, out| k.conv_silu_rows(&history, &new, channels, &weight, out));
    }
}

#[test]
fn short_slices_are_fine() {
    for (_, k) in tables() {
        k.exp(&mut []);
        assert_eq!(k.dot(&[], &[]), 0.0);
        assert_eq!(k.argmax(&[]), 0);
        k.softmax(&mut []);
        k.rope(&mut [1.0], &[], &[]);
    }
}

#[test]
fn argmax_takes_the_first_of_equals_and_never_nan() {
    for (_, k) in tables() {
        let mut x = vec![-1.0; 100];
        x[37] = 5.0;
        x[90] = 5.0;
        x[3] = f32::NAN;
        assert_eq!(k.argmax(&x), 37);
        assert_eq!(k.argmax(&[f32::NAN, f32::NEG_INFINITY]), 1);
        assert_eq!(k.argmax(&[f32::NAN, f32::NAN]), 0);
    }
}

fn sample(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    (0..len)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect()
}

fn close(got: &[f32], want: &[f64], tolerance: f64) {
    let scale = want.iter().fold(0.0_f64, |max, x| max.max(x.abs()));
    for (i, (&got, &want)) in got.iter().zip(want).enumerate() {
        assert!((got as f64 - want).abs() <= tolerance * scale, "{i}: {got} against {want}");
    }
}

#[test]
fn norms_softmax_and_rotation_match_double_precision() {
    let (x, gate, weight) = (sample(133, 1), sample(133, 2), sample(133, 3));
    let wide: Vec<f64> = x.iter().map(|&x| x as f64).collect();
    let squares: f64 = wide.iter().map(|x| x * x).sum();
    let mut out = vec![0.0; 133];

    best().rms_norm(&x, &weight, 1e-6, &mut out);
    let normal: Vec<f64> =
        (0..133).map(|i| wide[i] / (squares / 133.0 + 1e-6).sqrt() * weight[i] as f64).collect();
    close(&out, &normal, 3e-7);

    best().gated_rms_norm(&x, &gate, &weight, 1e-6, &mut out);
    let silu = |x: f64| x / (1.0 + (-x).exp());
    let gated: Vec<f64> = (0..133).map(|i| normal[i] * silu(gate[i] as f64)).collect();
    close(&out, &gated, 4e-7);

    out.copy_from_slice(&x);
    best().l2_normalize(&mut out, 1e-6, 0.5);
    close(&out, &wide.iter().map(|x| x / (squares + 1e-6).sqrt() * 0.5).collect::<Vec<_>>(), 3e-7);

    out.copy_from_slice(&x);
    best().softmax(&mut out);
    let total: f64 = wide.iter().map(|x| x.exp()).sum();
    close(&out, &wide.iter().map(|x| x.exp() / total).collect::<Vec<_>>(), 4e-7);

    let (cos, sin) = (sample(20, 4), sample(20, 5));
    out.copy_from_slice(&x);
    best().rope(&mut out, &cos, &sin);
    let mut turned = wide.clone();
    for i in 0..20 {
        let (c, s) = (cos[i] as f64, sin[i] as f64);
        turned[i] = wide[i] * c - wide[i + 20] * s;
        turned[i + 20] = wide[i + 20] * c + wide[i] * s;
    }
    close(&out, &turned, 2e-7);
}

#[test]
fn convolution_matches_double_precision_and_rows_match_single_tokens() {
    let (width, channels, rows) = (4, 37, 5);
    let (history, new) = (sample((width - 1) * channels, 1), sample(rows * channels, 2));
    let weight = sample(channels * width, 3);
    let mut out = vec![0.0; rows * channels];
    best().conv_silu_rows(&history, &new, channels, &weight, &mut out);
    let all = [history, new].concat();
    let mut want = Vec::new();
    for t in 0..rows {
        for c in 0..channels {
            let sum: f64 =
                (0..width).map(|j| all[(t + j) * channels + c] as f64 * weight[c * width + j] as f64).sum();
            want.push(sum / (1.0 + (-sum).exp()));
        }
        let inputs: Vec<&[f32]> = (t..t + width).map(|p| &all[p * channels..][..channels]).collect();
        let mut row = vec![0.0; channels];
        best().conv_silu(&inputs, &weight, &mut row);
        assert_eq!(row, &out[t * channels..][..channels]);
    }
    close(&out, &want, 4e-7);
}
