//! `homeostat models`: list, pull, inspect, plan.

use std::path::{Path, PathBuf};
use std::time::Duration;

use homeostat_engine::{EngineConfig, Inspection, LoadQuantization, inspect};
use homeostat_telemetry::Telemetry;
use serde_json::{Value, json};

use super::print_json;
use crate::cli::{ConfigArgs, ModelsCommand};
use crate::config::{Config, TierConfig, TierKind};
use crate::models::{
    CacheError, Demand, Footprint, Manifest, ModelCache, ModelKind, Room, Shelf, is_path, pulled,
};
use crate::{Failure, serve};

/// Architectures that turn text into vectors: they keep no KV cache.
const ENCODERS: [&str; 1] = ["bert"];

pub fn models(command: ModelsCommand) -> Result<(), Failure> {
    let load = |args: &ConfigArgs| Config::load(args.config.as_deref());
    match command {
        ModelsCommand::List { json, config } => list(&load(&config)?, json),
        ModelsCommand::Pull { name, config } => fetch(&load(&config)?, name),
        ModelsCommand::Inspect {
            model,
            context,
            batch,
            json,
            config,
        } => {
            let config = load(&config)?;
            let path = locate(&Shelf::open(&config)?, &model)?;
            let found = inspect(&path).map_err(Failure::failed)?;
            let asked = Asked {
                contexts: &context,
                batches: &batch,
                load_quantization: LoadQuantization::default(),
            };
            let rows = tier_of(&config, &model).max_batch_tokens;
            let table = Table::new(&found, None, rows, &asked);
            match json {
                true => print_json(&inspection_json(&path, &found, &table)),
                false => {
                    print_inspection(&found);
                    print_demands(&found, &table);
                    Ok(())
                }
            }
        }
        ModelsCommand::Plan {
            models,
            memory,
            contexts,
            batches,
            load_quantization,
            json,
            config,
        } => {
            let config = load(&config)?;
            let plan = Plan {
                room: match memory {
                    Some(bytes) => given(bytes),
                    None => room(&config)?,
                },
                models: planned(&config, &models)?,
                contexts,
                batches,
                load_quantization,
            };
            plan.print(json)
        }
    }
}

/// Models of the manifests and of the hub that a configuration loads.
fn needed(config: &Config) -> Vec<String> {
    let local = || config.tiers.iter().filter(|t| t.kind == TierKind::Local);
    let models = local().filter(|t| t.path.is_none());
    let models = models.filter_map(|t| t.model.clone());
    let drafts = local().filter_map(|t| t.speculation.draft_model.clone());
    let mut names: Vec<String> = models.chain(drafts.filter(|d| !is_path(d))).collect();
    if config.encoder.enabled && config.encoder.path.is_none() {
        names.push(config.encoder.model.clone());
    }
    names.sort();
    names.dedup();
    names
}

fn fetch(config: &Config, name: Option<String>) -> Result<(), Failure> {
    let shelf = Shelf::open(config)?;
    let wanted = name.map_or_else(|| needed(config), |name| vec![name]);
    for name in wanted {
        let (fresh, place) = shelf.pull(&name)?;
        let what = if fresh { "fetched" } else { "already there" };
        println!("{name}: {what}, {}", place.display());
    }
    Ok(())
}

/// A path as it is, a name as the cache has it. What exists here is a path.
fn locate(shelf: &Shelf, model: &str) -> Result<PathBuf, Failure> {
    let path = PathBuf::from(model);
    if !is_path(model) && !path.exists() {
        return shelf.verified(model);
    }
    // A config.json stands for its folder.
    let alone = path.file_name().is_some_and(|name| name == "config.json");
    Ok(match path.parent().filter(|_| alone) {
        Some(folder) => Path::new(".").join(folder),
        None => path,
    })
}

