//! Commands that end by themselves: everything but `serve`.
//!
//! Results go to standard output, everything else to standard error.

mod author;
mod bundle;
pub mod calibrate;
mod execute;
mod models;
mod replay;
mod state;
mod telemetry;
mod trials;

use std::path::Path;
use std::sync::Arc;

use homeostat_hooks::Hook;
use homeostat_policy::bundle::read_policy;
use homeostat_policy::{Offer, PolicyRoom, RecordConfig, RoomConfig};
use serde_json::Value;

use crate::admin_client::ask;
use crate::cli::{ConfigCommand, HostArgs, PolicyCommand};
use crate::config::{Config, DEFAULT_FILE};
use crate::tiers::HostModels;
use crate::{Failure, serve};

pub use author::room_with;
pub use bundle::BundleCommand;
pub use models::models;
pub use replay::explain_from_log;
pub use telemetry::telemetry;

pub fn policy(command: PolicyCommand) -> Result<(), Failure> {
    match command {
        PolicyCommand::New { lang, hook, name } => author::new(&name, lang, hook),
        PolicyCommand::Build { folder, output } => author::build_policy(&folder, output),
        PolicyCommand::Test { path, cases, seed } => author::test(&path, cases.as_deref(), seed),
        PolicyCommand::Tools { languages } => author::set_up(&languages),
        PolicyCommand::Check {
            file,
            json,
            hook,
            config,
        } => {
            let config = Config::load(config.config.as_deref())?;
            check_policy(&config, &file, hook, json)
        }
        PolicyCommand::Replay {
            candidate,
            log,
            hook,
            execute,
            json,
            config,
        } => {
            let execute = execute.map(|count| (count, &config));
            replay::candidate(&candidate, &log, hook, execute, json)
        }
        PolicyCommand::Calibrate(args) => calibrate::calibrate(&args),
        PolicyCommand::List { host } => {
            let answer = ask(&host, "GET", "/admin/v1/policies", Vec::new())?;
            for slot in answer["policies"].as_array().into_iter().flatten() {
                print_slot(slot);
            }
            Ok(())
        }
        PolicyCommand::Put {
            hook,
            file,
            name,
            allow_downgrade,
            host,
        } => {
            let (mut query, body) = bundle::offered(&file, name)?;
            query.push(format!("allow-downgrade={allow_downgrade}"));
            let path = format!("/admin/v1/policies/{}?{}", hook.as_str(), query.join("&"));
            print_json(&ask(&host, "PUT", &path, body)?)
        }
        PolicyCommand::Bundle(command) => bundle::run(command),
        PolicyCommand::Shadow(command) => trials::trial("shadow", command),
        PolicyCommand::Canary(command) => trials::trial("canary", command),
        PolicyCommand::Rollback { hook, to, host } => {
            let to = to.map_or(String::new(), |number| format!("?to={number}"));
            let path = format!("/admin/v1/policies/{}/rollback{to}", hook.as_str());
            print_slot(&ask(&host, "POST", &path, Vec::new())?);
            Ok(())
        }
        PolicyCommand::State(command) => state::state(command),
        PolicyCommand::Unload { hook, host } => {
            let path = format!("/admin/v1/policies/{}", hook.as_str());
            print_slot(&ask(&host, "DELETE", &path, Vec::new())?);
            Ok(())
        }
    }
}

fn check_policy(
    config: &Config,
    path: &Path,
    hook: Option<Hook>,
    json: bool,
) -> Result<(), Failure> {
    let file = &author::component_at(path)?;
    let models = HostModels::new(Vec::new(), Vec::new(), None).map_err(Failure::failed)?;
    let limits = RoomConfig {
        record: RecordConfig::default(),
        // A host may be running on that folder.
        state_dir: None,
        ..serve::room_config(config)
    };
    let room =
        PolicyRoom::new(limits, Arc::new(models)).map_err(|e| Failure::Config(e.to_string()))?;
    let sealed = read_policy(file, config.policies.max_component_bytes).map_err(Failure::failed)?;
    let stem = file.file_stem().and_then(|s| s.to_str());
    let offer = Offer {
        name: stem.unwrap_or("policy").into(),
        bytes: sealed.component,
        manifest: sealed.manifest,
        signature: sealed.signature,
        hooks: hook.map(|h| vec![h]),
        options: author::options_at(path)?,
        ..Offer::default()
    };
    let report = room.check(&offer).map_err(Failure::failed)?;
    let report = serde_json::to_value(&report).map_err(Failure::failed)?;
    if json {
        return print_json(&report);
    }
    author::print_report(&report);
    Ok(())
}

