//! What a guest says, within bounds.
//!
//! `wasi:logging`, stdout and stderr end here. A call has a budget of bytes; what goes
//! beyond is dropped and counted, so a flood costs the guest its own time and nobody
//! else's disk. A line costs what it takes there, also one that says nothing.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tokio::io::AsyncWrite;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamResult};

use crate::bindings::wasi::logging::logging::Level;
use crate::tape::Tape;

/// What one `write` of a standard stream may bring: the size WASI streams use elsewhere.
const WRITE_BYTES: usize = 4096;
/// Longest context of a message.
const CONTEXT_BYTES: usize = 128;
/// What a line takes besides context and message: time, level, the policy's name.
const LINE_BYTES: usize = 64;

/// The log of one instance.
#[derive(Debug)]
pub(crate) struct GuestLog {
    policy: Arc<str>,
    per_call: u32,
    budget: Mutex<Budget>,
}

#[derive(Debug, Default, Clone, Copy)]
struct Budget {
    left: u32,
    dropped: u64,
}

impl GuestLog {
    pub fn new(policy: Arc<str>, per_call: u32) -> Self {
        let budget = Mutex::new(Budget {
            left: per_call,
            dropped: 0,
        });
        Self {
            policy,
            per_call,
            budget,
        }
    }

    fn budget(&self) -> std::sync::MutexGuard<'_, Budget> {
        self.budget.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new call: a new budget. Answers the bytes that the call before dropped.
    pub fn next_call(&self) -> u64 {
        let fresh = Budget {
            left: self.per_call,
            dropped: 0,
        };
        std::mem::replace(&mut *self.budget(), fresh).dropped
    }

    /// Takes a message, or as much of it as the budget allows.
    pub fn message(&self, level: Level, context: &str, message: &str) {
        let context = cut(context, CONTEXT_BYTES);
        let line = LINE_BYTES + context.len();
        let granted = {
            let mut budget = self.budget();
            let Some(left) = (budget.left as usize).checked_sub(line) else {
                budget.dropped += (line + message.len()) as u64;
                return;
            };
            let granted = message.len().min(left);
            budget.left = (left - granted) as u32;
            budget.dropped += (message.len() - granted) as u64;
            granted
        };
        let text = cut(message, granted);
        let policy = &*self.policy;
        match level {
            Level::Trace => tracing::trace!(policy, context, "{text}"),
            Level::Debug => tracing::debug!(policy, context, "{text}"),
            Level::Info => tracing::info!(policy, context, "{text}"),
            Level::Warn => tracing::warn!(policy, context, "{text}"),
            Level::Error | Level::Critical => tracing::error!(policy, context, "{text}"),
        }
    }
}

/// At most `bytes` of `text`, ending at a character.
fn cut(text: &str, bytes: usize) -> &str {
    let mut end = bytes.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// Stdout or stderr of a guest.
pub(crate) struct Stream {
    pub log: Arc<GuestLog>,
    pub tape: Option<Arc<Tape>>,
    pub name: &'static str,
}

impl IsTerminal for Stream {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for Stream {
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        // Only WASI 0.3 asks for this; its imports are refused at admission.
        Box::new(tokio::io::empty())
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(Stream {
            log: Arc::clone(&self.log),
            tape: self.tape.clone(),
            name: self.name,
        })
    }
}

impl OutputStream for Stream {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        let text = String::from_utf8_lossy(&bytes);
        if let Some(tape) = &self.tape {
            let call = match self.name {
                "stdout" => "wasi:cli/stdout#write",
                _ => "wasi:cli/stderr#write",
            };
            tape.note(call, text.to_string(), ());
        }
        self.log
            .message(Level::Info, self.name, text.trim_end_matches('\n'));
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(WRITE_BYTES)
    }
}

#[wasmtime_wasi::async_trait]
impl Pollable for Stream {
    async fn ready(&mut self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_cut_counted_and_forgiven_at_the_next_call() {
        let line = LINE_BYTES as u32 + 1;
        let log = GuestLog::new("p".into(), 2 * line + 8);
        for _ in 0..5 {
            log.message(Level::Info, "c", "12345");
        }
        let lost = 2 + 3 * (u64::from(line) + 5);
        assert_eq!(log.next_call(), lost);
        log.message(Level::Info, "c", "12345678");
        assert_eq!(log.next_call(), 0);
    }

    #[test]
    fn a_flood_of_lines_that_say_nothing_is_a_flood() {
        let log = Arc::new(GuestLog::new("p".into(), 1000));
        let context = "c".repeat(1000);
        for _ in 0..100 {
            log.message(Level::Info, &context, "");
        }
        // Five lines of 64 + 128 bytes fit.
        assert_eq!(log.next_call(), 95 * 192);
        let mut stdout = Stream {
            log: Arc::clone(&log),
            tape: None,
            name: "stdout",
        };
        for _ in 0..100 {
            stdout.write(Bytes::from_static(b"\n")).unwrap();
        }
        assert_eq!(log.next_call(), (100 - 1000 / 70) * 70);
    }

    #[test]
    fn texts_are_cut_between_characters() {
        assert_eq!(cut("aé", 2), "a");
        assert_eq!(cut("aé", 3), "aé");
        assert_eq!(cut("", 3), "");
    }
}
