//! Tokens of the x86-64 instruction sets.

use std::arch::x86_64::*;

use half::{bf16, f16};

use super::lanes::{Lane, Simd};
use crate::LANES;

/// Proof that the processor has AVX2, FMA and F16C.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(());

impl Avx2 {
    /// Only reachable where the features are enabled.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(crate) fn new() -> Avx2 {
        Avx2(())
    }
}

/// Proof that the processor has AVX-512 F, BW, VL and DQ besides what [`Avx2`] has.
#[derive(Clone, Copy)]
pub(crate) struct Avx512(());

impl Avx512 {
    /// Only reachable where the features are enabled.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
    pub(crate) fn new() -> Avx512 {
        Avx512(())
    }
}

impl Simd for Avx512 {
    type V = __m512;
    const ROW_BLOCK: usize = 8;

    #[inline(always)]
    fn splat(self, value: f32) -> __m512 {
        // SAFETY: the token proves AVX-512F.
        unsafe { _mm512_set1_ps(value) }
    }

    #[inline(always)]
    fn load(self, from: &Lane) -> __m512 {
        // SAFETY: the token proves AVX-512F; `from` is 16 readable floats.
        unsafe { _mm512_loadu_ps(from.as_ptr()) }
    }

    #[inline(always)]
    fn store(self, v: __m512, to: &mut Lane) {
        // SAFETY: the token proves AVX-512F; `to` is 16 writable floats.
        unsafe { _mm512_storeu_ps(to.as_mut_ptr(), v) }
    }

    #[inline(always)]
    fn store_streaming(self, v: __m512, to: &mut Lane) {
        if !aligned(to) {
            return self.store(v, to);
        }
        // SAFETY: the token proves AVX-512F; `to` is 16 writable floats, aligned to 64 bytes.
        unsafe { _mm512_stream_ps(to.as_mut_ptr(), v) }
    }

    #[inline(always)]
    fn streaming_fence(self) {
        // SAFETY: SSE is baseline.
        unsafe { _mm_sfence() }
    }

    #[inline(always)]
    fn load_f16(self, from: &[f16; LANES]) -> __m512 {
        // SAFETY: the token proves AVX-512F; `from` is 32 readable bytes.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.as_ptr().cast())) }
    }

