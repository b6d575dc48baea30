//! How hard is a request? Judged by its words, in microseconds, without a model.
//!
//! Two fitted readers estimate how much a strong model would gain over a weak one: hashed
//! 1-2-grams for multiple-choice questions, shape features (lengths, numbers, word lists)
//! for everything else ([`weights`]). What they were fitted on is narrow, and what is
//! learned on one benchmark does not carry to another. So the classifier counts how many
//! of a prompt's words it has ever seen, says so as its confidence, and the less it has
//! seen, the more it leans on hand-set marks of difficulty ([`marks`]).
//!
//! Beside the classes stands a second head ([`outcomes`]): what a weak and a strong model
//! would make of the request, as recorded ones did. Its attributes are `weak-right`, the
//! probability that the weak one's answer is right, and `strong-gain`, what the strong one adds.
//!
//! It reads only the last message of the person. It keeps nothing, needs no grant, and
//! gives the same answer to the same words for ever.

pub mod features;
mod marks;
pub mod outcomes;
pub mod prompt;
pub mod weights;

use homeostat_sdk::*;

use features::Text;
use prompt::Prompt;
use weights::Weights;

struct Lexical;

impl Classifier for Lexical {
    fn classify(request: &Request, _: &Snapshot) -> Result<Classification> {
        Ok(classify(request))
    }
}

export_classifier!(Lexical);

/// The classification, without a host.
pub fn classify(request: &Request) -> Classification {
    let prompt = Prompt::read(request.question());
    let text = Text::of(&prompt);
    let weights = Weights::embedded();
    let marks = marks::read(request, &text);
    let experience = experience(&prompt, &text, &weights);
    let gain = gain(&text, &weights);
    let outcomes = outcomes::expected(&prompt);
    let (slope, middle) = weights.curve(text.is_choice());
    let fitted = 1.0 / (1.0 + (-slope * (gain - middle)).exp());
    let hard = experience * fitted + (1.0 - experience) * marks.hardness;
    Classification {
        // Two independent looks at the same hardness: both easy, one of each, both hard.
        p_simple: (1.0 - hard) * (1.0 - hard),
        p_medium: 2.0 * hard * (1.0 - hard),
        p_complex: hard * hard,
        task: marks.task,
        dimensions: marks.dimensions,
        // The fitted readers are right more often than chance, not often: even within
        // their experience they deserve no more than this.
        confidence: 0.2 + 0.6 * experience,
        attributes: vec![
            ("weak-right".to_owned(), Value::Number(outcomes.weak_right)),
            (
                "strong-gain".to_owned(),
                Value::Number(outcomes.strong_gain),
            ),
        ],
    }
}

/// What a strong model is expected to gain over a weak one, −1 to 1.
pub fn gain(text: &Text<'_>, weights: &Weights<'_>) -> f32 {
    if text.is_choice() {
        weights.choice_gain(&text.grams())
    } else {
        weights.shape_gain(&text.shape())
    }
}

/// How far this prompt lies within what was fitted on, 0 to 1.
fn experience(prompt: &Prompt<'_>, text: &Text<'_>, weights: &Weights<'_>) -> f32 {
    let (known, words) = weights.known(text);
    if words < 3 {
        return 0.0;
    }
    let share = known as f32 / words as f32;
    let familiar = ((share - 0.5) / 0.35).clamp(0.0, 1.0);
    // The shape reader knows word problems: texts with numbers to calculate with.
    if text.is_choice() || prompt.numbers().count() >= 2 {
        familiar
    } else {
        0.2 * familiar
    }
}

#[cfg(test)]
mod tests;
