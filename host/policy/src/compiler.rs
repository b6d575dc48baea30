//! From a component to machine code, in a process of its own.
//!
//! A compiler is fast on what people write and can be made to take any time and memory by
//! who means harm: wasmtime counts that as no fault of its own. So the host starts its own
//! program again, gives it the bytes over a pipe, and lets it have so much memory,
//! processor time and wall-clock time. What comes back is either machine code or a
//! sentence. The child knows nothing of the host's configuration, holds none of its files
//! and reads none of its secrets: its environment is emptied.
//!
//! It refuses to take machine code from a child whose engine differs from the host's, or
//! to give a child a second try.

use std::io::{BufRead, Read, Write};
use std::path::Path;
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use wasmtime::Engine;

use crate::admit::{AdmissionError, Stage};
use crate::cache::{self, Artifact};
use crate::config::CompilerConfig;
use crate::engine::{PolicyEngine, code_config};
use crate::fault;

/// Arguments that make a program compile; see [`compile_child`].
pub const COMPILE_CHILD: [&str; 2] = ["policy", "compile-child"];

/// Stack of the thread that compiles: the compiler recurses over untrusted code.
const STACK_BYTES: usize = 16 << 20;
/// How much less important than a request a compilation is: a quarter of a core when the
/// requests take all of them.
#[cfg(unix)]
const NICE: i32 = 5;
/// Complaints of a child that are read.
const COMPLAINT_BYTES_MAX: u64 = 16 << 10;
/// A first line of either side has about 100 bytes.
const LINE_BYTES_MAX: u64 = 256;
/// A child that has sent everything is gone in a moment.
const FAREWELL: Duration = Duration::from_secs(5);

/// First words of the two sides. A change of the protocol changes them.
const REQUEST: &str = "homeostat-compile-1";
const ANSWER: &str = "homeostat-artifact-1";

/// Compiles, in a child if the configuration names a program.
pub(crate) fn compile(
    config: &CompilerConfig,
    engine: &PolicyEngine,
    component: &[u8],
) -> Result<Artifact, AdmissionError> {
    match &config.program {
        Some(program) => in_child(config, program, engine, component),
        None => engine
            .engine
            .precompile_component(component)
            .map(Artifact::from_our_compiler)
            .map_err(|error| AdmissionError::new(Stage::Compile, fault::chain(&error))),
    }
}

fn in_child(
    config: &CompilerConfig,
    program: &Path,
    engine: &PolicyEngine,
    component: &[u8],
) -> Result<Artifact, AdmissionError> {
    let refuse = |text: String| AdmissionError::new(Stage::Compile, text);
    let request = format!(
        "{REQUEST} {} {} {}\n",
        config.memory_bytes,
        config.cpu_seconds,
        u8::from(engine.metered)
    );
    let mut child = start(program)
        .map_err(|error| refuse(format!("the compiler cannot be started: {error}")))?;
    let ended = talk(config, &mut child, &request, component)
        .map_err(|error| refuse(format!("the compiler cannot be talked to: {error}")))?;
    if ended.too_late {
        return Err(refuse(format!(
            "the compiler did not end within {} s (policies.compiler.wall_seconds)",
            config.wall_seconds
        ))
        .help("no ordinary component takes that long; raise the limit if this one must"));
    }
    if ended.answer.len() as u64 > config.artifact_bytes {
        return Err(refuse(format!(
            "more than {} bytes of machine code (policies.compiler.artifact_bytes)",
            config.artifact_bytes
        )));
    }
    if !ended.status.success() {
        return Err(why(config, ended.status, &ended.complaint));
    }
    let ours = cache::hex(&cache::compatibility(&engine.engine));
    artifact_in(ended.answer, &ours).map_err(refuse)
}

fn start(program: &Path) -> std::io::Result<Child> {
    let mut command = Command::new(program);
    command
        .args(COMPILE_CHILD)
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    // Without this one a build against a GPU's libraries would not start.
    if let Some(libraries) = std::env::var_os("LD_LIBRARY_PATH") {
        command.env("LD_LIBRARY_PATH", libraries);
    }
    #[cfg(unix)]
    std::os::unix::process::CommandExt::arg0(&mut command, "homeostat-compile");
    command.spawn()
}

/// How a child ended.
struct Ended {
    answer: Vec<u8>,
    complaint: String,
    status: ExitStatus,
    too_late: bool,
}