    #[inline(always)]
    fn load_i8(self, from: &[u8; LANES]) -> __m512 {
        // SAFETY: the token proves AVX-512F; `from` is 16 readable bytes.
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.as_ptr().cast()))) }
    }

    #[inline(always)]
    fn load_bf16(self, from: &[bf16; LANES]) -> __m512 {
        // SAFETY: the token proves AVX-512F; `from` is 32 readable bytes.
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.as_ptr().cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        }
    }

    #[inline(always)]
    fn store_bf16(self, v: __m512, to: &mut [bf16; LANES]) {
        // Not `vcvtneps2bf16`, which takes small numbers for zero.
        // SAFETY: the token proves AVX-512F; `to` is 32 writable bytes.
        unsafe {
            let bits = _mm512_castps_si512(v);
            let high = _mm512_srli_epi32::<16>(bits);
            let odd = _mm512_and_si512(high, _mm512_set1_epi32(1));
            let half = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
            let rounded = _mm512_srli_epi32::<16>(_mm512_add_epi32(bits, half));
            let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(v, v);
            let quiet = _mm512_or_si512(high, _mm512_set1_epi32(0x40));
            let rounded = _mm512_mask_blend_epi32(nan, rounded, quiet);
            _mm256_storeu_si256(to.as_mut_ptr().cast(), _mm512_cvtepi32_epi16(rounded));
        }
    }

    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: the token proves AVX-512F.
        unsafe { _mm512_add_ps(a, b) }
    }

    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: the token proves AVX-512F.
        unsafe { _mm512_sub_ps(a, b) }
    }

    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: the token proves AVX-512F.
        unsafe { _mm512_mul_ps(a, b) }
    }

    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: the token proves AVX-512F.
        unsafe { _mm512_div_ps(a, b) }
    }

    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: the token proves AVX-512F.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn select_lt(self, a: __m512, b: __m512, yes: __m512, no: __m512) -> __m512 {
        // SAFETY: the token proves AVX-512F.
        unsafe { _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b), no, yes) }
    }

    #[inline(always)]
    fn select_nan(self, x: __m512, yes: __m512, no: __m512) -> __m512 {
        // SAFETY: the token proves AVX-512F.
        unsafe { _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x), no, yes) }
    }

    #[inline(always)]
    fn add_exponent(self, v: __m512, magic: __m512) -> __m512 {
        // SAFETY: the token proves AVX-512F.
        unsafe {
            let shifted = _mm512_slli_epi32::<23>(_mm512_castps_si512(magic));
            _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(v), shifted))
        }
    }

    #[inline(always)]
    fn reduce_add(self, v: __m512) -> f32 {
        // SAFETY: the token proves AVX-512F and DQ.
        unsafe { reduce_eight(_mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps::<1>(v))) }
    }

    #[inline(always)]
    fn abs(self, v: __m512) -> __m512 {
        // SAFETY: the token proves AVX-512F.
        unsafe { _mm512_abs_ps(v) }
    }

    #[inline(always)]
    fn prefetch<T>(self, at: *const T) {
        prefetch(at);
    }

    #[inline(always)]
    fn interleave(self, a: __m512, b: __m512) -> [__m512; 2] {
        // SAFETY: the token proves AVX-512F.
        unsafe {
            let low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
            let high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
            [_mm512_permutex2var_ps(a, low, b), _mm512_permutex2var_ps(a, high, b)]
        }
    }

    #[inline(always)]
    fn deinterleave(self, from: &[f32; 4 * LANES]) -> [__m512; 4] {
        let (groups, _) = from.as_chunks();
        let v: [__m512; 4] = std::array::from_fn(|j| self.load(&groups[j]));
        // SAFETY: the token proves AVX-512F.
        unsafe {
            // Two outputs of eight channels each: the first in the low half.
            let first = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 1, 5, 9, 13, 17, 21, 25, 29);
            let second = _mm512_add_epi32(first, _mm512_set1_epi32(2));
            let low = [_mm512_permutex2var_ps(v[0], first, v[1]), _mm512_permutex2var_ps(v[0], second, v[1])];
            let high =
                [_mm512_permutex2var_ps(v[2], first, v[3]), _mm512_permutex2var_ps(v[2], second, v[3])];
            [
                _mm512_shuffle_f32x4::<0b01_00_01_00>(low[0], high[0]),
                _mm512_shuffle_f32x4::<0b11_10_11_10>(low[0], high[0]),
                _mm512_shuffle_f32x4::<0b01_00_01_00>(low[1], high[1]),
                _mm512_shuffle_f32x4::<0b11_10_11_10>(low[1], high[1]),
            ]
        }
    }

    #[inline(always)]
    fn reduce_add_each(self, v: [__m512; LANES]) -> __m512 {
        // SAFETY: the token proves AVX-512F.
        unsafe {
            // Each step adds the halves of what is left of two vectors and packs the sums into one. The last
            // leaves vector 4 p + j in lane 4 j + p, so the vectors enter transposed.
            let mut eight = [v[0]; 8];
            for j in 0..8 {
                let (a, b) = (v[transposed(2 * j)], v[transposed(2 * j + 1)]);
                eight[j] = _mm512_add_ps(
                    _mm512_shuffle_f32x4::<0b01_00_01_00>(a, b),
                    _mm512_shuffle_f32x4::<0b11_10_11_10>(a, b),
                );
            }
            let mut four = [v[0]; 4];
            for j in 0..4 {
                let (a, b) = (eight[2 * j], eight[2 * j + 1]);
                four[j] = _mm512_add_ps(
                    _mm512_shuffle_f32x4::<0b10_00_10_00>(a, b),
                    _mm512_shuffle_f32x4::<0b11_01_11_01>(a, b),
                );
            }
            let mut two = [v[0]; 2];
            for j in 0..2 {
                let (a, b) = (_mm512_castps_pd(four[2 * j]), _mm512_castps_pd(four[2 * j + 1]));
                two[j] = _mm512_add_ps(
                    _mm512_castpd_ps(_mm512_unpacklo_pd(a, b)),
                    _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)),
                );
            }
            _mm512_add_ps(
                _mm512_shuffle_ps::<0b10_00_10_00>(two[0], two[1]),
                _mm512_shuffle_ps::<0b11_01_11_01>(two[0], two[1]),
            )
        }
    }

    #[inline(always)]
    fn transpose(self, v: [__m512; LANES]) -> [__m512; LANES] {
        // SAFETY: the token proves AVX-512F.
        unsafe {
            // Squares of 4 x 4 inside the 128-bit lanes, then the lanes themselves as a square of 4 x 4.
            let mut squares = v;
            for j in [0, 4, 8, 12] {
                let low = [_mm512_unpacklo_ps(v[j], v[j + 1]), _mm512_unpacklo_ps(v[j + 2], v[j + 3])];
                let high = [_mm512_unpackhi_ps(v[j], v[j + 1]), _mm512_unpackhi_ps(v[j + 2], v[j + 3])];
                let [low, high] = [low, high].map(|pair| pair.map(|half| _mm512_castps_pd(half)));
                squares[j] = _mm512_castpd_ps(_mm512_unpacklo_pd(low[0], low[1]));
                squares[j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low[0], low[1]));
                squares[j + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(high[0], high[1]));
                squares[j + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(high[0], high[1]));
            }
            let mut out = v;
            for j in 0..4 {
                let [a, b, c, d] = [squares[j], squares[j + 4], squares[j + 8], squares[j + 12]];
                let even = [
                    _mm512_shuffle_f32x4::<0b10_00_10_00>(a, b),
                    _mm512_shuffle_f32x4::<0b10_00_10_00>(c, d),
                ];
                let odd = [
                    _mm512_shuffle_f32x4::<0b11_01_11_01>(a, b),
                    _mm512_shuffle_f32x4::<0b11_01_11_01>(c, d),
                ];
                out[j] = _mm512_shuffle_f32x4::<0b10_00_10_00>(even[0], even[1]);
                out[j + 4] = _mm512_shuffle_f32x4::<0b10_00_10_00>(odd[0], odd[1]);
                out[j + 8] = _mm512_shuffle_f32x4::<0b11_01_11_01>(even[0], even[1]);
                out[j + 12] = _mm512_shuffle_f32x4::<0b11_01_11_01>(odd[0], odd[1]);
            }
            out
        }
    }
}

