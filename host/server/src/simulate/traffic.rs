//! Who asks what, when: recorded questions in an order drawn from a seed, with the answers
//! that two real models gave and whether those were right.
//!
//! Nothing about quality is invented: an answer of the small or the large tier is right if the
//! recorded weak or strong model's was. Only rows that nothing was fitted on are asked. What
//! was not recorded is said in [`ASSUMED`].

use std::sync::Arc;

use homeostat_telemetry::plant::Random;

use super::day::Day;
use crate::Failure;
use crate::bench::outcomes::{self, Row, Set};

/// What stands in for what the recordings do not hold.
pub const ASSUMED: &str = "half of the requests are multiple-choice questions, half are sums \
    (where the folder has both); an answer whose text was not recorded is as long as a \
    recorded one drawn by the seed and made of meaningless words; four bytes are a token";

/// Bytes of text for one token, about what tokenizers of English make.
const BYTES_PER_TOKEN: usize = 4;
/// Tokens of a chat template.
const TEMPLATE_TOKENS: u32 = 20;
/// Tokens of an answer where a folder holds no answer at all.
const ANSWER_TOKENS: u32 = 100;

/// What one tier answers.
#[derive(Debug, Clone)]
pub struct Told {
    /// The text.
    pub text: Arc<str>,
    /// Its length.
    pub tokens: u32,
    /// Whether the recorded model was right.
    pub is_right: bool,
}

/// One request.
#[derive(Debug, Clone)]
pub struct Ask {
    /// When it comes in. Never on a tick of the machine, so that nothing depends on which of
    /// two things at one moment is first.
    pub at_ms: u64,
    /// The question.
    pub prompt: Arc<str>,
    /// Its length.
    pub prompt_tokens: u32,
    /// What the small and the large tier answer.
    pub told: [Told; 2],
}

/// Where requests are drawn from: rows that are reported, and how good each tier is on the
/// others, on simple, medium and complex ones.
pub struct Recorded {
    sets: Vec<Vec<Question>>,
    /// Lengths of recorded answers, small and large tier.
    lengths: Vec<[u32; 2]>,
    /// Rows for which an operator would know how good his tiers are.
    pub known: Vec<Row>,
}

struct Question {
    prompt: Arc<str>,
    texts: Option<[Arc<str>; 2]>,
    is_right: [bool; 2],
}

impl Recorded {
    /// Reads a folder of recorded outcomes; judged conversations are left out, since nobody
    /// said which of their answers are right.
    pub fn read(dir: &std::path::Path, unseen: bool) -> Result<Self, Failure> {
        let mut read = Self {
            sets: Vec::new(),
            lengths: Vec::new(),
            known: Vec::new(),
        };
        for set in outcomes::read(dir)? {
            read.add(set, unseen);
        }
        if read.sets.is_empty() {
            return Err(Failure::Failed(format!(
                "{}: no row with a right and a wrong to it; expected mmlu.jsonl or gsm8k.jsonl",
                dir.display()
            )));
        }
        Ok(read)
    }

    fn add(&mut self, set: Set, unseen: bool) {
        let answered = |row: &Row| [row.outcome.weak, row.outcome.strong];
        if set
            .rows
            .iter()
            .any(|row| answered(row).iter().any(|q| *q > 1.0))
        {
            return;
        }
        let reported: Vec<bool> = set
            .rows
            .iter()
            .map(|row| outcomes::reported(&set, row, unseen))
            .collect();
        let mut questions = Vec::new();
        for (row, reported) in set.rows.into_iter().zip(reported) {
            if !reported {
                self.known.push(row);
                continue;
            }
            let texts = row.answers.as_ref();
            self.lengths
                .extend(texts.map(|t| [tokens(&t[0]), tokens(&t[1])]));
            questions.push(Question {
                prompt: row.text().into(),
                texts: row
                    .answers
                    .as_ref()
                    .map(|t| [t[0].as_str().into(), t[1].as_str().into()]),
                is_right: answered(&row).map(|quality| quality == 1.0),
            });
        }
        if !questions.is_empty() {
            self.sets.push(questions);
        }
    }

