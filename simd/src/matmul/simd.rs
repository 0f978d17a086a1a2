//! The vector operations the products are written in: few, and each as large as one instruction set can do well.

use super::panels::Rows;

/// One instruction set. A `Vector` is 64 bytes, seen as bytes, 32 words or 16 ints; a `Half` is 32 bytes.
///
/// # Safety
/// Every function requires that the processor has the instruction set; those that take pointers, that the bytes they
/// name are readable (writable for `store`). Callers are compiled with the set's features enabled, into which these
/// functions are inlined.
pub(super) trait Simd: Copy {
    /// 64 bytes of integers.
    type Vector: Copy;
    /// 32 bytes of integers.
    type Half: Copy;
    /// Sixteen floats.
    type Floats: Copy;
    /// Four floats, and four ints.
    type Four: Copy;
    type FourInts: Copy;

    /// What the stored form of wide weights ([`Simd::stored`]) adds to each.
    const WIDE_OFFSET: i32;

    /// Whether two activation rows at a time ([`Simd::dot_pair`]) are faster than one after the other.
    const PAIRS: bool = false;

    unsafe fn zero() -> Self::Vector;
    unsafe fn load(p: *const u8) -> Self::Vector;
    unsafe fn store(p: *mut u8, v: Self::Vector);
    unsafe fn load_half(p: *const u8) -> Self::Half;
    /// 32 bytes at `low`, then 32 at `high`.
    unsafe fn load_halves(low: *const u8, high: *const u8) -> Self::Vector;
    /// The same 32 bytes in both halves.
    unsafe fn load_twice(p: *const u8) -> Self::Vector;
    /// The same 16 bytes in all quarters.
    unsafe fn load_table(p: *const u8) -> Self::Vector;
    /// Sixteen bytes of each row, `at` after its start: int `i` of each row is in vector `i`.
    unsafe fn rows_of_16(rows: Rows, at: usize) -> [Self::Vector; 4];
    /// One int in all lanes.
    unsafe fn splat_int(int: i32) -> Self::Vector;
    /// Brings the line at `p` closer; any address will do.
    unsafe fn prefetch(p: *const u8);

    /// Brings the line at `p` no closer than the second cache level.
    unsafe fn prefetch_far(p: *const u8);

    /// Low nibbles of 32 bytes, then their high nibbles.
    unsafe fn nibbles_of_32(p: *const u8) -> Self::Vector;
    /// Low nibbles of 16 bytes, then high ones; the same for 16 bytes elsewhere.
    unsafe fn nibbles_of_16_and_16(low: *const u8, high: *const u8) -> Self::Vector;
    /// The low nibble of each byte.
    unsafe fn low_nibbles(v: Self::Vector) -> Self::Vector;
    /// The high nibble of each byte.
    unsafe fn high_nibbles(v: Self::Vector) -> Self::Vector;
    unsafe fn and(a: Self::Vector, b: Self::Vector) -> Self::Vector;
    /// Ints, zeros shifted in.
    unsafe fn shift_left<const BITS: i32>(v: Self::Vector) -> Self::Vector;
    /// Ints, zeros shifted in.
    unsafe fn shift_right<const BITS: i32>(v: Self::Vector) -> Self::Vector;
    /// Ints, copies of the sign shifted in.
    unsafe fn shift_right_signed<const BITS: i32>(v: Self::Vector) -> Self::Vector;
    unsafe fn or(a: Self::Vector, b: Self::Vector) -> Self::Vector;
    /// 16 where bit `2 PAIR` of a byte (lower half) or bit `2 PAIR + 1` (upper half) is set, else 0.
    unsafe fn fifth_bits<const PAIR: usize>(v: Self::Vector) -> Self::Vector;
    /// 16 in byte `i` where bit `i` is set, else 0.
    unsafe fn sixteens(bits: u64) -> Self::Vector;
    /// Bits `4 PAIR` and `4 PAIR + 1` (lower half) or `4 PAIR + 2` and `4 PAIR + 3` (upper half) as bits 4 and 5.
    unsafe fn upper_pairs<const PAIR: usize>(v: Self::Vector) -> Self::Vector;
    /// Byte `i` becomes `table[v[i]]`, `v[i] < 16`.
    unsafe fn look_up(table: Self::Vector, v: Self::Vector) -> Self::Vector;
    /// Signed weights in the form [`Simd::dot`] takes when `WIDE`: plus [`Simd::WIDE_OFFSET`].
    unsafe fn stored(v: Self::Vector) -> Self::Vector;

    /// Sixteen signed bytes as words.
    unsafe fn words_of_signed(p: *const u8) -> Self::Half;
    /// Eight signed bytes, each twice, as words.
    unsafe fn words_of_pairs(bytes: u64) -> Self::Half;
    /// Words `4 GROUP ..` of the half, each eight times.
    unsafe fn spread<const GROUP: usize>(half: Self::Half) -> Self::Vector;
    /// The upper word of each int, sign-extended.
    unsafe fn upper_words(v: Self::Vector) -> Self::Vector;