fn list(config: &Config, as_json: bool) -> Result<(), Failure> {
    let shelf = Shelf::open(config)?;
    let of_manifests = shelf.manifests.iter().map(|m| listed(m, &shelf.cache));
    let of_hub = pulled(&shelf.cache).into_iter().map(|found| match found {
        Ok((record, folder)) => {
            let bytes: u64 = record.files.iter().map(|f| f.bytes).sum();
            // Every file that can be loaded by a name of its own is looked at.
            let broken = record.loadable().into_iter().find_map(|name| {
                let error = shelf.verified(&name).err()?;
                Some(format!("damaged: {error}"))
            });
            json!({
                "name": record.name, "kind": "generative", "bytes": bytes,
                "source": "hub", "revision": record.revision, "license": null,
                "loadable": record.loadable(), "folder": folder,
                "state": if broken.is_some() { "damaged" } else { "ready" }, "problem": broken,
            })
        }
        Err(error) => json!({
            "name": "?", "kind": "unknown", "bytes": 0, "source": "hub", "license": null,
            "loadable": [], "folder": null, "state": "damaged", "problem": error.to_string(),
        }),
    });
    let all: Vec<Value> = of_manifests.chain(of_hub).collect();
    if as_json {
        return print_json(&json!({ "cache": shelf.cache.folder(), "models": all }));
    }
    for model in &all {
        print_listed(model);
    }
    Ok(())
}

fn listed(manifest: &Manifest, cache: &ModelCache) -> Value {
    let found = cache.verified(manifest);
    let problem = found.as_ref().err().map(ToString::to_string);
    let state = match &found {
        Ok(_) => "ready",
        Err(CacheError::Missing { .. }) => "missing",
        Err(_) => "damaged",
    };
    json!({
        "name": manifest.name, "kind": manifest.kind.as_str(),
        "bytes": manifest.files.iter().map(|f| f.bytes).sum::<u64>(),
        "source": manifest.upstream, "license": manifest.license,
        "loadable": [manifest.name], "folder": found.ok(), "state": state, "problem": problem,
    })
}

fn print_listed(model: &Value) {
    let text = |key: &str| model[key].as_str().unwrap_or("");
    let state = match text("state") {
        "ready" => format!("ready in {}", text("folder")),
        "missing" => format!("not fetched: homeostat models pull {}", text("name")),
        _ => text("problem").to_string(),
    };
    let origin = match (text("license"), text("revision")) {
        ("", revision) => format!("{} at {revision}", text("source")),
        (license, _) => format!("{} ({license})", text("source")),
    };
    println!(
        "{}  {}  {:.1} MB  {origin}  {state}",
        text("name"),
        text("kind"),
        model["bytes"].as_f64().unwrap_or(0.0) / 1e6,
    );
    for name in model["loadable"].as_array().into_iter().flatten() {
        if *name != model["name"] {
            println!("  {}", name.as_str().unwrap_or("?"));
        }
    }
}

/// Of what the memory is asked.
struct Asked<'a> {
    contexts: &'a [u64],
    batches: &'a [u64],
    load_quantization: LoadQuantization,
}

/// Contexts × batches of one model.
struct Table {
    footprint: Option<Footprint>,
    rows: Vec<Demand>,
}

impl Table {
    /// Without contexts: 2k, 8k and the model's own, as far as the model goes.
    fn new(
        model: &Inspection,
        draft: Option<&Inspection>,
        max_batch_tokens: usize,
        asked: &Asked<'_>,
    ) -> Self {
        let is_encoder = ENCODERS.contains(&model.architecture.as_str());
        let target = asked.load_quantization;
        let footprint = Footprint::of(model, draft, target, max_batch_tokens as u64);
        let footprint = footprint.filter(|_| !is_encoder);
        let own = model.context_tokens.unwrap_or(8192);
        let mut usual = vec![2048.min(own), 8192.min(own), own];
        usual.dedup();
        let contexts = match asked.contexts {
            [] => &usual,
            given => given,
        };
        let pairs = contexts
            .iter()
            .flat_map(|c| asked.batches.iter().map(|b| (*c, *b)));
        let demand = |(c, b)| footprint.as_ref()?.demand(c, b);
        Self {
            rows: pairs.filter_map(demand).collect(),
            footprint,
        }
    }
}

/// The local tier that serves a model, by the name or the path that the plan has for it.
fn serving<'a>(config: &'a Config, name: &str) -> Option<&'a TierConfig> {
    let path = |tier: &TierConfig| Some(config.path(tier.path.as_ref()?).display().to_string());
    let mut local = config.tiers.iter().filter(|t| t.kind == TierKind::Local);
    local.find(|t| t.model.as_deref() == Some(name) || path(t).as_deref() == Some(name))
}

/// The same; a model that nobody serves yet would be served as the first local one is.
fn tier_of(config: &Config, name: &str) -> TierConfig {
    let mut local = config.tiers.iter().filter(|t| t.kind == TierKind::Local);
    let tier = serving(config, name).or_else(|| local.next());
    tier.cloned().unwrap_or_default()
}

