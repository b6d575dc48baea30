//! `homeostat bench routing`: how well a classifier tells which requests a strong model
//! would answer better, on recorded outcomes, beside what is simpler and what is ideal.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use homeostat_hooks::{Classification, Hook, Value};
use serde_json::json;

use super::ask::Asked;
use super::bootstrap::Bootstrap;
use super::calibration;
use super::curve::{Curve, Outcome, POINTS, Ranking, aiq_of_point};
use super::outcomes::{self, Row, Set};
use super::{Figure, hex, knn, shown, svg, write};
use crate::Failure;

/// Price of a weak call beside a strong one's, for AIQ: Mixtral-8x7B $0.24 and GPT-4
/// $24.7 for a million tokens (RouteLLM).
const WEAK_COST: f64 = 0.01;

/// Attribute in which a classifier may say how probable it is that a weak model answers right.
const WEAK_RIGHT: &str = "weak-right";
/// Attribute in which a classifier may say what a strong model adds to that. It then ranks by
/// it: classes are about how hard a request is, and what is hard for both gains nothing.
const STRONG_GAIN: &str = "strong-gain";

/// What is asked for.
pub struct Plan {
    pub data: PathBuf,
    pub component: Option<PathBuf>,
    pub scores: Vec<PathBuf>,
    pub unseen: bool,
    pub bootstrap: Bootstrap,
    pub json: Option<PathBuf>,
    pub svg: Option<PathBuf>,
}

/// One way of ranking rows, or of not asking at all.
struct Scorer {
    name: String,
    by: Score,
}

enum Score {
    /// Highest first to the strong model.
    Ranked(Ranking),
    /// The straight line that a router without knowledge has in expectation.
    Random,
    /// Only one model is asked.
    Always { strong: bool },
}

/// Probabilities, and what they are about.
struct Claim {
    name: String,
    said: Vec<f64>,
    right: Vec<bool>,
}

/// Figures of one scorer, in the order of [`FIGURES`], then the curve.
struct Judged {
    name: String,
    figures: Vec<Figure>,
    lead: Option<Figure>,
    curve: Option<Vec<Figure>>,
}

/// Figures of every scorer; the first is compared with that of prompt length.
const FIGURES: [&str; 9] = [
    "apgr",
    "cpt20",
    "cpt50",
    "cpt80",
    "aiq",
    "audc",
    "quality_at_10",
    "quality_at_20",
    "quality_at_50",
];

/// Name of the baseline that every scorer is compared with.
const LENGTH: &str = "prompt length";

/// Runs the bench.
pub fn run(plan: &Plan) -> Result<(), Failure> {
    let mut policy = Asked::open(plan.component.as_deref(), Hook::Classify)?;
    let scores = plan.scores.iter().map(|file| read_scores(file));
    let scores: Vec<_> = scores.collect::<Result<_, _>>()?;
    let mut report = Vec::new();
    let mut panels = Vec::new();
    for set in outcomes::read(&plan.data)? {
        let chosen: Vec<usize> = (0..set.rows.len())
            .filter(|row| outcomes::reported(&set, &set.rows[*row], plan.unseen))
            .collect();
        if chosen.is_empty() {
            eprintln!("homeostat: {}: no row to report", set.name);
            continue;
        }
        let rows: Vec<&Row> = chosen.iter().map(|row| &set.rows[*row]).collect();
        let given: Vec<Classification> = rows
            .iter()
            .map(|row| policy.classify(row.request()))
            .collect::<Result<_, _>>()?;
        let mut scorers = by_policy(&policy.name, &given);
        scorers.extend(from_files(&scores, &rows));
        scorers.extend(baselines(&set, &chosen));
        let outcomes: Vec<Outcome> = rows.iter().map(|row| row.outcome).collect();
        let judged = judge(scorers, &outcomes, plan.bootstrap);
        let claims = judge_claims(claims(&policy.name, &given, &outcomes), plan.bootstrap);
        print_set(&set, &outcomes, &judged, &claims, plan);
        report.push(set_as_json(&set, &outcomes, &judged, &claims, plan.unseen));
        panels.push(panel(&set, outcomes.len(), &judged));
    }
    println!(
        "q@20: mean quality with 20 % strong calls. AIQ: area below the hull of quality over \
         cost, from the cheapest point on, divided by the dearest cost; a weak call costs \
         {WEAK_COST} of a strong one."
    );
    let (median, p99) = policy.micros();
    println!(
        "{}: {median} µs a call (median), {p99} µs (99 of 100)",
        policy.name
    );
    if let Some(file) = &plan.svg {
        write(
            file,
            &svg::page("Quality over the share of strong calls", &panels),
        )?;
    }
    if let Some(file) = &plan.json {
        let whole = json!({
            "bench": "routing",
            "policy": policy.name,
            "call_micros": {"median": median, "p99": p99},
            "bootstrap": {"rounds": plan.bootstrap.rounds, "seed": plan.bootstrap.seed, "inside": 0.95},
            "weak_cost": WEAK_COST,
            "sets": report,
        });
        write(file, &format!("{whole:#}\n"))?;
    }
    Ok(())
}

