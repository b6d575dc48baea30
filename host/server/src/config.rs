//! `homeostat.toml`: as written → ready to use.
//!
//! [`Config`] is the file as written; every default stands in `default.toml`, which is
//! what `homeostat config print` shows, and a test holds the two together. Unknown keys
//! are refused with the nearest known one: a misspelt limit that silently keeps its
//! default is worse than an error. What the rooms want is made of it in `serve`.

use std::collections::{BTreeMap, HashSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use homeostat_engine::{
    Device, DrafterKind, LoadQuantization, MAX_DRAFT_TOKENS, MAX_TENANT_WEIGHT, PoolLimits,
    SpeculationConfig,
};
use homeostat_hooks::Profile;
use homeostat_policy::RoomConfig;
use serde::{Deserialize, Serialize};

use crate::budgets::BudgetsConfig;
use crate::tiers::Prefill;

/// The default file with its comments.
pub const DEFAULT_FILE: &str = include_str!("default.toml");

/// A file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read {}: {source}", path.display())]
    Read {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{file}, line {line}: {message}")]
    Syntax {
        file: String,
        line: usize,
        message: String,
    },
    #[error("{file}: {message}")]
    Meaning { file: String, message: String },
}

/// The whole file.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    pub server: ServerConfig,
    pub sampling: SamplingConfig,
    pub models: ModelsConfig,
    pub encoder: EncoderConfig,
    pub tiers: Vec<TierConfig>,
    pub policies: RoomConfig,
    pub cascade: CascadeLimits,
    pub telemetry: TelemetryConfig,
    pub energy: EnergyConfig,
    pub budgets: BudgetsConfig,
    pub log: LogConfig,
    /// Folder of the file; relative paths start here.
    #[serde(skip)]
    pub base: PathBuf,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            server: ServerConfig::default(),
            sampling: SamplingConfig::default(),
            models: ModelsConfig::default(),
            encoder: EncoderConfig::default(),
            tiers: vec![TierConfig {
                id: "smollm2".into(),
                kind: TierKind::Local,
                model: Some("smollm2-135m-instruct".into()),
                quality: (0.6, 0.25, 0.1),
                system: Some(String::new()),
                ..TierConfig::default()
            }],
            policies: RoomConfig::default(),
            cascade: CascadeLimits::default(),
            telemetry: TelemetryConfig::default(),
            energy: EnergyConfig::default(),
            budgets: BudgetsConfig::default(),
            log: LogConfig::default(),
            base: PathBuf::new(),
        }
    }
}

/// `[server]`.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServerConfig {
    pub listen: SocketAddr,
    pub max_body_bytes: usize,
    pub max_concurrent_requests: usize,
    pub drain_seconds: u64,
    pub embedded_policies: bool,
    pub admin_token: Option<String>,
    pub api_keys: BTreeMap<String, String>,
    pub tenant_weights: BTreeMap<String, u32>,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8080)),
            max_body_bytes: 8 << 20,
            max_concurrent_requests: 256,
            drain_seconds: 25,
            embedded_policies: true,
            admin_token: None,
            api_keys: BTreeMap::new(),
            tenant_weights: BTreeMap::new(),
        }
    }
}

/// `[sampling]`.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct SamplingConfig {
    pub temperature: f32,
    pub top_p: f32,
}

impl Default for SamplingConfig {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_p: 1.0,
        }
    }
}

/// `[models]`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct ModelsConfig {
    pub dir: Option<PathBuf>,
    pub manifests: Option<PathBuf>,
}

/// `[encoder]`.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct EncoderConfig {
    pub enabled: bool,
    pub id: String,
    pub model: String,
    pub path: Option<PathBuf>,
    pub prompt_classifier: Option<PromptClassifierConfig>,
}

impl Default for EncoderConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            id: "all-minilm-l6-v2".into(),
            model: "all-minilm-l6-v2".into(),
            path: None,
            prompt_classifier: None,
        }
    }
}

