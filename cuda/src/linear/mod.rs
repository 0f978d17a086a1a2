//! The linear mixer on a device: base states, logs and convolution rings of many sequences, and the launches that
//! carry out their plans.
//!
//! Logs are rings: the entry of absolute position `p` stands in row `p % capacity`, so that neither a fold nor a
//! rollback moves anything.

pub mod abi;
mod batch;
#[cfg(feature = "driver")]
pub mod bench;
mod kernels;
mod layer;
mod parts;
mod slots;

pub use batch::{Batch, BatchSequence, Cut};
pub use kernels::{Activation, MAX_ENTRIES, STEP_KERNELS, STEP_THREADS, StepKernel, padded};
pub use layer::{LinearInputs, LinearLayer, LinearOptions, LinearWeightsView, Workspace};
pub use parts::{Part, parts};
pub use slots::SlotPart;

use crate::device::DeviceError;

/// What can go wrong in the linear mixer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LinearError {
    /// The device failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// Keys wider than the kernels know.
    #[error("keys of {0} values are not supported (at most 128)")]
    KeyDim(usize),
    /// Something of the mixer that the kernels do not know.
    #[error("{0} is not supported")]
    Unsupported(&'static str),
    /// A log that is longer than the kernels have room for.
    #[error("a log of {log} entries does not fit the {capacity} there is room for")]
    LogTooLong {
        /// Entries.
        log: usize,
        /// Room.
        capacity: usize,
    },
    /// A slot that does not exist, or stands twice in one batch.
    #[error("sequence slot {0} does not exist or stands twice in the batch")]
    Slot(usize),
    /// Operands of the wrong length.
    #[error("{what} has {found} bytes, {expected} are needed")]
    Length {
        /// Which operand.
        what: &'static str,
        /// Its length.
        found: usize,
        /// The length needed.
        expected: usize,
    },
}
