//! Expectations: `<fact> <relation> <value>`, one a line.
//!
//! A reply is turned into a flat list of named facts first; so an expectation needs no
//! knowledge of records, and one that names a fact that the reply does not have is missed
//! with the list of those it has.

use homeostat_hooks::{Assessment, Classification, Decision, Plan, Verdict};

use crate::Reply;

/// Something that is true of a reply.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Fact {
    Number(f64),
    Text(String),
}

impl std::fmt::Display for Fact {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Number(n) => write!(f, "{n}"),
            Self::Text(t) => f.write_str(t),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Relation {
    Is,
    Mentions,
    Lacks,
    Less,
    AtMost,
    More,
    AtLeast,
    Equal,
}

const RELATIONS: [(&str, Relation); 8] = [
    ("is", Relation::Is),
    ("mentions", Relation::Mentions),
    ("lacks", Relation::Lacks),
    ("<", Relation::Less),
    ("<=", Relation::AtMost),
    (">", Relation::More),
    (">=", Relation::AtLeast),
    ("=", Relation::Equal),
];

/// One line of `expect`.
#[derive(Debug, Clone, PartialEq)]
pub struct Expectation {
    line: String,
    fact: String,
    relation: Relation,
    value: String,
    number: f64,
}

impl Expectation {
    pub(crate) fn parse(line: &str) -> Result<Self, String> {
        let mut parts = line.trim().splitn(3, ' ');
        let (Some(fact), Some(word), Some(value)) = (parts.next(), parts.next(), parts.next())
        else {
            return Err(format!("{line:?} is not of the form: fact relation value"));
        };
        let found = RELATIONS.iter().find(|(w, _)| *w == word);
        let Some(&(_, relation)) = found else {
            let known: Vec<&str> = RELATIONS.iter().map(|(w, _)| *w).collect();
            return Err(format!("{line:?}: {word:?} is none of {}", known.join(" ")));
        };
        let wants_text = matches!(
            relation,
            Relation::Is | Relation::Mentions | Relation::Lacks
        );
        let number = value.parse().unwrap_or(f64::NAN);
        if !wants_text && number.is_nan() {
            return Err(format!("{line:?}: {value:?} is no number"));
        }
        Ok(Self {
            line: line.to_owned(),
            fact: fact.to_owned(),
            relation,
            value: value.to_owned(),
            number,
        })
    }

    /// Whether it expects that the policy fails.
    pub(crate) fn is_of_an_error(&self) -> bool {
        self.fact == "error" || (self.fact == "kind" && self.value == "error")
    }

    /// `None` when it holds, else what was found.
    pub(crate) fn miss(&self, facts: &[(String, Fact)]) -> Option<String> {
        let Some((_, fact)) = facts.iter().find(|(name, _)| *name == self.fact) else {
            let known: Vec<&str> = facts.iter().map(|(name, _)| name.as_str()).collect();
            return Some(format!(
                "expected {:?}, but the reply has only {}",
                self.line,
                known.join(", ")
            ));
        };
        if self.holds(fact) {
            return None;
        }
        // The other facts tell why, which a bare number does not.
        let story: Vec<String> = facts.iter().map(|(n, f)| format!("{n}: {f}")).collect();
        Some(format!(
            "expected {:?}; found {}",
            self.line,
            story.join(" · ")
        ))
    }

    fn holds(&self, fact: &Fact) -> bool {
        match (self.relation, fact) {
            (Relation::Is, fact) => fact.to_string() == self.value,
            (Relation::Mentions, Fact::Text(text)) => mentions(text, &self.value),
            (Relation::Lacks, Fact::Text(text)) => !mentions(text, &self.value),
            (Relation::Less, Fact::Number(n)) => *n < self.number,
            (Relation::AtMost, Fact::Number(n)) => *n <= self.number,
            (Relation::More, Fact::Number(n)) => *n > self.number,
            (Relation::AtLeast, Fact::Number(n)) => *n >= self.number,
            (Relation::Equal, Fact::Number(n)) => (*n - self.number).abs() < 1e-6,
            _ => false,
        }
    }
}

/// Upper and lower case alike.
fn mentions(text: &str, value: &str) -> bool {
    text.to_lowercase().contains(&value.to_lowercase())
}

struct Facts(Vec<(String, Fact)>);

impl Facts {
    fn text(&mut self, name: impl Into<String>, value: impl Into<String>) {
        self.0.push((name.into(), Fact::Text(value.into())));
    }

    fn number(&mut self, name: impl Into<String>, value: impl Into<f64>) {
        self.0.push((name.into(), Fact::Number(value.into())));
    }

