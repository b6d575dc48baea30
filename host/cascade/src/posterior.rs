//! Is the next tier still worth asking, now that an answer is in hand?
//!
//! A plan is made before the first answer. What the validator then measured of that answer, and
//! what has become of the machine meanwhile, its router could not know. So whenever an answer was
//! left, the steps that could follow are weighed anew. A wrong answer is mended with the
//! probability that the next tier is right, and a right one is spoilt with the probability that
//! it is not; with confidence *c* in the best answer in hand that comes to
//!
//! ```text
//! gain = (1 − c) · q − c · (1 − q) − price · strain = q − c − price · strain
//! ```
//!
//! An answer that is worse than was expected tells of a question that is harder than was thought,
//! for the next tier too. So *q* is the quality that its router expects of it, moved in log-odds by
//! [`SHARED`] of the way from the quality expected of the tier that answered to *c*: a strong
//! doubt may pass over a tier in the middle, which a weak one asks. *strain* is 1, one more for
//! every state by which the machine is worse than the router saw it, and what the share of traffic
//! to be shed has grown by. A machine that has become critical begins nothing larger than what has
//! answered.
//!
//! What a router expects it tells in attributes of its plan, two numbers for every step, counted
//! from 0: `homeostat.step.1.quality`, the probability that its answer is right, and
//! `homeostat.step.1.price`, what one gives up of that probability to save the asking.
//!
//! It refuses to weigh a plan that does not tell both of every step that matters: such a plan is
//! run as it was made. It refuses to set its own sum against what somebody has decided: where an
//! operator set the threshold ([`THRESHOLD_IS_SET`]), or the answer was doubted for something else
//! than its confidence, the steps stay as planned, and only a machine that has become critical
//! takes any away. And it never makes a step cheaper than its router did, since the router may know
//! of more than heat.

use std::collections::VecDeque;

use homeostat_hooks::{MetabolicState, Metabolism, Plan, TierView, Value};

/// Attribute of a plan, a boolean: an operator set the confidence from which answers are accepted,
/// perhaps for a risk that was promised to somebody. That is no matter of price.
const THRESHOLD_IS_SET: &str = "homeostat.threshold-is-set";
/// Share of what an answer tells of its question, and not only of its tier. Models err on the same
/// questions more often than by chance, but a form that was missed or an end that was cut off says
/// nothing of the next one. Assumed, and fitted to nothing.
const SHARED: f32 = 0.25;
/// Beyond this a probability is no more certain: log-odds of nothing have no end.
const EDGE: f32 = 0.02;

/// The best answer so far.
pub(crate) struct InHand {
    /// Which step of the plan gave it.
    pub(crate) place: usize,
    /// Probability that it is right; `None` where no validator was asked.
    pub(crate) confidence: Option<f32>,
}

/// How a plan goes on. Its steps are told by their places in it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Course {
    /// To be tried, in this order.
    pub(crate) next: VecDeque<usize>,
    /// Worth a try as well, and less than what is tried in their stead: for when that fails.
    passed_over: VecDeque<usize>,
    /// What is skipped and why, for people; `None` when nothing is.
    pub(crate) note: Option<String>,
}

impl Course {
    /// Step after step.
    pub(crate) fn of(next: VecDeque<usize>) -> Self {
        Self {
            next,
            ..Self::default()
        }
    }

    /// A step has failed: when it was the last, those that it was preferred to are not too bad.
    pub(crate) fn after_a_failure(&mut self) {
        if self.next.is_empty() {
            self.next = std::mem::take(&mut self.passed_over);
        }
    }
}

/// What a router expects of a step.
struct Expected {
    quality: f32,
    price: f32,
}

impl Expected {
    fn of(plan: &Plan, place: usize) -> Option<Self> {
        let number = |what: &str| {
            let key = format!("homeostat.step.{place}.{what}");
            match plan.attributes.iter().find(|(name, _)| *name == key)? {
                (_, Value::Number(number)) if number.is_finite() => Some(*number as f32),
                _ => None,
            }
        };
        Some(Self {
            quality: number("quality")?.clamp(0.0, 1.0),
            price: number("price")?.max(0.0),
        })
    }

