//! Puts a case to whoever answers: a room with a component in it, or the built-in answers.

use std::sync::Arc;

use homeostat_hooks::{Fault, Hook, HookReply, Policies};

use crate::{Case, Reply};

/// What came of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Asked {
    /// The policy's own answer; a fallback's answer is not the policy's.
    pub reply: Result<Reply, Fault>,
    /// Time of the call, with the making of its instance.
    pub micros: u64,
}

/// Asks in a session of its own, as a request does.
pub fn ask(policies: &dyn Policies, case: &Case) -> Asked {
    fn own<T>(reply: HookReply<T>, wrap: fn(T) -> Reply) -> Asked {
        Asked {
            micros: reply.micros,
            reply: match reply.fault {
                None => Ok(wrap(reply.value)),
                Some(fault) => Err(fault),
            },
        }
    }
    let mut session = policies.begin(
        Arc::new(case.request.clone()),
        Arc::new(case.snapshot.clone()),
    );
    match case.hook {
        Hook::Classify => own(session.classify(), Reply::Classification),
        Hook::Route => own(
            session.route(&case.classification, &case.tiers),
            Reply::Decision,
        ),
        Hook::Validate => own(session.validate(&case.answer), Reply::Verdict),
    }
}
