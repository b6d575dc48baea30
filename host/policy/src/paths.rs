//! One value inside the inputs of a decision: how it is named, set and compared.
//!
//! A path walks the contract's types: fields by their names, devices and tiers by their ids,
//! budgets by their scopes, attributes by their keys, other lists by position, as in
//! `snapshot.devices.gpu.0.temperature-celsius`. The beginning may be left out where what
//! remains is found in the snapshot, its devices, the tiers or the request. A value is WAVE;
//! a bare number sets the `value` of a sample, `none` takes a value away, and a value that
//! was absent may be set.

use serde_json::{Map, Value as Json, json};
use wasm_wave::value::{Type, Value};
use wasm_wave::wasm::{WasmType, WasmTypeKind as Kind};

use crate::wave::{self, snake};

/// Something that paths may begin with.
pub(crate) struct Root {
    pub name: &'static str,
    pub ty: Type,
    pub json: Json,
}

/// Where an unrooted path is looked for, in this order.
const BEGINNINGS: [&str; 6] = [
    "",
    "snapshot.devices.",
    "tiers.",
    "snapshot.",
    "request.",
    "classification.",
];

/// Sets one value. Answers the whole path of what was set.
///
/// # Errors
/// The path is unknown (with the nearest known one), or the value does not fit its type.
pub(crate) fn set(roots: &mut [Root], path: &str, text: &str) -> Result<String, String> {
    for beginning in BEGINNINGS {
        let whole = format!("{beginning}{path}");
        for root in &mut *roots {
            let Some(rest) = after(&whole, root.name) else {
                continue;
            };
            // On a copy: a value that does not fit must leave no blank record behind.
            let mut json = root.json.clone();
            if let Some((place, ty)) = find(&mut json, &root.ty, rest) {
                *place = leaf(place, &ty, text)
                    .map_err(|why| format!("{whole} cannot be {text}: {why}"))?;
                root.json = json;
                return Ok(whole);
            }
        }
    }
    let known = roots.iter().flat_map(|root| {
        let mut paths = Vec::new();
        walk(&root.json, &root.ty, root.name, &mut paths);
        paths
    });
    let short = |whole: &str| {
        let mut short = BEGINNINGS.iter().filter(|b| !b.is_empty());
        let short = short.find_map(|beginning| whole.strip_prefix(beginning));
        short.unwrap_or(whole).to_string()
    };
    let nearest = known.min_by_key(|whole| {
        let distance = |known: &str| strsim::damerau_levenshtein(path, known);
        distance(whole).min(distance(&short(whole)))
    });
    Err(match nearest {
        Some(nearest) => format!("there is no {path} in this decision; the nearest is {nearest}"),
        None => format!("there is no {path}: this decision has no inputs"),
    })
}

/// What follows `name` and a dot, or nothing where the path ends with it.
fn after<'a>(path: &'a str, name: &str) -> Option<&'a str> {
    let rest = path.strip_prefix(name)?;
    if rest.is_empty() {
        return Some("");
    }
    rest.strip_prefix('.')
}

/// The place that a path names. Absent records on the way come into being only when the
/// path is good to its end.
fn find<'a>(json: &'a mut Json, ty: &Type, path: &str) -> Option<(&'a mut Json, Type)> {
    if path.is_empty() {
        return Some((json, ty.clone()));
    }
    match ty.kind() {
        Kind::Option => {
            let inner = ty.option_some_type()?;
            if json.is_null() {
                let mut blank = blank(&inner);
                find(&mut blank, &inner, path)?;
                *json = blank;
            }
            find(json, &inner, path)
        }
        Kind::Record => {
            let (name, ty, rest) = ty.record_fields().find_map(|(name, ty)| {
                let rest = after(path, &name)?;
                Some((snake(&name), ty, rest))
            })?;
            find(json.get_mut(&name)?, &ty, rest)
        }
        Kind::Flags => {
            let name = ty.flags_names().find(|name| **name == *path)?;
            let flags = json.as_object_mut()?;
            let flag = flags.entry(snake(&name)).or_insert(Json::Bool(false));
            Some((flag, Type::BOOL))
        }
        Kind::List => {
            let item = ty.list_element_type()?;
            let items = json.as_array_mut()?;
            let mut best: Option<(usize, usize)> = None;
            for (index, value) in items.iter().enumerate() {
                for key in [key_of(value), Some(index.to_string())]
                    .into_iter()
                    .flatten()
                {
                    let longer = best.is_none_or(|(_, len)| key.len() > len);
                    if longer && after(path, &key).is_some() {
                        best = Some((index, key.len()));
                    }
                }
            }
            let (index, len) = best?;
            let rest = path[len..].trim_start_matches('.');
            let place = items.get_mut(index)?;
            // An attribute is its value.
            if is_attribute(&item) {
                let ty = item.tuple_element_types().nth(1)?;
                return find(place.get_mut(1)?, &ty, rest);
            }
            find(place, &item, rest)
        }
        Kind::Tuple => {
            let (index, ty, rest) = ty
                .tuple_element_types()
                .enumerate()
                .find_map(|(index, ty)| Some((index, ty, after(path, &index.to_string())?)))?;
            find(json.get_mut(index)?, &ty, rest)
        }
        _ => None,
    }
}

