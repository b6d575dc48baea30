//! A restart: what was active before is admitted again and serves, ahead of the folder and
//! of what comes with the binary.
//!
//! Nothing is trusted because it served before: a stored component passes the whole
//! admission of this host. Where the last one no longer does, the one before it is tried,
//! and so on; the status tells why. What was kept for rollback is compiled when somebody
//! rolls back, so that it does not delay the start. A trial goes on when all who serve are
//! known ([`Room::resume_trials`]); what it had found is not written down at every call, so
//! its evidence begins anew.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use homeostat_hooks::Hook;

use crate::admit::Kind;
use crate::call::Policy;
use crate::history::{Entry, FileRecord, History, HookRecord, Stored};
use crate::room::{NothingKept, Room};

/// Policies that were admitted again, so that one which served several hooks is one.
type Revived = Vec<(Stored, Arc<Policy>)>;

impl Room {
    /// Begins where the last life ended. Without a state folder, or while another host has
    /// it, nothing is known and nothing will be.
    pub fn recall(&self) {
        let Some(dir) = &self.config.state_dir else {
            return;
        };
        let (history, record) = match History::open(dir) {
            Ok(opened) => opened,
            Err(error) => {
                tracing::warn!(
                    "a restart will not know what was active: {} cannot be used: {error}",
                    dir.display()
                );
                return;
            }
        };
        let _one = self.one_admission();
        let mut revived = Revived::new();
        let mut all_well = true;
        for (hook, was) in &record.hooks {
            all_well &= self.recall_hook(&history, *hook, was, &mut revived);
        }
        if !all_well {
            // Whatever the folder has is a better guess than an older generation.
            // What cannot be written is in the log, and the folder is looked at all the same.
            let _ = history.write(|record| record.files.clear());
        }
        if self.history.set(history).is_err() {
            tracing::error!("the policies were recalled twice");
        }
    }

    /// Answers whether the hook is as it was.
    fn recall_hook(
        &self,
        history: &History,
        hook: Hook,
        was: &HookRecord,
        revived: &mut Revived,
    ) -> bool {
        let mut kept: VecDeque<Entry> = was.kept.clone().into();
        let mut candidate = was.active.clone();
        let mut serving = None;
        let mut as_it_was = true;
        while let Some(entry) = candidate {
            if entry.policy.embedded {
                // It is about to be embedded, as the generation that it was.
                serving = Some((None, entry.generation));
                break;
            }
            match self.revive(history, &entry.policy, revived) {
                Ok(policy) => {
                    serving = Some((Some(policy), entry.generation));
                    break;
                }
                Err(text) => {
                    let text = format!("it served before the restart and no longer can: {text}");
                    tracing::error!(policy = entry.policy.name, hook = hook.as_str(), "{text}");
                    self.note(&[hook], &entry.policy.name, false, &text);
                    as_it_was = false;
                    candidate = kept.pop_back();
                }
            }
        }
        let number = match &serving {
            Some((_, generation)) if as_it_was => Some(*generation),
            _ => None,
        };
        {
            let mut books = self.books();
            let book = &mut books[hook as usize];
            book.stored = kept;
            book.unloaded = was.unloaded;
            // Those that are no longer active, or were a canary's, are not given out again.
            book.last_number = was.numbers.max(number.unwrap_or(0));
            book.recalled_number = number;
            // Against another policy it would be another trial.
            book.to_resume = was.trial.clone().filter(|_| as_it_was);
        }
        if let Some((Some(policy), _)) = serving {
            self.set(&[hook], Some(&policy));
            tracing::info!(
                policy = policy.name(),
                hook = hook.as_str(),
                generation = self.active(hook),
                "recalled"
            );
        }
        as_it_was
    }

    /// Starts the trials of the life before again, against the policies that they were
    /// measured against. What cannot go on is told by the status.
    pub fn resume_trials(&self) {
        let Some(history) = self.history.get() else {
            return;
        };
        let _one = self.one_admission();
        for hook in Hook::ALL {
            let was = {
                let book = &mut self.books()[hook as usize];
                // Who had it and did not come back has taken it along.
                book.recalled_number = None;
                book.to_resume.take()
            };
            let Some(was) = was else { continue };
            let resumed = self
                .revive(history, &was.policy, &mut Vec::new())
                .and_then(|policy| {
                    let resumed = self.resume_trial(hook, policy, &was);
                    resumed.map_err(|error| error.to_string())
                });
            let name = &was.policy.name;
            match resumed {
                Ok(()) => tracing::info!(policy = name, hook = hook.as_str(), "its trial goes on"),
                Err(why) => {
                    let text = format!("its {} does not go on: {why}", was.mode.as_str());
                    tracing::error!(policy = name, hook = hook.as_str(), "{text}");
                    self.note(&[hook], name, false, &text);
                }
            }
        }
        self.remember();
    }

