//! Hosts side by side on the same days: the same requests at the same moments in the same air.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use homeostat_hooks::{Classification, Hook, Message, Policies, Request, Role, TierView};
use homeostat_policy::PolicyRoom;
use homeostat_telemetry::PowerPlan;
use homeostat_telemetry::plant::Random;
use serde_json::{Value, json};

use super::day::{Day, USD_PER_KWH};
use super::judgement::{By, Judgement};
use super::life::{self, Host, Lived};
use super::machine::{ACCEPTED, CORE_SHARE, Machine, SLOWEST, Settings, TIERS};
use super::noticed::Ratios;
use super::score::{MEASURES, Score, is_exact, ttft_ms};
use super::traffic::{ASSUMED, Ask, Recorded, Share};
use super::tune::{Tuned, tuned_threshold, under_cap};
use super::{World, events, picture};
use crate::Failure;
use crate::bench::ask::embedded_room;
use crate::budgets::BudgetsConfig;
use crate::config::Config;

/// What all hosts share.
pub struct Scene {
    recorded: Recorded,
    config: Config,
    qualities: [(f32, f32, f32); 2],
    ratios: Ratios,
    /// What speaks for the large tier, highest first, each with the share of requests that it
    /// is said of; by [`By`].
    scores: [Vec<(f32, f64)>; 2],
    energy_price: f64,
    plan: Option<PowerPlan>,
}

/// A day with its requests.
pub type Busy = (Day, Arc<Vec<Ask>>);

impl Scene {
    /// Reads the recordings and loads the host's own policies.
    pub fn open(world: &World) -> Result<Self, Failure> {
        let known = world.known.as_deref();
        let recorded = Recorded::read(&world.data, world.unseen, known)?;
        let mut config = Config::default();
        // Whether a direct answer is right was never recorded.
        let settings = config.policies.route.settings.get_or_insert_default();
        settings.insert("direct-answers".into(), "off".into());
        let room = own_policies(&config)?;
        let qualities = qualities(&recorded, room.as_ref());
        Ok(Self {
            ratios: Ratios::count(&recorded, &room)?,
            scores: By::ALL.map(|by| scores_of(&recorded, room.as_ref(), by)),
            recorded,
            config,
            qualities,
            energy_price: world.energy_price,
            plan: world.power_plan.as_deref().map(power_plan).transpose()?,
        })
    }

    /// The requests of a day.
    pub fn busy(&self, day: Day) -> Busy {
        let asks = Arc::new(self.recorded.asks(&day, Share::WHOLE));
        (day, asks)
    }

    /// The requests of several days, of which no two ask the same question: who draws days anew
    /// draws questions anew.
    pub fn busy_days(&self, days: Vec<Day>) -> Result<Vec<Busy>, Failure> {
        let of = days.len();
        self.recorded.check_days(of)?;
        let busy = |(index, day): (usize, Day)| {
            let asks = Arc::new(self.recorded.asks(&day, Share { index, of }));
            (day, asks)
        };
        Ok(days.into_iter().enumerate().map(busy).collect())
    }

    /// The metabolic host, at the price that was asked for.
    pub fn metabolic(&self) -> Judgement {
        Judgement::Metabolic {
            price: self.energy_price,
        }
    }

    /// The threshold from which on this share of the requests speaks for the large tier.
    pub fn threshold(&self, by: By, share: f64) -> f32 {
        if share <= 0.0 {
            return f32::INFINITY;
        }
        let mut sum = 0.0;
        let reached = self.scores[by as usize].iter().find(|(_, weight)| {
            sum += weight;
            sum >= share
        });
        reached.map_or(f32::NEG_INFINITY, |(score, _)| *score)
    }

    /// What a table has to say beside its numbers.
    pub fn shortcomings(&self) -> Vec<String> {
        let mut all = Vec::new();
        if self.qualities.iter().all(|q| *q == (0.0, 0.0, 0.0)) {
            all.push(
                "no row tells how good the tiers are (--unseen without --known DIR, or all rows of \
                 DIR are asked): the metabolic router guesses, and does not look at what the \
                 classifier expects of each tier"
                    .to_owned(),
            );
        }
        let asked = self.recorded.known_but_asked;
        if asked > 0 {
            all.push(format!(
                "{asked} rows of --known are left out: they are asked, and nobody knows the \
                 answers before"
            ));
        }
        all.extend(self.ratios.shortcoming());
        let sets = self.recorded.sets();
        if sets < 2 {
            all.push("one set of questions only: nothing is said about other kinds".to_owned());
        }
        all
    }

