//! The command line: what can be asked of this binary. Nothing happens here.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use homeostat_author::Language;
use homeostat_engine::LoadQuantization;
use homeostat_hooks::Hook;

use crate::bench::BenchCommand;
use crate::commands::BundleCommand;
use crate::simulate::SimulateCommand;

/// An LLM inference host whose judgement can be swapped while it runs.
#[derive(Debug, Parser)]
#[command(
    name = "homeostat",
    version,
    after_help = "Exit codes: 0 done; 1 what was asked for failed or was refused; \
                  2 wrong usage or configuration."
)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Answer OpenAI requests.
    ///
    /// Without any configuration: one small local model, three embedded policies, on
    /// http://127.0.0.1:8080. Fetch the model first with `homeostat models pull`.
    Serve(ServeArgs),
    /// Check, load, replace and remove policies.
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// Fetch and look at models.
    #[command(subcommand)]
    Models(ModelsCommand),
    /// Measure how good the judgement is, on recorded outcomes.
    #[command(subcommand)]
    Bench(BenchCommand),
    /// Let hosts live through a day on a machine that does not exist.
    #[command(subcommand)]
    Simulate(SimulateCommand),
    /// Show one snapshot of this machine, as policies see it, as JSON; record its sensors.
    Telemetry(TelemetryArgs),
    /// Check or print configuration.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Tell why a request was answered as it was.
    ///
    /// The id is in every answer: the field `id`, and the header x-request-id. Where decisions
    /// are recorded ([policies.record]), also what every policy was given, asked the host and
    /// answered, and what it would have answered had a value been another.
    Explain {
        /// Id of the request; without it, the latest requests are listed.
        id: Option<String>,
        /// Decide again with this value changed, like gpu.0.temperature-celsius=95, tiers.small.ready=false
        /// or metabolism.state=critical; may be repeated.
        #[arg(long, value_name = "PATH=VALUE", value_parser = assignment, requires = "id")]
        set: Vec<(String, String)>,
        /// Folder of recordings to look in, instead of asking a running host.
        #[arg(long, value_name = "DIR", requires = "id")]
        log: Option<PathBuf>,
        /// Print everything as JSON.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        host: HostArgs,
    },
}

#[derive(Debug, Args)]
pub struct ConfigArgs {
    /// Configuration file [default: homeostat.toml in the working folder, if it exists].
    #[arg(long, env = "HOMEOSTAT_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct TelemetryArgs {
    #[command(subcommand)]
    pub command: Option<TelemetryCommand>,
    #[command(flatten)]
    pub config: ConfigArgs,
}

#[derive(Debug, Subcommand)]
pub enum TelemetryCommand {
    /// Record every raw reading, its latency and the snapshots, as JSON lines.
    ///
    /// Until the time is over or the program is told to stop (Ctrl-C). The file can be played
    /// back; it holds no host name and no serial number.
    Record {
        /// File to write.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
        /// How long [default: until Ctrl-C].
        #[arg(long, value_name = "N")]
        seconds: Option<f64>,
        /// Sampling period, instead of the configured one.
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(10..=10_000))]
        period_ms: Option<u32>,
        #[command(flatten)]
        config: ConfigArgs,
    },
    /// Ask an NVIDIA board every question that this program has, and show which it answers,
    /// how long that takes and how often the answer changes.
    Probe {
        /// Times that every question is asked.
        #[arg(long, value_name = "N", default_value_t = 200)]
        times: usize,
        /// How long answers that move are watched, each.
        #[arg(long, value_name = "N", default_value_t = 1_000)]
        watch_ms: u64,
        /// Print JSON.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        config: ConfigArgs,
    },
}

