//! `homeostat bench energy` and `homeostat bench ablation`: what the judgement saves on
//! simulated days, and which part of it does.
//!
//! Every host lives through the same days, drawn from seeds; no two days ask the same question,
//! so an interval that comes from drawing days anew tells about other questions too. A figure is
//! compared day by day. Hosts of different watts are no ranking, so a power cap and a static
//! threshold are set with hindsight to these very days' mean watts of the metabolic host: no
//! operator could set better ones. What did not come near enough says so. At equal quality
//! [`super::frontier`] compares.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::bootstrap::Bootstrap;
use super::frontier::Frontier;
use super::{Figure, shown, write};
use crate::Failure;
use crate::simulate::{
    Busy, By, DIFFERENCES, DRAFT_TOKENS, Day, EQUAL, Events, Judgement, Lived, MEASURES, Part,
    Scene, Score, THRESHOLD, Tuned, World, print_events, scores, together, tuned_price,
    tuned_threshold, under_cap,
};

/// Days from which an interval over days means something.
const DAYS_FEW: u64 = 8;

/// What these benches are told.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    world: World,
    /// Days that every host lives through; no two of them ask the same question.
    #[arg(long, value_name = "N", default_value_t = DAYS_FEW)]
    days: u64,
    /// Bootstrap rounds of the 95 % intervals.
    #[arg(long, value_name = "N", default_value_t = 2000)]
    rounds: usize,
    /// File to write everything to, as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// A host with its days.
struct Judged {
    name: String,
    cap_watts: Option<f64>,
    /// How far its watts are from those that it was to draw, as a share, if too far.
    unequal: Option<f64>,
    days: Vec<Score>,
    events: Events,
}

impl Judged {
    fn new(name: impl Into<String>, lived: &[Lived], days: &[Busy]) -> Self {
        Self {
            name: name.into(),
            cap_watts: None,
            unequal: None,
            days: scores(lived, days),
            events: together(lived),
        }
    }

    fn tuned(name: String, found: &Tuned, days: &[Busy]) -> Self {
        Self {
            unequal: found.unequal(),
            ..Self::new(name, &found.lived, days)
        }
    }

    fn under_cap(self, cap_watts: f64) -> Self {
        Self {
            cap_watts: Some(cap_watts),
            ..self
        }
    }

    fn sum(&self) -> Score {
        Score::sum(&self.days, &vec![1; self.days.len()])
    }

    /// What stands beside its row.
    fn note(&self) -> String {
        let off = self.unequal.map(|off| 100.0 * off);
        off.map_or_else(String::new, |off| format!("    not equal: {off:+.1} % W"))
    }
}

/// Runs `bench energy`.
pub fn energy(args: &Args, svg: Option<&Path>) -> Result<(), Failure> {
    let drawn = args.drawn();
    energy_of(args, drawn, svg)
}

fn energy_of(args: &Args, days: Vec<Day>, svg: Option<&Path>) -> Result<(), Failure> {
    let scene = Scene::open(&args.world)?;
    let days = scene.busy_days(days)?;
    let mut judged = untuned(&scene, &days)?;
    let tuned = tuned(&scene, &days, &judged)?;
    judged.extend(tuned);
    let frontier = Frontier::lived(&scene, &days, args.bootstrap())?;
    let mut whole = report(args, "energy", &scene, &judged);
    frontier.print();
    if let Some(file) = svg {
        frontier.draw(file)?;
    }
    whole.insert("frontier".into(), frontier.as_json());
    args.write(whole)
}

/// Hosts as they come.
fn untuned(scene: &Scene, days: &[Busy]) -> Result<Vec<Judged>, Failure> {
    let threshold = Judgement::Threshold {
        by: By::Hardness,
        least: THRESHOLD,
        drafts: DRAFT_TOKENS,
    };
    let named = [
        (scene.metabolic(), "metabolic".to_owned()),
        (Judgement::AlwaysLarge, "always large".to_owned()),
        (
            Judgement::FRUGAL_LARGE,
            "always large, few drafts".to_owned(),
        ),
        (threshold, format!("static: hardness {THRESHOLD}")),
        (Judgement::AlwaysSmall, "always small".to_owned()),
    ];
    let hosts: Vec<_> = named.iter().map(|(j, _)| (*j, f64::INFINITY)).collect();
    let lived = scene.live(days, &hosts)?;
    let each = named.into_iter().zip(&lived);
    Ok(each
        .map(|((_, name), lived)| Judged::new(name, lived, days))
        .collect())
}

