//! What an author does with a policy before a host sees it: `policy new`, `build`, `test`
//! and the report of `check`.
//!
//! Nothing here knows a language: folders and compilers belong to `sdk/author`, cases and
//! properties to `plugins/cases`. This file brings them to a real policy room.

mod report;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use homeostat_author::{Language, begin, build, tools};
use homeostat_cases::{Bench, Case, CaseFile, ToldModels};
use homeostat_hooks::Hook;
use homeostat_policy::{
    BreakerConfig, CacheConfig, Offer, PolicyOptions, PolicyRoom, RoomConfig, parse_options,
    read_component,
};

use crate::Failure;
use crate::models::cache_root;

pub use report::print_report;

/// Deadline of a call in `policy test`, unless the case has one or the policy a longer one:
/// cases are about decisions, and must not fail on a busy machine. The slowest call is told.
const TEST_DEADLINE_MS: u32 = 10_000;

/// `policy new`.
pub fn new(name: &Path, language: Language, hook: Hook) -> Result<(), Failure> {
    begin::begin(name, language, hook).map_err(Failure::failed)?;
    let name = name.display();
    eprintln!("homeostat: {name}/README.md says what is there; now: homeostat policy test {name}");
    println!("{name}");
    Ok(())
}

/// `policy build`.
pub fn build_policy(folder: &Path, output: Option<PathBuf>) -> Result<(), Failure> {
    let folder = absolute(folder)?;
    let component = build(&folder, &cache()?).map_err(Failure::failed)?;
    let output = output.unwrap_or_else(|| format!("{}.wasm", name_of(&folder)).into());
    std::fs::write(&output, component).map_err(|e| at(&output, e))?;
    println!("{}", output.display());
    Ok(())
}

/// `policy tools`: fetch what a language needs, so that a later build needs no network.
pub fn set_up(languages: &[Language]) -> Result<(), Failure> {
    let all = if languages.is_empty() {
        &Language::ALL
    } else {
        languages
    };
    let cache = cache()?;
    all.iter()
        .try_for_each(|language| tools::set_up(&cache, *language).map_err(Failure::failed))
}

/// The component at a path: the file itself, or what a policy's folder makes, built anew
/// only when something in the folder is younger.
pub fn component_at(path: &Path) -> Result<PathBuf, Failure> {
    if !path.is_dir() {
        return Ok(path.to_owned());
    }
    let folder = absolute(path)?;
    let file = folder
        .join("build")
        .join(format!("{}.wasm", name_of(&folder)));
    let made = modified(&file);
    let sources = build::sources(&folder).map_err(Failure::failed)?;
    if made.is_some() && sources.iter().all(|source| modified(source) < made) {
        return Ok(file);
    }
    let component = build(&folder, &cache()?).map_err(Failure::failed)?;
    let place = file.parent().unwrap_or(&folder);
    std::fs::create_dir_all(place).map_err(|e| at(place, e))?;
    std::fs::write(&file, component).map_err(|e| at(&file, e))?;
    Ok(file)
}

/// What the policy at a path is given: `policy.toml` in its folder, or the `.toml` beside
/// the component.
pub fn options_at(path: &Path) -> Result<PolicyOptions, Failure> {
    let (file, text) = options_text(path)?;
    parse_options(&text).map_err(|e| at(&file, e))
}