/// What is fitted depends on the router. For route-threshold: the threshold that sends a share of
/// the requests to the strong tier (--share), or below which the weak tier is wrong in no more
/// than a share of its answers (--risk). For route-metabolic: the temperature of the classifier's
/// probabilities, and with --risk the confidence above which no more than this share of the
/// smaller tiers' answers is wrong. For classify-neighbours: the requests that it knows, embedded
/// by the configuration's encoder; they come from recordings, since decision records hold no
/// texts. What answers were right somebody has to say.
#[derive(Debug, Args)]
pub struct CalibrateArgs {
    /// Folder of recordings (policies.record.dir), or JSON lines: decision records as
    /// /admin/v1/decisions/ID answers them, or {"score": 0.42, "right": true}.
    pub log: PathBuf,
    /// Which policy.
    #[arg(long, value_name = "POLICY", default_value = "route-metabolic")]
    pub policy: Calibrated,
    /// Which answers were right: lines of {"id": "…", "right": true}. A line of the log may say
    /// so itself.
    #[arg(long, value_name = "FILE")]
    pub judged: Option<PathBuf>,
    /// Share of the requests that the strong tier may have, 0 to 1.
    #[arg(long, value_name = "SHARE", conflicts_with = "risk")]
    pub share: Option<f64>,
    /// Share of wrong answers among those that are kept, above 0 and below 1; the chance that it
    /// is more is at most one in ten.
    #[arg(long, value_name = "SHARE")]
    pub risk: Option<f64>,
    /// An attribute of the classifier instead of its classes, such as strong-gain; only for
    /// route-threshold.
    #[arg(long, value_name = "ATTRIBUTE")]
    pub score: Option<String>,
    /// The .toml of the policy; its other keys stay as they are [default: print the settings]. For
    /// classify-neighbours the file that its next build embeds,
    /// plugins/classify-neighbours/neighbours.bin.
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    #[command(flatten)]
    pub config: ConfigArgs,
}

/// Policies of which something can be fitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Calibrated {
    RouteThreshold,
    RouteMetabolic,
    ClassifyNeighbours,
}

#[derive(Debug, Args)]
pub struct ServeArgs {
    #[command(flatten)]
    pub config: ConfigArgs,
    /// Address to serve on, instead of the configured one.
    #[arg(long, value_name = "IP:PORT")]
    pub listen: Option<SocketAddr>,
    /// Folder of model files, instead of the configured one.
    #[arg(long, value_name = "DIR")]
    pub models_dir: Option<PathBuf>,
}

/// A running host.
#[derive(Debug, Args)]
pub struct HostArgs {
    /// Base URL of the running host.
    #[arg(
        long,
        env = "HOMEOSTAT_HOST",
        default_value = "http://127.0.0.1:8080",
        value_name = "URL"
    )]
    pub host: String,
    /// Its admin token, if it has one.
    #[arg(long, env = "HOMEOSTAT_ADMIN_TOKEN", hide_env_values = true)]
    pub token: Option<String>,
}

