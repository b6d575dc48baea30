//! Candidates at a hook: started, watched, ended.
//!
//! A trial stands in the [`Table`] beside the generation that it is measured against, so
//! a request sees both or neither. It ends by its own judgement, by the operator, or
//! because the active policy changed: what was measured against that one says nothing
//! about the next. What it found is kept until the hook's next trial.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use homeostat_hooks::{Hook, Models, Outcome};
use serde::{Deserialize, Serialize};

use crate::admit::{AdmissionError, Kind as Admitted, Offer, unix_ms};
use crate::call::Policy;
use crate::canary::{Arm, Canary, Judgement, MeasureStatus, StickTo};
use crate::config::CanaryConfig;
use crate::history::{Stored, TrialRecord};
use crate::host::{Asked, Powers};
use crate::migrate;
use crate::room::Room;
use crate::shadow::{Question, Shadow, ShadowStatus};
use crate::state::Bucket;
use crate::swap::{Book, Generation, Table};

/// How a candidate is tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum TrialMode {
    /// It is asked what the active policy is asked, and its answers are thrown away.
    Shadow,
    /// It serves a share of the requests.
    Canary,
}

impl TrialMode {
    /// The word in commands, paths and texts.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Shadow => "shadow",
            Self::Canary => "canary",
        }
    }
}

/// How a trial ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum TrialEnding {
    /// The candidate serves now.
    Promoted,
    /// A canary was worse, or was not shown to be as good.
    RolledBack,
    /// The operator stopped it.
    Stopped,
    /// The active policy changed meanwhile.
    Replaced,
}

impl TrialEnding {
    /// All of them.
    pub const ALL: [Self; 4] = [
        Self::Promoted,
        Self::RolledBack,
        Self::Stopped,
        Self::Replaced,
    ];

    /// The word in metrics and texts.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Promoted => "promoted",
            Self::RolledBack => "rolled-back",
            Self::Stopped => "stopped",
            Self::Replaced => "replaced",
        }
    }
}

/// The end of a trial.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Ended {
    /// How.
    pub how: TrialEnding,
    /// Why, for people.
    pub reason: String,
    /// When, in milliseconds since 1970.
    pub unix_ms: u64,
}

/// A trial that runs, or the last one that ran.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TrialStatus {
    /// Where.
    pub hook: Hook,
    /// How.
    pub mode: TrialMode,
    /// Name of the candidate.
    pub policy: String,
    /// Hex sha256 of its component.
    pub digest: String,
    /// When it began, in milliseconds since 1970.
    pub since_unix_ms: u64,
    /// Its end; none = it runs.
    pub ended: Option<Ended>,
    /// Of a shadow.
    pub shadow: Option<ShadowStatus>,
    /// Of a canary.
    pub canary: Option<CanaryStatus>,
}

/// What a canary has shown.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CanaryStatus {
    /// The generation under which the candidate answers.
    pub generation: u64,
    /// Share of the requests that are its.
    pub share: f64,
    /// What requests stick to.
    pub stick_to: StickTo,
    /// Both arms, measure by measure.
    pub measures: Vec<MeasureStatus>,
}

/// What a canary is started with that differs from `policies.canary`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Deserialize, Serialize)]
pub struct CanaryChanges {
    /// Share of the requests, above 0 and at most ½.
    pub share: Option<f64>,
    /// What requests stick to.
    pub stick_to: Option<StickTo>,
}

/// A trial could not be started or ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TrialError {
    /// The candidate was not admitted.
    #[error("{0}")]
    Refused(#[from] AdmissionError),
    /// One at a time.
    #[error("a {} of {policy} runs at {}: stop or promote it first", mode.as_str(), hook.as_str())]
    Running {
        /// Where.
        hook: Hook,
        /// What runs.
        mode: TrialMode,
        /// Whose.
        policy: String,
    },
    /// There is nothing to end.
    #[error("no {} runs at {}", .1.as_str(), .0.as_str())]
    NoneRuns(Hook, TrialMode),
    /// A number that cannot be.
    #[error("{0}")]
    Parameter(String),
    /// The host has no thread for it.
    #[error("a shadow cannot be started: {0}")]
    Host(String),
}

