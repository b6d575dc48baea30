//! `homeostat policy calibrate`: settings of a router, or what a classifier knows, fitted to one's
//! own decisions.
//!
//! The log tells what was asked and who answered; whether an answer was right it cannot know,
//! so somebody says so for some of them. What cannot be shown from these is not written: a
//! threshold that keeps a risk, or a temperature that is better than none by more than luck.
//! Answers that were not accepted were not sent and so not judged: a fitted confidence holds
//! among answers like those that were sent, and of the wrong ones a validator notices no fewer than
//! are counted.

mod fit;
mod neighbours;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use homeostat_hooks::{Classification, TierView, Value, Verdict};
use homeostat_policy::RecordLog;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::Failure;
use crate::cli::{CalibrateArgs, Calibrated};

/// Judged answers from which a temperature, or the share of a kind, is looked for.
pub const JUDGED_MIN: usize = 30;

/// One request of the log.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Line {
    id: String,
    score: Option<f64>,
    right: Option<bool>,
    classification: Option<Reply<Classification>>,
    tiers: Vec<TierView>,
    /// Whose answer was sent.
    tier: Option<String>,
    steps: Vec<Tried>,
    /// Of the answer that was sent.
    confidence: Option<f32>,
    /// The last message of the person, where the log holds texts.
    prompt: Option<String>,
    /// A tier's answer was doubted and left for the next one's, where the log does not hold the
    /// steps themselves.
    doubted: bool,
}

#[derive(Debug, Deserialize)]
struct Reply<T> {
    value: T,
}

#[derive(Debug, Deserialize)]
struct Tried {
    sent: bool,
    verdict: Option<Reply<Verdict>>,
}

#[derive(Deserialize)]
struct Judgement {
    id: String,
    right: bool,
}

/// Runs the command.
pub fn calibrate(args: &CalibrateArgs) -> Result<(), Failure> {
    let within = |share: Option<f64>, name: &str, ok: fn(f64) -> bool| match share {
        Some(share) if !ok(share) => Err(Failure::Failed(format!("{name} {share} is no share"))),
        share => Ok(share),
    };
    within(args.share, "--share", |s| (0.0..=1.0).contains(&s))?;
    within(args.risk, "--risk", |r| r > 0.0 && r < 1.0)?;
    let classifier = args.policy == Calibrated::ClassifyNeighbours;
    if !classifier && is_named(args.config.config.as_deref()) {
        let why =
            "--config is for --policy classify-neighbours: routers are fitted to the log alone";
        return Err(Failure::Failed(why.into()));
    }
    let mut lines = read_log(&args.log, classifier)?;
    if let Some(file) = &args.judged {
        let judged: Vec<Judgement> = json_lines(file)?;
        let judged: BTreeMap<_, _> = judged.into_iter().map(|j| (j.id, j.right)).collect();
        for line in &mut lines {
            line.right = judged.get(&line.id).copied().or(line.right);
        }
    }
    let fitted = match args.policy {
        Calibrated::RouteThreshold => threshold(args, &lines)?,
        Calibrated::RouteMetabolic => metabolic(args, &lines)?,
        Calibrated::ClassifyNeighbours => return neighbours::write(args, &lines),
    };
    print!("{}", fitted.told);
    match &args.output {
        _ if fitted.settings.is_empty() => Ok(()),
        Some(file) => fitted.write(file),
        None => {
            println!("settings = {{ {} }}", fitted.inline());
            Ok(())
        }
    }
}

/// Whether it was named for this command: what the environment names is for all of them.
fn is_named(config: Option<&Path>) -> bool {
    let by_environment = std::env::var_os("HOMEOSTAT_CONFIG");
    config.is_some_and(|file| by_environment.is_none_or(|other| file != Path::new(&other)))
}

/// Settings, and what is to be known of them.
#[derive(Default)]
struct Fitted {
    settings: Vec<(&'static str, String)>,
    told: String,
}

impl Fitted {
    fn inline(&self) -> String {
        let each = self.settings.iter();
        let each: Vec<String> = each.map(|(k, v)| format!("{k} = \"{v}\"")).collect();
        each.join(", ")
    }