/// Writes to and reads from the child at the same time, since either side may fill its
/// pipe; kills it at the limit.
fn talk(
    config: &CompilerConfig,
    child: &mut Child,
    request: &str,
    component: &[u8],
) -> std::io::Result<Ended> {
    let limit = Duration::from_secs(config.wall_seconds);
    let gone = || std::io::Error::other("a pipe is missing");
    let mut stdin = child.stdin.take().ok_or_else(gone)?;
    let stdout = child.stdout.take().ok_or_else(gone)?;
    let stderr = child.stderr.take().ok_or_else(gone)?;
    let answer_max = config.artifact_bytes + 1;
    let (sender, receiver) = mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            // A child that was stopped by its limits no longer reads: what it was is told
            // by its end, not by this pipe.
            let _ = stdin
                .write_all(request.as_bytes())
                .and_then(|()| stdin.write_all(component));
        });
        let complaint = scope.spawn(move || read_at_most(stderr, COMPLAINT_BYTES_MAX));
        scope.spawn(move || {
            // The receiver waits as long as it can; it is gone only if it has given up.
            let _ = sender.send(read_at_most(stdout, answer_max));
        });
        let answer = receiver.recv_timeout(limit);
        let too_late = answer.is_err();
        if too_late {
            child.kill()?;
        }
        let status = wait_or_kill(child)?;
        let complaint = complaint.join().unwrap_or_default();
        Ok(Ended {
            answer: answer.unwrap_or_default(),
            complaint: String::from_utf8_lossy(&complaint).trim().to_string(),
            status,
            too_late,
        })
    })
}

fn read_at_most(from: impl Read, limit: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    // What was read before an error is judged by its length, which the child has told.
    let _ = from.take(limit).read_to_end(&mut bytes);
    bytes
}

