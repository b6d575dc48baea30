//! Values of the contract as text and back, by the types of `wit/`.
//!
//! Recordings keep what a policy saw and answered, and a replay must give it the very same
//! bits. JSON cannot: it has no NaN, and its readers may round the last digit of a number.
//! WAVE, the text form of component values, can, and it is what people read in `explain`.
//!
//! The host's records become WAVE through serde's data model, guided by the contract's
//! types, so that no field is written down a third time. What the guide does not expect is
//! a `None` here, never a panic.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use homeostat_hooks as h;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value as Json};
use wasm_wave::value::{Type, Value, resolve_wit_type};
use wasm_wave::wasm::{WasmType, WasmTypeKind as Kind, WasmValue};

use crate::bindings::types;
use crate::bindings::wasi::{config, keyvalue};

/// The records of the contract, by their names.
static TYPES: LazyLock<BTreeMap<String, Type>> = LazyLock::new(|| {
    let mut resolve = wit_parser::Resolve::default();
    let text = include_str!("../../../wit/types.wit");
    // The same text that the bindings were generated from: it parses, or nothing compiled.
    let package = resolve.push_source("types.wit", text).expect("wit/ parses");
    let interface = resolve.packages[package].interfaces["types"];
    let named = &resolve.interfaces[interface].types;
    let resolved = named
        .iter()
        .filter_map(|(name, id)| Some((name.clone(), resolve_wit_type(&resolve, *id).ok()?)));
    resolved.collect()
});

/// A type of `wit/types.wit`.
///
/// # Panics
/// When the contract has no such type: names are written in this crate, and tests use each.
pub(crate) fn contract_type(name: &str) -> Type {
    TYPES[name].clone()
}

/// Something that a guest can be told or can say.
pub(crate) trait Spoken: Send + Sync {
    /// As a value; none for "no value".
    fn value(&self) -> Option<Value>;

    /// What it takes in memory, roughly; recordings are bounded by the sum.
    fn bytes(&self) -> usize {
        16
    }

    /// Its type; none for "no value".
    fn ty() -> Option<Type>
    where
        Self: Sized;

    /// Back from a value of [`Self::ty`].
    fn of(value: Option<&Value>) -> Option<Self>
    where
        Self: Sized;
}

/// The text of anything spoken; empty for "no value".
pub(crate) fn text(spoken: &dyn Spoken) -> String {
    let value = spoken.value();
    value.map_or_else(String::new, |v| print(&v))
}

/// A value on one line.
pub(crate) fn print(value: &Value) -> String {
    // Only values of unsupported types cannot be written; the contract has none.
    wasm_wave::to_string(value).unwrap_or_default()
}

/// Reads what [`text`] wrote.
pub(crate) fn read<T: Spoken>(text: &str) -> Result<T, String> {
    let Some(ty) = T::ty() else {
        return T::of(None).ok_or_else(|| "a value where there is none".into());
    };
    let value = parse(&ty, text)?;
    T::of(Some(&value)).ok_or_else(|| format!("not what the host can hold: {}", short(text)))
}

/// Reads a value of this type.
pub(crate) fn parse(ty: &Type, text: &str) -> Result<Value, String> {
    wasm_wave::from_str(ty, text).map_err(|error| format!("{error} in {}", short(text)))
}

fn short(text: &str) -> String {
    text.chars().take(80).collect()
}

// ---- plain values ----------------------------------------------------------------------

macro_rules! plain {
    ($($rust:ty, $ty:expr, $make:ident, $unwrap:ident;)+) => {$(
        impl Spoken for $rust {
            fn value(&self) -> Option<Value> {
                Some(Value::$make(*self))
            }
            fn ty() -> Option<Type> {
                Some($ty)
            }
            fn of(value: Option<&Value>) -> Option<Self> {
                Some(value?.$unwrap())
            }
        }
    )+};
}

plain! {
    bool, Type::BOOL, make_bool, unwrap_bool;
    u8, Type::U8, make_u8, unwrap_u8;
    u32, Type::U32, make_u32, unwrap_u32;
    u64, Type::U64, make_u64, unwrap_u64;
    f32, Type::F32, make_f32, unwrap_f32;
}

impl Spoken for () {
    fn value(&self) -> Option<Value> {
        None
    }
    fn ty() -> Option<Type> {
        None
    }
    fn of(_: Option<&Value>) -> Option<Self> {
        Some(())
    }
}

