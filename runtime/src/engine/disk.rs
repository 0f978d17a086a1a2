//! The prefix cache's disk tier: snapshots that memory has no room for go to files, and come back when a prompt begins
//! with their tokens.
//!
//! A thread of its own writes and reads, so that no stream waits for a disk but the one that wants what is there. A file is
//! a session's (`session_file.rs`): written beside its place and renamed, with a checksum and the model's fingerprint. One
//! that cannot be read is as good as absent. What is in the folder is known by its tokens from the start on; a file's
//! tokens are compared with the prompt's once more when all of it has been read.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::thread::JoinHandle;
use std::time::SystemTime;

use super::Limits;
use super::cache::Snapshot;
use super::radix::{NodeId, RadixTree};
use super::session_file::{Expected, Session, SessionError, SessionFolder};
use super::worker::Worker;
use crate::model::Model;
use crate::state::cursor::PREFILL_CHUNK;

/// Tokens below which a snapshot is not worth a file: reading the prompt again is as quick.
const LEAST_TOKENS: usize = 128;
/// Jobs that may wait for the thread. Beyond, snapshots are dropped and prompts read again.
const QUEUE: usize = 4;

/// A file of the folder.
#[derive(Debug)]
struct Entry {
    node: NodeId,
    tokens: usize,
    bytes: u64,
    /// Grows with every use: the file with the smallest goes first.
    used: u64,
}

/// What the thread is to do.
enum Job {
    Save { id: u64, name: String, session: Box<Session> },
    Load { id: u64, name: String },
    Delete { name: String },
}

/// What the thread has done.
pub(super) enum Done {
    /// A snapshot has been written, in so many bytes; or not.
    Saved { id: u64, bytes: Option<u64> },
    /// A snapshot has been read; absent where it could not be.
    Loaded { id: u64, session: Option<Box<Session>> },
}

/// Snapshots in a folder.
pub(super) struct DiskTier {
    tree: RadixTree,
    entries: HashMap<u64, Entry>,
    next: u64,
    clock: u64,
    bytes: u64,
    budget: u64,
    /// Files to be deleted when the thread has time for it.
    doomed: Vec<String>,
    jobs: Option<SyncSender<Job>>,
    done: Receiver<Done>,
    thread: Option<JoinHandle<()>>,
}

impl DiskTier {
    /// That of an engine, if its options name a folder. One that cannot be had is done without.
    pub(super) fn of(model: &Arc<Model>, limits: &Arc<Limits>) -> Option<DiskTier> {
        let root = limits.options.cache_dir.as_ref()?;
        DiskTier::open(root, limits.options.cache_dir_budget, model, limits)
            .inspect_err(|error| tracing::warn!(%error, "the prefix cache goes without a disk"))
            .ok()
    }

    /// Snapshots of `model` in the folder `root`, which other models may share. Those that are there already are known at
    /// once.
    fn open(
        root: &Path,
        budget: u64,
        model: &Arc<Model>,
        limits: &Arc<Limits>,
    ) -> Result<DiskTier, std::io::Error> {
        let folder = SessionFolder::new(root.join(format!("{:016x}", model.info.fingerprint)));
        let (jobs, queue) = mpsc::sync_channel(QUEUE);
        let (report, done) = mpsc::channel();
        let mut tier = DiskTier {
            tree: RadixTree::new(),
            entries: HashMap::new(),
            next: 0,
            clock: 0,
            bytes: 0,
            budget,
            doomed: Vec::new(),
            jobs: Some(jobs),
            done,
            thread: None,
        };
        tier.scan(&folder, model, limits);
        let (model, limits) = (model.clone(), limits.clone());
        let work = move || {
            for job in queue {
                let done = run(job, &folder, &model, &limits);
                if done.is_some_and(|done| report.send(done).is_err()) {
                    break;
                }
            }
        };
        tier.thread = Some(std::thread::Builder::new().name("millpond-disk".to_owned()).spawn(work)?);
        Ok(tier)
    }

