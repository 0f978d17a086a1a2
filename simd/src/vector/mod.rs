//! Norms, activations, convolution and rotations over slices of one token or one head.
//!
//! Canonical order: element-wise operations have none; a dot product or sum keeps 16 lane accumulators, lane `l`
//! summing elements `l + 16 j` with `j` ascending (fused multiply-add; a short last group is padded with zeros),
//! then adds the lanes as a pairwise tree, lane i with i+8, then i+4, i+2, i+1.
//!
//! Methods panic if slice lengths disagree: that is a mistake of the calling code, never of a model file.

#[cfg(target_arch = "aarch64")]
pub(crate) mod arm;
mod conv;
pub(crate) mod elementwise;
pub(crate) mod lanes;
pub(crate) mod math;
mod norm;
mod rope;
#[cfg(target_arch = "x86_64")]
pub(crate) mod x86;

lanes::kernel_table! {
    /// Vector kernels of one instruction-set level.
    pub struct VectorKernels {
        /// `x <- e^x`. Error below 1 ulp; results below 2^-126 are zero; `-inf` gives 0, `inf` `inf`, NaN NaN.
        fn exp(x: &mut [f32]) = elementwise::exp;
        /// `x <- 1 / (1 + e^-x)`, within 3 ulp.
        fn sigmoid(x: &mut [f32]) = elementwise::sigmoid;
        /// `x <- x / (1 + e^-x)`, within 3 ulp.
        fn silu(x: &mut [f32]) = elementwise::silu;
        /// `x <- ln(1 + e^x)`, within 3 ulp; `x` itself above 20.
        fn softplus(x: &mut [f32]) = elementwise::softplus;
        /// `x <- x * factor`.
        fn scale(x: &mut [f32], factor: f32) = elementwise::scale;
        /// `out <- silu(gate) * up`.
        fn silu_mul(gate: &[f32], up: &[f32], out: &mut [f32]) = elementwise::silu_mul;
        /// `x <- x * sigmoid(gate)`.
        fn mul_sigmoid(x: &mut [f32], gate: &[f32]) = elementwise::mul_sigmoid;
        /// `x <- x + y`.
        fn add_assign(x: &mut [f32], y: &[f32]) = elementwise::add_assign;
        /// `x <- x + factor * y`, rounded once.
        fn add_scaled(x: &mut [f32], y: &[f32], factor: f32) = elementwise::add_scaled;
        /// Log decays `out <- rate * softplus(a + bias)`, with `rate = -exp(A_log)`, one per value head.
        fn decay_gates(a: &[f32], bias: &[f32], rate: &[f32], out: &mut [f32]) = elementwise::decay_gates;
        /// Dot product in the canonical order.
        fn dot(x: &[f32], y: &[f32]) -> f32 = elementwise::dot;
        /// Index of the first largest value; NaN never wins; 0 if there is no number.
        fn argmax(x: &[f32]) -> usize = elementwise::argmax;
        /// `x <- e^(x - max) / sum`, the sum in the canonical order.
        fn softmax(x: &mut [f32]) = elementwise::softmax;
        /// `out <- x / sqrt(mean(x^2) + eps) * weight`.
        fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) = norm::rms_norm;
        /// `out <- x / sqrt(mean(x^2) + eps) * weight * silu(gate)`, over one head.
        fn gated_rms_norm(x: &[f32], gate: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) = norm::gated_rms_norm;
        /// `x <- x / sqrt(sum(x^2) + eps) * factor`, over one head.
        fn l2_normalize(x: &mut [f32], eps: f32, factor: f32) = norm::l2_normalize;
        /// Rotates the pairs `(i, i + cos.len())` of one head by the angles whose cosines and sines are given;
        /// the rest of the head, from `2 * cos.len()` on, stays.
        fn rope(head: &mut [f32], cos: &[f32], sin: &[f32]) = rope::rope;
        /// Depthwise causal convolution and SiLU of one token for a block of channels. `inputs`: the `width` (1 to
        /// 8) input rows that the token sees, oldest first, its own last; `weight`: `[channels][width]`, oldest tap
        /// first.
        fn conv_silu(inputs: &[&[f32]], weight: &[f32], out: &mut [f32]) = conv::conv_silu;
        /// [`Self::conv_silu`] for consecutive tokens: `history` is `[width - 1][channels]`, oldest first, `rows` and
        /// `out` are `[tokens][channels]`.
        fn conv_silu_rows(history: &[f32], rows: &[f32], channels: usize, weight: &[f32], out: &mut [f32]) = conv::conv_silu_rows;
    }
}

/// Asks for the cache line at an address, which need not be readable, soon to be read.
#[inline(always)]
pub(crate) fn prefetch(address: usize) {
    #[cfg(target_arch = "x86_64")]
    x86::prefetch(std::ptr::without_provenance::<u8>(address));
    #[cfg(target_arch = "aarch64")]
    arm::prefetch(std::ptr::without_provenance::<u8>(address));
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = address;
}

#[cfg(test)]
mod tests;
