//! Cases: what a policy is asked, and what it must answer, as text.
//!
//! A `cases.toml` knows nothing of the language that the policy is written in. The same
//! file is run against the plain functions of a Rust policy, and through the policy room
//! against its component; a port to another language is done when it passes the file.
//! The format is described in `plugins/README.md`.
//!
//! A misspelt key or expectation is an error, never a case that silently passes.

mod expect;
mod given;

use homeostat_hooks::{
    Answer, Classification, Decision, Hook, Request, Snapshot, TierView, Verdict, check,
};

pub use expect::Expectation;

/// Why a `cases.toml` cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// It is no TOML, or a record in it has another shape.
    #[error("{0}")]
    Shape(String),
    /// One case is wrong.
    #[error("case {name:?}: {reason}")]
    Case {
        /// Its name.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
}

/// One case.
#[derive(Debug, Clone, PartialEq)]
pub struct Case {
    /// A sentence about behaviour.
    pub name: String,
    /// Which question is asked.
    pub hook: Hook,
    /// The request, shown to every hook.
    pub request: Request,
    /// The machine, shown to every hook.
    pub snapshot: Snapshot,
    /// For `route`.
    pub classification: Classification,
    /// For `route`.
    pub tiers: Vec<TierView>,
    /// For `validate`.
    pub answer: Answer,
    /// What must hold of the reply.
    pub expect: Vec<Expectation>,
}

/// What a policy answered.
#[derive(Debug, Clone, PartialEq)]
pub enum Reply {
    /// To `classify`.
    Classification(Classification),
    /// To `route`.
    Decision(Decision),
    /// To `validate`.
    Verdict(Verdict),
}

/// All cases of a file.
pub fn read(text: &str) -> Result<Vec<Case>, Error> {
    given::cases(text)
}

impl Case {
    /// Every expectation that the reply misses, with what was found instead. A reply that
    /// the host would refuse misses on that account alone.
    pub fn misses(&self, reply: &Reply) -> Vec<String> {
        let valid = match reply {
            Reply::Classification(c) => check::classification(c),
            Reply::Decision(d) => check::decision(d, &self.tiers),
            Reply::Verdict(v) => check::verdict(v, &self.answer),
        };
        if let Err(invalid) = valid {
            return vec![invalid.to_string()];
        }
        let facts = expect::facts(reply);
        self.expect.iter().filter_map(|e| e.miss(&facts)).collect()
    }
}

/// Runs every case of a file through `policy` and panics with all misses, for tests.
///
/// # Panics
/// When the file cannot be read, holds no case, or a case misses.
pub fn run(text: &str, mut policy: impl FnMut(&Case) -> Reply) {
    let cases = read(text).unwrap_or_else(|e| panic!("{e}"));
    assert!(!cases.is_empty(), "a file without cases tests nothing");
    let mut failed = String::new();
    for case in &cases {
        for miss in case.misses(&policy(case)) {
            failed.push_str(&format!("\n{}: {miss}", case.name));
        }
    }
    assert!(failed.is_empty(), "{failed}");
}
