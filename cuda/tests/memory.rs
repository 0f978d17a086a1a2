//! Device memory comes back: a thousand layers' worth of streams leave nothing behind.
//!
//! A file of its own, so that no other test allocates meanwhile.

#[allow(dead_code, reason = "shared with the other tests, which use all of it")]
mod common;

use common::{Random, Rig, Tokens, Weights, devices, options, spec};
use millpond::state::{Cursor, FoldPolicy, PassKind};
use millpond_cuda::linear::Activation;

#[test]
fn memory_is_back_to_the_baseline_after_a_thousand_streams() {
    let mut random = Random::new(1);
    let spec = spec(1, 1, 32, 32);
    let weights = Weights::random(&spec, &mut random);
    let tokens = Tokens::random(&spec, 2, &mut random);
    for (name, device) in devices() {
        let stream = || {
            let mut rig = Rig::new(device, &spec, options(Activation::Bf16, 2), &weights);
            let policy = FoldPolicy { interval: 1, phase: 0, stateless: 0, window: 8 };
            let mut cursor = Cursor::new(policy);
            rig.append(1, &mut cursor, &tokens, 0, 2, PassKind::Window);
        };
        // The first loads kernels, which stay.
        stream();
        let before = device.memory_info().unwrap();
        for _ in 0..1000 {
            stream();
        }
        assert_eq!(device.memory_info().unwrap(), before, "{name}");
    }
}
