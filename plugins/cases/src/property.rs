//! Properties: what must hold of every answer, tried on generated inputs.
//!
//! An input is one of the file's own cases with its machine, tiers, texts and extensions
//! changed, so that it stays a question which the policy was made for. A failure is shrunk
//! to the smallest input that still shows it, and told as a case.

use homeostat_hooks::{Decision, Hook, Policies};
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};

use crate::generate::{self, Knobs};
use crate::{Case, CaseFile, Reply, ToldModels, ask, told};

/// A statement about all answers of a policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Property {
    /// The same question gets the same answer.
    Deterministic,
    /// The order of extension attributes means nothing.
    AttributeOrder,
    /// Telemetry and prices that a machine does not have never make it fail.
    AbsentTelemetry,
    /// On the same machine, only hotter, the first tier is never a larger one. Only `route`.
    HotterNeverLarger,
}

impl Property {
    /// All of them.
    pub const ALL: [Property; 4] = [
        Self::Deterministic,
        Self::AttributeOrder,
        Self::AbsentTelemetry,
        Self::HotterNeverLarger,
    ];

    /// Its key under `[properties]`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Deterministic => "deterministic",
            Self::AttributeOrder => "attribute-order",
            Self::AbsentTelemetry => "absent-telemetry",
            Self::HotterNeverLarger => "hotter-never-larger",
        }
    }

    /// Whether it says anything about this hook.
    pub(crate) fn is_about(self, hook: Hook) -> bool {
        self != Self::HotterNeverLarger || hook == Hook::Route
    }

    /// Tries it on `inputs` inputs from this seed, made of the cases that a policy with the
    /// file's own options answers. `Err` tells the smallest input that breaks it, and how.
    pub fn check(
        self,
        file: &CaseFile,
        (policies, models): (&dyn Policies, &ToldModels),
        inputs: u32,
        seed: u64,
    ) -> Result<(), String> {
        let file = &file.ordinary();
        if file.cases.is_empty() {
            return Err("every case has options or an error of its own".into());
        }
        let config = Config {
            cases: inputs,
            failure_persistence: None,
            ..Config::default()
        };
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
        let mut runner = TestRunner::new_with_rng(config, rng);
        let outcome = runner.run(&generate::knobs(file.cases.len()), |knobs| {
            self.holds(file, (policies, models), &knobs)
                .map_err(TestCaseError::fail)
        });
        match outcome {
            Ok(()) => Ok(()),
            Err(TestError::Fail(why, knobs)) => {
                let case = generate::case(file, &knobs);
                Err(format!("{why}\nsmallest input:\n{}", told::case(&case)))
            }
            Err(TestError::Abort(why)) => Err(format!("it could not be tried: {why}")),
        }
    }

    fn holds(
        self,
        file: &CaseFile,
        (policies, models): (&dyn Policies, &ToldModels),
        knobs: &Knobs,
    ) -> Result<(), String> {
        let case = generate::case(file, knobs);
        let answer = |case: &Case| match ask(policies, models, case).reply {
            Reply::Error(error) => Err(error),
            reply => case.valid(&reply).map(|()| reply),
        };
        let same = |other: &Case, what: &str| {
            let (first, second) = (answer(&case)?, answer(other)?);
            if first == second {
                return Ok(());
            }
            let (first, second) = (told::reply(&first), told::reply(&second));
            Err(format!("{what}: {first}, then {second}"))
        };
        match self {
            Self::Deterministic => same(&case, "asked twice"),
            Self::AttributeOrder => same(
                &generate::reordered(&case, knobs),
                "with attributes in another order",
            ),
            Self::AbsentTelemetry => answer(&generate::without_telemetry(&case, knobs)).map(drop),
            Self::HotterNeverLarger => {
                let hotter = generate::hotter(&case, knobs);
                let (cool, hot) = (answer(&case)?, answer(&hotter)?);
                if first_rank(&hot, &case) <= first_rank(&cool, &case) {
                    return Ok(());
                }
                Err(format!(
                    "{}: {}; hotter, at {}: {}",
                    generate::heat_of(&case),
                    told::reply(&cool),
                    generate::heat_of(&hotter),
                    told::reply(&hot)
                ))
            }
        }
    }
}

