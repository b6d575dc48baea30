//! `homeostat bench energy` and `homeostat bench ablation`: what the judgement saves on
//! simulated days, and which part of it does.
//!
//! Every host lives through the same days, drawn from seeds; a difference is the mean of
//! differences on one day, and its interval comes from drawing days anew. A power cap is set
//! with hindsight so that these very days cost the same mean watts: no operator could set a
//! better one; a static threshold is tuned to the same watts likewise. Rows are drawn for every day anew from the same recordings, so the intervals
//! tell about days and not about other questions.

use std::path::PathBuf;

use serde_json::{Map, Value, json};

use super::bootstrap::Bootstrap;
use super::{Figure, shown, write};
use crate::Failure;
use crate::simulate::{
    Day, Judgement, MEASURES, Part, Scene, Score, THRESHOLD, World, scores, tuned_threshold,
    under_cap,
};

/// What these benches are told.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    world: World,
    /// Days that every host lives through.
    #[arg(long, value_name = "N", default_value_t = 8)]
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
    days: Vec<Score>,
}

impl Judged {
    fn sum(&self) -> Score {
        Score::sum(&self.days, &vec![1; self.days.len()])
    }
}

/// Runs `bench energy`.
pub fn energy(args: &Args) -> Result<(), Failure> {
    let scene = Scene::open(&args.world)?;
    let days: Vec<_> = args.days().map(|day| scene.busy(day)).collect();
    let free = f64::INFINITY;
    let rules = [
        (Judgement::Metabolic, "metabolic"),
        (Judgement::AlwaysLarge, "always large"),
        (Judgement::Threshold(THRESHOLD), "static threshold 0.5"),
        (Judgement::AlwaysSmall, "always small"),
    ];
    let hosts: Vec<_> = rules
        .iter()
        .map(|(judgement, _)| (*judgement, free))
        .collect();
    let mut judged = Vec::new();
    for (lived, (_, name)) in scene.live(&days, &hosts)?.iter().zip(rules) {
        judged.push(Judged {
            name: name.into(),
            cap_watts: None,
            days: scores(lived, &days),
        });
    }
    let target = judged[0].sum().watts();
    for at in [1, 2] {
        let (judgement, name) = rules[at];
        let uncapped = judged[at].sum().watts();
        let (cap, lived) = under_cap(&scene, &days, judgement, uncapped, target)?;
        if cap.is_infinite() {
            println!(
                "{name}: draws {uncapped:.2} W without a cap, no more than the metabolic host"
            );
            continue;
        }
        judged.push(Judged {
            name: format!("{name}, cap {cap:.1} W"),
            cap_watts: Some(cap),
            days: scores(&lived, &days),
        });
        if judgement == Judgement::AlwaysLarge {
            // A cap and a judgement do not exclude each other.
            let both = scene.live(&days, &[(Judgement::Metabolic, cap)])?;
            judged.extend(both.iter().map(|lived| Judged {
                name: format!("metabolic, cap {cap:.1} W"),
                cap_watts: Some(cap),
                days: scores(lived, &days),
            }));
        }
    }
    let (threshold, lived) = tuned_threshold(&scene, &days, target)?;
    judged.push(Judged {
        name: format!("static threshold {threshold:.3}, tuned"),
        cap_watts: None,
        days: scores(&lived, &days),
    });
    report(args, "energy", &scene, &judged)
}

/// Runs `bench ablation`.
pub fn ablation(args: &Args) -> Result<(), Failure> {
    let scene = Scene::open(&args.world)?;
    let days: Vec<_> = args.days().map(|day| scene.busy(day)).collect();
    let mut hosts = vec![(Judgement::Metabolic, f64::INFINITY)];
    let without = Part::ALL.map(|part| (Judgement::MetabolicWithout(part), f64::INFINITY));
    hosts.extend(without);
    let lived = scene.live(&days, &hosts)?;
    let names = std::iter::once("metabolic".to_owned())
        .chain(Part::ALL.map(|part| format!("without {}", part.word())));
    let judged: Vec<Judged> = lived
        .iter()
        .zip(names)
        .map(|(lived, name)| Judged {
            name,
            cap_watts: None,
            days: scores(lived, &days),
        })
        .collect();
    report(args, "ablation", &scene, &judged)
}

