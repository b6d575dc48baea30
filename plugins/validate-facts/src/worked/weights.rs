//! The fitted weights. Written by `models/train/fit_answers.py`; `worked.txt` tells how, from
//! what, when, and how good they are.

/// A feature.
pub(crate) struct Feature {
    pub(crate) name: &'static str,
    pub(crate) mean: f64,
    /// The range that it had in fitting; beyond it nobody has seen what it means.
    pub(crate) least: f64,
    pub(crate) most: f64,
    /// Log-odds of a right answer, for one more.
    pub(crate) weight: f64,
}

/// How many there are.
pub(crate) const COUNT: usize = 9;

/// Log-odds of an answer whose features are all at their mean, where nothing else is known.
pub(crate) const INTERCEPT: f64 = 1.021;

pub(crate) const FEATURES: [Feature; COUNT] = [
    // Words of the question, ln(1 + n).
    Feature {
        name: "question-words",
        mean: 3.7083,
        least: 2.6391,
        most: 4.8363,
        weight: -0.5336,
    },
    // Words of the sentence that asks, ln(1 + n).
    Feature {
        name: "asked-words",
        mean: 2.5727,
        least: 1.6094,
        most: 3.8712,
        weight: -0.4656,
    },
    // Distinct numbers of the question, in digits or words, ln(1 + n).
    Feature {
        name: "question-numbers",
        mean: 1.5315,
        least: 1.0986,
        most: 2.1972,
        weight: -0.4459,
    },
    // Share of the question's numbers that the answer does not have.
    Feature {
        name: "unused-numbers",
        mean: 0.0291,
        least: 0.0,
        most: 0.6667,
        weight: -3.7222,
    },
    // It ends within an expression.
    Feature {
        name: "breaks-off",
        mean: 0.0136,
        least: 0.0,
        most: 1.0,
        weight: -3.2513,
    },
    // Results that neither a later step nor the end uses, ln(1 + n).
    Feature {
        name: "unused-results",
        mean: 0.0442,
        least: 0.0,
        most: 2.1972,
        weight: -0.6542,
    },
    // Since, because, ln(1 + n).
    Feature {
        name: "reasons",
        mean: 0.225,
        least: 0.0,
        most: 1.6094,
        weight: -0.8313,
    },
    // However, but, actually, sorry and the like, ln(1 + n).
    Feature {
        name: "turns",
        mean: 0.0311,
        least: 0.0,
        most: 1.0986,
        weight: -1.4927,
    },
    // Results on the way that are no whole numbers, ln(1 + n).
    Feature {
        name: "broken-results",
        mean: 0.0711,
        least: 0.0,
        most: 1.7918,
        weight: -1.4391,
    },
];
