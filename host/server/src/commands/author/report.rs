//! An admission report for people: one line a fact, with units they can read. It walks the
//! report as it is, so a fact that admission adds is shown without a change here.

use serde_json::Value;

/// Widest name that is padded.
const NAME_WIDTH: usize = 20;

/// Prints the report as a table; facts that say nothing are left out.
pub fn print_report(report: &Value) {
    print!("{}", table(report));
}

fn table(report: &Value) -> String {
    let mut out = String::new();
    rows("", report, &mut out);
    out
}

fn rows(indent: &str, record: &Value, out: &mut String) {
    for (key, value) in record.as_object().into_iter().flatten() {
        let name = format!("{indent}{}", name_of(key));
        match value {
            Value::Null => {}
            Value::Array(items) if items.is_empty() => {}
            Value::Array(items) => {
                for (i, item) in items.iter().enumerate() {
                    row(if i == 0 { &name } else { "" }, &shown(key, item), out);
                }
            }
            Value::Object(_) => {
                out.push_str(&format!("{name}\n"));
                rows(&format!("{indent}  "), value, out);
            }
            value => row(&name, &shown(key, value), out),
        }
    }
}

fn row(name: &str, value: &str, out: &mut String) {
    out.push_str(&format!("{name:<NAME_WIDTH$}  {value}\n"));
}

/// A field's name as words, without the unit that its value will carry.
fn name_of(key: &str) -> String {
    let units = ["_bytes", "_micros"];
    let bare = units.iter().find_map(|unit| key.strip_suffix(unit));
    bare.unwrap_or(key).replace('_', " ")
}

fn shown(key: &str, value: &Value) -> String {
    let number = value.as_f64();
    match (value, number) {
        (_, Some(n)) if key.ends_with("_bytes") => bytes(n),
        (_, Some(n)) if key.ends_with("_micros") => micros(n),
        (Value::String(text), _) => text.clone(),
        (Value::Bool(yes), _) => (if *yes { "yes" } else { "no" }).to_owned(),
        (Value::Object(fields), _) => {
            let parts: Vec<String> = fields
                .iter()
                .filter(|(_, v)| !v.is_null() && v.as_array().is_none_or(|a| !a.is_empty()))
                .map(|(k, v)| format!("{} {}", name_of(k), shown(k, v)))
                .collect();
            parts.join(" · ")
        }
        (Value::Array(items), _) => {
            let parts: Vec<String> = items.iter().map(|item| shown(key, item)).collect();
            parts.join(", ")
        }
        _ => value.to_string(),
    }
}

fn bytes(n: f64) -> String {
    match n {
        n if n < 1024.0 => format!("{n} bytes"),
        n if n < 1048576.0 => format!("{:.1} KiB", n / 1024.0),
        n => format!("{:.1} MiB", n / 1048576.0),
    }
}

fn micros(n: f64) -> String {
    match n {
        n if n < 1e3 => format!("{n} µs"),
        n if n < 1e6 => format!("{:.1} ms", n / 1e3),
        n => format!("{:.1} s", n / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_told_in_units_and_without_empty_facts() {
        let text = table(&serde_json::json!({
            "policy": "mine", "hooks": ["route"], "generations": [], "swap_micros": null,
            "imports": ["homeostat:policy/types@0.1.0", "wasi:logging/logging@0.1.0-draft"],
            "size_bytes": 18_400_000, "compile_micros": 6_200_000,
            "cost": {"fresh_micros": 14.5, "dirty_bytes": 65_536},
            "changes": [{"hook": "route", "gains": ["models"], "loses": []}],
        }));
        for line in [
            "policy                mine",
            "hooks                 route",
            "                      wasi:logging/logging@0.1.0-draft",
            "size                  17.5 MiB",
            "compile               6.2 s",
            "  fresh               14.5 µs",
            "  dirty               64.0 KiB",
            "changes               hook route · gains models",
        ] {
            assert!(
                text.contains(&format!("{line}\n")),
                "{line:?} is not in\n{text}"
            );
        }
        assert!(
            !text.contains("swap") && !text.contains("generations"),
            "{text}"
        );
    }
}