fn print_inspection(found: &Inspection) {
    let number = |n: Option<u64>| n.map_or("not said".to_string(), |n| n.to_string());
    let text = |t: &Option<String>| t.clone().unwrap_or_else(|| "not said".into());
    let parameters = match found.parameters {
        0 => "not said: there are no weights here".to_string(),
        n => format!("{n} ({:.1} M)", n as f64 / 1e6),
    };
    println!("architecture        {}", found.architecture);
    println!("name                {}", text(&found.name));
    println!("parameters          {parameters}");
    if let Some(kind) = found.quantization() {
        println!("quantization        {kind}");
    }
    println!("layers              {}", number(found.layers));
    println!("heads               {}", number(found.heads));
    println!("kv heads            {}", number(found.kv_heads));
    println!("head dim            {}", number(found.head_dim));
    if let Some(experts) = found.experts {
        let used = number(experts.used);
        println!("experts             {}, {used} per token", experts.count);
    }
    println!("context tokens      {}", number(found.context_tokens));
    println!("vocabulary          {}", number(found.vocabulary));
    println!("tokenizer           {}", text(&found.tokenizer));
    println!("chat template       {}", found.has_chat_template);
    for (kind, total) in &found.tensors_by_type {
        println!("{kind:19} {} tensors, {} bytes", total.tensors, total.bytes);
    }
}

fn print_demands(found: &Inspection, table: &Table) {
    println!("weights in the file {}", human(found.weight_bytes()));
    let Some(footprint) = &table.footprint else {
        match ENCODERS.contains(&found.architecture.as_str()) {
            true => println!("kv cache            none: an encoder"),
            false => println!("kv bytes per token  not said"),
        }
        return;
    };
    println!(
        "kv bytes per token  {} ({}, f16)",
        footprint.kv_bytes_per_token,
        human(footprint.kv_bytes_per_token)
    );
    println!("weights in memory   {}", human(footprint.weight_bytes));
    println!(
        "host                {} (estimate)",
        human(footprint.host_bytes)
    );
    println!("\n{COLUMNS}");
    for row in &table.rows {
        println!("{}{}", cells(row), beyond(row).unwrap_or_default());
    }
}

const COLUMNS: &str = " context  batch    KV cache     scratch  all memory";

fn cells(row: &Demand) -> String {
    format!(
        "{:8} {:6} {:>11} {:>11} {:>11}",
        row.context_tokens,
        row.batch,
        human(row.kv_bytes),
        human(row.scratch_bytes),
        human(row.total_bytes)
    )
}

fn beyond(row: &Demand) -> Option<String> {
    let limit = row.beyond_context?;
    Some(format!("  more than the model's {limit} tokens"))
}

/// Bytes in the largest unit that they fill.
fn human(bytes: u64) -> String {
    const UNITS: [(&str, u32); 4] = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
    let unit = UNITS.iter().find(|(_, shift)| bytes >> shift > 0);
    match unit {
        Some((name, shift)) => format!("{:.1} {name}", bytes as f64 / (1u64 << shift) as f64),
        None => format!("{bytes} B"),
    }
}

fn inspection_json(path: &Path, found: &Inspection, table: &Table) -> Value {
    let types = found.tensors_by_type.iter().map(|(kind, total)| {
        let about = json!({ "tensors": total.tensors, "bytes": total.bytes });
        (kind.to_string(), about)
    });
    json!({
        "path": path,
        "architecture": found.architecture,
        "name": found.name,
        "parameters": Some(found.parameters).filter(|n| *n > 0),
        "quantization": found.quantization().map(|kind| kind.to_string()),
        "tensors": types.collect::<serde_json::Map<String, Value>>(),
        "weight_bytes": found.weight_bytes(),
        "layers": found.layers,
        "heads": found.heads,
        "kv_heads": found.kv_heads,
        "head_dim": found.head_dim,
        "experts": found.experts.map(|e| json!({ "count": e.count, "used": e.used })),
        "context_tokens": found.context_tokens,
        "vocabulary": found.vocabulary,
        "tokenizer": found.tokenizer,
        "has_chat_template": found.has_chat_template,
        "weight_bytes_in_memory": table.footprint.map(|f| f.weight_bytes),
        "kv_bytes_per_token": table.footprint.map(|f| f.kv_bytes_per_token),
        "host_bytes": table.footprint.map(|f| f.host_bytes),
        "memory": table.rows,
    })
}

/// A model that may be served.
struct Planned {
    name: String,
    model: Inspection,
    /// The draft model that its tier has, with its name.
    draft: Option<(String, Inspection)>,
    /// As its tier is configured.
    max_batch_tokens: usize,
}

