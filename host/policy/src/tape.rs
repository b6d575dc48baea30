//! What an instance asked the host, and what it was told, in order.
//!
//! Every import passes here ([`crate::host`]). While a request is served a tape only takes
//! notes: clones of small values, turned into text by somebody else's thread. In a replay
//! the same tape answers from a script instead: the next call that learns something must be
//! the one that was recorded, with the same arguments, or the replay ends with a [`Miss`].
//! Nothing is ever invented.
//!
//! Four things need no script, since all of them is known: the snapshot (an argument of
//! every hook), the settings and grants (recorded with the policy), random numbers (one
//! seed), and calls from which nothing is learned (logging, proposing, standard output).

use std::convert::Infallible;
use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng, TryRng};
use serde::{Deserialize, Serialize};

use crate::wave::{self, Spoken};

/// Longest text of a call in a miss.
const SHOWN_CHARS: usize = 200;

/// A host call as it stands in a recording: names of the contract, values as WAVE.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostCall {
    /// Interface and function, such as `wasi:keyvalue/store#get`.
    pub call: String,
    /// Arguments; handles stand as the names they were opened with.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub args: String,
    /// The answer; empty where the function has none, or where it is told elsewhere in the
    /// recording (the snapshot).
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub answer: String,
}

impl HostCall {
    /// Whether the guest learned something that only this line tells.
    fn is_scripted(&self) -> bool {
        is_scripted(&self.call)
    }

    fn shown(&self) -> String {
        let text = format!("{}({})", self.call, self.args);
        text.chars().take(SHOWN_CHARS).collect()
    }
}

fn is_scripted(call: &str) -> bool {
    const KNOWN: [&str; 6] = [
        "homeostat:policy/telemetry",
        "homeostat:policy/propose",
        "wasi:config/",
        "wasi:logging/",
        "wasi:random/",
        "wasi:cli/",
    ];
    !KNOWN.iter().any(|known| call.starts_with(known))
}

/// A guest asked what nobody recorded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, thiserror::Error)]
#[error("it asked {asked}; {}", recorded.as_ref().map_or_else(
    || "the recording has no further host call".to_string(),
    |call| format!("the recording has {call} here"),
))]
pub struct Miss {
    /// The call with its arguments.
    pub asked: String,
    /// The call that was recorded at this place.
    pub recorded: Option<String>,
}

/// One host call, not yet text.
pub(crate) struct Event {
    call: &'static str,
    args: Box<dyn Spoken>,
    answer: Box<dyn Spoken>,
}

impl Event {
    /// As it stands in a recording.
    pub fn line(&self) -> HostCall {
        HostCall {
            call: self.call.into(),
            args: wave::text(&*self.args),
            answer: wave::text(&*self.answer),
        }
    }
}

/// Notes of one instance.
pub(crate) struct Tape {
    /// Number of the instance within its request; 0 as long as it has none.
    instance: AtomicU32,
    /// All random numbers of the instance come from it.
    pub seed: [u8; 32],
    notes: Mutex<Notes>,
}

#[derive(Default)]
struct Notes {
    events: Vec<Event>,
    bytes: usize,
    bytes_left: usize,
    cut: bool,
    script: Option<Script>,
}

struct Script {
    calls: std::vec::IntoIter<HostCall>,
    miss: Option<Miss>,
}

/// What was noted during one call of a hook.
pub(crate) struct Taken {
    pub events: Vec<Event>,
    /// What they take in memory.
    pub bytes: usize,
    /// There was more than the recording may hold.
    pub cut: bool,
    pub miss: Option<Miss>,
}

impl Tape {
    /// A tape that takes notes of at most this size.
    pub fn recording(instance: u32, bytes: usize) -> Arc<Self> {
        let notes = Notes {
            bytes_left: bytes,
            ..Notes::default()
        };
        Arc::new(Self {
            instance: instance.into(),
            seed: rand::random(),
            notes: Mutex::new(notes),
        })
    }