    /// The kebab-case word of an enum, as it stands in TOML.
    fn word(&mut self, name: &str, value: &impl serde::Serialize) {
        let json = serde_json::to_value(value).unwrap_or_default();
        self.text(name, json.as_str().unwrap_or("?"));
    }
}

/// Of the reply, and of the questions that led to it.
pub(crate) fn facts(reply: &Reply, questions: &[String]) -> Vec<(String, Fact)> {
    let mut facts = Facts(Vec::new());
    match reply {
        Reply::Classification(c) => classification(&mut facts, c),
        Reply::Decision(Decision::Plan(p)) => plan(&mut facts, p),
        Reply::Decision(Decision::Answer(a)) => {
            facts.text("kind", "answer");
            facts.text("text", &a.text);
            facts.text("method", &a.method);
        }
        Reply::Decision(Decision::Reject(r)) | Reply::Verdict(Verdict::Reject(r)) => {
            facts.text("kind", "reject");
            facts.word("refusal", &r.kind);
            facts.text("message", &r.message);
        }
        Reply::Verdict(Verdict::Accept(a)) => assessment(&mut facts, "accept", a),
        Reply::Verdict(Verdict::Escalate(a)) => assessment(&mut facts, "escalate", a),
        Reply::Verdict(Verdict::Amend(a)) => {
            assessment(&mut facts, "amend", &a.assessment);
            facts.text("text", &a.text);
        }
        Reply::Verdict(Verdict::Undecided) => facts.text("kind", "undecided"),
        Reply::Error(error) => {
            facts.text("kind", "error");
            facts.text("error", error);
        }
    }
    facts.number("questions", questions.len() as u32);
    for (number, question) in questions.iter().enumerate() {
        facts.text(format!("question.{}", number + 1), question);
    }
    facts.0
}

fn classification(facts: &mut Facts, c: &Classification) {
    facts.number("p-simple", c.p_simple);
    facts.number("p-medium", c.p_medium);
    facts.number("p-complex", c.p_complex);
    facts.number("confidence", c.confidence);
    facts.word("task", &c.task);
    for (name, value) in &c.dimensions {
        facts.number(name, *value);
    }
}

fn plan(facts: &mut Facts, p: &Plan) {
    facts.text("kind", "plan");
    let tiers: Vec<&str> = p.steps.iter().map(|s| s.tier.as_str()).collect();
    facts.text("tiers", tiers.join(", "));
    facts.number("steps", p.steps.len() as u32);
    facts.text("reason", &p.reason);
    // Of the first step, since that is the one that is certainly run.
    if let Some(step) = p.steps.first() {
        facts.text("first-tier", &step.tier);
        facts.number("max-draft-tokens", step.max_draft_tokens);
        facts.number("hold-back-tokens", step.hold_back_tokens);
        facts.number("accept-threshold", step.accept_threshold);
        if let Some(cap) = step.max_tokens {
            facts.number("max-tokens", cap);
        }
    }
}

fn assessment(facts: &mut Facts, kind: &str, a: &Assessment) {
    facts.text("kind", kind);
    facts.number("confidence", a.confidence);
    for finding in &a.findings {
        let state = if finding.passed { "passed" } else { "failed" };
        facts.text(format!("check.{}", finding.check), state);
        facts.text(format!("detail.{}", finding.check), &finding.detail);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Error, read, run};
    use homeostat_hooks::builtin;

    const FILE: &str = r#"
        hook = "route"
        [given]
        tiers = [
            { id = "small", rank = 0, ready = true },
            { id = "large", rank = 1, ready = true },
        ]
        [given.snapshot.metabolism]
        state = "nominal"
        [[case]]
        name = "in need the smallest"
        ask = "hi"
        snapshot.metabolism = { state = "constrained" }
        expect = ["kind is plan", "tiers is small", "steps = 1", "reason mentions CONSTRAINED"]
        [[case]]
        name = "in calm both"
        ask = "hi"
        expect = ["tiers is small, large", "accept-threshold <= 0.5"]
    "#;

    fn built_in(case: &crate::Case) -> Reply {
        let c = builtin::classify(&case.request);
        Reply::Decision(builtin::route(&c, &case.tiers, &case.snapshot))
    }

    #[test]
    fn a_file_runs_and_a_case_inherits_what_it_does_not_say() {
        run(FILE, built_in);
        let cases = read(FILE).expect("the file above is right").cases;
        assert_eq!(cases[1].tiers.len(), 2);
        assert_eq!(cases[0].request.question(), "hi");
    }

    #[test]
    fn a_wrong_expectation_is_missed_and_tells_what_was_found() {
        let file = FILE.replace("tiers is small, large", "tiers is large");
        let cases = read(&file).expect("it is still TOML").cases;
        let misses = cases[1].misses(&built_in(&cases[1]));
        assert_eq!(misses.len(), 1);
        assert!(misses[0].contains("tiers: small, large"), "{misses:?}");
        let file = FILE.replace("steps = 1", "stepz = 1");
        let cases = read(&file)
            .expect("a fact's name is only known with a reply")
            .cases;
        assert!(cases[0].misses(&built_in(&cases[0]))[0].contains("steps"));
    }

    #[test]
    fn misspelt_keys_relations_and_empty_expectations_are_refused_by_name() {
        for (from, to, told) in [
            ("ready = true", "redy = true", "redy"),
            ("ask =", "aks =", "aks"),
            ("steps = 1", "steps ~ 1", "~"),
            ("steps = 1", "steps = one", "one"),
            ("state = \"nominal\"", "state = \"fine\"", "fine"),
            ("hook = \"route\"", "hook = \"root\"", "root"),
            ("[given]", "[gven]", "gven"),
            ("[given]", "[properties]\nhoter = 1\n[given]", "hoter"),
            (
                "[given]",
                "[properties]\ndeterministic = 0\n[given]",
                "deterministic = ",
            ),
        ] {
            let error: Error = read(&FILE.replacen(from, to, 1)).expect_err(to);
            assert!(error.to_string().contains(told), "{error}");
        }
    }
}
