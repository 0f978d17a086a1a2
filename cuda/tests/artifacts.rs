//! The committed PTX belongs to the committed sources, and errors are what they should be.

use std::fs;
use std::path::Path;

use millpond_cuda::DeviceError;
use millpond_cuda::driver::{Driver, driver_present};
use millpond_cuda::linear::{Activation, STEP_KERNELS, StepKernel};

fn kernels() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels")
}

/// FNV-1a over the sources in the order of their names, as scripts/cuda/source_hash.py computes it.
fn source_hash() -> u64 {
    let mut files: Vec<_> = fs::read_dir(kernels())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "cu" || extension == "cuh"))
        .collect();
    files.sort();
    assert!(files.len() >= 5, "the kernel sources are there");
    files
        .iter()
        .flat_map(|path| fs::read(path).unwrap())
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ byte as u64).wrapping_mul(0x100_0000_01b3))
}

#[test]
fn the_ptx_was_compiled_from_these_sources() {
    for name in ["linear.sm_80.ptx", "linear.sm_90.ptx"] {
        let ptx = fs::read_to_string(kernels().join("ptx").join(name)).unwrap();
        let first = ptx.lines().next().unwrap();
        let expected = format!("// sources {:016x}", source_hash());
        assert_eq!(first, expected, "{name} is stale: run scripts/cuda/build_ptx.sh");
    }
}

#[test]
fn the_ptx_has_every_kernel_that_may_be_chosen() {
    for name in ["linear.sm_80.ptx", "linear.sm_90.ptx"] {
        let ptx = fs::read_to_string(kernels().join("ptx").join(name)).unwrap();
        for activation in [Activation::F32, Activation::Bf16] {
            let exists = |kernel: &&StepKernel| kernel.float || activation == Activation::Bf16;
            for kernel in STEP_KERNELS.iter().filter(exists) {
                let entry = format!(".visible .entry {}(", kernel.name(activation));
                assert!(ptx.contains(&entry), "{name} lacks {entry}");
            }
        }
    }
}

#[test]
fn a_machine_without_a_driver_says_so() {
    match Driver::new(0) {
        Ok(driver) => assert!(driver.processors() > 0),
        Err(error) => assert_eq!(error, DeviceError::NoDriver, "the driver is there: {}", driver_present()),
    }
}

#[test]
fn a_device_that_does_not_exist_is_an_error() {
    let error = Driver::new(1000).err().unwrap();
    assert!(matches!(error, DeviceError::NoDriver | DeviceError::NoDevice(1000)), "{error}");
}
