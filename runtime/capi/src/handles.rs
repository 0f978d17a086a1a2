//! What hosts hold. A handle is a number that is given out once and never again, dressed as a pointer so that C compilers
//! tell kinds apart. It is looked up in a table, never followed; so no use of it, however late, touches freed memory. The
//! table is the price: the one piece of state that all users in a process share.

use std::collections::HashMap;
use std::ptr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use millpond::engine::Engine;
use millpond::model::Model;

use crate::failure::{Failure, Status};
use crate::generation::Running;

/// Weights and tokenizer of a model.
#[derive(Debug)]
pub struct ModelHandle {
    _opaque: [u8; 0],
}

/// Threads that run requests for a model.
#[derive(Debug)]
pub struct EngineHandle {
    _opaque: [u8; 0],
}

/// A request under way.
#[derive(Debug)]
pub struct GenerationHandle {
    _opaque: [u8; 0],
}

/// What the table holds.
pub(crate) enum Object {
    Model(Arc<Model>),
    Engine(Arc<Engine>),
    Generation(Arc<Running>),
}

#[derive(Default)]
struct Table {
    given: usize,
    live: HashMap<usize, Object>,
}

/// The table. Nothing panics while it is locked.
fn table() -> MutexGuard<'static, Table> {
    static TABLE: OnceLock<Mutex<Table>> = OnceLock::new();
    TABLE.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner)
}

fn insert(object: Object) -> Result<usize, Failure> {
    let mut table = table();
    // Multiples of 16: such numbers look like addresses to checkers of alignment, and are so low that none is one.
    let next = table.given.checked_add(16).ok_or_else(|| Failure::new(Status::Internal, "out of handles"))?;
    table.given = next;
    table.live.insert(next, object);
    Ok(next)
}

fn invalid(kind: &str) -> Failure {
    Failure::new(Status::InvalidHandle, format!("this is no {kind}, or it has been freed"))
}

/// A kind of object that hosts hold by a handle.
pub(crate) trait Held: Sized {
    /// What its handles point to, as far as C compilers know.
    type Opaque;
    /// Its name in messages.
    const KIND: &'static str;
    /// For the table.
    fn wrap(object: Arc<Self>) -> Object;
    /// From the table, if it is of this kind.
    fn unwrap(object: &Object) -> Option<&Arc<Self>>;
}

macro_rules! held {
    ($object:ty, $opaque:ty, $variant:ident, $kind:literal) => {
        impl Held for $object {
            type Opaque = $opaque;
            const KIND: &'static str = $kind;
            fn wrap(object: Arc<Self>) -> Object {
                Object::$variant(object)
            }
            fn unwrap(object: &Object) -> Option<&Arc<Self>> {
                match object {
                    Object::$variant(object) => Some(object),
                    _ => None,
                }
            }
        }
    };
}

held!(Model, ModelHandle, Model, "model");
held!(Engine, EngineHandle, Engine, "engine");
held!(Running, GenerationHandle, Generation, "generation");

/// A new handle.
pub(crate) fn give<T: Held>(object: Arc<T>) -> Result<*mut T::Opaque, Failure> {
    insert(T::wrap(object)).map(ptr::without_provenance_mut)
}

/// What a handle stands for.
pub(crate) fn get<T: Held>(handle: *const T::Opaque) -> Result<Arc<T>, Failure> {
    if handle.is_null() {
        return Err(Failure::new(Status::NullPointer, format!("{} is null", T::KIND)));
    }
    let table = table();
    table.live.get(&handle.addr()).and_then(T::unwrap).cloned().ok_or_else(|| invalid(T::KIND))
}

/// Takes a handle back. Null is no handle, and taking it back is no mistake.
pub(crate) fn take<T: Held>(handle: *mut T::Opaque) -> Result<Option<Arc<T>>, Failure> {
    if handle.is_null() {
        return Ok(None);
    }
    let object = get::<T>(handle)?;
    // The object must not be dropped under the lock: an engine waits for its thread. It is not: `object` lives on.
    match table().live.remove(&handle.addr()) {
        Some(_) => Ok(Some(object)),
        None => Err(invalid(T::KIND)), // somebody else was faster
    }
}
