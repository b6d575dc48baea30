//! What guessing ahead costs and gains a tier, measured on its own answers.
//!
//! The engine never verifies more of a draft than its step times make worth it; what that does
//! to energy it cannot know. So answers that might guess and answers that might not are told
//! apart, and routers are shown both as attributes of the tier: `homeostat.tpot-plain-ms` and
//! `homeostat.tpot-drafted-ms`, `homeostat.joules-plain` and `homeostat.joules-drafted` (per
//! token, where the books know), and `homeostat.draft-accepted-ratio`. What too few answers have
//! shown is not there.

use homeostat_engine::EngineStats;
use homeostat_hooks::{Attribute, Value};

/// Tokens of an answer from which its time and energy are its own and not its prompt's.
const TOKENS_MIN: usize = 8;
/// Answers, and joules of answers, after which a mean is told.
const ANSWERS_MIN: u32 = 3;
/// Draft tokens after which their acceptance is told.
const DRAFTED_MIN: u64 = 64;
/// Weight of the newest answer: the last ten or so count.
const MEAN_WEIGHT: f64 = 0.2;

/// Means of answers that might guess, and of those that might not.
#[derive(Debug, Default, Clone, Copy)]
pub struct Drafts {
    plain: Arm,
    drafted: Arm,
}

#[derive(Debug, Default, Clone, Copy)]
struct Arm {
    tpot_ms: Mean,
    joules: Mean,
}

#[derive(Debug, Default, Clone, Copy)]
struct Mean {
    value: f64,
    count: u32,
}

impl Mean {
    fn take(&mut self, news: f64) {
        self.count = self.count.saturating_add(1);
        self.value += MEAN_WEIGHT.max(1.0 / f64::from(self.count)) * (news - self.value);
    }

    fn told(self, name: &str) -> Option<Attribute> {
        let known = self.count >= ANSWERS_MIN && self.value.is_finite();
        known.then(|| (name.to_owned(), Value::Number(self.value)))
    }
}

impl Drafts {
    /// An answer of so many tokens is over; whether it might guess, its time per token after the
    /// first in ms, and its energy in all, if the books know.
    pub fn take(&mut self, might_guess: bool, tokens: usize, tpot_ms: f64, joules: Option<f64>) {
        if tokens < TOKENS_MIN {
            return;
        }
        let arm = match might_guess {
            true => &mut self.drafted,
            false => &mut self.plain,
        };
        arm.tpot_ms.take(tpot_ms);
        if let Some(joules) = joules {
            arm.joules.take(joules / tokens as f64);
        }
    }

    /// What routers are shown of it.
    pub fn attributes(&self, stats: &EngineStats) -> Vec<Attribute> {
        let drafted = stats.spec_decode_num_draft_tokens_total;
        let accepted = stats.spec_decode_num_accepted_tokens_total as f64 / drafted as f64;
        let accepted = (drafted >= DRAFTED_MIN).then_some(accepted);
        let ratio = |ratio| {
            (
                "homeostat.draft-accepted-ratio".to_owned(),
                Value::Number(ratio),
            )
        };
        [
            self.plain.tpot_ms.told("homeostat.tpot-plain-ms"),
            self.drafted.tpot_ms.told("homeostat.tpot-drafted-ms"),
            self.plain.joules.told("homeostat.joules-plain"),
            self.drafted.joules.told("homeostat.joules-drafted"),
            accepted.map(ratio),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(drafts: &Drafts, stats: &EngineStats) -> Vec<(String, f64)> {
        let number = |(key, value): Attribute| match value {
            Value::Number(number) => (key, number),
            other => panic!("{key}: {other:?}"),
        };
        drafts.attributes(stats).into_iter().map(number).collect()
    }

    #[test]
    fn both_kinds_are_told_apart_once_three_answers_have_shown_them() {
        let mut drafts = Drafts::default();
        let mut stats = EngineStats::default();
        for _ in 0..3 {
            assert!(told(&drafts, &stats).is_empty());
            drafts.take(true, 20, 5.0, Some(40.0));
            drafts.take(true, 2, 500.0, Some(40.0));
        }
        (0..5).for_each(|_| drafts.take(false, 20, 8.0, None));
        stats.spec_decode_num_draft_tokens_total = 80;
        stats.spec_decode_num_accepted_tokens_total = 60;
        let expected = [
            ("homeostat.tpot-plain-ms", 8.0),
            ("homeostat.tpot-drafted-ms", 5.0),
            ("homeostat.joules-drafted", 2.0),
            ("homeostat.draft-accepted-ratio", 0.75),
        ];
        assert_eq!(
            told(&drafts, &stats),
            expected.map(|(key, value)| (key.to_owned(), value))
        );
    }
}