impl Spoken for String {
    fn value(&self) -> Option<Value> {
        Some(Value::make_string(self.as_str().into()))
    }
    fn bytes(&self) -> usize {
        24 + self.len()
    }
    fn ty() -> Option<Type> {
        Some(Type::STRING)
    }
    fn of(value: Option<&Value>) -> Option<Self> {
        Some(value?.unwrap_string().into_owned())
    }
}

impl<T: Spoken> Spoken for Vec<T> {
    fn value(&self) -> Option<Value> {
        let items = self.iter().map(Spoken::value).collect::<Option<Vec<_>>>()?;
        Value::make_list(&Self::ty()?, items).ok()
    }
    fn bytes(&self) -> usize {
        // Items of one kind are about alike; embeddings are not worth a walk.
        24 + self.len() * self.first().map_or(0, Spoken::bytes)
    }
    fn ty() -> Option<Type> {
        Some(Type::list(T::ty()?))
    }
    fn of(value: Option<&Value>) -> Option<Self> {
        value?
            .unwrap_list()
            .map(|item| T::of(Some(&item)))
            .collect()
    }
}

impl<T: Spoken> Spoken for Option<T> {
    fn value(&self) -> Option<Value> {
        let some = match self {
            Some(some) => Some(some.value()?),
            None => None,
        };
        Value::make_option(&Self::ty()?, some).ok()
    }
    fn bytes(&self) -> usize {
        self.as_ref().map_or(16, Spoken::bytes)
    }
    fn ty() -> Option<Type> {
        Some(Type::option(T::ty()?))
    }
    fn of(value: Option<&Value>) -> Option<Self> {
        match value?.unwrap_option() {
            Some(some) => Some(Some(T::of(Some(&some))?)),
            None => Some(None),
        }
    }
}

impl<T: Spoken, E: Spoken> Spoken for Result<T, E> {
    fn value(&self) -> Option<Value> {
        let value = match self {
            Ok(ok) => Ok(ok.value()),
            Err(error) => Err(error.value()),
        };
        Value::make_result(&Self::ty()?, value).ok()
    }
    fn bytes(&self) -> usize {
        self.as_ref().map_or_else(Spoken::bytes, Spoken::bytes)
    }
    fn ty() -> Option<Type> {
        Some(Type::result(T::ty(), E::ty()))
    }
    fn of(value: Option<&Value>) -> Option<Self> {
        Some(match value?.unwrap_result() {
            Ok(ok) => Ok(T::of(ok.as_deref())?),
            Err(error) => Err(E::of(error.as_deref())?),
        })
    }
}

macro_rules! tuples {
    ($(($($name:ident $at:tt),+))+) => {$(
        impl<$($name: Spoken),+> Spoken for ($($name,)+) {
            fn value(&self) -> Option<Value> {
                let items = [$(self.$at.value()?),+];
                Value::make_tuple(&Self::ty()?, items).ok()
            }
            fn bytes(&self) -> usize {
                0 $(+ self.$at.bytes())+
            }
            fn ty() -> Option<Type> {
                Type::tuple(vec![$($name::ty()?),+])
            }
            fn of(value: Option<&Value>) -> Option<Self> {
                let mut items = value?.unwrap_tuple();
                Some(($({
                    let item = items.next()?;
                    $name::of(Some(&item))?
                },)+))
            }
        }
    )+};
}

tuples! {
    (A 0, B 1)
    (A 0, B 1, C 2)
}

// ---- the host's records ----------------------------------------------------------------

macro_rules! records {
    ($($rust:ty: $name:literal, $bytes:expr;)+) => {$(
        impl Spoken for $rust {
            fn value(&self) -> Option<Value> {
                of_record(self, &contract_type($name))
            }
            fn bytes(&self) -> usize {
                let bytes: fn(&Self) -> usize = $bytes;
                256 + bytes(self)
            }
            fn ty() -> Option<Type> {
                Some(contract_type($name))
            }
            fn of(value: Option<&Value>) -> Option<Self> {
                serde_json::from_value(to_json(value?)).ok()
            }
        }
    )+};
}

