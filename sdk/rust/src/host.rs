//! What the host offers a policy, with its errors as values.
//!
//! Each function imports only its own interface: a policy that never calls [`config`] has
//! no `wasi:config` import and needs no grant for it.

use crate::Verdict;
use crate::{Classification, Decision, Error, GenerateOptions, Generated, Result, Snapshot, Tier};

#[cfg(target_family = "wasm")]
use crate::bindings::imports::{homeostat::policy, wasi};

#[cfg(not(target_family = "wasm"))]
fn no_host<T>() -> Result<T> {
    Err(Error::Unavailable(
        "there is no host outside WebAssembly".to_owned(),
    ))
}

/// A setting of this policy; `None` when the operator has not set it or it cannot be read.
/// Needs the grant `config`.
pub fn config(key: &str) -> Option<String> {
    #[cfg(target_family = "wasm")]
    return wasi::config::store::get(key).ok().flatten();
    #[cfg(not(target_family = "wasm"))]
    {
        let _ = key;
        None
    }
}

/// How important a log line is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// For the author.
    Debug,
    /// For the operator.
    Info,
    /// Something looks wrong.
    Warn,
    /// Something is wrong.
    Error,
}

/// Writes one line to the host's log. The host limits how much it keeps.
pub fn log(level: Level, message: &str) {
    #[cfg(target_family = "wasm")]
    {
        use wasi::logging::logging;
        let level = match level {
            Level::Debug => logging::Level::Debug,
            Level::Info => logging::Level::Info,
            Level::Warn => logging::Level::Warn,
            Level::Error => logging::Level::Error,
        };
        logging::log(level, "policy", message);
    }
    #[cfg(not(target_family = "wasm"))]
    eprintln!("{level:?}: {message}");
}

/// The snapshot of this request, for code that does not receive it as an argument.
pub fn current() -> Result<Snapshot> {
    #[cfg(target_family = "wasm")]
    return Ok(policy::telemetry::current().into());
    #[cfg(not(target_family = "wasm"))]
    no_host()
}

/// State that outlives requests, reloads and swaps. Needs the grant `keyvalue`.
pub mod state {
    use super::*;

    #[cfg(target_family = "wasm")]
    fn failed(error: wasi::keyvalue::store::Error) -> Error {
        use wasi::keyvalue::store::Error as Store;
        match error {
            Store::NoSuchStore => Error::Unavailable("no such store".to_owned()),
            Store::AccessDenied => Error::Denied("keyvalue".to_owned()),
            Store::Other(text) => Error::Other(text),
        }
    }

    /// The bytes under `key`, if there are any.
    pub fn get(key: &str) -> Result<Option<Vec<u8>>> {
        #[cfg(target_family = "wasm")]
        return wasi::keyvalue::store::open("")
            .and_then(|b| b.get(key))
            .map_err(failed);
        #[cfg(not(target_family = "wasm"))]
        {
            let _ = key;
            no_host()
        }
    }

    /// The value under `key`, read from its text form. What cannot be read is an error,
    /// not `None`: silently starting anew would lose what was learned.
    pub fn read<T: std::str::FromStr>(key: &str) -> Result<Option<T>> {
        let Some(bytes) = get(key)? else {
            return Ok(None);
        };
        let parsed = std::str::from_utf8(&bytes)
            .ok()
            .and_then(|t| t.parse().ok());
        parsed.map(Some).ok_or_else(|| {
            Error::InvalidArgument(format!("the state under {key:?} has another form"))
        })
    }

    /// Stores the text form of `value` under `key`.
    pub fn write<T: std::fmt::Display>(key: &str, value: &T) -> Result<()> {
        set(key, value.to_string().as_bytes())
    }

    /// Stores bytes under `key`.
    pub fn set(key: &str, value: &[u8]) -> Result<()> {
        #[cfg(target_family = "wasm")]
        return wasi::keyvalue::store::open("")
            .and_then(|b| b.set(key, value))
            .map_err(failed);
        #[cfg(not(target_family = "wasm"))]
        {
            let _ = (key, value);
            no_host()
        }
    }