/// Which models, contexts and batches fit.
struct Plan {
    room: Room,
    models: Vec<Planned>,
    contexts: Vec<u64>,
    batches: Vec<u64>,
    load_quantization: LoadQuantization,
}

impl Plan {
    fn table(&self, planned: &Planned) -> Table {
        let asked = Asked {
            contexts: &self.contexts,
            batches: &self.batches,
            load_quantization: self.load_quantization,
        };
        let draft = planned.draft.as_ref().map(|(_, draft)| draft);
        Table::new(&planned.model, draft, planned.max_batch_tokens, &asked)
    }

    fn print(&self, as_json: bool) -> Result<(), Failure> {
        if as_json {
            let models = self.models.iter().map(|planned| {
                let table = self.table(planned);
                let fits = table.rows.iter().map(|row| self.verdict_json(row));
                json!({
                    "model": planned.name, "footprint": table.footprint,
                    "draft_model": planned.draft.as_ref().map(|(name, _)| name),
                    "fits": fits.collect::<Vec<_>>(),
                })
            });
            let models: Vec<Value> = models.collect();
            return print_json(&json!({ "memory": self.room, "models": models }));
        }
        println!(
            "memory              {}, {} of it available",
            human(self.room.total_bytes),
            human(self.room.available_bytes)
        );
        for planned in &self.models {
            self.print_model(planned);
        }
        Ok(())
    }

    fn print_model(&self, planned: &Planned) {
        let (table, name) = (self.table(planned), &planned.name);
        let Some(footprint) = &table.footprint else {
            println!("\n{name}: its header does not say what a token takes");
            return;
        };
        println!(
            "\n{name}: weights {}, KV {} per token, host {}",
            human(footprint.weight_bytes),
            human(footprint.kv_bytes_per_token),
            human(footprint.host_bytes)
        );
        if let Some((draft, _)) = &planned.draft {
            println!("all memory counts its draft model {draft}, which is beside kv_bytes");
        }
        println!("{COLUMNS}");
        for row in &table.rows {
            println!("{}  {}", cells(row), self.verdict(row));
        }
    }

    /// What to write into the configuration, or why not.
    fn verdict(&self, row: &Demand) -> String {
        match self.obstacle(row) {
            Some(obstacle) => format!("does not fit: {obstacle}"),
            None => {
                let settings = settings(row).into_iter();
                let written = settings.map(|(name, value)| format!("{name} = {value}"));
                format!("fits: {}", written.collect::<Vec<_>>().join(", "))
            }
        }
    }

    fn obstacle(&self, row: &Demand) -> Option<String> {
        if let Some(limit) = row.beyond_context {
            return Some(format!("the model's context is {limit} tokens"));
        }
        if let Err(refused) = starts(row) {
            return Some(refused);
        }
        match self.room.lacks(row) {
            0 => None,
            lacking => Some(format!("{} more are needed", human(lacking))),
        }
    }

    fn verdict_json(&self, row: &Demand) -> Value {
        let obstacle = self.obstacle(row);
        let settings: serde_json::Map<String, Value> = settings(row)
            .into_iter()
            .map(|(name, value)| (name.to_string(), value.into()))
            .collect();
        json!({
            "context_tokens": row.context_tokens, "batch": row.batch, "kv_bytes": row.kv_bytes,
            "scratch_bytes": row.scratch_bytes, "draft_bytes": row.draft_bytes,
            "total_bytes": row.total_bytes, "fits": obstacle.is_none(),
            "lacking_bytes": self.room.lacks(row), "beyond_context": row.beyond_context,
            "settings": obstacle.is_none().then_some(settings), "obstacle": obstacle,
        })
    }
}

/// What a tier must be given.
fn settings(row: &Demand) -> Vec<(&'static str, u64)> {
    let rows = row.max_batch_tokens.map(|n| ("max_batch_tokens", n));
    let always = [
        ("kv_bytes", row.kv_bytes),
        ("max_sequences", row.batch),
        ("context_tokens", row.context_tokens),
    ];
    always.into_iter().chain(rows).collect()
}