/// The place of element `i` in the transpose of a square of 4 x 4.
const fn transposed(i: usize) -> usize {
    i % 4 * 4 + i / 4
}

/// Whether a vector lies in one cache line, as streaming stores need.
#[inline(always)]
fn aligned(lane: &Lane) -> bool {
    std::ptr::from_ref(lane).addr().is_multiple_of(64)
}

/// Asks for a cache line soon to be read; any address will do.
#[inline(always)]
pub(super) fn prefetch<T>(at: *const T) {
    // SAFETY: a prefetch reads nothing the program can see and faults on no address; SSE is baseline.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
}

/// Lane i plus i+4, then i+2, then i+1.
///
/// # Safety
/// The processor must have AVX.
#[inline(always)]
unsafe fn reduce_eight(v: __m256) -> f32 {
    // SAFETY: promised by the caller.
    unsafe {
        let four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
        let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
    }
}

/// Applies an AVX2 operation to both halves.
macro_rules! halves {
    ($($v:ident),+ => $op:expr) => {{
        let low = { $( let $v = $v.0; )+ $op };
        let high = { $( let $v = $v.1; )+ $op };
        Pair(low, high)
    }};
}

/// Lanes 0..8 and 8..16.
#[derive(Clone, Copy)]
pub(crate) struct Pair(__m256, __m256);

impl Simd for Avx2 {
    type V = Pair;
    const ROW_BLOCK: usize = 2;

    #[inline(always)]
    fn splat(self, value: f32) -> Pair {
        // SAFETY: the token proves AVX.
        let v = unsafe { _mm256_set1_ps(value) };
        Pair(v, v)
    }

    #[inline(always)]
    fn load(self, from: &Lane) -> Pair {
        // SAFETY: the token proves AVX; `from` is 16 readable floats.
        unsafe { Pair(_mm256_loadu_ps(from.as_ptr()), _mm256_loadu_ps(from.as_ptr().add(8))) }
    }

    #[inline(always)]
    fn store(self, v: Pair, to: &mut Lane) {
        // SAFETY: the token proves AVX; `to` is 16 writable floats.
        unsafe {
            _mm256_storeu_ps(to.as_mut_ptr(), v.0);
            _mm256_storeu_ps(to.as_mut_ptr().add(8), v.1);
        }
    }