#[derive(Debug, Subcommand)]
pub enum PolicyCommand {
    /// Make a folder with a policy that builds and passes its cases.
    New {
        /// rust, js, python or c.
        #[arg(long, value_parser = language)]
        lang: Language,
        /// classify, route or validate.
        #[arg(long, value_parser = hook)]
        hook: Hook,
        /// Name of the policy and of its folder.
        name: PathBuf,
    },
    /// Make a component of a policy's folder, in Rust, JavaScript, Python or C.
    Build {
        /// The folder; `homeostat policy new` makes one.
        folder: PathBuf,
        /// File to write [default: the folder's name with .wasm, here].
        #[arg(short, long)]
        output: Option<PathBuf>,
    },
    /// Ask a policy its cases, and try its properties on generated inputs.
    Test {
        /// A policy's folder, or a component.
        path: PathBuf,
        /// What it is asked [default: cases.toml in the folder or beside the component].
        #[arg(long, value_name = "FILE")]
        cases: Option<PathBuf>,
        /// Where generated inputs begin [default: another every time; it is printed].
        #[arg(long, value_name = "NUMBER")]
        seed: Option<u64>,
    },
    /// Fetch the compilers of other languages now instead of at the first build.
    Tools {
        /// js, python or c [default: all].
        #[arg(value_parser = language)]
        languages: Vec<Language>,
    },
    /// Take a component through admission and print the report; nothing is loaded.
    Check {
        /// A WebAssembly component, or a policy's folder.
        file: PathBuf,
        /// Print JSON.
        #[arg(long)]
        json: bool,
        /// The hook it is meant for [default: those that it exports].
        #[arg(long, value_parser = hook)]
        hook: Option<Hook>,
        #[command(flatten)]
        config: ConfigArgs,
    },
    /// Decide recorded traffic again with another component, and tell what changes.
    ///
    /// It gets the recorded inputs and the recorded answers of the host; a question that nobody
    /// recorded is a miss. Options come from the .toml beside it, if there is one, else from the
    /// policy that it would replace.
    ///
    /// With --execute the models answer a sample of the requests whose route moves, once as it
    /// was recorded and once as the candidate decides: tokens, time, joules and verdicts stand
    /// beside what the tiers promised. It loads the tiers of the configuration that it needs.
    Replay {
        /// A WebAssembly component.
        #[arg(long, value_name = "FILE")]
        candidate: PathBuf,
        /// Folder of recordings: policies.record.dir of the host that wrote them.
        #[arg(long, value_name = "DIR")]
        log: PathBuf,
        /// Only this hook [default: those that it exports].
        #[arg(long, value_parser = hook)]
        hook: Option<Hook>,
        /// Answer so many of the requests whose route moves again, with real models; which
        /// ones is decided by their ids.
        #[arg(long, value_name = "N")]
        execute: Option<usize>,
        /// Print everything as JSON.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        config: ConfigArgs,
    },
    /// Fit a router's settings to recorded decisions, and write them where it reads them.
    Calibrate(CalibrateArgs),
    /// List the policies of a running host.
    List {
        #[command(flatten)]
        host: HostArgs,
    },
    /// Load a component into a running host in place of the present one.
    Put {
        /// classify, route or validate.
        #[arg(value_parser = hook)]
        hook: Hook,
        /// A WebAssembly component, or a bundle; the .toml beside it goes with it.
        file: PathBuf,
        /// Name of the policy [default: the file's name; a signed name wins].
        #[arg(long)]
        name: Option<String>,
        /// Take an older revision of a signed policy than one that was accepted before.
        #[arg(long)]
        allow_downgrade: bool,
        #[command(flatten)]
        host: HostArgs,
    },
    /// Sign policies, pack them, and exchange them with a registry.
    #[command(flatten)]
    Bundle(BundleCommand),
    /// Ask a candidate what the active policy is asked, and only count how they differ.
    #[command(subcommand)]
    Shadow(TrialCommand),
    /// Let a candidate serve a share of the requests until it is shown to be good or bad.
    #[command(subcommand)]
    Canary(TrialCommand),
    /// Go back to an earlier generation, at once.
    Rollback {
        /// classify, route or validate.
        #[arg(value_parser = hook)]
        hook: Hook,
        /// Number of a kept generation, as `homeostat policy list` shows it; the present one
        /// is kept too [default: the one before the present one, which is forgotten].
        #[arg(long, value_name = "GENERATION")]
        to: Option<u64>,
        #[command(flatten)]
        host: HostArgs,
    },
    /// Show, save and replace what policies keep.
    #[command(subcommand)]
    State(StateCommand),
    /// Remove a hook's policy; the built-in answer serves.
    Unload {
        /// classify, route or validate.
        #[arg(value_parser = hook)]
        hook: Hook,
        #[command(flatten)]
        host: HostArgs,
    },
}

/// The same words for both kinds of trial.
#[derive(Debug, Subcommand)]
pub enum TrialCommand {
    /// Admit a candidate and begin.
    Start {
        /// classify, route or validate.
        #[arg(value_parser = hook)]
        hook: Hook,
        /// A WebAssembly component, or a bundle; the .toml beside it goes with it [default for a
        /// canary: the candidate of the hook's shadow].
        file: Option<PathBuf>,
        /// Name of the policy [default: the file's name].
        #[arg(long)]
        name: Option<String>,
        /// Of a canary: share of the requests, above 0 and at most 0.5 [default: as configured].
        #[arg(long)]
        share: Option<f64>,
        /// Of a canary: what keeps its policy: conversation, tenant or request [default: as
        /// configured].
        #[arg(long, value_name = "WHAT")]
        stick_to: Option<String>,
        #[command(flatten)]
        host: HostArgs,
    },
    /// Show what a trial has found, or the last one found.
    Status {
        /// classify, route or validate [default: all].
        #[arg(value_parser = hook)]
        hook: Option<Hook>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        host: HostArgs,
    },
    /// End it; the active policy stays.
    Stop {
        /// classify, route or validate.
        #[arg(value_parser = hook)]
        hook: Hook,
        #[command(flatten)]
        host: HostArgs,
    },
    /// End it; the candidate serves.
    Promote {
        /// classify, route or validate.
        #[arg(value_parser = hook)]
        hook: Hook,
        #[command(flatten)]
        host: HostArgs,
    },
}

