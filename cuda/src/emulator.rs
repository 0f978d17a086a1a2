//! The kernels on the CPU, thread by thread: a device for tests of their logic where there is no GPU.
//!
//! The system's C++ compiler builds the kernel sources against `emulator/emulator.h` at run time.

use std::alloc::Layout;
use std::collections::HashMap;
use std::ffi::{OsStr, c_int, c_void};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

use libloading::Library;

use crate::device::{Device, DeviceError, Launch};

type Kernel = unsafe extern "C" fn(*const c_void);
type Emulate = unsafe extern "C" fn(Kernel, *const c_void, *const c_int, c_int, usize) -> c_int;

/// Which instructions of the machine the kernels may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Machine {
    /// Compute capability 8.0: per-thread asynchronous copies.
    Sm80,
    /// Compute capability 9.0: bulk copies besides.
    Sm90,
}

/// A CPU that poses as a GPU.
pub struct Emulator {
    library: Library,
    emulate: Emulate,
    /// Blocks by address. Freed ones leave, so that a wrong address in a copy is an error.
    blocks: Mutex<HashMap<u64, Layout>>,
}

impl Emulator {
    /// Compiles the kernels into `directory`. `Ok(None)` where the system has no C++ compiler.
    ///
    /// # Errors
    /// [`DeviceError::Other`] with the compiler's words when they do not compile.
    pub fn build(directory: &Path, machine: Machine) -> Result<Option<Emulator>, DeviceError> {
        let compiler = std::env::var_os("CXX").unwrap_or_else(|| "c++".into());
        if Command::new(&compiler).arg("--version").output().is_err() {
            return Ok(None);
        }
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let hash = source_hash(root).map_err(|error| DeviceError::Other(error.to_string()))?;
        let library: PathBuf = directory.join(format!("millpond-kernels-{machine:?}-{hash:016x}.so"));
        if !library.exists() {
            compile(&compiler, root, machine, &library)?;
        }
        Emulator::load(&library).map(Some)
    }

    fn load(library: &Path) -> Result<Emulator, DeviceError> {
        let failed = |error: libloading::Error| DeviceError::Other(error.to_string());
        // SAFETY: the library was built from this crate's sources; loading it runs no code of its own.
        let library = unsafe { Library::new(library) }.map_err(failed)?;
        // SAFETY: the symbol has this signature in emulator.cpp.
        let emulate = unsafe { *library.get::<Emulate>(b"millpond_emulate\0").map_err(failed)? };
        Ok(Emulator { library, emulate, blocks: Mutex::default() })
    }

