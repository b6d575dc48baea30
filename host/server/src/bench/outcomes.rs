//! Recorded outcomes: what two models made of the same requests.
//!
//! Rows are told apart by a hash of their prompt, so that what was fitted on some of them
//! is judged on others: remainder 0 of the first byte of sha256(prompt), modulo 5, is
//! reported; what comes with the project was fitted on 1 to 4.

use std::path::Path;

use homeostat_hooks::{Finish, Message, Request, Role};
use serde::Deserialize;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::curve::Outcome;
use crate::Failure;

/// Parts of the split by hash.
const PARTS: u8 = 5;

/// One set of rows.
pub struct Set {
    /// Its name and that of its file.
    pub name: &'static str,
    /// Whether something that comes with the project was fitted on rows of it.
    pub fitted: bool,
    /// All rows of the file.
    pub rows: Vec<Row>,
}

/// One request and its outcomes.
pub struct Row {
    /// The person's messages, oldest first.
    pub asked: Vec<String>,
    /// Subject or category; empty when the set has none.
    pub group: String,
    /// 1 or 0, or a judge's score from 1 to 10.
    pub outcome: Outcome,
    /// What the models answered, weak and strong, where it was recorded.
    pub answers: Option<[String; 2]>,
    /// Log-probabilities of their tokens; empty where none were recorded.
    pub logprobs: [Vec<f32>; 2],
    /// Why they end; as a whole answer where that was not recorded.
    pub finishes: [Finish; 2],
    /// sha256 of the messages, joined by newlines.
    pub digest: [u8; 32],
}

impl Row {
    /// Part of the split, 0 to 4.
    pub fn part(&self) -> u8 {
        self.digest[0] % PARTS
    }

    /// The text that is judged.
    pub fn text(&self) -> &str {
        self.asked.last().map_or("", String::as_str)
    }

    /// The request as a policy sees it.
    pub fn request(&self) -> Request {
        let message = |content: &String| Message {
            role: Role::User,
            content: content.clone(),
        };
        Request {
            messages: self.asked.iter().map(message).collect(),
            ..Request::default()
        }
    }
}

#[derive(Deserialize)]
struct Answered {
    prompt: String,
    #[serde(default)]
    subject: String,
    weak: bool,
    strong: bool,
    weak_response: Option<String>,
    strong_response: Option<String>,
    #[serde(default)]
    weak_logprobs: Vec<f32>,
    #[serde(default)]
    strong_logprobs: Vec<f32>,
}

impl From<Answered> for Row {
    fn from(read: Answered) -> Self {
        let quality = |right: bool| f64::from(u8::from(right));
        Self {
            digest: Sha256::digest(&read.prompt).into(),
            asked: vec![read.prompt],
            group: read.subject,
            outcome: Outcome {
                weak: quality(read.weak),
                strong: quality(read.strong),
            },
            answers: read
                .weak_response
                .zip(read.strong_response)
                .map(|(weak, strong)| [weak, strong]),
            logprobs: [read.weak_logprobs, read.strong_logprobs],
            finishes: [Finish::Stop; 2],
        }
    }
}

/// One answer of a running host, as tests/bench/collect_answers.py writes it.
#[derive(Deserialize)]
struct Collected {
    prompt: String,
    answer: String,
    right: bool,
    #[serde(default)]
    logprobs: Vec<f32>,
    /// In the words of OpenAI's interface.
    finish: Option<String>,
}

impl From<Collected> for Row {
    /// There is one model: it stands in both places.
    fn from(read: Collected) -> Self {
        let finish = match read.finish.as_deref() {
            Some("length") => Finish::Length,
            _ => Finish::Stop,
        };
        let row = Self::from(Answered {
            prompt: read.prompt,
            subject: String::new(),
            weak: read.right,
            strong: read.right,
            weak_response: Some(read.answer.clone()),
            strong_response: Some(read.answer),
            weak_logprobs: read.logprobs.clone(),
            strong_logprobs: read.logprobs,
        });
        Self {
            finishes: [finish; 2],
            ..row
        }
    }
}