/// `[encoder.prompt_classifier]`. It is loaded whether or not the encoder itself is enabled.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct PromptClassifierConfig {
    /// Its name for policies.
    #[serde(default = "prompt_classifier_id")]
    pub id: String,
    /// A folder with `config.json`, `tokenizer.json` and `model.safetensors`.
    pub path: PathBuf,
}

fn prompt_classifier_id() -> String {
    "prompt-classifier".into()
}

impl EncoderConfig {
    /// The names that it takes, and where they are given.
    fn ids(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let own = self.enabled.then_some(("encoder.id", self.id.as_str()));
        let classifier = self.prompt_classifier.iter();
        let classifier = classifier.map(|c| ("encoder.prompt_classifier.id", c.id.as_str()));
        own.into_iter().chain(classifier)
    }
}

/// Where a tier runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum TierKind {
    #[default]
    Local,
    Remote,
}

/// One of `[[tiers]]`. Fields of the other kind must keep their default.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct TierConfig {
    pub id: String,
    pub kind: TierKind,
    pub model: Option<String>,
    pub path: Option<PathBuf>,
    pub rank: u32,
    pub quality: (f32, f32, f32),
    pub max_tokens: u32,
    pub context_tokens: Option<u32>,
    pub usd_per_mtok_prompt: Option<f64>,
    pub usd_per_mtok_output: Option<f64>,
    pub joules_per_token: Option<f64>,
    pub system: Option<String>,
    pub threads: Option<usize>,
    pub device: Device,
    pub kv_bytes: u64,
    pub max_sequences: usize,
    pub max_waiting: usize,
    pub max_batch_tokens: usize,
    pub step_milliseconds: u32,
    pub prefix_cache: bool,
    pub speculation: Speculation,
    pub load_quantization: LoadQuantization,
    pub url: Option<String>,
    pub api_key_env: Option<String>,
    pub logprobs: bool,
    pub prefill: Prefill,
    pub chat_template: Option<PathBuf>,
    pub connect_timeout_ms: u64,
    pub first_byte_timeout_ms: u64,
    pub idle_timeout_ms: u64,
}

impl Default for TierConfig {
    fn default() -> Self {
        Self {
            id: String::new(),
            kind: TierKind::Local,
            model: None,
            path: None,
            rank: 0,
            // Nothing is known of a tier that is not described.
            quality: (0.5, 0.5, 0.5),
            max_tokens: 1024,
            context_tokens: None,
            usd_per_mtok_prompt: None,
            usd_per_mtok_output: None,
            joules_per_token: None,
            system: None,
            threads: None,
            device: Device::Cpu,
            kv_bytes: 256 << 20,
            max_sequences: 32,
            max_waiting: 256,
            max_batch_tokens: 256,
            step_milliseconds: 100,
            prefix_cache: true,
            speculation: Speculation::default(),
            load_quantization: LoadQuantization::default(),
            url: None,
            api_key_env: None,
            logprobs: true,
            prefill: Prefill::default(),
            chat_template: None,
            connect_timeout_ms: 2_000,
            first_byte_timeout_ms: 60_000,
            idle_timeout_ms: 30_000,
        }
    }
}

/// `speculation` of a local tier: [`SpeculationConfig`] as a file can say it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Speculation {
    pub drafters: Vec<DrafterKind>,
    /// A model's name, or a path.
    pub draft_model: Option<String>,
    pub max_draft_tokens: usize,
    /// Finished answers that the suffix drafter remembers for later requests of the same tenant:
    /// `{ tenants = 64, tokens = 16384 }`, about 200 bytes a token. Absent: none.
    pub remember_answers: Option<PoolLimits>,
}

