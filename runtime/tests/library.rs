//! The library as a host uses it: what may cross threads, several engines, loading that is watched, sessions.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use millpond::conversation::Conversation;
use millpond::engine::{
    Engine, EngineError, EngineHandle, EngineOptions, Event, FinishReason, Generation, Request, SessionError,
    Stats,
};
use millpond::model::{LoadError, LoadOptions, Model, ModelError, Progress};
use millpond::sample::SamplingParams;
use millpond::session::{Session, TurnError};
use millpond::text::{ChatTemplate, Tokenizer};

const KING: &str = "The king looked at the dragon and said";

fn built_in() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../server/assets/delta-48m-Q4_K_M.gguf")
}

fn load() -> Arc<Model> {
    Model::load(&built_in(), &LoadOptions::default()).unwrap()
}

fn start(model: &Arc<Model>, session_dir: Option<PathBuf>) -> Engine {
    let options = EngineOptions { threads: 1, context: 512, session_dir, ..EngineOptions::default() };
    Engine::start(model.clone(), options).unwrap()
}

fn greedy(max_tokens: usize) -> Request {
    Request {
        sampling: SamplingParams::greedy(),
        max_tokens: Some(max_tokens),
        ignore_eos: true,
        ..Request::default()
    }
}

fn answer(engine: &Engine, prompt: &str, max_tokens: usize) -> String {
    let tokenizer = engine.handle().model().tokenizer.clone().unwrap();
    let prompt = tokenizer.encode(prompt, false).unwrap();
    let mut whole = String::new();
    for event in engine.handle().submit(Request { prompt, ..greedy(max_tokens) }).unwrap() {
        match event {
            Event::Token { text, .. } | Event::Done { text, .. } => whole.push_str(&text),
            Event::Error(error) => panic!("{error}"),
            _ => {}
        }
    }
    whole
}

#[test]
fn what_hosts_share_may_cross_threads() {
    fn shared<T: Send + Sync + 'static>() {}
    shared::<Arc<Model>>();
    shared::<Engine>();
    shared::<EngineHandle>();
    shared::<EngineOptions>();
    shared::<Generation>();
    shared::<Request>();
    shared::<Event>();
    shared::<Stats>();
    shared::<Session>();
    shared::<Conversation>();
    shared::<LoadOptions>();
    shared::<Tokenizer>();
    shared::<ChatTemplate>();
    shared::<ModelError>();
    shared::<EngineError>();
    shared::<SessionError>();
    shared::<TurnError>();
}

#[test]
fn engines_in_one_process_do_not_know_of_each_other() {
    let (model, other) = (load(), load());
    let alone = answer(&start(&model, None), KING, 12);
    let engines = [start(&model, None), start(&model, None), start(&other, None)];
    drop(model); // its engines keep it
    std::thread::scope(|scope| {
        let answers: Vec<_> = engines.iter().map(|engine| scope.spawn(|| answer(engine, KING, 12))).collect();
        for answer in answers {
            assert_eq!(answer.join().unwrap(), alone);
        }
    });
    let [first, second, _third] = engines;
    drop(first);
    assert_eq!(answer(&second, KING, 12), alone);
    assert_eq!(second.handle().stats().completed, 2);
}

#[test]
fn loading_says_how_far_it_is() {
    let size = std::fs::metadata(built_in()).unwrap().len();
    for (no_mmap, preload) in [(false, false), (false, true), (true, false)] {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let notes = seen.clone();
        let progress = Progress::new(move |loaded| {
            notes.lock().unwrap().push((loaded.done, loaded.total));
            ControlFlow::Continue(())
        });
        let options = LoadOptions { no_mmap, preload, progress: Some(progress), ..LoadOptions::default() };
        Model::load(&built_in(), &options).unwrap();
        let seen = seen.lock().unwrap();
        assert!(seen.is_sorted() && seen.iter().all(|&(_, total)| total == size), "{seen:?}");
        assert_eq!(seen.last(), Some(&(size, size)));
        let steps = if no_mmap || preload { size.div_ceil(16 << 20) } else { 1 };
        assert_eq!(seen.len() as u64, steps);
    }
}

#[test]
fn loading_is_given_up_when_the_host_says_so() {
    for (no_mmap, preload) in [(false, false), (false, true), (true, false)] {
        let progress = Some(Progress::new(|_| ControlFlow::Break(())));
        let options = LoadOptions { no_mmap, preload, progress, ..LoadOptions::default() };
        let error = Model::load(&built_in(), &options).unwrap_err();
        assert!(matches!(error, ModelError::Load(LoadError::Cancelled)), "{error}");
    }
}

