//! k nearest neighbours, a baseline that any router must beat: a request gains what
//! similar requests have gained.
//!
//! Similar is the cosine of hashed bags of words, weighted by how rare a word is. No model
//! is needed, so the figure is the same on every machine.

use std::collections::HashMap;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};

/// Neighbours that are asked.
pub const NEIGHBOURS: usize = 40;

/// A text as (word, weight), sorted by word, of unit length.
type Bag = Vec<(u64, f64)>;

/// For each row of `asking`, the mean gain of the nearest rows that `allowed` permits (its
/// first argument is the row that asks). Rows without a neighbour get the mean of all.
pub fn predict(
    texts: &[&str],
    gains: &[f64],
    asking: &[usize],
    allowed: impl Fn(usize, usize) -> bool,
) -> Vec<f64> {
    let bags = bags(texts);
    let mut with_word: HashMap<u64, Vec<(usize, f64)>> = HashMap::new();
    for (row, bag) in bags.iter().enumerate() {
        for (word, weight) in bag {
            with_word.entry(*word).or_default().push((row, *weight));
        }
    }
    let mean = gains.iter().sum::<f64>() / gains.len().max(1) as f64;
    let mut similarity = vec![0.0; texts.len()];
    let predicted = asking.iter().map(|&row| {
        similarity.fill(0.0);
        for (word, weight) in &bags[row] {
            for (other, theirs) in &with_word[word] {
                similarity[*other] += weight * theirs;
            }
        }
        let mut near: Vec<usize> = (0..texts.len())
            .filter(|other| similarity[*other] > 0.0 && allowed(row, *other))
            .collect();
        near.sort_by(|a, b| similarity[*b].total_cmp(&similarity[*a]));
        near.truncate(NEIGHBOURS);
        let total: f64 = near.iter().map(|other| similarity[*other]).sum();
        let gained = near.iter().map(|other| similarity[*other] * gains[*other]);
        if total > 0.0 {
            gained.sum::<f64>() / total
        } else {
            mean
        }
    });
    predicted.collect()
}

fn bags(texts: &[&str]) -> Vec<Bag> {
    let hasher = BuildHasherDefault::<DefaultHasher>::default();
    let counted: Vec<HashMap<u64, f64>> = texts
        .iter()
        .map(|text| {
            let mut bag = HashMap::new();
            let lower = text.to_lowercase();
            for word in lower.split(|c: char| !c.is_alphanumeric()) {
                if !word.is_empty() {
                    *bag.entry(hasher.hash_one(word)).or_insert(0.0) += 1.0;
                }
            }
            bag
        })
        .collect();
    let mut texts_with: HashMap<u64, f64> = HashMap::new();
    for bag in &counted {
        for word in bag.keys() {
            *texts_with.entry(*word).or_insert(0.0) += 1.0;
        }
    }
    let rows = texts.len() as f64;
    counted
        .into_iter()
        .map(|bag| {
            let weight = |(word, count): (u64, f64)| {
                let rare = 1.0 + ((1.0 + rows) / (1.0 + texts_with[&word])).ln();
                (word, (1.0 + count.ln()) * rare)
            };
            let mut bag: Bag = bag.into_iter().map(weight).collect();
            bag.sort_by_key(|(word, _)| *word);
            let length = bag.iter().map(|(_, w)| w * w).sum::<f64>().sqrt();
            if length > 0.0 {
                bag.iter_mut().for_each(|(_, weight)| *weight /= length);
            }
            bag
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_gains_what_similar_ones_gained_and_is_not_its_own_neighbour() {
        let texts = [
            "cell wall, plant",
            "the plant cell divides",
            "tort law of contract",
            "a contract in tort",
            "xyzzy",
        ];
        let gains = [1.0, 1.0, -1.0, -1.0, 0.5];
        let found = predict(&texts, &gains, &[0, 1, 2, 3, 4], |row, other| row != other);
        assert!(found[0] > 0.3 && found[2] < -0.3, "{found:?}");
        // Nobody is like it: the mean of all.
        assert!((found[4] - 0.1).abs() < 1e-12, "{found:?}");
        let alone = predict(&texts, &gains, &[0, 4], |_, _| false);
        assert!(alone.iter().all(|gain| (gain - 0.1).abs() < 1e-12));
    }

    #[test]
    fn rows_that_are_not_allowed_tell_nothing() {
        let texts = ["the same words", "the same words", "the same words here"];
        let found = predict(&texts, &[1.0, 0.0, 0.0], &[1, 2], |row, other| {
            row != other && other != 0
        });
        assert_eq!(found, vec![0.0, 0.0]);
    }
}