impl Default for Speculation {
    fn default() -> Self {
        let engine = SpeculationConfig::default();
        Self {
            drafters: engine.drafters,
            draft_model: None,
            max_draft_tokens: engine.max_draft_tokens,
            remember_answers: engine.remember_answers,
        }
    }
}

impl Speculation {
    /// Whether anybody guesses.
    pub fn is_on(&self) -> bool {
        !self.drafters.is_empty() || self.draft_model.is_some()
    }

    fn check(&self) -> Result<(), String> {
        let n = self.max_draft_tokens;
        if !(1..=MAX_DRAFT_TOKENS).contains(&n) {
            return Err(format!(
                "speculation.max_draft_tokens is {n}, expected 1 to {MAX_DRAFT_TOKENS}; \
                 drafters = [] turns speculation off"
            ));
        }
        let twice = |(i, kind)| self.drafters[..i].contains(kind);
        match self.drafters.iter().enumerate().any(twice) {
            true => Err("speculation.drafters names one twice".into()),
            false => Ok(()),
        }
    }
}

/// `[cascade]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct CascadeLimits {
    pub view_bytes_max: usize,
    pub records_max: usize,
    pub events_waiting_max: usize,
}

impl Default for CascadeLimits {
    fn default() -> Self {
        Self {
            view_bytes_max: 64 << 10,
            records_max: 1024,
            events_waiting_max: 256,
        }
    }
}

/// `[telemetry]`.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct TelemetryConfig {
    pub profile: Profile,
    pub period_ms: u32,
    pub nvml: String,
    pub power_cap_watts: Option<f64>,
    pub sysfs_root: PathBuf,
    pub procfs_root: PathBuf,
}

impl Default for TelemetryConfig {
    fn default() -> Self {
        Self {
            profile: Profile::Edge,
            period_ms: 100,
            nvml: "auto".into(),
            power_cap_watts: None,
            sysfs_root: "/sys".into(),
            procfs_root: "/proc".into(),
        }
    }
}

impl TelemetryConfig {
    /// The profile as the file and policies write it.
    pub fn profile_word(&self) -> &'static str {
        match self.profile {
            Profile::Datacenter => "datacenter",
            Profile::Edge => "edge",
            Profile::Mcu => "mcu",
        }
    }
}

/// Where the energy of a request may come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum EnergyMode {
    #[default]
    Auto,
    MeasuredOnly,
    Off,
}

/// `[energy]`.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct EnergyConfig {
    pub mode: EnergyMode,
    pub busy_watts_per_processor: f64,
    pub idle_watts_per_processor: f64,
}

impl Default for EnergyConfig {
    fn default() -> Self {
        Self {
            mode: EnergyMode::Auto,
            busy_watts_per_processor: 3.5,
            idle_watts_per_processor: 0.74,
        }
    }
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    #[default]
    Text,
    Json,
}

/// `[log]`.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogConfig {
    pub format: LogFormat,
    pub level: String,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            format: LogFormat::Text,
            level: "info".into(),
        }
    }
}

impl Config {
    /// The file at `path`; without one `homeostat.toml` in the working folder if it
    /// exists, else the defaults.
    pub fn load(path: Option<&Path>) -> Result<Self, ConfigError> {
        let found = match path {
            Some(path) => path.to_path_buf(),
            None if Path::new("homeostat.toml").exists() => "homeostat.toml".into(),
            None => return Ok(Self::default()),
        };
        let text = std::fs::read_to_string(&found).map_err(|source| ConfigError::Read {
            path: found.clone(),
            source,
        })?;
        let mut config = Self::parse(&found.display().to_string(), &text)?;
        config.base = found.parent().map(Path::to_path_buf).unwrap_or_default();
        Ok(config)
    }

