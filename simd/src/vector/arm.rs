//! The token of 64-bit Arm's vectors.

use std::arch::aarch64::*;
use std::arch::asm;

use half::{bf16, f16};

use super::lanes::{Lane, Simd};
use crate::LANES;

/// Proof that the processor has Neon.
#[derive(Clone, Copy)]
pub(crate) struct Neon(());

impl Neon {
    /// Only reachable where the feature is enabled.
    #[inline]
    #[target_feature(enable = "neon")]
    pub(crate) fn new() -> Neon {
        Neon(())
    }
}

/// Lanes 0..4, 4..8, 8..12 and 12..16.
#[derive(Clone, Copy)]
pub(crate) struct Quad([float32x4_t; 4]);

/// Applies an operation to each quarter.
macro_rules! quarters {
    ($($v:ident),+ => $op:expr) => {
        Quad([
            { $( let $v = $v.0[0]; )+ $op },
            { $( let $v = $v.0[1]; )+ $op },
            { $( let $v = $v.0[2]; )+ $op },
            { $( let $v = $v.0[3]; )+ $op },
        ])
    };
}

impl Simd for Neon {
    type V = Quad;
    const ROW_BLOCK: usize = 2;

    #[inline(always)]
    fn splat(self, value: f32) -> Quad {
        // SAFETY: the token proves Neon.
        Quad([unsafe { vdupq_n_f32(value) }; 4])
    }

    #[inline(always)]
    fn load(self, from: &Lane) -> Quad {
        let from = from.as_ptr();
        // SAFETY: the token proves Neon; `from` is 16 readable floats.
        unsafe {
            Quad([vld1q_f32(from), vld1q_f32(from.add(4)), vld1q_f32(from.add(8)), vld1q_f32(from.add(12))])
        }
    }

    #[inline(always)]
    fn store(self, v: Quad, to: &mut Lane) {
        let to = to.as_mut_ptr();
        // SAFETY: the token proves Neon; `to` is 16 writable floats.
        unsafe {
            vst1q_f32(to, v.0[0]);
            vst1q_f32(to.add(4), v.0[1]);
            vst1q_f32(to.add(8), v.0[2]);
            vst1q_f32(to.add(12), v.0[3]);
        }
    }

    #[inline(always)]
    fn load_f16(self, from: &[f16; LANES]) -> Quad {
        let from: *const u16 = from.as_ptr().cast();
        // SAFETY: the token proves Neon; `from` is 16 readable half floats.
        unsafe {
            let (low, high) = (vld1q_u16(from), vld1q_u16(from.add(8)));
            Quad([widen_low(low), widen_high(low), widen_low(high), widen_high(high)])
        }
    }

    #[inline(always)]
    fn load_bf16(self, from: &[bf16; LANES]) -> Quad {
        let from: *const u16 = from.as_ptr().cast();
        // SAFETY: the token proves Neon; `from` is 16 readable numbers of 16 bits.
        unsafe {
            let (low, high) = (vld1q_u16(from), vld1q_u16(from.add(8)));
            let quarters = [vget_low_u16(low), vget_high_u16(low), vget_low_u16(high), vget_high_u16(high)];
            Quad(quarters.map(|quarter| vreinterpretq_f32_u32(vshlq_n_u32::<16>(vmovl_u16(quarter)))))
        }
    }

    #[inline(always)]
    fn store_bf16(self, v: Quad, to: &mut [bf16; LANES]) {
        let to: *mut u16 = to.as_mut_ptr().cast();
        // SAFETY: the token proves Neon; `to` is 16 writable numbers of 16 bits.
        unsafe {
            let [a, b, c, d] = v.0.map(|v| round_bf16(v));
            vst1q_u16(to, vcombine_u16(a, b));
            vst1q_u16(to.add(8), vcombine_u16(c, d));
        }
    }

    #[inline(always)]
    fn add(self, a: Quad, b: Quad) -> Quad {
        // SAFETY: the token proves Neon.
        unsafe { quarters!(a, b => vaddq_f32(a, b)) }
    }

