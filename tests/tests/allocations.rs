//! Decoding takes no memory from the system once everything has grown to what it needs.

use std::alloc::System;
use std::sync::Arc;

use millpond::backend::WantLogits;
use millpond::backend::cpu::{Arithmetic, CpuBackend, CpuOptions};
use millpond::load::LoadedModel;
use millpond::par::Team;
use millpond::runner::{BufferOptions, Runner, Sequence, Work};
use millpond::state::PassKind;
use millpond::state::layout::PAGE_POSITIONS;
use millpond::state::memory::KvType;
use millpond_simd::{Isa, Kernels};
use millpond_tests::reference::data;
use millpond_tests::runners::load;
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static MEMORY: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Every so many passes, the queue through which a pass enters the pool takes a new block.
const PASSES_PER_BLOCK: usize = 63;

fn runner(model: &LoadedModel, options: BufferOptions) -> Runner {
    let cpu = CpuOptions {
        kv_type: KvType::F16,
        max_window: options.max_window,
        fold_interval: options.fold_interval,
        arithmetic: Arithmetic::Quantised,
    };
    let spec = Arc::new(model.spec.clone());
    let kernels = Kernels::for_isa(Isa::detect()).expect("the best level");
    let team = Team::new(2).expect("two threads");
    let backend = CpuBackend::new(spec.clone(), Arc::new(model.weights.clone()), kernels, team, cpu)
        .expect("a supported model");
    Runner::new(Box::new(backend), spec, options, 4096)
}

fn step(runner: &mut Runner, sequences: &mut [Sequence; 3], count: usize, token: u32) {
    let tokens = [token];
    let [a, b, c] = sequences;
    let work =
        |sequence| Work { sequence, tokens: &tokens, kind: PassKind::Window, logits: WantLogits::Last };
    let mut all = [work(a), work(b), work(c)];
    runner.step(&mut all[..count]).expect("a step");
    for sequence in &mut sequences[..count] {
        runner.commit(sequence, 1).expect("one pending row");
    }
}

#[test]
fn a_step_allocates_nothing_once_everything_has_grown() {
    for name in ["forms/qwen35-wrapper", "forms/qwen35-moe-wrapper", "forms/qwen3-next-mtp"] {
        let model = load(&data().join(name));
        for count in [1, 3] {
            let options = BufferOptions { stateless_below: Some(16), ..BufferOptions::default() };
            let mut runner = runner(&model, options);
            let mut sequences = [(); 3].map(|()| runner.create().expect("a sequence"));
            // Past several folds and up to the second position of a page: the steps after it need no new one.
            for position in 0..2 * PAGE_POSITIONS + 2 {
                step(&mut runner, &mut sequences, count, (position % 50) as u32);
            }
            let steps = PAGE_POSITIONS - 2;
            let region = Region::new(MEMORY);
            for position in 0..steps {
                step(&mut runner, &mut sequences, count, (position % 50) as u32);
            }
            let change = region.change();
            let taken = change.allocations + change.reallocations;
            assert!(taken <= steps.div_ceil(PASSES_PER_BLOCK), "{name}, {count} sequences: {change:?}");
        }
    }
}