records! {
    h::Request: "request", |r| r.messages.iter().map(|m| 32 + m.content.len()).sum();
    h::Snapshot: "snapshot", |s| 512 * s.devices.len();
    h::Classification: "classification", |_| 0;
    h::TierView: "tier", |_| 0;
    h::Decision: "decision", |d| match d {
        h::Decision::Answer(a) => a.text.len(),
        _ => 0,
    };
    h::Answer: "answer", |a| a.text.len() + 4 * a.logprobs.len();
    h::Verdict: "verdict", |v| match v {
        h::Verdict::Amend(a) => a.text.len(),
        _ => 0,
    };
    h::Outcome: "outcome", |_| 0;
}

/// A record of the host as a value of the contract.
fn of_record(record: &impl Serialize, ty: &Type) -> Option<Value> {
    of_json(&serde_json::to_value(record).ok()?, ty)
}

/// A record of the host from its JSON.
pub(crate) fn record<T: DeserializeOwned>(json: &Json) -> Result<T, String> {
    serde_json::from_value(json.clone()).map_err(|error| error.to_string())
}

/// Serde's form of a host record as a value of this type. A number that is not finite has
/// no JSON and comes out as NaN.
pub(crate) fn of_json(json: &Json, ty: &Type) -> Option<Value> {
    Some(match ty.kind() {
        Kind::Bool => Value::make_bool(json.as_bool()?),
        Kind::U8 => Value::make_u8(json.as_u64()?.try_into().ok()?),
        Kind::U32 => Value::make_u32(json.as_u64()?.try_into().ok()?),
        Kind::U64 => Value::make_u64(json.as_u64()?),
        Kind::S64 => Value::make_s64(json.as_i64()?),
        Kind::F32 if json.is_null() => Value::make_f32(f32::NAN),
        Kind::F32 => Value::make_f32(json.as_f64()? as f32),
        Kind::F64 if json.is_null() => Value::make_f64(f64::NAN),
        Kind::F64 => Value::make_f64(json.as_f64()?),
        Kind::String => Value::make_string(json.as_str()?.into()),
        Kind::Enum => Value::make_enum(ty, json.as_str()?).ok()?,
        Kind::List => {
            let item = ty.list_element_type()?;
            let items = json.as_array()?.iter().map(|json| of_json(json, &item));
            Value::make_list(ty, items.collect::<Option<Vec<_>>>()?).ok()?
        }
        Kind::Tuple => {
            let items = json.as_array()?.iter().zip(ty.tuple_element_types());
            let items = items.map(|(json, ty)| of_json(json, &ty));
            Value::make_tuple(ty, items.collect::<Option<Vec<_>>>()?).ok()?
        }
        Kind::Record => {
            let fields: Vec<(String, Value)> = ty
                .record_fields()
                .map(|(name, ty)| Some((name.to_string(), of_json(&json[snake(&name)], &ty)?)))
                .collect::<Option<_>>()?;
            let named = fields
                .iter()
                .map(|(name, value)| (name.as_str(), value.clone()));
            Value::make_record(ty, named).ok()?
        }
        Kind::Option => {
            let some = match json {
                Json::Null => None,
                some => Some(of_json(some, &ty.option_some_type()?)?),
            };
            Value::make_option(ty, some).ok()?
        }
        Kind::Flags => {
            let names: Vec<_> = ty.flags_names().map(|name| name.to_string()).collect();
            let set = names
                .iter()
                .filter(|name| json[snake(name)] == Json::Bool(true));
            Value::make_flags(ty, set.map(String::as_str)).ok()?
        }
        Kind::Variant => {
            let (case, payload) = case_of(json, ty)?;
            let wanted = ty.variant_cases().find(|(name, _)| *name == case)?.1;
            let payload = match wanted {
                Some(ty) => Some(of_json(payload, &ty)?),
                None => None,
            };
            Value::make_variant(ty, &case, payload).ok()?
        }
        _ => return None,
    })
}

/// The case of a variant: named as serde names it, or, for the values of attributes, seen
/// from the kind of value.
fn case_of<'a>(json: &'a Json, ty: &Type) -> Option<(String, &'a Json)> {
    let untagged = ty.variant_cases().any(|(name, _)| name == "boolean");
    Some(match json {
        Json::Bool(_) => ("boolean".into(), json),
        Json::Number(n) if n.is_f64() => ("number".into(), json),
        Json::Number(_) => ("integer".into(), json),
        // The only number without JSON.
        Json::Null => ("number".into(), json),
        Json::String(_) if untagged => ("text".into(), json),
        Json::String(case) => (case.clone(), &Json::Null),
        Json::Object(object) => {
            let (case, payload) = object.iter().next()?;
            (case.clone(), payload)
        }
        Json::Array(_) => return None,
    })
}

