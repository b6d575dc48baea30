//! `homeostat policy state`: what policies keep, for the operator of a running host. The
//! host has the files open, so everything goes through it.

use std::path::Path;

use serde_json::Value;

use super::{escaped, print_json};
use crate::Failure;
use crate::admin_client::ask;
use crate::cli::StateCommand;

/// Characters of a value that are shown.
const SHOWN_CHARS: usize = 60;

pub fn state(command: StateCommand) -> Result<(), Failure> {
    match command {
        StateCommand::Show { name: None, host } => {
            let answer = ask(&host, "GET", "/admin/v1/state", Vec::new())?;
            for bucket in answer["state"].as_array().into_iter().flatten() {
                println!("{}", summary(bucket));
            }
            Ok(())
        }
        StateCommand::Show {
            name: Some(name),
            host,
        } => {
            let export = ask(&host, "GET", &path_of(&name), Vec::new())?;
            for (key, value) in export["entries"].as_object().into_iter().flatten() {
                println!("{key}  {}", shown(value));
            }
            Ok(())
        }
        StateCommand::Export { name, output, host } => {
            let export = ask(&host, "GET", &path_of(&name), Vec::new())?;
            let Some(output) = output else {
                return print_json(&export);
            };
            let text = serde_json::to_string_pretty(&export).map_err(Failure::failed)?;
            std::fs::write(&output, text + "\n").map_err(|e| about(&output, &e))
        }
        StateCommand::Import { name, file, host } => {
            let body = std::fs::read(&file).map_err(|e| about(&file, &e))?;
            println!("{}", summary(&ask(&host, "PUT", &path_of(&name), body)?));
            Ok(())
        }
    }
}

fn path_of(name: &str) -> String {
    format!("/admin/v1/state/{}", escaped(name))
}

fn about(file: &Path, error: &std::io::Error) -> Failure {
    Failure::Failed(format!("{}: {error}", file.display()))
}

fn summary(bucket: &Value) -> String {
    let version = match bucket["version"].as_u64() {
        Some(0) | None => String::new(),
        Some(version) => format!(" version {version}"),
    };
    let place = match (bucket["on_disk"].as_bool(), bucket["failure"].as_str()) {
        (_, Some(why)) => format!("cannot be written: {why}"),
        (Some(true), None) => "on disk".into(),
        _ => "in memory only".into(),
    };
    format!(
        "{}{version}  {} keys, {} bytes, {place}",
        bucket["policy"].as_str().unwrap_or("?"),
        bucket["keys"],
        bucket["bytes"]
    )
}

/// One value on one line.
fn shown(value: &Value) -> String {
    let (text, what) = match (value["text"].as_str(), value["hex"].as_str()) {
        (Some(text), _) => (text, ""),
        (None, hex) => (hex.unwrap_or("?"), "hex "),
    };
    let mut line = format!("{what}{}", text.escape_debug());
    if let Some((end, _)) = line.char_indices().nth(SHOWN_CHARS) {
        line.truncate(end);
        line.push('…');
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_bucket_and_a_value_are_one_line_each() {
        let bucket = json!({"policy": "p", "version": 2, "keys": 1, "bytes": 9, "on_disk": true,
            "commits": 4, "failure": null});
        assert_eq!(summary(&bucket), "p version 2  1 keys, 9 bytes, on disk");
        let failing = json!({"policy": "p", "version": 0, "keys": 1, "bytes": 9,
            "on_disk": true, "failure": "full"});
        assert_eq!(
            summary(&failing),
            "p  1 keys, 9 bytes, cannot be written: full"
        );
        assert_eq!(shown(&json!({"text": "two\nlines"})), "two\\nlines");
        assert_eq!(shown(&json!({"hex": "00ff"})), "hex 00ff");
        assert_eq!(shown(&json!({"text": "a".repeat(99)})).chars().count(), 61);
    }
}