/// The same where somebody has set them, with hindsight, to the watts of the metabolic host.
fn tuned(scene: &Scene, days: &[Busy], untuned: &[Judged]) -> Result<Vec<Judged>, Failure> {
    let watts = untuned[0].sum().watts();
    let mut judged = Vec::new();
    for (at, judgement) in [(1, Judgement::AlwaysLarge), (2, Judgement::FRUGAL_LARGE)] {
        let (name, uncapped) = (&untuned[at].name, untuned[at].sum().watts());
        let Some(found) = under_cap(scene, days, judgement, uncapped, watts)? else {
            println!(
                "{name}: draws {uncapped:.2} W without a cap, no more than the metabolic host"
            );
            continue;
        };
        let cap = found.setting;
        let host = Judged::tuned(format!("{name}, cap {cap:.1} W"), &found, days);
        judged.push(host.under_cap(cap));
        if judgement == Judgement::AlwaysLarge {
            // A cap and a judgement do not exclude each other.
            let both = scene.live(days, &[(scene.metabolic(), cap)])?;
            let name = format!("metabolic, cap {cap:.1} W");
            let both = both.iter().map(|lived| Judged::new(&*name, lived, days));
            judged.extend(both.map(|host| host.under_cap(cap)));
        }
    }
    for by in [By::Gain, By::Hardness] {
        let found = tuned_threshold(scene, days, by, watts)?;
        let name = format!("static: {} {:.3}, tuned", by.word(), found.setting);
        judged.push(Judged::tuned(name, &found, days));
    }
    Ok(judged)
}

/// Runs `bench ablation`; `equal_watts` = set the price of energy anew for each host, so that
/// all draw the same, as far as another price brings them nearer.
pub fn ablation(args: &Args, equal_watts: bool) -> Result<(), Failure> {
    ablation_of(args, args.drawn(), equal_watts)
}

fn ablation_of(args: &Args, days: Vec<Day>, equal_watts: bool) -> Result<(), Failure> {
    let scene = Scene::open(&args.world)?;
    let days = scene.busy_days(days)?;
    let price = args.world.energy_price;
    let without = Part::ALL.map(|part| Judgement::MetabolicWithout { part, price });
    let hosts: Vec<_> = std::iter::once(scene.metabolic())
        .chain(without)
        .map(|judgement| (judgement, f64::INFINITY))
        .collect();
    let lived = scene.live(&days, &hosts)?;
    let names = std::iter::once("metabolic".to_owned())
        .chain(Part::ALL.map(|part| format!("without {}", part.word())));
    let mut judged: Vec<Judged> = names
        .zip(&lived)
        .map(|(name, lived)| Judged::new(name, lived, &days))
        .collect();
    let watts = judged[0].sum().watts();
    for host in &mut judged {
        let off = host.sum().watts() / watts - 1.0;
        host.unequal = (off.abs() > EQUAL).then_some(off);
    }
    if equal_watts {
        for (place, part) in Part::ALL.into_iter().enumerate() {
            // After the whole host come those without a part, in this order.
            let Some(before) = judged[place + 1].unequal else {
                continue;
            };
            let of = |price| Judgement::MetabolicWithout { part, price };
            let found = tuned_price(&scene, &days, of, watts)?;
            if found.off.abs() >= before.abs() {
                // What has lost its sense of energy does not hear the price: the row stays.
                continue;
            }
            let name = format!("without {}, price {:.2}", part.word(), found.setting);
            judged[place + 1] = Judged::tuned(name, &found, &days);
        }
    }
    let whole = report(args, "ablation", &scene, &judged);
    args.write(whole)
}

impl Args {
    fn drawn(&self) -> Vec<Day> {
        let world = &self.world;
        let days = 0..self.days.max(1);
        days.map(|day| Day::drawn(world.seed + day, world.requests_per_s))
            .collect()
    }

    fn bootstrap(&self) -> Bootstrap {
        Bootstrap {
            rounds: self.rounds,
            seed: self.world.seed,
        }
    }

    fn write(&self, whole: Map<String, Value>) -> Result<(), Failure> {
        match &self.json {
            Some(file) => write(file, &format!("{:#}\n", Value::Object(whole))),
            None => Ok(()),
        }
    }
}

/// Figures of one host: its own, and the first host's over it or less it.
struct Compared {
    measures: Vec<[Figure; 2]>,
    differences: Vec<[Figure; 2]>,
}