    /// Puts them into a policy's file, and leaves the rest of it.
    fn write(&self, file: &Path) -> Result<(), Failure> {
        let at = |e: &dyn std::fmt::Display| Failure::Failed(format!("{}: {e}", file.display()));
        let before = match std::fs::read_to_string(file) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(e) => return Err(at(&e)),
        };
        let mut table: toml::Table = before.parse().map_err(|e| at(&e))?;
        let settings = table
            .entry("settings")
            .or_insert_with(|| toml::Table::new().into());
        let settings = settings
            .as_table_mut()
            .ok_or_else(|| at(&"settings is no table"))?;
        for (key, value) in &self.settings {
            settings.insert((*key).to_owned(), value.as_str().into());
        }
        std::fs::write(file, table.to_string()).map_err(|e| at(&e))?;
        println!("{}: {}", file.display(), self.inline());
        Ok(())
    }
}

/// For route-threshold.
fn threshold(args: &CalibrateArgs, lines: &[Line]) -> Result<Fitted, Failure> {
    let score = |line: &Line| line.scored(args.score.as_deref());
    let scores: Vec<f64> = lines.iter().filter_map(score).collect();
    let found = match (args.share, args.risk) {
        (Some(share), None) => fit::for_share(&scores, share).ok_or_else(no_scores)?,
        (None, Some(risk)) => {
            let lowest = lowest_rank(lines);
            let smallest = |line: &&Line| line.is_of_the_smallest(lowest);
            let judged = lines.iter().filter(smallest);
            let judged: Vec<_> = judged.filter_map(|l| Some((score(l)?, l.right?))).collect();
            let highest = fit::for_risk(&judged, risk);
            highest.ok_or_else(|| not_shown(&judged))?.next_up()
        }
        _ => return Err(Failure::Failed("either --share or --risk is needed".into())),
    };
    let above = scores.iter().filter(|s| **s >= found).count();
    let of = scores.len();
    let mut fitted = Fitted {
        told: format!("# {above} of {of} recorded requests would go to the strong tier\n"),
        ..Fitted::default()
    };
    if let Some(attribute) = &args.score {
        fitted.settings.push(("score", attribute.clone()));
    }
    fitted.settings.push(("threshold", format!("{found:?}")));
    Ok(fitted)
}

/// For route-metabolic.
fn metabolic(args: &CalibrateArgs, lines: &[Line]) -> Result<Fitted, Failure> {
    if args.share.is_some() || args.score.is_some() {
        let why = "--share and --score are for --policy route-threshold";
        return Err(Failure::Failed(why.into()));
    }
    let mut fitted = Fitted::default();
    let answers: Vec<fit::Answered> = lines.iter().filter_map(Line::answered).collect();
    if answers.len() < JUDGED_MIN {
        let few = answers.len();
        return Err(Failure::Failed(format!(
            "{few} judged answers of tiers with a stated quality, at least {JUDGED_MIN} are \
             needed: say with --judged which answers were right"
        )));
    }
    let count = answers.len();
    match fit::temperature(&answers) {
        Some(t) => {
            let (before, after) = (fit::brier(&answers, 1.0), fit::brier(&answers, t));
            let _ = writeln!(
                fitted.told,
                "# {count} judged answers: Brier {before:.3}, with the temperature {after:.3}"
            );
            fitted
                .settings
                .push(("classifier-temperature", format!("{t:.3}")));
        }
        None => {
            let _ = writeln!(
                fitted.told,
                "# {count} judged answers: no temperature is better than none by more than luck"
            );
        }
    }
    if let Some(risk) = args.risk {
        accepted(&mut fitted, lines, risk)?;
    }
    Ok(fitted)
}

