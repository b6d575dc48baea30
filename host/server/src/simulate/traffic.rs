//! Who asks what, when: recorded questions in an order drawn from a seed, with the answers
//! that two real models gave and whether those were right.
//!
//! Nothing about quality is invented: an answer of the small or the large tier is right if the
//! recorded weak or strong model's was. Only rows that nothing was fitted on are asked. What
//! was not recorded is said in [`ASSUMED`].

use std::collections::HashSet;
use std::path::Path;
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

/// Where requests are drawn from: rows that are reported, and apart from them rows on which an
/// operator would have tried his tiers.
pub struct Recorded {
    sets: Vec<Vec<Question>>,
    /// Lengths of recorded answers, small and large tier.
    lengths: Vec<[u32; 2]>,
    /// Rows for which an operator would know how good his tiers are, set by set: none of them
    /// is asked.
    pub known: Vec<Vec<Row>>,
    /// Rows of the folder of known ones that were left out because they are asked.
    pub known_but_asked: usize,
    /// What tells the asked rows from others.
    digests: HashSet<[u8; 32]>,
}

/// Which of the rows a day asks: every `of`th from this one on.
#[derive(Debug, Clone, Copy)]
pub struct Share {
    /// The first, from 0.
    pub index: usize,
    /// How many days share the rows.
    pub of: usize,
}

impl Share {
    /// All rows.
    pub const WHOLE: Self = Self { index: 0, of: 1 };

    /// Its rows among so many.
    fn among(self, rows: usize) -> usize {
        rows.saturating_sub(self.index).div_ceil(self.of)
    }
}

struct Question {
    prompt: Arc<str>,
    texts: Option<[Arc<str>; 2]>,
    is_right: [bool; 2],
}

impl Recorded {
    /// Reads a folder of recorded outcomes; judged conversations are left out, since nobody
    /// said which of their answers are right. The tiers are known from the rows of `known` that
    /// are neither reported nor asked, or else from those of the folder itself.
    pub fn read(dir: &Path, unseen: bool, known: Option<&Path>) -> Result<Self, Failure> {
        let mut read = Self {
            sets: Vec::new(),
            lengths: Vec::new(),
            known: Vec::new(),
            known_but_asked: 0,
            digests: HashSet::new(),
        };
        for set in outcomes::read(dir)? {
            read.add(set, unseen);
        }
        if let Some(dir) = known {
            read.known.clear();
            for set in outcomes::read(dir)? {
                read.learn(set);
            }
        }
        if read.sets.is_empty() {
            return Err(Failure::Failed(format!(
                "{}: no row with a right and a wrong to it; expected mmlu.jsonl or gsm8k.jsonl",
                dir.display()
            )));
        }
        Ok(read)
    }

    /// Takes what an operator would know of a set.
    fn learn(&mut self, set: Set) {
        if is_judged(&set) {
            return;
        }
        let seen = |row: &Row| !outcomes::reported(&set, row, false);
        let seen: Vec<bool> = set.rows.iter().map(seen).collect();
        let rows = set.rows.into_iter().zip(seen);
        let rows = rows.filter_map(|(row, seen)| seen.then_some(row));
        let (asked, known): (Vec<Row>, Vec<Row>) =
            rows.partition(|row| self.digests.contains(&row.digest));
        self.known_but_asked += asked.len();
        self.known.push(known);
    }

    fn add(&mut self, set: Set, unseen: bool) {
        if is_judged(&set) {
            return;
        }
        let reported: Vec<bool> = set
            .rows
            .iter()
            .map(|row| outcomes::reported(&set, row, unseen))
            .collect();
        let (mut questions, mut known) = (Vec::new(), Vec::new());
        for (row, reported) in set.rows.into_iter().zip(reported) {
            if !reported {
                known.push(row);
                continue;
            }
            self.digests.insert(row.digest);
            let texts = row.answers.as_ref();
            self.lengths
                .extend(texts.map(|t| [tokens(&t[0]), tokens(&t[1])]));
            questions.push(Question {
                prompt: row.text().into(),
                texts: row
                    .answers
                    .as_ref()
                    .map(|t| [t[0].as_str().into(), t[1].as_str().into()]),
                is_right: outcomes_of(&row).map(|quality| quality == 1.0),
            });
        }
        if !questions.is_empty() {
            self.sets.push(questions);
        }
        self.known.push(known);
    }

    /// Every question that may be asked, with the share of all requests that ask it.
    pub fn asked(&self) -> impl Iterator<Item = (&str, f64)> {
        let sets = self.sets.len() as f64;
        self.sets.iter().flat_map(move |set| {
            let share = 1.0 / (sets * set.len() as f64);
            set.iter().map(move |question| (&*question.prompt, share))
        })
    }

    /// The small tier's answer to every row from which an operator knows his tiers, as it would
    /// come on a day, and how much it counts: every set as much as another.
    pub fn tried(&self) -> impl Iterator<Item = (&Row, Arc<str>, f64)> {
        let mut words = Random::new(0);
        let rows = self.known.iter().flat_map(|set| {
            let weight = 1.0 / set.len() as f64;
            set.iter().map(move |row| (row, weight))
        });
        rows.map(move |(row, weight)| {
            let text = match &row.answers {
                Some(texts) => Arc::from(texts[0].as_str()),
                None => meaningless(ANSWER_TOKENS, &mut words),
            };
            (row, text, weight)
        })
    }