/// A name as a query can carry it.
pub fn escaped(name: &str) -> String {
    let each = name.bytes().map(|b| match b {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => char::from(b).to_string(),
        other => format!("%{other:02X}"),
    });
    each.collect()
}

fn print_slot(slot: &Value) {
    let shown = |generation: &Value| {
        let name = generation["policy"].as_str().unwrap_or("?");
        let digest = generation["digest"].as_str().unwrap_or("");
        let open = generation["breaker_open"].as_bool() == Some(true);
        format!(
            "{name}@{} ({}){}",
            generation["generation"],
            digest.get(..12).unwrap_or(digest),
            if open {
                ", left alone: it keeps failing"
            } else {
                ""
            }
        )
    };
    let active = match &slot["active"] {
        Value::Null => "built-in".to_string(),
        generation => shown(generation),
    };
    println!("{:9} {active}", slot["hook"].as_str().unwrap_or("?"));
    for hint in slot["active"]["hints"].as_array().into_iter().flatten() {
        println!("          {}", hint.as_str().unwrap_or("?"));
    }
    for kept in slot["kept"].as_array().into_iter().flatten() {
        println!("          kept: {}", shown(kept));
    }
    if slot["trial"].is_object() && slot["trial"]["ended"].is_null() {
        println!("          {}", trials::headline(&slot["trial"]));
    }
    let attempt = &slot["last_attempt"];
    if attempt["accepted"].as_bool() == Some(false) {
        let text = attempt["text"].as_str().unwrap_or("");
        println!("          last attempt, {}: {text}", attempt["policy"]);
    }
}

fn print_json(value: &Value) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value).map_err(Failure::failed)?;
    println!("{text}");
    Ok(())
}

pub fn config(command: ConfigCommand) -> Result<(), Failure> {
    match command {
        ConfigCommand::Print => print!("{DEFAULT_FILE}"),
        ConfigCommand::Check(args) => {
            let config = Config::load(args.config.as_deref())?;
            let tiers: Vec<&str> = config.tiers.iter().map(|t| t.id.as_str()).collect();
            println!("the configuration is good; tiers: {}", tiers.join(", "));
        }
    }
    Ok(())
}

pub fn explain(
    id: Option<&str>,
    set: &[(String, String)],
    json: bool,
    host: &HostArgs,
) -> Result<(), Failure> {
    let Some(id) = id else {
        let answer = ask(host, "GET", "/admin/v1/decisions", Vec::new())?;
        if json {
            return print_json(&answer);
        }
        for line in answer["decisions"].as_array().into_iter().flatten() {
            let ending = line["ending"]["ending"].as_str().unwrap_or("?");
            let id = line["id"].as_str().unwrap_or("?");
            println!(
                "{id}  {ending}  steps {}  {} ms",
                line["steps"], line["total_ms"]
            );
        }
        return Ok(());
    };
    let path = format!("/admin/v1/decisions/{}", escaped(id));
    let pairs = set
        .iter()
        .map(|(path, value)| escaped(&format!("{path}={value}")));
    let query: Vec<String> = pairs.map(|pair| format!("set={pair}")).collect();
    let explanation = format!("{path}/explanation?{}", query.join("&"));
    let mut record = ask(host, "GET", &path, Vec::new())?;
    let explained = ask(host, "GET", &explanation, Vec::new());
    // Whoever wants a value changed wants to know why it cannot be.
    let explained = match (explained, set.is_empty()) {
        (Ok(explained), _) => explained,
        (Err(failure), false) => return Err(failure),
        (Err(failure), true) => serde_json::json!({ "text": format!("{failure}\n") }),
    };
    if json {
        record["explanation"] = explained["explanation"].clone();
        return print_json(&record);
    }
    print!("{}", story(&record));
    print!("\n{}", explained["text"].as_str().unwrap_or_default());
    Ok(())
}

