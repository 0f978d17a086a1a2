//! A GPU through the CUDA driver, which is loaded at run time and may be absent.

use std::collections::HashMap;
use std::ffi::{CString, c_int, c_uint, c_void};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, ThreadId};

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;

use crate::device::{Device, DeviceError, Launch, Recording};

/// The oldest driver that has every function in use, as `cuDriverGetVersion` counts.
const OLDEST_DRIVER: c_int = 12_000;
const OLDEST_DRIVER_NAME: &str = "12.0";

/// The kernels for GPUs before and from compute capability 9.0.
const PTX_80: [&str; 3] = [
    include_str!("../kernels/ptx/linear.sm_80.ptx"),
    include_str!("../kernels/ptx/model.sm_80.ptx"),
    include_str!("../kernels/ptx/matmul.sm_80.ptx"),
];
const PTX_90: [&str; 3] = [
    include_str!("../kernels/ptx/linear.sm_90.ptx"),
    include_str!("../kernels/ptx/model.sm_90.ptx"),
    include_str!("../kernels/ptx/matmul.sm_90.ptx"),
];

/// Shared memory of a block that needs no permission.
const ORDINARY_SHARED_BYTES: u32 = 48 * 1024;

/// A module with the text it was compiled from.
type Module = (&'static str, sys::CUmodule);

/// A kernel, and the bytes of shared memory that a block of it may have.
#[derive(Clone, Copy)]
struct Function {
    handle: sys::CUfunction,
    shared_bytes: u32,
}

/// A GPU with one stream and the compiled kernels.
pub struct Driver {
    context: sys::CUcontext,
    device: sys::CUdevice,
    stream: sys::CUstream,
    modules: Vec<Module>,
    functions: Mutex<HashMap<String, Function>>,
    turns: Turns,
    name: String,
    capability: (i32, i32),
    processors: usize,
}

// SAFETY: the handles are the driver's, which may be used from any thread that has the context current; every method
// makes it current first. The map of functions has a lock.
unsafe impl Send for Driver {}
// SAFETY: as above.
unsafe impl Sync for Driver {}

/// Whose turn it is: one thread's, as often over as it likes.
#[derive(Default)]
struct Turns {
    /// The thread, and how many turns of it are open.
    holder: Mutex<(Option<ThreadId>, usize)>,
    over: Condvar,
}

/// A turn; dropping it ends it.
struct Turn<'a>(&'a Turns);

impl Turn<'_> {
    fn take(turns: &Turns) -> Turn<'_> {
        let me = thread::current().id();
        let mut holder = turns.holder.lock().unwrap_or_else(PoisonError::into_inner);
        while holder.0.is_some_and(|other| other != me) {
            holder = turns.over.wait(holder).unwrap_or_else(PoisonError::into_inner);
        }
        *holder = (Some(me), holder.1 + 1);
        Turn(turns)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut holder = self.0.holder.lock().unwrap_or_else(PoisonError::into_inner);
        holder.1 -= 1;
        if holder.1 == 0 {
            holder.0 = None;
            self.0.over.notify_one();
        }
    }
}

/// Why a launch did not begin. What ails the device or its driver is not the launch's fault.
fn refused(launch: &Launch<'_>, failure: DriverError) -> DeviceError {
    match error(failure) {
        DeviceError::Other(reason) => DeviceError::Launch {
            kernel: launch.kernel.to_owned(),
            grid: launch.grid,
            threads: launch.threads,
            shared_bytes: launch.shared_bytes,
            reason,
        },
        known => known,
    }
}