/// The end of a child that has closed its output.
fn wait_or_kill(child: &mut Child) -> std::io::Result<ExitStatus> {
    let until = Instant::now() + FAREWELL;
    while Instant::now() < until {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill()?;
    child.wait()
}

/// Why a child ended without machine code.
fn why(config: &CompilerConfig, status: ExitStatus, complaint: &str) -> AdmissionError {
    let refuse = |text: String| AdmissionError::new(Stage::Compile, text);
    let help = "it is far larger or stranger than any ordinary component; raise the limit if \
                this one must be compiled";
    #[cfg(unix)]
    let signal = std::os::unix::process::ExitStatusExt::signal(&status);
    #[cfg(not(unix))]
    let signal: Option<i32> = None;
    // SIGXCPU, which comes at the limit.
    if signal == Some(24) {
        return refuse(format!(
            "the compiler used more than {} s of processor time (policies.compiler.cpu_seconds)",
            config.cpu_seconds
        ))
        .help(help);
    }
    // SIGKILL. This host sends it to a child that does not go; a kernel that is out of memory
    // sends it too, and so may anybody who has the right.
    if signal == Some(9) {
        return refuse(
            "the compiler was killed: the machine ran out of memory, or somebody ended it".into(),
        )
        .help("the kernel's log tells; a smaller policies.compiler.memory_bytes ends it first");
    }
    let without_memory = [
        "memory allocation of",
        "Cannot allocate memory",
        "out of memory",
    ];
    if without_memory.iter().any(|text| complaint.contains(text)) {
        return refuse(format!(
            "the compiler needs more than {} bytes (policies.compiler.memory_bytes)",
            config.memory_bytes
        ))
        .help(help);
    }
    let last = complaint.lines().last().unwrap_or("it said nothing");
    match signal {
        Some(number) => refuse(format!("the compiler ended by signal {number}: {last}")),
        None => refuse(last.to_string()),
    }
}

/// Takes the first line from what a child sent and compares what it says.
fn artifact_in(mut answer: Vec<u8>, ours: &str) -> Result<Artifact, String> {
    let end = answer.iter().position(|b| *b == b'\n');
    let line = end.and_then(|end| std::str::from_utf8(&answer[..end]).ok());
    let words: Vec<&str> = line.unwrap_or_default().split(' ').collect();
    let (Some(end), &[ANSWER, theirs, length]) = (end, &words[..]) else {
        return Err("the compiler did not answer with machine code".into());
    };
    if theirs != ours {
        return Err("the compiler is another version of this host than this host".into());
    }
    let sent = answer.len() - end - 1;
    if length.parse() != Ok(sent) {
        return Err(format!(
            "the compiler sent {sent} of {length} bytes of machine code"
        ));
    }
    let code = answer.split_off(end + 1);
    Ok(Artifact::from_our_compiler(code))
}

/// The other side: compiles what stands on standard input, within the limits that its
/// first line names, and writes machine code to standard output.
///
/// For programs that are started with [`COMPILE_CHILD`] and do nothing else in their life.
pub fn compile_child() -> ExitCode {
    match child() {
        Ok(()) => ExitCode::SUCCESS,
        Err(text) => {
            eprintln!("{text}");
            ExitCode::FAILURE
        }
    }
}

fn child() -> Result<(), String> {
    let mut input = std::io::stdin().lock();
    let mut line = String::new();
    let mut first = (&mut input).take(LINE_BYTES_MAX);
    first.read_line(&mut line).map_err(|e| e.to_string())?;
    let words: Vec<&str> = line.trim_end().split(' ').collect();
    let [REQUEST, memory, cpu, metered] = words[..] else {
        return Err("this command is started by a host, not by people".into());
    };
    let number = |word: &str| word.parse::<u64>().map_err(|e| format!("{word:?}: {e}"));
    // The engine is made of trusted things only, so it comes before the limits.
    let engine = Engine::new(&code_config(metered == "1")).map_err(|e| format!("{e:#}"))?;
    limit_myself(number(memory)?, number(cpu)?)?;
    let mut component = Vec::new();
    input
        .read_to_end(&mut component)
        .map_err(|e| e.to_string())?;
    let compiled = std::thread::scope(|scope| {
        std::thread::Builder::new()
            .stack_size(STACK_BYTES)
            .spawn_scoped(scope, || engine.precompile_component(&component))
            .map_err(|e| format!("no thread to compile on: {e}"))?
            .join()
            .map_err(|_| "the compiler failed on this component".to_string())
    })?;
    let code = compiled.map_err(|error| fault::chain(&error))?;
    let mut output = std::io::stdout().lock();
    let compatibility = cache::hex(&cache::compatibility(&engine));
    writeln!(output, "{ANSWER} {compatibility} {}", code.len())
        .and_then(|()| output.write_all(&code))
        .and_then(|()| output.flush())
        .map_err(|e| e.to_string())
}

/// Lowers what this process may take; nothing raises it again.
#[cfg(unix)]
fn limit_myself(memory_bytes: u64, cpu_seconds: u64) -> Result<(), String> {
    use rustix::process::{Resource, Rlimit, setrlimit};
    let limit = |resource, soft: u64, hard: u64| {
        let limits = Rlimit {
            current: Some(soft),
            maximum: Some(hard),
        };
        setrlimit(resource, limits).map_err(|e| format!("a limit cannot be set: {e}"))
    };
    // Programs and libraries are mapped already; what counts is what comes on top.
    let space = mapped_bytes().saturating_add(memory_bytes);
    limit(Resource::As, space, space)?;
    limit(Resource::Cpu, cpu_seconds, cpu_seconds.saturating_add(1))?;
    limit(Resource::Core, 0, 0)?;
    // The rest is manners: without them the child is as safe, and less polite.
    let _ = rustix::process::nice(NICE);
    #[cfg(target_os = "linux")]
    let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
    Ok(())
}

#[cfg(not(unix))]
fn limit_myself(_: u64, _: u64) -> Result<(), String> {
    Err("this system cannot limit a process; set no compiler program".into())
}

/// Address space of this process; 0 where the kernel does not tell, which only makes the
/// limit tighter.
#[cfg(unix)]
fn mapped_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = statm
        .split(' ')
        .next()
        .and_then(|word| word.parse().ok())
        .unwrap_or(0);
    pages * rustix::param::page_size() as u64
}

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    #[test]
    fn a_child_that_was_killed_is_not_said_to_have_used_up_its_time() {
        let config = CompilerConfig::default();
        let of = |signal| why(&config, ExitStatus::from_raw(signal), "").to_string();
        assert!(of(24).contains("cpu_seconds"), "{}", of(24));
        let killed = of(9);
        assert!(killed.contains("ran out of memory"), "{killed}");
        assert!(!killed.contains("cpu_seconds"), "{killed}");
    }
}
