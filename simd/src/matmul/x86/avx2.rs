//! AVX2, FMA and F16C; with and without the VEX-encoded integer dot product.

use std::arch::x86_64::*;

use super::fours;
use crate::matmul::panels::Rows;
use crate::matmul::simd::Simd;

/// AVX2; `VNNI`: with AVX-VNNI's `vpdpbusd` and `vpdpwssd`.
#[derive(Clone, Copy)]
pub(crate) struct Avx2<const VNNI: bool>;

/// Lower and upper 32 bytes.
#[derive(Clone, Copy)]
pub(crate) struct Two<T>(T, T);

/// Byte indices that repeat a word eight times, for the lower and upper 16 bytes.
const fn spread_bytes(low: i8, high: i8) -> [i8; 32] {
    let mut indices = [0; 32];
    let mut i = 0;
    while i < 32 {
        let word = if i < 16 { low } else { high };
        indices[i] = 2 * word + (i % 2) as i8;
        i += 1;
    }
    indices
}
const SPREAD: [[i8; 32]; 4] =
    [spread_bytes(0, 1), spread_bytes(2, 3), spread_bytes(4, 5), spread_bytes(6, 7)];

/// Byte indices that repeat each byte of an int eight times.
const EIGHT_TIMES: [i8; 32] = {
    let mut indices = [0; 32];
    let mut i = 0;
    while i < 32 {
        indices[i] = (i / 8) as i8;
        i += 1;
    }
    indices
};

/// A window of this at `8 - count` masks the first `count` of eight lanes.
const FIRST: [i32; 16] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];

macro_rules! each {
    ($f:path, $($arg:ident),*) => {
        // SAFETY: the trait's promise.
        unsafe { Two($f($($arg.0),*), $f($($arg.1),*)) }
    };
}

// Every function below relies on the trait's promise: the processor has the instructions, pointers are good.
impl<const VNNI: bool> Simd for Avx2<VNNI> {
    type Vector = Two<__m256i>;
    type Half = __m256i;
    type Floats = Two<__m256>;

    fours!();

    const WIDE_OFFSET: i32 = if VNNI { 128 } else { 0 };

    #[inline(always)]
    unsafe fn zero() -> Two<__m256i> {
        // SAFETY: the trait's promise.
        unsafe { Two(_mm256_setzero_si256(), _mm256_setzero_si256()) }
    }

    #[inline(always)]
    unsafe fn load(p: *const u8) -> Two<__m256i> {
        // SAFETY: the trait's promise.
        unsafe { Two(_mm256_loadu_si256(p.cast()), _mm256_loadu_si256(p.add(32).cast())) }
    }

    #[inline(always)]
    unsafe fn store(p: *mut u8, v: Two<__m256i>) {
        // SAFETY: the trait's promise.
        unsafe {
            _mm256_storeu_si256(p.cast(), v.0);
            _mm256_storeu_si256(p.add(32).cast(), v.1);
        }
    }

    #[inline(always)]
    unsafe fn load_half(p: *const u8) -> __m256i {
        // SAFETY: the trait's promise.
        unsafe { _mm256_loadu_si256(p.cast()) }
    }

    #[inline(always)]
    unsafe fn load_halves(low: *const u8, high: *const u8) -> Two<__m256i> {
        // SAFETY: the trait's promise.
        unsafe { Two(_mm256_loadu_si256(low.cast()), _mm256_loadu_si256(high.cast())) }
    }

    #[inline(always)]
    unsafe fn load_twice(p: *const u8) -> Two<__m256i> {
        // SAFETY: the trait's promise.
        unsafe {
            let half = _mm256_loadu_si256(p.cast());
            Two(half, half)
        }
    }

    #[inline(always)]
    unsafe fn load_table(p: *const u8) -> Two<__m256i> {
        // SAFETY: the trait's promise.
        unsafe {
            let half = _mm256_broadcastsi128_si256(_mm_loadu_si128(p.cast()));
            Two(half, half)
        }
    }

    #[inline(always)]
    unsafe fn rows_of_16(rows: Rows, at: usize) -> [Two<__m256i>; 4] {
        // SAFETY: the trait's promise.
        unsafe {
            // Quarter q of vector c has row 4 q + c; transposing each quarter puts rows in order.
            let low = transpose_quarters([
                two_rows(rows, 0, at),
                two_rows(rows, 1, at),
                two_rows(rows, 2, at),
                two_rows(rows, 3, at),
            ]);
            let high = transpose_quarters([
                two_rows(rows, 8, at),
                two_rows(rows, 9, at),
                two_rows(rows, 10, at),
                two_rows(rows, 11, at),
            ]);
            [Two(low[0], high[0]), Two(low[1], high[1]), Two(low[2], high[2]), Two(low[3], high[3])]
        }
    }