/// A candidate at a hook.
pub(crate) struct Trial {
    /// With the powers that it has when it serves.
    pub policy: Arc<Policy>,
    pub kind: Kind,
    since_unix_ms: u64,
    /// It is about to be promoted, when its state is taken over.
    promoting: AtomicBool,
}

pub(crate) enum Kind {
    Shadow(Arc<Shadow>),
    Canary(Box<Canary>),
}

impl Trial {
    fn mode(&self) -> TrialMode {
        match self.kind {
            Kind::Shadow(_) => TrialMode::Shadow,
            Kind::Canary(_) => TrialMode::Canary,
        }
    }

    pub fn as_canary(&self) -> Option<&Canary> {
        match &self.kind {
            Kind::Canary(canary) => Some(canary),
            Kind::Shadow(_) => None,
        }
    }

    /// How it goes on after a restart.
    pub fn record(&self) -> TrialRecord {
        let (changes, generation) = match &self.kind {
            Kind::Shadow(_) => (CanaryChanges::default(), None),
            Kind::Canary(canary) => {
                let changes = CanaryChanges {
                    share: Some(canary.config.share),
                    stick_to: Some(canary.config.stick_to),
                };
                (changes, Some(canary.candidate.number))
            }
        };
        TrialRecord {
            mode: self.mode(),
            policy: Stored::clone(&self.policy.stored),
            changes,
            generation,
        }
    }

    fn status(&self, hook: Hook, ended: Option<Ended>) -> TrialStatus {
        let (shadow, canary) = match &self.kind {
            Kind::Shadow(shadow) => (Some(shadow.status()), None),
            Kind::Canary(canary) => (
                None,
                Some(CanaryStatus {
                    generation: canary.candidate.number,
                    share: canary.config.share,
                    stick_to: canary.config.stick_to,
                    measures: canary.measures(),
                }),
            ),
        };
        TrialStatus {
            hook,
            mode: self.mode(),
            policy: self.policy.name().to_string(),
            digest: self.policy.digest.clone(),
            since_unix_ms: self.since_unix_ms,
            ended,
            shadow,
            canary,
        }
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        // A room that closes does not end its trials one by one; the shadow's thread must.
        if let Kind::Shadow(shadow) = &self.kind {
            shadow.end();
        }
    }
}

/// What a session tells a trial of a call that it has answered.
pub(crate) struct Heard<'a> {
    pub hook: Hook,
    pub asked: &'a Arc<Asked>,
    /// The generation that was asked; none = built-in.
    pub by: Option<&'a Arc<Generation>>,
    pub fault: bool,
    pub left_alone: bool,
    pub took: Duration,
}

impl Room {
    /// A call was answered while this trial ran.
    pub fn heard(
        self: &Arc<Self>,
        trial: &Arc<Trial>,
        heard: &Heard<'_>,
        kind: impl FnOnce() -> String,
        question: impl FnOnce() -> Question,
    ) {
        match &trial.kind {
            Kind::Shadow(shadow) => {
                let busy = self.gate.used().saturating_mul(2) > self.config.instances;
                shadow.offer(heard.asked, busy, kind, heard.took, question);
            }
            Kind::Canary(canary) => {
                let arm = arm_of(canary, heard.by);
                let judgement = if arm == Arm::Candidate && heard.left_alone {
                    let text = "its breaker left it alone after faults in a row";
                    Some(Judgement::RollBack(text.into()))
                } else {
                    canary.called(arm, heard.fault, heard.took)
                };
                if let Some(judgement) = judgement {
                    self.conclude(heard.hook, trial, judgement);
                }
            }
        }
    }

    /// A request has ended; canaries weigh what became of it.
    pub fn request_ended(self: &Arc<Self>, table: &Table, outcome: &Outcome) {
        for hook in Hook::ALL {
            let Some(trial) = table.trial(hook) else {
                continue;
            };
            if let Some(canary) = trial.as_canary()
                && let Some(judgement) = canary.ended(arm_of(canary, table.get(hook)), outcome)
            {
                self.conclude(hook, trial, judgement);
            }
        }
    }