/// A value as serde's form of the host's record.
pub(crate) fn to_json(value: &Value) -> Json {
    let option = |value: Option<std::borrow::Cow<'_, Value>>| value.map(|v| to_json(&v));
    match value.kind() {
        Kind::Bool => value.unwrap_bool().into(),
        Kind::U8 => value.unwrap_u8().into(),
        Kind::U32 => value.unwrap_u32().into(),
        Kind::U64 => value.unwrap_u64().into(),
        Kind::S64 => value.unwrap_s64().into(),
        Kind::F32 => value.unwrap_f32().into(),
        Kind::F64 => value.unwrap_f64().into(),
        Kind::String => value.unwrap_string().into(),
        Kind::Enum => value.unwrap_enum().into(),
        Kind::List => value.unwrap_list().map(|item| to_json(&item)).collect(),
        Kind::Tuple => value.unwrap_tuple().map(|item| to_json(&item)).collect(),
        Kind::Record => {
            let fields = value.unwrap_record();
            let fields = fields.map(|(name, value)| (snake(&name), to_json(&value)));
            Json::Object(fields.collect())
        }
        Kind::Option => option(value.unwrap_option()).unwrap_or(Json::Null),
        Kind::Flags => {
            let names = value.unwrap_flags();
            Json::Object(names.map(|name| (snake(&name), Json::Bool(true))).collect())
        }
        Kind::Variant => match value.unwrap_variant() {
            (case, Some(payload))
                if matches!(&*case, "boolean" | "integer" | "number" | "text") =>
            {
                to_json(&payload)
            }
            (case, Some(payload)) => {
                Json::Object(Map::from_iter([(case.into_owned(), to_json(&payload))]))
            }
            (case, None) => case.into(),
        },
        _ => Json::Null,
    }
}

/// A name of the contract as the host's records have it.
pub(crate) fn snake(name: &str) -> String {
    name.replace('-', "_")
}

// ---- what host calls answer ------------------------------------------------------------

/// An error of one text or none: its case and the text.
fn error_case(ty: Option<Type>, case: &str, text: Option<&str>) -> Option<Value> {
    let text = text.map(|text| Value::make_string(text.into()));
    Value::make_variant(&ty?, case, text).ok()
}

fn cases(cases: &[(&str, bool)]) -> Option<Type> {
    let cases = cases
        .iter()
        .map(|(name, text)| (*name, text.then_some(Type::STRING)));
    Type::variant(cases.collect::<Vec<_>>())
}

/// Errors of the contract and of the standard interfaces.
macro_rules! errors {
    ($($rust:ty { $($case:ident = $name:literal),+ ; $($bare:ident = $bare_name:literal),* })+) => {$(
        impl Spoken for $rust {
            fn value(&self) -> Option<Value> {
                match self {
                    $(Self::$case(text) => error_case(Self::ty(), $name, Some(text)),)+
                    $(Self::$bare => error_case(Self::ty(), $bare_name, None),)*
                }
            }
            fn bytes(&self) -> usize {
                match self {
                    $(Self::$case(text) => 24 + text.len(),)+
                    $(Self::$bare => 24,)*
                }
            }
            fn ty() -> Option<Type> {
                cases(&[$(($name, true),)+ $(($bare_name, false),)*])
            }
            fn of(value: Option<&Value>) -> Option<Self> {
                let (case, text) = value?.unwrap_variant();
                let text = text.map(|text| text.unwrap_string().into_owned());
                Some(match (&*case, text) {
                    $(($name, Some(text)) => Self::$case(text),)+
                    $(($bare_name, None) => Self::$bare,)*
                    _ => return None,
                })
            }
        }
    )+};
}

errors! {
    types::Error {
        Denied = "denied", Unavailable = "unavailable", InvalidArgument = "invalid-argument",
        LimitExceeded = "limit-exceeded", Internal = "internal", Other = "other";
    }
    keyvalue::store::Error {
        Other = "other"; NoSuchStore = "no-such-store", AccessDenied = "access-denied"
    }
    config::store::Error { Upstream = "upstream", Io = "io"; }
}

