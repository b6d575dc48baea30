//! Hosts side by side on the same days: the same requests at the same moments in the same air.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use homeostat_hooks::{Classification, Hook, Policies};
use homeostat_policy::PolicyRoom;
use serde_json::{Value, json};

use super::day::{Day, USD_PER_KWH};
use super::judgement::Judgement;
use super::life::{self, Host, Lived};
use super::machine::{ACCEPTED, CORE_SHARE, SLOWEST};
use super::score::{MEASURES, Score, is_exact, ttft_ms};
use super::traffic::{ASSUMED, Ask, Recorded};
use super::{World, picture};
use crate::Failure;
use crate::bench::ask::embedded_room;
use crate::config::Config;

/// How near the mean watts of a capped host must come to those asked for, as a share.
const EQUAL: f64 = 0.005;
/// Settings that are tried at most.
const TRIED: usize = 9;

/// What all hosts share.
pub struct Scene {
    recorded: Recorded,
    config: Config,
    qualities: [(f32, f32, f32); 2],
    energy_price: f64,
}

/// A day with its requests.
pub type Busy = (Day, Arc<Vec<Ask>>);

impl Scene {
    /// Reads the recordings and loads the host's own policies.
    pub fn open(world: &World) -> Result<Self, Failure> {
        let recorded = Recorded::read(&world.data, world.unseen)?;
        let mut config = Config::default();
        // Whether a direct answer is right was never recorded.
        let settings = config.policies.route.settings.get_or_insert_default();
        settings.insert("direct-answers".into(), "off".into());
        settings.insert("energy-price".into(), world.energy_price.to_string());
        let room = own_policies(&config)?;
        let qualities = qualities(&recorded, room.as_ref());
        Ok(Self {
            recorded,
            config,
            qualities,
            energy_price: world.energy_price,
        })
    }

    /// The requests of a day.
    pub fn busy(&self, day: Day) -> Busy {
        let asks = Arc::new(self.recorded.asks(&day));
        (day, asks)
    }

    fn host(&self, judgement: Judgement, cap_watts: f64) -> Host {
        Host {
            judgement,
            cap_watts,
            qualities: self.qualities,
        }
    }

    /// Each of these hosts on each of these days; one list of days for each host. As many at
    /// once as this computer has processors.
    pub fn live(
        &self,
        days: &[Busy],
        hosts: &[(Judgement, f64)],
    ) -> Result<Vec<Vec<Lived>>, Failure> {
        let count = days.len() * hosts.len();
        let lived: Vec<Mutex<Option<Result<Lived, Failure>>>> =
            (0..count).map(|_| Mutex::new(None)).collect();
        let next = AtomicUsize::new(0);
        let work = || {
            loop {
                let at = next.fetch_add(1, Ordering::Relaxed);
                let Some(place) = lived.get(at) else { return };
                let (judgement, cap_watts) = hosts[at / days.len()];
                let (day, asks) = &days[at % days.len()];
                let host = self.host(judgement, cap_watts);
                let one =
                    own_policies(&self.config).and_then(|room| life::live(day, asks, &host, &room));
                *place.lock().unwrap_or_else(PoisonError::into_inner) = Some(one);
            }
        };
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        std::thread::scope(|scope| {
            for _ in 0..threads.min(count) {
                scope.spawn(work);
            }
        });
        let mut all = lived.into_iter().map(|one| {
            let one = one.into_inner().unwrap_or_else(PoisonError::into_inner);
            let one = one.unwrap_or_else(|| Err(Failure::Failed("a day was not lived".into())))?;
            match is_exact(&one.accounts) {
                true => Ok(one),
                false => Err(Failure::Failed("the books of a day do not add up".into())),
            }
        });
        let mut of_hosts = Vec::new();
        for _ in hosts {
            of_hosts.push(all.by_ref().take(days.len()).collect::<Result<_, _>>()?);
        }
        Ok(of_hosts)
    }

    /// What the whole run rests on.
    pub fn as_json(&self) -> Value {
        json!({
            "questions": self.recorded.questions(),
            "tier_quality": self.qualities,
            "energy_price": self.energy_price,
            "assumptions": assumptions(),
        })
    }
}

/// What is not measured in a simulation.
fn assumptions() -> Value {
    json!({
        "machine": "telemetry's virtual desk box: one chip of 120 W that both tiers share",
        "tiers": "costs of a 4 and a 32 thousand million parameter model in 4.5 bits; right and \
                  wrong are the recorded weak and strong model's",
        "traffic": ASSUMED,
        "draft_acceptance": ACCEPTED,
        "memory_energy_that_falls_with_the_clock_squared": CORE_SHARE,
        "slowest_clock_that_saves": SLOWEST,
        "usd_per_kwh": USD_PER_KWH,
        "deadline_ms": life::DEADLINE_MS,
        "origin": "simulated",
    })
}