/// The two models of the recorded judge scores.
const WEAK: &str = "mistralai/Mixtral-8x7B-Instruct-v0.1";
const STRONG: &str = "gpt-4-1106-preview";

#[derive(Deserialize)]
struct Judged {
    category: String,
    turn: usize,
    turns: Vec<String>,
    scores: std::collections::BTreeMap<String, f64>,
}

impl Judged {
    fn row(mut self) -> Result<Row, String> {
        let score = |model: &str| {
            let found = self.scores.get(model).copied();
            found.ok_or_else(|| format!("no score of {model}"))
        };
        let outcome = Outcome {
            weak: score(WEAK)?,
            strong: score(STRONG)?,
        };
        if self.turn == 0 || self.turn > self.turns.len() {
            return Err(format!("turn {} of {}", self.turn, self.turns.len()));
        }
        self.turns.truncate(self.turn);
        Ok(Row {
            digest: Sha256::digest(self.turns.join("\n")).into(),
            asked: self.turns,
            group: self.category,
            outcome,
            answers: None,
            logprobs: Default::default(),
            finishes: [Finish::Stop; 2],
        })
    }
}

/// The sets of a folder: `mmlu.jsonl`, `gsm8k.jsonl`, `mt_bench.jsonl`, those that are
/// there.
pub fn read(dir: &Path) -> Result<Vec<Set>, Failure> {
    let mut sets = Vec::new();
    for (name, fitted) in [("mmlu", true), ("gsm8k", true), ("mt_bench", false)] {
        let file = dir.join(format!("{name}.jsonl"));
        let text = match std::fs::read_to_string(&file) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                eprintln!("homeostat: no {}: left out", file.display());
                continue;
            }
            Err(e) => return Err(Failure::Failed(format!("{}: {e}", file.display()))),
        };
        let rows = rows(&text).map_err(|(line, error)| {
            let file = file.display();
            Failure::Failed(format!("{file}:{line}: not a recorded outcome: {error}"))
        })?;
        sets.push(Set { name, fitted, rows });
    }
    if sets.iter().all(|set| set.rows.is_empty()) {
        return Err(Failure::Failed(format!(
            "{}: no recorded outcomes; expected mmlu.jsonl, gsm8k.jsonl or mt_bench.jsonl",
            dir.display()
        )));
    }
    Ok(sets)
}

/// Answers that were collected of a running host: lines with `prompt`, `answer`, `right`, and
/// `logprobs` and `finish` where the host told them. Nothing was fitted on them.
pub fn read_answers(file: &Path) -> Result<Set, Failure> {
    let text = std::fs::read_to_string(file);
    let text = text.map_err(|e| Failure::Failed(format!("{}: {e}", file.display())))?;
    let lines = text.lines().zip(1..).filter(|(l, _)| !l.trim().is_empty());
    let read = |(line, number): (&str, usize)| -> Result<Row, Failure> {
        let read = serde_json::from_str::<Collected>(line);
        read.map(Row::from).map_err(|error| {
            let file = file.display();
            Failure::Failed(format!("{file}:{number}: not a collected answer: {error}"))
        })
    };
    let rows: Vec<Row> = lines.map(read).collect::<Result<_, _>>()?;
    match rows.is_empty() {
        true => Err(Failure::Failed(format!("{}: no answers", file.display()))),
        false => Ok(Set {
            name: "answers",
            fitted: false,
            rows,
        }),
    }
}

/// The rows of a file, or the number of the line that is wrong.
fn rows(text: &str) -> Result<Vec<Row>, (usize, String)> {
    let lines = text.lines().zip(1..).filter(|(l, _)| !l.trim().is_empty());
    let read = |(line, number): (&str, usize)| row(line).map_err(|error| (number, error));
    lines.map(read).collect()
}

