//! `homeostat bench validate`: how well a validator's confidence finds wrong answers, on
//! recorded answers that are known to be right or wrong, beside the length of the answer.
//!
//! Answers are those of a data folder, or those that a running host gave, with their
//! log-probabilities. What a host adds to an answer besides is not there: attributes that
//! compare it with earlier answers of its tier.

use std::path::PathBuf;

use homeostat_hooks::{Finish, Hook};
use serde_json::json;

use super::ask::Asked;
use super::bootstrap::Bootstrap;
use super::curve::Ranking;
use super::outcomes::{self, Row, Set};
use super::{Figure, calibration, detection, shown, svg, write};
use crate::Failure;

/// What is asked for.
pub struct Plan {
    pub data: Option<PathBuf>,
    pub answers: Option<PathBuf>,
    pub component: Option<PathBuf>,
    pub unseen: bool,
    pub bootstrap: Bootstrap,
    pub json: Option<PathBuf>,
    pub svg: Option<PathBuf>,
}

/// Whose answers are looked at, and which of a row's two they are.
type Whose = (&'static str, &'static [usize]);

const RECORDED: &[Whose] = &[
    ("weak model's answers", &[0]),
    ("strong model's answers", &[1]),
    ("both models' answers", &[0, 1]),
];
const COLLECTED: &[Whose] = &[("the host's answers", &[0])];

/// An answer: which row of the report it belongs to, whether it is right, what is thought
/// of it.
struct Judged {
    row: usize,
    right: bool,
    confidence: f64,
    length: f64,
}

/// One way of being sure.
struct Scorer<'a> {
    name: &'a str,
    confidence: Vec<f64>,
    /// Whether the confidence is meant as a probability.
    probability: bool,
    sure_first: Ranking,
    doubtful_first: Ranking,
}

/// Figures of a scorer, in this order.
const FIGURES: [&str; 5] = ["auroc", "auprc", "prr", "ece", "brier"];

/// Runs the bench.
pub fn run(plan: &Plan) -> Result<(), Failure> {
    let (set, all_whose) = answered(plan)?;
    let reported = |row: &&Row| outcomes::reported(&set, row, plan.unseen) && row.answers.is_some();
    let rows: Vec<&Row> = set.rows.iter().filter(reported).collect();
    let mut policy = Asked::open(plan.component.as_deref(), Hook::Validate)?;
    outcomes::print_rows(&set, rows.len(), plan.unseen);
    println!(
        "  {}; {} bootstrap rounds over rows, seed {}",
        in_words(&rows),
        plan.bootstrap.rounds,
        plan.bootstrap.seed
    );
    let (mut report, mut panels) = (Vec::new(), Vec::new());
    for &(whose, models) in all_whose {
        let answers = ask(&mut policy, &rows, models)?;
        let (scorers, figures) = judge(&policy.name, &answers, rows.len(), plan.bootstrap);
        print(whose, &answers, &scorers, &figures);
        report.push(as_json(whose, &answers, &scorers, &figures));
        panels.push(panel(whose, &answers, &scorers, &figures));
    }
    let (median, p99) = policy.micros();
    println!(
        "{}: {median} µs a call (median), {p99} µs (99 of 100)",
        policy.name
    );
    if let Some(file) = &plan.svg {
        let title = "How well a confidence finds wrong answers";
        write(file, &svg::page(title, &panels))?;
    }
    if let Some(file) = &plan.json {
        let whole = json!({
            "bench": "validate",
            "policy": policy.name,
            "call_micros": {"median": median, "p99": p99},
            "bootstrap": {"rounds": plan.bootstrap.rounds, "seed": plan.bootstrap.seed, "inside": 0.95},
            "set": set.name,
            "rows": rows.len(),
            "rows_in_file": set.rows.len(),
            "split": outcomes::split_in_words(&set, plan.unseen),
            "logprobs": in_words(&rows),
            "answers": report,
        });
        write(file, &format!("{whole:#}\n"))?;
    }
    Ok(())
}

/// The answers that are judged.
fn answered(plan: &Plan) -> Result<(Set, &'static [Whose]), Failure> {
    if let Some(file) = &plan.answers {
        return Ok((outcomes::read_answers(file)?, COLLECTED));
    }
    let Some(data) = &plan.data else {
        return Err(Failure::Config("give --data or --answers".into()));
    };
    let has_answers = |set: &Set| set.rows.iter().any(|row| row.answers.is_some());
    let set = outcomes::read(data)?.into_iter().find(has_answers);
    let set = set.ok_or_else(|| {
        Failure::Failed(format!(
            "{}: no recorded answers; gsm8k.jsonl has them",
            data.display()
        ))
    })?;
    Ok((set, RECORDED))
}

/// What is known of the answers' tokens.
fn in_words(rows: &[&Row]) -> String {
    let told = rows.iter().filter(|row| !row.logprobs[0].is_empty());
    let words = match (told.count(), rows.len()) {
        (0, _) => "no log-probabilities were recorded: only what a validator reads in the text \
                   counts"
            .to_owned(),
        (told, all) => format!("log-probabilities of {told} of {all} rows"),
    };
    let cut = rows
        .iter()
        .filter(|row| row.finishes.contains(&Finish::Length));
    match cut.count() {
        0 => words,
        cut => format!("{words}; {cut} answers end at a token limit"),
    }
}