    /// Rows that may be asked.
    pub fn questions(&self) -> usize {
        self.sets.iter().map(Vec::len).sum()
    }

    /// The requests of a day, in their order.
    pub fn asks(&self, day: &Day) -> Vec<Ask> {
        let mut random = Random::new(day.seed);
        let most = day.most_requests_per_s();
        let (mut at_ms, mut asks) = (0.0, Vec::new());
        loop {
            // Thinning (Lewis, Shedler 1979): a steady stream, of which the rate's share is kept.
            at_ms += -(1.0 - random.unit()).ln() / most * 1e3;
            if at_ms >= day.ms() as f64 {
                return asks;
            }
            let mut now_ms = at_ms as u64;
            if random.unit() * most < day.requests_per_s(now_ms) {
                now_ms += u64::from(now_ms.is_multiple_of(super::machine::TICK_MS));
                asks.push(self.ask(now_ms, &mut random));
            }
        }
    }

    fn ask(&self, at_ms: u64, random: &mut Random) -> Ask {
        let set = &self.sets[random.below(self.sets.len() as u64) as usize];
        let question = &set[random.below(set.len() as u64) as usize];
        let drawn = random.below(self.lengths.len() as u64) as usize;
        let lengths = self.lengths.get(drawn).copied();
        let mut words = Random::new(random.bits());
        let told = [0, 1].map(|tier| {
            let text = match &question.texts {
                Some(texts) => Arc::clone(&texts[tier]),
                None => meaningless(lengths.map_or(ANSWER_TOKENS, |l| l[tier]), &mut words),
            };
            Told {
                tokens: tokens(&text),
                text,
                is_right: question.is_right[tier],
            }
        });
        Ask {
            at_ms,
            prompt: Arc::clone(&question.prompt),
            prompt_tokens: TEMPLATE_TOKENS + tokens(&question.prompt),
            told,
        }
    }
}

fn tokens(text: &str) -> u32 {
    text.len().div_ceil(BYTES_PER_TOKEN).max(1) as u32
}

/// Words of three letters, none of which says anything that could be checked.
fn meaningless(tokens: u32, random: &mut Random) -> Arc<str> {
    let letter = |random: &mut Random| char::from(b'a' + random.below(26) as u8);
    let word = |_| [letter(random), letter(random), letter(random), ' '];
    (0..tokens).flat_map(word).collect::<String>().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recorded() -> Recorded {
        let dir = tempfile::tempdir().expect("a folder");
        super::super::tests::write_rows(dir.path());
        Recorded::read(dir.path(), true).expect("rows")
    }

    #[test]
    fn a_seed_gives_one_day_and_no_request_falls_on_a_tick() {
        let (recorded, day) = (recorded(), Day::eventful(3, 0.02));
        let (asks, again) = (recorded.asks(&day), recorded.asks(&day));
        // 1728 expected, and the crowd.
        assert!((1_700..2_400).contains(&asks.len()), "{}", asks.len());
        assert!(asks.is_sorted_by_key(|ask| ask.at_ms));
        assert!(
            asks.iter()
                .all(|ask| !ask.at_ms.is_multiple_of(super::super::machine::TICK_MS))
        );
        let all = |asks: &[Ask]| format!("{asks:?}");
        assert_eq!(all(&asks), all(&again));
        let other = recorded.asks(&Day { seed: 4, ..day });
        assert_ne!(all(&asks), all(&other));
    }

    #[test]
    fn an_answer_is_as_right_as_the_recorded_one_and_as_long() {
        let asks = recorded().asks(&Day::eventful(3, 0.02));
        for ask in &asks {
            assert_eq!(ask.told[0].is_right, ask.prompt.len() < 200, "{ask:?}");
            assert!(ask.told[1].is_right && ask.told[0].tokens > 0);
        }
    }
}
