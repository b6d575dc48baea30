//! What went wrong inside a policy, in five words.

use serde::{Deserialize, Serialize};

/// The five ways in which a policy can fail. The host never fails with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FaultKind {
    /// It trapped: panic, unreachable, stack overflow, out-of-bounds.
    Trap,
    /// It did not answer in time, or no instance came free in time.
    Deadline,
    /// It asked for more memory, data, handles or tables than its limits.
    Memory,
    /// It answered something that no host could act on, or an error of its own.
    Invalid,
    /// It depends on a power that it was not given.
    Denied,
}

impl FaultKind {
    /// The word used in metrics, headers and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Trap => "trap",
            Self::Deadline => "deadline",
            Self::Memory => "memory",
            Self::Invalid => "invalid",
            Self::Denied => "denied",
        }
    }
}

/// A classified failure of a policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{}: {detail}", kind.as_str())]
pub struct Fault {
    /// Which of the five.
    pub kind: FaultKind,
    /// What happened, for the author of the policy.
    pub detail: String,
}

impl Fault {
    /// A fault of this kind.
    pub fn new(kind: FaultKind, detail: impl Into<String>) -> Self {
        Self {
            kind,
            detail: detail.into(),
        }
    }
}