    #[inline(always)]
    fn store_streaming(self, v: Pair, to: &mut Lane) {
        if !aligned(to) {
            return self.store(v, to);
        }
        // SAFETY: the token proves AVX; `to` is 16 writable floats, aligned to 64 bytes.
        unsafe {
            _mm256_stream_ps(to.as_mut_ptr(), v.0);
            _mm256_stream_ps(to.as_mut_ptr().add(8), v.1);
        }
    }

    #[inline(always)]
    fn streaming_fence(self) {
        // SAFETY: SSE is baseline.
        unsafe { _mm_sfence() }
    }

    #[inline(always)]
    fn load_f16(self, from: &[f16; LANES]) -> Pair {
        // SAFETY: the token proves F16C; `from` is 32 readable bytes.
        unsafe {
            let halves: *const __m128i = from.as_ptr().cast();
            Pair(_mm256_cvtph_ps(_mm_loadu_si128(halves)), _mm256_cvtph_ps(_mm_loadu_si128(halves.add(1))))
        }
    }

    #[inline(always)]
    fn load_i8(self, from: &[u8; LANES]) -> Pair {
        // SAFETY: the token proves AVX2; `from` is 16 readable bytes.
        unsafe {
            let bytes = _mm_loadu_si128(from.as_ptr().cast());
            let high = _mm256_cvtepi8_epi32(_mm_srli_si128::<8>(bytes));
            Pair(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)), _mm256_cvtepi32_ps(high))
        }
    }

    #[inline(always)]
    fn load_bf16(self, from: &[bf16; LANES]) -> Pair {
        // SAFETY: the token proves AVX2; `from` is 32 readable bytes.
        unsafe {
            let from: *const __m128i = from.as_ptr().cast();
            let (low, high) = (_mm_loadu_si128(from), _mm_loadu_si128(from.add(1)));
            Pair(widen_bf16(low), widen_bf16(high))
        }
    }

    #[inline(always)]
    fn store_bf16(self, v: Pair, to: &mut [bf16; LANES]) {
        // SAFETY: the token proves AVX2; `to` is 32 writable bytes.
        unsafe {
            let packed = _mm256_packus_epi32(round_bf16(v.0), round_bf16(v.1));
            // Packing works on 128-bit lanes: their inner quarters come in the wrong order.
            let packed = _mm256_permute4x64_epi64::<0b11_01_10_00>(packed);
            _mm256_storeu_si256(to.as_mut_ptr().cast(), packed);
        }
    }

    #[inline(always)]
    fn add(self, a: Pair, b: Pair) -> Pair {
        // SAFETY: the token proves AVX.
        unsafe { halves!(a, b => _mm256_add_ps(a, b)) }
    }

    #[inline(always)]
    fn sub(self, a: Pair, b: Pair) -> Pair {
        // SAFETY: the token proves AVX.
        unsafe { halves!(a, b => _mm256_sub_ps(a, b)) }
    }

    #[inline(always)]
    fn mul(self, a: Pair, b: Pair) -> Pair {
        // SAFETY: the token proves AVX.
        unsafe { halves!(a, b => _mm256_mul_ps(a, b)) }
    }

    #[inline(always)]
    fn div(self, a: Pair, b: Pair) -> Pair {
        // SAFETY: the token proves AVX.
        unsafe { halves!(a, b => _mm256_div_ps(a, b)) }
    }

    #[inline(always)]
    fn fma(self, a: Pair, b: Pair, c: Pair) -> Pair {
        // SAFETY: the token proves FMA.
        unsafe { halves!(a, b, c => _mm256_fmadd_ps(a, b, c)) }
    }

    #[inline(always)]
    fn select_lt(self, a: Pair, b: Pair, yes: Pair, no: Pair) -> Pair {
        // SAFETY: the token proves AVX.
        unsafe { halves!(a, b, yes, no => _mm256_blendv_ps(no, yes, _mm256_cmp_ps::<_CMP_LT_OQ>(a, b))) }
    }

    #[inline(always)]
    fn select_nan(self, x: Pair, yes: Pair, no: Pair) -> Pair {
        // SAFETY: the token proves AVX.
        unsafe { halves!(x, yes, no => _mm256_blendv_ps(no, yes, _mm256_cmp_ps::<_CMP_UNORD_Q>(x, x))) }
    }

    #[inline(always)]
    fn add_exponent(self, v: Pair, magic: Pair) -> Pair {
        // SAFETY: the token proves AVX2.
        unsafe {
            halves!(v, magic => {
                let shifted = _mm256_slli_epi32::<23>(_mm256_castps_si256(magic));
                _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(v), shifted))
            })
        }
    }

    #[inline(always)]
    fn reduce_add(self, v: Pair) -> f32 {
        // SAFETY: the token proves AVX.
        unsafe { reduce_eight(_mm256_add_ps(v.0, v.1)) }
    }

    #[inline(always)]
    fn abs(self, v: Pair) -> Pair {
        // SAFETY: the token proves AVX.
        unsafe { halves!(v => _mm256_andnot_ps(_mm256_set1_ps(-0.0), v)) }
    }

    #[inline(always)]
    fn prefetch<T>(self, at: *const T) {
        prefetch(at);
    }

    #[inline(always)]
    fn interleave(self, a: Pair, b: Pair) -> [Pair; 2] {
        // SAFETY: the token proves AVX.
        unsafe { [interleave_eight(a.0, b.0), interleave_eight(a.1, b.1)] }
    }

    #[inline(always)]
    fn reduce_add_each(self, v: [Pair; LANES]) -> Pair {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = v;
        // SAFETY: the token proves AVX.
        unsafe { Pair(reduce_each([a, b, c, d, e, f, g, h]), reduce_each([i, j, k, l, m, n, o, p])) }
    }
}

