//! `homeostat policy shadow …` and `homeostat policy canary …`: candidates of a running host.

use std::fmt::Write;

use homeostat_hooks::Hook;
use serde_json::Value;

use super::{bundle, escaped, print_json};
use crate::Failure;
use crate::admin_client::ask;
use crate::cli::{HostArgs, TrialCommand};

/// One command of a mode, which is also the last word of its path.
pub fn trial(mode: &str, command: TrialCommand) -> Result<(), Failure> {
    let path = |hook: Hook| format!("/admin/v1/policies/{}/{mode}", hook.as_str());
    let (method, path, body, host) = match command {
        TrialCommand::Status { hook, json, host } => return status(mode, hook, json, &host),
        TrialCommand::Start {
            hook,
            file,
            name,
            share,
            stick_to,
            host,
        } => {
            if mode == "shadow" && (share.is_some() || stick_to.is_some()) {
                let what = "--share and --stick-to are for canaries: a shadow serves nobody";
                return Err(Failure::Config(what.into()));
            }
            if mode == "shadow" && file.is_none() {
                return Err(Failure::Config("a shadow needs a file".into()));
            }
            let (mut query, body) = match &file {
                None => (Vec::new(), Vec::new()),
                Some(file) => bundle::offered(file, name)?,
            };
            if let Some(file) = file.filter(|_| body.is_empty()) {
                return Err(Failure::Failed(format!("{} is empty", file.display())));
            }
            query.extend(share.map(|s| format!("share={s}")));
            query.extend(stick_to.map(|s| format!("stick_to={}", escaped(&s))));
            let path = format!("{}?{}", path(hook), query.join("&"));
            ("PUT", path, body, host)
        }
        TrialCommand::Stop { hook, host } => ("DELETE", path(hook), Vec::new(), host),
        TrialCommand::Promote { hook, host } => {
            let path = format!("{}/promote", path(hook));
            ("POST", path, Vec::new(), host)
        }
    };
    print!("{}", shown(&ask(&host, method, &path, body)?));
    Ok(())
}

fn status(mode: &str, hook: Option<Hook>, json: bool, host: &HostArgs) -> Result<(), Failure> {
    let answer = ask(host, "GET", "/admin/v1/policies", Vec::new())?;
    let slots = answer["policies"].as_array().into_iter().flatten();
    let trials: Vec<&Value> = slots
        .map(|slot| &slot["trial"])
        .filter(|trial| trial["mode"] == mode)
        .filter(|trial| hook.is_none_or(|hook| trial["hook"] == hook.as_str()))
        .collect();
    if json {
        return print_json(&serde_json::json!(trials));
    }
    if trials.is_empty() {
        println!("no {mode} has run");
    }
    for trial in trials {
        print!("{}", shown(trial));
    }
    Ok(())
}

/// One line: who is tried how, and what became of it.
pub fn headline(trial: &Value) -> String {
    let word = |key: &str| trial[key].as_str().unwrap_or("?");
    let mut line = format!("{} of {}", word("mode"), word("policy"));
    let canary = &trial["canary"];
    if let Some(share) = canary["share"].as_f64() {
        let stick_to = canary["stick_to"].as_str().unwrap_or("?");
        let generation = &canary["generation"];
        let _ = write!(line, "@{generation}, {:.0} % by {stick_to}", share * 100.0);
    }
    match &trial["ended"] {
        Value::Null => line.push_str(", running"),
        ended => {
            let how = ended["how"].as_str().unwrap_or("?");
            let reason = ended["reason"].as_str().unwrap_or("");
            let _ = write!(line, ", {how}: {reason}");
        }
    }
    line
}

/// A trial for people.
fn shown(trial: &Value) -> String {
    let hook = trial["hook"].as_str().unwrap_or("?");
    let mut lines = vec![format!("{hook:9} {}", headline(trial))];
    for m in trial["canary"]["measures"].as_array().into_iter().flatten() {
        lines.push(format!(
            "          {:17} active {} of {}, candidate {} of {}",
            m["measure"].as_str().unwrap_or("?"),
            m["active"],
            m["active_of"],
            m["candidate"],
            m["candidate_of"]
        ));
    }
    let shadow = &trial["shadow"];
    if shadow.is_object() {
        let of = |key: &str| &shadow[key];
        lines.push(format!(
            "          {} calls, {} the same; dropped {} (queue full) and {} (house busy); \
             {} questions to models left",
            of("calls"),
            of("same"),
            of("dropped_full"),
            of("dropped_busy"),
            of("model_calls_left")
        ));
        for (who, key) in [("active", "active_times"), ("candidate", "candidate_times")] {
            let time = |q: &str| {
                let micros = shadow[key][q].as_f64();
                micros.map_or("-".into(), |m| format!("{m:.0} µs"))
            };
            let (p50, p99) = (time("p50_micros"), time("p99_micros"));
            lines.push(format!("          {who:9} p50 {p50}, p99 {p99}"));
        }
        for d in shadow["differences"].as_array().into_iter().flatten() {
            let word = |key: &str| d[key].as_str().unwrap_or("?");
            lines.push(format!(
                "          {:>8} × {} → {}",
                d["calls"],
                word("from"),
                word("to")
            ));
        }
    }
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_canary_is_shown_with_both_arms_and_its_end() {
        let text = shown(&json!({
            "hook": "route", "mode": "canary", "policy": "mine",
            "canary": {"generation": 8, "share": 0.1, "stick_to": "tenant", "measures": [
                {"measure": "fault", "active": 1, "active_of": 900, "candidate": 9, "candidate_of": 50}
            ]},
            "ended": {"how": "rolled-back", "reason": "fault: 9 of 50"},
        }));
        for words in [
            "route     canary of mine@8, 10 % by tenant, rolled-back: fault: 9 of 50",
            "active 1 of 900, candidate 9 of 50",
        ] {
            assert!(text.contains(words), "{text}");
        }
    }

    #[test]
    fn a_shadow_is_shown_with_its_differences() {
        let text = shown(&json!({
            "hook": "classify", "mode": "shadow", "policy": "mine", "ended": null,
            "shadow": {"calls": 100, "same": 83, "dropped_full": 1, "dropped_busy": 2,
                "model_calls_left": 5, "active_times": {"p50_micros": 20.4, "p99_micros": null},
                "candidate_times": {"p50_micros": 900.0, "p99_micros": 1200.0},
                "differences": [{"from": "complex", "to": "simple", "calls": 17}]},
        }));
        for words in [
            "shadow of mine, running",
            "100 calls, 83 the same; dropped 1 (queue full) and 2 (house busy)",
            "active    p50 20 µs, p99 -",
            "17 × complex → simple",
        ] {
            assert!(text.contains(words), "{text}\n{words}");
        }
    }
}
