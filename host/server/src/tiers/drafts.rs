//! What guessing ahead costs and gains a tier, measured on its own answers.
//!
//! The engine never verifies more of a draft than its step times make worth it; what that does
//! to energy it cannot know. So answers that might guess and answers that might not are told
//! apart, and routers are shown both as attributes of the tier: `homeostat.tpot-plain-ms` and
//! `homeostat.tpot-drafted-ms`, `homeostat.joules-plain` and `homeostat.joules-drafted` (of
//! writing, per token, where the books know), and `homeostat.draft-accepted-ratio`.
//!
//! A guess is checked for free while a step waits for the weights, and costs a neighbour's time
//! once it waits for the arithmetic. So answers are kept apart by how many ran beside them and by
//! how much they had to read, and what is shown is what a request would meet now. What too few
//! answers of that load have shown is not there.
//!
//! The same figures tell what one more answer would cost. Weights are read once for all that are
//! computed together, so who joins others adds less than who has the tier for himself:
//! `homeostat.joules-joining-ratio`.

use homeostat_engine::EngineStats;
use homeostat_hooks::{Attribute, Value};

use crate::mean::Mean;

/// Tokens of an answer from which its time and energy are its own and not its prompt's.
const TOKENS_MIN: usize = 8;
/// Answers, and joules of answers, after which a mean is told.
const ANSWERS_MIN: u32 = 3;
/// Draft tokens after which their acceptance is told.
const DRAFTED_MIN: u64 = 64;
/// Weight of the newest answer: the last ten or so count.
const MEAN_WEIGHT: f64 = 0.2;
/// The same of what all of a tier's answers take: as slow as routers learn it.
const ALL_WEIGHT: f64 = 0.05;

/// Sequences in a batch from which it is no longer a small one, and from which it is large.
const BATCHES: [usize; 2] = [2, 5];
/// Tokens of a prompt from which its keys and values are a part of what a step reads.
const LONG_CONTEXT: usize = 512;

/// How busy a tier is, as far as it decides what a guess is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Load {
    /// Sequences in the batch, with this one.
    batch: usize,
    /// 0 = a short prompt, 1 = a long one.
    context: usize,
}

impl Load {
    /// What an answer meets that comes now, with a prompt of so many tokens. Those that wait are
    /// computed with it as far as there is room: of a burst that came between two steps none runs
    /// yet.
    pub fn met_by_the_next(stats: &EngineStats, prompt_tokens: usize) -> Self {
        let all = stats.num_requests_running + stats.num_requests_waiting;
        let room = stats.max_requests_running.saturating_sub(1);
        Self::beside(all.min(room), prompt_tokens)
    }

    /// What an answer meets beside so many others, with a prompt of so many tokens.
    pub fn beside(running: usize, prompt_tokens: usize) -> Self {
        Self {
            batch: running + 1,
            context: usize::from(prompt_tokens >= LONG_CONTEXT),
        }
    }

    /// 0 = alone, then a small batch, then a large one.
    fn class(self) -> usize {
        BATCHES.partition_point(|bound| *bound <= self.batch)
    }
}

/// Means of answers that might guess, and of those that might not, by the load they met.
#[derive(Debug, Default, Clone, Copy)]
pub struct Drafts {
    arms: [[Arms; 2]; BATCHES.len() + 1],
    /// Of writing, per token, whatever the load.
    joules: Mean,
}

/// The two kinds of answers at one load.
#[derive(Debug, Default, Clone, Copy)]
struct Arms {
    plain: Arm,
    drafted: Arm,
}

#[derive(Debug, Default, Clone, Copy)]
struct Arm {
    tpot_ms: Mean,
    joules: Mean,
    /// Sequences in the batches whose joules those are.
    batch: Mean,
}

/// What one of so many answers is booked of what they share: the harmonic number of their count
/// over it. Between two counts as between the figures beside it.
fn booked_share(count: f64) -> f64 {
    let at = |count: usize| (1..=count).map(|n| 1.0 / n as f64).sum::<f64>() / count as f64;
    let (below, part) = (count.floor() as usize, count.fract());
    at(below) + part * (at(below + 1) - at(below))
}

/// What routers are shown of a mean, if enough answers have shown it.
fn told(mean: Mean, name: &str) -> Option<Attribute> {
    let value = mean.known(ANSWERS_MIN).filter(|value| value.is_finite())?;
    Some((name.to_owned(), Value::Number(value)))
}

impl Drafts {
    /// An answer of so many tokens is over; the load that it met, whether it might guess, its time
    /// per token after the first in ms, and the energy of writing it, J, if the books know.
    pub fn take(
        &mut self,
        load: Load,
        might_guess: bool,
        tokens: usize,
        tpot_ms: f64,
        joules: Option<f64>,
    ) {
        if tokens < TOKENS_MIN {
            return;
        }
        let arms = &mut self.arms[load.class()][load.context];
        let arm = match might_guess {
            true => &mut arms.drafted,
            false => &mut arms.plain,
        };
        arm.tpot_ms.take(tpot_ms, MEAN_WEIGHT);
        if let Some(joules) = joules {
            let each = joules / tokens as f64;
            arm.joules.take(each, MEAN_WEIGHT);
            arm.batch.take(load.batch as f64, MEAN_WEIGHT);
            self.joules.take(each, ALL_WEIGHT);
        }
    }