impl Args {
    fn days(&self) -> impl Iterator<Item = Day> {
        let world = &self.world;
        (0..self.days.max(1)).map(|day| Day::drawn(world.seed + day, world.requests_per_s))
    }
}

/// Each host's figures, and the first host's against every other's; a ratio below 1 of joules
/// is in favour of the first.
fn figures(judged: &[Judged], bootstrap: Bootstrap) -> Vec<Vec<[Figure; 2]>> {
    let first = &judged[0].days;
    let all = |counts: &[u32]| -> Vec<Option<f64>> {
        let ours = Score::sum(first, counts);
        let of = |host: &Judged| {
            let theirs = Score::sum(&host.days, counts);
            MEASURES.map(|(_, measure)| {
                let (a, b) = (measure(&ours), measure(&theirs));
                let ratio = a.zip(b).filter(|(_, b)| *b > 0.0).map(|(a, b)| a / b);
                [b, ratio]
            })
        };
        judged.iter().flat_map(of).flatten().collect()
    };
    let count = first.len();
    let values = all(&vec![1; count]);
    let intervals = bootstrap.intervals(count, all);
    let figures: Vec<Figure> = values
        .into_iter()
        .zip(intervals)
        .map(|(value, interval)| Figure { value, interval })
        .collect();
    let mut figures = figures.into_iter();
    let mut two = || {
        [
            figures.next().unwrap_or_default(),
            figures.next().unwrap_or_default(),
        ]
    };
    judged
        .iter()
        .map(|_| MEASURES.iter().map(|_| two()).collect())
        .collect()
}

fn report(args: &Args, bench: &str, scene: &Scene, judged: &[Judged]) -> Result<(), Failure> {
    let bootstrap = Bootstrap {
        rounds: args.rounds,
        seed: args.world.seed,
    };
    let figures = figures(judged, bootstrap);
    let sum = judged[0].sum();
    println!(
        "{bench}: {} simulated days, {:.0} requests; right and wrong as recorded; 95 % intervals \
         over days",
        args.days.max(1),
        sum.requests
    );
    for (at, (name, _)) in MEASURES.iter().enumerate() {
        println!("\n{name}");
        for (host, figures) in judged.iter().zip(&figures) {
            let [own, ratio] = &figures[at];
            println!(
                "  {:<34}{:>28}    {} ÷ this: {}",
                host.name,
                shown(own, false),
                judged[0].name,
                shown(ratio, false)
            );
        }
    }
    println!(
        "\nhardware: s slowed down by heat, s without power, °C at most, state changes in an hour"
    );
    for host in judged {
        let sum = host.sum();
        println!(
            "  {:<34}{:>8.0}{:>8.0}{:>8.1}{:>6.0}",
            host.name,
            sum.throttled_s,
            sum.off_s,
            sum.hottest_celsius,
            sum.state_changes_in_an_hour
        );
    }
    let Some(file) = &args.json else {
        return Ok(());
    };
    let hosts: Vec<Value> = judged.iter().zip(&figures).map(as_json).collect();
    let whole = json!({
        "bench": bench,
        "days": args.days.max(1),
        "first_seed": args.world.seed,
        "requests_per_s": args.world.requests_per_s,
        "bootstrap": {"rounds": args.rounds, "seed": args.world.seed, "inside": 0.95},
        "scene": scene.as_json(),
        "hosts": hosts,
    });
    write(file, &format!("{whole:#}\n"))
}

fn as_json((host, figures): (&Judged, &Vec<[Figure; 2]>)) -> Value {
    let mut own = Map::new();
    let mut ratios = Map::new();
    for ((name, _), [value, ratio]) in MEASURES.iter().zip(figures) {
        own.insert((*name).to_owned(), value.json());
        ratios.insert((*name).to_owned(), ratio.json());
    }
    json!({
        "host": host.name,
        "cap_watts": host.cap_watts,
        "figures": own,
        "first_host_over_this": ratios,
        "sum": host.sum(),
        "days": host.days,
    })
}