    #[inline(always)]
    unsafe fn splat_int(int: i32) -> Two<__m256i> {
        // SAFETY: the trait's promise.
        unsafe {
            let half = _mm256_set1_epi32(int);
            Two(half, half)
        }
    }

    #[inline(always)]
    unsafe fn prefetch(p: *const u8) {
        // SAFETY: the trait's promise.
        unsafe { _mm_prefetch(p.cast(), _MM_HINT_T0) }
    }

    #[inline(always)]
    unsafe fn prefetch_far(p: *const u8) {
        // SAFETY: the trait's promise.
        unsafe { _mm_prefetch(p.cast(), _MM_HINT_T1) }
    }

    #[inline(always)]
    unsafe fn nibbles_of_32(p: *const u8) -> Two<__m256i> {
        // SAFETY: the trait's promise.
        unsafe {
            let bytes = _mm256_loadu_si256(p.cast());
            Self::low_nibbles(Two(bytes, _mm256_srli_epi16(bytes, 4)))
        }
    }

    #[inline(always)]
    unsafe fn nibbles_of_16_and_16(low: *const u8, high: *const u8) -> Two<__m256i> {
        // SAFETY: the trait's promise.
        unsafe {
            let shifts = _mm256_set_epi64x(4, 4, 0, 0);
            let low = _mm256_broadcastsi128_si256(_mm_loadu_si128(low.cast()));
            let high = _mm256_broadcastsi128_si256(_mm_loadu_si128(high.cast()));
            Self::low_nibbles(Two(_mm256_srlv_epi64(low, shifts), _mm256_srlv_epi64(high, shifts)))
        }
    }

    #[inline(always)]
    unsafe fn low_nibbles(v: Two<__m256i>) -> Two<__m256i> {
        // SAFETY: the trait's promise.
        unsafe {
            let mask = _mm256_set1_epi8(15);
            Two(_mm256_and_si256(v.0, mask), _mm256_and_si256(v.1, mask))
        }
    }

    #[inline(always)]
    unsafe fn high_nibbles(v: Two<__m256i>) -> Two<__m256i> {
        // SAFETY: the trait's promise.
        unsafe { Self::low_nibbles(Two(_mm256_srli_epi16(v.0, 4), _mm256_srli_epi16(v.1, 4))) }
    }

    #[inline(always)]
    unsafe fn and(a: Two<__m256i>, b: Two<__m256i>) -> Two<__m256i> {
        each!(_mm256_and_si256, a, b)
    }

    #[inline(always)]
    unsafe fn shift_left<const BITS: i32>(v: Two<__m256i>) -> Two<__m256i> {
        each!(_mm256_slli_epi32::<BITS>, v)
    }

    #[inline(always)]
    unsafe fn shift_right<const BITS: i32>(v: Two<__m256i>) -> Two<__m256i> {
        each!(_mm256_srli_epi32::<BITS>, v)
    }

    #[inline(always)]
    unsafe fn shift_right_signed<const BITS: i32>(v: Two<__m256i>) -> Two<__m256i> {
        each!(_mm256_srai_epi32::<BITS>, v)
    }

    #[inline(always)]
    unsafe fn or(a: Two<__m256i>, b: Two<__m256i>) -> Two<__m256i> {
        each!(_mm256_or_si256, a, b)
    }

    #[inline(always)]
    unsafe fn fifth_bits<const PAIR: usize>(v: Two<__m256i>) -> Two<__m256i> {
        // SAFETY: the trait's promise.
        unsafe {
            let low = _mm256_set1_epi8((1u8 << (2 * PAIR)) as i8);
            let high = _mm256_set1_epi8((2u8 << (2 * PAIR)) as i8);
            let sixteen = _mm256_set1_epi8(16);
            let low = _mm256_cmpeq_epi8(_mm256_and_si256(v.0, low), low);
            let high = _mm256_cmpeq_epi8(_mm256_and_si256(v.1, high), high);
            Two(_mm256_and_si256(low, sixteen), _mm256_and_si256(high, sixteen))
        }
    }