/// Each host's figures, and the first host's against every other's; a ratio below 1 of joules
/// is in favour of the first.
fn figures(judged: &[Judged], bootstrap: Bootstrap) -> Vec<Compared> {
    let first = &judged[0].days;
    let all = |counts: &[u32]| -> Vec<Option<f64>> {
        let ours = Score::sum(first, counts);
        let of = |host: &Judged| {
            let theirs = Score::sum(&host.days, counts);
            let ratios = MEASURES.into_iter().flat_map(|(_, measure)| {
                let (a, b) = (measure(&ours), measure(&theirs));
                let ratio = a.zip(b).filter(|(_, b)| *b > 0.0).map(|(a, b)| a / b);
                [b, ratio]
            });
            let differences = DIFFERENCES.into_iter().flat_map(|(_, measure)| {
                let (a, b) = (measure(&ours), measure(&theirs));
                [b, a.zip(b).map(|(a, b)| a - b)]
            });
            ratios.chain(differences).collect::<Vec<_>>()
        };
        judged.iter().flat_map(of).collect()
    };
    let count = first.len();
    let mut figures = Figure::all(bootstrap, count, all).into_iter();
    let mut pairs = |count: usize| -> Vec<[Figure; 2]> {
        let mut next = || figures.next().unwrap_or_default();
        (0..count).map(|_| [next(), next()]).collect()
    };
    judged
        .iter()
        .map(|_| Compared {
            measures: pairs(MEASURES.len()),
            differences: pairs(DIFFERENCES.len()),
        })
        .collect()
}

/// Prints what there is and returns it.
fn report(args: &Args, bench: &str, scene: &Scene, judged: &[Judged]) -> Map<String, Value> {
    let figures = figures(judged, args.bootstrap());
    let days = judged[0].days.len();
    println!(
        "{bench}: {days} simulated days, {:.0} requests; right and wrong as recorded; 95 % \
         intervals over days, of which no two ask the same question",
        judged[0].sum().requests
    );
    print(judged, &figures);
    let events = judged.iter().map(|h| (h.name.as_str(), h.events.clone()));
    print_events(&events.collect::<Vec<_>>());
    println!("\nhosts of other watts are no ranking: what draws more may be right more often");
    println!("{}", scene.validator_in_words());
    let mut shortcomings = scene.shortcomings();
    if (days as u64) < DAYS_FEW {
        shortcomings.push(format!("{days} days are too few for an interval over days"));
    }
    for shortcoming in &shortcomings {
        println!("falls short: {shortcoming}");
    }
    let hosts: Vec<Value> = judged.iter().zip(&figures).map(as_json).collect();
    let pairs = [
        ("bench", json!(bench)),
        ("days", json!(days)),
        ("first_seed", json!(args.world.seed)),
        ("requests_per_s", json!(args.world.requests_per_s)),
        (
            "bootstrap",
            json!({"rounds": args.rounds, "seed": args.world.seed, "inside": 0.95}),
        ),
        ("scene", scene.as_json()),
        ("shortcomings", json!(shortcomings)),
        ("hosts", json!(hosts)),
    ];
    pairs
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value))
        .collect()
}

fn print(judged: &[Judged], figures: &[Compared]) {
    let first = &judged[0].name;
    for (at, (name, _)) in MEASURES.iter().enumerate() {
        println!("\n{name}");
        for (host, figures) in judged.iter().zip(figures) {
            let [own, ratio] = &figures.measures[at];
            println!(
                "  {:<38}{:>28}    {first} ÷ this: {}{}",
                host.name,
                shown(own, false),
                shown(ratio, false),
                host.note()
            );
        }
    }
    for (at, (name, _)) in DIFFERENCES.iter().enumerate() {
        println!("\n{name}");
        for (host, figures) in judged.iter().zip(figures) {
            let [own, difference] = &figures.differences[at];
            println!(
                "  {:<38}{:>28}    {first} − this: {}{}",
                host.name,
                shown(own, false),
                shown(difference, true),
                host.note()
            );
        }
    }
    println!("\nhardware: °C at most, state changes in an hour at most");
    for host in judged {
        let sum = host.sum();
        println!(
            "  {:<38}{:>8.1}{:>6.0}",
            host.name, sum.hottest_celsius, sum.state_changes_in_an_hour
        );
    }
}

