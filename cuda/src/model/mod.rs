//! Whole models on a device: the same plans, cursors and runner as on the processor, executed by kernels.

pub mod abi;
mod backend;
mod ops;
mod pages;
mod pass;
mod recordings;
mod saved;
mod sequences;
mod weights;

pub use backend::{CudaBackend, CudaOptions};

use millpond::backend::BackendError;
use millpond::state::arena::AllocationError;

use crate::device::DeviceError;
use crate::linear::LinearError;

/// A device's failure as the runtime knows it.
fn failed(error: DeviceError) -> BackendError {
    match error {
        DeviceError::OutOfMemory { bytes } => BackendError::Memory(AllocationError {
            bytes,
            what: "device memory",
            reason: "the device has no room".to_owned(),
        }),
        other => BackendError::Device(other.to_string()),
    }
}

/// The linear mixer's failure as the runtime knows it.
fn mixer_failed(error: LinearError) -> BackendError {
    match error {
        LinearError::Device(error) => failed(error),
        LinearError::Slot(slot) => BackendError::Slot(slot),
        LinearError::LogTooLong { log, capacity } => {
            BackendError::Unsupported { what: "log entries", found: log, max: capacity }
        }
        LinearError::KeyDim(found) => BackendError::Unsupported { what: "values of a key", found, max: 128 },
        other => BackendError::Device(other.to_string()),
    }
}