    /// Takes note of the files that are there, oldest first.
    fn scan(&mut self, folder: &SessionFolder, model: &Model, limits: &Limits) {
        let expected = expected(model, limits);
        let mut found: Vec<_> = folder
            .list()
            .inspect_err(|error| tracing::warn!(%error, "the folder of the prefix cache cannot be read"))
            .unwrap_or_default()
            .into_iter()
            .filter(|info| info.fingerprint == model.info.fingerprint)
            .collect();
        found.sort_by_key(|info| info.modified.unwrap_or(SystemTime::UNIX_EPOCH));
        for info in found {
            match folder.tokens(&info.name, &expected) {
                Ok(tokens) if name_of(&tokens) == info.name => {
                    let id = self.add(&tokens);
                    self.written(id, Some(info.bytes));
                }
                Ok(_) => tracing::warn!(name = info.name, "a file of the prefix cache has another's name"),
                Err(error) => tracing::warn!(%error, "a file of the prefix cache is ignored"),
            }
        }
        self.doomed.drain(..).for_each(|name| delete(folder, &name));
    }

    /// Files known.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Bytes they have.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    fn add(&mut self, tokens: &[u32]) -> u64 {
        let id = self.next;
        self.next += 1;
        self.clock += 1;
        let (node, replaced) = self.tree.insert(tokens, id);
        if let Some(entry) = replaced.and_then(|old| self.entries.remove(&old)) {
            self.bytes -= entry.bytes;
        }
        self.entries.insert(id, Entry { node, tokens: tokens.len(), bytes: 0, used: self.clock });
        id
    }

    /// The file with the longest beginning of a prompt: its number and its tokens.
    pub(super) fn find(&self, prompt: &[u32]) -> Option<(u64, usize)> {
        let most = prompt.len().saturating_sub(1);
        let found = self.tree.find(prompt, 0);
        let whole = |&(depth, id): &(usize, u64)| {
            depth <= most && self.entries.get(&id).is_some_and(|entry| entry.bytes > 0)
        };
        found.prefixes.iter().rev().copied().find(whole).map(|(depth, id)| (id, depth))
    }

    /// Whether a snapshot of these tokens is worth a file: none that is almost as long is there.
    pub(super) fn wants(&self, tokens: &[u32]) -> bool {
        let known = self.tree.find(tokens, 0).prefixes.last().map_or(0, |&(depth, _)| depth);
        tokens.len() >= known + LEAST_TOKENS
    }

    /// The number and the name of a file that is about to be written.
    fn begin(&mut self, session: &Session) -> (u64, String) {
        let name = name_of(&session.tokens);
        self.doomed.retain(|other| *other != name);
        (self.add(&session.tokens), name)
    }

    /// Writes a snapshot, unless too many wait to be written.
    pub(super) fn save(&mut self, session: Session) {
        let (id, name) = self.begin(&session);
        if !self.send(Job::Save { id, name, session: Box::new(session) }) {
            self.remove(id);
        }
    }

    /// Writes a snapshot as soon as those before it are written.
    fn save_in_turn(&mut self, session: Session) {
        let (id, name) = self.begin(&session);
        let job = Job::Save { id, name, session: Box::new(session) };
        if self.jobs.as_ref().is_none_or(|jobs| jobs.send(job).is_err()) {
            self.remove(id);
        }
        while self.done().is_some() {}
    }

    /// Reads a file back; false if it cannot be.
    pub(super) fn load(&mut self, id: u64) -> bool {
        let Some(entry) = self.entries.get_mut(&id) else { return false };
        self.clock += 1;
        entry.used = self.clock;
        let name = name_of(&self.tree.tokens(entry.node));
        self.send(Job::Load { id, name })
    }

    /// What has been done since it was last asked.
    pub(super) fn done(&mut self) -> Option<Done> {
        let done = self.done.try_recv().ok()?;
        match &done {
            Done::Saved { id, bytes } => self.written(*id, *bytes),
            Done::Loaded { id, session } => {
                let own = |session: &Session| {
                    self.entries.get(id).is_some_and(|entry| self.tree.tokens(entry.node) == session.tokens)
                };
                if !session.as_deref().is_some_and(own) {
                    self.remove(*id);
                    return Some(Done::Loaded { id: *id, session: None });
                }
            }
        }
        self.delete_surplus();
        Some(done)
    }

    /// Takes note that a file is there, and gives up others until all fit the budget.
    fn written(&mut self, id: u64, bytes: Option<u64>) {
        match (bytes, self.entries.get_mut(&id)) {
            (Some(bytes), Some(entry)) => {
                entry.bytes = bytes;
                self.bytes += bytes;
            }
            _ => self.remove(id),
        }
        while self.bytes > self.budget {
            let oldest = self.entries.iter().filter(|(_, entry)| entry.bytes > 0);
            let Some((&id, entry)) = oldest.min_by_key(|(_, entry)| (entry.used, entry.tokens)) else {
                break;
            };
            self.doomed.push(name_of(&self.tree.tokens(entry.node)));
            self.remove(id);
        }
    }

    /// Has as many of the surplus files deleted as the thread takes.
    fn delete_surplus(&mut self) {
        while let Some(name) = self.doomed.pop() {
            if !self.send(Job::Delete { name: name.clone() }) {
                self.doomed.push(name);
                return;
            }
        }
    }

    fn remove(&mut self, id: u64) {
        if let Some(entry) = self.entries.remove(&id) {
            self.bytes -= entry.bytes;
            self.tree.remove(entry.node);
        }
    }

    fn send(&self, job: Job) -> bool {
        self.jobs.as_ref().is_some_and(|jobs| jobs.try_send(job).is_ok())
    }
}

