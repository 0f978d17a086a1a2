//! Kernels of Millpond: pure functions over slices. No tensors, no threads, no I/O.
//!
//! Every operation has one canonical order of floating-point operations, written in its module, and every
//! instruction set, the scalar oracle included, gives the same bits. A row's result never depends on how many
//! rows share a call. This is what makes batches, speculation and thread counts invisible in the output.

pub mod attention;
pub mod isa;
pub mod kernels;
pub mod linear;
pub mod matmul;
pub mod memory;
pub mod quant;
pub mod vector;

pub use isa::Isa;
pub use kernels::Kernels;

/// Width of the canonical vector: one AVX-512 register, two AVX2 or four NEON registers.
pub const LANES: usize = 16;
