//! The canonical vector of [`LANES`] floats and the token types that carry it.
//!
//! A kernel is written once, generic over [`Simd`], as `#[inline(always)]` functions; [`kernel_table`] compiles
//! it once per instruction set. Every method has one result down to the bit, so kernels that use nothing else
//! agree between instruction sets by construction.

use half::{bf16, f16};

use crate::LANES;

/// Memory form of one vector.
pub(crate) type Lane = [f32; LANES];

/// A proof that the processor has an instruction set, with the vector operations it allows.
pub(crate) trait Simd: Copy {
    /// The register form of one vector.
    type V: Copy;
    /// Rows of two accumulators each that a register block holds: 8 or 2.
    const ROW_BLOCK: usize;

    fn splat(self, value: f32) -> Self::V;
    fn load(self, from: &Lane) -> Self::V;
    fn store(self, v: Self::V, to: &mut Lane);
    /// As `store`, past the caches where the processor can and `to` is aligned to 64 bytes.
    #[inline(always)]
    fn store_streaming(self, v: Self::V, to: &mut Lane) {
        self.store(v, to);
    }
    /// Makes streaming stores visible to other threads before later stores.
    #[inline(always)]
    fn streaming_fence(self) {}
    /// Widens exactly.
    fn load_f16(self, from: &[f16; LANES]) -> Self::V;
    /// Signed bytes as floats.
    #[inline(always)]
    fn load_i8(self, from: &[u8; LANES]) -> Self::V {
        self.load(&from.map(|byte| f32::from(byte as i8)))
    }
    /// Widens exactly.
    fn load_bf16(self, from: &[bf16; LANES]) -> Self::V;
    /// Rounds to nearest, ties to even; a NaN stays one.
    fn store_bf16(self, v: Self::V, to: &mut [bf16; LANES]);
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`, rounded once.
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// Per lane `if a < b { yes } else { no }`; false where either is NaN.
    fn select_lt(self, a: Self::V, b: Self::V, yes: Self::V, no: Self::V) -> Self::V;
    /// Per lane `if x is NaN { yes } else { no }`.
    fn select_nan(self, x: Self::V, yes: Self::V, no: Self::V) -> Self::V;
    /// Adds the integer held in the low bits of `magic` to the exponent fields of `v`.
    fn add_exponent(self, v: Self::V, magic: Self::V) -> Self::V;
    /// Pairwise tree: lane i with i+8, then i+4, i+2, i+1.
    fn reduce_add(self, v: Self::V) -> f32;
    /// Clears the sign.
    fn abs(self, v: Self::V) -> Self::V;

    #[inline(always)]
    fn zero(self) -> Self::V {
        self.splat(0.0)
    }

    /// The larger lane; `b` where either is NaN.
    #[inline(always)]
    fn max(self, a: Self::V, b: Self::V) -> Self::V {
        self.select_lt(b, a, a, b)
    }

    /// Loads up to [`LANES`] values, the rest zero.
    #[inline(always)]
    fn load_partial(self, from: &[f32]) -> Self::V {
        let mut lanes = [0.0; LANES];
        lanes[..from.len()].copy_from_slice(from);
        self.load(&lanes)
    }

    /// Loads up to [`LANES`] half floats, the rest zero.
    #[inline(always)]
    fn load_f16_partial(self, from: &[f16]) -> Self::V {
        let mut lanes = [f16::ZERO; LANES];
        lanes[..from.len()].copy_from_slice(from);
        self.load_f16(&lanes)
    }

    /// Loads up to [`LANES`] values, the rest zero.
    #[inline(always)]
    fn load_bf16_partial(self, from: &[bf16]) -> Self::V {
        let mut lanes = [bf16::ZERO; LANES];
        lanes[..from.len()].copy_from_slice(from);
        self.load_bf16(&lanes)
    }

    /// Stores the first `to.len()` lanes.
    #[inline(always)]
    fn store_partial(self, v: Self::V, to: &mut [f32]) {
        let mut lanes = [0.0; LANES];
        self.store(v, &mut lanes);
        to.copy_from_slice(&lanes[..to.len()]);
    }

    /// Asks for the cache line at an address, which need not be readable, soon to be read.
    #[inline(always)]
    fn prefetch<T>(self, at: *const T) {
        let _ = at;
    }

    /// `a[0], b[0], a[1], b[1]` and so on.
    #[inline(always)]
    fn interleave(self, a: Self::V, b: Self::V) -> [Self::V; 2] {
        let (mut x, mut y) = ([0.0; LANES], [0.0; LANES]);
        self.store(a, &mut x);
        self.store(b, &mut y);
        [0, LANES / 2].map(|first| {
            self.load(&std::array::from_fn(|l| if l % 2 == 0 { x[first + l / 2] } else { y[first + l / 2] }))
        })
    }

    /// Lane l of result j is `from[4 l + j]`.
    #[inline(always)]
    fn deinterleave(self, from: &[f32; 4 * LANES]) -> [Self::V; 4] {
        let mut out = [self.zero(); 4];
        for (j, out) in out.iter_mut().enumerate() {
            let mut lanes = [0.0; LANES];
            for (lane, values) in lanes.iter_mut().zip(from.as_chunks::<4>().0) {
                *lane = values[j];
            }
            *out = self.load(&lanes);
        }
        out
    }

    /// Lane j of the result is `reduce_add(v[j])`.
    #[inline(always)]
    fn reduce_add_each(self, v: [Self::V; LANES]) -> Self::V {
        let mut sums = [0.0; LANES];
        for j in 0..LANES {
            sums[j] = self.reduce_add(v[j]);
        }
        self.load(&sums)
    }

    /// Transposes a square of 16 x 16 values.
    #[inline(always)]
    fn transpose(self, v: [Self::V; LANES]) -> [Self::V; LANES] {
        let mut rows = [[0.0; LANES]; LANES];
        for (row, v) in rows.iter_mut().zip(v) {
            self.store(v, row);
        }
        let mut out = v;
        for (j, out) in out.iter_mut().enumerate() {
            let mut column = [0.0; LANES];
            for (value, row) in column.iter_mut().zip(&rows) {
                *value = row[j];
            }
            *out = self.load(&column);
        }
        out
    }
}

/// A number as stored; widened exactly when loaded.
pub(crate) trait Element: Copy {
    fn load<S: Simd>(s: S, from: &[Self; LANES]) -> S::V;
    fn load_partial<S: Simd>(s: S, from: &[Self]) -> S::V;
}

impl Element for f32 {
    #[inline(always)]
    fn load<S: Simd>(s: S, from: &Lane) -> S::V {
        s.load(from)
    }

    #[inline(always)]
    fn load_partial<S: Simd>(s: S, from: &[f32]) -> S::V {
        s.load_partial(from)
    }
}

impl Element for f16 {
    #[inline(always)]
    fn load<S: Simd>(s: S, from: &[f16; LANES]) -> S::V {
        s.load_f16(from)
    }

    #[inline(always)]
    fn load_partial<S: Simd>(s: S, from: &[f16]) -> S::V {
        s.load_f16_partial(from)
    }
}

impl Element for bf16 {
    #[inline(always)]
    fn load<S: Simd>(s: S, from: &[bf16; LANES]) -> S::V {
        s.load_bf16(from)
    }

    #[inline(always)]
    fn load_partial<S: Simd>(s: S, from: &[bf16]) -> S::V {
        s.load_bf16_partial(from)
    }
}

/// A number that results are rounded to.
pub(crate) trait Stored: Element {
    fn store<S: Simd>(s: S, v: S::V, to: &mut [Self; LANES]);
}

impl Stored for f32 {
    #[inline(always)]
    fn store<S: Simd>(s: S, v: S::V, to: &mut Lane) {
        s.store(v, to);
    }
}

impl Stored for bf16 {
    #[inline(always)]
    fn store<S: Simd>(s: S, v: S::V, to: &mut [bf16; LANES]) {
        s.store_bf16(v, to);
    }
}

/// Plain Rust: the oracle.
#[derive(Clone, Copy)]
pub(crate) struct Scalar;

#[inline(always)]
fn zip(a: Lane, b: Lane, f: impl Fn(f32, f32) -> f32) -> Lane {
    let mut out = a;
    for j in 0..LANES {
        out[j] = f(a[j], b[j]);
    }
    out
}

impl Simd for Scalar {
    type V = Lane;
    const ROW_BLOCK: usize = 2;

    #[inline(always)]
    fn splat(self, value: f32) -> Lane {
        [value; LANES]
    }

    #[inline(always)]
    fn load(self, from: &Lane) -> Lane {
        *from
    }

    #[inline(always)]
    fn store(self, v: Lane, to: &mut Lane) {
        *to = v;
    }

    #[inline(always)]
    fn load_f16(self, from: &[f16; LANES]) -> Lane {
        from.map(f16::to_f32)
    }

    #[inline(always)]
    fn load_bf16(self, from: &[bf16; LANES]) -> Lane {
        from.map(bf16::to_f32)
    }

    #[inline(always)]
    fn store_bf16(self, v: Lane, to: &mut [bf16; LANES]) {
        *to = v.map(bf16::from_f32);
    }

    #[inline(always)]
    fn add(self, a: Lane, b: Lane) -> Lane {
        zip(a, b, |a, b| a + b)
    }

    #[inline(always)]
    fn sub(self, a: Lane, b: Lane) -> Lane {
        zip(a, b, |a, b| a - b)
    }

    #[inline(always)]
    fn mul(self, a: Lane, b: Lane) -> Lane {
        zip(a, b, |a, b| a * b)
    }

    #[inline(always)]
    fn div(self, a: Lane, b: Lane) -> Lane {
        zip(a, b, |a, b| a / b)
    }

    #[inline(always)]
    fn fma(self, a: Lane, b: Lane, c: Lane) -> Lane {
        let mut out = c;
        for j in 0..LANES {
            out[j] = a[j].mul_add(b[j], c[j]);
        }
        out
    }

    #[inline(always)]
    fn select_lt(self, a: Lane, b: Lane, yes: Lane, no: Lane) -> Lane {
        let mut out = no;
        for j in 0..LANES {
            out[j] = if a[j] < b[j] { yes[j] } else { no[j] };
        }
        out
    }

    #[inline(always)]
    fn select_nan(self, x: Lane, yes: Lane, no: Lane) -> Lane {
        let mut out = no;
        for j in 0..LANES {
            out[j] = if x[j].is_nan() { yes[j] } else { no[j] };
        }
        out
    }

    #[inline(always)]
    fn add_exponent(self, v: Lane, magic: Lane) -> Lane {
        zip(v, magic, |v, magic| f32::from_bits(v.to_bits().wrapping_add(magic.to_bits() << 23)))
    }

    #[inline(always)]
    fn reduce_add(self, v: Lane) -> f32 {
        let mut v = v;
        for width in [8, 4, 2, 1] {
            for j in 0..width {
                v[j] += v[j + width];
            }
        }
        v[0]
    }

    #[inline(always)]
    fn abs(self, v: Lane) -> Lane {
        v.map(f32::abs)
    }
}

/// Declares a table of kernels: for every `fn name(args) = generic` a safe method `name`, backed by one function
/// pointer per instruction set, each an instance of `generic(token, args)`.
macro_rules! kernel_table {
    (
        $(#[$meta:meta])*
        pub struct $table:ident {
            $( $(#[$doc:meta])* fn $op:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? = $generic:path; )*
        }
    ) => {
        $(#[$meta])*
        pub struct $table {
            $( $op: unsafe fn($($ty),*) $(-> $ret)?, )*
        }

        impl $table {
            /// The kernels of an instruction-set level; `None` if the processor lacks it.
            pub fn for_isa(isa: $crate::Isa) -> Option<&'static Self> {
                if !isa.is_available() {
                    return None;
                }
                #[cfg(target_arch = "x86_64")]
                match isa {
                    $crate::Isa::Avx2 | $crate::Isa::AvxVnni => return Some(&AVX2),
                    $crate::Isa::Avx512 | $crate::Isa::Avx512Vnni => return Some(&AVX512),
                    _ => {}
                }
                #[cfg(target_arch = "aarch64")]
                match isa {
                    $crate::Isa::Neon | $crate::Isa::NeonDot | $crate::Isa::NeonI8mm => return Some(&NEON),
                    _ => {}
                }
                Some(&SCALAR)
            }

            $(
                $(#[$doc])*
                #[inline]
                pub fn $op(&self, $($arg: $ty),*) $(-> $ret)? {
                    // SAFETY: a table is only reachable through `for_isa`, which checks the processor.
                    unsafe { (self.$op)($($arg),*) }
                }
            )*
        }

        static SCALAR: $table = $table { $( $op: scalar::$op, )* };

        mod scalar {
            #[allow(unused_imports)]
            use super::*;
            $( pub(super) fn $op($($arg: $ty),*) $(-> $ret)? { $generic($crate::vector::lanes::Scalar, $($arg),*) } )*
        }

        #[cfg(target_arch = "x86_64")]
        static AVX2: $table = $table { $( $op: avx2::$op, )* };

        #[cfg(target_arch = "x86_64")]
        mod avx2 {
            #[allow(unused_imports)]
            use super::*;
            $(
                #[target_feature(enable = "avx2,fma,f16c")]
                pub(super) fn $op($($arg: $ty),*) $(-> $ret)? {
                    $generic($crate::vector::x86::Avx2::new(), $($arg),*)
                }
            )*
        }

        #[cfg(target_arch = "x86_64")]
        static AVX512: $table = $table { $( $op: avx512::$op, )* };

        #[cfg(target_arch = "x86_64")]
        mod avx512 {
            #[allow(unused_imports)]
            use super::*;
            $(
                #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
                pub(super) fn $op($($arg: $ty),*) $(-> $ret)? {
                    $generic($crate::vector::x86::Avx512::new(), $($arg),*)
                }
            )*
        }

        #[cfg(target_arch = "aarch64")]
        static NEON: $table = $table { $( $op: neon::$op, )* };

        #[cfg(target_arch = "aarch64")]
        mod neon {
            #[allow(unused_imports)]
            use super::*;
            $(
                #[target_feature(enable = "neon")]
                pub(super) fn $op($($arg: $ty),*) $(-> $ret)? {
                    $generic($crate::vector::arm::Neon::new(), $($arg),*)
                }
            )*
        }
    };
}
pub(crate) use kernel_table;
