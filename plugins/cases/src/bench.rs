//! A policy under test, in a room that holds nothing else.

use std::sync::Arc;

use homeostat_hooks::Policies;

use crate::{Asked, Case, CaseFile, Property, Reply, ToldModels, ask};

/// Puts the policy into the room with this text of a `policy.toml`, for this case. `Err` tells why
/// it does not load.
type Put<R> = Box<dyn FnMut(&R, &Case, &str) -> Result<(), String>>;

/// A room, models that answer as a case tells, and what the policy is given; it is loaded anew
/// where a case has options of its own.
pub struct Bench<R> {
    room: R,
    models: Arc<ToldModels>,
    policy_toml: String,
    /// The options with which it is loaded now.
    loaded: Option<String>,
    put: Put<R>,
}

impl<R: Policies> Bench<R> {
    /// `models` are those of the room, `policy_toml` is what the options of a case are laid over.
    pub fn new(
        room: R,
        models: Arc<ToldModels>,
        policy_toml: String,
        put: impl FnMut(&R, &Case, &str) -> Result<(), String> + 'static,
    ) -> Self {
        Self {
            room,
            models,
            policy_toml,
            loaded: None,
            put: Box::new(put),
        }
    }

    /// Asks the policy, with the options of the case.
    pub fn ask(&mut self, case: &Case) -> Asked {
        match self.load(case) {
            Ok(()) => ask(&self.room, &self.models, case),
            Err(error) => Asked {
                reply: Reply::Error(error),
                micros: 0,
                questions: Vec::new(),
            },
        }
    }

    /// Tries a property on so many inputs; see [`Property::check`].
    ///
    /// # Errors
    /// The smallest input that breaks it, and how; or why it cannot be tried.
    pub fn check(
        &mut self,
        property: Property,
        file: &CaseFile,
        inputs: u32,
        seed: u64,
    ) -> Result<(), String> {
        let plainest = file
            .plainest()
            .ok_or("every case has options or an error of its own")?;
        self.load(plainest)?;
        property.check(file, (&self.room, &self.models), inputs, seed)
    }

    fn load(&mut self, case: &Case) -> Result<(), String> {
        let text = case.options_over(&self.policy_toml);
        let text = text.map_err(|e| e.to_string())?;
        if self.loaded.as_ref() == Some(&text) {
            return Ok(());
        }
        self.loaded = None;
        // The probes of admission find no model: what a case tells is for the case.
        self.models.tell(&[]);
        (self.put)(&self.room, case, &text)?;
        self.loaded = Some(text);
        Ok(())
    }
}