    /// What its router is told of its validator, for people.
    pub fn validator_in_words(&self) -> String {
        self.ratios.in_words()
    }

    /// Both tiers as a router is shown them before anybody asked.
    pub fn idle_tiers(&self) -> Vec<TierView> {
        let machine = Machine::new(Settings {
            cap_watts: f64::INFINITY,
            plan: None,
            looks_ahead: true,
            qualities: self.qualities,
            seed: 0,
        });
        (0..TIERS.len()).map(|tier| machine.view(tier)).collect()
    }

    /// A question as people ask them.
    pub fn question(&self, random: &mut Random) -> Arc<str> {
        self.recorded.ask(0, Share::WHOLE, random).prompt
    }

    fn host(&self, judgement: Judgement, cap_watts: f64) -> Host {
        Host {
            judgement,
            cap_watts,
            qualities: self.qualities,
            plan: self.plan.clone(),
        }
    }

    /// The host's own policies for this host, loaded anew: what one learned is no other's.
    pub fn room(&self, judgement: Judgement) -> Result<Arc<PolicyRoom>, Failure> {
        let mut config = self.config.clone();
        if let Some(price) = judgement.price() {
            let settings = config.policies.route.settings.get_or_insert_default();
            settings.insert("energy-price".into(), price.to_string());
            self.ratios.tell(judgement, settings);
        }
        own_policies(&config)
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
                let room = self.room(judgement);
                let one = room.and_then(|room| life::live(day, asks, &host, &room));
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
            "shortcomings": self.shortcomings(),
            "assumptions": assumptions(self.ratios),
        })
    }
}

/// What an operator wishes of power by the clock, as it stands in `[budgets]`.
fn power_plan(file: &Path) -> Result<PowerPlan, Failure> {
    let wrong = |e: String| Failure::Config(format!("{}: {e}", file.display()));
    let text = std::fs::read_to_string(file).map_err(|e| wrong(e.to_string()))?;
    let read = toml::from_str::<BudgetsConfig>(&text).map_err(|e| wrong(e.to_string()))?;
    read.check(&Config::default()).map_err(wrong)?;
    match read.limits.is_empty() {
        true => Ok(read.power_plan()),
        false => Err(wrong("limits are not simulated; leave them out".into())),
    }
}

/// What is not measured in a simulation.
fn assumptions(ratios: Ratios) -> Value {
    json!({
        "machine": "telemetry's virtual desk box: one chip of 120 W that both tiers share",
        "tiers": "costs of a 4 and a 32 thousand million parameter model in 4.5 bits; right and \
                  wrong are the recorded weak and strong model's",
        "traffic": ASSUMED,
        "draft_acceptance": ACCEPTED,
        "memory_energy_that_falls_with_the_clock_squared": CORE_SHARE,
        "slowest_clock_that_saves": SLOWEST,
        "forecast": "is told what the chip is about to draw as a server tells it, who does not know \
                     how long an answer will be",
        "noticed_ratio": ratios.noticed,
        "doubted_ratio": ratios.doubted,
        "validator": ratios.in_words(),
        "usd_per_kwh": USD_PER_KWH,
        "deadline_ms": life::DEADLINE_MS,
        "origin": "simulated",
    })
}

