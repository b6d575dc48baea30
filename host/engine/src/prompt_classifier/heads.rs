//! What the heads of NVIDIA's classifier mean: from their outputs to task types and scores.
//!
//! Everything that depends on a training (which class is which, what it is worth) is read from the
//! maps of `config.json`. What does not is NVIDIA's formula, which stands here. It refuses maps
//! that are missing or that do not fit each other, each by its name.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value};

/// The head that tells task types; all others are scores.
const TASK_TYPE: &str = "task_type";
const FEW_SHOTS: &str = "number_of_few_shots";

/// The scores, and what each adds to the complexity of a prompt.
const FORMULA: [(&str, f64); 6] = [
    ("creativity_scope", 0.35),
    ("reasoning", 0.25),
    ("contextual_knowledge", 0.05),
    (FEW_SHOTS, 0.05),
    ("domain_knowledge", 0.15),
    ("constraint_ct", 0.15),
];

/// A second task type that is less probable is none.
const SECOND_TASK_MIN: f64 = 0.1;
/// Fewer examples than this are none.
const FEW_SHOTS_MIN: f64 = 0.05;

/// Numbers of [`PROMPT_VECTOR`] that are scores; the task types follow.
const SCORES: usize = 8;

/// What [`PromptScores::vector`] holds, in its order: the complexity, what it is made of, the
/// probability of the likeliest task type, and the probability of each task type by the name that
/// NVIDIA publishes. `Other` is also every class of another name.
pub const PROMPT_VECTOR: [&str; SCORES + 11] = [
    "prompt_complexity_score",
    FORMULA[0].0,
    FORMULA[1].0,
    FORMULA[2].0,
    FORMULA[3].0,
    FORMULA[4].0,
    FORMULA[5].0,
    "task_type_prob",
    "Open QA",
    "Closed QA",
    "Summarization",
    "Text Generation",
    "Code Generation",
    "Chatbot",
    "Classification",
    "Rewrite",
    "Brainstorming",
    "Extraction",
    "Other",
];

/// What the classifier says of one prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct PromptScores {
    /// Task types by the names of `task_type_map` with their probabilities, likeliest first.
    pub task_types: Vec<(String, f64)>,
    /// 0 to 1.
    pub creativity_scope: f64,
    /// 0 to 1.
    pub reasoning: f64,
    /// 0 to 1.
    pub contextual_knowledge: f64,
    /// Examples in the prompt; 0 below 0.05.
    pub number_of_few_shots: f64,
    /// 0 to 1.
    pub domain_knowledge: f64,
    /// Constraints on the answer, 0 to 1.
    pub constraint_ct: f64,
    /// The weighted sum of the six; more than 1 only where there are several examples.
    pub prompt_complexity_score: f64,
}

impl PromptScores {
    /// The likeliest task type and its probability.
    pub fn task_type_1(&self) -> (&str, f64) {
        let first = self.task_types.first();
        first.map_or(("", 0.0), |(name, p)| (name.as_str(), *p))
    }

    /// The second, unless its probability is below 0.1; then NVIDIA says `NA`.
    pub fn task_type_2(&self) -> Option<&str> {
        let second = self.task_types.get(1);
        let second = second.filter(|(_, p)| *p >= SECOND_TASK_MIN);
        second.map(|(name, _)| name.as_str())
    }

    /// The numbers that [`PROMPT_VECTOR`] names, in its order.
    pub fn vector(&self) -> Vec<f32> {
        let scores = [
            self.prompt_complexity_score,
            self.creativity_scope,
            self.reasoning,
            self.contextual_knowledge,
            self.number_of_few_shots,
            self.domain_knowledge,
            self.constraint_ct,
            self.task_type_1().1,
        ];
        let mut vector = vec![0.0; PROMPT_VECTOR.len()];
        vector[..SCORES].copy_from_slice(&scores);
        for (name, p) in &self.task_types {
            let known = PROMPT_VECTOR[SCORES..].iter().position(|n| n == name);
            // The last one is `Other`.
            let at = known.map_or(PROMPT_VECTOR.len() - 1, |i| SCORES + i);
            vector[at] += p;
        }
        vector.into_iter().map(|x| x as f32).collect()
    }
}

/// The maps of `config.json` that matter here.
#[derive(Deserialize)]
struct Maps {
    /// In the order of the file: that is the order of the heads.
    target_sizes: Map<String, Value>,
    task_type_map: BTreeMap<String, String>,
    weights_map: BTreeMap<String, Vec<f64>>,
    divisor_map: BTreeMap<String, f64>,
}

/// A head that is a score.
struct Scored {
    /// Which of the heads.
    head: usize,
    /// What each class is worth, already divided.
    worth: Vec<f64>,
}

/// All heads.
pub(super) struct Heads {
    targets: Vec<(String, usize)>,
    task_head: usize,
    task_types: Vec<String>,
    /// In the order of [`FORMULA`].
    scored: Vec<Scored>,
}

