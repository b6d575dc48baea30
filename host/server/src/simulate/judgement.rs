//! Who decides on a simulated host: the host's own policies, as components in the policy room,
//! or a rule that they are compared with. Parts of the policies can be left out, to see what
//! each is worth.

use std::sync::Arc;

use homeostat_hooks::{
    Answer, Classification, Decision, HookReply, Outcome, Plan, Policies, Request, Session,
    Snapshot, Step, TierView, Value, Verdict, builtin,
};
use homeostat_policy::PolicyRoom;

/// Draft tokens of hosts that nobody tuned: what `route-metabolic` asks for at most. How many of
/// them are verified is the engine's decision, by time alone.
pub const DRAFT_TOKENS: u32 = 15;
/// Draft tokens at which a token of either tier takes the least energy on this machine: what
/// somebody would set who tunes a static host for joules.
pub const FRUGAL_DRAFT_TOKENS: u32 = 2;
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
    /// What earlier requests took: the policies keep nothing.
    Learning,
}

impl Part {
    /// All of them.
    pub const ALL: [Part; 6] = [
        Part::Classifier,
        Part::Pressure,
        Part::Forecast,
        Part::Speculation,
        Part::Validation,
        Part::Learning,
    ];

    /// For people.
    pub fn word(self) -> &'static str {
        match self {
            Part::Classifier => "classifier",
            Part::Pressure => "pressure",
            Part::Forecast => "forecast",
            Part::Speculation => "speculation",
            Part::Validation => "validation",
            Part::Learning => "learning",
        }
    }
}

/// What a static router goes by: one of the two heads of the host's own classifier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// How hard a request is, 0 to 1.
    Hardness,
    /// What the large tier is expected to add, −1 to 1: the same that the metabolic router reads,
    /// and that `route-threshold` reads with `score = "strong-gain"`.
    Gain,
}

impl By {
    /// Both, in the order of their numbers.
    pub const ALL: [By; 2] = [By::Hardness, By::Gain];

    /// What speaks for the large tier; `None` where the classifier does not tell.
    pub fn of(self, c: &Classification) -> Option<f32> {
        match self {
            Self::Hardness => Some(0.5 * c.p_medium + c.p_complex),
            Self::Gain => c.attributes.iter().find_map(|(key, value)| match value {
                Value::Number(gain) if key == "strong-gain" => Some(*gain as f32),
                _ => None,
            }),
        }
    }

    /// For people.
    pub fn word(self) -> &'static str {
        match self {
            Self::Hardness => "hardness",
            Self::Gain => "gain",
        }
    }
}

/// Who decides.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Judgement {
    /// Everything to the large tier, as many drafts as the engine likes.
    AlwaysLarge,
    /// Everything to the small tier.
    AlwaysSmall,
    /// The classifier and a threshold, whatever the machine feels: the large tier from `least` on.
    Threshold {
        /// What is compared with it.
        by: By,
        /// The threshold.
        least: f32,
        /// Most draft tokens of a step.
        drafts: u32,
    },
    /// The host's own policies.
    Metabolic {
        /// The router's setting `energy-price`.
        price: f64,
    },
    /// The same without a part.
    MetabolicWithout {
        /// What is left out.
        part: Part,
        /// The router's setting `energy-price`.
        price: f64,
    },
}

impl Judgement {
    /// Everything to the large tier, with as few drafts as take the least energy.
    pub const FRUGAL_LARGE: Self = Self::Threshold {
        by: By::Hardness,
        least: f32::NEG_INFINITY,
        drafts: FRUGAL_DRAFT_TOKENS,
    };

    /// What a joule is worth to it, if it asks.
    pub fn price(self) -> Option<f64> {
        match self {
            Self::Metabolic { price } | Self::MetabolicWithout { price, .. } => Some(price),
            _ => None,
        }
    }

    /// Whether it is the metabolic host without this part.
    pub fn lacks(self, part: Part) -> bool {
        matches!(self, Self::MetabolicWithout { part: lacking, .. } if lacking == part)
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
        let (largest, drafts) = match self.judgement {
            Judgement::AlwaysLarge => (true, DRAFT_TOKENS),
            Judgement::AlwaysSmall => (false, DRAFT_TOKENS),
            // Of what nobody knows the large tier knows more.
            Judgement::Threshold { by, least, drafts } => {
                (by.of(c).is_none_or(|score| score >= least), drafts)
            }
            Judgement::Metabolic { .. } | Judgement::MetabolicWithout { .. } => {
                return self.own_route(c, tiers);
            }
        };
        let tier = match largest {
            true => tiers.last(),
            false => tiers.first(),
        };
        let step = Step {
            tier: tier.map_or_else(String::new, |tier| tier.id.clone()),
            max_draft_tokens: drafts,
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
        if !self.judgement.lacks(Part::Learning) {
            self.session.learn(outcome);
        }
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
