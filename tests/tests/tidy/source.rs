//! As much of Rust's grammar as the house rules need: what is code and what is not, where
//! words are, where a function ends. It refuses nothing; on text that is no Rust it
//! returns nonsense and does not panic.

/// The text with comments and the insides of literals blanked, line for line and byte for
/// byte.
pub fn code_only(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let end = match literal_or_comment(bytes, at) {
            Some(end) => end.min(bytes.len()),
            None => {
                out.push(bytes[at]);
                at += 1;
                continue;
            }
        };
        out.extend(
            bytes[at..end]
                .iter()
                .map(|&b| if b == b'\n' { b } else { b' ' }),
        );
        at = end;
    }
    String::from_utf8(out).expect("whole literals were replaced")
}

/// Where the comment or literal that begins at `at` ends.
fn literal_or_comment(bytes: &[u8], at: usize) -> Option<usize> {
    let rest = &bytes[at..];
    let inside_word = at > 0 && is_word(bytes[at - 1]);
    match rest[0] {
        b'/' if rest.starts_with(b"//") => Some(at + find(rest, b"\n").unwrap_or(rest.len())),
        b'/' if rest.starts_with(b"/*") => Some(at + block_comment(rest)),
        b'"' => Some(at + quoted(rest)),
        b'\'' => character(rest).map(|len| at + len),
        b'r' | b'b' | b'c' if !inside_word => prefixed(rest).map(|len| at + len),
        _ => None,
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|w| w == needle)
}

fn block_comment(rest: &[u8]) -> usize {
    let (mut at, mut depth) = (2, 1);
    while at < rest.len() && depth > 0 {
        if rest[at..].starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if rest[at..].starts_with(b"*/") {
            depth -= 1;
            at += 2;
        } else {
            at += 1;
        }
    }
    at
}

fn quoted(rest: &[u8]) -> usize {
    let mut at = 1;
    while at < rest.len() && rest[at] != b'"' {
        at += if rest[at] == b'\\' { 2 } else { 1 };
    }
    at + 1
}

/// A character literal; `None` for a lifetime.
fn character(rest: &[u8]) -> Option<usize> {
    if rest.get(1) == Some(&b'\\') {
        let close = find(rest.get(3..)?, b"'")?;
        return Some(3 + close + 1);
    }
    let text = std::str::from_utf8(&rest[1..rest.len().min(6)])
        .or_else(|e| std::str::from_utf8(&rest[1..1 + e.valid_up_to()]))
        .ok()?;
    let len = 1 + text.chars().next()?.len_utf8();
    (rest.get(len) == Some(&b'\'')).then_some(len + 1)
}

/// `r"…"`, `r#"…"#`, `b"…"`, `b'…'`, `br"…"`, `c"…"`.
fn prefixed(rest: &[u8]) -> Option<usize> {
    let letters = rest
        .iter()
        .take_while(|b| matches!(b, b'r' | b'b' | b'c'))
        .count();
    let raw = rest[..letters].contains(&b'r');
    let hashes = rest[letters..].iter().take_while(|&&b| b == b'#').count();
    let open = letters + hashes;
    match rest.get(open)? {
        b'"' if raw => {
            let close = [b"\"".as_slice(), &b"#".repeat(hashes)].concat();
            Some(open + 1 + find(&rest[open + 1..], &close)? + close.len())
        }
        b'"' if hashes == 0 => Some(open + quoted(&rest[open..])),
        b'\'' if letters == 1 && rest[0] == b'b' => Some(open + character(&rest[open..])?),
        _ => None,
    }
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

/// A word of the code and where it begins.
pub struct Word<'a> {
    pub text: &'a str,
    pub at: usize,
    /// Counted from 1.
    pub line: usize,
}

/// Identifiers, keywords and numbers of a text that [`code_only`] has cleaned.
pub fn words(code: &str) -> Vec<Word<'_>> {
    let bytes = code.as_bytes();
    let (mut at, mut line, mut found) = (0, 1, Vec::new());
    while at < bytes.len() {
        if is_word(bytes[at]) {
            let len = bytes[at..].iter().take_while(|&&b| is_word(b)).count();
            found.push(Word {
                text: &code[at..at + len],
                at,
                line,
            });
            at += len;
        } else {
            line += usize::from(bytes[at] == b'\n');
            at += 1;
        }
    }
    found
}

/// A function with a body.
#[derive(Debug, PartialEq, Eq)]
pub struct Function {
    pub name: String,
    /// From the line of `fn` to that of the closing brace.
    pub lines: usize,
}

/// Every function of a text that [`code_only`] has cleaned.
pub fn functions(code: &str) -> Vec<Function> {
    let words = words(code);
    let mut found = Vec::new();
    for pair in words.windows(2) {
        // `fn` and its name stand side by side; in a pointer type a bracket comes first.
        if pair[0].text != "fn" || !code[pair[0].at + 2..pair[1].at].trim().is_empty() {
            continue;
        }
        if let Some(len) = body_end(&code[pair[1].at..]) {
            found.push(Function {
                name: pair[1].text.to_owned(),
                lines: code[pair[0].at..pair[1].at + len].matches('\n').count() + 1,
            });
        }
    }
    found
}

/// Where the body that follows a function's name ends; `None` for a declaration.
fn body_end(code: &str) -> Option<usize> {
    let (mut brackets, mut braces) = (0_i32, 0_i32);
    for (at, c) in code.char_indices() {
        match c {
            '(' | '[' => brackets += 1,
            ')' | ']' => brackets -= 1,
            ';' if brackets == 0 && braces == 0 => return None,
            '{' => braces += 1,
            '}' => {
                braces -= 1;
                if braces == 0 && brackets == 0 {
                    return Some(at);
                }
            }
            _ => {}
        }
    }
    None
}

#[test]
fn comments_and_literals_are_not_code() {
    let text = r###"a /* b /* c */ d */ "e \" f" 'g' '\'' b'h' r#"i " j"# l<'m> // n
o"###;
    let code = code_only(text);
    let found: Vec<&str> = words(&code).iter().map(|w| w.text).collect();
    assert_eq!(found, ["a", "l", "m", "o"]);
    assert_eq!(code.len(), text.len());
}

#[test]
fn a_function_is_measured_from_its_name_to_its_last_brace() {
    let code =
        code_only("fn a(x: [u8; 2]) -> u8 {\n if x { 1 }\n}\ntrait T { fn b(); }\nlet c: fn(u8);");
    assert_eq!(
        functions(&code),
        [Function {
            name: "a".into(),
            lines: 3
        }]
    );
}