    /// Energy that writing one more answer would add at this load, over what the tier's answers
    /// have taken in the mean; of the kind, with or without drafts, that adds less.
    ///
    /// Who joins *n* − 1 answers of like length, each somewhere in its middle, is one of *n* for a
    /// while and then one of fewer. Of what the batch shares he is booked *H*(*n*) / *n* in the
    /// mean, *H* the harmonic numbers, but as he relieves the others as well, he adds only 1 / *n*
    /// of it: the batch lasts that much longer. The first figure the books know, so the share is
    /// solved from it. Where others join later it is taken for larger than it is, as is right: then
    /// they relieve him.
    fn joining_ratio(&self, load: Load) -> Option<f64> {
        let usual = self
            .joules
            .known(ANSWERS_MIN)
            .filter(|usual| *usual > 0.0)?;
        let [alone, now] = [0, load.class()].map(|class| &self.arms[class][load.context]);
        let added = |alone: &Arm, now: &Arm| {
            let alone = alone.joules.known(ANSWERS_MIN)?;
            let (booked, met) = (
                now.joules.known(ANSWERS_MIN)?,
                now.batch.known(ANSWERS_MIN)?,
            );
            let is_shared = match met > 1.0 {
                true => ((1.0 - booked / alone) / (1.0 - booked_share(met))).clamp(0.0, 1.0),
                false => 0.0,
            };
            let added = 1.0 - is_shared + is_shared / load.batch as f64;
            Some(alone * added / usual).filter(|ratio| ratio.is_finite())
        };
        let kinds = [
            added(&alone.plain, &now.plain),
            added(&alone.drafted, &now.drafted),
        ];
        kinds.into_iter().flatten().min_by(f64::total_cmp)
    }

