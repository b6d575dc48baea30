//! How an answer was worked out: a small head over named features, fitted on recorded answers
//! that are known to be right or wrong. What it is worth: `worked.txt`.
//!
//! It says something only where it was fitted: of a finished answer that works with numbers, to a
//! single question that asks for one. It has no say in what a check found, and knows nothing of
//! the machine. A part of an answer has not ended and has not used its numbers yet, so it is
//! never asked about one.

mod features;
mod read;
mod weights;

use homeostat_sdk::{Answer, Endpoint, Finding, Finish, Request, ResponseFormat, Role};

use weights::{FEATURES, INTERCEPT};

/// Log-odds from which on a feature is named to people.
const NAMED: f64 = 0.2;

/// What the head says of one answer.
pub(crate) struct Worked {
    /// Log-odds over an answer whose features are all at their mean.
    pub(crate) score: f32,
    /// Names of the features that speak most against it.
    against: Vec<&'static str>,
}

impl Worked {
    /// One with this score, for tests of what comes after it.
    #[cfg(test)]
    pub(crate) fn scored(score: f32) -> Self {
        Self {
            score,
            against: Vec::new(),
        }
    }

    /// Log-odds of a right answer where nothing else is known.
    pub(crate) fn odds(&self) -> f32 {
        INTERCEPT as f32 + self.score
    }

    /// What people are told.
    pub(crate) fn finding(&self) -> Finding {
        let against = match self.against.is_empty() {
            true => "nothing".to_owned(),
            false => self.against.join(", "),
        };
        Finding {
            check: "worked-answer".to_owned(),
            passed: self.odds() > 0.0,
            detail: format!("log-odds {:+.2}; against it: {against}", self.odds()),
        }
    }
}

/// What the head says; `None` where it has nothing to say.
pub(crate) fn of(request: &Request, answer: &Answer) -> Option<Worked> {
    // Of a conversation the question may be in an earlier message, and so may its numbers.
    let mut said = request.messages.iter().filter(|m| m.role != Role::System);
    let alone = said.next().is_some_and(|m| m.role == Role::User) && said.next().is_none();
    let whole = request.cut_bytes == 0 && answer.finish == Finish::Stop;
    let free =
        request.endpoint == Endpoint::Chat && request.response_format == ResponseFormat::Text;
    if !(alone && whole && free) {
        return None;
    }
    judge(request.question(), &answer.text)
}

fn judge(question: &str, answer: &str) -> Option<Worked> {
    let features = features::of(question, answer)?;
    let (mut score, mut against) = (0.0, Vec::new());
    for (feature, value) in FEATURES.iter().zip(features) {
        let added = feature.weight * (value.clamp(feature.least, feature.most) - feature.mean);
        score += added;
        if added < -NAMED {
            against.push((added, feature.name));
        }
    }
    against.sort_by(|a, b| a.0.total_cmp(&b.0));
    Some(Worked {
        score: score as f32,
        against: against.into_iter().map(|(_, name)| name).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Question, answer, features and score, as Python computes them.
    fn agreed() -> Vec<[String; 4]> {
        let file = include_str!("../../worked.tsv");
        let rows = file.lines().filter(|line| !line.starts_with('#'));
        let cells = rows.map(|row| {
            let mut cells = row.split('\t').map(|cell| cell.replace('⏎', "\n"));
            std::array::from_fn(|_| cells.next().expect("four columns"))
        });
        cells.collect()
    }

    fn number(text: &str) -> f64 {
        text.parse().expect("a number")
    }

    #[test]
    fn rust_and_python_read_the_same_and_compute_the_same() {
        let rows = agreed();
        let mut read = 0;
        for [question, answer, features, score] in &rows {
            let found = features::of(question, answer);
            assert_eq!(found.is_none(), features == "-", "{question:?} {answer:?}");
            let Some(found) = found else {
                continue;
            };
            read += 1;
            let expected: Vec<f64> = features.split(' ').map(number).collect();
            assert_eq!(found.len(), expected.len());
            for ((found, expected), feature) in found.iter().zip(expected).zip(&FEATURES) {
                assert!(
                    (found - expected).abs() < 1e-5,
                    "{} of {answer:?}: {found}, expected {expected}",
                    feature.name
                );
            }
            let found = judge(question, answer).map_or(f64::NAN, |w| f64::from(w.score));
            let expected = number(score);
            assert!(
                (found - expected).abs() < 1e-4,
                "{answer:?}: {found}, expected {expected}"
            );
        }
        let silent = rows.len() - read;
        assert!(read >= 10 && silent >= 4, "{read} read, {silent} not");
    }

    #[test]
    fn the_weights_are_numbers_and_every_feature_can_count() {
        assert!(INTERCEPT.is_finite());
        for feature in &FEATURES {
            let (name, weight) = (feature.name, feature.weight);
            assert!(weight.is_finite() && weight != 0.0, "{name}");
            let range = feature.least..=feature.most;
            assert!(range.contains(&feature.mean), "{name}");
            assert!(feature.least < feature.most, "{name}");
        }
    }

    #[test]
    fn long_and_odd_texts_are_read_to_their_end() {
        let question = "How many are 3 and 4?";
        for answer in [
            "3 + 4 = 7 ".repeat(100_000),
            "<<".repeat(100_000),
            "<<>>".repeat(100_000),
            "'’".repeat(100_000),
            "=".repeat(1400),
            format!("3 + 4 = {}", "9".repeat(5000)),
            "3 + 4 = 7 = \\$-(".to_owned(),
            "1,234,567,89".to_owned(),
            "7.".to_owned(),
        ] {
            let (short, long) = (judge(question, &answer), judge(&answer, &answer));
            assert!(long.is_none_or(|w| w.score.is_finite()));
            assert!(short.is_none_or(|w| w.score.is_finite()));
        }
    }
}