    /// Adds `delta` to the counter under `key` and returns the sum; no other request can
    /// come between.
    pub fn increment(key: &str, delta: u64) -> Result<u64> {
        #[cfg(target_family = "wasm")]
        return wasi::keyvalue::store::open("")
            .and_then(|b| wasi::keyvalue::atomics::increment(&b, key, delta))
            .map_err(failed);
        #[cfg(not(target_family = "wasm"))]
        {
            let _ = (key, delta);
            no_host()
        }
    }
}

/// Provisional answers: what was proposed last is used when the deadline comes first.
pub mod propose {
    use super::*;

    /// Inside `classify`.
    pub fn classification(proposal: Classification) {
        #[cfg(target_family = "wasm")]
        policy::propose::propose_classification(&proposal.into());
        #[cfg(not(target_family = "wasm"))]
        drop(proposal);
    }

    /// Inside `route`.
    pub fn decision(proposal: Decision) {
        #[cfg(target_family = "wasm")]
        policy::propose::propose_decision(&proposal.into());
        #[cfg(not(target_family = "wasm"))]
        drop(proposal);
    }

    /// Inside `validate`.
    pub fn verdict(proposal: Verdict) {
        #[cfg(target_family = "wasm")]
        policy::propose::propose_verdict(&proposal.into());
        #[cfg(not(target_family = "wasm"))]
        drop(proposal);
    }
}

/// Ids of all models, encoders included. Needs the grant `models`.
pub fn model_names() -> Result<Vec<String>> {
    #[cfg(target_family = "wasm")]
    return policy::models::names().map_err(Into::into);
    #[cfg(not(target_family = "wasm"))]
    no_host()
}

/// A handle on one of the host's models. Needs the grant `models`.
pub struct Model {
    #[cfg(target_family = "wasm")]
    handle: policy::models::Model,
    #[cfg(not(target_family = "wasm"))]
    never: std::convert::Infallible,
}

impl Model {
    /// Opens the model with this id.
    pub fn open(name: &str) -> Result<Self> {
        #[cfg(target_family = "wasm")]
        return policy::models::open(name)
            .map(|handle| Self { handle })
            .map_err(Into::into);
        #[cfg(not(target_family = "wasm"))]
        {
            let _ = name;
            no_host()
        }
    }

    /// The tier as a router would see it now.
    pub fn info(&self) -> Result<Tier> {
        #[cfg(target_family = "wasm")]
        return self.handle.info().map(Into::into).map_err(Into::into);
        #[cfg(not(target_family = "wasm"))]
        match self.never {}
    }

    /// Tokens of `text` in this model's vocabulary.
    pub fn count_tokens(&self, text: &str) -> Result<u32> {
        #[cfg(target_family = "wasm")]
        return self.handle.count_tokens(text).map_err(Into::into);
        #[cfg(not(target_family = "wasm"))]
        {
            let _ = text;
            match self.never {}
        }
    }

    /// Embedding of unit length. Only encoders.
    pub fn embed(&self, text: &str) -> Result<Vec<f32>> {
        #[cfg(target_family = "wasm")]
        return self.handle.embed(text).map_err(Into::into);
        #[cfg(not(target_family = "wasm"))]
        {
            let _ = text;
            match self.never {}
        }
    }

    /// Natural logarithm of the probability of every token of `continuation` after
    /// `prompt`. Only local generative tiers.
    pub fn score(&self, prompt: &str, continuation: &str) -> Result<Vec<f32>> {
        #[cfg(target_family = "wasm")]
        return self.handle.score(prompt, continuation).map_err(Into::into);
        #[cfg(not(target_family = "wasm"))]
        {
            let _ = (prompt, continuation);
            match self.never {}
        }
    }

    /// Continues `prompt`; no chat template is applied.
    pub fn generate(&self, prompt: &str, options: GenerateOptions) -> Result<Generated> {
        #[cfg(target_family = "wasm")]
        return self
            .handle
            .generate(prompt, &options.into())
            .map(Into::into)
            .map_err(Into::into);
        #[cfg(not(target_family = "wasm"))]
        {
            let _ = (prompt, options);
            match self.never {}
        }
    }
}