    #[inline(always)]
    unsafe fn sixteens(bits: u64) -> Two<__m256i> {
        // SAFETY: the trait's promise.
        unsafe { Two(sixteens_of_half(bits as u32), sixteens_of_half((bits >> 32) as u32)) }
    }

    #[inline(always)]
    unsafe fn upper_pairs<const PAIR: usize>(v: Two<__m256i>) -> Two<__m256i> {
        // SAFETY: the trait's promise.
        unsafe {
            let shifted = match PAIR {
                0 => Two(_mm256_slli_epi16(v.0, 4), _mm256_slli_epi16(v.1, 2)),
                _ => Two(v.0, _mm256_srli_epi16(v.1, 2)),
            };
            let mask = _mm256_set1_epi8(0x30);
            Two(_mm256_and_si256(shifted.0, mask), _mm256_and_si256(shifted.1, mask))
        }
    }

    #[inline(always)]
    unsafe fn look_up(table: Two<__m256i>, v: Two<__m256i>) -> Two<__m256i> {
        each!(_mm256_shuffle_epi8, table, v)
    }

    #[inline(always)]
    unsafe fn stored(v: Two<__m256i>) -> Two<__m256i> {
        // SAFETY: the trait's promise.
        unsafe {
            let sign = _mm256_set1_epi8(if VNNI { -128 } else { 0 });
            Two(_mm256_xor_si256(v.0, sign), _mm256_xor_si256(v.1, sign))
        }
    }

    #[inline(always)]
    unsafe fn words_of_signed(p: *const u8) -> __m256i {
        // SAFETY: the trait's promise.
        unsafe { _mm256_cvtepi8_epi16(_mm_loadu_si128(p.cast())) }
    }

    #[inline(always)]
    unsafe fn words_of_pairs(bytes: u64) -> __m256i {
        // SAFETY: the trait's promise.
        unsafe {
            let bytes = _mm_cvtsi64_si128(bytes as i64);
            _mm256_cvtepi8_epi16(_mm_unpacklo_epi8(bytes, bytes))
        }
    }

    #[inline(always)]
    unsafe fn spread<const GROUP: usize>(half: __m256i) -> Two<__m256i> {
        // SAFETY: the trait's promise; the index tables have 32 bytes.
        unsafe {
            let eight = match GROUP / 2 {
                0 => _mm256_permute4x64_epi64(half, 0b01_00_01_00),
                _ => _mm256_permute4x64_epi64(half, 0b11_10_11_10),
            };
            let low = _mm256_loadu_si256(SPREAD[2 * (GROUP % 2)].as_ptr().cast());
            let high = _mm256_loadu_si256(SPREAD[2 * (GROUP % 2) + 1].as_ptr().cast());
            Two(_mm256_shuffle_epi8(eight, low), _mm256_shuffle_epi8(eight, high))
        }
    }

    #[inline(always)]
    unsafe fn upper_words(v: Two<__m256i>) -> Two<__m256i> {
        // SAFETY: the trait's promise.
        unsafe { Two(_mm256_srai_epi32(v.0, 16), _mm256_srai_epi32(v.1, 16)) }
    }

    #[inline(always)]
    unsafe fn add(a: Two<__m256i>, b: Two<__m256i>) -> Two<__m256i> {
        each!(_mm256_add_epi32, a, b)
    }

    #[inline(always)]
    unsafe fn subtract(a: Two<__m256i>, b: Two<__m256i>) -> Two<__m256i> {
        each!(_mm256_sub_epi32, a, b)
    }

    #[inline(always)]
    unsafe fn multiply(a: Two<__m256i>, b: Two<__m256i>) -> Two<__m256i> {
        each!(_mm256_mullo_epi32, a, b)
    }

    #[inline(always)]
    unsafe fn dot<const WIDE: bool>(sum: Two<__m256i>, w: Two<__m256i>, x: Two<__m256i>) -> Two<__m256i> {
        each!(dot_half::<VNNI, WIDE>, sum, w, x)
    }

    #[inline(always)]
    unsafe fn dot_scaled(
        sum: Two<__m256i>,
        w: Two<__m256i>,
        x: Two<__m256i>,
        scales: Two<__m256i>,
    ) -> Two<__m256i> {
        let pairs = each!(_mm256_maddubs_epi16, w, x);
        // SAFETY: the trait's promise.
        unsafe { Self::dot_words(sum, pairs, scales) }
    }