    /// Whether every one of so many days finds rows of its own in every set.
    pub fn check_days(&self, days: usize) -> Result<(), Failure> {
        let least = self.sets.iter().map(Vec::len).min().unwrap_or(0);
        match least >= days {
            true => Ok(()),
            false => Err(Failure::Config(format!(
                "{days} days share no row, and the smallest set has {least} rows: fewer days, or \
                 more rows"
            ))),
        }
    }

    /// Kinds of questions.
    pub fn sets(&self) -> usize {
        self.sets.len()
    }

    /// Rows that may be asked.
    pub fn questions(&self) -> usize {
        self.sets.iter().map(Vec::len).sum()
    }

    /// The requests of a day, in their order, about its own share of the rows.
    pub fn asks(&self, day: &Day, share: Share) -> Vec<Ask> {
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
                asks.push(self.ask(now_ms, share, &mut random));
            }
        }
    }

    /// One request at this time.
    pub fn ask(&self, at_ms: u64, share: Share, random: &mut Random) -> Ask {
        let set = &self.sets[random.below(self.sets.len() as u64) as usize];
        let place = random.below(share.among(set.len()) as u64) as usize;
        let question = &set[share.index + place * share.of];
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

/// Whether its rows have scores instead of right and wrong.
fn is_judged(set: &Set) -> bool {
    let mut all = set.rows.iter().flat_map(outcomes_of);
    all.any(|quality| quality > 1.0)
}

fn outcomes_of(row: &Row) -> [f64; 2] {
    [row.outcome.weak, row.outcome.strong]
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
    use std::collections::HashSet;

    use super::*;

    fn recorded() -> Recorded {
        let dir = tempfile::tempdir().expect("a folder");
        super::super::tests::write_rows(dir.path());
        Recorded::read(dir.path(), true, None).expect("rows")
    }

    #[test]
    fn a_seed_gives_one_day_and_no_request_falls_on_a_tick() {
        let (recorded, day) = (recorded(), Day::eventful(3, 0.02));
        let (asks, again) = (
            recorded.asks(&day, Share::WHOLE),
            recorded.asks(&day, Share::WHOLE),
        );
        // 1728 expected, and the crowd.
        assert!((1_700..2_400).contains(&asks.len()), "{}", asks.len());
        assert!(asks.is_sorted_by_key(|ask| ask.at_ms));
        assert!(
            asks.iter()
                .all(|ask| !ask.at_ms.is_multiple_of(super::super::machine::TICK_MS))
        );
        let all = |asks: &[Ask]| format!("{asks:?}");
        assert_eq!(all(&asks), all(&again));
        let other = recorded.asks(&Day { seed: 4, ..day }, Share::WHOLE);
        assert_ne!(all(&asks), all(&other));
    }

    #[test]
    fn an_answer_is_as_right_as_the_recorded_one_and_as_long() {
        let asks = recorded().asks(&Day::eventful(3, 0.02), Share::WHOLE);
        for ask in &asks {
            assert_eq!(ask.told[0].is_right, ask.prompt.len() < 200, "{ask:?}");
            assert!(ask.told[1].is_right && ask.told[0].tokens > 0);
        }
    }
    #[test]
    fn days_that_share_the_rows_ask_none_twice() {
        let (recorded, day) = (recorded(), Day::eventful(3, 0.02));
        let of_day = |index| {
            let asks = recorded.asks(&day, Share { index, of: 3 });
            asks.into_iter()
                .map(|ask| ask.prompt)
                .collect::<HashSet<_>>()
        };
        let days = [of_day(0), of_day(1), of_day(2)];
        // Two thousand requests miss hardly one of 67 rows.
        let sizes = days.each_ref().map(HashSet::len);
        assert!(
            sizes.iter().all(|size| (60..=67).contains(size)),
            "{sizes:?}"
        );
        assert!(days[0].is_disjoint(&days[1]) && days[1].is_disjoint(&days[2]));
        assert!(days[0].is_disjoint(&days[2]));
        assert!(recorded.check_days(200).is_ok() && recorded.check_days(201).is_err());
    }

    #[test]
    fn what_was_not_asked_is_what_an_operator_knows_and_another_folder_knows_it_of_unseen_rows() {
        let dir = tempfile::tempdir().expect("a folder");
        super::super::tests::write_rows(dir.path());
        let others = dir.path().join("known");
        super::super::tests::write_known_rows(&others);
        let read = |unseen, known| Recorded::read(dir.path(), unseen, known).expect("rows");
        let known = |read: &Recorded| read.known.iter().map(Vec::len).sum::<usize>();
        let plain = read(false, None);
        assert_eq!(known(&plain) + plain.questions(), 200);
        assert_eq!(known(&read(true, None)), 0);
        let both = read(true, Some(others.as_path()));
        // Four in five of two hundred are not reported.
        assert!((140..180).contains(&known(&both)), "{}", known(&both));
        assert_eq!((both.questions(), both.known_but_asked), (200, 0));
        // What is asked nobody knows before.
        let same = read(true, Some(dir.path()));
        assert_eq!((known(&same), same.questions()), (0, 200));
        assert_eq!(same.known_but_asked, known(&plain));
    }
}