impl Drop for DiskTier {
    /// What waits to be written is written, and what is to be deleted deleted.
    fn drop(&mut self) {
        let jobs = self.jobs.take();
        for name in std::mem::take(&mut self.doomed) {
            if jobs.as_ref().is_none_or(|jobs| jobs.send(Job::Delete { name }).is_err()) {
                break;
            }
        }
        drop(jobs);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread of the disk cache ended with a panic");
        }
    }
}

impl Worker {
    /// Writes a snapshot that memory has no room for to a file, if it is worth one.
    pub(super) fn spill(&mut self, tokens: Vec<u32>, snapshot: &Snapshot) {
        let Some(disk) = self.disk.as_mut().filter(|disk| disk.wants(&tokens)) else { return };
        match self.runner.export(&snapshot.sequence) {
            Ok(Some(image)) => {
                let (trail, prefilled) = (snapshot.trail.clone(), snapshot.prefilled);
                disk.save(Session { tokens, image, trail, prefilled });
            }
            Ok(None) => {}
            Err(error) => tracing::warn!(%error, "a snapshot cannot be written"),
        }
    }

    /// Writes what memory holds when the engine stops, shorter beginnings first.
    pub(super) fn spill_all(&mut self) {
        let mut ids = self.cache.ids();
        ids.sort_by_key(|&id| self.cache.get(id).map_or(0, |(snapshot, _)| snapshot.sequence.position()));
        for id in ids {
            let Some((snapshot, tokens)) = self.cache.get(id) else { continue };
            let Some(disk) = self.disk.as_mut().filter(|disk| disk.wants(&tokens)) else { continue };
            let (trail, prefilled) = (snapshot.trail.clone(), snapshot.prefilled);
            match self.runner.export(&snapshot.sequence) {
                Ok(Some(image)) => disk.save_in_turn(Session { tokens, image, trail, prefilled }),
                Ok(None) => {}
                Err(error) => tracing::warn!(%error, "a snapshot cannot be written"),
            }
        }
    }

