//! The memory of sequences: what a sequence holds, where it stands, when its log is folded.
//!
//! [`cursor`] is pure policy, [`layout`] says how much memory of which shape a model needs, [`memory`] holds it.
//! None of them computes; the backends do.

pub mod arena;
pub mod cursor;
pub mod layout;
pub mod logs;
pub mod memory;
pub mod snapshot;

pub use cursor::{Cursor, FoldPolicy, PassKind, PassPlan, RewindError, Step};
pub use layout::StateLayout;
pub use snapshot::SequenceImage;