fn error(error: DriverError) -> DeviceError {
    use sys::CUresult::*;
    match error.0 {
        CUDA_ERROR_OUT_OF_MEMORY => DeviceError::OutOfMemory { bytes: 0 },
        CUDA_ERROR_NO_DEVICE => DeviceError::NoDevice(0),
        CUDA_ERROR_ILLEGAL_ADDRESS
        | CUDA_ERROR_LAUNCH_FAILED
        | CUDA_ERROR_LAUNCH_TIMEOUT
        | CUDA_ERROR_ECC_UNCORRECTABLE
        | CUDA_ERROR_HARDWARE_STACK_ERROR
        | CUDA_ERROR_ILLEGAL_INSTRUCTION
        | CUDA_ERROR_MISALIGNED_ADDRESS
        | CUDA_ERROR_INVALID_ADDRESS_SPACE
        | CUDA_ERROR_INVALID_PC
        | CUDA_ERROR_ASSERT
        | CUDA_ERROR_CONTEXT_IS_DESTROYED
        | CUDA_ERROR_DEVICE_UNAVAILABLE
        | CUDA_ERROR_SYSTEM_NOT_READY => DeviceError::Lost(error.to_string()),
        CUDA_ERROR_UNSUPPORTED_PTX_VERSION
        | CUDA_ERROR_SYSTEM_DRIVER_MISMATCH
        | CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE => {
            DeviceError::OldDriver { found: driver_version(), needed: OLDEST_DRIVER_NAME }
        }
        _ => DeviceError::Other(error.to_string()),
    }
}

fn version_number() -> Result<c_int, DeviceError> {
    let mut version = 0;
    // SAFETY: writes one number.
    unsafe { sys::cuDriverGetVersion(&mut version) }.result().map_err(error)?;
    Ok(version)
}

fn driver_version() -> String {
    match version_number() {
        Ok(version) => format!("{}.{}", version / 1000, version % 1000 / 10),
        Err(_) => "an unknown version".into(),
    }
}

/// Whether a CUDA driver can be loaded. Never fails and never aborts.
pub fn driver_present() -> bool {
    // SAFETY: tries to load the system's driver library, whose initialisation is the vendor's.
    unsafe { sys::is_culib_present() }
}

impl Driver {
    /// The GPU number `ordinal` of those the driver shows.
    ///
    /// # Errors
    /// [`DeviceError::NoDriver`], [`DeviceError::NoDevice`], [`DeviceError::OldDriver`], [`DeviceError::OldDevice`],
    /// or what the driver says.
    pub fn new(ordinal: usize) -> Result<Arc<Driver>, DeviceError> {
        if !driver_present() {
            return Err(DeviceError::NoDriver);
        }
        if version_number()? < OLDEST_DRIVER {
            return Err(DeviceError::OldDriver { found: driver_version(), needed: OLDEST_DRIVER_NAME });
        }
        let no_device = |_| DeviceError::NoDevice(ordinal);
        result::init().map_err(no_device)?;
        let device = result::device::get(ordinal as c_int).map_err(no_device)?;
        let name = result::device::get_name(device).map_err(error)?;
        let attribute = |attribute| {
            // SAFETY: the device was given by the driver.
            unsafe { result::device::get_attribute(device, attribute) }.map_err(error)
        };
        let major = attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
        let minor = attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        if major < 8 {
            return Err(DeviceError::OldDevice { name, major, minor });
        }
        let processors =
            attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? as usize;
        // SAFETY: the device was given by the driver; `drop` releases the context.
        let context = unsafe { result::primary_ctx::retain(device) }.map_err(error)?;
        let loaded = load(context, if major >= 9 { &PTX_90 } else { &PTX_80 });
        let (stream, modules) = match loaded {
            Ok(loaded) => loaded,
            Err(failure) => {
                // SAFETY: retained above and not used any more. Its own failure changes nothing about the first.
                let _ = unsafe { result::primary_ctx::release(device) };
                return Err(failure);
            }
        };
        Ok(Arc::new(Driver {
            context,
            device,
            stream,
            modules,
            functions: Mutex::default(),
            turns: Turns::default(),
            name,
            capability: (major, minor),
            processors,
        }))
    }

