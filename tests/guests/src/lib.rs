//! Policies that misbehave, one file per misbehaviour, named as the end of the sentence
//! "a policy that …".
//!
//! They are one component: the last user message names the guest, and any other text gets
//! an honest answer. So every guest passes admission and fails at run time, where failures
//! hurt, and the standard library is linked once instead of once per guest. What Rust
//! cannot say (several memories, a start function, a lie about one's own memory) is in
//! `../wat`.
//!
//! `../../build.rs` lists both folders, and `tests/hostile` does not compile while one of
//! them lacks its test.

use homeostat_sdk::*;

/// One misbehaviour. A guest overrides what it does differently from an honest policy.
trait Guest {
    /// Runs first in every hook.
    fn before(&self, _request: &Request) -> Result<()> {
        Ok(())
    }

    /// What it says in `classify`.
    fn classification(&self) -> Classification {
        Classification {
            p_simple: 0.7,
            p_medium: 0.2,
            p_complex: 0.1,
            confidence: 0.9,
            attributes: vec![("version".to_owned(), Value::Text(version()))],
            ..Classification::default()
        }
    }

    /// What it says in `route`.
    fn decision(&self, tiers: &[Tier]) -> Decision {
        plan(tiers.iter().take(1).map(|t| t.id.as_str()), &version())
    }

    /// What it says in `validate`.
    fn verdict(&self) -> Verdict {
        Verdict::Accept(Assessment {
            confidence: 0.9,
            findings: vec![Finding {
                check: "version".to_owned(),
                passed: true,
                detail: version(),
            }],
        })
    }
}

/// Which of several installed copies answers: the setting `version`.
fn version() -> String {
    config("version").unwrap_or_else(|| "honest".to_owned())
}

struct Honest;
impl Guest for Honest {}

macro_rules! guests {
    ($($name:ident),* $(,)?) => {
        $(mod $name;)*

        fn guest(request: &Request) -> &'static dyn Guest {
            match request.question() {
                $(stringify!($name) => &$name::It,)*
                _ => &Honest,
            }
        }
    };
}

guests!(
    answers_256_megabytes,
    answers_an_error,
    answers_many_small_strings,
    answers_nonsense,
    answers_out_of_range,
    asks_a_model_that_asks_back,
    calls_a_denied_import,
    counts_in_keyvalue,
    fills_its_state,
    floods_the_log,
    grows_memory,
    leaks_handles,
    loops_forever,
    overflows_the_stack,
    panics_for_one_percent,
    passes_a_huge_argument,
    proposes_then_loops,
    remembers_in_a_global,
    sleeps_in_a_host_call,
    stores_a_huge_value,
    traps,
    traps_once_and_remembers,
);

struct Component;

impl Classifier for Component {
    fn classify(request: &Request, _: &Snapshot) -> Result<Classification> {
        guest(request).before(request)?;
        Ok(guest(request).classification())
    }
}

impl Router for Component {
    fn route(
        request: &Request,
        _: &Classification,
        tiers: &[Tier],
        _: &Snapshot,
    ) -> Result<Decision> {
        guest(request).before(request)?;
        Ok(guest(request).decision(tiers))
    }
}

impl Validator for Component {
    fn validate(request: &Request, _: &Answer, _: &Snapshot) -> Result<Verdict> {
        guest(request).before(request)?;
        Ok(guest(request).verdict())
    }
}

impl Learner for Component {
    fn learn(_: &Request, _: &Outcome) {}
}

export_policy!(Component);