    /// Probability that it is right where `before`, of which `expected` was expected, is right with
    /// this probability.
    fn after(&self, expected: &Self, before: f32) -> f32 {
        let harder = SHARED * (odds(before) - odds(expected.quality));
        1.0 / (1.0 + (-odds(self.quality) - harder).exp())
    }
}

/// In nats.
fn odds(p: f32) -> f32 {
    let p = p.clamp(EDGE, 1.0 - EDGE);
    (p / (1.0 - p)).ln()
}

/// What an answer can be weighed by: its confidence, where that is what it was doubted for and the
/// threshold is the router's own.
fn measured(plan: &Plan, hand: &InHand) -> Option<f32> {
    let set = (THRESHOLD_IS_SET, &Value::Boolean(true));
    let mut told = plan.attributes.iter();
    if told.any(|(name, value)| (name.as_str(), value) == set) {
        return None;
    }
    let threshold = plan.steps[hand.place].accept_threshold;
    hand.confidence.filter(|c| *c < threshold)
}

/// Weighs the steps at the places `later` of a plan that was made when the machine was as `then`,
/// against the answer in hand and the machine as it is `now`.
pub(crate) fn weigh(
    plan: &Plan,
    later: VecDeque<usize>,
    hand: &InHand,
    tiers: &[TierView],
    then: &Metabolism,
    now: &Metabolism,
) -> Course {
    let of_later = later.iter().map(|place| Expected::of(plan, *place));
    let of_later: Option<Vec<Expected>> = of_later.collect();
    let Some((of_hand, of_later)) = Expected::of(plan, hand.place).zip(of_later) else {
        return Course::of(later);
    };
    let answered = plan.steps[hand.place].tier.as_str();
    let rank = |id: &str| tiers.iter().find(|t| t.id == id).map(|t| t.rank);
    let critical = MetabolicState::Critical;
    let became_critical = now.state == critical && then.state != critical;
    let strain = strain(then, now);
    let measured = measured(plan, hand);
    let (mut open, mut skipped) = (Vec::new(), Vec::new());
    for (place, expected) in later.into_iter().zip(of_later) {
        let tier = plan.steps[place].tier.as_str();
        if became_critical && rank(tier) > rank(answered) {
            skipped.push(format!("{tier} is larger than {answered}"));
            continue;
        }
        let Some(confidence) = measured else {
            // Doubted by the surprisal of its tokens, say: nothing was measured to weigh it by.
            open.push((place, 0.0, String::new()));
            continue;
        };
        let quality = expected.after(&of_hand, confidence);
        let price = expected.price * strain;
        let gain = quality - confidence - price;
        let words = format!("{tier} {quality:.2} − {confidence:.2} − {price:.2} = {gain:.2}");
        match gain > 0.0 {
            true => open.push((place, gain, words)),
            false => skipped.push(words),
        }
    }
    let mut course = chosen(open, &mut skipped);
    course.note = (!skipped.is_empty()).then(|| {
        let confidence = hand.confidence.map_or_else(
            || "of unknown confidence".to_owned(),
            |confidence| format!("of confidence {confidence:.2}"),
        );
        let skipped = skipped.join("; ");
        let strained = strained(strain, then, now);
        format!(
            "skipped after the answer of {answered} {confidence} (quality − confidence − price = \
             gain): {skipped}{strained}"
        )
    });
    course
}

/// The best of the steps that are open, by place, gain and words, and those that follow it; of
/// equals the earlier.
fn chosen(open: Vec<(usize, f32, String)>, skipped: &mut Vec<String>) -> Course {
    let best = open
        .iter()
        .fold(0.0, |best: f32, (_, gain, _)| best.max(*gain));
    let mut course = Course::default();
    for (place, gain, words) in open {
        if course.next.is_empty() && gain < best {
            course.passed_over.push_back(place);
            skipped.push(format!("{words}, less than {best:.2} of a later one"));
        } else {
            course.next.push_back(place);
        }
    }
    course
}