/// By the gain that a classifier tells, and as the built-in router reads its classes: the share
/// of medium counts half.
fn by_policy(name: &str, given: &[Classification]) -> Vec<Scorer> {
    let hardness = |c: &Classification| f64::from(c.p_medium) * 0.5 + f64::from(c.p_complex);
    let classes: Vec<f64> = given.iter().map(hardness).collect();
    let gain = |c: &Classification| told(c, STRONG_GAIN);
    match given.iter().map(gain).collect::<Option<Vec<f64>>>() {
        Some(gains) => vec![
            ranked(name, &gains),
            ranked(&format!("{name}, by classes"), &classes),
        ],
        None => vec![ranked(name, &classes)],
    }
}

/// A number that a classifier gives beside its classes.
fn told(c: &Classification, key: &str) -> Option<f64> {
    match c.attributes.iter().find(|(name, _)| name == key)? {
        (_, Value::Number(number)) => Some(*number),
        _ => None,
    }
}

fn ranked(name: &str, scores: &[f64]) -> Scorer {
    Scorer {
        name: name.to_owned(),
        by: Score::Ranked(Ranking::descending(scores)),
    }
}

/// Scores of another router: its name, and a score for each sha256 of a prompt.
type Scores = (String, BTreeMap<String, f64>);

/// A file of lines like {"sha256": "…", "score": 0.3}.
fn read_scores(file: &Path) -> Result<Scores, Failure> {
    #[derive(serde::Deserialize)]
    struct Line {
        sha256: String,
        score: f64,
    }
    let at = |e: &dyn std::fmt::Display| Failure::Failed(format!("{}: {e}", file.display()));
    let text = std::fs::read_to_string(file).map_err(|e| at(&e))?;
    let mut scores = BTreeMap::new();
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        let line: Line = serde_json::from_str(line).map_err(|e| at(&e))?;
        scores.insert(line.sha256, line.score);
    }
    let name = file.file_stem().and_then(|s| s.to_str());
    Ok((name.unwrap_or("scores").to_owned(), scores))
}

/// The scorers of files that know every row.
fn from_files(files: &[Scores], rows: &[&Row]) -> Vec<Scorer> {
    let scorer = |(name, scores): &Scores| {
        let each = rows
            .iter()
            .map(|row| scores.get(&hex(&row.digest)).copied());
        let each: Option<Vec<f64>> = each.collect();
        each.map(|scores| ranked(name, &scores))
    };
    files.iter().filter_map(scorer).collect()
}

/// What is simpler than a classifier, and what no classifier can beat.
fn baselines(set: &Set, chosen: &[usize]) -> Vec<Scorer> {
    let rows = &set.rows;
    let length = |row: &usize| rows[*row].text().chars().count() as f64;
    let gain = |row: &Row| row.outcome.strong - row.outcome.weak;
    let texts: Vec<&str> = rows.iter().map(Row::text).collect();
    let gains: Vec<f64> = rows.iter().map(gain).collect();
    // A row asks rows of other parts: of the reported ones, those that may be fitted on.
    let other_part = |row: usize, other: usize| rows[row].part() != rows[other].part();
    let mut scorers = vec![
        ranked(LENGTH, &chosen.iter().map(length).collect::<Vec<_>>()),
        ranked(
            "k nearest",
            &knn::predict(&texts, &gains, chosen, other_part),
        ),
    ];
    if rows.iter().any(|row| row.group != rows[0].group) {
        let stranger = |row: usize, other: usize| {
            rows[row].group != rows[other].group && other_part(row, other)
        };
        scorers.push(ranked(
            "k nearest, other subjects",
            &knn::predict(&texts, &gains, chosen, stranger),
        ));
    }
    let plain = [
        ("random", Score::Random),
        ("always weak", Score::Always { strong: false }),
        ("always strong", Score::Always { strong: true }),
    ];
    scorers.extend(plain.map(|(name, by)| Scorer {
        name: name.to_owned(),
        by,
    }));
    let best: Vec<f64> = chosen.iter().map(|row| gain(&rows[*row])).collect();
    scorers.push(ranked("oracle", &best));
    scorers
}

