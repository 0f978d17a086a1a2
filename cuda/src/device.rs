//! What the backend asks of a device: memory, copies, launches. Errors are typed and nothing panics.

use std::sync::Arc;

/// What can go wrong on a device.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// The machine has no CUDA driver.
    #[error("no CUDA driver found")]
    NoDriver,
    /// The driver sees no GPU, or not the one asked for.
    #[error("no CUDA device {0} found")]
    NoDevice(usize),
    /// The driver is too old for the kernels.
    #[error("the CUDA driver supports CUDA {found}, at least {needed} is needed")]
    OldDriver {
        /// What the driver supports.
        found: String,
        /// What the kernels need.
        needed: &'static str,
    },
    /// The GPU is too old for the kernels.
    #[error("{name} has compute capability {major}.{minor}, at least 8.0 is needed")]
    OldDevice {
        /// Name of the GPU.
        name: String,
        /// Its compute capability.
        major: i32,
        /// Its compute capability.
        minor: i32,
    },
    /// The device has no room.
    #[error("the device has no room for {bytes} bytes more")]
    OutOfMemory {
        /// Bytes asked for.
        bytes: usize,
    },
    /// The device does not answer any more; everything on it is lost.
    #[error("the device was lost: {0}")]
    Lost(String),
    /// A copy beyond the ends of a block of memory.
    #[error("a copy of {bytes} bytes at {offset} does not fit memory of {size}")]
    Range {
        /// Where it starts.
        offset: usize,
        /// Its length.
        bytes: usize,
        /// The memory's length.
        size: usize,
    },
    /// A kernel that the compiled kernels do not contain.
    #[error("no kernel named {0}")]
    NoKernel(String),
    /// A launch that the driver refused.
    #[error("{kernel} with {grid:?} blocks of {threads} threads and {shared_bytes} bytes: {reason}")]
    Launch {
        /// The kernel.
        kernel: String,
        /// Blocks.
        grid: [u32; 3],
        /// Threads of a block.
        threads: u32,
        /// Bytes of shared memory of a block.
        shared_bytes: u32,
        /// What the driver said.
        reason: String,
    },
    /// Anything else.
    #[error("{0}")]
    Other(String),
}

/// How a kernel is launched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launch<'a> {
    /// Its name.
    pub kernel: &'a str,
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub threads: u32,
    /// Bytes of shared memory of a block.
    pub shared_bytes: u32,
    /// Whether it may start before the kernel before it in the stream has ended. Up to its own
    /// `wait_for_previous_kernel` it may then read only what kernels further back have written.
    pub overlaps: bool,
}

/// Launches that were recorded.
pub trait Recording: Send {
    /// Runs them again, with the arguments they were recorded with.
    ///
    /// # Safety
    /// Every address in their arguments is still good for what the kernels do there.
    ///
    /// # Errors
    /// A lost device.
    unsafe fn run(&self) -> Result<(), DeviceError>;
}

/// A device with one stream: launches and copies happen in the order in which they are asked for.
pub trait Device: Send + Sync {
    /// Its name and what it is, for people.
    fn describe(&self) -> String;

    /// Multiprocessors to keep busy.
    fn processors(&self) -> usize;

    /// Allocates `bytes` bytes, 256-byte aligned; their content is undefined. See [`Memory::new`].
    ///
    /// # Errors
    /// [`DeviceError::OutOfMemory`], or a lost device.
    fn allocate(&self, bytes: usize) -> Result<u64, DeviceError>;

    /// Frees what [`Device::allocate`] gave.
    ///
    /// # Safety
    /// `address` came from this device, was not freed before, and nothing in flight uses it.
    unsafe fn free(&self, address: u64);

    /// Copies from the host and waits for it.
    ///
    /// # Safety
    /// `address .. address + data.len()` lies in memory of this device.
    ///
    /// # Errors
    /// A lost device.
    unsafe fn write(&self, address: u64, data: &[u8]) -> Result<(), DeviceError>;

    /// Copies to the host after everything before it in the stream.
    ///
    /// # Safety
    /// `address .. address + data.len()` lies in memory of this device.
    ///
    /// # Errors
    /// A lost device.
    unsafe fn read(&self, address: u64, data: &mut [u8]) -> Result<(), DeviceError>;

    /// Sets `bytes` bytes to `value`, in stream order.
    ///
    /// # Safety
    /// `address .. address + bytes` lies in memory of this device.
    ///
    /// # Errors
    /// A lost device.
    unsafe fn fill(&self, address: u64, bytes: usize, value: u8) -> Result<(), DeviceError>;

    /// Copies within the device, in stream order.
    ///
    /// # Safety
    /// Both ranges lie in memory of this device and do not overlap.
    ///
    /// # Errors
    /// A lost device.
    unsafe fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<(), DeviceError>;