    #[inline(always)]
    unsafe fn dot_words(sum: Two<__m256i>, a: Two<__m256i>, b: Two<__m256i>) -> Two<__m256i> {
        if VNNI {
            each!(_mm256_dpwssd_avx_epi32, sum, a, b)
        } else {
            let products = each!(_mm256_madd_epi16, a, b);
            each!(_mm256_add_epi32, sum, products)
        }
    }

    #[inline(always)]
    unsafe fn dot_words_half(a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: the trait's promise.
        unsafe { _mm256_madd_epi16(a, b) }
    }

    #[inline(always)]
    unsafe fn totals(v: Two<__m256i>, half: __m256i) -> (i32, i32) {
        // SAFETY: the trait's promise.
        unsafe { super::totals_of_eight(_mm256_add_epi32(v.0, v.1), half) }
    }

    #[inline(always)]
    unsafe fn totals_of_two(v: [Two<__m256i>; 2], halves: [__m256i; 2]) -> [i32; 4] {
        // SAFETY: the trait's promise.
        unsafe {
            let [a, b] = v.map(|v| _mm256_add_epi32(v.0, v.1));
            super::four_of(super::totals_of_four([a, b, halves[0], halves[1]]))
        }
    }

    #[inline(always)]
    unsafe fn totals_of_four(v: [Two<__m256i>; 4]) -> [i32; 4] {
        // SAFETY: the trait's promise.
        unsafe { super::four_of(super::totals_of_four(v.map(|v| _mm256_add_epi32(v.0, v.1)))) }
    }

    #[inline(always)]
    unsafe fn totals_of_four_halves(v: [__m256i; 4]) -> [i32; 4] {
        // SAFETY: the trait's promise.
        unsafe { super::four_of(super::totals_of_four(v)) }
    }

    #[inline(always)]
    unsafe fn totals_by_half(v: [Two<__m256i>; 4]) -> [__m128i; 2] {
        // SAFETY: the trait's promise.
        unsafe {
            let [a, b, c, d] = v;
            [super::totals_of_four([a.0, b.0, c.0, d.0]), super::totals_of_four([a.1, b.1, c.1, d.1])]
        }
    }

    #[inline(always)]
    unsafe fn to_floats(v: Two<__m256i>) -> Two<__m256> {
        each!(_mm256_cvtepi32_ps, v)
    }

    #[inline(always)]
    unsafe fn splat(value: f32) -> Two<__m256> {
        // SAFETY: the trait's promise.
        unsafe {
            let half = _mm256_set1_ps(value);
            Two(half, half)
        }
    }

    #[inline(always)]
    unsafe fn load_floats(p: *const f32) -> Two<__m256> {
        // SAFETY: the trait's promise.
        unsafe { Two(_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(8))) }
    }

    #[inline(always)]
    unsafe fn store_floats(p: *mut f32, v: Two<__m256>) {
        // SAFETY: the trait's promise.
        unsafe {
            _mm256_storeu_ps(p, v.0);
            _mm256_storeu_ps(p.add(8), v.1);
        }
    }

    #[inline(always)]
    unsafe fn load_first(p: *const f32, count: usize) -> Two<__m256> {
        // SAFETY: the trait's promise; masked lanes are not touched.
        unsafe {
            let high = p.wrapping_add(8);
            Two(_mm256_maskload_ps(p, first(count)), _mm256_maskload_ps(high, first(count.saturating_sub(8))))
        }
    }

    #[inline(always)]
    unsafe fn store_first(p: *mut f32, v: Two<__m256>, count: usize) {
        // SAFETY: the trait's promise; masked lanes are not touched.
        unsafe {
            _mm256_maskstore_ps(p, first(count), v.0);
            _mm256_maskstore_ps(p.wrapping_add(8), first(count.saturating_sub(8)), v.1);
        }
    }

    #[inline(always)]
    unsafe fn lower_halves(v: Two<__m256i>) -> Two<__m256> {
        // SAFETY: the trait's promise.
        unsafe {
            let mask = _mm256_set1_epi32(0xffff);
            let (low, high) = (_mm256_and_si256(v.0, mask), _mm256_and_si256(v.1, mask));
            let words = _mm256_permute4x64_epi64(_mm256_packus_epi32(low, high), 0b11_01_10_00);
            let high = _mm256_cvtph_ps(_mm256_extracti128_si256(words, 1));
            Two(_mm256_cvtph_ps(_mm256_castsi256_si128(words)), high)
        }
    }

    #[inline(always)]
    unsafe fn load_f16(p: *const u8) -> Two<__m256> {
        // SAFETY: the trait's promise.
        unsafe {
            let low = _mm256_cvtph_ps(_mm_loadu_si128(p.cast()));
            Two(low, _mm256_cvtph_ps(_mm_loadu_si128(p.add(16).cast())))
        }
    }

    #[inline(always)]
    unsafe fn load_bf16(p: *const u8) -> Two<__m256> {
        // SAFETY: the trait's promise.
        unsafe {
            let low = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()));
            let high = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.add(16).cast()));
            Two(
                _mm256_castsi256_ps(_mm256_slli_epi32(low, 16)),
                _mm256_castsi256_ps(_mm256_slli_epi32(high, 16)),
            )
        }
    }

    #[inline(always)]
    unsafe fn product(a: Two<__m256>, b: Two<__m256>) -> Two<__m256> {
        each!(_mm256_mul_ps, a, b)
    }

    #[inline(always)]
    unsafe fn fma(a: Two<__m256>, b: Two<__m256>, c: Two<__m256>) -> Two<__m256> {
        each!(_mm256_fmadd_ps, a, b, c)
    }

    #[inline(always)]
    unsafe fn negated_fma(a: Two<__m256>, b: Two<__m256>, c: Two<__m256>) -> Two<__m256> {
        each!(_mm256_fnmadd_ps, a, b, c)
    }

    #[inline(always)]
    unsafe fn tree_sum(v: Two<__m256>) -> f32 {
        // SAFETY: the trait's promise.
        unsafe { super::tree_sum_of_eight(_mm256_add_ps(v.0, v.1)) }
    }
}