/// How many times as dear a step has become.
fn strain(then: &Metabolism, now: &Metabolism) -> f32 {
    let states = (now.state as u8).saturating_sub(then.state as u8);
    let shed = (now.degrade_ratio - then.degrade_ratio).max(0.0);
    1.0 + f32::from(states) + shed
}

/// Why prices are others than the plan's, if they are.
fn strained(strain: f32, then: &Metabolism, now: &Metabolism) -> String {
    if strain <= 1.0 {
        return String::new();
    }
    format!(
        "; prices are {strain:.2} times the plan's, since the machine went from {} with {:.0} % of \
         traffic to be shed to {} with {:.0} %",
        word(then.state),
        then.degrade_ratio * 100.0,
        word(now.state),
        now.degrade_ratio * 100.0
    )
}

fn word(state: MetabolicState) -> &'static str {
    match state {
        MetabolicState::Nominal => "nominal",
        MetabolicState::Elevated => "elevated",
        MetabolicState::Constrained => "constrained",
        MetabolicState::Critical => "critical",
    }
}

#[cfg(test)]
mod tests {
    use homeostat_hooks::Step;

    use super::*;

    /// Three tiers of which the router expects this quality at this price.
    fn planned(expected: &[(f64, f64)]) -> (Plan, Vec<TierView>) {
        let ids = ["small", "middle", "large"];
        let step = |tier: &&str| Step {
            tier: (*tier).into(),
            accept_threshold: 0.9,
            ..Step::default()
        };
        let tier = |(rank, id): (usize, &&str)| TierView {
            id: (*id).into(),
            rank: rank as u32,
            ..TierView::default()
        };
        let told = expected.iter().enumerate().flat_map(|(place, told)| {
            let key = |what: &str| format!("homeostat.step.{place}.{what}");
            [
                (key("quality"), Value::Number(told.0)),
                (key("price"), Value::Number(told.1)),
            ]
        });
        let plan = Plan {
            steps: ids.iter().map(step).collect(),
            attributes: told.collect(),
            ..Plan::default()
        };
        (plan, ids.iter().enumerate().map(tier).collect())
    }

    static TOLD: [(f64, f64); 3] = [(0.4, 0.05), (0.7, 0.15), (0.9, 0.35)];

    fn machine(state: MetabolicState, degrade_ratio: f32) -> Metabolism {
        Metabolism {
            state,
            degrade_ratio,
            ..Metabolism::default()
        }
    }

    /// After the small tier's answer.
    fn after(confidence: Option<f32>, now: &Metabolism) -> Course {
        let (plan, tiers) = planned(&TOLD);
        let hand = InHand {
            place: 0,
            confidence,
        };
        let later = VecDeque::from([1, 2]);
        weigh(&plan, later, &hand, &tiers, &Metabolism::default(), now)
    }

    #[test]
    fn the_best_gain_is_next_and_what_gains_nothing_is_skipped() {
        let calm = Metabolism::default();
        // The question is harder than was thought: 0.70 becomes 0.55, and 0.90 becomes 0.83.
        let jump = after(Some(0.05), &calm);
        assert_eq!(jump.next, [2]);
        assert_eq!(jump.passed_over, [1]);
        let note = jump.note.expect("the middle tier is skipped");
        assert!(note.contains("confidence 0.05"), "{note}");
        let less = "middle 0.55 − 0.05 − 0.15 = 0.35, less than 0.43";
        assert!(note.contains(less), "{note}");
        assert_eq!(after(Some(0.5), &calm), Course::of([1, 2].into()));
        let none = after(Some(0.8), &calm);
        assert!(none.next.is_empty() && none.passed_over.is_empty());
        let note = none.note.expect("both are skipped");
        assert!(note.contains("large 0.93 − 0.80 − 0.35 = -0.22"), "{note}");
        assert!(!note.contains("times the plan's"), "{note}");
    }