    /// The text of a file; errors name `file`.
    pub fn parse(file: &str, text: &str) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text).map_err(|e| syntax_error(file, text, &e))?;
        config.check().map_err(|message| ConfigError::Meaning {
            file: file.into(),
            message,
        })?;
        Ok(config)
    }

    /// A path of the file, seen from the working folder.
    pub fn path(&self, path: &Path) -> PathBuf {
        self.base.join(path)
    }

    fn check(&self) -> Result<(), String> {
        let waiting = self.cascade.events_waiting_max;
        if !(1..=1 << 20).contains(&waiting) {
            return Err(format!(
                "cascade.events_waiting_max is {waiting}, expected 1 to 1048576"
            ));
        }
        let s = &self.sampling;
        if !(0.0..=2.0).contains(&s.temperature) {
            return Err(format!(
                "sampling.temperature is {}, expected 0 to 2",
                s.temperature
            ));
        }
        if !(s.top_p > 0.0 && s.top_p <= 1.0) {
            return Err(format!(
                "sampling.top_p is {}, expected above 0, up to 1",
                s.top_p
            ));
        }
        if self.server.max_concurrent_requests == 0 {
            return Err("server.max_concurrent_requests is 0: nobody could ask anything".into());
        }
        if let Some("") = self.server.admin_token.as_deref() {
            return Err("server.admin_token is empty; leave it out to have none".into());
        }
        for (tenant, weight) in &self.server.tenant_weights {
            if !(1..=MAX_TENANT_WEIGHT).contains(weight) {
                return Err(format!(
                    "server.tenant_weights gives {tenant:?} {weight}, expected 1 to {MAX_TENANT_WEIGHT}"
                ));
            }
            if !self.server.api_keys.values().any(|t| t == tenant) {
                return Err(format!(
                    "server.tenant_weights names {tenant:?}, which is no tenant of server.api_keys"
                ));
            }
        }
        if self.tiers.is_empty() {
            return Err("tiers is empty: there would be nothing to answer with".into());
        }
        let mut ids = HashSet::from(["auto", "direct"]);
        for tier in &self.tiers {
            tier.check()?;
            if !ids.insert(&tier.id) {
                return Err(format!(
                    "a tier has the id {:?}, which is taken (auto and direct always are)",
                    tier.id
                ));
            }
        }
        for (place, id) in self.encoder.ids() {
            if !ids.insert(id) {
                return Err(format!(
                    "{place} {id:?} is taken: a tier, or the encoder, has it"
                ));
            }
        }
        self.budgets.check(self)
    }
}