/// What a list calls its item: the id, the scope, or the key of an attribute.
fn key_of(item: &Json) -> Option<String> {
    let key = ["id", "scope"].into_iter().find_map(|key| item.get(key));
    let key = key.or_else(|| item.get(0))?;
    key.as_str().map(str::to_string)
}

fn is_attribute(item: &Type) -> bool {
    let mut parts = item.tuple_element_types();
    parts.next().is_some_and(|key| key.kind() == Kind::String)
}

fn is_sample(ty: &Type) -> bool {
    let names: Vec<String> = ty
        .record_fields()
        .map(|(name, _)| name.to_string())
        .collect();
    names.iter().any(|name| name == "origin") && names.iter().any(|name| name == "value")
}

/// The new value of a place.
fn leaf(old: &Json, ty: &Type, text: &str) -> Result<Json, String> {
    match ty.kind() {
        Kind::Option if text == "none" => Ok(Json::Null),
        Kind::Option => {
            let inner = ty.option_some_type().ok_or("a type without a value")?;
            let text = text
                .strip_prefix("some(")
                .and_then(|t| t.strip_suffix(')'))
                .unwrap_or(text);
            leaf(old, &inner, text)
        }
        Kind::Record if is_sample(ty) && text.parse::<f64>().is_ok_and(f64::is_finite) => {
            let mut sample = if old.is_null() {
                blank(ty)
            } else {
                old.clone()
            };
            sample["value"] = json!(text.parse::<f64>().unwrap_or_default());
            Ok(sample)
        }
        Kind::String => {
            Ok(wave::parse(ty, text).map_or_else(|_| text.into(), |value| wave::to_json(&value)))
        }
        Kind::Variant => wave::parse(ty, text)
            .map(|value| wave::to_json(&value))
            .or_else(|error| {
                // Attributes: the kind of value can be seen.
                let seen = ["true", "false"].contains(&text) || text.parse::<f64>().is_ok();
                let bare = serde_json::from_str(text).unwrap_or_else(|_| Json::from(text));
                let fits = wave::of_json(&bare, ty).is_some();
                if fits && (seen || old.is_string()) {
                    Ok(bare)
                } else {
                    Err(error)
                }
            }),
        _ => wave::parse(ty, text).map(|value| wave::to_json(&value)),
    }
}

/// A value of this type that says as little as possible.
fn blank(ty: &Type) -> Json {
    match ty.kind() {
        Kind::Bool => Json::Bool(false),
        Kind::String => Json::from(""),
        Kind::List => Json::Array(Vec::new()),
        Kind::Option => Json::Null,
        Kind::Flags => Json::Object(Map::new()),
        Kind::Enum => ty
            .enum_cases()
            .next()
            .map_or(Json::Null, |c| Json::from(&*c)),
        Kind::Record => {
            let fields = ty
                .record_fields()
                .map(|(name, ty)| (snake(&name), blank(&ty)));
            Json::Object(fields.collect())
        }
        Kind::Tuple => ty.tuple_element_types().map(|ty| blank(&ty)).collect(),
        Kind::F32 | Kind::F64 => json!(0.0),
        _ => json!(0),
    }
}