    /// Ends a trial as it has shown. The request that has shown it waits neither for a disk
    /// nor for a migration.
    fn conclude(self: &Arc<Self>, hook: Hook, trial: &Arc<Trial>, judgement: Judgement) {
        let (how, reason) = match judgement {
            Judgement::Promote(reason) => (TrialEnding::Promoted, reason),
            Judgement::RollBack(reason) => (TrialEnding::RolledBack, reason),
        };
        if how == TrialEnding::Promoted
            && migrate::is_due(&trial.policy, &self.state, &self.table.load())
        {
            if !trial.promoting.swap(true, Relaxed) {
                let own = Arc::clone(trial);
                let begun = self.aside(move |room| room.promote_or_roll_back(hook, &own, reason));
                // The next judgement tries again.
                trial.promoting.store(begun, Relaxed);
            }
            return;
        }
        let mut books = self.books();
        // Of several requests that reach the judgement together, the first acts on it.
        if self.runs(hook, trial) {
            self.end_trial(&mut books, hook, how, reason);
            drop(books);
            let name = trial.policy.name().to_string();
            let done = format!("its {} was {}", trial.mode().as_str(), how.as_str());
            self.aside(move |room| room.remember_that(hook, &name, &done));
        }
    }

    fn promote_or_roll_back(&self, hook: Hook, trial: &Arc<Trial>, reason: String) {
        let name = trial.policy.name();
        let how = match self.promote(hook, trial, reason, 0) {
            Ok(()) => TrialEnding::Promoted,
            Err(TrialError::Refused(refusal)) => {
                let mut books = self.books();
                if self.runs(hook, trial) {
                    let reason = refusal.to_string();
                    self.end_trial(&mut books, hook, TrialEnding::RolledBack, reason);
                }
                TrialEnding::RolledBack
            }
            // It has ended otherwise meanwhile.
            Err(_) => return,
        };
        let done = format!("its {} was {}", trial.mode().as_str(), how.as_str());
        self.remember_that(hook, name, &done);
    }

    /// Whether this very trial runs.
    fn runs(&self, hook: Hook, trial: &Arc<Trial>) -> bool {
        let table = self.table.load();
        table.trial(hook).is_some_and(|t| Arc::ptr_eq(t, trial))
    }

    /// Lets a candidate serve, with what the older version of its state has learned by now.
    fn promote(
        &self,
        hook: Hook,
        trial: &Arc<Trial>,
        reason: String,
        ticket: u64,
    ) -> Result<(), TrialError> {
        let due = migrate::is_due(&trial.policy, &self.state, &self.table.load());
        let _one = due.then(|| self.one_admission());
        let state = migrate::take_over(&trial.policy, &self.state, &self.table.load())?;
        let mut books = self.books();
        if !self.runs(hook, trial) {
            return Err(TrialError::NoneRuns(hook, trial.mode()));
        }
        let book = &mut books[hook as usize];
        book.ticket = book.ticket.max(ticket);
        self.end_trial(&mut books, hook, TrialEnding::Promoted, reason);
        state.keep();
        Ok(())
    }

    /// Takes a hook's trial out of the table; a promotion is the same exchange that any
    /// swap is.
    fn end_trial(&self, books: &mut [Book; 3], hook: Hook, how: TrialEnding, reason: String) {
        let mut table = Table::clone(&self.table.load());
        let Some(trial) = self.close_trial(books, &mut table, hook, how, reason) else {
            return;
        };
        if how == TrialEnding::Promoted {
            self.set_in(books, table, &[hook], Some(&trial.policy));
        } else {
            self.show(table);
        }
    }

    /// Ends the trial of a hook in a table that is about to be shown.
    pub fn close_trial(
        &self,
        books: &mut [Book; 3],
        table: &mut Table,
        hook: Hook,
        how: TrialEnding,
        reason: String,
    ) -> Option<Arc<Trial>> {
        let trial = table.take_trial(hook)?;
        if let Kind::Shadow(shadow) = &trial.kind {
            shadow.end();
        }
        let (mode, policy) = (trial.mode().as_str(), trial.policy.name());
        let text = format!("{mode} of {policy} {}: {reason}", how.as_str());
        if how == TrialEnding::RolledBack {
            tracing::warn!(policy, hook = hook.as_str(), "{text}");
        } else {
            tracing::info!(policy, hook = hook.as_str(), "{text}");
        }
        let ended = Ended {
            how,
            reason,
            unix_ms: unix_ms(),
        };
        let book = &mut books[hook as usize];
        book.trials_ended[how as usize] += 1;
        book.last_trial = Some(trial.status(hook, Some(ended)));
        Some(trial)
    }

