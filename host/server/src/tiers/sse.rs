//! Reads server-sent events from bytes that arrive in any pieces.
//!
//! Follows the HTML standard's event stream format as far as OpenAI-compatible servers
//! use it: `data` fields, comments, all three line ends, a leading byte order mark.
//! Names, ids and retry times of events are dropped. It refuses to hold an endless
//! line.

/// Bytes of one line or one event: far beyond any chunk of an answer, far below what
/// would hurt.
const EVENT_BYTES_MAX: usize = 4 << 20;

/// Why the bytes are no event stream.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SseError {
    #[error("an event is longer than {EVENT_BYTES_MAX} bytes")]
    TooLong,
    #[error("an event is not valid UTF-8")]
    NotUtf8,
}

/// The parser; feed it bytes, take events.
#[derive(Debug, Default)]
pub struct SseParser {
    line: Vec<u8>,
    data: Vec<u8>,
    has_data: bool,
    /// The last line ended with a carriage return; a line feed now belongs to it.
    after_return: bool,
    began: bool,
}

impl SseParser {
    /// Take in bytes; the complete events among them are appended to `events`.
    pub fn feed(&mut self, bytes: &[u8], events: &mut Vec<String>) -> Result<(), SseError> {
        for &byte in bytes {
            if std::mem::take(&mut self.after_return) && byte == b'\n' {
                continue;
            }
            match byte {
                b'\n' | b'\r' => {
                    self.after_return = byte == b'\r';
                    self.end_of_line(events)?;
                }
                _ => self.line.push(byte),
            }
            if self.line.len() + self.data.len() > EVENT_BYTES_MAX {
                return Err(SseError::TooLong);
            }
        }
        Ok(())
    }

    /// The bytes have ended: an event whose empty line is missing counts as complete,
    /// because some servers close right after their last line.
    pub fn end(&mut self, events: &mut Vec<String>) -> Result<(), SseError> {
        if !self.line.is_empty() {
            self.end_of_line(events)?;
        }
        self.end_of_line(events)
    }

    fn end_of_line(&mut self, events: &mut Vec<String>) -> Result<(), SseError> {
        let mut line = std::mem::take(&mut self.line);
        if !std::mem::replace(&mut self.began, true) && line.starts_with(b"\xef\xbb\xbf") {
            line.drain(..3);
        }
        if line.is_empty() {
            return self.end_of_event(events);
        }
        let value = match line.strip_prefix(b"data") {
            Some(b"") => &b""[..],
            Some(rest) => match rest.strip_prefix(b":") {
                Some(value) => value.strip_prefix(b" ").unwrap_or(value),
                None => return Ok(()),
            },
            None => return Ok(()),
        };
        if std::mem::replace(&mut self.has_data, true) {
            self.data.push(b'\n');
        }
        self.data.extend_from_slice(value);
        Ok(())
    }

    fn end_of_event(&mut self, events: &mut Vec<String>) -> Result<(), SseError> {
        if std::mem::take(&mut self.has_data) {
            let data = std::mem::take(&mut self.data);
            events.push(String::from_utf8(data).map_err(|_| SseError::NotUtf8)?);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(pieces: &[&[u8]]) -> Result<Vec<String>, SseError> {
        let mut parser = SseParser::default();
        let mut events = Vec::new();
        for piece in pieces {
            parser.feed(piece, &mut events)?;
        }
        parser.end(&mut events)?;
        Ok(events)
    }

    #[test]
    fn an_event_may_be_cut_anywhere() {
        let text =
            "\u{feff}: hello\r\ndata: {\"a\":\"é€😀\"}\r\n\r\nevent: x\ndata:one\rdata: two\r\r\
                    data: [DONE]\n\n"
                .as_bytes();
        let expected = ["{\"a\":\"é€😀\"}", "one\ntwo", "[DONE]"];
        for cut in 0..text.len() {
            let (a, b) = text.split_at(cut);
            assert_eq!(parse(&[a, b]).unwrap(), expected, "cut at {cut}");
        }
        let single: Vec<&[u8]> = text.chunks(1).collect();
        assert_eq!(parse(&single).unwrap(), expected);
    }

    #[test]
    fn a_last_event_without_its_empty_line_counts() {
        assert_eq!(parse(&[b"data: a\n\ndata: b"]).unwrap(), ["a", "b"]);
    }

    #[test]
    fn fields_other_than_data_and_events_without_data_are_dropped() {
        assert_eq!(parse(&[b"id: 1\n\ndatabase: x\n\n:\n\n"]).unwrap(), [""; 0]);
        assert_eq!(parse(&[b"data\n\n"]).unwrap(), [""]);
    }

    #[test]
    fn endless_lines_and_broken_text_are_errors() {
        let long = vec![b'x'; EVENT_BYTES_MAX + 1];
        assert_eq!(parse(&[&long]), Err(SseError::TooLong));
        assert_eq!(parse(&[b"data: \xff\n\n"]), Err(SseError::NotUtf8));
    }
}