/// What policies keep in the host.
#[derive(Debug, Subcommand)]
pub enum StateCommand {
    /// Show how much each policy keeps, or what one keeps.
    Show {
        /// Name of a policy [default: all, without their values].
        name: Option<String>,
        #[command(flatten)]
        host: HostArgs,
    },
    /// Write all that a policy keeps into a file, as JSON.
    Export {
        /// Name of the policy.
        name: String,
        /// File to write [default: standard output].
        #[arg(short, long)]
        output: Option<PathBuf>,
        #[command(flatten)]
        host: HostArgs,
    },
    /// Put the entries of an exported file in place of all that the policy keeps.
    Import {
        /// Name of the policy; the file must be of this one.
        name: String,
        /// A file that `export` has written.
        file: PathBuf,
        #[command(flatten)]
        host: HostArgs,
    },
}

#[derive(Debug, Subcommand)]
pub enum ModelsCommand {
    /// List the models of the manifests and those pulled from a hub: size, place, state.
    List {
        /// Print JSON.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        config: ConfigArgs,
    },
    /// Fetch a model into the cache [default: all that the configuration needs].
    ///
    /// hf:OWNER/REPO[@REVISION][/FILE.gguf] is a model of a hub: its only GGUF file, the named
    /// one, or its safetensors with what belongs to them. HF_ENDPOINT is the hub's address,
    /// HF_TOKEN the token for private and gated models. An interrupted download goes on where
    /// it was.
    Pull {
        /// Name of a manifest, or hf:OWNER/REPO[@REVISION][/FILE.gguf].
        name: Option<String>,
        #[command(flatten)]
        config: ConfigArgs,
    },
    /// Say what a model is and what memory it takes.
    Inspect {
        /// A GGUF file, a folder with config.json (weights may be missing), or a model's name.
        model: String,
        /// Tokens of a sequence, prompt and answer; 8k is 8192 [default: 2k, 8k, the model's own].
        #[arg(long, value_name = "TOKENS", value_delimiter = ',', value_parser = count)]
        context: Vec<u64>,
        /// Sequences at once.
        #[arg(long, value_name = "N", value_delimiter = ',', value_parser = count, default_value = "1,8,32")]
        batch: Vec<u64>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        config: ConfigArgs,
    },
    /// Say which models, contexts and batches fit this machine, and with what settings.
    Plan {
        /// Names or paths [default: all models that are here].
        models: Vec<String>,
        /// Memory that the host may take, like 16GiB [default: what is free now, within the
        /// container's limit].
        #[arg(long, value_name = "BYTES", value_parser = byte_count)]
        memory: Option<u64>,
        /// Tokens of a sequence, prompt and answer; 8k is 8192.
        #[arg(long, value_name = "TOKENS", value_delimiter = ',', value_parser = count, default_value = "2k,8k")]
        contexts: Vec<u64>,
        /// Sequences at once.
        #[arg(long, value_name = "N", value_delimiter = ',', value_parser = count, default_value = "1,8,32")]
        batches: Vec<u64>,
        /// Type that float weights become at load: q8_0, q4_0 or q4_1.
        #[arg(long, value_name = "TYPE", value_parser = quantization, default_value = "q8_0")]
        load_quantization: LoadQuantization,
        /// Print JSON.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        config: ConfigArgs,
    },
}

#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Check a file and say what is wrong with it.
    Check(ConfigArgs),
    /// Print the default file: every setting, its default and the reason.
    Print,
}

pub fn hook(word: &str) -> Result<Hook, String> {
    let known = Hook::ALL.into_iter().find(|h| h.as_str() == word);
    known.ok_or_else(|| "expected classify, route or validate".into())
}

fn language(word: &str) -> Result<Language, String> {
    let known = Language::ALL.into_iter().find(|l| l.as_str() == word);
    known.ok_or_else(|| "expected rust, js, ts, python or c".into())
}

fn assignment(word: &str) -> Result<(String, String), String> {
    let parts = word.split_once('=').filter(|(path, _)| !path.is_empty());
    let (path, value) = parts.ok_or("expected PATH=VALUE, like gpu.0.temperature-celsius=95")?;
    Ok((path.trim().to_string(), value.trim().to_string()))
}

