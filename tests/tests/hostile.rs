//! Policies that misbehave, components that are none, and swaps in a storm: whatever
//! comes, every request is answered, the neighbours are not disturbed and the process
//! stays as it was.
//!
//! No test here measures how fast something is. Deadlines are short where a guest never
//! ends, and long where it works; nothing depends on the load of the machine.

#[path = "hostile/bytes.rs"]
mod bytes;
#[path = "hostile/folder.rs"]
mod folder;
#[path = "hostile/guests.rs"]
mod guests;
#[path = "hostile/neighbours.rs"]
mod neighbours;
#[path = "hostile/swaps.rs"]
mod swaps;

use homeostat_hooks::{AnsweredBy, HookReply};
use homeostat_policy::LimitChanges;

/// Limits of a guest that never ends: short, so that the tests do.
fn impatient() -> LimitChanges {
    LimitChanges {
        deadline_ms: Some(150),
        ..LimitChanges::default()
    }
}

/// Limits of a guest that ends by itself, however busy the machine is.
fn patient() -> LimitChanges {
    LimitChanges {
        deadline_ms: Some(120_000),
        ..LimitChanges::default()
    }
}

/// The component itself answered, in time and without a fault.
fn is_component<T>(reply: &HookReply<T>) -> bool {
    reply.fault.is_none()
        && matches!(
            &reply.by,
            AnsweredBy::Component {
                proposed: false,
                ..
            }
        )
}