    /// Admits the candidate and starts a shadow of the hook.
    pub fn start_shadow(&self, hook: Hook, offer: &Offer) -> Result<TrialStatus, TrialError> {
        let config = &self.config.shadow;
        if !(config.share > 0.0 && config.share <= 1.0) {
            return Err(parameter("policies.shadow.share", config.share, "1"));
        }
        self.check_free(hook)?;
        let one = self.one_admission();
        let policy = self.admit_candidate(offer)?;
        let status = self.begin_shadow(hook, policy)?;
        drop(one);
        self.remember_that(hook, &status.policy, "its shadow runs");
        Ok(status)
    }

    fn begin_shadow(&self, hook: Hook, policy: Arc<Policy>) -> Result<TrialStatus, TrialError> {
        let state = migrate::copy(&policy, &self.state, &self.table.load())?;
        let mut books = self.books();
        self.check_free(hook)?;
        let shadow = Shadow::start(
            &policy.powers.models,
            |models| harmless(&policy, state, models),
            &self.config.shadow,
            Arc::clone(&self.spare),
        )
        .map_err(|error| TrialError::Host(error.to_string()))?;
        Ok(self.begin_trial(&mut books, hook, policy, Kind::Shadow(shadow)))
    }

    /// Admits the candidate, or takes over the shadow's, and gives it a share of the
    /// requests.
    pub fn start_canary(
        &self,
        hook: Hook,
        offer: Option<&Offer>,
        changes: CanaryChanges,
    ) -> Result<TrialStatus, TrialError> {
        let config = self.canary_config(changes)?;
        if offer.is_some() {
            self.check_free(hook)?;
        }
        // Until it stands in the table, its component could be forgotten.
        let one = self.one_admission();
        let policy = match offer {
            Some(offer) => self.admit_candidate(offer)?,
            None => {
                let table = self.table.load();
                let shadow = table.trial(hook).filter(|t| t.mode() == TrialMode::Shadow);
                let shadow = shadow.ok_or(TrialError::NoneRuns(hook, TrialMode::Shadow))?;
                Arc::clone(&shadow.policy)
            }
        };
        let status = self.begin_canary(hook, policy, config, None)?;
        drop(one);
        self.remember_that(hook, &status.policy, "its canary runs");
        Ok(status)
    }

    fn canary_config(&self, changes: CanaryChanges) -> Result<CanaryConfig, TrialError> {
        let mut config = self.config.canary;
        config.share = changes.share.unwrap_or(config.share);
        config.stick_to = changes.stick_to.unwrap_or(config.stick_to);
        // The active policy must be seen as often, or there is nothing to compare with.
        if !(config.share > 0.0 && config.share <= 0.5) {
            return Err(parameter("share", config.share, "0.5"));
        }
        Ok(config)
    }

    fn begin_canary(
        &self,
        hook: Hook,
        policy: Arc<Policy>,
        config: CanaryConfig,
        number: Option<u64>,
    ) -> Result<TrialStatus, TrialError> {
        migrate::lend(&policy, &self.state, &self.table.load())?;
        let mut books = self.books();
        let mut table = Table::clone(&self.table.load());
        let own_shadow = |t: &Arc<Trial>| Arc::ptr_eq(&t.policy, &policy);
        if table.trial(hook).is_some_and(own_shadow) {
            let reason = "it goes on as a canary".to_string();
            self.close_trial(&mut books, &mut table, hook, TrialEnding::Stopped, reason);
            self.show(table);
        }
        self.check_free(hook)?;
        let active = self.table.load();
        let active = active.get(hook).map(|active| Arc::clone(&active.policy));
        let book = &mut books[hook as usize];
        book.recalled_number = number;
        let candidate = self.generation(hook, &policy, active, book, true);
        let canary = Canary::new(candidate, config);
        Ok(self.begin_trial(&mut books, hook, policy, Kind::Canary(Box::new(canary))))
    }