/// The confidence from which answers of smaller tiers keep a risk, and how many of the wrong and of
/// the right ones fall below it.
fn accepted(fitted: &mut Fitted, lines: &[Line], risk: f64) -> Result<(), Failure> {
    let smaller = |line: &&Line| line.is_of_a_smaller();
    let judged = lines.iter().filter(smaller);
    // The least doubtful first.
    let doubt = |l: &Line| Some((1.0 - f64::from(l.told_confidence()?), l.right?));
    let judged: Vec<(f64, bool)> = judged.filter_map(doubt).collect();
    let most = fit::for_risk(&judged, risk).ok_or_else(|| not_shown(&judged))?;
    let kept = judged.iter().filter(|(doubt, _)| *doubt <= most).count();
    let of = judged.len();
    let _ = writeln!(
        fitted.told,
        "# {kept} of {of} judged answers of smaller tiers would be accepted"
    );
    // Rounded up: a little more confidence is asked, never less.
    let confidence = ((1.0 - most) * 1e4).ceil() / 1e4;
    fitted
        .settings
        .push(("accept-threshold", confidence.to_string()));
    for (key, right) in [("noticed-ratio", false), ("doubted-ratio", true)] {
        let such = judged.iter().filter(|(_, r)| *r == right);
        let (below, of) = such.fold((0, 0), |(below, of), (doubt, _)| {
            (below + usize::from(*doubt > most), of + 1)
        });
        if of >= JUDGED_MIN {
            let ratio = below as f64 / of as f64;
            fitted.settings.push((key, format!("{ratio:.3}")));
        }
    }
    Ok(())
}

fn no_scores() -> Failure {
    Failure::Failed("no line of the log has a score or a classification".into())
}

fn not_shown(judged: &[(f64, bool)]) -> Failure {
    Failure::Failed(format!(
        "from {} judged answers no threshold can be shown to keep this risk: more of them, or \
         more risk",
        judged.len()
    ))
}

/// Rank of the smallest tier of all that the log knows. A request that named a tier, or could not
/// pay for others, has candidates of its own, and the smallest of those need not be the smallest.
fn lowest_rank(lines: &[Line]) -> Option<u32> {
    let tiers = lines.iter().flat_map(|line| &line.tiers);
    tiers.map(|tier| tier.rank).min()
}

impl Line {
    /// How much speaks for the strong tier: what the line says, else an attribute, else the
    /// classes, of which the medium one counts half.
    fn scored(&self, attribute: Option<&str>) -> Option<f64> {
        if self.score.is_some() {
            return self.score;
        }
        let c = &self.classification.as_ref()?.value;
        let Some(key) = attribute else {
            return Some(f64::from(c.p_complex) + f64::from(c.p_medium) / 2.0);
        };
        match c.attributes.iter().find(|(name, _)| name == key)?.1 {
            Value::Number(number) => Some(number),
            Value::Integer(number) => Some(number as f64),
            Value::Boolean(_) | Value::Text(_) => None,
        }
    }

    fn answerer(&self) -> Option<&TierView> {
        let tier = self.tier.as_ref()?;
        self.tiers.iter().find(|t| t.id == *tier)
    }

    /// `lowest`: see [`lowest_rank`]. A line without tiers is about the weak one.
    fn is_of_the_smallest(&self, lowest: Option<u32>) -> bool {
        self.tiers.is_empty() || self.answerer().map(|t| t.rank) == lowest
    }

    /// Whether a tier before the one that answered was tried and not believed. One that failed, by
    /// a full queue or a lost device, tells nothing of the request.
    fn was_escalated(&self) -> bool {
        let doubted = |step: &Tried| {
            let verdict = step.verdict.as_ref().map(|reply| &reply.value);
            matches!(verdict, Some(Verdict::Escalate(_)))
        };
        self.doubted || self.steps.iter().rev().skip(1).any(doubted)
    }

    fn is_of_a_smaller(&self) -> bool {
        let highest = self.tiers.iter().map(|t| t.rank).max();
        self.answerer().is_some_and(|t| Some(t.rank) < highest)
    }

    fn answered(&self) -> Option<fit::Answered> {
        let quality = self.answerer()?.quality;
        let quality = [quality.0, quality.1, quality.2].map(f64::from);
        let known = quality.iter().any(|q| *q > 0.0);
        let classes = fit::classes(&self.classification.as_ref()?.value);
        Some((classes, quality, self.right?)).filter(|_| known)
    }

    /// What the validator said of the answer that was sent.
    fn told_confidence(&self) -> Option<f32> {
        let sent = self.steps.iter().rev().find(|step| step.sent);
        let told = sent.and_then(|step| match &step.verdict.as_ref()?.value {
            Verdict::Accept(a) | Verdict::Escalate(a) => Some(a.confidence),
            Verdict::Amend(a) => Some(a.assessment.confidence),
            Verdict::Reject(_) | Verdict::Undecided => None,
        });
        told.or(self.confidence)
    }
}

