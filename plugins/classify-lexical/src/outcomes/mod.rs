//! What would a weak and a strong model make of this request? The second head.
//!
//! Two small forests of randomised trees, one for multiple-choice questions, one for everything
//! else, over lengths, signs, numbers and word lists, and for choices also over the topics that
//! the words suggest, their kind, how common they are and how the choices differ. They rank
//! recorded requests better than the first head, and they say nothing about conversation: one
//! pair of models was recorded, on two benchmarks. So their answer stands beside the classes
//! and not in them.
//!
//! `outcomes.bin` is written by `models/train/fit_outcomes.py`; `outcomes.txt` beside it tells
//! how, from what, when, and how good they are.

mod features;
mod manner;
mod words;

use crate::prompt::Prompt;
use features::{SHAPES, Text};
use manner::{MANNERS, RIVALS};

const MAGIC: &[u8; 8] = b"HOUT0002";
const TOPICS: usize = 20;
const BUCKETS: usize = 1 << 13;
/// Features of [`Weights::familiar`].
const FAMILIAR: usize = 8;
/// Everything that the reader of choices sees.
const CHOICES: usize = SHAPES + MANNERS + RIVALS + TOPICS + FAMILIAR;
/// Levels of a word in 2 and in 20 of the texts that were fitted on.
const RARE: [u8; 2] = [32, 88];
/// Steps of a byte for one standard deviation, and the byte of the mean.
const STEPS: f64 = 42.5;
const MIDDLE: f64 = 127.5;
/// Bytes of a feature's mean and spread.
const SCALE: usize = 8;
/// Feature of a node that is a leaf.
const LEAF: u8 = 255;

static EMBEDDED: &[u8] = include_bytes!("../../outcomes.bin");

/// What is expected of a weak and a strong model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Outcomes {
    /// P(the weak model's answer is right), calibrated.
    pub weak_right: f64,
    /// What the strong model adds to that by the forest's own estimate, −1 to 1.
    pub strong_gain: f64,
}

/// Reads them off the text.
pub fn expected(prompt: &Prompt<'_>) -> Outcomes {
    let text = Text::of(prompt);
    let weights = Weights::embedded();
    let expected = weights.expected(&text);
    Outcomes {
        weak_right: weights.reader(&text).weak_right(expected),
        strong_gain: expected.gain(),
    }
}

/// P(right) of both, as the forest estimates them.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Expected {
    weak: f64,
    strong: f64,
}

impl Expected {
    /// What the strong model adds, −1 to 1.
    fn gain(self) -> f64 {
        self.strong - self.weak
    }
}

/// A view of the weights.
struct Weights<'a> {
    scales: &'a [u8],
    topics: &'a [u8],
    /// How common the words of a bucket are, in logarithmic steps.
    levels: &'a [u8],
    choice: Reader<'a>,
    other: Reader<'a>,
}

/// One forest, the scale of its features and the curve of its answer.
struct Reader<'a> {
    curve: &'a [u8],
    features: &'a [u8],
    trees: u16,
    forest: &'a [u8],
}

impl Weights<'static> {
    /// The weights that were compiled in; that they are whole is a test.
    fn embedded() -> Self {
        let mut rest = &EMBEDDED[MAGIC.len()..];
        let scales = take(&mut rest, 4 * TOPICS);
        let topics = take(&mut rest, TOPICS * BUCKETS);
        let levels = take(&mut rest, BUCKETS);
        let choice_bytes = number(take(&mut rest, 4)) as usize;
        let mut choice = take(&mut rest, choice_bytes);
        Self {
            scales,
            topics,
            levels,
            choice: Reader::of(&mut choice, CHOICES),
            other: Reader::of(&mut rest, SHAPES),
        }
    }
}

impl<'a> Reader<'a> {
    fn of(rest: &mut &'a [u8], features: usize) -> Self {
        let curve = take(rest, 8);
        let features = take(rest, SCALE * features);
        let trees = short(take(rest, 2));
        Self {
            curve,
            features,
            trees,
            forest: *rest,
        }
    }

    /// Features as bytes, the form in which the trees compare them.
    fn rounded(&self, values: impl Iterator<Item = f64>) -> Vec<u8> {
        let scales = self.features.chunks_exact(SCALE);
        let round = |(value, scale): (f64, &[u8])| {
            let (mean, spread) = (f64::from(float(scale)), f64::from(float(&scale[4..])));
            let step = ((value - mean) / spread * STEPS + MIDDLE + 0.5).floor();
            step.clamp(0.0, 255.0) as u8
        };
        values.zip(scales).map(round).collect()
    }

    /// Mean of all trees.
    fn expected(&self, features: &[u8]) -> Expected {
        let (mut weak, mut strong) = (0u32, 0u32);
        let mut rest = self.forest;
        for _ in 0..self.trees {
            let nodes = short(take(&mut rest, 2));
            let (nodes, _) = take(&mut rest, 4 * usize::from(nodes)).as_chunks::<4>();
            let mut at = 0;
            loop {
                let [feature, limit, low, high] = nodes[at];
                if feature == LEAF {
                    weak += u32::from(limit);
                    strong += u32::from(low);
                    break;
                }
                at = if features[usize::from(feature)] <= limit {
                    at + 1
                } else {
                    usize::from(u16::from_le_bytes([low, high]))
                };
            }
        }
        let share = |sum: u32| f64::from(sum) / (255.0 * f64::from(self.trees));
        Expected {
            weak: share(weak),
            strong: share(strong),
        }
    }

    /// P(weak right), calibrated.
    fn weak_right(&self, expected: Expected) -> f64 {
        let p = expected.weak.clamp(1e-3, 1.0 - 1e-3);
        let (slope, offset) = (float(self.curve), float(&self.curve[4..]));
        1.0 / (1.0 + (-(f64::from(slope) * (p / (1.0 - p)).ln() + f64::from(offset))).exp())
    }
}

