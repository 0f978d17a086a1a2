//! Sums of several vectors together, and four floats or ints.

/// Part of the implementation of `Simd`, whose promise it relies on.
macro_rules! fours {
    () => {
        type Four = float32x4_t;
        type FourInts = int32x4_t;

        #[inline(always)]
        unsafe fn load_halves(low: *const u8, high: *const u8) -> Self::Vector {
            // SAFETY: the trait's promise.
            unsafe {
                let (low, high) = (Self::load_half(low), Self::load_half(high));
                Four(low.0, low.1, high.0, high.1)
            }
        }

        #[inline(always)]
        unsafe fn sixteens(bits: u64) -> Self::Vector {
            // SAFETY: the trait's promise.
            unsafe {
                let bytes = vcombine_u8(vcreate_u8(bits), vdup_n_u8(0));
                let places = vreinterpretq_u8_u64(vdupq_n_u64(0x8040_2010_0804_0201));
                // Bytes 0 and 1, each eight times; then two further, and so on.
                let first = vcombine_u8(vdup_n_u8(0), vdup_n_u8(1));
                let indices = Four(
                    first,
                    vaddq_u8(first, vdupq_n_u8(2)),
                    vaddq_u8(first, vdupq_n_u8(4)),
                    vaddq_u8(first, vdupq_n_u8(6)),
                );
                each!(indices => vandq_u8(vtstq_u8(vqtbl1q_u8(bytes, indices), places), vdupq_n_u8(16)))
            }
        }

        #[inline(always)]
        unsafe fn totals_by_half(v: [Self::Vector; 4]) -> [int32x4_t; 2] {
            // SAFETY: the trait's promise.
            unsafe {
                let [a, b, c, d] = v;
                [
                    vpaddq_s32(
                        vpaddq_s32(sum_of_ints(a.0, a.1), sum_of_ints(b.0, b.1)),
                        vpaddq_s32(sum_of_ints(c.0, c.1), sum_of_ints(d.0, d.1)),
                    ),
                    vpaddq_s32(
                        vpaddq_s32(sum_of_ints(a.2, a.3), sum_of_ints(b.2, b.3)),
                        vpaddq_s32(sum_of_ints(c.2, c.3), sum_of_ints(d.2, d.3)),
                    ),
                ]
            }
        }

        #[inline(always)]
        unsafe fn four(value: f32) -> float32x4_t {
            // SAFETY: the trait's promise.
            unsafe { vdupq_n_f32(value) }
        }

        #[inline(always)]
        unsafe fn four_ints(int: i32) -> int32x4_t {
            // SAFETY: the trait's promise.
            unsafe { vdupq_n_s32(int) }
        }

        #[inline(always)]
        unsafe fn load_four(p: *const f32) -> float32x4_t {
            // SAFETY: the trait's promise.
            unsafe { vld1q_f32(p) }
        }

        #[inline(always)]
        unsafe fn store_four(p: *mut f32, v: float32x4_t) {
            // SAFETY: the trait's promise.
            unsafe { vst1q_f32(p, v) }
        }

        #[inline(always)]
        unsafe fn four_halves(p: [*const u8; 4]) -> float32x4_t {
            // SAFETY: the trait's promise; the reads are unaligned.
            unsafe {
                let [a, b, c, d] = p.map(|p| u64::from(p.cast::<u16>().read_unaligned()));
                widen(vcreate_u16(a | b << 16 | c << 32 | d << 48))
            }
        }

        #[inline(always)]
        unsafe fn add_four(a: int32x4_t, b: int32x4_t) -> int32x4_t {
            // SAFETY: the trait's promise.
            unsafe { vaddq_s32(a, b) }
        }

        #[inline(always)]
        unsafe fn chain(chain: float32x4_t, ints: int32x4_t, scales: float32x4_t, x_scale: f32) -> float32x4_t {
            // SAFETY: the trait's promise.
            unsafe { vfmaq_f32(chain, vcvtq_f32_s32(ints), vmulq_n_f32(scales, x_scale)) }
        }

    };
}
pub(super) use fours;
