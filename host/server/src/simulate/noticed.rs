//! What the metabolic router is told of its validator: how many of the small tier's wrong answers
//! it notices, and how many of the right ones it doubts, as `homeostat policy calibrate` counts
//! them from judged answers.
//!
//! The host's own validator is shown the small tier's answers to the rows from which an operator
//! knows his tiers. It refuses to look at a row that is asked, and to count what too few answers
//! show: of that the router assumes what it assumes on every host.

use std::collections::BTreeMap;
use std::sync::Arc;

use homeostat_hooks::{Finish, Hook};
use homeostat_policy::PolicyRoom;

use super::judgement::{Judgement, Part};
use super::traffic::Recorded;
use crate::Failure;
use crate::bench::ask::Asked;
use crate::commands::calibrate::JUDGED_MIN;

/// Confidence from which `route-metabolic` accepts an answer where nobody sets it and nothing
/// presses: that of its preset for simulated machines, of the profile edge.
pub const ACCEPT_THRESHOLD: f64 = 0.55;

/// Shares of answers that fall below the threshold; `None` where too few were judged.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Ratios {
    /// Of the wrong ones.
    pub noticed: Option<f64>,
    /// Of the right ones.
    pub doubted: Option<f64>,
}

impl Ratios {
    /// Shows the answers to the validator of this room.
    pub fn count(recorded: &Recorded, room: &Arc<PolicyRoom>) -> Result<Self, Failure> {
        let mut validator = Asked::of(Arc::clone(room), Hook::Validate)?;
        let (mut right, mut wrong) = (Judged::default(), Judged::default());
        for (row, text, weight) in recorded.tried() {
            // A simulated tier tells no log-probabilities, whatever was recorded.
            let confidence = validator.confidence(row.request(), &text, &[], Finish::Stop)?;
            let judged = match row.outcome.weak > 0.5 {
                true => &mut right,
                false => &mut wrong,
            };
            judged.add(weight, confidence < ACCEPT_THRESHOLD);
        }
        Ok(Self {
            noticed: wrong.ratio(),
            doubted: right.ratio(),
        })
    }

    /// Writes them into a router's settings, as `policy calibrate` does.
    pub fn tell(&self, judgement: Judgement, settings: &mut BTreeMap<String, String>) {
        // Whoever never asks a second tier must not count on it.
        let noticed = match judgement.lacks(Part::Validation) {
            true => Some(0.0),
            false => self.noticed,
        };
        for (key, ratio) in [("noticed-ratio", noticed), ("doubted-ratio", self.doubted)] {
            settings.extend(ratio.map(|ratio| (key.to_owned(), format!("{ratio:.3}"))));
        }
    }

    /// For people.
    pub fn in_words(&self) -> String {
        let share = |ratio: Option<f64>| {
            ratio.map_or_else(
                || "an unknown share".to_owned(),
                |r| format!("{:.1} %", 100.0 * r),
            )
        };
        format!(
            "of the small tier's answers the validator doubts {} of the wrong and {} of the right \
             ones, on rows that are not asked; what is known of it the metabolic router is told",
            share(self.noticed),
            share(self.doubted)
        )
    }

    /// What is missing, if anything.
    pub fn shortcoming(&self) -> Option<String> {
        let is_whole = self.noticed.is_some() && self.doubted.is_some();
        (!is_whole).then(|| {
            format!(
                "fewer than {JUDGED_MIN} wrong or right answers are known besides those that are \
                 asked: what the validator notices of them the metabolic router assumes"
            )
        })
    }
}

/// Answers of one kind.
#[derive(Default)]
struct Judged {
    count: usize,
    all: f64,
    below: f64,
}

impl Judged {
    fn add(&mut self, weight: f64, is_below: bool) {
        self.count += 1;
        self.all += weight;
        self.below += f64::from(u8::from(is_below)) * weight;
    }

    fn ratio(&self) -> Option<f64> {
        (self.count >= JUDGED_MIN).then(|| self.below / self.all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_counted_is_told_and_without_validation_nothing_is_noticed() {
        let told = |ratios: Ratios, judgement| {
            let mut settings = BTreeMap::new();
            ratios.tell(judgement, &mut settings);
            let of = |key: &str| settings.get(key).cloned();
            (of("noticed-ratio"), of("doubted-ratio"))
        };
        let whole = Judgement::Metabolic { price: 0.4 };
        let without = |part| Judgement::MetabolicWithout { part, price: 0.4 };
        let counted = Ratios {
            noticed: Some(0.25),
            doubted: Some(1.0 / 3.0),
        };
        let some = |text: &str| Some(text.to_owned());
        let both = (some("0.250"), some("0.333"));
        assert_eq!(told(counted, whole), both);
        assert_eq!(told(counted, without(Part::Learning)), both);
        let nothing = (some("0.000"), some("0.333"));
        assert_eq!(told(counted, without(Part::Validation)), nothing);
        assert_eq!(told(Ratios::default(), whole), (None, None));
        let unknown = Ratios::default().shortcoming();
        assert!(unknown.is_some() && counted.shortcoming().is_none());
    }

    #[test]
    fn a_share_of_few_is_none_and_sets_count_alike() {
        let mut judged = Judged::default();
        (1..JUDGED_MIN).for_each(|_| judged.add(0.1, true));
        assert_eq!(judged.ratio(), None);
        (0..10).for_each(|_| judged.add(0.29, false));
        let ratio = judged.ratio().expect("enough");
        assert!((ratio - 0.5).abs() < 1e-9, "{ratio}");
    }
}