    /// A trial of the life before goes on with this candidate, which was admitted again.
    pub fn resume_trial(
        &self,
        hook: Hook,
        policy: Arc<Policy>,
        was: &TrialRecord,
    ) -> Result<(), TrialError> {
        match was.mode {
            TrialMode::Shadow => self.begin_shadow(hook, policy),
            TrialMode::Canary => {
                let config = self.canary_config(was.changes)?;
                // Its number decides whose requests are its.
                self.begin_canary(hook, policy, config, was.generation)
            }
        }
        .map(|_| ())
    }

    fn begin_trial(
        &self,
        books: &mut [Book; 3],
        hook: Hook,
        policy: Arc<Policy>,
        kind: Kind,
    ) -> TrialStatus {
        let trial = Arc::new(Trial {
            policy,
            kind,
            since_unix_ms: unix_ms(),
            promoting: AtomicBool::new(false),
        });
        let status = trial.status(hook, None);
        books[hook as usize].last_trial = None;
        let mut table = Table::clone(&self.table.load());
        table.put_trial(hook, trial);
        self.show(table);
        status
    }

    /// Only inside an admission.
    fn admit_candidate(&self, offer: &Offer) -> Result<Arc<Policy>, TrialError> {
        let (policy, report) = self.admit(offer, Admitted::Tried)?;
        if let Some(warning) = self.keep_component(&policy) {
            self.note(&report.hooks, policy.name(), true, &warning);
        }
        Ok(self.accept_revision((policy, report))?.0)
    }

    fn check_free(&self, hook: Hook) -> Result<(), TrialError> {
        match self.table.load().trial(hook) {
            None => Ok(()),
            Some(trial) => Err(TrialError::Running {
                hook,
                mode: trial.mode(),
                policy: trial.policy.name().to_string(),
            }),
        }
    }

    /// The operator's end of a trial: its candidate serves, or goes.
    pub fn finish_trial(
        &self,
        hook: Hook,
        mode: TrialMode,
        how: TrialEnding,
    ) -> Result<TrialStatus, TrialError> {
        let none = TrialError::NoneRuns(hook, mode);
        let table = self.table.load_full();
        let running = table.trial(hook).filter(|trial| trial.mode() == mode);
        let trial = running.ok_or(none.clone())?;
        let reason = "by the operator".to_string();
        if how == TrialEnding::Promoted {
            self.promote(hook, trial, reason, self.ticket())?;
        } else {
            let mut books = self.books();
            if !self.runs(hook, trial) {
                return Err(none);
            }
            self.end_trial(&mut books, hook, how, reason);
        }
        let ended = self.books()[hook as usize].last_trial.clone().ok_or(none)?;
        let done = format!("its {} was {}", mode.as_str(), how.as_str());
        self.remember_that(hook, &ended.policy, &done);
        Ok(ended)
    }

    /// The trial that runs at a hook, or the last one that ran.
    pub fn trial(&self, hook: Hook) -> Option<TrialStatus> {
        let books = self.books();
        self.trial_in(&books[hook as usize], hook)
    }

    pub fn trial_in(&self, book: &Book, hook: Hook) -> Option<TrialStatus> {
        let table = self.table.load();
        let running = table.trial(hook).map(|t| t.status(hook, None));
        running.or_else(|| book.last_trial.clone())
    }
}

/// The same code on a copy of its state and with these models.
fn harmless(policy: &Policy, copy: Arc<Bucket>, models: Arc<dyn Models>) -> Arc<Policy> {
    Arc::new(policy.with_powers(Arc::new(Powers {
        models,
        ..policy.powers.on(copy)
    })))
}

fn arm_of(canary: &Canary, by: Option<&Arc<Generation>>) -> Arm {
    if by.is_some_and(|g| Arc::ptr_eq(g, &canary.candidate)) {
        Arm::Candidate
    } else {
        Arm::Active
    }
}

fn parameter(name: &str, value: f64, most: &str) -> TrialError {
    TrialError::Parameter(format!(
        "{name} is {value}, expected above 0 and at most {most}"
    ))
}

#[cfg(test)]
mod tests;