/// The figures of one scorer on rows that count as often as `counts` says.
fn figures(by: &Score, outcomes: &[Outcome], counts: &[u32]) -> Vec<Option<f64>> {
    let curve = match by {
        Score::Ranked(ranking) => Curve::of(ranking, outcomes, counts),
        // Any ranking has the ends of the curve.
        Score::Random | Score::Always { .. } => {
            let any = Ranking::descending(&vec![0.0; outcomes.len()]);
            let ends = Curve::of(&any, outcomes, counts);
            ends.map(|c| Curve::random(c.weak(), c.strong()))
        }
    };
    let Some(curve) = curve else {
        return vec![None; FIGURES.len() + POINTS];
    };
    if let Score::Always { strong } = by {
        let quality = if *strong {
            curve.strong()
        } else {
            curve.weak()
        };
        let cost = if *strong { 1.0 } else { WEAK_COST };
        let mut all = vec![None; FIGURES.len() + POINTS];
        all[4] = Some(aiq_of_point(cost, quality));
        return all;
    }
    let mut all = vec![
        curve.apgr(),
        curve.cpt(0.2),
        curve.cpt(0.5),
        curve.cpt(0.8),
        Some(curve.aiq(WEAK_COST)),
        Some(curve.audc()),
        Some(curve.quality[1]),
        Some(curve.quality[2]),
        Some(curve.quality[5]),
    ];
    all.extend(curve.quality.map(Some));
    all
}

fn judge(scorers: Vec<Scorer>, outcomes: &[Outcome], bootstrap: Bootstrap) -> Vec<Judged> {
    let width = FIGURES.len() + POINTS;
    let length = scorers.iter().position(|scorer| scorer.name == LENGTH);
    let all = |counts: &[u32]| {
        let each: Vec<Vec<Option<f64>>> = scorers
            .iter()
            .map(|scorer| figures(&scorer.by, outcomes, counts))
            .collect();
        let length = length.and_then(|at| each[at][0]);
        let leads = each
            .iter()
            .map(|figures| figures[0].zip(length).map(|(found, length)| found - length));
        let leads: Vec<Option<f64>> = leads.collect();
        each.into_iter().flatten().chain(leads).collect::<Vec<_>>()
    };
    let all = Figure::all(bootstrap, outcomes.len(), all);
    let count = scorers.len();
    let judged = scorers.into_iter().enumerate().map(|(i, scorer)| Judged {
        figures: all[i * width..i * width + FIGURES.len()].to_vec(),
        curve: match scorer.by {
            Score::Always { .. } => None,
            _ => Some(all[i * width + FIGURES.len()..(i + 1) * width].to_vec()),
        },
        lead: match scorer.by {
            Score::Always { .. } => None,
            _ => (scorer.name != LENGTH).then(|| all[count * width + i].clone()),
        },
        name: scorer.name,
    });
    judged.collect()
}

/// What a classifier says that can be true or false of a recorded row.
fn claims(name: &str, given: &[Classification], outcomes: &[Outcome]) -> Vec<Claim> {
    if outcomes.iter().any(|o| o.weak > 1.0 || o.strong > 1.0) {
        // A judge's scores are neither right nor wrong.
        return Vec::new();
    }
    let mut claims = vec![Claim {
        name: format!("{name} p-simple: the weak model suffices"),
        said: given.iter().map(|c| f64::from(c.p_simple)).collect(),
        right: outcomes.iter().map(|o| o.weak >= o.strong).collect(),
    }];
    if let Some(said) = given.iter().map(|c| told(c, WEAK_RIGHT)).collect() {
        claims.push(Claim {
            name: format!("{name} {WEAK_RIGHT}: the weak model is right"),
            said,
            right: outcomes.iter().map(|o| o.weak > 0.5).collect(),
        });
    }
    claims
}

/// A claim's name, expected calibration error, Brier score, that of the base rate, bins.
struct JudgedClaim {
    name: String,
    ece: Figure,
    brier: Figure,
    base_brier: f64,
    bins: Vec<calibration::Bin>,
}

fn judge_claims(claims: Vec<Claim>, bootstrap: Bootstrap) -> Vec<JudgedClaim> {
    let judge = |claim: Claim| {
        let Claim { name, said, right } = claim;
        let ranking = Ranking::descending(&said);
        let figures = |counts: &[u32]| {
            vec![
                calibration::ece(&ranking, &said, &right, counts),
                calibration::brier(&said, &right, counts),
            ]
        };
        let mut found = Figure::all(bootstrap, right.len(), figures).into_iter();
        let share = right.iter().filter(|r| **r).count() as f64 / right.len() as f64;
        JudgedClaim {
            name,
            ece: found.next().unwrap_or_default(),
            brier: found.next().unwrap_or_default(),
            base_brier: share * (1.0 - share),
            bins: calibration::bins(&ranking, &said, &right, &vec![1; right.len()]),
        }
    };
    claims.into_iter().map(judge).collect()
}