/// The host's own policies.
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
/// takes them for it, and every set as much as another, since requests are drawn so. Without
/// such rows nothing is stated.
fn qualities(recorded: &Recorded, room: &PolicyRoom) -> [(f32, f32, f32); 2] {
    let mut right = [[0.0; 3]; 2];
    let mut all = [0.0; 3];
    for set in &recorded.known {
        for row in set {
            let c = classify(room, row.request());
            let shares = [c.p_simple, c.p_medium, c.p_complex].map(f64::from);
            let outcomes = [row.outcome.weak, row.outcome.strong];
            for (class, share) in shares.into_iter().enumerate() {
                let share = share / set.len() as f64;
                all[class] += share;
                for (right, outcome) in right.iter_mut().zip(outcomes) {
                    right[class] += share * outcome;
                }
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

/// What speaks for the large tier in every question that may be asked, highest first.
fn scores_of(recorded: &Recorded, room: &PolicyRoom, by: By) -> Vec<(f32, f64)> {
    let score = |(prompt, weight): (&str, f64)| {
        let message = Message {
            role: Role::User,
            content: prompt.to_owned(),
        };
        let c = classify(
            room,
            Request {
                messages: vec![message],
                ..Request::default()
            },
        );
        // What has no score goes to the large tier.
        (by.of(&c).unwrap_or(f32::INFINITY), weight)
    };
    let mut scores: Vec<(f32, f64)> = recorded.asked().map(score).collect();
    scores.sort_by(|a, b| b.0.total_cmp(&a.0));
    scores
}

fn classify(room: &PolicyRoom, request: Request) -> Classification {
    let mut session = room.begin(Arc::new(request), Arc::default());
    session.classify().value
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

/// A share in whole percent, for people.
pub fn percent(part: f64, whole: f64) -> String {
    match whole > 0.0 {
        true => format!("{:.0} %", 100.0 * part / whole),
        false => "–".to_owned(),
    }
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
    let large = Judgement::AlwaysLarge;
    let mut lived = scene.live(&days, &[(large, free), (scene.metabolic(), free)])?;
    let metabolic = lived.pop().unwrap_or_default();
    let fixed = lived.pop().unwrap_or_default();
    let target = total(&metabolic, &days).watts();
    let uncapped = total(&fixed, &days).watts();
    let capped = under_cap(scene, &days, large, uncapped, target)?;
    let routed = tuned_threshold(scene, &days, By::Gain, target)?;
    let cap_watts = capped.as_ref().map(|found| found.setting);
    let mut named = vec![("static: always large".to_owned(), fixed)];
    match capped {
        Some(found) => named.push(tuned(
            format!("cap {:.0} W: always large", found.setting),
            found,
        )),
        None => println!(
            "always large draws {uncapped:.2} W without a cap, no more than the metabolic host"
        ),
    }
    named.extend([
        tuned(format!("static router: gain {:.3}", routed.setting), routed),
        ("metabolic".to_owned(), metabolic),
    ]);
    let mut shown = Vec::new();
    for (name, lived) in named {
        let score = total(&lived, &days);
        shown.extend(lived.into_iter().map(|lived| Shown {
            name: name.clone(),
            lived,
            score,
        }));
    }
    print(day, scene, &shown);
    if let Some(file) = svg {
        crate::bench::write(file, &picture::page(day, &shown))?;
    }
    if let Some(file) = json {
        let whole = json!({
            "simulate": "day",
            "day": day,
            "scene": scene.as_json(),
            "cap_watts": cap_watts,
            "hosts": shown.iter().map(host_as_json).collect::<Vec<_>>(),
        });
        crate::bench::write(file, &format!("{whole:#}\n"))?;
    }
    Ok(())
}

/// A tuned host under its name, which says how far it missed.
fn tuned(name: String, found: Tuned) -> (String, Vec<Lived>) {
    let name = match found.unequal() {
        Some(off) => format!("{name}, {:+.1} % W", 100.0 * off),
        None => name,
    };
    (name, found.lived)
}

fn print(day: &Day, scene: &Scene, shown: &[Shown]) {
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
    let meanwhile = |s: &Shown| events::together(std::slice::from_ref(&s.lived));
    let named = shown.iter().map(|s| (s.name.as_str(), meanwhile(s)));
    let named: Vec<_> = named.collect();
    events::print(&named);
    println!("\nhosts of other watts are no ranking: what draws more may be right more often");
    println!("{}", scene.validator_in_words());
    for shortcoming in scene.shortcomings() {
        println!("falls short: {shortcoming}");
    }
}

fn host_as_json(shown: &Shown) -> Value {
    let figures: serde_json::Map<String, Value> = MEASURES
        .iter()
        .map(|(name, measure)| ((*name).to_owned(), json!(measure(&shown.score))))
        .collect();
    let accounts = &shown.lived.accounts;
    let events = shown.lived.events.iter();
    let events = events.map(|(event, sums)| json!({"event": event, "sums": sums}));
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
        "events": events.collect::<Vec<_>>(),
        "every_ten_minutes": picture::series(shown),
    })
}