    #[inline(always)]
    fn sub(self, a: Quad, b: Quad) -> Quad {
        // SAFETY: the token proves Neon.
        unsafe { quarters!(a, b => vsubq_f32(a, b)) }
    }

    #[inline(always)]
    fn mul(self, a: Quad, b: Quad) -> Quad {
        // SAFETY: the token proves Neon.
        unsafe { quarters!(a, b => vmulq_f32(a, b)) }
    }

    #[inline(always)]
    fn div(self, a: Quad, b: Quad) -> Quad {
        // SAFETY: the token proves Neon.
        unsafe { quarters!(a, b => vdivq_f32(a, b)) }
    }

    #[inline(always)]
    fn fma(self, a: Quad, b: Quad, c: Quad) -> Quad {
        // SAFETY: the token proves Neon.
        unsafe { quarters!(a, b, c => vfmaq_f32(c, a, b)) }
    }

    #[inline(always)]
    fn select_lt(self, a: Quad, b: Quad, yes: Quad, no: Quad) -> Quad {
        // SAFETY: the token proves Neon.
        unsafe { quarters!(a, b, yes, no => vbslq_f32(vcltq_f32(a, b), yes, no)) }
    }

    #[inline(always)]
    fn select_nan(self, x: Quad, yes: Quad, no: Quad) -> Quad {
        // SAFETY: the token proves Neon.
        unsafe { quarters!(x, yes, no => vbslq_f32(vceqq_f32(x, x), no, yes)) }
    }

    #[inline(always)]
    fn add_exponent(self, v: Quad, magic: Quad) -> Quad {
        // SAFETY: the token proves Neon.
        unsafe {
            quarters!(v, magic => {
                let shifted = vshlq_n_u32::<23>(vreinterpretq_u32_f32(magic));
                vreinterpretq_f32_u32(vaddq_u32(vreinterpretq_u32_f32(v), shifted))
            })
        }
    }

    #[inline(always)]
    fn reduce_add(self, v: Quad) -> f32 {
        // SAFETY: the token proves Neon.
        unsafe {
            let four = fold_to_four(v);
            vpadds_f32(vadd_f32(vget_low_f32(four), vget_high_f32(four)))
        }
    }

    #[inline(always)]
    fn abs(self, v: Quad) -> Quad {
        // SAFETY: the token proves Neon.
        unsafe { quarters!(v => vabsq_f32(v)) }
    }

    #[inline(always)]
    fn prefetch<T>(self, at: *const T) {
        prefetch(at);
    }

    #[inline(always)]
    fn interleave(self, a: Quad, b: Quad) -> [Quad; 2] {
        // SAFETY: the token proves Neon.
        unsafe {
            let pairs: [[float32x4_t; 2]; 4] =
                std::array::from_fn(|q| [vzip1q_f32(a.0[q], b.0[q]), vzip2q_f32(a.0[q], b.0[q])]);
            let [[a, b], [c, d], [e, f], [g, h]] = pairs;
            [Quad([a, b, c, d]), Quad([e, f, g, h])]
        }
    }

    #[inline(always)]
    fn deinterleave(self, from: &[f32; 4 * LANES]) -> [Quad; 4] {
        let from = from.as_ptr();
        // SAFETY: the token proves Neon; `from` is four times 16 readable floats.
        let quarters: [float32x4x4_t; 4] = std::array::from_fn(|q| unsafe { vld4q_f32(from.add(16 * q)) });
        [
            Quad(quarters.map(|v| v.0)),
            Quad(quarters.map(|v| v.1)),
            Quad(quarters.map(|v| v.2)),
            Quad(quarters.map(|v| v.3)),
        ]
    }

    #[inline(always)]
    fn reduce_add_each(self, v: [Quad; LANES]) -> Quad {
        // SAFETY: the token proves Neon.
        Quad(std::array::from_fn(|q| unsafe {
            let square = std::array::from_fn(|j| fold_to_four(v[4 * q + j]));
            let [a, b, c, d] = transpose_four(square);
            vaddq_f32(vaddq_f32(a, c), vaddq_f32(b, d))
        }))
    }