impl TierConfig {
    /// A field that only a local tier heeds and that says something.
    fn said_of_local(&self) -> Option<&'static str> {
        let d = Self::default();
        first_said([
            ("path", self.path != d.path),
            ("system", self.system != d.system),
            ("threads", self.threads != d.threads),
            ("device", self.device != d.device),
            ("kv_bytes", self.kv_bytes != d.kv_bytes),
            ("max_sequences", self.max_sequences != d.max_sequences),
            ("max_waiting", self.max_waiting != d.max_waiting),
            (
                "max_batch_tokens",
                self.max_batch_tokens != d.max_batch_tokens,
            ),
            (
                "step_milliseconds",
                self.step_milliseconds != d.step_milliseconds,
            ),
            ("prefix_cache", self.prefix_cache != d.prefix_cache),
            ("speculation", self.speculation != d.speculation),
            (
                "load_quantization",
                self.load_quantization != d.load_quantization,
            ),
        ])
    }

    /// A field that only a remote tier heeds and that says something.
    fn said_of_remote(&self) -> Option<&'static str> {
        let d = Self::default();
        first_said([
            ("url", self.url != d.url),
            ("api_key_env", self.api_key_env != d.api_key_env),
            ("logprobs", self.logprobs != d.logprobs),
            ("prefill", self.prefill != d.prefill),
            ("chat_template", self.chat_template != d.chat_template),
            (
                "connect_timeout_ms",
                self.connect_timeout_ms != d.connect_timeout_ms,
            ),
            (
                "first_byte_timeout_ms",
                self.first_byte_timeout_ms != d.first_byte_timeout_ms,
            ),
            ("idle_timeout_ms", self.idle_timeout_ms != d.idle_timeout_ms),
        ])
    }

    fn check(&self) -> Result<(), String> {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_./:".contains(&b);
        if self.id.is_empty() || !self.id.bytes().all(plain) {
            return Err(format!(
                "a tier has the id {:?}, expected letters, digits and -_./:",
                self.id
            ));
        }
        let wrong = |what: String| Err(format!("tier {}: {what}", self.id));
        let (a, b, c) = self.quality;
        if ![a, b, c].iter().all(|q| (0.0..=1.0).contains(q)) {
            return wrong(format!(
                "quality is [{a}, {b}, {c}], expected shares from 0 to 1"
            ));
        }
        if self.max_tokens == 0 {
            return wrong("max_tokens is 0, expected at least 1".into());
        }
        match self.kind {
            TierKind::Local => {
                if let Some(field) = self.said_of_remote() {
                    return wrong(format!("{field} is for kind = \"remote\""));
                }
                if self.model.is_some() == self.path.is_some() {
                    let what = "give model (of the manifests, or hf:OWNER/REPO) or path (a GGUF \
                                file or a folder with safetensors)";
                    return wrong(what.into());
                }
                if !(1..=60_000).contains(&self.step_milliseconds) {
                    let given = self.step_milliseconds;
                    return wrong(format!("step_milliseconds is {given}, expected 1 to 60000"));
                }
                self.speculation.check().or_else(wrong)?;
            }
            TierKind::Remote => {
                if let Some(field) = self.said_of_local() {
                    return wrong(format!("{field} is for kind = \"local\""));
                }
                if self.model.is_none() {
                    return wrong("model is missing: the model's name on that server".into());
                }
                let by_text = self.prefill == Prefill::Completions;
                if by_text != self.chat_template.is_some() {
                    let what = "prefill = \"completions\" and chat_template (a file with the \
                                model's Jinja template) go together";
                    return wrong(what.into());
                }
                let url = self.url.as_deref().unwrap_or("");
                let host = url.strip_prefix("http://").or(url.strip_prefix("https://"));
                let good = host.is_some_and(|h| !h.is_empty()) && url.parse::<hyper::Uri>().is_ok();
                if !good {
                    return wrong(format!(
                        "url is {url:?}, expected one like \"http://127.0.0.1:8000/v1\""
                    ));
                }
            }
        }
        Ok(())
    }
}