    #[test]
    fn a_worse_machine_makes_steps_dearer_and_a_better_one_nothing_cheaper() {
        let elevated = machine(MetabolicState::Elevated, 0.4);
        // The prices are 2.4 times the plan's: 0.36 and 0.84.
        let course = after(Some(0.2), &elevated);
        assert_eq!(course.next, [1]);
        let note = course.note.expect("the large tier is skipped");
        assert!(note.contains("large 0.88 − 0.20 − 0.84 = -0.16"), "{note}");
        let strain = "prices are 2.40 times the plan's, since the machine went from nominal with \
                      0 % of traffic to be shed to elevated with 40 %";
        assert!(note.contains(strain), "{note}");
        let (plan, tiers) = planned(&TOLD);
        let hand = InHand {
            place: 0,
            confidence: Some(0.2),
        };
        let weigh = |now: &Metabolism| {
            let later = VecDeque::from([1, 2]);
            weigh(&plan, later, &hand, &tiers, &elevated, now)
        };
        assert_eq!(weigh(&Metabolism::default()), weigh(&elevated));
    }

    #[test]
    fn a_machine_that_became_critical_begins_nothing_larger() {
        let critical = machine(MetabolicState::Critical, 1.0);
        for confidence in [Some(0.0), None] {
            let course = after(confidence, &critical);
            assert!(course.next.is_empty() && course.passed_over.is_empty());
            let note = course.note.expect("both are skipped");
            assert!(note.contains("large is larger than small"), "{note}");
            assert!(note.contains("to critical with 100 %"), "{note}");
        }
    }

    #[test]
    fn nothing_is_weighed_where_nothing_is_told_or_measured() {
        let later = VecDeque::from([1, 2]);
        let calm = Metabolism::default();
        assert_eq!(after(None, &calm), Course::of(later.clone()));
        let critical = machine(MetabolicState::Critical, 1.0);
        let hand = InHand {
            place: 0,
            confidence: Some(0.9),
        };
        let untold: [&[(f64, f64)]; 3] = [&TOLD[..2], &[], &[TOLD[0], TOLD[1], (f64::NAN, 0.1)]];
        for expected in untold {
            let (plan, tiers) = planned(expected);
            let course = weigh(&plan, later.clone(), &hand, &tiers, &calm, &critical);
            assert_eq!(course, Course::of(later.clone()), "{expected:?}");
        }
    }

    #[test]
    fn what_an_operator_decided_is_weighed_against_nothing_but_a_critical_machine() {
        let calm = Metabolism::default();
        let critical = machine(MetabolicState::Critical, 1.0);
        let (own, tiers) = planned(&TOLD);
        let mut set = own.clone();
        let told = (THRESHOLD_IS_SET.to_owned(), Value::Boolean(true));
        set.attributes.push(told);
        // Below the threshold that was set, and above the router's own: doubted for something else.
        for (plan, confidence) in [(&set, 0.85), (&own, 0.92), (&own, 0.9)] {
            let hand = InHand {
                place: 0,
                confidence: Some(confidence),
            };
            let later = VecDeque::from([1, 2]);
            let weigh = |now: &Metabolism| weigh(plan, later.clone(), &hand, &tiers, &calm, now);
            assert_eq!(weigh(&calm), Course::of(later.clone()), "{confidence}");
            let course = weigh(&critical);
            assert!(course.next.is_empty() && course.passed_over.is_empty());
            let note = course.note.expect("both are skipped");
            assert!(note.contains("large is larger than small"), "{note}");
        }
        assert!(after(Some(0.85), &calm).next.is_empty(), "it is weighed");
    }

    #[test]
    fn what_was_passed_over_is_tried_when_all_that_was_preferred_has_failed() {
        let mut course = after(Some(0.05), &Metabolism::default());
        course.after_a_failure();
        assert_eq!(course.next, [2], "it has not been tried");
        course.next.pop_front();
        course.after_a_failure();
        assert_eq!(course.next, [1]);
        course.next.pop_front();
        course.after_a_failure();
        assert!(course.next.is_empty());
    }
}