    /// Makes the context current, and keeps other threads out of the stream until the turn is over: launches of theirs
    /// must not fall between those that this thread records.
    fn enter(&self) -> Result<Turn<'_>, DeviceError> {
        let turn = Turn::take(&self.turns);
        // SAFETY: the context is retained as long as `self` lives.
        unsafe { result::ctx::set_current(self.context) }.map_err(error)?;
        Ok(turn)
    }

    fn function(&self, launch: &Launch<'_>) -> Result<sys::CUfunction, DeviceError> {
        let mut functions = self.functions.lock().unwrap_or_else(PoisonError::into_inner);
        let mut function = match functions.get(launch.kernel) {
            Some(function) => *function,
            None => Function { handle: self.find(launch.kernel)?, shared_bytes: 0 },
        };
        // Launches of one kernel differ in what they need.
        if launch.shared_bytes > function.shared_bytes {
            allow_shared(function.handle, launch.shared_bytes)?;
            function.shared_bytes = launch.shared_bytes;
        }
        functions.insert(launch.kernel.into(), function);
        Ok(function.handle)
    }

    /// A kernel of the modules.
    fn find(&self, kernel: &str) -> Result<sys::CUfunction, DeviceError> {
        let missing = || DeviceError::NoKernel(kernel.into());
        let name = CString::new(kernel).map_err(|_| missing())?;
        let entry = format!(".entry {kernel}(");
        let holds = |module: &&Module| module.0.contains(&entry);
        let (_, module) = self.modules.iter().find(holds).ok_or_else(missing)?;
        // SAFETY: the module is loaded as long as `self` lives.
        unsafe { result::module::get_function(*module, name) }.map_err(|_| missing())
    }

    /// Registers of a thread, bytes of its local memory, and how many blocks a multiprocessor holds.
    ///
    /// # Errors
    /// [`DeviceError::NoKernel`], or a lost device.
    pub fn resources(&self, launch: &Launch<'_>) -> Result<(i32, i32, i32), DeviceError> {
        let _turn = self.enter()?;
        let function = self.function(launch)?;
        use sys::CUfunction_attribute::*;
        let attribute = |attribute| {
            // SAFETY: the function was looked up in a loaded module.
            unsafe { result::function::get_function_attribute(function, attribute) }.map_err(error)
        };
        let (registers, local) =
            (attribute(CU_FUNC_ATTRIBUTE_NUM_REGS)?, attribute(CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES)?);
        let (threads, shared) = (launch.threads as c_int, launch.shared_bytes as usize);
        // SAFETY: as above.
        let blocks =
            unsafe { result::occupancy::max_active_block_per_multiprocessor(function, threads, shared) }
                .map_err(error)?;
        Ok((registers, local, blocks))
    }

    /// Records the launches of `work` into a graph instead of running them.
    ///
    /// # Errors
    /// Those of `work` and of the driver.
    pub fn capture<E: From<DeviceError>>(
        self: &Arc<Driver>,
        work: impl FnOnce() -> Result<(), E>,
    ) -> Result<Graph, E> {
        let _turn = self.enter()?;
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream lives as long as `self`.
        unsafe { result::stream::begin_capture(self.stream, mode) }.map_err(error)?;
        let outcome = work();
        // SAFETY: the capture began above.
        let graph = unsafe { result::stream::end_capture(self.stream) }.map_err(error);
        outcome?;
        let graph = graph?;
        let mut exec = std::ptr::null_mut();
        // SAFETY: the graph was just recorded; the flags are none.
        let instantiated = unsafe { sys::cuGraphInstantiateWithFlags(&mut exec, graph, 0) }.result();
        // SAFETY: the executable graph does not need its source.
        let _ = unsafe { result::graph::destroy(graph) };
        instantiated.map_err(error)?;
        Ok(Graph { driver: self.clone(), exec })
    }

    /// Milliseconds that `work` takes on the device.
    ///
    /// # Errors
    /// Those of `work` and of the driver.
    pub fn time<E: From<DeviceError>>(&self, work: impl FnOnce() -> Result<(), E>) -> Result<f32, E> {
        let _turn = self.enter()?;
        let flags = sys::CUevent_flags::CU_EVENT_DEFAULT;
        let events =
            [result::event::create(flags).map_err(error)?, result::event::create(flags).map_err(error)?];
        let record = |event| {
            // SAFETY: event and stream live.
            unsafe { result::event::record(event, self.stream) }.map_err(error)
        };
        record(events[0])?;
        let outcome = work();
        record(events[1])?;
        self.synchronize()?;
        // SAFETY: both events were recorded and have happened.
        let elapsed = unsafe { result::event::elapsed(events[0], events[1]) }.map_err(error);
        for event in events {
            // SAFETY: nothing waits for it any more.
            unsafe { result::event::destroy(event) }.map_err(error)?;
        }
        outcome?;
        Ok(elapsed?)
    }
}

