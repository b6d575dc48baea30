//! Small readers of plain text that several checks share.

/// Words with their letters only, in lower case.
pub(crate) fn words(text: &str) -> Vec<String> {
    text.split(|c: char| !c.is_alphanumeric())
        .filter(|w| !w.is_empty())
        .map(str::to_lowercase)
        .collect()
}

/// The same text with single blanks, in lower case: for comparisons.
pub(crate) fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for word in text.split_whitespace() {
        if !plain.is_empty() {
            plain.push(' ');
        }
        plain.extend(word.chars().flat_map(char::to_lowercase));
    }
    plain
}

/// The text up to the end of its last whole sentence or line. A full stop at the very end may
/// still become a decimal point, so it ends nothing before a blank follows.
pub(crate) fn whole_sentences(text: &str) -> &str {
    let ends = |(at, c): &(usize, char)| match *c {
        '\n' | '。' | '！' | '？' => true,
        c if c.is_whitespace() => {
            let before = text[..*at].trim_end_matches(['"', '”', '\'', '’', ')', '*']);
            before.ends_with(['.', '!', '?'])
        }
        _ => false,
    };
    let last = text.char_indices().rev().find(ends);
    &text[..last.map_or(0, |(at, c)| at + c.len_utf8())]
}

/// At most `max` characters of `text`, for findings that quote.
pub(crate) fn cut(text: &str, max: usize) -> String {
    let mut cut: String = text.chars().take(max).collect();
    if cut.len() < text.len() {
        cut.push('…');
    }
    cut
}
