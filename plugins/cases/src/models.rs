//! The host's models, which answer what a case tells.
//!
//! A policy that asks models is tested without any: each has its answers in the order of
//! the questions, and one that was told nothing more is unavailable. Errors can be told as
//! well, and a model that does not answer while the policy has time.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use homeostat_hooks::{GenerateOptions, Generated, ModelError, Models, TierView};
use serde::{Deserialize, Serialize};

/// One model of a case: a tier, and what it answers.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ToldModel {
    /// What `info` tells.
    #[serde(flatten)]
    pub tier: TierView,
    /// What `generate` answers, in order.
    pub generate: VecDeque<Told<String>>,
    /// What `score` answers, in order.
    pub score: VecDeque<Told<Vec<f32>>>,
    /// What `embed` answers, in order; with one, it is an encoder and generates nothing.
    pub embed: VecDeque<Told<Vec<f32>>>,
}

/// An answer, or `{ error = "unavailable" }`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Told<T> {
    /// It answers.
    Answer(T),
    /// It fails.
    Error {
        /// How.
        error: ToldError,
    },
}

/// How a model fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ToldError {
    /// It cannot answer now.
    Unavailable,
    /// It does not take these arguments.
    InvalidArgument,
    /// A limit of the host was reached.
    LimitExceeded,
    /// The host failed.
    Internal,
    /// It does not answer while the policy has time.
    Late,
}

impl ToldModel {
    pub(crate) fn is_ever_late(&self) -> bool {
        fn late<T>(told: &Told<T>) -> bool {
            matches!(
                told,
                Told::Error {
                    error: ToldError::Late
                }
            )
        }
        self.generate.iter().any(late) || self.score.iter().any(late) || self.embed.iter().any(late)
    }
}

/// The models of a room in which cases are asked.
#[derive(Debug, Default)]
pub struct ToldModels(Mutex<Scene>);

#[derive(Debug, Default)]
struct Scene {
    models: Vec<ToldModel>,
    questions: Vec<String>,
}

impl ToldModels {
    /// From now on they are these, and nothing has been asked.
    pub fn tell(&self, models: &[ToldModel]) {
        *self.scene() = Scene {
            models: models.to_vec(),
            questions: Vec::new(),
        };
    }

    /// Every text that was embedded, scored or continued, in order.
    pub fn questions(&self) -> Vec<String> {
        self.scene().questions.clone()
    }

    /// Nothing that holds the lock can panic half-way.
    fn scene(&self) -> MutexGuard<'_, Scene> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answer<T>(
        &self,
        name: &str,
        question: String,
        timeout_ms: u32,
        answers: impl FnOnce(&mut ToldModel) -> &mut VecDeque<Told<T>>,
    ) -> Result<T, ModelError> {
        let told = {
            let mut scene = self.scene();
            scene.questions.push(question);
            let found = scene.models.iter_mut().find(|m| m.tier.id == name);
            let model = found.ok_or_else(|| unknown(name))?;
            answers(model).pop_front()
        };
        let error = match told {
            Some(Told::Answer(answer)) => return Ok(answer),
            Some(Told::Error { error }) => error,
            None => ToldError::Unavailable,
        };
        let text = format!("{name}, as the case tells");
        Err(match error {
            ToldError::Unavailable => ModelError::Unavailable(text),
            ToldError::InvalidArgument => ModelError::InvalidArgument(text),
            ToldError::LimitExceeded => ModelError::LimitExceeded(text),
            ToldError::Internal => ModelError::Internal(text),
            ToldError::Late => {
                std::thread::sleep(Duration::from_millis(timeout_ms.into()));
                ModelError::Unavailable(format!("no answer within {timeout_ms} ms"))
            }
        })
    }
}

fn unknown(name: &str) -> ModelError {
    ModelError::InvalidArgument(format!("the case tells of no model {name:?}"))
}

impl Models for ToldModels {
    fn names(&self) -> Vec<String> {
        let scene = self.scene();
        scene.models.iter().map(|m| m.tier.id.clone()).collect()
    }

    fn info(&self, name: &str) -> Result<TierView, ModelError> {
        let scene = self.scene();
        let found = scene.models.iter().find(|m| m.tier.id == name);
        let model = found.ok_or_else(|| unknown(name))?;
        if model.embed.is_empty() {
            Ok(model.tier.clone())
        } else {
            Err(ModelError::Unavailable(format!("{name} is an encoder")))
        }
    }

    fn count_tokens(&self, _: &str, text: &str) -> Result<u32, ModelError> {
        Ok(text.split_whitespace().count() as u32)
    }