/// 16 in byte `i` where bit `i` is set, else 0.
#[inline(always)]
unsafe fn sixteens_of_half(bits: u32) -> __m256i {
    // SAFETY: the caller has the instructions; the tables have 32 bytes.
    unsafe {
        let bytes = _mm256_loadu_si256(EIGHT_TIMES.as_ptr().cast());
        let bits = _mm256_shuffle_epi8(_mm256_set1_epi32(bits as i32), bytes);
        let places = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64 as i64);
        let set = _mm256_cmpeq_epi8(_mm256_and_si256(bits, places), places);
        _mm256_and_si256(set, _mm256_set1_epi8(16))
    }
}

/// Transposes 4 x 4 ints in each half.
#[inline(always)]
unsafe fn transpose_quarters(v: [__m256i; 4]) -> [__m256i; 4] {
    // SAFETY: the caller has the instructions.
    unsafe {
        let (a, b) = (_mm256_unpacklo_epi32(v[0], v[1]), _mm256_unpacklo_epi32(v[2], v[3]));
        let (c, d) = (_mm256_unpackhi_epi32(v[0], v[1]), _mm256_unpackhi_epi32(v[2], v[3]));
        [
            _mm256_unpacklo_epi64(a, b),
            _mm256_unpackhi_epi64(a, b),
            _mm256_unpacklo_epi64(c, d),
            _mm256_unpackhi_epi64(c, d),
        ]
    }
}

/// Sixteen bytes of rows `row` and `row + 4`.
#[inline(always)]
unsafe fn two_rows(rows: Rows, row: usize, at: usize) -> __m256i {
    let first = rows.start.wrapping_add(row * rows.stride + at);
    // SAFETY: the caller's promise.
    unsafe {
        let low = _mm256_castsi128_si256(_mm_loadu_si128(first.cast()));
        _mm256_inserti128_si256(low, _mm_loadu_si128(first.add(4 * rows.stride).cast()), 1)
    }
}

#[inline(always)]
unsafe fn dot_half<const VNNI: bool, const WIDE: bool>(sum: __m256i, w: __m256i, x: __m256i) -> __m256i {
    // SAFETY: the caller has the instructions.
    unsafe {
        if VNNI {
            return _mm256_dpbusd_avx_epi32(sum, w, x);
        }
        // Without it, pairs are summed in words: 63 * 127 * 2 and 128 * 127 * 2 fit.
        let pairs = if WIDE {
            _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w))
        } else {
            _mm256_maddubs_epi16(w, x)
        };
        _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
    }
}

/// The mask of the first `count` of eight lanes.
#[inline(always)]
unsafe fn first(count: usize) -> __m256i {
    // SAFETY: the window starts at 0 to 8 and has eight of the sixteen ints; the caller has the instructions.
    unsafe { _mm256_loadu_si256(FIRST.as_ptr().add(8 - count.min(8)).cast()) }
}
