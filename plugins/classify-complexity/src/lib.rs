//! How hard is a request? As complex as NVIDIA's prompt-task-and-complexity-classifier finds it.
//!
//! Where the operator has that model's weights, the host runs it (`[encoder.prompt_classifier]`)
//! and answers `embed` with its scores: [`SCORES`], then the probability of each of [`TASKS`].
//! Two thresholds part the complexity into classes, softly:
//!
//! ```text
//! P(medium or complex) = σ((complexity − medium) / temperature)
//! P(complex)           = σ((complexity − complex) / temperature)
//! ```
//!
//! The score weighs creativity most (0.35): it says how complex a prompt is, not whether a small
//! model would fail, so the classifier is never surer than [`CONFIDENCE`]. The thresholds are set
//! by hand: NVIDIA's weights were not available where this was written. Set them by your own
//! traffic.
//!
//! Ordinary shares without confidence are proposed first. Where the model is missing or late, the
//! call ends in an error that says so, and the proposal holds.

use homeostat_sdk::*;

/// The first numbers that the host's prompt classifier answers, in this order. All but
/// `few-shots`, the number of examples, lie between 0 and 1; `complexity` exceeds 1 only where
/// there are several examples. After them comes the probability of the likeliest task.
pub const SCORES: [&str; 7] = [
    "complexity",
    "creativity",
    "reasoning",
    "contextual-knowledge",
    "few-shots",
    "domain-knowledge",
    "constraints",
];
/// The number that is no share.
const FEW_SHOTS: usize = 4;

/// The tasks whose probabilities follow, in this order.
pub const TASKS: [Task; 11] = [
    Task::OpenQa,
    Task::ClosedQa,
    Task::Summarization,
    Task::TextGeneration,
    Task::CodeGeneration,
    Task::Chatbot,
    Task::Classification,
    Task::Rewrite,
    Task::Brainstorming,
    Task::Extraction,
    Task::Other,
];

/// Numbers in all.
const NUMBERS: usize = SCORES.len() + 1 + TASKS.len();

/// Characters that are read: what the model reads of almost any text in English.
const CHARS_MAX: usize = 2000;
/// How often a text that is still too long is cut in half.
const HALVINGS_MAX: usize = 3;
/// Shares of simple, medium and complex requests in ordinary traffic.
const ORDINARY: [f32; 3] = [0.55, 0.3, 0.15];
/// Complexity is a sign of difficulty, and no more.
pub const CONFIDENCE: f32 = 0.5;

/// What the operator sets.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Id of the host's prompt classifier.
    pub classifier: String,
    /// Complexity from which a request is rather medium than simple.
    pub medium: f32,
    /// Complexity from which it is rather complex than medium.
    pub complex: f32,
    /// How soft the thresholds are.
    pub temperature: f32,
}

impl Settings {
    /// The defaults with the operator's settings over them.
    ///
    /// # Errors
    /// When a setting is no number in its range, or the thresholds are not in their order.
    pub fn read(config: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let number = |key: &str, default: f32, least: f32| match config(key) {
            None => Ok(default),
            Some(text) => match text.parse::<f32>() {
                Ok(n) if (least..=1.0).contains(&n) => Ok(n),
                _ => Err(Error::InvalidArgument(format!(
                    "setting {key} is {text:?}, expected {least} to 1"
                ))),
            },
        };
        let settings = Self {
            classifier: config("classifier").unwrap_or_else(|| "prompt-classifier".to_owned()),
            medium: number("medium", 0.2, 0.0)?,
            complex: number("complex", 0.4, 0.0)?,
            temperature: number("temperature", 0.06, 0.001)?,
        };
        if settings.medium >= settings.complex {
            return Err(Error::InvalidArgument(format!(
                "setting medium is {}, expected less than complex, which is {}",
                settings.medium, settings.complex
            )));
        }
        Ok(settings)
    }
}

struct Complexity;

impl Classifier for Complexity {
    fn classify(request: &Request, _: &Snapshot) -> Result<Classification> {
        let settings = Settings::read(config)?;
        let text: String = request.question().chars().take(CHARS_MAX).collect();
        if text.trim().is_empty() {
            return Ok(ordinary());
        }
        propose::classification(ordinary());
        let numbers = Model::open(&settings.classifier)
            .and_then(|model| ask(&model, &text))
            .map_err(|e| {
                Error::Unavailable(format!("no scores by {}: {e}", settings.classifier))
            })?;
        classify(&numbers, &settings)
    }
}

export_classifier!(Complexity);

/// The numbers of a text, or of its beginning where it is longer than the model reads.
fn ask(model: &Model, mut text: &str) -> Result<Vec<f32>> {
    for _ in 0..HALVINGS_MAX {
        match model.embed(text) {
            Err(Error::LimitExceeded(_)) => {
                text = &text[..text.floor_char_boundary(text.len() / 2)];
            }
            other => return other,
        }
    }
    model.embed(text)
}

/// The classification of a request with these numbers, without a host.
///
/// # Errors
/// When they are not those of a prompt classifier: another count, or no numbers.
pub fn classify(numbers: &[f32], settings: &Settings) -> Result<Classification> {
    if numbers.len() != NUMBERS || !numbers.iter().all(|x| x.is_finite()) {
        return Err(Error::Unavailable(format!(
            "{} gave {} numbers, expected {NUMBERS} finite ones: it is no prompt classifier",
            settings.classifier,
            numbers.len()
        )));
    }
    let complexity = numbers[0];
    let beyond = |threshold: f32| {
        let steps = (complexity - threshold) / settings.temperature;
        1.0 / (1.0 + (-steps).exp())
    };
    let (not_simple, p_complex) = (beyond(settings.medium), beyond(settings.complex));
    let scores = || SCORES.into_iter().zip(numbers.iter().copied());
    let shares = scores().enumerate().filter(|(i, _)| *i != FEW_SHOTS);
    let attribute = |(name, score): (&str, f32)| (name.to_owned(), Value::Number(score.into()));
    Ok(Classification {
        p_simple: 1.0 - not_simple,
        p_medium: not_simple - p_complex,
        p_complex,
        task: likeliest(&numbers[SCORES.len() + 1..]),
        dimensions: shares
            .map(|(_, (name, score))| (name.to_owned(), score.clamp(0.0, 1.0)))
            .collect(),
        confidence: CONFIDENCE,
        attributes: scores().map(attribute).collect(),
    })
}

/// Of the probabilities of [`TASKS`].
fn likeliest(probabilities: &[f32]) -> Task {
    let tasks = TASKS.into_iter().zip(probabilities);
    let best = tasks.max_by(|a, b| a.1.total_cmp(b.1));
    best.map_or(Task::Other, |(task, _)| task)
}

/// What is said of a request of which nothing is known.
fn ordinary() -> Classification {
    let [p_simple, p_medium, p_complex] = ORDINARY;
    Classification {
        p_simple,
        p_medium,
        p_complex,
        confidence: 0.0,
        ..Classification::default()
    }
}

#[cfg(test)]
mod tests;