fn print_set(
    set: &Set,
    outcomes: &[Outcome],
    judged: &[Judged],
    claims: &[JudgedClaim],
    plan: &Plan,
) {
    let n = outcomes.len() as f64;
    let mean = |f: fn(&Outcome) -> f64| outcomes.iter().map(f).sum::<f64>() / n;
    outcomes::print_rows(set, outcomes.len(), plan.unseen);
    println!(
        "  weak {:.3}, strong {:.3}; strong better on {:.1} %, weak better on {:.1} %; {} bootstrap rounds, seed {}",
        mean(|o| o.weak),
        mean(|o| o.strong),
        100.0 * mean(|o| f64::from(u8::from(o.strong > o.weak))),
        100.0 * mean(|o| f64::from(u8::from(o.weak > o.strong))),
        plan.bootstrap.rounds,
        plan.bootstrap.seed
    );
    println!(
        "  {:<27} {:<22} {:<24} {:>6} {:>6} {:>6} {:>6} {:>6} {:>6} {:>6}",
        "", "APGR", "lead over length", "CPT20", "CPT50", "CPT80", "AIQ", "q@10", "q@20", "q@50"
    );
    for scorer in judged {
        let value = |at: usize| scorer.figures[at].value;
        let percent =
            |at: usize| value(at).map_or_else(|| "–".to_owned(), |v| format!("{:.1}%", 100.0 * v));
        let plain = |at: usize| value(at).map_or_else(|| "–".to_owned(), |v| format!("{v:.3}"));
        let lead = scorer
            .lead
            .as_ref()
            .map_or_else(String::new, |l| shown(l, true));
        println!(
            "  {:<27} {:<22} {:<24} {:>6} {:>6} {:>6} {:>6} {:>6} {:>6} {:>6}",
            scorer.name,
            shown(&scorer.figures[0], false),
            lead,
            percent(1),
            percent(2),
            percent(3),
            plain(4),
            plain(6),
            plain(7),
            plain(8)
        );
    }
    for claim in claims {
        println!(
            "  {}: ECE {}, Brier {} (base rate {:.3})",
            claim.name,
            shown(&claim.ece, false),
            shown(&claim.brier, false),
            claim.base_brier
        );
    }
    println!();
}

fn set_as_json(
    set: &Set,
    outcomes: &[Outcome],
    judged: &[Judged],
    claims: &[JudgedClaim],
    unseen: bool,
) -> serde_json::Value {
    let scorers = judged.iter().map(|scorer| {
        let figures: serde_json::Map<_, _> = FIGURES
            .iter()
            .zip(&scorer.figures)
            .map(|(name, figure)| ((*name).to_owned(), figure.json()))
            .collect();
        let curve = scorer.curve.iter().flatten().map(Figure::json);
        json!({
            "name": scorer.name,
            "figures": figures,
            "apgr_lead_over_length": scorer.lead.as_ref().map(Figure::json),
            "quality_at_strong_shares_0_to_100": curve.collect::<Vec<_>>(),
        })
    });
    let claims = claims.iter().map(|claim| {
        let bins = claim.bins.iter();
        json!({
            "claim": claim.name,
            "ece": claim.ece.json(),
            "brier": claim.brier.json(),
            "brier_of_base_rate": claim.base_brier,
            "bins": bins.map(|b| json!({"said": b.said, "right": b.right, "rows": b.rows})).collect::<Vec<_>>(),
        })
    });
    json!({
        "set": set.name,
        "rows": outcomes.len(),
        "rows_in_file": set.rows.len(),
        "split": outcomes::split_in_words(set, unseen),
        "scorers": scorers.collect::<Vec<_>>(),
        "calibration": claims.collect::<Vec<_>>(),
    })
}

/// The picture of a set: what can be read at a glance, without the k-nearest variants.
fn panel(set: &Set, rows: usize, judged: &[Judged]) -> svg::Panel {
    let drawn = judged
        .iter()
        .filter(|s| s.name != "k nearest, other subjects");
    let lines = drawn.filter_map(|scorer| {
        let points = scorer.curve.as_ref()?;
        let apgr = scorer.figures[0].value?;
        Some(svg::Line {
            what: scorer.name.clone(),
            name: format!("{} (APGR {apgr:.3})", scorer.name),
            x: Vec::new(),
            values: points.iter().filter_map(|p| p.value).collect(),
            band: points.iter().filter_map(|p| p.interval).collect(),
        })
    });
    svg::Panel {
        title: format!("{}, {rows} rows", set.name),
        lines: lines.collect(),
        y: "mean quality".into(),
        x: "requests sent to the strong model, %".into(),
    }
}
