//! Cases: what a policy is asked, and what it must answer, as text.
//!
//! A `cases.toml` knows nothing of the language that the policy is written in. The same
//! file is run against the plain functions of a Rust policy, and through the policy room
//! against its component; a port to another language is done when it passes the file.
//! The format is described in `plugins/README.md`. Beside cases, the file may state
//! [properties](Property), which are tried on generated inputs.
//!
//! A misspelt key or expectation is an error, never a case that silently passes.

mod ask;
mod expect;
mod generate;
mod given;
mod property;
mod told;

use homeostat_hooks::{
    Answer, Classification, Decision, Hook, Request, Snapshot, TierView, Verdict, check,
};

pub use ask::{Asked, ask};
pub use expect::Expectation;
pub use property::Property;

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

/// A whole `cases.toml`.
#[derive(Debug, Clone, PartialEq)]
pub struct CaseFile {
    /// Which question its cases ask.
    pub hook: Hook,
    /// At least one.
    pub cases: Vec<Case>,
    /// What holds of every answer, and on how many generated inputs each is tried.
    pub properties: Vec<(Property, u32)>,
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

/// Reads a file.
pub fn read(text: &str) -> Result<CaseFile, Error> {
    given::file(text)
}

impl Case {
    /// Whether the host would act on the reply.
    fn valid(&self, reply: &Reply) -> Result<(), String> {
        let valid = match reply {
            Reply::Classification(c) => check::classification(c),
            Reply::Decision(d) => check::decision(d, &self.tiers),
            Reply::Verdict(v) => check::verdict(v, &self.answer),
        };
        valid.map_err(|invalid| invalid.to_string())
    }

    /// Every expectation that the reply misses, with what was found instead. A reply that
    /// the host would refuse misses on that account alone.
    pub fn misses(&self, reply: &Reply) -> Vec<String> {
        if let Err(invalid) = self.valid(reply) {
            return vec![invalid];
        }
        let facts = expect::facts(reply);
        self.expect.iter().filter_map(|e| e.miss(&facts)).collect()
    }
}

/// Runs every case of a file through `policy` and panics with all misses, for tests.
///
/// # Panics
/// When the file cannot be read or a case misses.
pub fn run(text: &str, mut policy: impl FnMut(&Case) -> Reply) {
    let cases = read(text).unwrap_or_else(|e| panic!("{e}")).cases;
    let mut failed = String::new();
    for case in &cases {
        for miss in case.misses(&policy(case)) {
            failed.push_str(&format!("\n{}: {miss}", case.name));
        }
    }
    assert!(failed.is_empty(), "{failed}");
}
