//! The table, and the file that is kept of it.

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

/// Points of a distribution that are kept: every tenth of a percent.
const POINTS: usize = 1000;

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
        let micros = |permille: usize| nanos[last * permille / POINTS] as f64 / 1e3;
        Self {
            policy: policy.to_owned(),
            hook: hook.to_owned(),
            way: way.to_owned(),
            calls: nanos.len(),
            p50_micros: micros(500),
            p99_micros: micros(990),
            distribution_nanos: (0..=POINTS).map(|p| nanos[last * p / POINTS]).collect(),
        }
    }
}

/// All rows of a run.
#[derive(Default, Serialize)]
pub struct Results {
    rows: Vec<Row>,
}

impl Results {
    pub fn add(&mut self, row: Row) {
        self.rows.push(row);
    }

    pub fn print(&self) {
        println!("what does one hook call cost? (micros)\n");
        println!(
            "{:<18} {:<10} {:<14} {:>9} {:>9}",
            "policy", "hook", "way", "p50", "p99"
        );
        for row in &self.rows {
            println!(
                "{:<18} {:<10} {:<14} {:>9.2} {:>9.2}",
                row.policy, row.hook, row.way, row.p50_micros, row.p99_micros
            );
        }
        println!();
    }

    /// Writes everything to `tests/results/<date>-<machine>/hook_cost.json`.
    pub fn keep(&self) -> std::io::Result<PathBuf> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("results")
            .join(format!("{}-{}", today(), machine()));
        std::fs::create_dir_all(&folder)?;
        let file = folder.join("hook_cost.json");
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