/// Whether an engine takes these settings, by its own check.
fn starts(row: &Demand) -> Result<(), String> {
    let size = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
    let defaults = EngineConfig::new("", "");
    let engine = EngineConfig {
        kv_bytes: row.kv_bytes,
        max_sequences: size(row.batch),
        context_tokens: Some(size(row.context_tokens)),
        max_batch_tokens: row.max_batch_tokens.map_or(
            defaults
                .max_batch_tokens
                .max(size(row.batch).saturating_add(1)),
            size,
        ),
        ..defaults
    };
    engine.check().map_err(|e| e.to_string())
}

fn given(bytes: u64) -> Room {
    Room {
        total_bytes: bytes,
        available_bytes: bytes,
    }
}

/// What telemetry says of this machine's memory, the container's limit included.
fn room(config: &Config) -> Result<Room, Failure> {
    let telemetry = Telemetry::start(serve::telemetry_config(config));
    let period = Duration::from_millis(config.telemetry.period_ms.into());
    let read = || {
        std::thread::sleep(period);
        let pressure = telemetry.snapshot().pressure;
        let (total, used) = (pressure.memory_limit_bytes?, pressure.memory_used_bytes?);
        Some(Room {
            total_bytes: total,
            available_bytes: total.saturating_sub(used),
        })
    };
    let found = (0..20).find_map(|_| read());
    telemetry.shutdown();
    found.ok_or_else(|| {
        let what = "this machine does not say how much memory it has; give it with --memory";
        Failure::Failed(what.into())
    })
}

/// The named models; without names all generative ones that are here.
fn planned(config: &Config, names: &[String]) -> Result<Vec<Planned>, Failure> {
    let shelf = Shelf::open(config)?;
    if !names.is_empty() {
        let look = |name: &String| look_at(config, &shelf, name, &locate(&shelf, name)?);
        return names.iter().map(look).collect();
    }
    let generative = shelf.manifests.iter();
    let generative = generative.filter(|m| m.kind == ModelKind::Generative);
    let mut known: Vec<String> = generative.map(|m| m.name.clone()).collect();
    let of_hub = pulled(&shelf.cache).into_iter().flatten();
    known.extend(of_hub.flat_map(|(record, _)| record.loadable()));
    let by_name = known.into_iter().map(|name| {
        let path = shelf.verified(&name);
        (name, path)
    });
    let local = config.tiers.iter().filter(|t| t.kind == TierKind::Local);
    let paths = local
        .filter_map(|t| t.path.as_ref())
        .map(|p| config.path(p));
    let by_path = paths.map(|path| (path.display().to_string(), Ok(path)));
    let mut found = Vec::new();
    for (name, path) in by_name.chain(by_path) {
        match path.and_then(|path| look_at(config, &shelf, &name, &path)) {
            Ok(model) => found.push(model),
            Err(error) => eprintln!("left out: {error}"),
        }
    }
    match found.is_empty() {
        true => Err(Failure::Failed(
            "there is no model here; fetch one with: homeostat models pull".into(),
        )),
        false => Ok(found),
    }
}

/// A model and the draft model of the tier that serves it.
fn look_at(config: &Config, shelf: &Shelf, name: &str, path: &Path) -> Result<Planned, Failure> {
    let draft = serving(config, name).and_then(|t| t.speculation.draft_model.clone());
    let draft = draft.map(|draft| {
        let path = match is_path(&draft) {
            true => config.path(Path::new(&draft)),
            false => shelf.verified(&draft)?,
        };
        Ok::<_, Failure>((draft, with_weights(&path)?))
    });
    Ok(Planned {
        name: name.to_string(),
        model: with_weights(path)?,
        draft: draft.transpose()?,
        max_batch_tokens: tier_of(config, name).max_batch_tokens,
    })
}