    unsafe fn add(a: Self::Vector, b: Self::Vector) -> Self::Vector;
    unsafe fn subtract(a: Self::Vector, b: Self::Vector) -> Self::Vector;
    /// Lower 32 bits of the products of ints.
    unsafe fn multiply(a: Self::Vector, b: Self::Vector) -> Self::Vector;
    /// Adds the dot products of four bytes to each int: `w` unsigned, below 64; or any weight in stored form if
    /// `WIDE`. `x` is -127 to 127.
    unsafe fn dot<const WIDE: bool>(sum: Self::Vector, w: Self::Vector, x: Self::Vector) -> Self::Vector;
    /// Adds the dot products of eight weights, four in each vector, with the eight activations at each `x`: two
    /// activation rows at once. How the sums lie is the instruction set's own, zeros apart; [`Simd::apart`] brings
    /// them in order.
    #[inline(always)]
    unsafe fn dot_pair<const WIDE: bool>(
        sums: [Self::Vector; 2],
        w: [Self::Vector; 2],
        x: [*const i8; 2],
    ) -> [Self::Vector; 2] {
        let mut sums = sums;
        for (sum, x) in sums.iter_mut().zip(x) {
            for half in 0..2 {
                // SAFETY: the trait's promise: eight bytes are readable.
                unsafe {
                    let x = Self::splat_int(x.add(4 * half).cast::<i32>().read_unaligned());
                    *sum = Self::dot::<WIDE>(*sum, w[half], x);
                }
            }
        }
        sums
    }
    /// The sums of [`Simd::dot_pair`], first row first.
    #[inline(always)]
    unsafe fn apart(sums: [Self::Vector; 2]) -> [Self::Vector; 2] {
        sums
    }
    /// As `dot` with `w` below 64, where each pair of products is multiplied by a word of `scales`.
    unsafe fn dot_scaled(
        sum: Self::Vector,
        w: Self::Vector,
        x: Self::Vector,
        scales: Self::Vector,
    ) -> Self::Vector;
    /// Adds the dot products of two words to each int.
    unsafe fn dot_words(sum: Self::Vector, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    /// The dot products of two words, eight ints.
    unsafe fn dot_words_half(a: Self::Half, b: Self::Half) -> Self::Half;

    /// The sum of sixteen ints and the sum of eight.
    unsafe fn totals(v: Self::Vector, half: Self::Half) -> (i32, i32);
    /// The sums of sixteen ints, then the sums of eight.
    #[inline(always)]
    unsafe fn totals_of_two(v: [Self::Vector; 2], halves: [Self::Half; 2]) -> [i32; 4] {
        let ([a, b], [c, d]) = (v, halves);
        // SAFETY: the trait's promise.
        let ((a, c), (b, d)) = unsafe { (Self::totals(a, c), Self::totals(b, d)) };
        [a, b, c, d]
    }
    /// The sums of sixteen ints.
    #[inline(always)]
    unsafe fn totals_of_four(v: [Self::Vector; 4]) -> [i32; 4] {
        // SAFETY: the trait's promise.
        unsafe {
            let none = Self::load_half([0i32; 8].as_ptr().cast());
            v.map(|v| Self::totals(v, none).0)
        }
    }
    /// The sums of eight ints.
    #[inline(always)]
    unsafe fn totals_of_four_halves(v: [Self::Half; 4]) -> [i32; 4] {
        // SAFETY: the trait's promise.
        unsafe { v.map(|half| Self::totals(Self::zero(), half).1) }
    }
    /// The sum of the first eight ints of each, and that of the last eight.
    unsafe fn totals_by_half(v: [Self::Vector; 4]) -> [Self::FourInts; 2];

    unsafe fn four(value: f32) -> Self::Four;
    unsafe fn four_ints(int: i32) -> Self::FourInts;
    unsafe fn load_four(p: *const f32) -> Self::Four;
    unsafe fn store_four(p: *mut f32, v: Self::Four);
    /// The half-precision number at each place.
    unsafe fn four_halves(p: [*const u8; 4]) -> Self::Four;
    unsafe fn add_four(a: Self::FourInts, b: Self::FourInts) -> Self::FourInts;
    /// `ints * (scales * x_scale) + chain`: each int rounded to nearest even, each product of scales rounded, then the
    /// rest rounded once.
    unsafe fn chain(chain: Self::Four, ints: Self::FourInts, scales: Self::Four, x_scale: f32) -> Self::Four;

    /// Each int rounded to nearest even.
    unsafe fn to_floats(v: Self::Vector) -> Self::Floats;
    unsafe fn splat(value: f32) -> Self::Floats;
    unsafe fn load_floats(p: *const f32) -> Self::Floats;
    unsafe fn store_floats(p: *mut f32, v: Self::Floats);
    /// The first `count` of sixteen floats, zeros behind.
    unsafe fn load_first(p: *const f32, count: usize) -> Self::Floats;
    /// Stores the first `count` of sixteen floats.
    unsafe fn store_first(p: *mut f32, v: Self::Floats, count: usize);
    /// The half-precision numbers in the lower halves of ints.
    unsafe fn lower_halves(v: Self::Vector) -> Self::Floats;
    /// Sixteen half-precision numbers.
    unsafe fn load_f16(p: *const u8) -> Self::Floats;
    /// Sixteen bfloat16 numbers.
    unsafe fn load_bf16(p: *const u8) -> Self::Floats;
    unsafe fn product(a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// `a * b + c`, rounded once.
    unsafe fn fma(a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats;
    /// `c - a * b`, rounded once.
    unsafe fn negated_fma(a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats;
    /// Lane `i` plus lane `i + 8`, then `+ 4`, `+ 2`, `+ 1`.
    unsafe fn tree_sum(v: Self::Floats) -> f32;
}