/// Rank of the tier that is asked first; `None`, less than any rank, when none is.
fn first_rank(reply: &Reply, case: &Case) -> Option<u32> {
    let Reply::Decision(Decision::Plan(plan)) = reply else {
        return None;
    };
    let first = &plan.steps.first()?.tier;
    case.tiers.iter().find(|t| t.id == *first).map(|t| t.rank)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use homeostat_hooks::{
        Answer, AnsweredBy, BuiltIn, Classification, HookReply, Outcome, Request, Session,
        Snapshot, TierView, Verdict, builtin,
    };

    use super::*;

    const FILE: &str = r#"
        hook = "route"
        [properties]
        hotter-never-larger = 64
        attribute-order = 64
        [[given.tiers]]
        id = "small"
        ready = true
        [[given.tiers]]
        id = "large"
        rank = 1
        ready = true
        [[case]]
        name = "anything"
        ask = "hi"
        expect = ["kind is plan"]
    "#;

    /// Routes by a plain function.
    struct Function(fn(&Snapshot, &[TierView]) -> usize);

    struct Answers(fn(&Snapshot, &[TierView]) -> usize, Arc<Snapshot>);

    impl Policies for Function {
        fn begin(&self, _: Arc<Request>, snapshot: Arc<Snapshot>) -> Box<dyn Session> {
            Box::new(Answers(self.0, snapshot))
        }
    }

    fn reply<T>(value: T) -> HookReply<T> {
        HookReply {
            value,
            by: AnsweredBy::BuiltIn,
            fault: None,
            micros: 0,
        }
    }

    impl Session for Answers {
        fn classify(&mut self) -> HookReply<Classification> {
            reply(Classification::default())
        }
        fn route(&mut self, _: &Classification, tiers: &[TierView]) -> HookReply<Decision> {
            let tier = &tiers[(self.0)(&self.1, tiers)];
            reply(Decision::Plan(homeostat_hooks::Plan {
                steps: vec![homeostat_hooks::Step {
                    tier: tier.id.clone(),
                    ..Default::default()
                }],
                ..Default::default()
            }))
        }
        fn validate(&mut self, answer: &Answer) -> HookReply<Verdict> {
            reply(builtin::validate(answer))
        }
        fn learn(&mut self, _: &Outcome) {}
    }

    fn check(property: Property, policy: &dyn Policies, seed: u64) -> Result<(), String> {
        let file = crate::read(FILE).expect("the file above is right");
        property.check(&file, (policy, &ToldModels::default()), 200, seed)
    }

    #[test]
    fn the_built_in_answers_have_all_properties() {
        for property in Property::ALL {
            check(property, &BuiltIn, 1).unwrap_or_else(|e| panic!("{}: {e}", property.as_str()));
        }
    }

    #[test]
    fn a_policy_that_goes_up_when_it_is_hot_is_found_and_shrunk() {
        let up = Function(|s, _| {
            let hot = s.devices.iter().filter_map(|d| d.temperature_celsius);
            usize::from(hot.into_iter().any(|t| t.value > 85.0))
        });
        let told = check(Property::HotterNeverLarger, &up, 7).expect_err("it goes up");
        assert!(
            told.contains("large") && told.contains("smallest input"),
            "{told}"
        );
        assert_eq!(
            check(Property::HotterNeverLarger, &up, 7).expect_err("the same seed"),
            told
        );
    }

    #[test]
    fn a_policy_that_reads_the_first_attribute_is_found() {
        let first = Function(|s, _| {
            let first = s.attributes.first().map_or("", |(key, _)| key.as_str());
            usize::from(first == "b.key")
        });
        assert!(check(Property::AttributeOrder, &first, 3).is_err());
        assert_eq!(check(Property::Deterministic, &first, 3), Ok(()));
    }

    #[test]
    fn a_property_that_says_nothing_about_a_hook_is_refused() {
        let file = FILE.replace("hook = \"route\"", "hook = \"classify\"");
        let error = crate::read(&file)
            .expect_err("it is about route")
            .to_string();
        assert!(error.contains("hotter-never-larger"), "{error}");
    }
}
