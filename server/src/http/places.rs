//! Slots, as llama.cpp numbers them: each request has one, so that the state it leaves can be saved under that number.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use millpond::engine::Request;

/// Most numbers given to requests that name none: each stands for a state that is looked after.
const MOST: u32 = 32;
const PREFIX: &str = "slot-";

/// The session that stands for a slot.
pub(crate) fn slot_name(slot: impl std::fmt::Display) -> String {
    format!("{PREFIX}{slot}")
}

/// The slot that a session stands for, if it is one.
pub(crate) fn slot_number(session: &str) -> Option<u32> {
    session.strip_prefix(PREFIX)?.parse().ok()
}

/// The slots of a model under which something runs.
#[derive(Debug, Default)]
pub(super) struct Places(Mutex<BTreeSet<u32>>);

/// A slot under which something runs, until this is dropped.
#[derive(Debug)]
pub(super) struct Place {
    places: Arc<Places>,
    number: u32,
}

impl Places {
    /// The slot of a request: the one it names, or else the first that is free of the `most` that can run. What a request
    /// leaves in a slot that it has not asked for goes first when the cache is short of room.
    pub(super) fn of(self: &Arc<Self>, request: &mut Request, most: usize) -> Option<Place> {
        if let Some(session) = &request.session {
            return self.hold(slot_number(session)?);
        }
        if !request.cache_prompt || request.echo || request.embeddings.is_some() {
            return None;
        }
        let most = MOST.min(u32::try_from(most).unwrap_or(MOST));
        let place = (0..most).find_map(|number| self.hold(number))?;
        request.session = Some(slot_name(place.number));
        request.session_pinned = false;
        Some(place)
    }

    fn hold(self: &Arc<Self>, number: u32) -> Option<Place> {
        let mut used = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        used.insert(number).then(|| Place { places: self.clone(), number })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_get_the_slot_they_name_or_the_first_that_is_free() {
        let places = Arc::new(Places::default());
        let slot = |request: &mut Request| {
            let place = places.of(request, 2);
            (place, request.session.clone(), request.session_pinned)
        };
        let mut named = Request { session: Some(slot_name(0)), ..Request::new(vec![1]) };
        let (zero, session, pinned) = slot(&mut named);
        assert_eq!((session.as_deref(), pinned), (Some("slot-0"), true));
        let (one, session, pinned) = slot(&mut Request::new(vec![1]));
        assert_eq!((session.as_deref(), pinned), (Some("slot-1"), false));
        assert!(zero.is_some() && one.is_some());
        assert!(slot(&mut Request::new(vec![1])).1.is_none(), "no more run than that");
        drop(zero);
        assert_eq!(slot(&mut Request::new(vec![1])).1.as_deref(), Some("slot-0"));
        for mut other in [
            Request { cache_prompt: false, ..Request::new(vec![1]) },
            Request { echo: true, ..Request::new(vec![1]) },
            Request { session: Some("book".to_owned()), ..Request::new(vec![1]) },
        ] {
            assert!(slot(&mut other).0.is_none());
        }
    }
}
