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
mod bench;
mod expect;
mod generate;
mod given;
mod models;
mod property;
mod told;

use homeostat_hooks::{
    Answer, Classification, Decision, Hook, Request, Snapshot, TierView, Verdict, check,
};

pub use ask::{Asked, ask};
pub use bench::Bench;
pub use expect::Expectation;
pub use models::{Told, ToldError, ToldModel, ToldModels};
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
    /// What the operator gives the policy, over its own `policy.toml`.
    pub options: toml::Table,
    /// What the host's models answer, if the policy asks them.
    pub models: Vec<ToldModel>,
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
    /// Options that hold for all cases which do not change them.
    pub options: toml::Table,
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
    /// None: it failed, or could not even be loaded. A case may expect that.
    Error(String),
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
            Reply::Error(_) => Ok(()),
        };
        valid.map_err(|invalid| invalid.to_string())
    }

    /// A setting, as the policy reads it through `wasi:config`.
    pub fn setting(&self, key: &str) -> Option<String> {
        let settings = self.options.get("settings")?.as_table()?;
        settings.get(key)?.as_str().map(str::to_owned)
    }

    /// The deadline that it gives the policy, because it is about time.
    pub fn deadline_ms(&self) -> Option<u32> {
        let limits = self.options.get("limits")?.as_table()?;
        u32::try_from(limits.get("deadline_ms")?.as_integer()?).ok()
    }

    /// The text of a `policy.toml` with this case's options over it.
    ///
    /// # Errors
    /// When that text is no TOML.
    pub fn options_over(&self, policy_toml: &str) -> Result<String, Error> {
        let mut all: toml::Table = policy_toml
            .parse()
            .map_err(|e| Error::Shape(format!("policy.toml: {e}")))?;
        given::merge(&mut all, self.options.clone());
        Ok(all.to_string())
    }

    /// Every expectation that the reply misses, with what was found instead. A reply that
    /// the host would refuse misses on that account alone.
    pub fn misses(&self, reply: &Reply) -> Vec<String> {
        self.missed(reply, &[])
    }

    /// The same, with what the policy asked the models as facts of its own.
    pub fn missed(&self, reply: &Reply, questions: &[String]) -> Vec<String> {
        if let Err(invalid) = self.valid(reply) {
            return vec![invalid];
        }
        let facts = expect::facts(reply, questions);
        self.expect.iter().filter_map(|e| e.miss(&facts)).collect()
    }

    /// Whether inputs for properties may be made of it: it is answered, at once, by a
    /// policy with the options that hold for the whole file.
    fn is_ordinary(&self, given: &toml::Table) -> bool {
        let late = self.models.iter().any(ToldModel::is_ever_late);
        self.options == *given && !late && !self.expect.iter().any(Expectation::is_of_an_error)
    }
}

impl CaseFile {
    /// The first case of which inputs for properties are made: the policy must be loaded
    /// with its options when they are tried.
    fn plainest(&self) -> Option<&Case> {
        self.cases.iter().find(|c| c.is_ordinary(&self.options))
    }

    /// The cases of which inputs for properties are made.
    fn ordinary(&self) -> Self {
        let cases = self.cases.iter().filter(|c| c.is_ordinary(&self.options));
        Self {
            cases: cases.cloned().collect(),
            ..self.clone()
        }
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