    /// Admits a stored policy again. Only inside an admission.
    fn revive(
        &self,
        history: &History,
        stored: &Stored,
        revived: &mut Revived,
    ) -> Result<Arc<Policy>, String> {
        if let Some((_, policy)) = revived.iter().find(|(known, _)| known == stored) {
            return Ok(Arc::clone(policy));
        }
        let offer = history
            .read(stored)
            .map_err(|error| format!("its stored component: {error}"))?;
        let (policy, _) = self
            .admit(&offer, Kind::Tried)
            .map_err(|refusal| refusal.to_string())?;
        // They are on the disk.
        policy
            .stored
            .parts()
            .for_each(|part| drop(part.take_bytes()));
        revived.push((stored.clone(), Arc::clone(&policy)));
        Ok(policy)
    }

    /// Back to the newest generation of the life before, or to the one with this number, if it
    /// still passes admission; else it stays kept. Compiles; only inside an admission, which
    /// keeps its component from being forgotten until it serves.
    pub fn back_to_stored(
        &self,
        hook: Hook,
        to: Option<u64>,
        ticket: u64,
    ) -> Result<(Arc<Policy>, u64), NothingKept> {
        let (entry, embedded, others) = {
            let books = self.books();
            let book = &books[hook as usize];
            let kept = book.numbers_kept();
            let entry = match to {
                None => book.stored.back().ok_or(NothingKept::None(hook)),
                Some(asked) => {
                    let none = NothingKept::NotThis {
                        hook,
                        asked,
                        kept: kept.clone(),
                    };
                    book.stored
                        .iter()
                        .find(|e| e.generation == asked)
                        .ok_or(none)
                }
            };
            let entry = entry?.clone();
            let others = kept.into_iter().filter(|n| *n != entry.generation);
            let others = others.collect();
            (entry, book.embedded.clone(), others)
        };
        let revived = if entry.policy.embedded {
            embedded.ok_or_else(|| "it came with a host that this one replaced".to_string())
        } else {
            let closed = "the state folder is closed".to_string();
            let history = self.history.get().ok_or(closed);
            history.and_then(|history| self.revive(history, &entry.policy, &mut Vec::new()))
        };
        let generation = entry.generation;
        let policy = revived.map_err(|why| NothingKept::CannotServe {
            hook,
            generation,
            why,
            others,
        })?;
        let mut books = self.books();
        let book = &mut books[hook as usize];
        book.stored.retain(|e| e.generation != generation);
        book.ticket = book.ticket.max(ticket);
        self.set_back(&mut books, hook, &policy, to.is_some());
        Ok((policy, generation))
    }

    /// Writes down who serves what; returns when it is on the disk, or says why it is not.
    pub fn remember(&self) -> Option<String> {
        let written = self.history.get()?.write(|record| {
            let books = self.books();
            let table = self.table.load();
            let of = |hook: Hook| books[hook as usize].record(&table, hook);
            record.hooks = Hook::ALL.map(|hook| (hook, of(hook))).into();
        });
        written.err()
    }

    /// As [`Self::remember`]; where it cannot be written what was `done`, the hook's last
    /// attempt says so.
    pub fn remember_that(&self, hook: Hook, policy: &str, done: &str) {
        if let Some(warning) = self.remember() {
            self.note(&[hook], policy, true, &format!("{done}, but {warning}"));
        }
    }

    /// Keeps a component for the next life, before it serves. Says why it could not.
    pub fn keep_component(&self, policy: &Policy) -> Option<String> {
        let keep = |stored: &Stored| {
            let bytes = stored.take_bytes()?;
            let error = self.history.get()?.store(&stored.digest, &bytes).err()?;
            let text = format!("a restart will not find it: policies.state_dir: {error}");
            tracing::error!(policy = stored.name, "{text}");
            Some(text)
        };
        // Each of them, also after one that could not be kept.
        policy.stored.parts().filter_map(keep).last()
    }

    /// Forgets components that serve nowhere and that nobody can go back to. Only inside an
    /// admission.
    pub fn forget_components(&self) {
        let Some(history) = self.history.get() else {
            return;
        };
        let mut needed = BTreeSet::new();
        {
            let books = self.books();
            let table = self.table.load();
            for hook in Hook::ALL {
                let record = books[hook as usize].record(&table, hook);
                needed.extend(record.components().cloned());
            }
        }
        history.sweep(&needed);
    }

    /// What the watched folder held when it was last written down.
    pub fn recalled_files(&self) -> BTreeMap<String, FileRecord> {
        self.history.get().map(History::files).unwrap_or_default()
    }

    /// Writes down what the folder holds.
    pub fn remember_files(&self, files: BTreeMap<String, FileRecord>) {
        if let Some(history) = self.history.get() {
            // The next look writes them again.
            let _ = history.write(|record| record.files = files);
        }
    }
}
