//! The kernels of one instruction-set level.

use std::sync::LazyLock;

use crate::Isa;
use crate::attention::AttentionKernels;
use crate::linear::LinearKernels;
use crate::matmul::MatmulKernels;
use crate::vector::VectorKernels;

/// The kernel tables of one instruction-set level.
pub struct Kernels {
    /// The level.
    pub isa: Isa,
    /// Products of weights and activations.
    pub matmul: &'static MatmulKernels,
    /// Norms, activations, convolution, rotations.
    pub vector: &'static VectorKernels,
    /// The gated delta rule.
    pub linear: &'static LinearKernels,
    /// Softmax attention.
    pub attention: &'static AttentionKernels,
}

static AVAILABLE: LazyLock<Vec<Kernels>> =
    LazyLock::new(|| Isa::available().into_iter().filter_map(Kernels::build).collect());

impl Kernels {
    fn build(isa: Isa) -> Option<Kernels> {
        Some(Kernels {
            isa,
            matmul: MatmulKernels::for_isa(isa)?,
            vector: VectorKernels::for_isa(isa)?,
            linear: LinearKernels::for_isa(isa)?,
            attention: AttentionKernels::for_isa(isa)?,
        })
    }

    /// The kernels of a level; `None` if the processor lacks it.
    pub fn for_isa(isa: Isa) -> Option<&'static Kernels> {
        AVAILABLE.iter().find(|kernels| kernels.isa == isa)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_available_level_has_kernels_and_no_other() {
        for isa in Isa::ALL {
            assert_eq!(Kernels::for_isa(isa).map(|kernels| kernels.isa), isa.is_available().then_some(isa));
        }
    }
}