/// All paths of a value that could be set.
fn walk(json: &Json, ty: &Type, at: &str, paths: &mut Vec<String>) {
    match ty.kind() {
        Kind::Option => {
            let Some(inner) = ty.option_some_type() else {
                return;
            };
            let blank = blank(&inner);
            let json = if json.is_null() { &blank } else { json };
            walk(json, &inner, at, paths);
        }
        Kind::Record => {
            if is_sample(ty) {
                paths.push(at.to_string());
            }
            for (name, ty) in ty.record_fields() {
                walk(&json[snake(&name)], &ty, &format!("{at}.{name}"), paths);
            }
        }
        Kind::Flags => paths.extend(ty.flags_names().map(|name| format!("{at}.{name}"))),
        Kind::List => {
            let Some(item) = ty.list_element_type() else {
                return;
            };
            for (index, value) in json.as_array().into_iter().flatten().enumerate() {
                let key = key_of(value).unwrap_or_else(|| index.to_string());
                let at = format!("{at}.{key}");
                if is_attribute(&item) {
                    paths.push(at);
                } else {
                    walk(value, &item, &at, paths);
                }
            }
        }
        Kind::Tuple => {
            for (index, ty) in ty.tuple_element_types().enumerate() {
                walk(&json[index], &ty, &format!("{at}.{index}"), paths);
            }
        }
        _ => paths.push(at.to_string()),
    }
}

/// Where two values of one type begin to differ.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Difference {
    /// Path of the first field that differs; empty where the whole value does.
    pub path: String,
    /// As it was.
    pub from: String,
    /// As it is.
    pub to: String,
}

/// The first difference of two values, in the order of the contract's fields.
pub(crate) fn first_difference(ty: &Type, from: &Value, to: &Value) -> Option<Difference> {
    differ(ty, &wave::to_json(from), &wave::to_json(to), "")
}

fn differ(ty: &Type, from: &Json, to: &Json, at: &str) -> Option<Difference> {
    if from == to {
        return None;
    }
    let under = |name: &str| match at {
        "" => name.to_string(),
        at => format!("{at}.{name}"),
    };
    let inner = match ty.kind() {
        Kind::Option if !from.is_null() && !to.is_null() => {
            differ(&ty.option_some_type()?, from, to, at)
        }
        Kind::Record => ty.record_fields().find_map(|(name, ty)| {
            let field = snake(&name);
            differ(&ty, &from[&field], &to[&field], &under(&name))
        }),
        Kind::List | Kind::Tuple => {
            let (from, to) = (from.as_array()?, to.as_array()?);
            let item = |index: usize| match ty.kind() {
                Kind::List => ty.list_element_type(),
                _ => ty.tuple_element_types().nth(index),
            };
            let pairs = from.iter().zip(to).enumerate();
            let first = pairs
                .filter_map(|(i, (a, b))| differ(&item(i)?, a, b, &under(&i.to_string())))
                .next();
            first.or_else(|| {
                let count = |list: &Vec<Json>| format!("{} items", list.len());
                (from.len() != to.len()).then(|| Difference {
                    path: at.to_string(),
                    from: count(from),
                    to: count(to),
                })
            })
        }
        Kind::Variant => {
            let case = |json: &Json| json.as_object().and_then(|o| o.keys().next().cloned());
            let (a, b) = (case(from), case(to));
            match a.filter(|a| b.as_ref() == Some(a)) {
                Some(case) => {
                    let ty = ty.variant_cases().find(|(name, _)| *name == case)?.1?;
                    differ(&ty, &from[&case], &to[&case], &under(&case))
                }
                None => None,
            }
        }
        _ => None,
    };
    inner.or_else(|| {
        let shown =
            |json: &Json| wave::of_json(json, ty).map_or_else(String::new, |v| wave::print(&v));
        Some(Difference {
            path: at.to_string(),
            from: shown(from),
            to: shown(to),
        })
    })
}

#[cfg(test)]
mod tests {
    use homeostat_hooks::{Attribute, Device, Sample, Snapshot, TierView, Value as Attr};

    use super::*;
    use crate::wave::contract_type;

    fn roots() -> Vec<Root> {
        let hot: Attribute = ("house.hot.water".into(), Attr::Number(1.0));
        let snapshot = Snapshot {
            devices: vec![
                Device {
                    id: "gpu.0".into(),
                    temperature_celsius: Some(Sample {
                        age_ms: 7,
                        ..Sample::measured(60.0)
                    }),
                    ..Device::default()
                },
                Device {
                    id: "gpu.01".into(),
                    ..Device::default()
                },
            ],
            attributes: vec![hot],
            ..Snapshot::default()
        };
        let tiers = vec![TierView {
            id: "small".into(),
            ..TierView::default()
        }];
        vec![
            Root {
                name: "snapshot",
                ty: contract_type("snapshot"),
                json: serde_json::to_value(snapshot).unwrap(),
            },
            Root {
                name: "tiers",
                ty: Type::list(contract_type("tier")),
                json: serde_json::to_value(tiers).unwrap(),
            },
        ]
    }