/// Their file and its text, which is empty where there is none.
fn options_text(path: &Path) -> Result<(PathBuf, String), Failure> {
    let file = if path.is_dir() {
        path.join("policy.toml")
    } else {
        path.with_extension("toml")
    };
    match std::fs::read_to_string(&file) {
        Ok(text) => Ok((file, text)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok((file, String::new())),
        Err(e) => Err(at(&file, e)),
    }
}

/// `policy test`.
pub fn test(path: &Path, cases: Option<&Path>, seed: Option<u64>) -> Result<(), Failure> {
    let beside = if path.is_dir() {
        path.join("cases.toml")
    } else {
        path.with_file_name("cases.toml")
    };
    let cases = cases.unwrap_or(&beside);
    let text = std::fs::read_to_string(cases).map_err(|e| at(cases, e))?;
    let file = homeostat_cases::read(&text).map_err(|e| at(cases, e))?;
    let mut bench = bench(path, file.hook)?;
    let seed = seed.unwrap_or_else(new_seed);
    let failed = run(&mut bench, &file, seed);
    let total = format!(
        "{} cases, {} properties (--seed {seed})",
        file.cases.len(),
        file.properties.len()
    );
    match failed {
        0 => println!("{total}: all hold"),
        failed => return Err(Failure::Failed(format!("{total}: {failed} failed"))),
    }
    Ok(())
}

/// A room with the policy at `path` in it and nothing that would keep a question from it.
pub fn room_with(path: &Path, hook: Hook) -> Result<PolicyRoom, Failure> {
    let (policy_toml, offer) = offer_of(path, hook)?;
    let mut options = parse_options(&policy_toml).map_err(Failure::failed)?;
    options.limits.deadline_ms.get_or_insert(TEST_DEADLINE_MS);
    let room = room(Arc::new(ToldModels::default()))?;
    let offer = Offer { options, ..offer };
    room.put(offer).map_err(Failure::failed)?;
    Ok(room)
}

/// The policy at `path` on its bench.
fn bench(path: &Path, hook: Hook) -> Result<Bench<PolicyRoom>, Failure> {
    let (policy_toml, offer) = offer_of(path, hook)?;
    let models = Arc::new(ToldModels::default());
    let put = move |room: &PolicyRoom, case: &Case, text: &str| {
        let mut options = parse_options(text).map_err(|e| e.to_string())?;
        if case.deadline_ms().is_none() {
            let own = options.limits.deadline_ms.unwrap_or_default();
            options.limits.deadline_ms = Some(own.max(TEST_DEADLINE_MS));
        }
        let offer = Offer {
            options,
            ..offer.clone()
        };
        room.put(offer).map(drop).map_err(|e| e.to_string())
    };
    Ok(Bench::new(room(models.clone())?, models, policy_toml, put))
}

/// Nothing in it keeps a question from a policy. Machine code is kept where the host keeps it:
/// cases with options of their own, and the next run, find it there.
fn room(models: Arc<ToldModels>) -> Result<PolicyRoom, Failure> {
    let config = RoomConfig {
        breaker: BreakerConfig {
            faults: u32::MAX,
            ..BreakerConfig::default()
        },
        cache: CacheConfig {
            dir: cache_root().map(|root| root.join("policies")),
            ..CacheConfig::default()
        },
        ..RoomConfig::default()
    };
    PolicyRoom::new(config, models).map_err(Failure::failed)
}

/// The text of its `policy.toml`, which was read, and the policy without options.
fn offer_of(path: &Path, hook: Hook) -> Result<(String, Offer), Failure> {
    let (options_file, policy_toml) = options_text(path)?;
    parse_options(&policy_toml).map_err(|e| at(&options_file, e))?;
    let component = component_at(path)?;
    let most = RoomConfig::default().max_component_bytes;
    let bytes = read_component(&component, most).map_err(Failure::failed)?;
    let offer = Offer {
        name: name_of(&component),
        bytes,
        hooks: Some(vec![hook]),
        ..Offer::default()
    };
    Ok((policy_toml, offer))
}

/// Prints every case and property; answers how many failed.
fn run(bench: &mut Bench<PolicyRoom>, file: &CaseFile, seed: u64) -> usize {
    let mut failed = 0;
    let mut slowest = 0;
    let mut tell = |name: &str, misses: &[String]| {
        println!(
            "{}  {name}",
            if misses.is_empty() { "ok  " } else { "FAIL" }
        );
        for line in misses.iter().flat_map(|miss| miss.lines()) {
            println!("      {line}");
        }
        failed += usize::from(!misses.is_empty());
    };
    for case in &file.cases {
        let asked = bench.ask(case);
        slowest = slowest.max(asked.micros);
        tell(&case.name, &case.missed(&asked.reply, &asked.questions));
    }
    for (property, inputs) in &file.properties {
        let outcome = bench.check(*property, file, *inputs, seed);
        let name = format!("{} ({inputs} inputs)", property.as_str());
        tell(&name, outcome.err().as_slice());
    }
    let limit = RoomConfig::default().limits.deadline_ms;
    println!("slowest case {slowest} µs; a host gives {limit} ms unless it says otherwise");
    failed
}

fn new_seed() -> u64 {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::from(now.subsec_nanos())
}

fn cache() -> Result<PathBuf, Failure> {
    cache_root().ok_or_else(|| {
        Failure::Config("there is no cache folder: set HOMEOSTAT_CACHE or HOME".into())
    })
}

fn absolute(folder: &Path) -> Result<PathBuf, Failure> {
    folder.canonicalize().map_err(|e| at(folder, e))
}

fn at(path: &Path, error: impl std::fmt::Display) -> Failure {
    Failure::Failed(format!("{}: {error}", path.display()))
}

/// Last part of a path without its ending.
fn name_of(path: &Path) -> String {
    let stem = path.file_stem().and_then(|s| s.to_str());
    stem.unwrap_or("policy").to_owned()
}

fn modified(path: &Path) -> Option<SystemTime> {
    std::fs::metadata(path).and_then(|m| m.modified()).ok()
}