/// A record that stands in another file of the contract, field by field.
macro_rules! fields {
    ($($rust:ty { $($field:ident = $name:literal: $ty:ty),+ })+) => {$(
        impl Spoken for $rust {
            fn value(&self) -> Option<Value> {
                let fields = [$(($name, self.$field.value()?)),+];
                Value::make_record(&Self::ty()?, fields).ok()
            }
            fn bytes(&self) -> usize {
                0 $(+ self.$field.bytes())+
            }
            fn ty() -> Option<Type> {
                Type::record(vec![$(($name, <$ty>::ty()?)),+])
            }
            fn of(value: Option<&Value>) -> Option<Self> {
                let mut fields = value?.unwrap_record();
                Some(Self { $($field: {
                    let (_, field) = fields.next()?;
                    <$ty>::of(Some(&field))?
                }),+ })
            }
        }
    )+};
}

fields! {
    keyvalue::store::KeyResponse {
        keys = "keys": Vec<String>, cursor = "cursor": Option<u64>
    }
    h::Generated {
        text = "text": String, logprobs = "logprobs": Vec<f32>, finished = "finished": bool
    }
    h::GenerateOptions {
        max_tokens = "max-tokens": u32, temperature = "temperature": f32, seed = "seed": u64,
        stop = "stop": Vec<String>
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn there_and_back<T: Spoken + PartialEq + std::fmt::Debug>(value: &T) -> String {
        let text = text(value);
        assert_eq!(read::<T>(&text).as_ref(), Ok(value), "{text}");
        text
    }

    #[test]
    fn every_record_comes_back_from_its_text_bit_for_bit() {
        for (request, snapshot, tiers) in crate::probe::scenes() {
            there_and_back(&request);
            there_and_back(&snapshot);
            there_and_back(&tiers);
            let c = h::builtin::classify(&request);
            there_and_back(&c);
            there_and_back(&h::builtin::route(&c, &tiers, &snapshot));
        }
        // 17 digits, which quick JSON readers get wrong in the last bit.
        let sample = h::Sample::measured(0.123_456_789_012_345_67 + 61.0);
        let device = h::Device {
            id: "gpu.0".into(),
            temperature_celsius: Some(sample),
            ..h::Device::default()
        };
        let snapshot = h::Snapshot {
            devices: vec![device],
            attributes: vec![
                ("a.b".into(), h::Value::Number(2.0)),
                ("c".into(), h::Value::Integer(-3)),
                ("d".into(), h::Value::Text("undecided".into())),
                ("e".into(), h::Value::Boolean(true)),
            ],
            ..h::Snapshot::default()
        };
        let text = there_and_back(&snapshot);
        assert!(text.contains("\"a.b\", number(2)"), "{text}");
        let assessment = h::Assessment {
            confidence: 0.1,
            findings: vec![],
        };
        for verdict in [
            h::Verdict::Undecided,
            h::Verdict::Accept(assessment.clone()),
            h::Verdict::Amend(h::Amendment {
                text: "a \"quoted\"\nline ✓".into(),
                assessment,
            }),
        ] {
            there_and_back(&verdict);
        }
    }

    #[test]
    fn answers_of_host_calls_come_back_with_their_infinities() {
        type Kv<T> = Result<T, keyvalue::store::Error>;
        there_and_back::<Kv<Option<Vec<u8>>>>(&Ok(Some(vec![0, 255])));
        there_and_back::<Kv<()>>(&Err(keyvalue::store::Error::AccessDenied));
        there_and_back::<Kv<()>>(&Ok(()));
        let scores: Result<Vec<f32>, types::Error> = Ok(vec![-0.1, f32::NEG_INFINITY]);
        assert_eq!(there_and_back(&scores), "ok([-0.1, -inf])");
        let refused: Result<u32, types::Error> = Err(types::Error::Denied("x".into()));
        assert_eq!(there_and_back(&refused), "err(denied(\"x\"))");
        there_and_back(&(String::new(), 7u64));
        there_and_back(&h::Generated {
            text: "t".into(),
            logprobs: vec![1.5],
            finished: true,
        });
    }

    #[test]
    fn text_that_is_no_value_is_an_error_with_its_place() {
        assert!(read::<h::Classification>("{p-simple: 1").is_err());
        assert!(read::<h::Snapshot>("").is_err());
        assert!(read::<u32>("-1").is_err());
    }
}
