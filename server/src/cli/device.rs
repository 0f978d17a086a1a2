//! What computes: the processor, or a CUDA card where this build knows how and there is one.

use std::sync::Arc;

use millpond::backend::Backend;
use millpond::engine::{Engine, EngineOptions};
use millpond::model::Model;

use super::args::DeviceName;

/// Why a model does not run on a GPU.
#[derive(Debug, thiserror::Error)]
pub enum NoGpu {
    /// The build.
    #[error("this build has no CUDA backend")]
    Build,
    /// The driver or the device.
    #[cfg(feature = "cuda")]
    #[error(transparent)]
    Device(#[from] millpond_cuda::DeviceError),
    /// The model or its options.
    #[cfg(feature = "cuda")]
    #[error("{0}")]
    Backend(#[from] millpond::backend::BackendError),
}

/// A model on a card, with the options that it and its sequences take.
pub struct OnCard {
    /// The model.
    pub backend: Box<dyn Backend>,
    /// The options.
    pub options: EngineOptions,
}

/// Starts an engine where `choice` says.
///
/// # Errors
/// The machine or the model does not allow it.
pub fn start(model: Arc<Model>, options: EngineOptions, choice: DeviceName) -> anyhow::Result<Engine> {
    match gpu::backend(&model, &options, choice)? {
        Some(OnCard { backend, options }) => Ok(Engine::start_on(backend, model, options)?),
        None => Ok(Engine::start(model, options)?),
    }
}

/// The GPU, for people.
pub fn describe() -> String {
    gpu::describe().unwrap_or_else(|error| error.to_string())
}

pub use gpu::backend;

/// Settles for the processor, or not.
fn refused<T>(error: NoGpu, choice: DeviceName) -> Result<Option<T>, NoGpu> {
    match (choice, &error) {
        (DeviceName::Cuda, _) => return Err(error),
        // A program that knows no card has nothing to say about the lack of one.
        (DeviceName::Cpu, _) | (DeviceName::Auto, NoGpu::Build) => {}
        #[cfg(feature = "cuda")]
        (DeviceName::Auto, _) => super::output::note!("millpond: {error}: the processor computes"),
    }
    Ok(None)
}

#[cfg(not(feature = "cuda"))]
mod gpu {
    use millpond::engine::EngineOptions;
    use millpond::model::Model;

    use super::{DeviceName, NoGpu, OnCard, refused};

    /// No backend: the processor computes.
    ///
    /// # Errors
    /// A GPU was asked for.
    pub fn backend(_: &Model, _: &EngineOptions, choice: DeviceName) -> Result<Option<OnCard>, NoGpu> {
        refused(NoGpu::Build, choice)
    }

    pub(super) fn describe() -> Result<String, NoGpu> {
        Err(NoGpu::Build)
    }
}

#[cfg(feature = "cuda")]
mod gpu {
    use std::sync::Arc;

    use millpond::engine::EngineOptions;
    use millpond::model::Model;
    use millpond_cuda::driver::Driver;
    use millpond_cuda::{CudaBackend, CudaOptions, Device};

    use super::{DeviceName, NoGpu, OnCard, refused};

    /// The model on a card; nothing where the processor computes.
    ///
    /// # Errors
    /// A GPU was asked for, and there is none or it does not take the model.
    pub fn backend(
        model: &Model,
        options: &EngineOptions,
        choice: DeviceName,
    ) -> Result<Option<OnCard>, NoGpu> {
        if choice == DeviceName::Cpu {
            return Ok(None);
        }
        match on_gpu(model, options) {
            Ok(found) => Ok(Some(found)),
            Err(error) => refused(error, choice),
        }
    }

    fn on_gpu(model: &Model, options: &EngineOptions) -> Result<OnCard, NoGpu> {
        let driver = Driver::new(0)?;
        let mut options = options.clone();
        options.buffer.max_window = options.buffer.max_window.max(options.spec_draft_max + 1);
        options.buffer = CudaBackend::fitting(options.buffer, &model.spec);
        let cuda =
            CudaOptions { kv_type: options.kv_type, buffer: options.buffer, arithmetic: options.arithmetic };
        let device: Arc<dyn Device> = driver;
        let backend = CudaBackend::new(device.clone(), model.spec.clone(), &model.weights, cuda)?;
        // The budgets are the device's: what is free beside the weights.
        let (free, _) = device.memory_info()?;
        options.memory_budget = options.memory_budget.or(Some(free / 2));
        options.cache_budget = options.cache_budget.or(Some(free / 4));
        Ok(OnCard { backend: Box::new(backend), options })
    }

    pub(super) fn describe() -> Result<String, NoGpu> {
        let driver = Driver::new(0)?;
        let (free, total) = driver.memory_info()?;
        let gib = |bytes: usize| bytes as f64 / f64::from(1 << 30);
        Ok(format!("{}, {:.1} of {:.1} GiB free", driver.describe(), gib(free), gib(total)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_card_only_those_who_insist_get_an_error() {
        assert!(refused::<()>(NoGpu::Build, DeviceName::Cuda).is_err());
        assert!(refused::<()>(NoGpu::Build, DeviceName::Auto).unwrap().is_none());
        assert!(refused::<()>(NoGpu::Build, DeviceName::Cpu).unwrap().is_none());
    }
}