fn as_json((host, figures): (&Judged, &Compared)) -> Value {
    let (mut own, mut ratios, mut differences) = (Map::new(), Map::new(), Map::new());
    for ((name, _), [value, ratio]) in MEASURES.iter().zip(&figures.measures) {
        own.insert((*name).to_owned(), value.json());
        ratios.insert((*name).to_owned(), ratio.json());
    }
    for ((name, _), [value, difference]) in DIFFERENCES.iter().zip(&figures.differences) {
        own.insert((*name).to_owned(), value.json());
        differences.insert((*name).to_owned(), difference.json());
    }
    let events = host.events.iter();
    let events = events.map(|(event, sums)| json!({"event": event, "sums": sums}));
    json!({
        "host": host.name,
        "cap_watts": host.cap_watts,
        "off_equal_watts": host.unequal,
        "figures": own,
        "first_host_over_this": ratios,
        "first_host_less_this": differences,
        "sum": host.sum(),
        "days": host.days,
        "events": events.collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two short nights in which much is asked.
    fn nights() -> Vec<Day> {
        let night = |seed| Day {
            hours: 0.1,
            crowd: None,
            ..Day::eventful(seed, 1.0)
        };
        vec![night(3), night(4)]
    }

    fn args(dir: &Path) -> Args {
        crate::simulate::write_rows(dir);
        let known = dir.join("known");
        crate::simulate::write_known_rows(&known);
        Args {
            world: World {
                data: dir.to_owned(),
                unseen: true,
                known: Some(known),
                requests_per_s: 1.0,
                energy_price: 0.4,
                power_plan: None,
                seed: 1,
            },
            days: 2,
            rounds: 50,
            json: Some(dir.join("report.json")),
        }
    }

    fn report_of(dir: &Path) -> Value {
        let text = std::fs::read_to_string(dir.join("report.json")).expect("written");
        serde_json::from_str(&text).expect("JSON")
    }

    #[test]
    fn energy_compares_at_equal_watts_and_at_equal_quality() {
        let dir = tempfile::tempdir().expect("a folder");
        let svg = dir.path().join("frontier.svg");
        energy_of(&args(dir.path()), nights(), Some(&svg)).expect("a report");
        let report = report_of(dir.path());
        let hosts = report["hosts"].as_array().expect("a list");
        for host in hosts {
            for name in [
                "joules_per_request",
                "correct_ratio",
                "usd_per_1000_correct",
                "watts",
            ] {
                assert!(host["figures"][name]["value"].is_number(), "{host}");
            }
            let off_s = &host["first_host_less_this"]["off_s_per_day"]["value"];
            assert_eq!(*off_s, json!(0.0), "{host}");
        }
        // A cap is found as exactly as one likes; a threshold lies between two rows.
        let is_capped = |name: &str| name.starts_with("always large") && name.contains(", cap ");
        let capped = hosts
            .iter()
            .zip(off_watts(&report))
            .filter(|(host, _)| host["host"].as_str().is_some_and(is_capped));
        let capped: Vec<(&Value, f64)> = capped.collect();
        assert!(!capped.is_empty(), "the metabolic host draws less");
        for (host, off) in capped {
            assert!(host["off_equal_watts"].is_null(), "{host}");
            assert!(off.abs() <= EQUAL + 1e-9, "{off} {host}");
        }
        let frontier = &report["frontier"];
        let of = |whose: &str| frontier[whose].as_array().expect("a list").clone();
        let (ours, theirs) = (of("metabolic"), of("static_router"));
        assert_eq!((ours.len(), theirs.len()), (6, 8));
        let joules = |one: &Value| one["joules_per_request"]["value"].as_f64();
        let (none, all) = (joules(&theirs[0]), joules(&theirs[7]));
        assert!(none.is_some() && none < all, "{none:?} {all:?}");
        let picture = std::fs::read_to_string(&svg).expect("a picture");
        assert!(picture.starts_with("<svg ") && picture.matches("<polyline").count() == 2);
    }

    /// How far every host's watts are from the first one's, as a share.
    fn off_watts(report: &Value) -> Vec<f64> {
        let hosts = report["hosts"].as_array().expect("a list");
        let watts = |host: &Value| host["figures"]["watts"]["value"].as_f64().expect("watts");
        let off = hosts
            .iter()
            .map(|host| watts(host) / watts(&hosts[0]) - 1.0);
        off.collect()
    }

    #[test]
    fn ablation_says_which_rows_are_no_ranking_and_a_price_brings_them_nearer() {
        let dir = tempfile::tempdir().expect("a folder");
        let ablated = |equal_watts| {
            ablation_of(&args(dir.path()), nights(), equal_watts).expect("a report");
            report_of(dir.path())
        };
        let (plain, priced) = (ablated(false), ablated(true));
        let hosts = priced["hosts"].as_array().expect("a list");
        assert_eq!(hosts.len(), 1 + Part::ALL.len());
        let offs = off_watts(&plain).into_iter().zip(off_watts(&priced));
        let mut nearer = 0;
        for (host, (before, after)) in hosts.iter().zip(offs) {
            let is_priced = host["host"]
                .as_str()
                .is_some_and(|h| h.contains(", price "));
            match is_priced {
                true => assert!(after.abs() < before.abs(), "{before} {host}"),
                false => assert!((after - before).abs() < 1e-9, "{before} {host}"),
            }
            nearer += u32::from(is_priced);
            let says = host["off_equal_watts"].as_f64();
            assert!(says.is_some() || after.abs() <= EQUAL + 1e-9, "{host}");
        }
        assert!(nearer > 0, "{plain}");
        let text = plain["shortcomings"].to_string();
        assert!(text.contains("2 days are too few"), "{text}");
    }
}