#[test]
fn a_session_grows_and_is_restored_to_its_last_token() {
    let folder = tempfile::tempdir().unwrap();
    let model = load();
    let engine = start(&model, Some(folder.path().to_owned()));
    let mut session = Session::new(&engine.handle(), "tale");
    session.push(KING).unwrap();
    let read = session.tokens().len();
    let first = session.generate(greedy(7)).unwrap().text().unwrap();
    assert_eq!(session.tokens().len(), read + 7);
    assert_eq!(session.text(), format!("{KING}{first}"));
    assert_eq!(first, answer(&start(&model, None), KING, 7));
    session.push(" Then").unwrap();
    let saved = session.save("tale-1").unwrap();
    assert_eq!(saved.tokens, session.tokens().len());
    drop(engine);

    let engine = start(&model, Some(folder.path().to_owned()));
    let mut restored = Session::restore(&engine.handle(), "tale", "tale-1").unwrap();
    assert_eq!(restored.tokens(), session.tokens());
    let mut used = None;
    for event in restored.generate(greedy(5)).unwrap() {
        if let Event::Done { usage, .. } = event {
            used = Some(usage);
        }
    }
    let used = used.unwrap();
    assert_eq!((used.prompt_tokens, used.cached_tokens + 1), (saved.tokens, saved.tokens), "read once");
    // Another answer to the same beginning.
    restored.truncate(read);
    assert_eq!(restored.generate(greedy(7)).unwrap().text().unwrap(), first);
    restored.release().unwrap();
    assert!(matches!(Session::restore(&engine.handle(), "tale", "none"), Err(SessionError::Unknown(_))));
}

#[test]
fn an_answer_that_is_dropped_leaves_what_was_read() {
    let engine = start(&load(), None);
    let mut session = Session::new(&engine.handle(), "cut");
    assert!(
        matches!(session.generate(greedy(1)), Err(TurnError::Submit(_))),
        "there is nothing to go on from"
    );
    session.push(KING).unwrap();
    let read = session.tokens().len();
    let mut answer = session.generate(greedy(300)).unwrap();
    let mut tokens = 0;
    while tokens < 3 {
        tokens += usize::from(matches!(answer.next(), Some(Event::Token { .. })));
    }
    answer.generation().cancel();
    drop(answer);
    assert_eq!(session.tokens().len(), read + 3);
}

#[test]
fn a_conversation_keeps_what_was_said() {
    let engine = start(&load(), None);
    let mut talk = Conversation::new(&engine.handle()).unwrap();
    talk.system("You are a miller.");
    let answer = talk.ask("Good morning", greedy(6)).unwrap().text().unwrap();
    let said =
        |talk: &Conversation, index: usize| talk.messages()[index]["content"].as_str().map(str::to_owned);
    assert_eq!(talk.messages().len(), 3);
    assert_eq!(said(&talk, 2), Some(answer));
    // Cut off: what came so far counts.
    let mut reply = talk.ask("And then?", greedy(300)).unwrap();
    let piece = reply.next().unwrap().unwrap();
    reply.generation().cancel();
    drop(reply);
    assert_eq!(said(&talk, 4), Some(piece));
    // The same question again gets another answer in its place.
    talk.truncate(4);
    talk.answer(greedy(4)).unwrap().text().unwrap();
    assert_eq!(talk.messages().len(), 5);
    // A refused question is not part of it.
    let long = "word ".repeat(600);
    assert!(matches!(talk.ask(&long, greedy(4)), Err(TurnError::Submit(_))));
    assert_eq!(talk.messages().len(), 5);
}

#[test]
fn a_generation_is_cancelled_from_another_thread() {
    let engine = start(&load(), None);
    let tokenizer = engine.handle().model().tokenizer.clone().unwrap();
    let prompt = tokenizer.encode(KING, false).unwrap();
    let generation = Arc::new(engine.handle().submit(Request { prompt, ..greedy(400) }).unwrap());
    let other = generation.clone();
    std::thread::spawn(move || other.cancel()).join().unwrap();
    let mut reason = None;
    while let Some(event) = generation.recv() {
        if let Event::Done { reason: said, .. } = event {
            reason = Some(said);
        }
    }
    assert_eq!(reason, Some(FinishReason::Cancelled));
}