/// Permits blocks with `bytes` bytes of shared memory.
fn allow_shared(function: sys::CUfunction, bytes: u32) -> Result<(), DeviceError> {
    use sys::CUfunction_attribute::*;
    let set = |attribute, value: u32| {
        // SAFETY: the function is one of a loaded module.
        unsafe { result::function::set_function_attribute(function, attribute, value as c_int) }
            .map_err(error)
    };
    if bytes > ORDINARY_SHARED_BYTES / 4 {
        set(CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT, 100)?;
    }
    if bytes > ORDINARY_SHARED_BYTES {
        set(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, bytes)?;
    }
    Ok(())
}

fn load(
    context: sys::CUcontext,
    sources: &[&'static str],
) -> Result<(sys::CUstream, Vec<Module>), DeviceError> {
    // SAFETY: the context was just retained.
    unsafe { result::ctx::set_current(context) }.map_err(error)?;
    let mut modules = Vec::with_capacity(sources.len());
    for source in sources {
        let image = CString::new(*source).map_err(|_| DeviceError::Other("PTX with a zero byte".into()))?;
        // SAFETY: a text that ends with a zero byte.
        let module = unsafe { result::module::load_data(image.as_ptr().cast()) }.map_err(error)?;
        modules.push((*source, module));
    }
    let stream = result::stream::create(result::stream::StreamKind::NonBlocking).map_err(error)?;
    Ok((stream, modules))
}

impl Drop for Driver {
    fn drop(&mut self) {
        // A device that is lost cannot be tidied up, and nobody is left to tell.
        if let Ok(_turn) = self.enter() {
            // SAFETY: made in `new`, and nothing uses them after this.
            unsafe {
                let _ = result::stream::synchronize(self.stream);
                let _ = result::stream::destroy(self.stream);
                for (_, module) in &self.modules {
                    let _ = result::module::unload(*module);
                }
                let _ = result::primary_ctx::release(self.device);
            }
        }
    }
}

impl Device for Driver {
    fn describe(&self) -> String {
        let (major, minor) = self.capability;
        format!("{}, compute capability {major}.{minor}, CUDA {}", self.name, driver_version())
    }

    fn processors(&self) -> usize {
        self.processors
    }

    fn allocate(&self, bytes: usize) -> Result<u64, DeviceError> {
        let _turn = self.enter()?;
        // SAFETY: the context is current; `bytes` is not zero, as `Memory` asks for none then.
        unsafe { result::malloc_sync(bytes) }.map_err(|failure| match error(failure) {
            DeviceError::OutOfMemory { .. } => DeviceError::OutOfMemory { bytes },
            other => other,
        })
    }

    unsafe fn free(&self, address: u64) {
        // Nothing can be done about a failure: the device is lost then, and its memory with it.
        if let Ok(_turn) = self.enter() {
            // SAFETY: the caller vouches for the address; launches in flight end before it is freed.
            unsafe {
                let _ = result::stream::synchronize(self.stream);
                let _ = result::free_sync(address);
            }
        }
    }

    unsafe fn write(&self, address: u64, data: &[u8]) -> Result<(), DeviceError> {
        let _turn = self.enter()?;
        // SAFETY: the caller vouches for the range; the host slice lives until the wait below is over.
        unsafe { result::memcpy_htod_async(address, data, self.stream) }.map_err(error)?;
        self.synchronize()
    }

    unsafe fn read(&self, address: u64, data: &mut [u8]) -> Result<(), DeviceError> {
        let _turn = self.enter()?;
        // SAFETY: as for `write`.
        unsafe { result::memcpy_dtoh_async(data, address, self.stream) }.map_err(error)?;
        self.synchronize()
    }

    unsafe fn fill(&self, address: u64, bytes: usize, value: u8) -> Result<(), DeviceError> {
        let _turn = self.enter()?;
        // SAFETY: the caller vouches for the range.
        unsafe { result::memset_d8_async(address, value, bytes, self.stream) }.map_err(error)
    }

    unsafe fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<(), DeviceError> {
        let _turn = self.enter()?;
        // SAFETY: the caller vouches for the ranges.
        unsafe { result::memcpy_dtod_async(to, from, bytes, self.stream) }.map_err(error)
    }

    unsafe fn launch(&self, launch: &Launch<'_>, args: &[u8]) -> Result<(), DeviceError> {
        let _turn = self.enter()?;
        let function = self.function(launch)?;
        let mut attributes = [sys::CUlaunchAttribute {
            id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: [0; 4],
            value: sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
        }];
        let overlaps = launch.overlaps && self.capability.0 >= 9;
        let config = sys::CUlaunchConfig {
            gridDimX: launch.grid[0],
            gridDimY: launch.grid[1],
            gridDimZ: launch.grid[2],
            blockDimX: launch.threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: launch.shared_bytes,
            hStream: self.stream,
            attrs: attributes.as_mut_ptr(),
            numAttrs: overlaps as c_uint,
        };
        let mut parameters = [args.as_ptr().cast_mut().cast::<c_void>()];
        // SAFETY: the driver copies the arguments during the call, and only as many bytes as the kernel's structure
        // has; the caller vouches for what they say.
        unsafe { sys::cuLaunchKernelEx(&config, function, parameters.as_mut_ptr(), std::ptr::null_mut()) }
            .result()
            .map_err(|failure| refused(launch, failure))
    }

    fn record(
        self: Arc<Self>,
        work: &mut dyn FnMut() -> Result<(), DeviceError>,
    ) -> Result<Option<Box<dyn Recording>>, DeviceError> {
        let graph = self.capture(work)?;
        Ok(Some(Box::new(graph)))
    }

    fn synchronize(&self) -> Result<(), DeviceError> {
        let _turn = self.enter()?;
        // SAFETY: the stream lives as long as `self`.
        unsafe { result::stream::synchronize(self.stream) }.map_err(error)
    }

    fn memory_info(&self) -> Result<(usize, usize), DeviceError> {
        let _turn = self.enter()?;
        result::mem_get_info().map_err(error)
    }
}

/// Recorded launches that run with one call.
pub struct Graph {
    driver: Arc<Driver>,
    exec: sys::CUgraphExec,
}

impl Graph {
    /// Runs them in the driver's stream.
    ///
    /// # Errors
    /// A lost device.
    pub fn launch(&self) -> Result<(), DeviceError> {
        let _turn = self.driver.enter()?;
        // SAFETY: the graph lives as long as `self`, the stream as long as the driver.
        unsafe { result::graph::launch(self.exec, self.driver.stream) }.map_err(error)
    }
}

// SAFETY: the handle is the driver's, which may be used from any thread that has the context current; every method makes
// it current first.
unsafe impl Send for Graph {}

impl Recording for Graph {
    unsafe fn run(&self) -> Result<(), DeviceError> {
        self.launch()
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        if let Ok(_turn) = self.driver.enter() {
            // SAFETY: nothing launches it after this; the driver waits for launches in flight.
            let _ = unsafe { result::graph::exec_destroy(self.exec) };
        }
    }
}