/// A model whose weights are there: without them nobody can say what it takes.
fn with_weights(path: &Path) -> Result<Inspection, Failure> {
    let found = inspect(path).map_err(Failure::failed)?;
    if found.tensors_by_type.is_empty() {
        let what = "there are no weights; `homeostat models inspect` tells the KV cache of a \
                    config.json alone";
        return Err(Failure::Failed(format!("{}: {what}", path.display())));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_configuration_needs_its_two_models() {
        let names = needed(&Config::default());
        assert_eq!(names, ["all-minilm-l6-v2", "smollm2-135m-instruct"]);
    }

    #[test]
    fn a_draft_model_by_name_is_needed_and_one_by_path_is_not() {
        let with = |draft: &str| {
            let mut config = Config::default();
            config.encoder.enabled = false;
            config.tiers[0].speculation.draft_model = Some(draft.into());
            needed(&config)
        };
        assert_eq!(with("hf:a/b"), ["hf:a/b", "smollm2-135m-instruct"]);
        assert_eq!(with("./draft.gguf"), ["smollm2-135m-instruct"]);
    }

    #[test]
    fn bytes_are_shown_in_the_largest_unit_they_fill() {
        let shown = [0, 1023, 1024, 23_040, 40 << 30, 5 << 40].map(human);
        let expected = [
            "0 B", "1023 B", "1.0 KiB", "22.5 KiB", "40.0 GiB", "5.0 TiB",
        ];
        assert_eq!(shown, expected);
    }

    #[test]
    fn a_plan_says_what_to_write_or_by_how_much_it_does_not_fit() {
        let plan = Plan {
            room: given(10 << 30),
            models: Vec::new(),
            contexts: Vec::new(),
            batches: Vec::new(),
            load_quantization: LoadQuantization::Q8_0,
        };
        let row = |total_bytes, beyond_context| Demand {
            context_tokens: 2048,
            batch: 8,
            kv_bytes: 1 << 30,
            scratch_bytes: 0,
            draft_bytes: 0,
            max_batch_tokens: None,
            total_bytes,
            beyond_context,
        };
        let fits = plan.verdict(&row(10 << 30, None));
        assert!(fits.starts_with("fits: kv_bytes = 1073741824, max_sequences = 8"));
        let lacks = plan.verdict(&row(12 << 30, None));
        assert_eq!(lacks, "does not fit: 2.0 GiB more are needed");
        let beyond = plan.verdict_json(&row(1, Some(1024)));
        assert_eq!(beyond["fits"], false);
        assert_eq!(beyond["settings"], Value::Null);
    }

    /// A plan for the default model, in 16 GiB.
    fn plan(config: &Config, contexts: &[u64], batches: &[u64]) -> Plan {
        Plan {
            room: given(16 << 30),
            models: planned(config, &["smollm2-135m-instruct".into()]).unwrap(),
            contexts: contexts.to_vec(),
            batches: batches.to_vec(),
            load_quantization: LoadQuantization::Q8_0,
        }
    }

    #[test]
    fn what_a_plan_prints_loads() {
        let plan = plan(&Config::default(), &[32], &[1, 255, 256, 1024]);
        let path = locate(
            &Shelf::open(&Config::default()).unwrap(),
            &plan.models[0].name,
        );
        let path = path.unwrap();
        for row in &plan.table(&plan.models[0]).rows {
            let verdict = plan.verdict(row);
            let written = verdict.strip_prefix("fits: ").expect("it fits");
            let lines = written.replace(", ", "\n");
            let file = format!("[[tiers]]\nid = \"a\"\npath = \"a\"\n{lines}\n");
            let tier = Config::parse("t", &file).unwrap().tiers.remove(0);
            assert_eq!(tier.max_sequences as u64, row.batch);
            let loaded = homeostat_engine::Engine::load(EngineConfig {
                kv_bytes: tier.kv_bytes,
                max_sequences: tier.max_sequences,
                max_batch_tokens: tier.max_batch_tokens,
                context_tokens: tier.context_tokens.map(|n| n as usize),
                threads: 1,
                ..EngineConfig::new("a", &path)
            });
            assert!(loaded.is_ok(), "{verdict}: {:?}", loaded.err());
        }
    }

    #[test]
    fn a_batch_that_no_engine_takes_does_not_fit_and_says_why() {
        let plan = plan(&Config::default(), &[32], &[1025]);
        let row = plan.table(&plan.models[0]).rows[0];
        let verdict = plan.verdict(&row);
        assert!(
            verdict.starts_with("does not fit: max_sequences is 1025"),
            "{verdict}"
        );
        assert_eq!(plan.verdict_json(&row)["settings"], Value::Null);
    }

    #[test]
    fn the_draft_model_of_a_tier_is_counted_where_its_model_is_planned() {
        let mut config = Config::default();
        let alone = plan(&config, &[2048], &[1]).models.remove(0);
        assert_eq!(alone.draft, None);
        config.tiers[0].speculation.draft_model = Some("smollm2-135m-instruct".into());
        let plan = plan(&config, &[2048], &[1]);
        let row = plan.table(&plan.models[0]).rows[0];
        let footprint = plan.table(&plan.models[0]).footprint.unwrap();
        let twice = footprint.weight_bytes + row.kv_bytes + row.scratch_bytes;
        assert_eq!(row.draft_bytes, twice);
        assert_eq!(row.total_bytes, 2 * twice + footprint.host_bytes);
    }
}