fn first_said<const N: usize>(fields: [(&'static str, bool); N]) -> Option<&'static str> {
    let said = fields.into_iter().find(|(_, said)| *said);
    said.map(|(name, _)| name)
}

/// toml's error with its line, and the nearest known key where a key is unknown.
fn syntax_error(file: &str, text: &str, error: &toml::de::Error) -> ConfigError {
    let start = error.span().map_or(0, |s| s.start.min(text.len()));
    let line = text.as_bytes()[..start]
        .iter()
        .filter(|b| **b == b'\n')
        .count()
        + 1;
    let message = unknown_key(error.message()).unwrap_or_else(|| error.message().to_string());
    ConfigError::Syntax {
        file: file.into(),
        line,
        message,
    }
}

/// serde says "unknown field `x`, expected one of `a`, `b`"; people want the nearest.
fn unknown_key(message: &str) -> Option<String> {
    let rest = message.strip_prefix("unknown field `")?;
    let mut quoted = rest.split('`').step_by(2);
    let key = quoted.next()?;
    let known: Vec<&str> = quoted.filter(|k| !k.is_empty()).collect();
    let nearest = known
        .iter()
        .map(|k| (strsim::damerau_levenshtein(key, k), *k))
        .min()
        .filter(|(distance, k)| *distance <= 2.max(k.len() / 3));
    let hint = match nearest {
        Some((_, k)) => format!("did you mean `{k}`?"),
        None => format!("known here: {}", known.join(", ")),
    };
    Some(format!("unknown key `{key}`; {hint}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str, words: &[&str]) {
        let error = Config::parse("test.toml", text).unwrap_err().to_string();
        for word in words {
            assert!(error.contains(word), "{error}: {word}");
        }
    }

    #[test]
    fn the_printed_file_is_the_defaults() {
        let printed = Config::parse("default.toml", DEFAULT_FILE).unwrap();
        assert_eq!(printed, Config::default());
    }

    #[test]
    fn every_default_stands_in_the_printed_file() {
        let defaults = toml::Value::try_from(Config::default()).unwrap();
        let printed: toml::Value = toml::from_str(DEFAULT_FILE).unwrap();
        missing("", &defaults, &printed);
    }

    /// Panics at the first key of `defaults` that `printed` lacks.
    fn missing(path: &str, defaults: &toml::Value, printed: &toml::Value) {
        match (defaults, printed) {
            (toml::Value::Table(wanted), toml::Value::Table(there)) => {
                for (key, value) in wanted {
                    let path = format!("{path}.{key}");
                    // An empty table says nothing and need not be shown.
                    if value.as_table().is_some_and(all_empty) {
                        continue;
                    }
                    let other = there
                        .get(key)
                        .unwrap_or_else(|| panic!("{path} is missing"));
                    missing(&path, value, other);
                }
            }
            (toml::Value::Array(wanted), toml::Value::Array(there)) => {
                for (a, b) in wanted.iter().zip(there) {
                    missing(path, a, b);
                }
            }
            _ => {}
        }
    }

    fn all_empty(table: &toml::Table) -> bool {
        table.values().all(|v| v.as_table().is_some_and(all_empty))
    }

    #[test]
    fn a_misspelt_key_is_refused_with_its_line_and_the_nearest_known_one() {
        refused(
            "\n[server]\nlisten_on = \"x\"",
            &["test.toml, line 3", "`listen_on`"],
        );
        refused(
            "[server]\nmax_boddy_bytes = 1",
            &["line 2", "did you mean `max_body_bytes`?"],
        );
        refused(
            "[polices]",
            &["line 1", "`polices`", "did you mean `policies`?"],
        );
        refused(
            "[policies.limits]\ndeadline = 1",
            &["line 2", "did you mean `deadline_ms`?"],
        );
        refused(
            "[[tiers]]\nid=\"a\"\nmodell=\"x\"",
            &["line 3", "did you mean `model`?"],
        );
        refused("[log]\nzzzzzzzz = 1", &["known here: format, level"]);
    }

    #[test]
    fn values_of_the_wrong_kind_are_refused_with_their_line() {
        refused("[server]\nlisten = 8080", &["line 2"]);
        refused("[log]\nformat = \"xml\"", &["line 2", "xml", "json"]);
        refused("[server\n", &["line 1"]);
    }

    #[test]
    fn tiers_that_cannot_work_are_refused_by_name() {
        refused("tiers = []", &["nothing to answer with"]);
        refused(
            "[[tiers]]\nid = \"auto\"\nmodel = \"x\"",
            &["auto", "taken"],
        );
        refused("[[tiers]]\nid = \"a b\"", &["a b", "letters"]);
        refused("[[tiers]]\nid = \"a\"", &["tier a", "model", "path"]);
        let remote = "[[tiers]]\nid = \"big\"\nkind = \"remote\"\nmodel = \"m\"\n";
        refused(remote, &["tier big", "url is \"\""]);
        refused(
            &format!("{remote}url = \"ftp://x\""),
            &["ftp://x", "http://"],
        );
        let good = format!("{remote}url = \"https://x/v1\"");
        assert!(Config::parse("t", &good).is_ok());
        refused(&format!("{good}\n{good}"), &["big", "taken"]);
        refused(
            &format!("{good}\nquality = [2.0, 0, 0]"),
            &["quality", "from 0 to 1"],
        );
    }

    #[test]
    fn a_prompt_classifier_has_a_folder_and_a_name_of_its_own() {
        let table = "[encoder.prompt_classifier]\n";
        let read = |text: &str| Config::parse("t", text).unwrap().encoder.prompt_classifier;
        assert_eq!(read("[encoder]\nenabled = false"), None);
        let found = read(&format!("{table}path = \"folder\"")).unwrap();
        assert_eq!(found.path, Path::new("folder"));
        assert_eq!(found.id, "prompt-classifier");
        refused(table, &["path"]);
        refused(
            &format!("{table}path = \"x\"\nids = \"y\""),
            &["line 3", "did you mean `id`?"],
        );
        for taken in ["smollm2", "all-minilm-l6-v2", "auto"] {
            let text = format!("{table}path = \"x\"\nid = \"{taken}\"");
            refused(&text, &["encoder.prompt_classifier.id", taken, "taken"]);
        }
        let tier = "[[tiers]]\nid = \"all-minilm-l6-v2\"\nmodel = \"x\"";
        refused(tier, &["encoder.id", "taken"]);
    }

    #[test]
    fn a_field_that_a_tier_of_this_kind_does_not_heed_is_refused_by_its_name() {
        let remote =
            "[[tiers]]\nid = \"b\"\nkind = \"remote\"\nmodel = \"m\"\nurl = \"http://x/v1\"\n";
        for line in [
            "path = \"x\"",
            "system = \"x\"",
            "threads = 2",
            "device = \"cuda:0\"",
            "kv_bytes = 1",
            "max_sequences = 1",
            "max_waiting = 1",
            "max_batch_tokens = 1",
            "step_milliseconds = 1",
            "prefix_cache = false",
            "speculation = { drafters = [] }",
            "load_quantization = \"q4_0\"",
        ] {
            let (name, _) = line.split_once(' ').unwrap();
            let words = ["tier b", name, "for kind = \"local\""];
            refused(&format!("{remote}{line}"), &words);
        }
        let local = "[[tiers]]\nid = \"a\"\nmodel = \"m\"\n";
        for line in [
            "url = \"http://x/v1\"",
            "api_key_env = \"X\"",
            "logprobs = false",
            "prefill = \"none\"",
            "chat_template = \"t.jinja\"",
            "connect_timeout_ms = 1",
            "first_byte_timeout_ms = 1",
            "idle_timeout_ms = 1",
        ] {
            let (name, _) = line.split_once(' ').unwrap();
            let words = ["tier a", name, "for kind = \"remote\""];
            refused(&format!("{local}{line}"), &words);
        }
    }

    #[test]
    fn what_speculation_may_remember_stands_in_the_printed_file() {
        let shown = DEFAULT_FILE.lines().filter_map(|l| l.strip_prefix("# "));
        let shown = shown.filter(|l| l.starts_with("speculation = "));
        let [shown] = shown.collect::<Vec<_>>()[..] else {
            panic!("it is shown once");
        };
        let tier = format!("[[tiers]]\nid = \"a\"\nmodel = \"m\"\n{shown}");
        let read = Config::parse("t", &tier).unwrap().tiers.remove(0);
        assert!(read.speculation.remember_answers.is_some());
    }

    #[test]
    fn weights_are_for_tenants_that_have_a_key() {
        let keys = "[server]\napi_keys = { \"sk-1\" = \"acme\" }\n";
        let good = format!("{keys}tenant_weights = {{ acme = 3 }}");
        let read = Config::parse("t", &good).unwrap().server;
        assert_eq!(read.tenant_weights["acme"], 3);
        let bad = |line: &str, words: &[&str]| refused(&format!("{keys}{line}"), words);
        bad("tenant_weights = { acme = 0 }", &["acme", "1 to 1048576"]);
        bad("tenant_weights = { acne = 2 }", &["acne", "no tenant"]);
    }

    #[test]
    fn what_makes_a_local_tier_fast_is_read_and_checked() {
        let tier = "[[tiers]]\nid = \"a\"\nmodel = \"m\"\n";
        let text = format!(
            "{tier}prefix_cache = false\nload_quantization = \"q4_1\"\nstep_milliseconds = 20\n\
             speculation = {{ drafters = [\"suffix\"], draft_model = \"d\", max_draft_tokens = 3 }}"
        );
        let read = Config::parse("t", &text).unwrap().tiers.remove(0);
        assert!(!read.prefix_cache);
        assert_eq!(read.load_quantization, LoadQuantization::Q4_1);
        assert_eq!(read.step_milliseconds, 20);
        assert_eq!(read.speculation.drafters, [DrafterKind::Suffix]);
        assert_eq!(read.speculation.draft_model.as_deref(), Some("d"));
        assert_eq!(read.speculation.max_draft_tokens, 3);
        assert_eq!(read.speculation.remember_answers, None);
        let pool = "remember_answers = { tenants = 2, tokens = 512 }";
        let pool = format!("{tier}speculation = {{ {pool} }}");
        let pool = Config::parse("t", &pool).unwrap().tiers.remove(0);
        let limits = PoolLimits {
            tenants: 2,
            tokens: 512,
        };
        assert_eq!(pool.speculation.remember_answers, Some(limits));
        let off = format!("{tier}speculation = {{ drafters = [] }}");
        let off = Config::parse("t", &off).unwrap().tiers.remove(0);
        assert!(!off.speculation.is_on());
        let bad = |line: &str, words: &[&str]| refused(&format!("{tier}{line}"), words);
        bad("load_quantization = \"q5\"", &["line 4", "q5", "q4_0"]);
        bad("device = \"gpu\"", &["line 4", "gpu", "cuda:0"]);
        let gpu = Config::parse("t", &format!("{tier}device = \"cuda:1\"")).unwrap();
        assert_eq!(gpu.tiers[0].device, Device::Cuda(1));
        bad("step_milliseconds = 0", &["tier a", "1 to 60000"]);
        bad(
            "speculation = { max_draft_tokens = 0 }",
            &["tier a", "1 to 64"],
        );
        bad(
            "speculation = { drafters = [\"ngram\", \"ngram\"] }",
            &["twice"],
        );
        bad(
            "speculation = { drafters = [\"eagle\"] }",
            &["eagle", "ngram"],
        );
        bad(
            "speculation = { draftmodel = \"x\" }",
            &["did you mean `draft_model`?"],
        );
        let remote = "[[tiers]]\nid = \"b\"\nkind = \"remote\"\nmodel = \"m\"\n\
                      url = \"http://x/v1\"\nload_quantization = \"q4_0\"";
        refused(remote, &["tier b", "local"]);
    }

    #[test]
    fn the_file_and_the_engine_have_the_same_defaults() {
        let engine = homeostat_engine::EngineConfig::new("a", "b");
        let tier = TierConfig::default();
        assert_eq!(tier.kv_bytes, engine.kv_bytes);
        assert_eq!(tier.max_sequences, engine.max_sequences);
        assert_eq!(tier.max_waiting, engine.max_waiting);
        assert_eq!(tier.max_batch_tokens, engine.max_batch_tokens);
        assert_eq!(tier.step_milliseconds, engine.step_milliseconds);
        assert_eq!(tier.prefix_cache, engine.prefix_cache);
        assert_eq!(tier.device, engine.device);
        assert_eq!(tier.speculation.drafters, engine.speculation.drafters);
        assert_eq!(
            tier.speculation.max_draft_tokens,
            engine.speculation.max_draft_tokens
        );
        assert_eq!(
            tier.load_quantization,
            engine.load_quantization.unwrap_or_default()
        );
    }
}
