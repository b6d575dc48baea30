//! What a day was worth: joules, answers, waiting, heat.

use homeostat_telemetry::ledger::Accounts;
use serde::Serialize;

use super::life::{Ended, Lived};

/// Figures of one host over one day or several.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Score {
    /// Requests that came.
    pub requests: f64,
    /// Whose whole answer was sent in time.
    pub answered: f64,
    /// Whose answer was right besides.
    pub correct: f64,
    /// Answered by the large tier.
    pub by_large: f64,
    /// That went through more than one step.
    pub escalated: f64,
    /// Time that the answered requests took together, s.
    pub answering_s: f64,
    /// Tokens that clients got.
    pub tokens: f64,
    /// All energy of the machine, idling included.
    pub joules: f64,
    /// What the ledger booked for requests.
    pub request_joules: f64,
    /// Length, s.
    pub seconds: f64,
    /// Money for energy.
    pub usd: f64,
    /// Time in which the hardware slowed itself down.
    pub throttled_s: f64,
    /// Time without power.
    pub off_s: f64,
    /// Highest temperature.
    pub hottest_celsius: f64,
    /// Changes of the metabolic state in the hour that had most.
    pub state_changes_in_an_hour: f64,
}

impl Score {
    /// Of a day that was lived; `seconds` long.
    pub fn of(lived: &Lived, seconds: f64) -> Self {
        let count =
            |holds: fn(&Ended) -> bool| lived.ended.iter().filter(|e| holds(e)).count() as f64;
        Self {
            requests: lived.ended.len() as f64,
            answered: count(|e| e.tier.is_some()),
            correct: count(|e| e.is_right),
            by_large: count(|e| e.tier == Some(1)),
            escalated: count(|e| e.steps > 1),
            answering_s: lived
                .ended
                .iter()
                .filter(|e| e.tier.is_some())
                .map(|e| f64::from(e.total_ms) / 1e3)
                .sum(),
            tokens: lived.ended.iter().map(|e| f64::from(e.tokens)).sum(),
            joules: lived.sums.joules,
            request_joules: lived.ended.iter().filter_map(|e| e.joules).sum(),
            seconds,
            usd: lived.sums.usd,
            throttled_s: lived.sums.throttled_s,
            off_s: lived.sums.off_s,
            hottest_celsius: lived.sums.hottest_celsius,
            state_changes_in_an_hour: lived.sums.state_changes_in_an_hour as f64,
        }
    }

    /// Several days as one, each as often as `times` says.
    pub fn sum(days: &[Self], times: &[u32]) -> Self {
        let mut sum = Self::default();
        for (day, times) in days.iter().zip(times).filter(|(_, times)| **times > 0) {
            let times = f64::from(*times);
            sum.requests += day.requests * times;
            sum.answered += day.answered * times;
            sum.correct += day.correct * times;
            sum.by_large += day.by_large * times;
            sum.escalated += day.escalated * times;
            sum.answering_s += day.answering_s * times;
            sum.tokens += day.tokens * times;
            sum.joules += day.joules * times;
            sum.request_joules += day.request_joules * times;
            sum.seconds += day.seconds * times;
            sum.usd += day.usd * times;
            sum.throttled_s += day.throttled_s * times;
            sum.off_s += day.off_s * times;
            sum.hottest_celsius = sum.hottest_celsius.max(day.hottest_celsius);
            let most = sum
                .state_changes_in_an_hour
                .max(day.state_changes_in_an_hour);
            sum.state_changes_in_an_hour = most;
        }
        sum
    }

    /// Mean power, W.
    pub fn watts(&self) -> f64 {
        self.joules / self.seconds
    }
}

/// One figure, by its name; `None` where it is undefined.
pub type Measure = (&'static str, fn(&Score) -> Option<f64>);

/// The figures of a report, in its order. Joules are the whole machine's: what is paid for.
pub const MEASURES: [Measure; 11] = [
    ("joules_per_correct", |s| ratio(s.joules, s.correct)),
    ("joules_per_request", |s| ratio(s.joules, s.requests)),
    ("joules_per_token", |s| ratio(s.joules, s.tokens)),
    ("request_joules_per_correct", |s| {
        ratio(s.request_joules, s.correct)
    }),
    ("correct_ratio", |s| ratio(s.correct, s.requests)),
    ("answered_ratio", |s| ratio(s.answered, s.requests)),
    ("large_ratio", |s| ratio(s.by_large, s.answered)),
    ("seconds_per_answer", |s| ratio(s.answering_s, s.answered)),
    ("watts", |s| ratio(s.joules, s.seconds)),
    ("usd", |s| Some(s.usd)),
    ("usd_per_1000_correct", |s| ratio(1e3 * s.usd, s.correct)),
];

/// Figures of which a difference says more than a ratio: they may be nothing.
pub const DIFFERENCES: [Measure; 3] = [
    ("correct_ratio", |s| ratio(s.correct, s.requests)),
    ("throttled_s_per_day", |s| a_day(s.throttled_s, s.seconds)),
    ("off_s_per_day", |s| a_day(s.off_s, s.seconds)),
];

fn a_day(part_s: f64, whole_s: f64) -> Option<f64> {
    ratio(part_s, whole_s).map(|share| share * 86_400.0)
}

fn ratio(part: f64, whole: f64) -> Option<f64> {
    (whole > 0.0).then(|| part / whole)
}

/// Time to the first token that this share of the answered requests stayed below, ms.
pub fn ttft_ms(ended: &[Ended], share: f64) -> Option<u32> {
    let mut all: Vec<u32> = ended.iter().filter_map(|e| e.ttft_ms).collect();
    all.sort_unstable();
    let place = (all.len() as f64 * share) as usize;
    all.get(place.min(all.len().saturating_sub(1))).copied()
}

/// Whether the books of the chip add up, to the microjoule.
pub fn is_exact(accounts: &Accounts) -> bool {
    let booked = accounts.attributed_uj() + accounts.idle_uj + accounts.unattributed.total_uj();
    booked == accounts.measured_uj
}