    /// What routers are shown of it at this load.
    pub fn attributes(&self, load: Load, stats: &EngineStats) -> Vec<Attribute> {
        let Arms { plain, drafted } = self.arms[load.class()][load.context];
        let guessed = stats.spec_decode_num_draft_tokens_total;
        let accepted = stats.spec_decode_num_accepted_tokens_total as f64 / guessed as f64;
        let accepted = (guessed >= DRAFTED_MIN).then_some(accepted);
        let ratio = |name: &str, ratio| (name.to_owned(), Value::Number(ratio));
        let joining = self.joining_ratio(load);
        [
            told(plain.tpot_ms, "homeostat.tpot-plain-ms"),
            told(drafted.tpot_ms, "homeostat.tpot-drafted-ms"),
            told(plain.joules, "homeostat.joules-plain"),
            told(drafted.joules, "homeostat.joules-drafted"),
            joining.map(|joining| ratio("homeostat.joules-joining-ratio", joining)),
            accepted.map(|accepted| ratio("homeostat.draft-accepted-ratio", accepted)),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Alone, with a short prompt.
    const ALONE: Load = Load {
        batch: 1,
        context: 0,
    };

    fn told(drafts: &Drafts, load: Load, stats: &EngineStats) -> Vec<(String, f64)> {
        let number = |(key, value): Attribute| match value {
            Value::Number(number) => (key, number),
            other => panic!("{key}: {other:?}"),
        };
        let attributes = drafts.attributes(load, stats);
        attributes.into_iter().map(number).collect()
    }

    #[test]
    fn both_kinds_are_told_apart_once_three_answers_have_shown_them() {
        let mut drafts = Drafts::default();
        let mut stats = EngineStats::default();
        for _ in 0..3 {
            assert!(told(&drafts, ALONE, &stats).is_empty());
            drafts.take(ALONE, true, 20, 5.0, Some(40.0));
            drafts.take(ALONE, true, 2, 500.0, Some(40.0));
        }
        (0..5).for_each(|_| drafts.take(ALONE, false, 20, 8.0, None));
        stats.spec_decode_num_draft_tokens_total = 80;
        stats.spec_decode_num_accepted_tokens_total = 60;
        let expected = [
            ("homeostat.tpot-plain-ms", 8.0),
            ("homeostat.tpot-drafted-ms", 5.0),
            ("homeostat.joules-drafted", 2.0),
            ("homeostat.joules-joining-ratio", 1.0),
            ("homeostat.draft-accepted-ratio", 0.75),
        ];
        assert_eq!(
            told(&drafts, ALONE, &stats),
            expected.map(|(key, value)| (key.to_owned(), value))
        );
    }

    #[test]
    fn drafts_that_save_alone_and_cost_in_a_batch_of_eight_are_shown_as_what_they_are() {
        let mut drafts = Drafts::default();
        let eight = Load::beside(7, 100);
        for _ in 0..4 {
            drafts.take(ALONE, false, 20, 8.0, Some(40.0));
            drafts.take(ALONE, true, 20, 5.0, Some(20.0));
            drafts.take(eight, false, 20, 9.0, Some(10.0));
            drafts.take(eight, true, 20, 12.0, Some(16.0));
        }
        let joules = |load| {
            let told = told(&drafts, load, &EngineStats::default());
            let of = |key: &str| {
                let found = told.iter().find(|(name, _)| name == key);
                found.expect("four answers").1
            };
            (of("homeostat.joules-plain"), of("homeostat.joules-drafted"))
        };
        assert_eq!(joules(ALONE), (2.0, 1.0));
        assert_eq!(joules(eight), (0.5, 0.8));
        // Nobody has seen a batch of three, or a long prompt.
        for unseen in [Load::beside(2, 100), Load::beside(7, 600)] {
            assert!(told(&drafts, unseen, &EngineStats::default()).is_empty());
        }
    }

    #[test]
    fn loads_are_told_apart_where_the_batch_or_the_prompt_grows() {
        let batches = [0, 1, 3, 4, 60].map(|running| Load::beside(running, 0).class());
        assert_eq!(batches, [0, 1, 1, 2, 2]);
        let contexts = [0, 511, 512].map(|tokens| Load::beside(0, tokens).context);
        assert_eq!(contexts, [0, 0, 1]);
        assert_eq!(Load::beside(0, 0), ALONE);
    }

    #[test]
    fn those_that_wait_are_beside_the_next_as_far_as_there_is_room() {
        let met = |running, waiting, most| {
            let stats = EngineStats {
                num_requests_running: running,
                num_requests_waiting: waiting,
                max_requests_running: most,
                ..EngineStats::default()
            };
            Load::met_by_the_next(&stats, 0)
        };
        assert_eq!(met(0, 0, 8), ALONE);
        assert_eq!(met(0, 7, 8), Load::beside(7, 0), "none of a burst runs yet");
        assert_eq!(met(1, 1, 8), Load::beside(2, 0));
        // They are computed one after another.
        assert_eq!(met(1, 6, 1), ALONE);
        // Nobody joins them before one has ended.
        assert_eq!(met(2, 6, 2), Load::beside(1, 0));
    }

    /// What joining is told to cost; answers alone take 4 J a token.
    fn joining(drafts: &Drafts, running: usize) -> Option<f64> {
        let told = told(drafts, Load::beside(running, 100), &EngineStats::default());
        let key = "homeostat.joules-joining-ratio";
        told.into_iter()
            .find_map(|(name, ratio)| (name == key).then_some(ratio))
    }

    /// Answers of a tier of which so much is shared by those that are computed together, each begun
    /// in the middle of another one that is as long.
    fn shared(ratio: f64) -> Drafts {
        let mut drafts = Drafts::default();
        for _ in 0..4 {
            drafts.take(Load::beside(0, 100), false, 20, 8.0, Some(80.0));
            let booked = 80.0 * (1.0 - ratio + ratio * 0.75);
            drafts.take(Load::beside(1, 100), false, 20, 8.0, Some(booked));
        }
        drafts
    }

    #[test]
    fn who_joins_others_adds_what_they_do_not_share() {
        for ratio in [0.0, 0.4, 1.0] {
            let drafts = shared(ratio);
            let alone = joining(&drafts, 0).expect("four answers");
            let each = [1, 2, 3].map(|running| joining(&drafts, running).expect("told") / alone);
            let expected = [2.0, 3.0, 4.0].map(|n: f64| 1.0 - ratio + ratio / n);
            for (told, expected) in each.into_iter().zip(expected) {
                assert!((told - expected).abs() < 1e-9, "{ratio}: {told} {expected}");
            }
            assert!(alone >= 1.0, "the mean is of answers that shared: {alone}");
        }
    }

    #[test]
    fn what_joining_costs_is_told_by_joules_of_both_loads_only() {
        assert_eq!(joining(&Drafts::default(), 0), None);
        let drafts = shared(0.5);
        assert_eq!(joining(&drafts, 7), None, "no large batch was seen");
        let mut unbooked = Drafts::default();
        (0..4).for_each(|_| unbooked.take(Load::beside(0, 100), false, 20, 8.0, None));
        assert_eq!(joining(&unbooked, 0), None);
    }

    #[test]
    fn one_of_several_is_booked_more_of_what_they_share_than_he_adds() {
        let booked = [1.0, 2.0, 2.5, 3.0].map(booked_share);
        let expected = [1.0, 0.75, (0.75 + 11.0 / 18.0) / 2.0, 11.0 / 18.0];
        for (booked, expected) in booked.into_iter().zip(expected) {
            assert!((booked - expected).abs() < 1e-12);
        }
    }
}