/// The host's own policies, loaded anew: what one host learned is no other's.
fn own_policies(config: &Config) -> Result<Arc<PolicyRoom>, Failure> {
    let room = embedded_room(config)?;
    let status = room.status();
    let loaded = status.iter().filter(|slot| slot.active.is_some()).count();
    if loaded < Hook::ALL.len() {
        return Err(Failure::Failed(
            "the host's own policies cannot be loaded".into(),
        ));
    }
    Ok(Arc::new(room))
}

/// Share of right answers of each tier on simple, medium and complex requests, as an operator
/// finds it on rows that are not asked: rows count for each class as far as the classifier
/// takes them for it. Without such rows nothing is stated.
fn qualities(recorded: &Recorded, room: &PolicyRoom) -> [(f32, f32, f32); 2] {
    let mut right = [[0.0; 3]; 2];
    let mut all = [0.0; 3];
    for row in &recorded.known {
        let mut session = room.begin(Arc::new(row.request()), Arc::default());
        let c: Classification = session.classify().value;
        let shares = [c.p_simple, c.p_medium, c.p_complex].map(f64::from);
        let outcomes = [row.outcome.weak, row.outcome.strong];
        for (class, share) in shares.into_iter().enumerate() {
            all[class] += share;
            for (right, outcome) in right.iter_mut().zip(outcomes) {
                right[class] += share * outcome;
            }
        }
    }
    let ratio = |right: f64, all: f64| (right / f64::max(all, 1e-9)) as f32;
    right.map(|r| {
        (
            ratio(r[0], all[0]),
            ratio(r[1], all[1]),
            ratio(r[2], all[2]),
        )
    })
}

/// The cap under which these days cost this mean power, and the days lived under it. Infinite
/// where the host draws less without a cap.
pub fn under_cap(
    scene: &Scene,
    days: &[Busy],
    judgement: Judgement,
    uncapped_watts: f64,
    target_watts: f64,
) -> Result<(f64, Vec<Lived>), Failure> {
    if uncapped_watts <= target_watts * (1.0 + EQUAL) {
        let mut lived = scene.live(days, &[(judgement, f64::INFINITY)])?;
        return Ok((f64::INFINITY, lived.pop().unwrap_or_default()));
    }
    // A cap at the target is too low, since the machine is not always busy.
    let ends = [(target_watts, 0.0), (120.0, uncapped_watts)];
    search(scene, days, |cap| (judgement, cap), ends, target_watts)
}

/// The threshold of hardness at which these days cost this mean power, and the days lived with
/// it: a static router that somebody tuned with hindsight.
pub fn tuned_threshold(
    scene: &Scene,
    days: &[Busy],
    target_watts: f64,
) -> Result<(f64, Vec<Lived>), Failure> {
    // More watts with a lower threshold.
    let host = |ease: f64| (Judgement::Threshold(1.0 - ease as f32), f64::INFINITY);
    let (ease, lived) = search(scene, days, host, [(0.0, 0.0), (1.0, 0.0)], target_watts)?;
    Ok((1.0 - ease, lived))
}

/// Finds the setting of a host at which these days cost this mean power, by false position
/// between two ends of which the first gives too little; where an end's watts are not known
/// (0), by halves.
fn search(
    scene: &Scene,
    days: &[Busy],
    host: impl Fn(f64) -> (Judgement, f64),
    [mut low, mut high]: [(f64, f64); 2],
    target_watts: f64,
) -> Result<(f64, Vec<Lived>), Failure> {
    let mut best: Option<(f64, f64, Vec<Lived>)> = None;
    for _ in 0..TRIED {
        let share = match low.1 > 0.0 && high.1 > 0.0 {
            true => (target_watts - low.1) / (high.1 - low.1),
            false => 0.5,
        };
        let setting = low.0 + (high.0 - low.0) * share.clamp(0.05, 0.95);
        let lived = scene
            .live(days, &[host(setting)])?
            .pop()
            .unwrap_or_default();
        let watts = total(&lived, days).watts();
        let off = (watts / target_watts - 1.0).abs();
        if best.as_ref().is_none_or(|(least, ..)| off < *least) {
            best = Some((off, setting, lived));
        }
        match (off <= EQUAL, watts < target_watts) {
            (true, _) => break,
            (false, true) => low = (setting, watts),
            (false, false) => high = (setting, watts),
        }
    }
    let (_, setting, lived) = best.ok_or_else(|| Failure::Failed("nothing was tried".into()))?;
    Ok((setting, lived))
}

