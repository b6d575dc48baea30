//! State as a document that people can read and change: how it leaves a host, and how it
//! comes into another.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::cache::{hex, unhex};

/// All entries of one policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StateExport {
    /// Name of the policy.
    pub policy: String,
    /// Version of its form; 0 = it counts none.
    #[serde(default)]
    pub version: u32,
    /// What it keeps, by key.
    pub entries: BTreeMap<String, StateValue>,
}

/// A value: text where it is text, digits where it is not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StateValue {
    /// As it is.
    Text(String),
    /// Two hexadecimal digits for every byte.
    Hex(String),
}

impl StateValue {
    pub(crate) fn of(bytes: &[u8]) -> Self {
        match std::str::from_utf8(bytes) {
            Ok(text)
                if !text
                    .chars()
                    .any(|c| c.is_control() && c != '\n' && c != '\t') =>
            {
                Self::Text(text.into())
            }
            _ => Self::Hex(hex(bytes)),
        }
    }

    pub(crate) fn bytes(&self) -> Result<Vec<u8>, String> {
        let digits = match self {
            Self::Text(text) => return Ok(text.clone().into_bytes()),
            Self::Hex(digits) => digits,
        };
        unhex(&digits.to_ascii_lowercase())
            .ok_or_else(|| "hex is not pairs of hexadecimal digits".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_comes_back_and_text_stays_readable() {
        for bytes in [
            &b"42"[..],
            b"",
            b"two\nlines",
            b"\0\x01",
            &[0xff, 0xfe],
            "ü".as_bytes(),
        ] {
            let value = StateValue::of(bytes);
            assert_eq!(value.bytes().unwrap(), bytes);
            let text = serde_json::to_string(&value).unwrap();
            assert_eq!(serde_json::from_str::<StateValue>(&text).unwrap(), value);
        }
        assert_eq!(StateValue::of(b"42"), StateValue::Text("42".into()));
        for wrong in ["0", "0g", "é"] {
            assert!(StateValue::Hex(wrong.into()).bytes().is_err(), "{wrong}");
        }
    }
}
