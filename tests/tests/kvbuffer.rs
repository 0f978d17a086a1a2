//! The buffer's laws on whole models: a token's bits depend on its position and on what came before it, and on
//! nothing else. Dead memory is NaN throughout.

use std::path::PathBuf;
use std::sync::OnceLock;

use millpond::backend::{Backend, WantLogits};
use millpond::load::LoadedModel;
use millpond::runner::{BufferOptions, Runner, Sequence, Work};
use millpond::state::PassKind;
use millpond::state::memory::StateType;
use millpond_simd::Isa;
use millpond_tests::reference::{data, relative_error};
use millpond_tests::runners::{backend, load, runner, window};
use proptest::prelude::*;

fn dense() -> &'static LoadedModel {
    static MODEL: OnceLock<LoadedModel> = OnceLock::new();
    MODEL.get_or_init(|| load(&golden("qwen35-dense")))
}

fn golden(name: &str) -> PathBuf {
    data().join("golden").join(name)
}

const STATE_TYPES: [StateType; 2] = [StateType::F32, StateType::Bf16];

fn options(fold_interval: usize, stateless_below: usize, state_type: StateType) -> BufferOptions {
    BufferOptions { fold_interval, stateless_below: Some(stateless_below), max_window: 8, state_type }
}

/// A stream of tokens that repeats itself nowhere.
fn stream(seed: u32, len: usize) -> Vec<u32> {
    let mut x = seed.wrapping_mul(2654435761).wrapping_add(12345);
    (0..len)
        .map(|_| {
            x ^= x << 13;
            x ^= x >> 17;
            x ^= x << 5;
            1 + x % 511
        })
        .collect()
}

/// Logits of every row after a prefill of `prefill` tokens, one window of one token at a time: the yardstick.
fn yardstick(runner: &mut Runner, tokens: &[u32], prefill: usize) -> Vec<Vec<f32>> {
    let mut sequence = start(runner, tokens, prefill);
    let mut rows = Vec::new();
    for &token in &tokens[prefill..] {
        rows.push(window(runner, &mut sequence, &[token]));
        runner.commit(&mut sequence, 1).unwrap();
    }
    runner.release(sequence);
    rows
}

fn start(runner: &mut Runner, tokens: &[u32], prefill: usize) -> Sequence {
    let mut sequence = runner.create().unwrap();
    if prefill > 0 {
        runner.prefill(&mut sequence, &tokens[..prefill], 1 << 20, WantLogits::None).unwrap();
    }
    sequence
}

fn bits(values: &[f32]) -> Vec<u32> {
    assert!(values.iter().all(|value| value.is_finite()), "dead memory was read");
    values.iter().map(|value| value.to_bits()).collect()
}