/// A folder of recordings, or a file of JSON lines. `prompts`: with what was asked.
fn read_log(log: &Path, prompts: bool) -> Result<Vec<Line>, Failure> {
    if !log.is_dir() {
        return json_lines(log);
    }
    let mut lines = Vec::new();
    let mut damaged = 0;
    let records = RecordLog::open(log).map_err(Failure::failed)?;
    let read = records.each(|recording| match recording {
        Ok(recording) => {
            let outcome = recording.outcome().unwrap_or_default();
            let asked = prompts.then(|| recording.asked()).flatten();
            lines.push(Line {
                prompt: asked.map(|request| request.question().to_owned()),
                doubted: recording.was_doubted(),
                classification: recording.classification().map(|value| Reply { value }),
                tiers: recording.tiers().unwrap_or_default(),
                tier: outcome.tier,
                confidence: outcome.confidence,
                id: recording.id,
                ..Line::default()
            });
        }
        Err(_) => damaged += 1,
    });
    read.map_err(Failure::failed)?;
    if damaged > 0 {
        eprintln!("homeostat: {damaged} damaged recordings are left out");
    }
    Ok(lines)
}

fn json_lines<T: DeserializeOwned>(file: &Path) -> Result<Vec<T>, Failure> {
    let failed = |e: &dyn std::fmt::Display| Failure::Failed(format!("{}: {e}", file.display()));
    let text = std::fs::read_to_string(file).map_err(|e| failed(&e))?;
    let lines = text.lines().enumerate();
    lines
        .filter(|(_, line)| !line.trim().is_empty())
        .map(|(n, line)| {
            serde_json::from_str(line).map_err(|e| failed(&format!("line {}: {e}", n + 1)))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::ConfigArgs;

    fn args(policy: Calibrated) -> CalibrateArgs {
        CalibrateArgs {
            log: "log.jsonl".into(),
            policy,
            judged: None,
            share: None,
            risk: None,
            score: None,
            output: None,
            config: ConfigArgs { config: None },
        }
    }

    /// A record as the admin API answers it.
    fn record(number: usize, confidence: f64, right: bool) -> Line {
        let json = serde_json::json!({
            "id": format!("req-{number}"), "unix_ms": 1, "ending": "sent", "tier": "small", "step": 0,
            "right": right,
            "classification": {"value": {"p_simple": 0.2, "p_medium": 0.2, "p_complex": 0.6,
                "attributes": [["strong-gain", 0.3]]}, "micros": 9},
            "tiers": [{"id": "small", "rank": 0, "quality": [0.9, 0.5, 0.1]}, {"id": "large", "rank": 1}],
            "steps": [{"tier": "small", "sent": true, "started_ms": 1,
                "verdict": {"value": {"accept": {"confidence": confidence, "findings": []}}}}],
        });
        serde_json::from_value(json).expect("a record")
    }

    #[test]
    fn a_record_of_the_host_says_score_answerer_and_confidence() {
        let line = record(1, 0.75, true);
        assert!((line.scored(None).expect("classes") - 0.7).abs() < 1e-6);
        assert_eq!(line.scored(Some("strong-gain")), Some(0.3));
        assert_eq!(line.scored(Some("other")), None);
        assert!(line.is_of_the_smallest(Some(0)) && line.is_of_a_smaller());
        assert_eq!(line.told_confidence(), Some(0.75));
        let bare: Line = serde_json::from_str(r#"{"score": 0.4, "right": false}"#).expect("a line");
        assert_eq!(
            (bare.scored(None), bare.is_of_the_smallest(Some(0))),
            (Some(0.4), true)
        );
    }

    #[test]
    fn a_step_that_failed_is_no_doubt_and_the_only_candidate_is_not_the_smallest() {
        let escalated =
            serde_json::json!({"value": {"escalate": {"confidence": 0.2, "findings": []}}});
        let accepted =
            serde_json::json!({"value": {"accept": {"confidence": 0.9, "findings": []}}});
        let tried = |first: serde_json::Value| -> Line {
            let json = serde_json::json!({
                "tier": "large", "tiers": [{"id": "large", "rank": 1}],
                "steps": [
                    {"tier": "small", "sent": false, "verdict": first},
                    {"tier": "large", "sent": true, "verdict": accepted},
                ],
            });
            serde_json::from_value(json).expect("a record")
        };
        assert!(tried(escalated.clone()).was_escalated());
        let failed = tried(serde_json::Value::Null);
        assert!(!failed.was_escalated());
        let lines = [failed, record(1, 0.9, true)];
        let lowest = lowest_rank(&lines);
        assert_eq!(lowest, Some(0));
        let smallest = lines.iter().map(|line| line.is_of_the_smallest(lowest));
        assert_eq!(smallest.collect::<Vec<_>>(), [false, true]);
        // Doubted, and sent all the same: nobody was left to ask.
        let mut last = record(1, 0.9, true);
        last.steps[0].verdict = serde_json::from_value(escalated).expect("a verdict");
        assert!(!last.was_escalated());
    }

    #[test]
    fn a_configuration_is_no_matter_of_a_router() {
        for policy in [Calibrated::RouteThreshold, Calibrated::RouteMetabolic] {
            let asked = CalibrateArgs {
                config: ConfigArgs {
                    config: Some("a-file-of-this-test.toml".into()),
                },
                ..args(policy)
            };
            let why = calibrate(&asked).expect_err("it is refused").to_string();
            assert!(why.contains("--config"), "{why}");
        }
    }

    #[test]
    fn settings_for_route_metabolic_come_from_judged_answers_of_the_smaller_tier() {
        // Unsure answers are wrong, and the classifier calls requests hard that are not.
        let lines: Vec<Line> = (0..400)
            .map(|n| record(n, 0.3 + n as f64 / 800.0, n >= 60))
            .collect();
        let asked = CalibrateArgs {
            risk: Some(0.1),
            ..args(Calibrated::RouteMetabolic)
        };
        let fitted = metabolic(&asked, &lines).expect("enough is judged");
        let of = |key: &str| {
            let found = fitted.settings.iter().find(|(k, _)| *k == key);
            found.and_then(|(_, v)| v.parse::<f64>().ok())
        };
        let threshold = of("accept-threshold").expect("a threshold");
        // Some of the first sixty are among one in ten, fewer than forty of them.
        assert!(
            (0.3 + 20.0 / 800.0..0.3 + 60.0 / 800.0).contains(&threshold),
            "{threshold}"
        );
        assert!(of("classifier-temperature").expect("a temperature") > 1.0);
        // The sixty that are wrong are the least sure.
        let noticed = of("noticed-ratio").expect("sixty are wrong");
        let below = ((threshold - 0.3) * 800.0 / 60.0).min(1.0);
        assert!((noticed - below).abs() < 0.05, "{noticed} {below}");
        assert_eq!(of("doubted-ratio"), Some(0.0));
        let few = metabolic(&asked, &lines[..20])
            .err()
            .expect("too few")
            .to_string();
        assert!(few.contains("--judged"), "{few}");
        let wrong: Vec<Line> = (0..100).map(|n| record(n, 0.9, false)).collect();
        assert!(
            metabolic(&asked, &wrong).is_err(),
            "no threshold keeps that"
        );
    }

    #[test]
    fn what_is_fitted_goes_beside_what_the_file_already_says() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("route-threshold.toml");
        std::fs::write(&file, "grants = [\"config\"]\n[settings]\nweak = \"a\"\n")
            .expect("written");
        let asked = CalibrateArgs {
            share: Some(0.25),
            score: Some("strong-gain".into()),
            ..args(Calibrated::RouteThreshold)
        };
        let lines: Vec<Line> = (0..4).map(|n| record(n, 0.5, true)).collect();
        let fitted = threshold(&asked, &lines).expect("scores");
        assert!(fitted.told.contains("0 of 4"), "{}", fitted.told);
        fitted.write(&file).expect("written");
        let text = std::fs::read_to_string(&file).expect("read");
        let options = homeostat_policy::parse_options(&text).expect("options");
        assert_eq!(options.grants.map(|g| g.len()), Some(1));
        let settings = options.settings.expect("settings");
        assert_eq!(settings["weak"], "a");
        assert_eq!(settings["score"], "strong-gain");
        assert!(settings["threshold"].parse::<f64>().expect("a number") > 0.3);
        assert!(threshold(&args(Calibrated::RouteThreshold), &lines).is_err());
    }
}