/// A decision record as a story.
fn story(record: &Value) -> String {
    let text = |v: &Value| v.as_str().map_or_else(|| v.to_string(), str::to_string);
    let mut lines = vec![
        format!(
            "{}: {} asked for {}, {} messages, {} bytes",
            text(&record["id"]),
            text(&record["request"]["endpoint"]),
            text(&record["request"]["model"]),
            record["request"]["messages"],
            record["request"]["bytes"]
        ),
        format!(
            "machine   {} (risk {}, degrade {})",
            text(&record["snapshot"]["metabolism"]["state"]),
            record["snapshot"]["metabolism"]["risk"],
            record["snapshot"]["metabolism"]["degrade_ratio"]
        ),
    ];
    for (hook, reply) in [("classify", "classification"), ("route", "decision")] {
        let reply = &record[reply];
        if !reply.is_null() {
            lines.push(format!("{hook:9} {}", answered(reply)));
        }
    }
    for (i, step) in record["steps"].as_array().into_iter().flatten().enumerate() {
        lines.push(format!(
            "step {i}    {}: {} tokens in {} ms{}{}",
            text(&step["tier"]),
            step["completion_tokens"],
            step["total_ms"],
            if step["sent"] == true {
                ", sent"
            } else {
                ", not sent"
            },
            match &step["error"] {
                Value::Null => String::new(),
                error => format!(": {}", text(&error["message"])),
            }
        ));
        if !step["verdict"].is_null() {
            lines.push(format!("validate  {}", answered(&step["verdict"])));
        }
    }
    for note in record["notes"].as_array().into_iter().flatten() {
        lines.push(format!("note      {}", text(note)));
    }
    let detail = ["tier", "method", "message"].map(|k| &record[k]);
    let detail = detail.into_iter().find(|v| !v.is_null());
    lines.push(format!(
        "ending    {} {}, {} ms",
        text(&record["ending"]),
        detail.map_or_else(String::new, text),
        record["total_ms"]
    ));
    lines.join("\n") + "\n"
}

/// Who answered a hook, and what.
fn answered(reply: &Value) -> String {
    let by = &reply["by"];
    let name = by["name"].as_str().unwrap_or("built-in");
    let canary = if by["candidate"] == true {
        " (canary)"
    } else {
        ""
    };
    let who = match by["by"].as_str() {
        Some("component") => format!("{name}@{}{canary}", by["generation"]),
        Some("fallback") => format!(
            "{} instead of {name}@{}{canary} ({}: {})",
            by["fallback"].as_str().unwrap_or("built-in"),
            by["generation"],
            reply["fault"]["kind"].as_str().unwrap_or("fault"),
            reply["fault"]["detail"].as_str().unwrap_or("")
        ),
        _ => "built-in".into(),
    };
    format!("{who}, {} µs: {}", reply["micros"], reply["value"])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_story_names_hooks_policies_steps_and_the_end() {
        let record = serde_json::json!({
            "id": "chatcmpl-1", "request": {"endpoint": "chat", "model": "auto", "messages": 1, "bytes": 9},
            "snapshot": {"metabolism": {"state": "nominal", "risk": 0.0, "degrade_ratio": 0.0}},
            "classification": {"by": {"by": "built-in"}, "micros": 1, "value": {}},
            "decision": {
                "by": {"by": "fallback", "name": "mine", "generation": 4, "fallback": "built-in"},
                "fault": {"kind": "trap", "detail": "unreachable"}, "micros": 7,
                "value": {"plan": {"steps": []}},
            },
            "steps": [{"tier": "small", "completion_tokens": 5, "total_ms": 9, "sent": true, "error": null,
                "verdict": {"by": {"by": "component", "name": "facts", "generation": 1}, "micros": 3, "value": "accept"}}],
            "notes": ["cut"], "ending": "sent", "tier": "small", "total_ms": 12,
        });
        let text = story(&record);
        for word in [
            "chatcmpl-1",
            "nominal",
            "classify  built-in",
            "built-in instead of mine@4 (trap: unreachable)",
            "step 0    small: 5 tokens",
            "validate  facts@1",
            "note      cut",
            "ending    sent small",
        ] {
            assert!(text.contains(word), "{text}\n{word}");
        }
    }

    #[test]
    fn a_name_is_escaped_for_a_query() {
        assert_eq!(escaped("a-b.c d&ü"), "a-b.c%20d%26%C3%BC");
    }
}
