//! Write Homeostat policies in Rust.
//!
//! A policy is a type that implements [`Classifier`], [`Router`] or [`Validator`], and one
//! line that exports it:
//!
//! ```
//! use homeostat_sdk::*;
//!
//! struct Smallest;
//!
//! impl Router for Smallest {
//!     fn route(_: &Request, _: &Classification, tiers: &[Tier], _: &Snapshot) -> Result<Decision> {
//!         let tier = tiers.iter().find(|t| t.ready).ok_or("no tier is ready")?;
//!         Ok(plan([tier.id.as_str()], "always the smallest"))
//!     }
//! }
//!
//! export_router!(Smallest);
//! ```
//!
//! The records are those of `homeostat-hooks`: the host and a policy speak of the same
//! things by the same names. This crate adds no power that the WIT contract does not
//! give; it has no clock, no files and no random numbers.
//!
//! Policies also compile for the machine they are written on, so that their logic is
//! tested like any other function. There [`config`] answers `None`, [`log`] writes to
//! standard error, and everything else that needs a host answers
//! [`Error::Unavailable`].
//!
//! `homeostat policy build` makes the component; `template/` holds a crate to copy.

pub mod bindings;
mod convert;
mod host;

pub use homeostat_hooks::{
    Amendment, Answer, Assessment, Attribute, Budget, BudgetUnit, Causes, Classification, Decision,
    Device, DeviceKind, DirectAnswer, Endpoint, Finding, Finish, Forecast, GenerateOptions,
    Generated, Health, Message, MetabolicState, Metabolism, Origin, Outcome, Plan, Pressure,
    Profile, Refusal, Rejection, Request, ResponseFormat, Role, Sample, Snapshot, SpeculationHint,
    Step, Supply, Task, ThrottleReasons, TierKind, TierView as Tier, Value, Verdict, check,
};
pub use host::{Level, Model, config, current, log, model_names, propose, state};

/// What a policy's functions return.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a call failed: of the host towards the policy, or of the policy itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Error {
    /// The operator did not grant this power to this policy.
    Denied(String),
    /// It exists, but cannot answer now.
    Unavailable(String),
    /// The arguments are wrong; the text says which and why.
    InvalidArgument(String),
    /// A limit of this call was reached; the text names it.
    LimitExceeded(String),
    /// The host failed; not the policy's fault.
    Internal(String),
    /// Anything that a later version may add, and a policy's own errors.
    Other(String),
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (kind, text) = match self {
            Self::Denied(t) => ("denied", t),
            Self::Unavailable(t) => ("unavailable", t),
            Self::InvalidArgument(t) => ("invalid argument", t),
            Self::LimitExceeded(t) => ("limit exceeded", t),
            Self::Internal(t) => ("internal", t),
            Self::Other(t) => return f.write_str(t),
        };
        write!(f, "{kind}: {text}")
    }
}

impl std::error::Error for Error {}

impl From<&str> for Error {
    fn from(text: &str) -> Self {
        Self::Other(text.to_owned())
    }
}

impl From<String> for Error {
    fn from(text: String) -> Self {
        Self::Other(text)
    }
}

/// How hard is this request?
pub trait Classifier {
    /// Called once for every request, before `route`. An error makes the host answer with
    /// its fallback.
    fn classify(request: &Request, snapshot: &Snapshot) -> Result<Classification>;
}

/// Which tier should answer, and how?
pub trait Router {
    /// Called once for every request. `tiers` are the candidates, smallest first; a plan
    /// may name no other.
    fn route(
        request: &Request,
        classification: &Classification,
        tiers: &[Tier],
        snapshot: &Snapshot,
    ) -> Result<Decision>;
}

/// Is this answer good enough to send?
pub trait Validator {
    /// Called when a step of the plan has answered.
    fn validate(request: &Request, answer: &Answer, snapshot: &Snapshot) -> Result<Verdict>;
}

/// What became of a request?
pub trait Learner {
    /// Called once after the answer was sent, outside the client's time. What it learns
    /// it keeps with [`state::set`]: an instance lives for one request.
    fn learn(request: &Request, outcome: &Outcome);
}

/// A plan that tries these tiers in order, with the host's defaults for everything else
/// and a threshold of one half.
pub fn plan<'a>(tiers: impl IntoIterator<Item = &'a str>, reason: &str) -> Decision {
    Decision::Plan(Plan {
        steps: tiers
            .into_iter()
            .map(|tier| Step {
                tier: tier.to_owned(),
                accept_threshold: 0.5,
                ..Step::default()
            })
            .collect(),
        reason: reason.to_owned(),
        attributes: Vec::new(),
    })
}

/// Exports a [`Classifier`] as the component's `classify`.
#[macro_export]
macro_rules! export_classifier {
    ($policy:ty) => {
        $crate::__export!([classifier], $policy);
    };
}

