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

/// Rounds of a page each, in one of which no step may allocate.
const ROUNDS: usize = 30;

fn runner(model: &LoadedModel, options: BufferOptions) -> Runner {
    let cpu = CpuOptions {
        kv_type: KvType::F16,
        state_type: options.state_type,
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
            // Which thread comes to which work, and what it has to grow for it, is not the same in every step. In the
            // end all have grown. The first two positions of a page take a page; folds come in every round.
            let settled = (0..ROUNDS).any(|_| {
                (0..2).for_each(|position| step(&mut runner, &mut sequences, count, position));
                let region = Region::new(MEMORY);
                for position in 2..PAGE_POSITIONS {
                    step(&mut runner, &mut sequences, count, (position % 50) as u32);
                }
                let change = region.change();
                change.allocations + change.reallocations == 0
            });
            assert!(settled, "{name}, {count} sequences: a step allocates in every of {ROUNDS} rounds");
        }
    }
}
