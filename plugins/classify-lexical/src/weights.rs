//! The fitted weights, read where they lie.
//!
//! `weights.bin` is written by `models/train/fit_classifier.py`; `weights.txt` beside it
//! tells how, from what, when, and how good they are.

use crate::features::{SHAPES, Text};
use crate::prompt::Fnv;

const BUCKETS: usize = 1 << 16;
const MAGIC: &[u8; 8] = b"HLEX0001";
const NUMBERS: usize = 10 + 4 * SHAPES;
const LENGTH: usize = MAGIC.len() + 4 * NUMBERS + BUCKETS / 8 + 2 * BUCKETS;

static EMBEDDED: &[u8; LENGTH] = include_bytes!("../weights.bin");

/// A view of the weights.
pub struct Weights<'a> {
    numbers: &'a [u8],
    known: &'a [u8],
    weak: &'a [u8],
    strong: &'a [u8],
}

impl Weights<'static> {
    /// The weights that were compiled in. Their length is checked by the compiler, their
    /// version by a test.
    pub fn embedded() -> Self {
        let (numbers, rest) = EMBEDDED[MAGIC.len()..].split_at(4 * NUMBERS);
        let (known, rest) = rest.split_at(BUCKETS / 8);
        let (weak, strong) = rest.split_at(BUCKETS);
        Self {
            numbers,
            known,
            weak,
            strong,
        }
    }
}

impl Weights<'_> {
    fn number(&self, index: usize) -> f32 {
        let at = 4 * index;
        let bytes = [
            self.numbers[at],
            self.numbers[at + 1],
            self.numbers[at + 2],
            self.numbers[at + 3],
        ];
        f32::from_le_bytes(bytes)
    }

    /// P(strong right) − P(weak right) of a multiple-choice question.
    pub fn choice_gain(&self, grams: &[(u32, f32)]) -> f32 {
        let (mut weak, mut strong) = (0.0, 0.0);
        for &(hash, value) in grams {
            let bucket = hash as usize % BUCKETS;
            weak += value * f32::from(self.weak[bucket].cast_signed());
            strong += value * f32::from(self.strong[bucket].cast_signed());
        }
        let weak = self.number(0) * weak + self.number(1);
        let strong = self.number(2) * strong + self.number(3);
        sigmoid(strong) - sigmoid(weak)
    }

    /// The same of any other text.
    pub fn shape_gain(&self, shape: &[f32; SHAPES]) -> f32 {
        let (mut weak, mut strong) = (self.number(8), self.number(9));
        for (i, value) in shape.iter().enumerate() {
            let at = 10 + 4 * i;
            let z = ((value - self.number(at)) / self.number(at + 1)).clamp(-3.0, 3.0);
            weak += z * self.number(at + 2);
            strong += z * self.number(at + 3);
        }
        sigmoid(strong) - sigmoid(weak)
    }

    /// Slope and middle of the curve from gain to hardness.
    pub fn curve(&self, choice: bool) -> (f32, f32) {
        let at = if choice { 4 } else { 6 };
        (self.number(at), self.number(at + 1))
    }

    /// How many of the text's words were seen at least twice in fitting, and how many it
    /// has.
    pub fn known(&self, text: &Text<'_>) -> (usize, usize) {
        let is_word = |t: &&[u8]| t.iter().all(u8::is_ascii_alphabetic);
        let seen = |t: &&[u8]| {
            let bucket = Fnv::of_token(t) as usize % BUCKETS;
            self.known[bucket >> 3] & (1 << (bucket & 7)) != 0
        };
        let words = text.tokens().filter(is_word).count();
        (text.tokens().filter(is_word).filter(seen).count(), words)
    }
}

fn sigmoid(z: f32) -> f32 {
    1.0 / (1.0 + (-z).exp())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prompt::Prompt;

    #[test]
    fn the_weights_are_of_the_version_that_is_read_and_hold_only_numbers() {
        assert_eq!(&EMBEDDED[..8], MAGIC);
        let weights = Weights::embedded();
        for i in 0..NUMBERS {
            assert!(weights.number(i).is_finite(), "number {i}");
        }
        assert!(weights.curve(true).0 > 0.0 && weights.curve(false).0 > 0.0);
    }

    #[test]
    fn rust_and_python_compute_the_same_gain() {
        let file = include_str!("../agreement.tsv");
        let rows: Vec<&str> = file.lines().filter(|l| !l.starts_with('#')).collect();
        assert!(rows.len() >= 6);
        for row in rows {
            let (prompt, gain) = row.rsplit_once('\t').expect("two columns");
            let prompt: String = serde_json::from_str(prompt).expect("a JSON text");
            let expected: f32 = gain.parse().expect("a number");
            let read = Prompt::read(&prompt);
            let found = crate::gain(&Text::of(&read), &Weights::embedded());
            assert!(
                (found - expected).abs() < 1e-3,
                "{prompt:?}: {found}, expected {expected}"
            );
        }
    }
}