    #[inline(always)]
    fn transpose(self, v: [Quad; LANES]) -> [Quad; LANES] {
        let mut out = v;
        for i in 0..4 {
            for j in 0..4 {
                // SAFETY: the token proves Neon.
                let square = unsafe { transpose_four(std::array::from_fn(|r| v[4 * i + r].0[j])) };
                for r in 0..4 {
                    out[4 * j + r].0[i] = square[r];
                }
            }
        }
        out
    }
}

/// Asks for a cache line soon to be read; any address will do.
#[inline(always)]
pub(super) fn prefetch<T>(at: *const T) {
    // SAFETY: a prefetch reads nothing the program can see and faults on no address.
    unsafe { asm!("prfm pldl1keep, [{at}]", at = in(reg) at, options(nostack, preserves_flags, readonly)) }
}

/// Lane i plus i+8, then i+4.
///
/// # Safety
/// The processor must have Neon.
#[inline(always)]
unsafe fn fold_to_four(v: Quad) -> float32x4_t {
    let [a, b, c, d] = v.0;
    // SAFETY: promised by the caller.
    unsafe { vaddq_f32(vaddq_f32(a, c), vaddq_f32(b, d)) }
}

/// Transposes a square of 4 x 4.
///
/// # Safety
/// The processor must have Neon.
#[inline(always)]
unsafe fn transpose_four(v: [float32x4_t; 4]) -> [float32x4_t; 4] {
    let [a, b, c, d] = v;
    // SAFETY: promised by the caller.
    unsafe {
        let pairs = [vtrn1q_f32(a, b), vtrn2q_f32(a, b), vtrn1q_f32(c, d), vtrn2q_f32(c, d)];
        let [even, odd, more_even, more_odd] = pairs.map(|v| vreinterpretq_f64_f32(v));
        [
            vtrn1q_f64(even, more_even),
            vtrn1q_f64(odd, more_odd),
            vtrn2q_f64(even, more_even),
            vtrn2q_f64(odd, more_odd),
        ]
        .map(|v| vreinterpretq_f32_f64(v))
    }
}

/// The bits of four numbers rounded to `bf16`.
///
/// # Safety
/// The processor must have Neon.
#[inline(always)]
unsafe fn round_bf16(v: float32x4_t) -> uint16x4_t {
    // SAFETY: promised by the caller.
    unsafe {
        let bits = vreinterpretq_u32_f32(v);
        let high = vshrq_n_u32::<16>(bits);
        let half = vaddq_u32(vandq_u32(high, vdupq_n_u32(1)), vdupq_n_u32(0x7fff));
        let rounded = vshrq_n_u32::<16>(vaddq_u32(bits, half));
        let quiet = vorrq_u32(high, vdupq_n_u32(0x40));
        vmovn_u32(vbslq_u32(vceqq_f32(v, v), rounded, quiet))
    }
}

/// The first four half floats, widened.
///
/// # Safety
/// The processor must have Neon.
#[inline(always)]
unsafe fn widen_low(halves: uint16x8_t) -> float32x4_t {
    let wide;
    // SAFETY: promised by the caller; the instruction touches no memory.
    unsafe {
        asm!("fcvtl {wide:v}.4s, {halves:v}.4h", wide = lateout(vreg) wide, halves = in(vreg) halves,
            options(pure, nomem, nostack, preserves_flags));
    }
    wide
}

/// The last four half floats, widened.
///
/// # Safety
/// The processor must have Neon.
#[inline(always)]
unsafe fn widen_high(halves: uint16x8_t) -> float32x4_t {
    let wide;
    // SAFETY: promised by the caller; the instruction touches no memory.
    unsafe {
        asm!("fcvtl2 {wide:v}.4s, {halves:v}.8h", wide = lateout(vreg) wide, halves = in(vreg) halves,
            options(pure, nomem, nostack, preserves_flags));
    }
    wide
}