    /// A tape that answers from scripts, and takes notes of what was asked.
    pub fn replaying(instance: u32, seed: [u8; 32], bytes: usize) -> Arc<Self> {
        let notes = Notes {
            bytes_left: bytes,
            script: Some(Script {
                calls: Vec::new().into_iter(),
                miss: None,
            }),
            ..Notes::default()
        };
        Arc::new(Self {
            instance: instance.into(),
            seed,
            notes: Mutex::new(notes),
        })
    }

    fn notes(&self) -> MutexGuard<'_, Notes> {
        // Notes are whole between any two statements.
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Number of the instance within its request.
    pub fn instance(&self) -> u32 {
        self.instance.load(Relaxed)
    }

    /// The instance was kept ready and has found its request, which has this number for it.
    pub fn number(&self, instance: u32) {
        self.instance.store(instance, Relaxed);
    }

    /// Nobody will read it: what was noted goes, and nothing is noted from now on.
    pub fn stop(&self) {
        let mut notes = self.notes();
        notes.events.clear();
        notes.cut = true;
    }

    /// The script of the next call of a hook.
    pub fn load(&self, calls: &[HostCall]) {
        let scripted: Vec<HostCall> = calls.iter().filter(|c| c.is_scripted()).cloned().collect();
        self.notes().script = Some(Script {
            calls: scripted.into_iter(),
            miss: None,
        });
    }

    /// What was noted since the last time.
    pub fn take(&self) -> Taken {
        let mut notes = self.notes();
        Taken {
            events: std::mem::take(&mut notes.events),
            bytes: std::mem::take(&mut notes.bytes),
            cut: notes.cut,
            miss: notes.script.as_mut().and_then(|s| s.miss.take()),
        }
    }

    pub fn is_replay(&self) -> bool {
        self.notes().script.is_some()
    }

    /// A host call: answered by `live`, or from the script, and noted.
    pub fn witness<A: Spoken + Clone + 'static>(
        &self,
        call: &'static str,
        args: impl Spoken + 'static,
        live: impl FnOnce() -> A,
    ) -> Result<A, Miss> {
        // No lock is held during a live call: a model may take its time.
        let scripted = is_scripted(call) && self.is_replay();
        let answer = if scripted {
            self.notes().next_of_script(call, &args)?
        } else {
            live()
        };
        self.notes().add(call, args, answer.clone());
        Ok(answer)
    }

    /// As [`Self::witness`], for a clock, which cannot fail: after a miss it answers
    /// anything, since the outcome of the call is the miss.
    pub fn witness_time(&self, call: &'static str, live: impl FnOnce() -> u64) -> u64 {
        self.witness(call, (), live).unwrap_or_default()
    }

    /// Something that only goes out, or whose answer is known from elsewhere.
    pub fn note(
        &self,
        call: &'static str,
        args: impl Spoken + 'static,
        answer: impl Spoken + 'static,
    ) {
        self.notes().add(call, args, answer);
    }
}

impl Notes {
    fn add(
        &mut self,
        call: &'static str,
        args: impl Spoken + 'static,
        answer: impl Spoken + 'static,
    ) {
        let bytes = size_of::<Event>() + args.bytes() + answer.bytes();
        if self.cut || bytes > self.bytes_left {
            self.cut = true;
            return;
        }
        self.bytes_left -= bytes;
        self.bytes += bytes;
        self.events.push(Event {
            call,
            args: Box::new(args),
            answer: Box::new(answer),
        });
    }

