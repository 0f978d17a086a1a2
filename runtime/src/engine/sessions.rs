//! Sessions: snapshots that have a name.

use super::cache::Snapshot;
use super::session_file::{Session, SessionError};
use super::worker::Worker;

/// Most names; beyond, the one that was given first loses its snapshot's protection.
const MAX_SESSIONS: usize = 64;

impl Worker {
    /// Gives a snapshot a name, and takes the name from the one that had it. One that is pinned is the last to go.
    pub(super) fn name_session(&mut self, name: &str, id: u64, pinned: bool) {
        self.forget(name);
        if self.sessions.len() >= MAX_SESSIONS {
            let (oldest, _) = self.sessions[0].clone();
            self.forget(&oldest);
        }
        if pinned {
            self.cache.pin(id, true);
        }
        self.sessions.push((name.to_owned(), id));
    }

    /// Takes a name away. The snapshot stays in the cache for as long as it is worth it.
    pub(super) fn forget(&mut self, name: &str) -> bool {
        let Some(at) = self.sessions.iter().position(|(other, _)| other == name) else { return false };
        let (_, id) = self.sessions.remove(at);
        if !self.sessions.iter().any(|&(_, other)| other == id) {
            self.cache.pin(id, false);
        }
        true
    }

    /// The state under a name, to be saved by whoever asked.
    pub(super) fn export(&mut self, name: &str) -> Result<Session, SessionError> {
        let unknown = || SessionError::Unknown(name.to_owned());
        let &(_, id) = self.sessions.iter().find(|(other, _)| other == name).ok_or_else(unknown)?;
        let Some((snapshot, tokens)) = self.cache.get(id) else {
            // The cache had no room for it.
            self.forget(name);
            return Err(unknown());
        };
        let failed = |reason: String| SessionError::Engine { name: name.to_owned(), reason };
        let image = self.runner.export(&snapshot.sequence).map_err(|error| failed(error.to_string()))?;
        let image = image.ok_or_else(unknown)?;
        Ok(Session { tokens, image, trail: snapshot.trail.clone(), prefilled: snapshot.prefilled })
    }

    /// Keeps a loaded state under a name.
    pub(super) fn import(&mut self, name: &str, session: Session) -> Result<(), SessionError> {
        let failed = |reason: String| SessionError::Engine { name: name.to_owned(), reason };
        let Session { tokens, image, trail, prefilled } = session;
        let id = match self.cache.at(&tokens) {
            Some(held) => held,
            None => {
                let sequence = self.runner.import(image).map_err(|error| failed(error.to_string()))?;
                let kept = self.insert(&tokens, Snapshot { sequence, prefilled, trail, ahead: None });
                kept.ok_or_else(|| failed("there is no room for it".to_owned()))?
            }
        };
        self.name_session(name, id, true);
        match self.cache.get(id) {
            Some(_) => Ok(()),
            None => Err(failed("the cache's budget is too small for it".to_owned())),
        }
    }
}