impl<'a> Weights<'a> {
    /// The reader that knows such texts.
    fn reader(&self, text: &Text<'_>) -> &Reader<'a> {
        if text.is_choice() {
            &self.choice
        } else {
            &self.other
        }
    }

    /// The features that its reader sees.
    fn features(&self, text: &Text<'_>) -> Vec<u8> {
        let shape = text.shape().into_iter();
        if text.is_choice() {
            let choice = text.manner().into_iter().chain(text.rivals());
            let words = self.topics(text).into_iter().chain(self.familiar(text));
            self.choice.rounded(shape.chain(choice).chain(words))
        } else {
            self.other.rounded(shape)
        }
    }

    /// What is expected of both models.
    fn expected(&self, text: &Text<'_>) -> Expected {
        self.reader(text).expected(&self.features(text))
    }

    /// Where a text lies among the topics that were fitted on.
    fn topics(&self, text: &Text<'_>) -> [f64; TOPICS] {
        let mut topics = [0.0; TOPICS];
        for (hash, weight) in text.bag() {
            let bucket = hash as usize % BUCKETS * TOPICS;
            for (topic, byte) in topics.iter_mut().zip(&self.topics[bucket..]) {
                *topic += weight * f64::from(byte.cast_signed());
            }
        }
        for (topic, scale) in topics.iter_mut().zip(self.scales.chunks_exact(4)) {
            *topic *= f64::from(float(scale));
        }
        topics
    }

    /// How common the words of the question are and those of the choices: the mean, the least,
    /// and the shares of those that are rare.
    fn familiar(&self, text: &Text<'_>) -> [f64; FAMILIAR] {
        let mut familiar = [0.0; FAMILIAR];
        for (of, hashes) in familiar.chunks_exact_mut(4).zip(text.vocabularies()) {
            let levels = || hashes.iter().map(|h| self.levels[*h as usize % BUCKETS]);
            let count = hashes.len().max(1) as f64;
            of[0] = levels().map(f64::from).sum::<f64>() / count;
            of[1] = f64::from(levels().min().unwrap_or(0));
            for (share, limit) in of[2..].iter_mut().zip(RARE) {
                *share = levels().filter(|level| *level <= limit).count() as f64 / count;
            }
            if hashes.is_empty() {
                of[2..].fill(1.0);
            }
        }
        familiar
    }
}

fn take<'a>(rest: &mut &'a [u8], bytes: usize) -> &'a [u8] {
    let (taken, left) = rest.split_at(bytes);
    *rest = left;
    taken
}

fn short(bytes: &[u8]) -> u16 {
    u16::from_le_bytes([bytes[0], bytes[1]])
}

fn number(bytes: &[u8]) -> u32 {
    u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

fn float(bytes: &[u8]) -> f32 {
    f32::from_bits(number(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Walks every node: a wrong length, a child that does not exist or a loop would be a
    /// trap in a guest.
    fn whole(reader: &Reader<'_>, features: usize) -> usize {
        assert_eq!(reader.features.len(), SCALE * features);
        assert!(reader.trees > 0);
        for scale in reader.features.chunks_exact(SCALE) {
            assert!(float(scale).is_finite() && float(&scale[4..]) > 0.0);
        }
        assert!(float(reader.curve) > 0.0, "calibration keeps the order");
        assert!(float(&reader.curve[4..]).is_finite());
        let mut rest = reader.forest;
        for _ in 0..reader.trees {
            let count = usize::from(short(take(&mut rest, 2)));
            let nodes = take(&mut rest, 4 * count);
            for (at, node) in nodes.chunks_exact(4).enumerate() {
                if node[0] == LEAF {
                    continue;
                }
                let right = usize::from(short(&node[2..]));
                assert!(usize::from(node[0]) < features);
                assert!(at + 1 < count && at + 1 < right && right < count);
            }
        }
        rest.len()
    }

    #[test]
    fn the_weights_are_of_the_version_that_is_read_and_every_tree_ends() {
        assert_eq!(&EMBEDDED[..8], MAGIC);
        let weights = Weights::embedded();
        assert_eq!(whole(&weights.choice, CHOICES), 0);
        assert_eq!(whole(&weights.other, SHAPES), 0);
    }

    #[test]
    fn rust_and_python_see_the_same_features_and_compute_the_same() {
        let file = include_str!("../../outcomes.tsv");
        let rows: Vec<&str> = file.lines().filter(|l| !l.starts_with('#')).collect();
        assert!(rows.len() >= 9);
        for row in rows {
            let columns: Vec<&str> = row.split('\t').collect();
            let prompt: String = serde_json::from_str(columns[0]).expect("a JSON text");
            let read = Prompt::read(&prompt);
            let (text, weights) = (Text::of(&read), Weights::embedded());
            let features = weights.features(&text);
            let expected: Vec<u8> = (0..columns[1].len() / 2)
                .map(|i| u8::from_str_radix(&columns[1][2 * i..2 * i + 2], 16).expect("hex"))
                .collect();
            let wrong: Vec<usize> = (0..features.len())
                .filter(|i| features[*i] != expected[*i])
                .collect();
            assert_eq!(wrong, Vec::<usize>::new(), "features of {prompt:?}");
            assert_eq!(features.len(), expected.len());
            let found = weights.expected(&text);
            let weak = weights.reader(&text).weak_right(found);
            for (found, column) in [(found.gain(), 2), (weak, 3)] {
                let expected: f64 = columns[column].parse().expect("a number");
                assert!(
                    (found - expected).abs() < 1e-5,
                    "{prompt:?}: {found}, {expected}"
                );
            }
        }
    }
}