    fn embed(&self, name: &str, text: &str, timeout_ms: u32) -> Result<Vec<f32>, ModelError> {
        self.answer(name, text.to_owned(), timeout_ms, |m| &mut m.embed)
    }

    fn score(
        &self,
        _tenant: Option<&str>,
        name: &str,
        prompt: &str,
        continuation: &str,
        timeout_ms: u32,
    ) -> Result<Vec<f32>, ModelError> {
        let question = format!("{prompt}{continuation}");
        self.answer(name, question, timeout_ms, |m| &mut m.score)
    }

    fn generate(
        &self,
        _tenant: Option<&str>,
        name: &str,
        prompt: &str,
        _: &GenerateOptions,
        timeout_ms: u32,
    ) -> Result<Generated, ModelError> {
        let text = self.answer(name, prompt.to_owned(), timeout_ms, |m| &mut m.generate)?;
        Ok(Generated {
            text,
            logprobs: Vec::new(),
            finished: true,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Reply, read};

    const FILE: &str = r#"
        hook = "validate"
        [given]
        options = { settings = { sure = "0.5", judge = "large" } }
        [[case]]
        name = "with answers"
        options.settings.sure = "1"
        models = [
            { id = "large", rank = 1, ready = true, generate = ["8", { error = "limit-exceeded" }] },
            { id = "encoder", embed = [[0.6, 0.8]] },
        ]
        expect = ["questions = 2", "question.1 mentions how", "question.1 lacks why"]
        [[case]]
        name = "late"
        models = [{ id = "large", generate = [{ error = "late" }] }]
        expect = ["kind is error", "error mentions time"]
    "#;

    #[test]
    fn models_answer_in_order_what_the_case_tells_and_then_nothing() {
        let file = read(FILE).expect("the file above is right");
        let models = ToldModels::default();
        models.tell(&file.cases[0].models);
        assert_eq!(models.names(), ["large", "encoder"]);
        assert_eq!(models.info("large").expect("a tier").rank, 1);
        assert!(models.info("encoder").is_err());
        let options = GenerateOptions::default();
        let generate = |prompt: &str| models.generate(None, "large", prompt, &options, 5);
        assert_eq!(generate("how?").expect("told").text, "8");
        assert!(matches!(
            generate("how now?"),
            Err(ModelError::LimitExceeded(_))
        ));
        assert!(matches!(generate("why?"), Err(ModelError::Unavailable(_))));
        assert_eq!(models.embed("encoder", "x", 5), Ok(vec![0.6, 0.8]));
        assert!(models.embed("nobody", "x", 5).is_err());
        assert_eq!(models.questions()[..2], ["how?", "how now?"]);
        models.tell(&file.cases[1].models);
        assert_eq!(models.questions(), [""; 0]);
        let late = models.generate(None, "large", "how?", &options, 5);
        assert!(matches!(late, Err(ModelError::Unavailable(_))), "{late:?}");
    }

    #[test]
    fn options_lie_over_those_of_the_file_and_these_over_policy_toml() {
        let file = read(FILE).expect("the file above is right");
        let case = &file.cases[0];
        assert_eq!(case.setting("sure").as_deref(), Some("1"));
        assert_eq!(case.setting("judge").as_deref(), Some("large"));
        assert_eq!(case.setting("other"), None);
        let text = "grants = [\"models\"]\nsettings = { sure = \"0\", other = \"kept\" }";
        let merged: toml::Table = case
            .options_over(text)
            .and_then(|t| t.parse().map_err(|e| crate::Error::Shape(format!("{e}"))))
            .expect("it is TOML again");
        let settings = merged["settings"].as_table().expect("a table");
        assert_eq!(settings["sure"].as_str(), Some("1"));
        assert_eq!(settings["other"].as_str(), Some("kept"));
        assert_eq!(merged["grants"].as_array().map(Vec::len), Some(1));
        assert!(case.options_over("= no toml").is_err());
    }

    #[test]
    fn questions_and_errors_are_facts_and_such_cases_are_no_ground_for_properties() {
        let file = read(FILE).expect("the file above is right");
        let [asked, late] = &file.cases[..] else {
            panic!("two cases");
        };
        let reply = Reply::Error("the policy ran out of time".into());
        assert_eq!(late.misses(&reply), Vec::<String>::new());
        assert_eq!(asked.missed(&reply, &["How?".into(), "x".into()]), [""; 0]);
        assert_eq!(
            asked.missed(&reply, &["Why how?".into(), "x".into()]).len(),
            1
        );
        assert_eq!(asked.misses(&reply).len(), 3);
        // One has options of its own, the other a model that is late.
        assert_eq!(file.plainest(), None);
    }
}