    fn blocks(&self) -> MutexGuard<'_, HashMap<u64, Layout>> {
        self.blocks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Builds the kernels. Other processes may build the same at the same time: the finished file takes its name at once.
fn compile(compiler: &OsStr, root: &Path, machine: Machine, library: &Path) -> Result<(), DeviceError> {
    let fresh = library.with_extension(format!("{}.new", std::process::id()));
    let mut command = Command::new(compiler);
    command.args(["-O1", "-std=c++17", "-fPIC", "-shared", "-U_FORTIFY_SOURCE", "-w"]);
    command.arg("-ffp-contract=off");
    if machine == Machine::Sm90 {
        command.arg("-DBULK_COPY");
    }
    command.arg("-I").arg(root.join("emulator"));
    command.arg("-o").arg(&fresh).arg(root.join("emulator/emulator.cpp"));
    let output = command.output().map_err(|error| DeviceError::Other(error.to_string()))?;
    if !output.status.success() {
        return Err(DeviceError::Other(String::from_utf8_lossy(&output.stderr).into_owned()));
    }
    std::fs::rename(&fresh, library).map_err(|error| DeviceError::Other(error.to_string()))
}

/// FNV-1a over everything that is compiled, so that a library is built once for the same sources.
fn source_hash(root: &Path) -> std::io::Result<u64> {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for folder in ["emulator", "kernels"] {
        let entries = std::fs::read_dir(root.join(folder))?.collect::<Result<Vec<_>, _>>()?;
        let mut files: Vec<PathBuf> = entries.into_iter().map(|entry| entry.path()).collect();
        files.retain(|path| path.is_file());
        files.sort();
        for path in files {
            for byte in std::fs::read(path)? {
                hash = (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
            }
        }
    }
    Ok(hash)
}

impl Device for Emulator {
    fn describe(&self) -> String {
        "emulated on the CPU".into()
    }

    fn processors(&self) -> usize {
        4
    }

    fn allocate(&self, bytes: usize) -> Result<u64, DeviceError> {
        let layout =
            Layout::from_size_align(bytes.max(1), 256).map_err(|_| DeviceError::OutOfMemory { bytes })?;
        // SAFETY: the layout is not empty.
        let address = unsafe { std::alloc::alloc(layout) };
        if address.is_null() {
            return Err(DeviceError::OutOfMemory { bytes });
        }
        // NaN, whatever the type: nobody may count on the content.
        // SAFETY: the block was just allocated with this size.
        unsafe { address.write_bytes(0xff, bytes) };
        self.blocks().insert(address as u64, layout);
        Ok(address as u64)
    }

    unsafe fn free(&self, address: u64) {
        if let Some(layout) = self.blocks().remove(&address) {
            // SAFETY: the block was allocated above with this layout, and is no longer listed.
            unsafe { std::alloc::dealloc(address as *mut u8, layout) }
        }
    }

    unsafe fn write(&self, address: u64, data: &[u8]) -> Result<(), DeviceError> {
        // SAFETY: the caller says that the range is ours; device memory is host memory here.
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), address as *mut u8, data.len()) };
        Ok(())
    }

    unsafe fn read(&self, address: u64, data: &mut [u8]) -> Result<(), DeviceError> {
        // SAFETY: as for `write`.
        unsafe { std::ptr::copy_nonoverlapping(address as *const u8, data.as_mut_ptr(), data.len()) };
        Ok(())
    }

    unsafe fn fill(&self, address: u64, bytes: usize, value: u8) -> Result<(), DeviceError> {
        // SAFETY: as for `write`.
        unsafe { (address as *mut u8).write_bytes(value, bytes) };
        Ok(())
    }

    unsafe fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<(), DeviceError> {
        // SAFETY: as for `write`; the caller says that the ranges do not overlap.
        unsafe { std::ptr::copy_nonoverlapping(from as *const u8, to as *mut u8, bytes) };
        Ok(())
    }

    unsafe fn launch(&self, launch: &Launch<'_>, args: &[u8]) -> Result<(), DeviceError> {
        let name = format!("{}\0", launch.kernel);
        // SAFETY: every kernel entry has this signature in an emulated build.
        let kernel = unsafe { self.library.get::<Kernel>(name.as_bytes()) }
            .map_err(|_| DeviceError::NoKernel(launch.kernel.into()))?;
        let grid = launch.grid.map(|size| size as c_int);
        let mut aligned = vec![0_u64; args.len().div_ceil(8)];
        // SAFETY: the vector has at least as many bytes as `args`.
        unsafe { std::ptr::copy_nonoverlapping(args.as_ptr(), aligned.as_mut_ptr().cast(), args.len()) };
        // SAFETY: the caller vouches for the arguments; the emulator keeps its state per thread.
        let status = unsafe {
            (self.emulate)(
                *kernel,
                aligned.as_ptr().cast(),
                grid.as_ptr(),
                launch.threads as c_int,
                launch.shared_bytes as usize,
            )
        };
        match status {
            0 => Ok(()),
            _ => Err(DeviceError::Lost(format!("threads of {} wait for each other", launch.kernel))),
        }
    }

    fn synchronize(&self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn memory_info(&self) -> Result<(usize, usize), DeviceError> {
        let used: usize = self.blocks().values().map(Layout::size).sum();
        Ok((usize::MAX / 2 - used, usize::MAX / 2))
    }
}
