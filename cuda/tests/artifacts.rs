//! The committed PTX belongs to the committed sources, and errors are what they should be.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use millpond_cuda::driver::{Driver, driver_present};
use millpond_cuda::linear::{Activation, STEP_KERNELS, StepKernel};
use millpond_cuda::{Device, DeviceError};

fn kernels() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels")
}

/// Modules of kernels, and the forms each is compiled to.
const MODULES: [(&str, &[&str]); 3] =
    [("linear", &["sm_80", "sm_90"]), ("matmul", &["sm_80", "sm_90"]), ("model", &["sm_80", "sm_90"])];

/// A module's source and all that it includes, by name.
fn sources(module: &str) -> BTreeMap<String, Vec<u8>> {
    let (mut found, mut open) = (BTreeMap::new(), vec![format!("{module}.cu")]);
    while let Some(name) = open.pop() {
        // The emulator's headers lie elsewhere.
        let Ok(text) = fs::read_to_string(kernels().join(&name)) else { continue };
        let include = |line: &str| Some(line.strip_prefix("#include \"")?.strip_suffix('"')?.to_owned());
        open.extend(text.lines().filter_map(include).filter(|name| !found.contains_key(name)));
        found.insert(name, text.into_bytes());
    }
    assert!(found.len() >= 3, "the sources of {module} are there");
    found
}

/// FNV-1a over the sources in the order of their names, as scripts/cuda/source_hash.py computes it.
fn source_hash(module: &str) -> u64 {
    sources(module)
        .into_values()
        .flatten()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

fn compiled(module: &str) -> impl Iterator<Item = (String, String)> {
    let (_, forms) = MODULES.into_iter().find(|(name, _)| *name == module).unwrap();
    forms.iter().map(move |form| {
        let name = format!("{module}.{form}.ptx");
        let ptx = fs::read_to_string(kernels().join("ptx").join(&name)).unwrap();
        (name, ptx)
    })
}

#[test]
fn the_ptx_was_compiled_from_these_sources() {
    for (module, _) in MODULES {
        for (name, ptx) in compiled(module) {
            let expected = format!("// sources {:016x}", source_hash(module));
            let found = ptx.lines().next().unwrap();
            assert_eq!(found, expected, "{name} is stale: run scripts/cuda/build_ptx.sh");
        }
    }
}

#[test]
fn the_ptx_has_every_kernel_that_may_be_chosen() {
    for (name, ptx) in compiled("linear") {
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
