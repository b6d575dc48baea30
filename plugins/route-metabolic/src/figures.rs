//! What a tier's answers took, learned from those that were sent.
//!
//! Means of time and energy fill in what the host cannot tell beforehand: it measures its own
//! tiers, a remote server it can only ask. A tier that was not asked for a while may have to
//! load its model first; what that takes is learned apart, from first answers after silence.
//!
//! The confidences of its latest answers are a yardstick. By split conformal prediction an
//! answer as good as those of the yardstick falls below the k-th smallest of n confidences with
//! a probability of at most k / (n + 1), whatever their distribution; see
//! [`Figures::floor`]. It promises nothing about right and wrong, of which nobody tells here:
//! `homeostat policy calibrate` fits that, from answers that somebody has judged.

use std::fmt;

use homeostat_sdk::Outcome;

/// Weight of the newest answer once there are many: the last twenty or so count.
const MEAN_WEIGHT: f32 = 0.05;
/// Answers after which a mean is believed.
const BELIEVED_FROM: u32 = 3;
/// Tokens of an answer from which its energy is its own and not its prompt's.
const TOKENS_MIN: u32 = 8;
/// Silence after which a server may have unloaded the model: Ollama's default.
const UNLOADED_MS: u64 = 300_000;
/// Confidences that are kept.
const CONFIDENCES: usize = 64;

/// A running mean.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Mean {
    value: f32,
    count: u32,
}

impl Mean {
    fn take(&mut self, news: f32) {
        if news.is_finite() && news >= 0.0 {
            self.count = self.count.saturating_add(1);
            let weight = (1.0 / self.count as f32).max(MEAN_WEIGHT);
            self.value += weight * (news - self.value);
        }
    }

    /// The mean, if there is enough behind it.
    pub(crate) fn value(&self) -> Option<f32> {
        (self.count >= BELIEVED_FROM).then_some(self.value)
    }
}

/// What is known of one tier.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Figures {
    pub(crate) joules_per_token: Mean,
    pub(crate) tpot_ms: Mean,
    pub(crate) ttft_ms: Mean,
    /// The same of answers after a silence in which the model may have been unloaded.
    cold_ttft_ms: Mean,
    /// When it last answered, on the host's clock.
    answered_ms: Option<u64>,
    /// Of the latest answers, in hundredths, oldest first.
    confidences: Vec<u8>,
}

impl Figures {
    /// Reads what [`fmt::Display`] writes; of another form nothing is known.
    pub(crate) fn parse(text: String) -> Self {
        Self::parsed(&text).unwrap_or_default()
    }

    fn parsed(text: &str) -> Option<Self> {
        let mut words = text.split(' ');
        let mut mean = || {
            let (value, count) = words.next()?.split_once('*')?;
            let value: f32 = value.parse().ok()?;
            Some(Mean {
                value: value.is_finite().then_some(value)?,
                count: count.parse().ok()?,
            })
        };
        Some(Self {
            joules_per_token: mean()?,
            tpot_ms: mean()?,
            ttft_ms: mean()?,
            cold_ttft_ms: mean()?,
            answered_ms: match words.next()? {
                "-" => None,
                at => Some(at.parse().ok()?),
            },
            confidences: words.map(|w| w.parse().ok()).collect::<Option<_>>()?,
        })
    }

    /// Takes an outcome of a request that began at `began_ms`. Of an answer that came whole nobody
    /// tells when its first token was there, so its times teach nothing.
    pub(crate) fn take(&mut self, outcome: &Outcome, streamed: bool, began_ms: u64) {
        let silent = self.is_silent(began_ms);
        self.answered_ms = Some(began_ms + u64::from(outcome.total_ms));
        if let Some(confidence) = outcome.confidence.filter(|c| c.is_finite()) {
            if self.confidences.len() == CONFIDENCES {
                self.confidences.remove(0);
            }
            let hundredths = (confidence.clamp(0.0, 1.0) * 100.0).round() as u8;
            self.confidences.push(hundredths);
        }
        // Of several steps nobody tells which took what.
        if outcome.steps_tried != 1 {
            return;
        }
        let tokens = outcome.generated_tokens;
        if let Some(joules) = outcome.joules.filter(|_| tokens >= TOKENS_MIN) {
            self.joules_per_token
                .take((joules.value / f64::from(tokens)) as f32);
        }
        let first = outcome.ttft_ms.filter(|f| *f <= outcome.total_ms);
        let Some(first) = first.filter(|_| streamed) else {
            return;
        };
        let ttft = match silent {
            true => &mut self.cold_ttft_ms,
            false => &mut self.ttft_ms,
        };
        ttft.take(first as f32);
        if tokens > 1 {
            let rest = (outcome.total_ms - first) as f32;
            self.tpot_ms.take(rest / (tokens - 1) as f32);
        }
    }

    /// What the first token takes longer because the model may have to be loaded, ms.
    pub(crate) fn switch_ms(&self, now_ms: u64) -> f32 {
        match (self.cold_ttft_ms.value(), self.ttft_ms.value()) {
            (Some(cold), Some(warm)) if self.is_silent(now_ms) => (cold - warm).max(0.0),
            _ => 0.0,
        }
    }