    fn after_set(path: &str, text: &str) -> (Snapshot, Vec<TierView>) {
        let mut roots = roots();
        set(&mut roots, path, text).unwrap_or_else(|e| panic!("{e}"));
        let snapshot = wave::record(&roots[0].json).unwrap();
        (snapshot, wave::record(&roots[1].json).unwrap())
    }

    #[test]
    fn a_sample_keeps_its_provenance_and_an_absent_one_comes_into_being() {
        let (snapshot, _) = after_set("gpu.0.temperature-celsius", "95");
        let sample = snapshot.devices[0].temperature_celsius.unwrap();
        assert_eq!((sample.value, sample.age_ms), (95.0, 7));
        let (snapshot, _) = after_set("snapshot.devices.gpu.01.power-watts", "120.5");
        let sample = snapshot.devices[1].power_watts;
        assert_eq!(sample, Some(Sample::measured(120.5)));
        let (snapshot, _) = after_set("gpu.0.temperature-celsius", "none");
        assert_eq!(snapshot.devices[0].temperature_celsius, None);
        let (snapshot, _) = after_set("gpu.0.temperature-celsius.age-ms", "9");
        assert_eq!(snapshot.devices[0].temperature_celsius.unwrap().age_ms, 9);
    }

    #[test]
    fn enums_flags_tuples_attributes_and_options_can_be_set() {
        use homeostat_hooks::MetabolicState;
        let (snapshot, _) = after_set("metabolism.state", "critical");
        assert_eq!(snapshot.metabolism.state, MetabolicState::Critical);
        let (snapshot, _) = after_set("metabolism.causes.thermal", "true");
        assert!(snapshot.metabolism.causes.thermal);
        let (snapshot, _) = after_set("supply.charge-ratio", "0.25");
        assert_eq!(snapshot.supply.unwrap().charge_ratio, Some(0.25));
        let (snapshot, _) = after_set("snapshot.attributes.house.hot.water", "2.5");
        assert_eq!(snapshot.attributes[0].1, Attr::Number(2.5));
        let (_, tiers) = after_set("small.quality.2", "0.5");
        assert_eq!(tiers[0].quality.2, 0.5);
        let (_, tiers) = after_set("tiers.0.model", "a name");
        assert_eq!(tiers[0].model, "a name");
    }

    #[test]
    fn an_unknown_path_is_refused_with_the_nearest_known_one_and_changes_nothing() {
        let mut roots = roots();
        let before = roots[0].json.clone();
        for (path, nearest) in [
            ("gpu.0.temprature-celsius", "gpu.0.temperature-celsius"),
            ("tiers.smal.ready", "tiers.small.ready"),
            ("snapshot.suply.on-battery", "snapshot.supply.on-battery"),
            ("supply.nonsense", "snapshot.supply"),
        ] {
            let error = set(&mut roots, path, "1").unwrap_err();
            assert!(error.contains(nearest), "{error}");
        }
        let error = set(&mut roots, "metabolism.state", "hot").unwrap_err();
        assert!(error.contains("snapshot.metabolism.state"), "{error}");
        assert!(set(&mut roots, "gpu.0.health", "95").is_err());
        assert_eq!(roots[0].json, before);
    }

    #[test]
    fn the_first_difference_is_named_by_its_path() {
        use homeostat_hooks::{Decision, Plan, Step};
        let plan = |tiers: &[&str]| {
            let steps = tiers.iter().map(|tier| Step {
                tier: (*tier).into(),
                ..Step::default()
            });
            Decision::Plan(Plan {
                steps: steps.collect(),
                ..Plan::default()
            })
        };
        let differ = |a: &Decision, b: &Decision| {
            use crate::wave::Spoken;
            let ty = contract_type("decision");
            first_difference(&ty, &a.value().unwrap(), &b.value().unwrap())
        };
        assert_eq!(differ(&plan(&["a"]), &plan(&["a"])), None);
        let found = differ(&plan(&["a", "b"]), &plan(&["a", "c"])).unwrap();
        assert_eq!(found.path, "plan.steps.1.tier");
        assert_eq!((found.from.as_str(), found.to.as_str()), ("\"b\"", "\"c\""));
        let found = differ(&plan(&["a"]), &plan(&["a", "b"])).unwrap();
        assert_eq!(
            (found.from.as_str(), found.to.as_str()),
            ("1 items", "2 items")
        );
    }
}