/// What happens to a sequence next.
#[derive(Clone, Debug)]
enum Act {
    /// A window of which the first tokens are the stream's and the others are not; the stream's are accepted.
    Draft { right: usize, wrong: usize },
    /// A window that is rejected whole.
    Abort(usize),
    /// Back by some tokens, as far as the buffer reaches.
    Rewind(usize),
    /// Go on with a copy; the original is used once more and dropped.
    Fork,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        5 => (0usize..=4, 0usize..=4).prop_map(|(right, wrong)| Act::Draft { right, wrong }),
        1 => (1usize..=8).prop_map(Act::Abort),
        1 => (1usize..12).prop_map(Act::Rewind),
        1 => Just(Act::Fork),
    ];
    prop::collection::vec(act, 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Windows of any length, any acceptance, aborts, rewinds and forks leave no trace in the bits.
    #[test]
    fn any_schedule_gives_the_bits_of_plain_decoding(
        interval in prop::sample::select(vec![1usize, 2, 4, 16, 64]),
        stateless in prop::sample::select(vec![0usize, 10, 62]),
        prefill in prop::sample::select(vec![0usize, 1, 5, 63, 64, 70]),
        state_type in prop::sample::select(STATE_TYPES.to_vec()),
        seed in 0u32..1000,
        acts in acts(),
    ) {
        let mut runner = runner(dense(), options(interval, stateless, state_type), 1, Isa::detect());
        let tokens = stream(seed, prefill + 60);
        let expected = yardstick(&mut runner, &tokens, prefill);
        let mut sequence = start(&mut runner, &tokens, prefill);
        for act in acts {
            let at = sequence.position();
            let left = tokens.len() - at;
            match act {
                Act::Draft { right, wrong } => {
                    let right = right.min(left);
                    if right + wrong == 0 {
                        continue;
                    }
                    let mut draft = tokens[at..at + right].to_vec();
                    draft.extend(stream(seed + 77, wrong));
                    let rows = window(&mut runner, &mut sequence, &draft);
                    for (row, logits) in rows.chunks_exact(512).take(right).enumerate() {
                        let same = bits(logits) == bits(&expected[at + row - prefill]);
                        prop_assert!(same, "position {}", at + row);
                    }
                    runner.commit(&mut sequence, right).unwrap();
                }
                Act::Abort(rows) => {
                    window(&mut runner, &mut sequence, &stream(seed + 5, rows));
                    runner.commit(&mut sequence, 0).unwrap();
                }
                Act::Rewind(back) => {
                    let Some(cursor) = sequence.cursor() else { continue };
                    let target = at.saturating_sub(back).max(cursor.oldest()).max(prefill);
                    if target < at {
                        runner.rewind(&mut sequence, target).unwrap();
                    }
                }
                Act::Fork => {
                    let copy = runner.fork(&sequence).unwrap();
                    let mut original = std::mem::replace(&mut sequence, copy);
                    window(&mut runner, &mut original, &stream(seed + 9, 8));
                    runner.commit(&mut original, 8).unwrap();
                    window(&mut runner, &mut original, &stream(seed + 10, 8));
                    runner.release(original);
                }
            }
        }
        runner.release(sequence);
    }

    /// Neighbours in a batch, their order and the number of threads change nothing.
    #[test]
    fn a_batch_gives_each_sequence_its_own_bits(
        interval in prop::sample::select(vec![1usize, 4, 16]),
        prefills in prop::collection::vec(0usize..80, 2..5),
        widths in prop::collection::vec(1usize..5, 2..5),
        threads in 1usize..4,
        state_type in prop::sample::select(STATE_TYPES.to_vec()),
    ) {
        let options = options(interval, 20, state_type);
        let mut alone = runner(dense(), options, 1, Isa::detect());
        let mut batch = runner(dense(), options, threads, Isa::detect());
        let count = prefills.len().min(widths.len());
        let streams: Vec<Vec<u32>> = (0..count).map(|i| stream(i as u32, prefills[i] + 24)).collect();
        let expected: Vec<_> =
            (0..count).map(|i| yardstick(&mut alone, &streams[i], prefills[i])).collect();
        let mut sequences: Vec<Sequence> = (0..count).map(|_| batch.create().unwrap()).collect();
        // All prompts in one pass, then windows of different widths in one pass each.
        let mut work: Vec<Work<'_>> = sequences
            .iter_mut()
            .enumerate()
            .filter(|(i, _)| prefills[*i] > 0)
            .map(|(i, sequence)| Work {
                sequence,
                tokens: &streams[i][..prefills[i]],
                kind: PassKind::Prefill,
                logits: WantLogits::None,
            })
            .collect();
        if !work.is_empty() {
            batch.step(&mut work).unwrap();
        }
        for round in 0..5 {
            let mut work: Vec<Work<'_>> = Vec::new();
            let mut spans = Vec::new();
            for (i, sequence) in sequences.iter_mut().enumerate().rev() {
                let at = sequence.position();
                let end = (at + widths[i]).min(streams[i].len());
                if at < end {
                    spans.push((i, at..end));
                    let (tokens, logits) = (&streams[i][at..end], WantLogits::All);
                    work.push(Work { sequence, tokens, kind: PassKind::Window, logits });
                }
            }
            let logits = batch.step(&mut work).unwrap().logits.clone();
            let mut rows = logits.chunks_exact(512);
            for (i, span) in spans {
                for position in span.clone() {
                    let row = rows.next().unwrap();
                    let same = bits(row) == bits(&expected[i][position - prefills[i]]);
                    prop_assert!(same, "round {}, sequence {}, position {}", round, i, position);
                }
                batch.commit(&mut sequences[i], span.len()).unwrap();
            }
        }
    }
}

#[test]
fn prefill_slices_and_pieces_of_chunks_give_equal_bits() {
    let cases = ["qwen35-dense", "qwen35-real-heads", "qwen3-next"].into_iter();
    for (name, state_type) in cases.flat_map(|name| STATE_TYPES.map(|state_type| (name, state_type))) {
        let model = load(&golden(name));
        let options = BufferOptions { state_type, ..BufferOptions::default() };
        let mut runner = runner(&model, options, 2, Isa::detect());
        let tokens = stream(3, 300);
        let mut whole = runner.create().unwrap();
        let expected = runner.prefill(&mut whole, &tokens, 1 << 20, WantLogits::Last).unwrap().logits.clone();
        for slice in [64, 128, 200, 8, 24, 40] {
            let mut sequence = runner.create().unwrap();
            let got = runner.prefill(&mut sequence, &tokens, slice, WantLogits::Last).unwrap().logits.clone();
            assert_eq!(bits(&got), bits(&expected), "{name}, state in {state_type}, slices of {slice}");
            assert_eq!(sequence.cursor(), whole.cursor(), "slices of {slice}");
            runner.release(sequence);
        }
    }
}