    /// Whether it has not answered for long. A clock that began anew tells nothing.
    fn is_silent(&self, now_ms: u64) -> bool {
        self.answered_ms
            .and_then(|at| now_ms.checked_sub(at))
            .is_some_and(|silence| silence > UNLOADED_MS)
    }

    /// The confidence below which an answer as good as this tier's falls with a probability of
    /// at most `alpha`. `None` while too few are known to say so.
    pub(crate) fn floor(&self, alpha: f32) -> Option<f32> {
        let rank = (alpha * (self.confidences.len() + 1) as f32) as usize;
        let mut sorted = self.confidences.clone();
        sorted.sort_unstable();
        let at = rank.checked_sub(1)?;
        sorted.get(at).map(|c| f32::from(*c) / 100.0)
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for mean in [
            self.joules_per_token,
            self.tpot_ms,
            self.ttft_ms,
            self.cold_ttft_ms,
        ] {
            write!(f, "{}*{} ", mean.value, mean.count)?;
        }
        match self.answered_ms {
            Some(at) => write!(f, "{at}")?,
            None => f.write_str("-")?,
        }
        self.confidences.iter().try_for_each(|c| write!(f, " {c}"))
    }
}

#[cfg(test)]
mod tests {
    use homeostat_sdk::Sample;

    use super::*;

    fn outcome(ttft_ms: u32, confidence: f32) -> Outcome {
        Outcome {
            tier: Some("far".into()),
            steps_tried: 1,
            confidence: Some(confidence),
            generated_tokens: 11,
            ttft_ms: Some(ttft_ms),
            total_ms: ttft_ms + 100,
            joules: Some(Sample::measured(22.0)),
            ..Outcome::default()
        }
    }

    #[test]
    fn means_are_believed_after_three_answers_and_the_text_keeps_everything() {
        let mut figures = Figures::default();
        for n in 0..3 {
            assert_eq!(figures.joules_per_token.value(), None);
            figures.take(&outcome(50, 0.9), true, n * 1000);
        }
        assert_eq!(figures.joules_per_token.value(), Some(2.0));
        assert_eq!(figures.tpot_ms.value(), Some(10.0));
        assert_eq!(figures.ttft_ms.value(), Some(50.0));
        assert_eq!(Figures::parse(figures.to_string()), figures);
        let blank = Figures::default();
        assert_eq!(Figures::parse(blank.to_string()), blank);
        assert_eq!(Figures::parse("anything else".into()), blank);
    }

    #[test]
    fn several_steps_and_whole_answers_teach_no_times_and_short_ones_no_energy() {
        let mut figures = Figures::default();
        let mut whole = Figures::default();
        (0..3).for_each(|_| whole.take(&outcome(150, 0.9), false, 0));
        assert_eq!([whole.ttft_ms.count, whole.tpot_ms.count], [0, 0]);
        assert_eq!(whole.joules_per_token.value(), Some(2.0));
        for _ in 0..5 {
            figures.take(
                &Outcome {
                    steps_tried: 2,
                    ..outcome(50, 0.9)
                },
                true,
                0,
            );
            figures.take(
                &Outcome {
                    generated_tokens: 2,
                    ..outcome(50, 0.9)
                },
                true,
                0,
            );
        }
        assert_eq!(figures.joules_per_token.value(), None);
        assert_eq!(figures.ttft_ms.count, 5);
        assert_eq!(figures.confidences.len(), 10);
    }

    #[test]
    fn what_loading_takes_is_learned_from_answers_after_silence() {
        let mut figures = Figures::default();
        let mut now = 0;
        for _ in 0..4 {
            figures.take(&outcome(5_000, 0.9), true, now);
            figures.take(&outcome(100, 0.9), true, now + 6_000);
            now += UNLOADED_MS + 20_000;
        }
        // The first of all came after nothing.
        assert_eq!(figures.cold_ttft_ms.count, 3);
        let last = figures.answered_ms.expect("it answered");
        assert_eq!(figures.switch_ms(last + 1_000), 0.0);
        assert!(figures.switch_ms(last + UNLOADED_MS + 1) > 3_000.0);
        assert_eq!(figures.switch_ms(0), 0.0, "the clock began anew");
    }

    #[test]
    fn as_good_an_answer_falls_below_the_floor_as_often_as_promised_at_most() {
        // Exchangeable confidences from a fixed sequence: 64 for the yardstick, one new.
        let mut state = 7u64;
        let mut draw = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1);
            ((state >> 40) as f32 / (1u64 << 24) as f32).sqrt()
        };
        for alpha in [0.05, 0.1, 0.2] {
            let (mut below, trials) = (0, 4000);
            for _ in 0..trials {
                let mut figures = Figures::default();
                (0..CONFIDENCES).for_each(|_| figures.take(&outcome(1, draw()), true, 0));
                let floor = figures.floor(alpha).expect("64 are enough");
                below += u32::from((draw() * 100.0).round() / 100.0 < floor);
            }
            let share = below as f32 / trials as f32;
            assert!(
                share <= alpha + 0.015 && share > alpha / 2.0,
                "{alpha}: {share}"
            );
        }
        let mut few = Figures::default();
        (0..18).for_each(|_| few.take(&outcome(1, 0.5), true, 0));
        assert_eq!(few.floor(0.05), None, "18 cannot promise 5 %");
        few.take(&outcome(1, 0.5), true, 0);
        assert_eq!(few.floor(0.05), Some(0.5));
    }
}
