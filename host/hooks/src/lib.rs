//! The three questions the host asks, in plain Rust.
//!
//! How hard is this request (*classify*), which tier should answer it (*route*), is the
//! answer good enough to send (*validate*)? This crate holds the records that carry the
//! questions and answers, the traits that somebody who answers implements, the checks
//! that every answer must pass, and a built-in answerer, so that the host works with no
//! component loaded.
//!
//! It sits at the bottom of the house and knows nothing of WebAssembly, tensors, HTTP,
//! clocks or files. The records are those of `wit/`, field by field; a difference between
//! the two is a bug of this crate.

pub mod answer;
pub mod builtin;
pub mod check;
pub mod fault;
pub mod models;
pub mod policy;
pub mod request;
pub mod route;
pub mod snapshot;

pub use answer::{Amendment, Answer, Assessment, Finding, Finish, Outcome, Verdict};
pub use builtin::BuiltIn;
pub use check::Invalid;
pub use fault::{Fault, FaultKind};
pub use models::{GenerateOptions, Generated, ModelError, Models};
pub use policy::{AnsweredBy, Hook, HookReply, Policies, Session};
pub use request::{
    Attribute, CONVERSATION, Classification, Endpoint, Message, Request, ResponseFormat, Role,
    Task, Value,
};
pub use route::{Decision, DirectAnswer, Plan, Refusal, Rejection, Step, TierKind, TierView};
pub use snapshot::{
    Budget, BudgetUnit, Causes, Device, DeviceKind, Forecast, Health, MetabolicState, Metabolism,
    Origin, Pressure, Profile, Sample, Snapshot, SpeculationHint, Supply, ThrottleReasons,
};