fn row(line: &str) -> Result<Row, String> {
    let value: Value = serde_json::from_str(line).map_err(|e| e.to_string())?;
    if value.get("scores").is_some() {
        let judged: Judged = serde_json::from_value(value).map_err(|e| e.to_string())?;
        judged.row()
    } else {
        let answered: Answered = serde_json::from_value(value).map_err(|e| e.to_string())?;
        Ok(answered.into())
    }
}

/// Whether a row is reported. `unseen` = nothing was fitted on any row of the folder.
pub fn reported(set: &Set, row: &Row, unseen: bool) -> bool {
    unseen || !set.fitted || row.part() == 0
}

/// The first line about a set: how many of its rows are reported, and which.
pub fn print_rows(set: &Set, reported: usize, unseen: bool) {
    let (name, all) = (&set.name, set.rows.len());
    println!(
        "{name}: {reported} of {all} rows ({})",
        split_in_words(set, unseen)
    );
}

/// What is reported, in words.
pub fn split_in_words(set: &Set, unseen: bool) -> &'static str {
    match (set.fitted, unseen) {
        (true, false) => {
            "split by hash: rows with sha256(prompt)[0] mod 5 = 0; fitted was on the others"
        }
        (true, true) => "all rows: said to be unseen (--unseen)",
        (false, _) => "all rows: nothing was fitted on this set",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_rows_are_read() {
        let text = concat!(
            r#"{"prompt": "1 + 1?", "subject": "sums", "weak": false, "strong": true}"#,
            "\n\n",
            r#"{"category": "writing", "turn": 2, "turns": ["Write.", "Again."], "#,
            r#""scores": {"gpt-4-1106-preview": 10, "mistralai/Mixtral-8x7B-Instruct-v0.1": 9.5}}"#,
        );
        let rows = rows(text).unwrap_or_else(|(line, e)| panic!("{line}: {e}"));
        assert_eq!((rows[0].text(), rows[0].group.as_str()), ("1 + 1?", "sums"));
        assert_eq!((rows[0].outcome.weak, rows[0].outcome.strong), (0.0, 1.0));
        // printf '1 + 1?' | sha256sum | cut -c 1-2
        assert_eq!(rows[0].part(), 0xc9 % 5);
        assert_eq!(rows[1].request().messages.len(), 2);
        assert_eq!(rows[1].request().question(), "Again.");
        assert_eq!((rows[1].outcome.weak, rows[1].outcome.strong), (9.5, 10.0));
    }

    #[test]
    fn a_collected_answer_that_was_cut_is_no_whole_one() {
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join("answers.jsonl");
        let line = |end: &str| format!(r#"{{"prompt": "?", "answer": "6", "right": true{end}}}"#);
        let ends = [
            "",
            r#", "finish": null"#,
            r#", "finish": "stop""#,
            r#", "finish": "length""#,
        ];
        std::fs::write(&file, ends.map(line).join("\n")).expect("a file");
        let rows = read_answers(&file).expect("rows").rows;
        let finishes: Vec<[Finish; 2]> = rows.iter().map(|row| row.finishes).collect();
        let (whole, cut) = ([Finish::Stop; 2], [Finish::Length; 2]);
        assert_eq!(finishes, [whole, whole, whole, cut]);
    }

    #[test]
    fn a_wrong_line_is_named() {
        let good = r#"{"prompt": "?", "weak": false, "strong": true}"#;
        for bad in [
            "{",
            r#"{"prompt": "?", "weak": 1, "strong": true}"#,
            r#"{"turn": 3, "turns": ["a"], "category": "c",
                "scores": {"gpt-4-1106-preview": 1, "mistralai/Mixtral-8x7B-Instruct-v0.1": 1}}"#,
            r#"{"turn": 1, "turns": ["a"], "category": "c", "scores": {}}"#,
        ] {
            let text = format!("{good}\n{}\n", bad.replace('\n', " "));
            assert_eq!(rows(&text).err().map(|(line, _)| line), Some(2), "{bad}");
        }
    }
}