/// Which share of the wrong answers is found, for which share of the right ones doubted.
fn panel(
    whose: &str,
    answers: &[Judged],
    scorers: &[Scorer<'_>],
    figures: &[Figure],
) -> svg::Panel {
    let right: Vec<bool> = answers.iter().map(|a| a.right).collect();
    let each = scorers.iter().zip(figures.chunks(FIGURES.len()));
    let lines = each.filter_map(|(scorer, figures)| {
        let curve = detection::roc(&scorer.doubtful_first, &right)?;
        let percent = curve.into_iter().map(|(x, y)| (100.0 * x, 100.0 * y));
        let (x, values) = percent.unzip();
        Some(svg::Line {
            what: scorer.name.to_owned(),
            name: format!("{} (AUROC {})", scorer.name, shown(&figures[0], false)),
            x,
            values,
            band: Vec::new(),
        })
    });
    svg::Panel {
        title: format!("{whose}: {} wrong of {}", wrong(answers), answers.len()),
        lines: lines.collect(),
        y: "wrong answers that are found, %".into(),
        x: "right answers that are doubted, %".into(),
    }
}

/// Shows every answer to the validator, as the first of two steps.
fn ask(policy: &mut Asked, rows: &[&Row], models: &[usize]) -> Result<Vec<Judged>, Failure> {
    let mut judged = Vec::new();
    for (row, recorded) in rows.iter().enumerate() {
        for model in models {
            let Some(answers) = &recorded.answers else {
                continue;
            };
            let (text, logprobs) = (&answers[*model], &recorded.logprobs[*model]);
            let finish = recorded.finishes[*model];
            let quality = [recorded.outcome.weak, recorded.outcome.strong][*model];
            judged.push(Judged {
                row,
                right: quality > 0.5,
                confidence: policy.confidence(recorded.request(), text, logprobs, finish)?,
                length: text.chars().count() as f64,
            });
        }
    }
    Ok(judged)
}

fn scorer(name: &str, confidence: Vec<f64>, probability: bool) -> Scorer<'_> {
    let doubt: Vec<f64> = confidence.iter().map(|c| -c).collect();
    Scorer {
        name,
        sure_first: Ranking::descending(&confidence),
        doubtful_first: Ranking::descending(&doubt),
        confidence,
        probability,
    }
}

/// Every scorer's figures, and how much better the validator's are than those of length.
fn judge<'a>(
    name: &'a str,
    answers: &[Judged],
    rows: usize,
    bootstrap: Bootstrap,
) -> (Vec<Scorer<'a>>, Vec<Figure>) {
    let right: Vec<bool> = answers.iter().map(|a| a.right).collect();
    let scorers = vec![
        scorer(name, answers.iter().map(|a| a.confidence).collect(), true),
        // Long answers are more often wrong.
        scorer(
            "answer length",
            answers.iter().map(|a| -a.length).collect(),
            false,
        ),
    ];
    // Answers to the same request are drawn together.
    let all = |drawn: &[u32]| {
        let counts: Vec<u32> = answers.iter().map(|a| drawn[a.row]).collect();
        let each = scorers.iter().map(|scorer| {
            let calibrated = |figure: Option<f64>| figure.filter(|_| scorer.probability);
            [
                detection::auroc(&scorer.sure_first, &right, &counts),
                detection::auprc(&scorer.doubtful_first, &right, &counts),
                detection::prr(&scorer.sure_first, &right, &counts),
                calibrated(calibration::ece(
                    &scorer.sure_first,
                    &scorer.confidence,
                    &right,
                    &counts,
                )),
                calibrated(calibration::brier(&scorer.confidence, &right, &counts)),
            ]
        });
        let mut all: Vec<Option<f64>> = each.flatten().collect();
        for figure in 0..3 {
            let ours = all[figure].zip(all[FIGURES.len() + figure]);
            all.push(ours.map(|(ours, length)| ours - length));
        }
        all
    };
    let figures = Figure::all(bootstrap, rows, all);
    (scorers, figures)
}

fn wrong(answers: &[Judged]) -> usize {
    answers.iter().filter(|a| !a.right).count()
}

fn print(whose: &str, answers: &[Judged], scorers: &[Scorer<'_>], figures: &[Figure]) {
    println!("  {whose}: {} wrong of {}", wrong(answers), answers.len());
    println!(
        "    {:<16} {:<22} {:<22} {:<24} {:<22} {:<22}",
        "", "AUROC", "AUPRC", "PRR", "ECE", "Brier"
    );
    let line = |name: &str, figures: &[Figure], signed: bool| {
        let shown: Vec<String> = figures.iter().map(|f| shown(f, signed)).collect();
        let cell = |at: usize| shown.get(at).map_or("", String::as_str);
        println!(
            "    {name:<16} {:<22} {:<22} {:<24} {:<22} {:<22}",
            cell(0),
            cell(1),
            cell(2),
            cell(3),
            cell(4)
        );
    };
    for (scorer, figures) in scorers.iter().zip(figures.chunks(FIGURES.len())) {
        line(scorer.name, figures, false);
    }
    line(
        "lead over length",
        &figures[scorers.len() * FIGURES.len()..],
        true,
    );
    println!();
}

fn as_json(
    whose: &str,
    answers: &[Judged],
    scorers: &[Scorer<'_>],
    figures: &[Figure],
) -> serde_json::Value {
    let named = |figures: &[Figure]| -> serde_json::Map<_, _> {
        let pairs = FIGURES.iter().zip(figures);
        pairs
            .map(|(name, figure)| ((*name).to_owned(), figure.json()))
            .collect()
    };
    let each = scorers.iter().zip(figures.chunks(FIGURES.len()));
    let each =
        each.map(|(scorer, figures)| json!({"name": scorer.name, "figures": named(figures)}));
    json!({
        "whose": whose,
        "answers": answers.len(),
        "wrong": wrong(answers),
        "scorers": each.collect::<Vec<_>>(),
        "lead_over_length": named(&figures[scorers.len() * FIGURES.len()..]),
    })
}
