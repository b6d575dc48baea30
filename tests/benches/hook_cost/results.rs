//! The tables, and the file that is kept of them.

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use homeostat_hooks::Hook;
use serde::Serialize;

use crate::bare::PARTS;

/// Points of a distribution that are kept: every percent.
const POINTS: usize = 100;

/// What others have published: system, what was timed, microseconds, where it stands. Other
/// machines and other years: context, not a comparison.
const PUBLISHED: [(&str, &str, &str, &str); 8] = [
    SMG,
    (
        "Spin",
        "request through the host, fresh, pooled",
        "50.2",
        "spin PR 1721",
    ),
    ("Oak", "call with a kept linker", "45", "oak PR 4664"),
    (
        "wasmtime",
        "raw instantiation of SpiderMonkey",
        "0.68-0.88",
        "wasmtime issue 3697",
    ),
    (
        "wasmtime",
        "typed component call, pinned",
        "0.076",
        "wasmtime PR 6981 (2023)",
    ),
    RQUICKJS,
    (
        "Javy",
        "JavaScript, start of QuickJS",
        "245",
        "javy issue 66",
    ),
    ERYX,
];
const SMG: (&str, &str, &str, &str) = (
    "SMG (SGLang's gateway)",
    "hook call, fresh, mean",
    "73.67",
    "sglang PR 17060",
);
const RQUICKJS: (&str, &str, &str, &str) = (
    "wasm-rquickjs",
    "JavaScript, instance and first call",
    "2710",
    "wasm-rquickjs PR 84",
);
const ERYX: (&str, &str, &str, &str) = ("eryx", "Python, fresh instance", "1300", "eryx PR 411");

/// The published figure that is nearest to a fresh call of this policy.
fn published(policy: &str) -> String {
    let (who, _, micros, _) = match policy.rsplit('-').next() {
        Some("js") => RQUICKJS,
        Some("python") => ERYX,
        _ => SMG,
    };
    format!("{who} {micros}")
}

/// One kind of call.
#[derive(Serialize)]
pub struct Row {
    policy: String,
    hook: String,
    way: String,
    calls: usize,
    p50_micros: f64,
    p99_micros: f64,
    /// The whole distribution, from the shortest to the longest call.
    distribution_nanos: Vec<u64>,
}

impl Row {
    pub fn new(policy: &str, hook: &str, way: &str, mut nanos: Vec<u64>) -> Self {
        nanos.sort_unstable();
        let last = nanos.len() - 1;
        let at = |percent: usize| nanos[last * percent / POINTS];
        Self {
            policy: policy.to_owned(),
            hook: hook.to_owned(),
            way: way.to_owned(),
            calls: nanos.len(),
            p50_micros: at(50) as f64 / 1e3,
            p99_micros: at(99) as f64 / 1e3,
            distribution_nanos: (0..=POINTS).map(at).collect(),
        }
    }
}

/// Where the time of a fresh call on bare wasmtime goes: medians in microseconds, in the
/// order of [`PARTS`].
#[derive(Serialize)]
pub struct Parts {
    policy: String,
    hook: &'static str,
    micros: [f64; 5],
}

impl Parts {
    pub fn new(policy: &str, hook: Hook, parts: [Vec<u64>; 5]) -> Self {
        Self {
            policy: policy.to_owned(),
            hook: hook.as_str(),
            micros: parts.map(|mut times| {
                times.sort_unstable();
                times[times.len() / 2] as f64 / 1e3
            }),
        }
    }
}

/// What stood around the swaps.
#[derive(Serialize)]
pub struct Swaps {
    /// Requests that were asked meanwhile.
    pub requests: u64,
    /// Memory of the process every hundred swaps.
    pub resident_bytes: Vec<u64>,
}

/// All of a run.
#[derive(Default, Serialize)]
pub struct Results {
    rows: Vec<Row>,
    pub parts: Vec<Parts>,
    pub swaps: Option<Swaps>,
}

impl Results {
    pub fn add(&mut self, row: Row) {
        self.rows.push(row);
    }

    fn find(&self, policy: &str, hook: &str, way: &str) -> Option<&Row> {
        let is_it = |row: &&Row| row.policy == policy && row.hook == hook && row.way == way;
        self.rows.iter().find(is_it)
    }

    /// Every policy at every hook, once.
    fn subjects(&self) -> Vec<(&str, &str)> {
        let mut subjects = Vec::new();
        for row in &self.rows {
            let subject = (row.policy.as_str(), row.hook.as_str());
            if !subjects.contains(&subject) {
                subjects.push(subject);
            }
        }
        subjects
    }

    pub fn print(&self) {
        self.print_calls();
        self.print_parts();
        self.print_recorder();
        self.print_swaps();
        println!("\npublished elsewhere (other machines and years, for context)\n");
        for (who, what, figure, source) in PUBLISHED {
            println!("{who:<22} {what:<42} {figure:>10} µs  {source}");
        }
        println!();
    }

