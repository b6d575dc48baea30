//! Components: admit, link, limit, call, swap.
//!
//! A policy is a WebAssembly component that answers one or more of the host's three
//! questions. This room takes its bytes, finds out whether it may serve ([`admit`]),
//! gives every request an instance of its own within limits ([`config::Limits`]), turns
//! each failure into a [`homeostat_hooks::Fault`] and an answer from somewhere else, and
//! exchanges policies under running requests.
//!
//! It knows nothing of HTTP or of models: requests come as [`homeostat_hooks::Request`],
//! models as the trait [`homeostat_hooks::Models`]. Nothing that a guest does or answers
//! may panic here, and nothing is compiled on the path of a request.
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # fn models() -> std::sync::Arc<dyn homeostat_hooks::Models> { unreachable!() }
//! use homeostat_policy::{Offer, PolicyRoom, RoomConfig};
//!
//! let room = PolicyRoom::new(RoomConfig::default(), models())?;
//! room.embed(Offer {
//!     name: "route-metabolic".into(),
//!     bytes: std::fs::read("route-metabolic.wasm")?,
//!     ..Offer::default()
//! })?;
//! room.watch();
//! # Ok(())
//! # }
//! ```

mod bindings;
mod breaker;
mod cache;
mod call;
mod canary;
mod candidate;
mod compiler;
mod compose;
mod convert;
mod engine;
mod evidence;
mod fault;
mod grants;
mod history;
mod host;
mod inspect;
mod limit;
mod log;
mod migrate;
mod paths;
mod probe;
mod ready;
mod recall;
mod regression;
mod rerun;
mod revision;
mod session;
mod shadow;
mod state;
mod tape;
mod watch;
mod wave;

#[cfg(test)]
mod guests;
#[cfg(test)]
mod replay_tests;
#[cfg(test)]
mod tests;

pub mod admit;
pub mod bundle;
pub mod config;
pub mod cost;
pub mod explain;
pub mod record;
pub mod recording;
pub mod replay;
pub mod room;
pub mod signature;
pub mod stats;
pub mod swap;
pub mod trial;

pub use admit::{AdmissionError, Offer, Report, Stage, read_component};
pub use cache::CacheStats;
pub use canary::{MeasureStatus, StickTo};
pub use compiler::{COMPILE_CHILD, compile_child};
pub use compose::{Compose, MemberStats, Mode};
pub use config::{
    BreakerConfig, Budget, CacheConfig, CanaryConfig, CompilerConfig, Deny, Durability, Fallback,
    Grant, LimitChanges, Limits, PolicyOptions, ReplayConfig, RoomConfig, ShadowConfig,
    SignatureMode, StateConfig,
};
pub use cost::{CostCard, Spread};
pub use explain::{ExplainError, Explained, explain};
pub use grants::Change;
pub use inspect::{CONTRACT_VERSION, Contents, contents};
pub use record::{RecordConfig, RecordLog, RecordStats};
pub use recording::{Asking, Recording};
pub use regression::Regression;
pub use replay::{Candidate, CandidateReport, Decided, Moved, Promise, Replayer};
pub use room::{NothingKept, PolicyRoom, RoomError};
pub use shadow::{Difference, ShadowStatus};
pub use signature::{Manifest, Provenance, Reason, Sealed, SignatureError, SigningKey};
pub use state::{StateExport, StateStatus, StateValue};
pub use stats::{CounterStats, GenerationStats, RoomStats, Times};
pub use swap::{Attempt, GenerationInfo, SlotStatus};
pub use trial::{
    CanaryChanges, CanaryStatus, Ended, TrialEnding, TrialError, TrialMode, TrialStatus,
};
pub use watch::parse_options;