/// `a[0], b[0], a[1], b[1]` and so on.
///
/// # Safety
/// The processor must have AVX.
#[inline(always)]
unsafe fn interleave_eight(a: __m256, b: __m256) -> Pair {
    // SAFETY: promised by the caller.
    unsafe {
        let (low, high) = (_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
        Pair(_mm256_permute2f128_ps::<0x20>(low, high), _mm256_permute2f128_ps::<0x31>(low, high))
    }
}

/// Widens 8 numbers.
///
/// # Safety
/// The processor must have AVX2.
#[inline(always)]
unsafe fn widen_bf16(halves: __m128i) -> __m256 {
    // SAFETY: promised by the caller.
    unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(halves))) }
}

/// The bits of 8 numbers rounded to `bf16`, each in the low half of a lane.
///
/// # Safety
/// The processor must have AVX2.
#[inline(always)]
unsafe fn round_bf16(v: __m256) -> __m256i {
    // SAFETY: promised by the caller.
    unsafe {
        let bits = _mm256_castps_si256(v);
        let high = _mm256_srli_epi32::<16>(bits);
        let odd = _mm256_and_si256(high, _mm256_set1_epi32(1));
        let half = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff));
        let rounded = _mm256_srli_epi32::<16>(_mm256_add_epi32(bits, half));
        let quiet = _mm256_or_si256(high, _mm256_set1_epi32(0x40));
        let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(v, v));
        _mm256_blendv_epi8(rounded, quiet, nan)
    }
}

/// Lane j is the tree sum of vector j.
///
/// # Safety
/// The processor must have AVX.
#[inline(always)]
unsafe fn reduce_each(v: [Pair; 8]) -> __m256 {
    // Vectors 0 to 3 end in the low half if they enter at even places.
    const ORDER: [usize; 8] = [0, 4, 1, 5, 2, 6, 3, 7];
    // SAFETY: promised by the caller.
    unsafe {
        let mut eight = [v[0].0; 8];
        for j in 0..8 {
            eight[j] = _mm256_add_ps(v[ORDER[j]].0, v[ORDER[j]].1);
        }
        let mut four = [v[0].0; 4];
        for j in 0..4 {
            let (a, b) = (eight[2 * j], eight[2 * j + 1]);
            four[j] =
                _mm256_add_ps(_mm256_permute2f128_ps::<0x20>(a, b), _mm256_permute2f128_ps::<0x31>(a, b));
        }
        let mut two = [v[0].0; 2];
        for j in 0..2 {
            let (a, b) = (_mm256_castps_pd(four[2 * j]), _mm256_castps_pd(four[2 * j + 1]));
            two[j] = _mm256_add_ps(
                _mm256_castpd_ps(_mm256_unpacklo_pd(a, b)),
                _mm256_castpd_ps(_mm256_unpackhi_pd(a, b)),
            );
        }
        _mm256_add_ps(
            _mm256_shuffle_ps::<0b10_00_10_00>(two[0], two[1]),
            _mm256_shuffle_ps::<0b11_01_11_01>(two[0], two[1]),
        )
    }
}