    /// The room's time beside bare wasmtime's, with and without limits.
    fn print_calls(&self) {
        println!("what does one hook call cost? (microseconds, p50 and p99)\n");
        println!(
            "{:<22} {:<9} {:<7} {:>17} {:>17} {:>17} {:>6}  published",
            "policy", "hook", "way", "room", "bare + limits", "bare wasmtime", "ratio"
        );
        for (policy, hook) in self.subjects() {
            for way in ["fresh", "ready", "pinned"] {
                let row = |who: &str| self.find(policy, hook, &format!("{who}, {way}"));
                let (room, bare) = (row("room"), row("bare"));
                if room.is_none() && bare.is_none() {
                    continue;
                }
                let shown = |row: Option<&Row>| {
                    row.map_or("-".into(), |r| {
                        format!("{:.2} {:>8.2}", r.p50_micros, r.p99_micros)
                    })
                };
                let ratio = room.zip(bare).map(|(r, b)| r.p50_micros / b.p50_micros);
                println!(
                    "{policy:<22} {hook:<9} {way:<7} {:>17} {:>17} {:>17} {:>6}  {}",
                    shown(room),
                    shown(row("limits")),
                    shown(bare),
                    ratio.map_or("-".into(), |ratio| format!("{ratio:.2}")),
                    if way == "fresh" {
                        published(policy)
                    } else {
                        String::new()
                    }
                );
            }
        }
    }

    /// A fresh call taken apart: wasmtime's parts, what limits add, what the room adds.
    fn print_parts(&self) {
        println!("\nwhere does a fresh call go? (microseconds, medians)\n");
        print!("{:<22} {:<9}", "policy", "hook");
        for part in PARTS {
            print!(" {part:>13}");
        }
        println!(" {:>9} {:>9} {:>9}", "+ limits", "+ room", "= fresh");
        for parts in &self.parts {
            let fresh = |who: &str| {
                let row = self.find(&parts.policy, parts.hook, &format!("{who}, fresh"));
                row.map_or(f64::NAN, |row| row.p50_micros)
            };
            let (bare, limits, room) = (fresh("bare"), fresh("limits"), fresh("room"));
            print!("{:<22} {:<9}", parts.policy, parts.hook);
            for micros in parts.micros {
                print!(" {micros:>13.2}");
            }
            println!(" {:>9.2} {:>9.2} {room:>9.2}", limits - bare, room - limits);
        }
    }

    fn print_recorder(&self) {
        println!("\nwhat does a recorder add? (a fresh call, microseconds, p50)\n");
        for (policy, hook) in self.subjects() {
            let row = |way: &str| self.find(policy, hook, way);
            let Some((off, on)) = row("room, in turn").zip(row("room, recorded")) else {
                continue;
            };
            let (off, on) = (off.p50_micros, on.p50_micros);
            let more = 100.0 * (on / off - 1.0);
            println!("{policy:<22} {hook:<9} off {off:>9.2}  on {on:>9.2}  {more:>+6.1} %");
        }
    }

    fn print_swaps(&self) {
        let whole = self.find("default policies", "all three", "room, fresh");
        if let Some(row) = whole {
            println!(
                "\nall three hooks of a request: p50 {:.2} p99 {:.2} microseconds",
                row.p50_micros, row.p99_micros
            );
        }
        let row = self.find("two routers", "route", "swap");
        if let (Some(row), Some(swaps)) = (row, &self.swaps) {
            let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
            let resident: Vec<String> = swaps
                .resident_bytes
                .iter()
                .map(|bytes| format!("{:.1}", mib(*bytes)))
                .collect();
            println!(
                "{} swaps under {} requests: p50 {:.1} p99 {:.1} microseconds; resident MiB \
                 every hundred: {}",
                row.calls,
                swaps.requests,
                row.p50_micros,
                row.p99_micros,
                resident.join(" ")
            );
        }
    }

    /// Writes everything to `tests/bench/results/<date>-<machine>-hooks.json`.
    pub fn keep(&self) -> std::io::Result<PathBuf> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("bench/results");
        std::fs::create_dir_all(&folder)?;
        let file = folder.join(format!("{}-{}-hooks.json", today(), machine()));
        std::fs::write(&file, serde_json::to_string(self)? + "\n")?;
        Ok(file)
    }
}

/// The date in UTC, as 2026-11-20 (Howard Hinnant's `civil_from_days`, shortened to the
/// years after 1970).
fn today() -> String {
    let seconds = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs();
    let shifted = seconds / 86_400 + 719_468;
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year}-{month:02}-{day:02}")
}

/// Number of cores and the processor's name, as a word.
fn machine() -> String {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .unwrap_or("unknown");
    let words: Vec<String> = name
        .split(|c: char| !c.is_ascii_alphanumeric())
        .filter(|word| !word.is_empty())
        .map(str::to_lowercase)
        .collect();
    format!("{cores}-cores-{}", words.join("-"))
}