impl Heads {
    /// Of a `config.json`. The error says which map is wrong.
    pub(super) fn read(written: &Map<String, Value>) -> Result<Self, String> {
        let maps: Maps =
            serde_json::from_value(Value::Object(written.clone())).map_err(|e| e.to_string())?;
        let sizes = maps.target_sizes.iter().map(|(target, size)| {
            let classes = size.as_u64().and_then(|n| usize::try_from(n).ok());
            let classes = classes.filter(|n| *n > 0);
            let classes = classes.ok_or_else(|| {
                format!("target_sizes gives {target} {size}, expected a number of classes")
            })?;
            Ok((target.clone(), classes))
        });
        let targets = sizes.collect::<Result<Vec<_>, String>>()?;
        let task_head = position(&targets, TASK_TYPE)?;
        let classes = 0..targets[task_head].1;
        let task_types = classes.map(|class| {
            let name = maps.task_type_map.get(&class.to_string()).cloned();
            name.ok_or_else(|| format!("task_type_map has no name for class {class}"))
        });
        let task_types = task_types.collect::<Result<Vec<_>, _>>()?;
        let scored = FORMULA.iter().map(|(target, _)| {
            let head = position(&targets, target)?;
            let worth = worth(&maps, target, targets[head].1)?;
            Ok(Scored { head, worth })
        });
        Ok(Self {
            scored: scored.collect::<Result<Vec<_>, String>>()?,
            targets,
            task_head,
            task_types,
        })
    }

    /// Name and number of classes of each head, in their order.
    pub(super) fn targets(&self) -> &[(String, usize)] {
        &self.targets
    }

    /// What one row of outputs means: for each head one number per class.
    pub(super) fn scores(&self, logits: &[&[f32]]) -> Result<PromptScores, String> {
        if !logits.iter().all(|head| head.iter().all(|x| x.is_finite())) {
            return Err("the heads gave no numbers: the weights are damaged".into());
        }
        let probabilities = softmax(logits[self.task_head]);
        let mut task_types: Vec<(String, f64)> =
            self.task_types.iter().cloned().zip(probabilities).collect();
        task_types.sort_by(|a, b| b.1.total_cmp(&a.1));
        let mut scores = [0.0_f64; FORMULA.len()];
        for ((score, scored), (target, _)) in scores.iter_mut().zip(&self.scored).zip(FORMULA) {
            let probabilities = softmax(logits[scored.head]);
            let products = probabilities.iter().zip(&scored.worth);
            *score = products.map(|(p, worth)| p * worth).sum();
            if target == FEW_SHOTS && *score < FEW_SHOTS_MIN {
                *score = 0.0;
            }
        }
        let parts = scores.iter().zip(FORMULA);
        let complexity: f64 = parts.map(|(score, (_, weight))| score * weight).sum();
        let [
            creativity_scope,
            reasoning,
            contextual_knowledge,
            number_of_few_shots,
            domain_knowledge,
            constraint_ct,
        ] = scores;
        Ok(PromptScores {
            task_types,
            creativity_scope,
            reasoning,
            contextual_knowledge,
            number_of_few_shots,
            domain_knowledge,
            constraint_ct,
            prompt_complexity_score: complexity,
        })
    }
}

fn position(targets: &[(String, usize)], target: &str) -> Result<usize, String> {
    let found = targets.iter().position(|(name, _)| name == target);
    found.ok_or_else(|| format!("target_sizes has no {target}"))
}

/// What each class of a target is worth: its weight by the target's divisor.
fn worth(maps: &Maps, target: &str, classes: usize) -> Result<Vec<f64>, String> {
    let weights = maps.weights_map.get(target);
    let weights = weights.ok_or_else(|| format!("weights_map has no {target}"))?;
    if weights.len() != classes {
        return Err(format!(
            "weights_map gives {target} {} weights, but target_sizes {classes} classes",
            weights.len()
        ));
    }
    let divisor = maps.divisor_map.get(target);
    let divisor = *divisor.ok_or_else(|| format!("divisor_map has no {target}"))?;
    if divisor == 0.0 {
        return Err(format!("divisor_map gives {target} 0"));
    }
    Ok(weights.iter().map(|w| w / divisor).collect())
}

/// Probabilities of the classes. The largest is taken off first, so that no power overflows.
fn softmax(logits: &[f32]) -> Vec<f64> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let powers = logits.iter().map(|x| f64::from(x - largest).exp());
    let powers: Vec<f64> = powers.collect();
    let sum: f64 = powers.iter().sum();
    powers.into_iter().map(|p| p / sum).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_weights_of_the_formula_add_to_one() {
        let sum: f64 = FORMULA.iter().map(|(_, weight)| weight).sum();
        assert!((sum - 1.0).abs() < 1e-12, "{sum}");
    }

    #[test]
    fn probabilities_survive_outputs_of_any_size() {
        for largest in [0.0, 1e4, -1e4, f32::MAX] {
            let p = softmax(&[largest, largest, f32::MIN]);
            assert!((p[0] - 0.5).abs() < 1e-12 && p[2] == 0.0, "{p:?}");
        }
    }
}
