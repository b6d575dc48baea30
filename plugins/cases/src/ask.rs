//! Puts a case to whoever answers: a room with a component in it, or the built-in answers.

use std::sync::Arc;

use homeostat_hooks::{AnsweredBy, Hook, HookReply, Policies};

use crate::{Case, Reply, ToldModels};

/// What came of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Asked {
    /// The policy's own answer, or what it proposed before its time was up; a fallback's
    /// answer is not the policy's.
    pub reply: Reply,
    /// Time of the call, with the making of its instance.
    pub micros: u64,
    /// What the policy asked the models, in order.
    pub questions: Vec<String>,
}

/// Asks in a session of its own, as a request does. `models` are those of the room, which
/// answer as the case tells.
pub fn ask(policies: &dyn Policies, models: &ToldModels, case: &Case) -> Asked {
    fn own<T>(reply: HookReply<T>, wrap: fn(T) -> Reply) -> (Reply, u64) {
        let proposed = matches!(reply.by, AnsweredBy::Component { proposed: true, .. });
        let own = match reply.fault {
            Some(fault) if !proposed => Reply::Error(fault.to_string()),
            _ => wrap(reply.value),
        };
        (own, reply.micros)
    }
    models.tell(&case.models);
    let mut session = policies.begin(
        Arc::new(case.request.clone()),
        Arc::new(case.snapshot.clone()),
    );
    let (reply, micros) = match case.hook {
        Hook::Classify => own(session.classify(), Reply::Classification),
        Hook::Route => own(
            session.route(&case.classification, &case.tiers),
            Reply::Decision,
        ),
        Hook::Validate => own(session.validate(&case.answer), Reply::Verdict),
    };
    Asked {
        reply,
        micros,
        questions: models.questions(),
    }
}
