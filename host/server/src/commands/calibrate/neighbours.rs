//! What classify-neighbours knows, made of one's own requests.
//!
//! A request is known by the answers that somebody has judged: simple where the smallest tier was
//! right, complex where it was not and a larger one was, medium where nobody is known to have done
//! better. One that only a larger tier answered, and well, tells nothing of the smallest, so it is
//! left out, unless a smaller one's answer had been doubted first: one that failed is no answer. It
//! refuses a log without texts, and one from which nothing can be told apart.

use std::collections::BTreeMap;

use super::{Line, lowest_rank};
use crate::cli::CalibrateArgs;
use crate::config::Config;
use crate::tiers::Embedder;
use crate::{Failure, serve};

/// As many as vote in the policy: fewer would all vote on every request.
const KNOWN_MIN: usize = 64;
/// The newest count. Each has some 400 bytes in the component, and is compared with every request.
const KNOWN_MAX: usize = 4096;
/// Characters that are embedded, as in the policy.
const CHARS_MAX: usize = 1000;
/// Texts that are embedded together.
const BATCH: usize = 32;
/// Of the form that plugins/classify-neighbours reads.
const MAGIC: &[u8] = b"HNEI0001";

/// What became of a request, by the policy's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Label {
    Simple,
    Medium,
    Complex,
}

/// Embeds what is known of the log and writes it for the policy's next build.
pub(super) fn write(args: &CalibrateArgs, lines: &[Line]) -> Result<(), Failure> {
    if args.share.is_some() || args.risk.is_some() || args.score.is_some() {
        let why = "--share, --risk and --score are for routers";
        return Err(Failure::Failed(why.into()));
    }
    let Some(file) = &args.output else {
        let why = "-o is missing: the file to write, plugins/classify-neighbours/neighbours.bin";
        return Err(Failure::Failed(why.into()));
    };
    let known = known(lines)?;
    let config = Config::load(args.config.config.as_deref())?;
    let encoder = serve::load_encoder(&config)?.ok_or_else(|| {
        let why = "this configuration has no encoder ([encoder] enabled = false): name another \
                   with --config";
        Failure::Failed(why.into())
    })?;
    let bytes = bytes(&known, &*encoder)?;
    std::fs::write(file, bytes).map_err(|e| Failure::Failed(format!("{}: {e}", file.display())))?;
    let [simple, medium, complex] = counts(&known);
    println!("# {simple} simple, {medium} medium and {complex} complex requests");
    println!(
        "{}: for `homeostat policy build plugins/classify-neighbours`, with the setting encoder = \
         \"{}\"",
        file.display(),
        encoder.id()
    );
    Ok(())
}

/// Every text once, the newest first, with what became of it.
fn known(lines: &[Line]) -> Result<Vec<(&str, Label)>, Failure> {
    let lowest = lowest_rank(lines);
    let judged = lines.iter().rev().filter(|line| line.right.is_some());
    let count = judged.clone().count();
    let mut newest = Vec::new();
    let mut of: BTreeMap<&str, Vec<&Line>> = BTreeMap::new();
    for line in judged {
        let text = line.prompt.as_deref().unwrap_or_default();
        if text.trim().is_empty() {
            continue;
        }
        let same = of.entry(text).or_default();
        if same.is_empty() {
            newest.push(text);
        }
        same.push(line);
    }
    if count > 0 && newest.is_empty() {
        return Err(Failure::Failed(format!(
            "none of the {count} judged requests has a text: decision records hold none. Name a \
             folder of recordings, which the host writes with [policies.record] dir = \
             \"recordings\" and prompts = true"
        )));
    }
    let labelled = newest.into_iter();
    let labelled = labelled.filter_map(|text| Some((text, label(&of[text], lowest)?)));
    let known: Vec<_> = labelled.take(KNOWN_MAX).collect();
    if known.len() < KNOWN_MIN {
        let few = known.len();
        return Err(Failure::Failed(format!(
            "{count} judged answers tell how hard {few} different requests are, at least \
             {KNOWN_MIN} are needed: say with --judged which answers were right"
        )));
    }
    if counts(&known).contains(&known.len()) {
        return Err(Failure::Failed(format!(
            "all {} judged requests are {:?}: from these no hard one can be told from an easy one",
            known.len(),
            known[0].1
        )));
    }
    Ok(known)
}