    fn next_of_script<A: Spoken>(&mut self, call: &str, args: &dyn Spoken) -> Result<A, Miss> {
        let asked = HostCall {
            call: call.into(),
            args: wave::text(args),
            answer: String::new(),
        };
        let missed = |recorded: Option<String>| Miss {
            asked: asked.shown(),
            recorded,
        };
        let Some(script) = &mut self.script else {
            return Err(missed(None));
        };
        if let Some(miss) = &script.miss {
            return Err(miss.clone());
        }
        let outcome = match script.calls.next() {
            Some(next) if next.call == asked.call && next.args == asked.args => {
                wave::read(&next.answer).map_err(|error| missed(Some(error)))
            }
            Some(other) => Err(missed(Some(other.shown()))),
            None => Err(missed(None)),
        };
        if let Err(miss) = &outcome {
            script.miss = Some(miss.clone());
        }
        outcome
    }
}

impl fmt::Debug for Tape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tape").finish_non_exhaustive()
    }
}

/// A clock's answer.
pub(crate) fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Random numbers of a guest, noted as they are drawn.
pub(crate) struct TapedRng {
    pub rng: StdRng,
    pub tape: Option<Arc<Tape>>,
    pub call: &'static str,
}

impl TapedRng {
    pub fn new(seed: [u8; 32], tape: &Option<Arc<Tape>>, call: &'static str) -> Self {
        Self {
            rng: StdRng::from_seed(seed),
            tape: tape.clone(),
            call,
        }
    }

    fn noted(&self, bytes: &[u8]) {
        if let Some(tape) = &self.tape {
            tape.note(self.call, bytes.len() as u64, bytes.to_vec());
        }
    }
}

impl TryRng for TapedRng {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        let drawn = self.rng.next_u32();
        self.noted(&drawn.to_le_bytes());
        Ok(drawn)
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        let drawn = self.rng.next_u64();
        self.noted(&drawn.to_le_bytes());
        Ok(drawn)
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        self.rng.fill_bytes(bytes);
        self.noted(bytes);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get(tape: &Tape, key: &str, live: u32) -> Result<u32, Miss> {
        tape.witness("wasi:keyvalue/store#get", key.to_string(), || live)
    }

    fn lines(tape: &Tape) -> Vec<HostCall> {
        tape.take().events.iter().map(Event::line).collect()
    }

    #[test]
    fn a_script_answers_in_order_and_never_invents() {
        let recorded = Tape::recording(1, 1 << 20);
        assert_eq!(get(&recorded, "a", 1), Ok(1));
        recorded.note("wasi:logging/logging#log", "hello".to_string(), ());
        assert_eq!(get(&recorded, "b", 2), Ok(2));
        let script = lines(&recorded);
        assert_eq!(script[0].args, "\"a\"");
        assert_eq!(script.len(), 3);

        let replay = Tape::replaying(1, recorded.seed, 1 << 20);
        replay.load(&script);
        assert_eq!(get(&replay, "a", 7), Ok(1));
        assert_eq!(get(&replay, "b", 7), Ok(2));
        let miss = get(&replay, "c", 7).unwrap_err();
        assert_eq!(miss.recorded, None);
        assert!(replay.take().miss.is_some());

        replay.load(&script);
        let miss = get(&replay, "b", 7).unwrap_err();
        assert!(miss.to_string().contains("store#get(\"a\") here"), "{miss}");
        assert_eq!(get(&replay, "a", 7), Err(miss), "a miss stays one");
    }

    #[test]
    fn a_tape_that_is_full_says_so_and_stays_within_its_bytes() {
        let tape = Tape::recording(1, 1000);
        for _ in 0..1000 {
            get(&tape, &"k".repeat(50), 1).unwrap();
        }
        let taken = tape.take();
        assert!(taken.cut && taken.events.len() < 20);
    }

    #[test]
    fn one_seed_gives_one_sequence() {
        let tape = Some(Tape::recording(1, 1 << 20));
        let mut rng = TapedRng::new([7; 32], &tape, "wasi:random/random#get-random-bytes");
        let first = rng.next_u64();
        let again = TapedRng::new([7; 32], &None, "").next_u64();
        assert_eq!(first, again);
        let line = &lines(tape.as_ref().unwrap())[0];
        assert_eq!(line.answer, wave::text(&first.to_le_bytes().to_vec()));
    }
}
