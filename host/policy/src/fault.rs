//! Turns every failure of a guest into one of five words and a sentence for its author.
//!
//! The order of the questions matters: a guest whose `memory.grow` was refused usually
//! dies by `unreachable` a moment later, and what its author must hear is "memory".

use homeostat_hooks::{Fault, FaultKind};
use wasmtime::component::ResourceTableError;
use wasmtime::{Trap, WasmBacktrace};

use crate::bindings::types;

/// Frames of a backtrace that are told; the innermost name the culprit.
const FRAMES_MAX: usize = 6;
/// Longest name of a frame; mangled generic names are longer than anybody reads.
const NAME_CHARS_MAX: usize = 60;
/// Longest text that a guest may put into a fault.
const GUEST_TEXT_CHARS_MAX: usize = 300;

/// How the fault of a policy begins that found its model not ready.
pub(crate) const UNAVAILABLE: &str = "the policy answered error.unavailable";

/// Classifies an error of wasmtime. `refusal` is what the meter refused during the call.
pub(crate) fn of_error(
    error: &wasmtime::Error,
    refusal: Option<String>,
    deadline_ms: u32,
) -> Fault {
    let trap = error.downcast_ref::<Trap>().copied();
    let (kind, text) = if trap == Some(Trap::Interrupt) {
        (
            FaultKind::Deadline,
            format!("no answer within {deadline_ms} ms (limits.deadline_ms)"),
        )
    } else if trap == Some(Trap::OutOfFuel) {
        (
            FaultKind::Deadline,
            "no answer within the fuel of a metered engine".into(),
        )
    } else if let Some(refusal) = refusal {
        (FaultKind::Memory, refusal)
    } else if let Some(exit) = error.downcast_ref::<wasmtime_wasi::I32Exit>() {
        (
            FaultKind::Trap,
            format!("the policy called exit({})", exit.0),
        )
    } else if let Some(trap) = trap {
        (FaultKind::Trap, trap.to_string())
    } else {
        of_host_refusal(error)
    };
    Fault::new(kind, format!("{text}{}", backtrace(error)))
}

/// Errors that the host raised while it served the guest.
fn of_host_refusal(error: &wasmtime::Error) -> (FaultKind, String) {
    let root = error.root_cause().to_string();
    // wasmtime keeps the type of this error to itself; a test holds on to the wording.
    if root.contains("fuel allocated for hostcalls has been exhausted") {
        return (
            FaultKind::Memory,
            "more data handed to the host than limits.hostcall_bytes".into(),
        );
    }
    if matches!(
        error.downcast_ref::<ResourceTableError>(),
        Some(ResourceTableError::Full)
    ) {
        return (
            FaultKind::Memory,
            "more handles open than limits.handles".into(),
        );
    }
    if error
        .downcast_ref::<wasmtime::PoolConcurrencyLimitError>()
        .is_some()
        || root.contains("exceeds memory limits")
        || root.contains("exceeds table limits")
    {
        return (FaultKind::Memory, root);
    }
    (FaultKind::Trap, chain(error))
}

/// The whole chain of causes in one line.
pub(crate) fn chain(error: &wasmtime::Error) -> String {
    let causes: Vec<String> = error
        .chain()
        .map(ToString::to_string)
        .filter(|text| !text.starts_with("error while executing"))
        .collect();
    causes.join(": ")
}

fn backtrace(error: &wasmtime::Error) -> String {
    let Some(trace) = error.downcast_ref::<WasmBacktrace>() else {
        return String::new();
    };
    let names: Vec<String> = trace
        .frames()
        .iter()
        .take(FRAMES_MAX)
        .map(|frame| {
            let name = frame.func_name().unwrap_or("?");
            let name = demangled(name);
            name.chars().take(NAME_CHARS_MAX).collect()
        })
        .collect();
    if names.is_empty() {
        return String::new();
    }
    format!(" in {}", names.join(" < "))
}

/// The readable part of a legacy Rust symbol, `_ZN4core9panicking5panic17h…E`; other
/// names as they are.
fn demangled(name: &str) -> String {
    let Some(mut rest) = name.strip_prefix("_ZN") else {
        return name.to_string();
    };
    let mut parts = Vec::new();
    loop {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (Ok(len), tail) = (rest[..digits].parse::<usize>(), &rest[digits..]) else {
            break;
        };
        let Some(part) = tail.get(..len) else { break };
        parts.push(part);
        rest = &tail[len..];
    }
    // The last part is a hash.
    parts.pop();
    if parts.is_empty() {
        return name.to_string();
    }
    parts.join("::")
}

/// The guest answered with an error of its own.
pub(crate) fn of_guest(error: types::Error) -> Fault {
    let (kind, what, text) = match error {
        types::Error::Denied(t) => (FaultKind::Denied, "denied", t),
        types::Error::Unavailable(t) => (FaultKind::Invalid, "unavailable", t),
        types::Error::InvalidArgument(t) => (FaultKind::Invalid, "invalid-argument", t),
        types::Error::LimitExceeded(t) => (FaultKind::Invalid, "limit-exceeded", t),
        types::Error::Internal(t) => (FaultKind::Invalid, "internal", t),
        types::Error::Other(t) => (FaultKind::Invalid, "other", t),
    };
    let text: String = text.chars().take(GUEST_TEXT_CHARS_MAX).collect();
    Fault::new(kind, format!("the policy answered error.{what}: {text}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rust_names_are_told_without_their_hashes() {
        assert_eq!(
            demangled("_ZN4core9panicking5panic17h0123456789abcdefE"),
            "core::panicking::panic"
        );
        assert_eq!(demangled("_ZN999x"), "_ZN999x");
        assert_eq!(demangled("_ZN"), "_ZN");
        assert_eq!(demangled("plain"), "plain");
    }

    #[test]
    fn an_interrupt_is_a_deadline_even_when_memory_was_refused_before() {
        let fault = of_error(&Trap::Interrupt.into(), Some("memory".into()), 7);
        assert_eq!(fault.kind, FaultKind::Deadline);
        assert!(fault.detail.contains("7 ms"));
    }

    #[test]
    fn a_trap_after_a_refused_growth_is_told_as_memory() {
        let error = wasmtime::Error::from(Trap::UnreachableCodeReached);
        assert_eq!(
            of_error(&error, Some("limit".into()), 1).kind,
            FaultKind::Memory
        );
        assert_eq!(of_error(&error, None, 1).kind, FaultKind::Trap);
    }

    #[test]
    fn a_guests_own_denied_is_denied_and_its_text_is_cut() {
        let fault = of_guest(types::Error::Denied("x".repeat(10_000)));
        assert_eq!(fault.kind, FaultKind::Denied);
        assert!(fault.detail.len() < 500);
    }
}