/// What the judged answers to one text tell of it; `lowest` is the rank of the smallest tier.
fn label(lines: &[&Line], lowest: Option<u32>) -> Option<Label> {
    let right = |line: &&&Line| line.right == Some(true);
    let answered = lines
        .iter()
        .filter(|l| l.tiers.is_empty() || l.answerer().is_some());
    let (smallest, larger): (Vec<&&Line>, Vec<&&Line>) =
        answered.partition(|line| line.is_of_the_smallest(lowest));
    if smallest.iter().any(right) {
        return Some(Label::Simple);
    }
    let failed = !smallest.is_empty() || larger.iter().any(|line| line.was_escalated());
    match larger.iter().any(right) {
        true => failed.then_some(Label::Complex),
        false if smallest.is_empty() && larger.is_empty() => None,
        false => Some(Label::Medium),
    }
}

fn counts(known: &[(&str, Label)]) -> [usize; 3] {
    let of = |wanted: Label| known.iter().filter(|(_, label)| *label == wanted).count();
    [of(Label::Simple), of(Label::Medium), of(Label::Complex)]
}

/// They in the form that the policy reads, little endian: its `neighbours.rs` describes it.
fn bytes(known: &[(&str, Label)], encoder: &dyn Embedder) -> Result<Vec<u8>, Failure> {
    let mut scales = Vec::new();
    let mut rows = Vec::new();
    for part in known.chunks(BATCH) {
        let read = part.iter().map(|(text, _)| beginning(text, encoder));
        let read = read.collect::<Result<Vec<String>, Failure>>()?;
        let texts: Vec<&str> = read.iter().map(String::as_str).collect();
        for vector in encoder.embed(&texts).map_err(Failure::failed)? {
            let largest = vector.iter().fold(1e-9_f32, |most, x| most.max(x.abs()));
            let scale = largest / 127.0;
            scales.extend(scale.to_le_bytes());
            rows.extend(vector.iter().map(|x| (x / scale).round() as i8 as u8));
        }
    }
    let mut bytes = MAGIC.to_vec();
    bytes.extend((encoder.dimensions() as u32).to_le_bytes());
    bytes.extend((known.len() as u32).to_le_bytes());
    bytes.extend(known.iter().map(|(_, label)| *label as u8));
    bytes.extend(scales);
    bytes.extend(rows);
    Ok(bytes)
}

/// What the policy will embed of such a text: of one that is too long for the encoder, a half.
fn beginning(text: &str, encoder: &dyn Embedder) -> Result<String, Failure> {
    let mut text: String = text.chars().take(CHARS_MAX).collect();
    if encoder.count_tokens(&text).map_err(Failure::failed)? > encoder.max_tokens() {
        text.truncate(text.floor_char_boundary(text.len() / 2));
    }
    Ok(text)
}

#[cfg(test)]
#[path = "../../../../../plugins/classify-neighbours/src/neighbours.rs"]
#[expect(
    dead_code,
    reason = "the policy's own reader, which is asked one thing"
)]
mod reader;

#[cfg(test)]
mod tests {
    use super::*;

    /// Two dimensions: what speaks of the north lies there, all else in the east. A byte is a
    /// token.
    struct Compass;

    impl Embedder for Compass {
        fn id(&self) -> &str {
            "compass"
        }
        fn dimensions(&self) -> usize {
            2
        }
        fn max_tokens(&self) -> usize {
            30
        }
        fn count_tokens(&self, text: &str) -> Result<usize, String> {
            Ok(text.len())
        }
        fn embed(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>, String> {
            let of = |text: &&str| match text.contains("north") {
                true => vec![-0.28, 0.96],
                false => vec![1.0, 0.0],
            };
            Ok(texts.iter().map(of).collect())
        }
    }