/// Days of one host as one score.
pub fn total(lived: &[Lived], days: &[Busy]) -> Score {
    let once = vec![1; days.len()];
    Score::sum(&scores(lived, days), &once)
}

/// Days of one host.
pub fn scores(lived: &[Lived], days: &[Busy]) -> Vec<Score> {
    let each = lived.iter().zip(days);
    each.map(|(lived, (day, _))| Score::of(lived, day.hours * 3_600.0))
        .collect()
}

/// One host of the picture.
pub struct Shown {
    /// For people.
    pub name: String,
    /// Its day.
    pub lived: Lived,
    /// What it was worth.
    pub score: Score,
}

/// `homeostat simulate day`.
pub fn day(
    scene: &Scene,
    day: &Day,
    svg: Option<&Path>,
    json: Option<&Path>,
) -> Result<(), Failure> {
    let days = [scene.busy(day.clone())];
    let free = f64::INFINITY;
    let both = [(Judgement::AlwaysLarge, free), (Judgement::Metabolic, free)];
    let mut lived = scene.live(&days, &both)?;
    let metabolic = lived.pop().unwrap_or_default();
    let fixed = lived.pop().unwrap_or_default();
    let target = total(&metabolic, &days).watts();
    let uncapped = total(&fixed, &days).watts();
    let large = Judgement::AlwaysLarge;
    let (cap, capped) = under_cap(scene, &days, large, uncapped, target)?;
    let named = [
        ("static: always large".to_owned(), fixed),
        (format!("power cap {cap:.0} W: always large"), capped),
        ("metabolic".to_owned(), metabolic),
    ];
    let mut shown = Vec::new();
    for (name, lived) in named {
        let score = total(&lived, &days);
        shown.extend(lived.into_iter().map(|lived| Shown {
            name: name.clone(),
            lived,
            score,
        }));
    }
    print(day, &shown);
    if let Some(file) = svg {
        crate::bench::write(file, &picture::page(day, &shown))?;
    }
    if let Some(file) = json {
        let whole = json!({
            "simulate": "day",
            "day": day,
            "scene": scene.as_json(),
            "cap_watts": cap,
            "hosts": shown.iter().map(host_as_json).collect::<Vec<_>>(),
        });
        crate::bench::write(file, &format!("{whole:#}\n"))?;
    }
    Ok(())
}

fn print(day: &Day, shown: &[Shown]) {
    println!(
        "one day, seed {}, {} requests; a machine, tiers and people that do not exist, right \
         and wrong as recorded",
        day.seed,
        shown.first().map_or(0, |s| s.lived.ended.len())
    );
    let row = |name: &str, value: &dyn Fn(&Shown) -> String| {
        let cells: Vec<String> = shown.iter().map(|s| format!("{:>34}", value(s))).collect();
        println!("{name:<28}{}", cells.join(""));
    };
    row("", &|s| s.name.clone());
    for (name, measure) in MEASURES {
        row(name, &|s| {
            measure(&s.score).map_or("–".into(), |v| format!("{v:.3}"))
        });
    }
    let ms = |value: Option<u32>| value.map_or("–".into(), |ms| ms.to_string());
    row("ttft_ms, median", &|s| ms(ttft_ms(&s.lived.ended, 0.5)));
    row("ttft_ms, 95 of 100", &|s| ms(ttft_ms(&s.lived.ended, 0.95)));
    row("escalated", &|s| format!("{:.0}", s.score.escalated));
    row("slowed down by heat, s", &|s| {
        format!("{:.0}", s.score.throttled_s)
    });
    row("without power, s", &|s| format!("{:.0}", s.score.off_s));
    row("hottest, °C", &|s| {
        format!("{:.1}", s.score.hottest_celsius)
    });
    row("state changes in an hour", &|s| {
        format!("{:.0}", s.score.state_changes_in_an_hour)
    });
}

fn host_as_json(shown: &Shown) -> Value {
    let figures: serde_json::Map<String, Value> = MEASURES
        .iter()
        .map(|(name, measure)| ((*name).to_owned(), json!(measure(&shown.score))))
        .collect();
    let accounts = &shown.lived.accounts;
    json!({
        "host": shown.name,
        "figures": figures,
        "sums": shown.score,
        "ttft_ms": {
            "median": ttft_ms(&shown.lived.ended, 0.5),
            "p95": ttft_ms(&shown.lived.ended, 0.95),
        },
        "ledger_uj": {
            "measured": accounts.measured_uj,
            "requests": accounts.attributed_uj(),
            "idle": accounts.idle_uj,
            "unattributed": accounts.unattributed.total_uj(),
        },
        "every_ten_minutes": picture::series(shown),
    })
}
