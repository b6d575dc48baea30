//! Who decides on a simulated host: the host's own policies, as components in the policy room,
//! or a rule that they are compared with. Parts of the policies can be left out, to see what
//! each is worth.

use std::sync::Arc;

use homeostat_hooks::{
    Answer, Classification, Decision, HookReply, Outcome, Plan, Policies, Request, Session,
    Snapshot, Step, TierView, Verdict, builtin,
};
use homeostat_policy::PolicyRoom;

/// Draft tokens of hosts that do not decide about them: what `route-metabolic` asks for at most.
const DRAFT_TOKENS: u32 = 15;
/// Hardness from which a static router asks the large tier, if nobody tunes it: that of
/// `route-threshold`.
pub const THRESHOLD: f32 = 0.5;

/// A part of the metabolic host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// How hard a request is.
    Classifier,
    /// How the machine feels, budgets and battery.
    Pressure,
    /// How hot it will be.
    Forecast,
    /// Whether to draft.
    Speculation,
    /// Whether an answer is good enough.
    Validation,
}

impl Part {
    /// All of them.
    pub const ALL: [Part; 5] = [
        Part::Classifier,
        Part::Pressure,
        Part::Forecast,
        Part::Speculation,
        Part::Validation,
    ];

    /// For people.
    pub fn word(self) -> &'static str {
        match self {
            Part::Classifier => "classifier",
            Part::Pressure => "pressure",
            Part::Forecast => "forecast",
            Part::Speculation => "speculation",
            Part::Validation => "validation",
        }
    }
}

/// Who decides.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Judgement {
    /// Everything to the large tier.
    AlwaysLarge,
    /// Everything to the small tier.
    AlwaysSmall,
    /// The classifier and a threshold of hardness, whatever the machine feels.
    Threshold(f32),
    /// The host's own policies.
    Metabolic,
    /// The same without a part.
    MetabolicWithout(Part),
}

impl Judgement {
    fn lacks(self, part: Part) -> bool {
        self == Self::MetabolicWithout(part)
    }

    /// Whether the state machine sees a forecast.
    pub fn looks_ahead(self) -> bool {
        !self.lacks(Part::Forecast)
    }
}

/// The policies of one host.
pub struct Judges {
    pub room: Arc<PolicyRoom>,
    pub judgement: Judgement,
}

impl Policies for Judges {
    fn begin(&self, request: Arc<Request>, snapshot: Arc<Snapshot>) -> Box<dyn Session> {
        let snapshot = match self.judgement.lacks(Part::Pressure) {
            true => Arc::new(Snapshot {
                profile: snapshot.profile,
                monotonic_ms: snapshot.monotonic_ms,
                ..Snapshot::default()
            }),
            false => snapshot,
        };
        Box::new(Judging {
            session: self.room.begin(request, snapshot),
            judgement: self.judgement,
        })
    }
}

struct Judging {
    session: Box<dyn Session>,
    judgement: Judgement,
}

impl Session for Judging {
    fn classify(&mut self) -> HookReply<Classification> {
        match self.judgement {
            Judgement::AlwaysLarge | Judgement::AlwaysSmall => {
                builtin::reply(Classification::default())
            }
            judgement if judgement.lacks(Part::Classifier) => {
                builtin::reply(Classification::default())
            }
            _ => self.session.classify(),
        }
    }

    fn route(&mut self, c: &Classification, tiers: &[TierView]) -> HookReply<Decision> {
        let hardness = 0.5 * c.p_medium + c.p_complex;
        let largest = match self.judgement {
            Judgement::AlwaysLarge => true,
            Judgement::AlwaysSmall => false,
            Judgement::Threshold(least) => hardness >= least,
            Judgement::Metabolic | Judgement::MetabolicWithout(_) => {
                return self.own_route(c, tiers);
            }
        };
        let tier = match largest {
            true => tiers.last(),
            false => tiers.first(),
        };
        let step = Step {
            tier: tier.map_or_else(String::new, |tier| tier.id.clone()),
            max_draft_tokens: DRAFT_TOKENS,
            ..Step::default()
        };
        builtin::reply(Decision::Plan(Plan {
            steps: vec![step],
            reason: "a rule".into(),
            attributes: Vec::new(),
        }))
    }

    fn validate(&mut self, answer: &Answer) -> HookReply<Verdict> {
        self.session.validate(answer)
    }

    fn learn(&mut self, outcome: &Outcome) {
        self.session.learn(outcome);
    }
}

impl Judging {
    fn own_route(&mut self, c: &Classification, tiers: &[TierView]) -> HookReply<Decision> {
        let mut reply = self.session.route(c, tiers);
        if let Decision::Plan(plan) = &mut reply.value {
            if self.judgement.lacks(Part::Validation) {
                plan.steps.truncate(1);
            }
            if self.judgement.lacks(Part::Speculation) {
                for step in &mut plan.steps {
                    step.max_draft_tokens = 0;
                }
            }
        }
        reply
    }
}
