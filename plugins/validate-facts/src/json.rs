//! Is this JSON? A recogniser of RFC 8259 that keeps nothing.
//!
//! It answers with the place of the first error, and refuses nesting beyond
//! [`DEPTH_MAX`], since the answer comes from a model that may write `[` for ever.

use homeostat_sdk::{Answer, Request, ResponseFormat};

const DEPTH_MAX: u32 = 128;

/// The JSON inside a code fence, when JSON was asked for and the fence is all that is
/// wrong.
pub(crate) fn unfenced<'a>(request: &Request, answer: &'a Answer) -> Option<&'a str> {
    if request.response_format == ResponseFormat::Text {
        return None;
    }
    let fenced = answer.text.trim().strip_prefix("```")?;
    let inside = fenced
        .strip_prefix("json")
        .unwrap_or(fenced)
        .strip_suffix("```")?
        .trim();
    check(inside, request.response_format)
        .is_ok()
        .then_some(inside)
}

/// Whether `text` is JSON of the form that was asked for; the error says where it is not.
pub(crate) fn check(text: &str, format: ResponseFormat) -> Result<(), String> {
    let mut reader = Reader {
        bytes: text.as_bytes(),
        at: 0,
    };
    reader.blanks();
    let first = reader.peek();
    reader.value(0)?;
    reader.blanks();
    if reader.at < reader.bytes.len() {
        return Err(format!("text goes on after the JSON at byte {}", reader.at));
    }
    if format == ResponseFormat::JsonObject && first != Some(b'{') {
        return Err("it is JSON, but no object".to_owned());
    }
    Ok(())
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn take(&mut self, byte: u8) -> bool {
        let found = self.peek() == Some(byte);
        self.at += usize::from(found);
        found
    }

    fn wrong<T>(&self, what: &str) -> Result<T, String> {
        match self.peek() {
            Some(_) => Err(format!("expected {what} at byte {}", self.at)),
            None => Err(format!("it ends where {what} is expected")),
        }
    }

    fn blanks(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    fn value(&mut self, depth: u32) -> Result<(), String> {
        if depth > DEPTH_MAX {
            return Err(format!("nested more than {DEPTH_MAX} deep"));
        }
        match self.peek() {
            Some(b'{') => self.list(depth, b'}', true),
            Some(b'[') => self.list(depth, b']', false),
            Some(b'"') => self.string(),
            Some(b'-' | b'0'..=b'9') => self.number(),
            _ => {
                for word in ["true", "false", "null"] {
                    if self.bytes[self.at..].starts_with(word.as_bytes()) {
                        self.at += word.len();
                        return Ok(());
                    }
                }
                self.wrong("a value")
            }
        }
    }

    fn list(&mut self, depth: u32, end: u8, keys: bool) -> Result<(), String> {
        self.at += 1;
        self.blanks();
        if self.take(end) {
            return Ok(());
        }
        loop {
            self.blanks();
            if keys {
                if self.peek() != Some(b'"') {
                    return self.wrong("a key in quotes");
                }
                self.string()?;
                self.blanks();
                if !self.take(b':') {
                    return self.wrong("a colon");
                }
                self.blanks();
            }
            self.value(depth + 1)?;
            self.blanks();
            if self.take(end) {
                return Ok(());
            }
            if !self.take(b',') {
                return self.wrong("a comma or the end of the list");
            }
        }
    }

    fn string(&mut self) -> Result<(), String> {
        self.at += 1;
        while let Some(byte) = self.peek() {
            match byte {
                b'"' => {
                    self.at += 1;
                    return Ok(());
                }
                b'\\' => {
                    self.at += 1;
                    let hex = match self.peek() {
                        Some(b'u') => 4,
                        Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => 0,
                        _ => return self.wrong("an escape"),
                    };
                    self.at += 1;
                    for _ in 0..hex {
                        if !self.peek().is_some_and(|b| b.is_ascii_hexdigit()) {
                            return self.wrong("a hexadecimal digit");
                        }
                        self.at += 1;
                    }
                }
                0..=0x1f => return self.wrong("no control character"),
                _ => self.at += 1,
            }
        }
        self.wrong("the end of a text")
    }

    fn digits(&mut self) -> Result<(), String> {
        let start = self.at;
        while self.peek().is_some_and(|b| b.is_ascii_digit()) {
            self.at += 1;
        }
        if self.at == start {
            self.wrong("a digit")
        } else {
            Ok(())
        }
    }

    fn number(&mut self) -> Result<(), String> {
        self.take(b'-');
        if !self.take(b'0') {
            self.digits()?;
        }
        if self.take(b'.') {
            self.digits()?;
        }
        if self.take(b'e') || self.take(b'E') {
            let _ = self.take(b'+') || self.take(b'-');
            self.digits()?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_told_from_what_only_looks_like_it() {
        for good in [
            r#"{"a": [1, -2.5e3, "x\u00e9\n", true, null], "b": {}}"#,
            " [] ",
            "0",
            r#""é""#,
        ] {
            assert_eq!(check(good, ResponseFormat::JsonSchema), Ok(()), "{good}");
        }
        for bad in [
            "",
            "{",
            "{'a': 1}",
            "{a: 1}",
            "[1,]",
            "{\"a\" 1}",
            "01",
            "1.",
            "tru",
            "\"\\x\"",
            "\"\n\"",
            "{} {}",
            "{\"a\": 1,}",
            "\"abc",
        ] {
            assert!(check(bad, ResponseFormat::JsonSchema).is_err(), "{bad}");
        }
        assert!(check("[1]", ResponseFormat::JsonObject).is_err());
        assert!(check(&"[".repeat(100_000), ResponseFormat::JsonSchema).is_err());
    }
}