    /// As a recording is read.
    fn line(prompt: &str, tier: &str, doubted: bool, right: bool) -> Line {
        let json = serde_json::json!({
            "tiers": [{"id": "small", "rank": 0}, {"id": "large", "rank": 1}],
            "tier": tier, "doubted": doubted, "prompt": prompt, "right": right,
        });
        serde_json::from_value(json).expect("a line")
    }

    #[test]
    fn a_request_is_as_hard_as_the_judged_answers_to_it_say() {
        let label_of = |lines: &[Line]| label(&lines.iter().collect::<Vec<_>>(), Some(0));
        let small = |right| line("why?", "small", false, right);
        let large = |doubted, right| line("why?", "large", doubted, right);
        assert_eq!(label_of(&[small(true)]), Some(Label::Simple));
        assert_eq!(
            label_of(&[large(false, true), small(true)]),
            Some(Label::Simple)
        );
        assert_eq!(label_of(&[small(false)]), Some(Label::Medium));
        assert_eq!(label_of(&[large(false, false)]), Some(Label::Medium));
        assert_eq!(
            label_of(&[small(false), large(false, true)]),
            Some(Label::Complex)
        );
        assert_eq!(label_of(&[large(true, true)]), Some(Label::Complex));
        assert_eq!(label_of(&[large(false, true)]), None);
        // It named the large tier, so that it had no other candidate.
        let mut named = large(false, true);
        named.tiers.remove(0);
        assert_eq!(label_of(&[named]), None);
        let nobody = Line {
            tier: None,
            ..small(true)
        };
        assert_eq!(label_of(&[nobody]), None);
    }

    #[test]
    fn the_policys_own_reader_takes_what_is_written() {
        let mut lines: Vec<Line> = (0..80)
            .map(|n| match n % 2 {
                0 => line(&format!("east {n}"), "small", false, true),
                _ => line(&format!("north {n}"), "large", true, true),
            })
            .collect();
        // Asked twice, it is one request; what is too long is read by half, here before "north".
        lines.push(line("east 0", "small", false, true));
        lines.push(line(
            "a text of thirty bytes, then north",
            "small",
            false,
            false,
        ));
        let known = known(&lines).expect("enough is judged");
        assert_eq!(counts(&known), [40, 1, 40]);
        assert_eq!(known[0].0, "a text of thirty bytes, then north");
        let bytes = bytes(&known, &Compass).expect("it embeds everything");
        let read = reader::Neighbours::read(&bytes).expect("by its rules");
        let north = read.similarities(&[-0.28, 0.96]);
        for ((text, label), (similarity, told)) in known.iter().zip(north) {
            assert_eq!(told as u8, *label as u8, "{text}");
            let expected = match text.starts_with("north") {
                true => 1.0,
                false => -0.28,
            };
            assert!((similarity - expected).abs() < 0.01, "{text}: {similarity}");
        }
    }

    #[test]
    fn a_log_that_tells_nothing_is_refused_with_what_to_do() {
        let why = |lines: &[Line]| match known(lines) {
            Ok(_) => panic!("it is not refused"),
            Err(error) => error.to_string(),
        };
        let many = |right: fn(usize) -> bool| -> Vec<Line> {
            let of = |n: usize| line(&format!("question {n}"), "small", false, right(n));
            (0..100).map(of).collect()
        };
        let mut bare = many(|n| n % 2 == 0);
        for line in &mut bare {
            line.prompt = None;
        }
        let texts = why(&bare);
        assert!(texts.contains("policies.record") && texts.contains("prompts = true"));
        assert!(why(&many(|n| n % 2 == 0)[..20]).contains("--judged"));
        assert!(why(&[]).contains("--judged"));
        assert!(why(&many(|_| true)).contains("all 100"));
        assert_eq!(
            known(&many(|n| n % 2 == 0)).map(|k| k.len()).ok(),
            Some(100)
        );
    }
}