/// A number above 0; `k` is 1,024.
fn count(word: &str) -> Result<u64, String> {
    let lower = word.to_ascii_lowercase();
    let (digits, unit) = match lower.strip_suffix('k') {
        Some(digits) => (digits, 1024),
        None => (lower.as_str(), 1),
    };
    let number = digits.parse().ok().and_then(|n: u64| n.checked_mul(unit));
    let number = number.filter(|n| *n > 0);
    number.ok_or_else(|| "expected a number above 0, like 2048 or 2k".into())
}

/// Bytes with a unit.
fn byte_count(word: &str) -> Result<u64, String> {
    const UNITS: [(&str, u64); 10] = [
        ("tib", 1 << 40),
        ("gib", 1 << 30),
        ("mib", 1 << 20),
        ("kib", 1 << 10),
        ("tb", 1_000_000_000_000),
        ("gb", 1_000_000_000),
        ("mb", 1_000_000),
        ("kb", 1_000),
        ("g", 1 << 30),
        ("m", 1 << 20),
    ];
    let lower = word.trim().to_ascii_lowercase();
    let found = UNITS
        .iter()
        .find_map(|(name, unit)| Some((lower.strip_suffix(name)?, *unit)));
    let (digits, unit) = found.unwrap_or((&lower, 1));
    let number: Option<f64> = digits.trim().parse().ok();
    let bytes = number.map(|n| n * unit as f64);
    match bytes.filter(|b| *b >= 1.0 && *b < 2f64.powi(60)) {
        Some(bytes) => Ok(bytes as u64),
        None => Err("expected bytes, like 16GiB, 512MiB or 8000000000".into()),
    }
}

fn quantization(word: &str) -> Result<LoadQuantization, String> {
    match word {
        "q8_0" => Ok(LoadQuantization::Q8_0),
        "q4_0" => Ok(LoadQuantization::Q4_0),
        "q4_1" => Ok(LoadQuantization::Q4_1),
        _ => Err("expected q8_0, q4_0 or q4_1".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn a_hook_is_one_of_three_words() {
        let parse = |word| Cli::try_parse_from(["homeostat", "policy", "rollback", word]);
        assert!(parse("route").is_ok());
        let error = parse("router").unwrap_err().to_string();
        assert!(error.contains("classify, route or validate"), "{error}");
    }

    #[test]
    fn counts_and_bytes_may_have_units_and_nonsense_is_refused() {
        assert_eq!(count("128K"), Ok(131_072));
        assert_eq!(count("7"), Ok(7));
        for bad in [
            "0",
            "",
            "k",
            "-1",
            "1.5",
            "99999999999999999999",
            "18014398509481984k",
        ] {
            assert!(count(bad).is_err(), "{bad}");
        }
        assert_eq!(byte_count("16GiB"), Ok(16 << 30));
        assert_eq!(byte_count("1.5 gib"), Ok(3 << 29));
        assert_eq!(byte_count("2GB"), Ok(2_000_000_000));
        assert_eq!(byte_count("4096"), Ok(4096));
        for bad in ["", "GiB", "-1GiB", "inf", "nan", "1e30", "0"] {
            assert!(byte_count(bad).is_err(), "{bad}");
        }
    }

    fn telemetry(words: &str) -> Result<TelemetryArgs, clap::Error> {
        let words = words.split(' ').filter(|word| !word.is_empty());
        let line = ["homeostat", "telemetry"].into_iter().chain(words);
        match Cli::try_parse_from(line)?.command {
            Command::Telemetry(args) => Ok(args),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn telemetry_is_shown_recorded_or_probed() {
        let shown = telemetry("--config there.toml").expect("valid");
        assert!(shown.command.is_none());
        assert_eq!(shown.config.config, Some("there.toml".into()));
        let recorded = telemetry("record --out f --seconds 1.5 --period-ms 50").expect("valid");
        let Some(TelemetryCommand::Record {
            seconds, period_ms, ..
        }) = recorded.command
        else {
            panic!("{recorded:?}");
        };
        assert_eq!((seconds, period_ms), (Some(1.5), Some(50)));
        assert!(telemetry("probe --times 3 --watch-ms 9 --json").is_ok());
        for wrong in ["record", "record --out f --period-ms 5", "probe --times x"] {
            assert!(telemetry(wrong).is_err(), "{wrong}");
        }
    }
}