    /// Launches a kernel whose only argument is the structure with the bytes `args`.
    ///
    /// # Safety
    /// `args` has the bytes of the kernel's structure, and every address in it is good for what the kernel does there
    /// until the launch has ended.
    ///
    /// # Errors
    /// [`DeviceError::NoKernel`], or a lost device.
    unsafe fn launch(&self, launch: &Launch<'_>, args: &[u8]) -> Result<(), DeviceError>;

    /// Records the launches of `work` instead of running them. `None`, without having called it, from a device that
    /// cannot.
    ///
    /// # Errors
    /// Those of `work` and of the device.
    fn record(
        self: Arc<Self>,
        work: &mut dyn FnMut() -> Result<(), DeviceError>,
    ) -> Result<Option<Box<dyn Recording>>, DeviceError> {
        let _ = work;
        Ok(None)
    }

    /// Waits until everything asked for has happened.
    ///
    /// # Errors
    /// A lost device; errors of earlier launches show here.
    fn synchronize(&self) -> Result<(), DeviceError>;

    /// Free and total bytes.
    ///
    /// # Errors
    /// A lost device.
    fn memory_info(&self) -> Result<(usize, usize), DeviceError>;
}

/// A number type that may be copied to and from a device as bytes.
///
/// # Safety
/// The type has no padding and every pattern of bits is a value of it.
pub unsafe trait Plain: Copy + 'static {}

// SAFETY: plain numbers.
unsafe impl Plain for u8 {}
// SAFETY: plain numbers.
unsafe impl Plain for u16 {}
// SAFETY: plain numbers.
unsafe impl Plain for i32 {}
// SAFETY: plain numbers.
unsafe impl Plain for u32 {}
// SAFETY: plain numbers.
unsafe impl Plain for u64 {}
// SAFETY: plain numbers.
unsafe impl Plain for f32 {}
// SAFETY: a transparent wrapper of a u16.
unsafe impl Plain for half::bf16 {}
// SAFETY: a transparent wrapper of a u16.
unsafe impl Plain for half::f16 {}

/// The bytes of plain values.
pub fn bytes_of<T: Plain>(values: &[T]) -> &[u8] {
    // SAFETY: `Plain` types have no padding, and the length is that of the slice.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}

fn bytes_of_mut<T: Plain>(values: &mut [T]) -> &mut [u8] {
    // SAFETY: `Plain` types have no padding and take any bits, and the length is that of the slice.
    unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast(), size_of_val(values)) }
}

/// A block of device memory, freed when dropped.
pub struct Memory {
    device: Arc<dyn Device>,
    address: u64,
    bytes: usize,
}

impl Memory {
    /// Undefined content. An empty block takes no memory.
    ///
    /// # Errors
    /// As for [`Device::allocate`].
    pub fn new(device: &Arc<dyn Device>, bytes: usize) -> Result<Memory, DeviceError> {
        let address = if bytes == 0 { 0 } else { device.allocate(bytes)? };
        Ok(Memory { device: device.clone(), address, bytes })
    }

    /// Filled with bytes of one value.
    ///
    /// # Errors
    /// As for [`Device::allocate`].
    pub fn filled(device: &Arc<dyn Device>, bytes: usize, value: u8) -> Result<Memory, DeviceError> {
        let mut memory = Memory::new(device, bytes)?;
        memory.fill(value)?;
        Ok(memory)
    }

    /// A copy of host values.
    ///
    /// # Errors
    /// As for [`Device::allocate`].
    pub fn of<T: Plain>(device: &Arc<dyn Device>, values: &[T]) -> Result<Memory, DeviceError> {
        let mut memory = Memory::new(device, size_of_val(values))?;
        memory.write(0, values)?;
        Ok(memory)
    }

    /// Where it starts on the device.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Its length.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    fn check(&self, offset: usize, bytes: usize) -> Result<(), DeviceError> {
        match offset.checked_add(bytes) {
            Some(end) if end <= self.bytes => Ok(()),
            _ => Err(DeviceError::Range { offset, bytes, size: self.bytes }),
        }
    }

    /// Writes host values at a byte offset.
    ///
    /// # Errors
    /// [`DeviceError::Range`], or a lost device.
    pub fn write<T: Plain>(&mut self, offset: usize, values: &[T]) -> Result<(), DeviceError> {
        self.check(offset, size_of_val(values))?;
        // SAFETY: the range was checked.
        unsafe { self.device.write(self.address + offset as u64, bytes_of(values)) }
    }

    /// Reads into host values from a byte offset.
    ///
    /// # Errors
    /// [`DeviceError::Range`], or a lost device.
    pub fn read<T: Plain>(&self, offset: usize, values: &mut [T]) -> Result<(), DeviceError> {
        self.check(offset, size_of_val(values))?;
        // SAFETY: the range was checked.
        unsafe { self.device.read(self.address + offset as u64, bytes_of_mut(values)) }
    }

    /// Copies `bytes` bytes of another block to a byte offset.
    ///
    /// # Errors
    /// [`DeviceError::Range`], or a lost device.
    pub fn copy_from(
        &mut self,
        offset: usize,
        from: &Memory,
        from_offset: usize,
        bytes: usize,
    ) -> Result<(), DeviceError> {
        self.check(offset, bytes)?;
        from.check(from_offset, bytes)?;
        // SAFETY: both ranges were checked, and blocks do not overlap.
        unsafe { self.device.copy(from.address + from_offset as u64, self.address + offset as u64, bytes) }
    }

    /// Copies a part of this block to another.
    ///
    /// # Errors
    /// [`DeviceError::Range`], also for parts that overlap, or a lost device.
    pub fn copy_within(&mut self, from: usize, to: usize, bytes: usize) -> Result<(), DeviceError> {
        self.check(from, bytes)?;
        self.check(to, bytes)?;
        if from < to + bytes && to < from + bytes {
            return Err(DeviceError::Range { offset: to, bytes, size: self.bytes });
        }
        // SAFETY: both ranges were checked, and they do not overlap.
        unsafe { self.device.copy(self.address + from as u64, self.address + to as u64, bytes) }
    }

    /// Sets every byte.
    ///
    /// # Errors
    /// A lost device.
    pub fn fill(&mut self, value: u8) -> Result<(), DeviceError> {
        // SAFETY: the range is the whole block.
        unsafe { self.device.fill(self.address, self.bytes, value) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if self.bytes > 0 {
            // SAFETY: the address came from this device, and only this block frees it. The device frees in stream
            // order or after waiting, so that launches in flight are done with it.
            unsafe { self.device.free(self.address) }
        }
    }
}

impl std::fmt::Debug for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Memory({:#x}, {} bytes)", self.address, self.bytes)
    }
}