/// Exports a [`Router`] as the component's `route`.
#[macro_export]
macro_rules! export_router {
    ($policy:ty) => {
        $crate::__export!([router], $policy);
    };
}

/// Exports a [`Router`] that is a [`Learner`] as well.
#[macro_export]
macro_rules! export_learning_router {
    ($policy:ty) => {
        $crate::__export!([router learner], $policy);
    };
}

/// Exports a [`Validator`] as the component's `validate`.
#[macro_export]
macro_rules! export_validator {
    ($policy:ty) => {
        $crate::__export!([validator], $policy);
    };
}

/// Exports one type that is all four: the `full-policy` world.
#[macro_export]
macro_rules! export_policy {
    ($policy:ty) => {
        $crate::__export!([classifier router validator learner], $policy);
    };
}

/// The glue behind the `export_` macros. Outside WebAssembly only the types are checked:
/// the exported symbols have names that no native linker takes.
#[doc(hidden)]
#[macro_export]
macro_rules! __export {
    ([$($interface:ident)*], $policy:ty) => {
        #[cfg(not(target_family = "wasm"))]
        const _: () = {
            $($crate::__export!(@check $interface, $policy);)*
        };
        #[cfg(target_family = "wasm")]
        #[allow(unsafe_code, reason = "the component ABI is written in terms of raw pointers")]
        const _: () = {
            struct Glue;
            $($crate::__export!(@glue $interface, $policy);)*
        };
    };
    (@check classifier, $policy:ty) => { const _: fn() = || { fn is<T: $crate::Classifier>() {} is::<$policy>() }; };
    (@check router, $policy:ty) => { const _: fn() = || { fn is<T: $crate::Router>() {} is::<$policy>() }; };
    (@check validator, $policy:ty) => { const _: fn() = || { fn is<T: $crate::Validator>() {} is::<$policy>() }; };
    (@check learner, $policy:ty) => { const _: fn() = || { fn is<T: $crate::Learner>() {} is::<$policy>() }; };
    (@glue classifier, $policy:ty) => {
        $crate::bindings::classifier::__export_classifier!(Glue with_types_in $crate::bindings::classifier);
        impl $crate::bindings::classifier::exports::homeostat::policy::classifier::Guest for Glue {
            fn classify(
                request: $crate::bindings::types::Request,
                snapshot: $crate::bindings::types::Snapshot,
            ) -> ::std::result::Result<$crate::bindings::types::Classification, $crate::bindings::types::Error> {
                <$policy as $crate::Classifier>::classify(&request.into(), &snapshot.into())
                    .map(::std::convert::Into::into)
                    .map_err(::std::convert::Into::into)
            }
        }
    };
    (@glue router, $policy:ty) => {
        $crate::bindings::router::__export_router!(Glue with_types_in $crate::bindings::router);
        impl $crate::bindings::router::exports::homeostat::policy::router::Guest for Glue {
            fn route(
                request: $crate::bindings::types::Request,
                classification: $crate::bindings::types::Classification,
                tiers: ::std::vec::Vec<$crate::bindings::types::Tier>,
                snapshot: $crate::bindings::types::Snapshot,
            ) -> ::std::result::Result<$crate::bindings::types::Decision, $crate::bindings::types::Error> {
                let tiers: ::std::vec::Vec<$crate::Tier> =
                    tiers.into_iter().map(::std::convert::Into::into).collect();
                <$policy as $crate::Router>::route(
                    &request.into(),
                    &classification.into(),
                    &tiers,
                    &snapshot.into(),
                )
                .map(::std::convert::Into::into)
                .map_err(::std::convert::Into::into)
            }
        }
    };
    (@glue validator, $policy:ty) => {
        $crate::bindings::validator::__export_validator!(Glue with_types_in $crate::bindings::validator);
        impl $crate::bindings::validator::exports::homeostat::policy::validator::Guest for Glue {
            fn validate(
                request: $crate::bindings::types::Request,
                answer: $crate::bindings::types::Answer,
                snapshot: $crate::bindings::types::Snapshot,
            ) -> ::std::result::Result<$crate::bindings::types::Verdict, $crate::bindings::types::Error> {
                <$policy as $crate::Validator>::validate(
                    &request.into(),
                    &answer.into(),
                    &snapshot.into(),
                )
                .map(::std::convert::Into::into)
                .map_err(::std::convert::Into::into)
            }
        }
    };
    (@glue learner, $policy:ty) => {
        $crate::bindings::learner::__export_learner!(Glue with_types_in $crate::bindings::learner);
        impl $crate::bindings::learner::exports::homeostat::policy::learner::Guest for Glue {
            fn learn(
                request: $crate::bindings::types::Request,
                outcome: $crate::bindings::types::Outcome,
            ) {
                <$policy as $crate::Learner>::learn(&request.into(), &outcome.into());
            }
        }
    };
}
