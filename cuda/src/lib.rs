//! CUDA backend of Millpond, loaded at run time.
//!
//! The kernels are CUDA C++ (`kernels/`), committed as PTX (`kernels/ptx/`), so that building needs no CUDA
//! installation. A [`Device`] runs them: `driver::Driver` on a GPU (feature `driver`), `emulator::Emulator`
//! thread by thread on the CPU (feature `emulator`, for tests). Cursors, fold policy and plans are the runtime's;
//! nothing here decides when a log is folded.

pub mod device;
#[cfg(feature = "driver")]
pub mod driver;
#[cfg(feature = "emulator")]
pub mod emulator;
pub mod linear;
pub mod model;

pub use device::{Device, DeviceError, Memory, Recording};
pub use model::{CudaBackend, CudaOptions};