#[test]
fn every_instruction_set_gives_the_same_bits() {
    let tokens = stream(8, 90);
    let cases =
        [("qwen35-dense", StateType::F32), ("qwen35-dense", StateType::Bf16), ("qwen35-moe", StateType::F32)];
    for (name, state_type) in cases {
        let model = load(&golden(name));
        let options = BufferOptions { state_type, stateless_below: Some(20), ..BufferOptions::default() };
        let mut results = Isa::available().into_iter().map(|isa| {
            let mut runner = runner(&model, options, 1, isa);
            let rows = yardstick(&mut runner, &tokens, 70);
            (isa, rows.iter().map(|row| bits(row)).collect::<Vec<_>>())
        });
        let (_, expected) = results.next().unwrap();
        for (isa, rows) in results {
            assert_eq!(rows, expected, "{name}, state in {state_type}, on {isa}");
        }
    }
}

#[test]
fn fold_intervals_differ_by_rounding_only() {
    let tokens = stream(21, 4000);
    let mut plain = runner(dense(), options(1, 0, StateType::F32), 1, Isa::detect());
    let expected = yardstick(&mut plain, &tokens, 0).concat();
    for interval in [2, 7, 16, 64] {
        let mut buffered = runner(dense(), options(interval, 0, StateType::F32), 1, Isa::detect());
        let got = yardstick(&mut buffered, &tokens, 0).concat();
        let error = relative_error(&got, &expected);
        assert!(error < 1e-4, "C = {interval}: {error:e}");
        assert_ne!(got, expected, "C = {interval} takes another path than the plain recurrence");
    }
}

#[test]
fn the_base_is_untouched_between_folds_and_by_aborted_windows() {
    for state_type in STATE_TYPES {
        the_base_is_untouched(state_type);
    }
}

fn the_base_is_untouched(state_type: StateType) {
    let mut cpu = backend(dense(), options(16, 0, state_type), 1, Isa::detect());
    let slot = cpu.create().unwrap();
    let policy = millpond::state::FoldPolicy { interval: 16, phase: 3, stateless: 0, window: 8 };
    let mut cursor = millpond::state::Cursor::new(policy);
    let tokens = stream(4, 80);
    let mut outputs = millpond::backend::Outputs::default();
    let mut base_before: Option<(usize, Vec<u8>)> = None;
    let mut folds = 0;
    while cursor.position() < 64 {
        let accepted = cursor.position() % 3;
        let plan = cursor.plan(4, PassKind::Window);
        let at = cursor.position();
        let segment = millpond::backend::Segment {
            slot,
            tokens: &tokens[at..at + 4],
            plan: &plan,
            logits: WantLogits::None,
        };
        cpu.forward(&[segment], &mut outputs).unwrap();
        cursor.advance(&plan);
        cursor.commit(accepted.max(1)).unwrap();
        let base = cpu.memory(slot).unwrap().base.as_ref();
        let now = base.map(|base| (cursor.base(), base.as_bytes().to_vec()));
        match (&base_before, &now) {
            (Some((before, old)), Some((after, new))) if before == after => assert_eq!(old, new),
            (Some((before, _)), Some((after, _))) => {
                assert!(after > before);
                folds += 1;
            }
            _ => {}
        }
        base_before = now;
    }
    assert!(folds >= 3, "the test saw {folds} folds");
}

#[test]
fn short_sequences_have_no_state_and_long_ones_a_bounded_log() {
    let state = STATE_TYPES.map(short_and_long);
    assert_eq!(state[0], 2 * state[1], "half the bytes");
}

/// Returns the bytes of a state.
fn short_and_long(state_type: StateType) -> usize {
    let model = load(&golden("qwen35-real-heads"));
    let options = BufferOptions { max_window: 1, state_type, ..BufferOptions::default() };
    let mut runner = runner(&model, options, 1, Isa::detect());
    let (state, entry) = (runner.layout().state_bytes(), runner.layout().log_entry_bytes());
    // Arrays of a log start at cache lines.
    let padding = runner.layout().linear.len() * 3 * 64;
    let holds = |bytes: usize, entries: usize| (0..padding).contains(&(bytes - entries * entry));
    let mut sequence = runner.create().unwrap();
    for (at, token) in stream(5, 200).into_iter().enumerate() {
        window(&mut runner, &mut sequence, &[token]);
        runner.commit(&mut sequence, 1).unwrap();
        let usage = runner.usage(&sequence).unwrap();
        if at + 1 < runner.layout().break_even() {
            assert_eq!(usage.base, 0, "a base at {at}");
            assert!(holds(usage.log, (at + 1).next_multiple_of(8)), "{} at {at}", usage.log);
        } else if sequence.cursor().unwrap().base() > runner.layout().break_even() + 16 {
            assert_eq!(usage.base, state, "at {at}");
            assert!(holds(usage.log, 16 + 2), "{} at {at}", usage.log);
        }
    }
    assert!(sequence.cursor().unwrap().base() > 0);
    let short = 40 * entry;
    let full = state / state_type.bytes() * 4;
    assert!(short * 100 <= full * 66, "40 tokens take {short} bytes of log for {full} of state");
    state
}