    /// Lets a stream that stands at `position` of its prompt wait for a file that saves it more of it.
    pub(super) fn fetch(&mut self, index: usize, position: usize) {
        let (stream, Some(disk)) = (&self.running[index], &mut self.disk) else { return };
        if stream.fetched {
            return;
        }
        let found = disk.find(&stream.tokens[..stream.prompt_len()]);
        let exact = self.limits.options.exact_cache;
        let better = |&(_, depth): &(u64, usize)| {
            depth >= position + LEAST_TOKENS && (!exact || depth.is_multiple_of(PREFILL_CHUNK))
        };
        let Some((id, _)) = found.filter(better) else { return };
        let under_way = self.running.iter().any(|other| other.fetching == Some(id));
        if under_way || disk.load(id) {
            let stream = &mut self.running[index];
            (stream.fetching, stream.fetched) = (Some(id), true);
        }
    }

    /// Takes in what has been read from files, and lets those go on that have waited for it.
    pub(super) fn take_fetched(&mut self) {
        while let Some(done) = self.disk.as_mut().and_then(DiskTier::done) {
            let Done::Loaded { id, session } = done else { continue };
            if let Some(session) = session {
                self.readmit(*session);
            }
            for index in 0..self.running.len() {
                if self.running[index].fetching == Some(id) {
                    self.running[index].fetching = None;
                    let stream = self.running[index].id;
                    self.search_again(stream);
                }
            }
            // Only now, so that a snapshot that memory has no room for has served those that waited for it.
            self.keep_to_budget();
        }
    }

    fn readmit(&mut self, session: Session) {
        let Session { tokens, image, trail, prefilled } = session;
        if self.cache.at(&tokens).is_some() {
            return;
        }
        match self.runner.import(image) {
            Ok(sequence) => {
                self.put(&tokens, Snapshot { sequence, prefilled, trail, ahead: None });
            }
            Err(error) => tracing::warn!(%error, "no room for a snapshot from a file"),
        }
    }
}

fn expected<'a>(model: &Model, limits: &'a Limits) -> Expected<'a> {
    Expected {
        layout: &limits.layout,
        fingerprint: model.info.fingerprint,
        hidden: model.spec.hidden,
        context: limits.context,
        vocab: model.spec.vocab,
    }
}

/// Does a job, on the thread.
fn run(job: Job, folder: &SessionFolder, model: &Model, limits: &Limits) -> Option<Done> {
    match job {
        Job::Save { id, name, session } => {
            let saved = folder.save(&name, &session, &limits.layout, model.info.fingerprint);
            let saved = saved.inspect_err(|error| tracing::warn!(%error, "a snapshot was not written"));
            Some(Done::Saved { id, bytes: saved.ok().map(|info| info.bytes) })
        }
        Job::Load { id, name } => {
            let policy = |first| limits.options.buffer.policy(&limits.layout, first);
            let loaded = folder.load(&name, &expected(model, limits), policy);
            let loaded = loaded.inspect_err(|error| {
                tracing::warn!(%error, "a file of the prefix cache is ignored");
                if !matches!(error, SessionError::Unknown(_)) {
                    delete(folder, &name);
                }
            });
            Some(Done::Loaded { id, session: loaded.ok().map(Box::new) })
        }
        Job::Delete { name } => {
            delete(folder, &name);
            None
        }
    }
}

/// Deletes a file, which another process may have deleted.
fn delete(folder: &SessionFolder, name: &str) {
    match folder.delete(name) {
        Ok(()) | Err(SessionError::Unknown(_)) => {}
        Err(error) => tracing::warn!(%error, "a file of the prefix cache stays behind"),
    }
}

/// The name of the file for some tokens. Two that share one replace each other, which the comparison of tokens notices.
fn name_of(tokens: &[u32]) -> String {
    let mut hash = 0xCBF2_9CE4_8422_2325_u64;
    for byte in tokens.iter().flat_map(|token| token.to_le_bytes()) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3);
    }
    format!("{hash:016x}")
}
