//! Several policies behind one answer.
//!
//! A component may name others in the `.toml` beside it. They are admitted with it, at the
//! same hooks, and each keeps its own options, limits and state; together they are one
//! generation with one breaker and one fallback. A member is called as any policy is: an
//! instance of its own, its own deadline, its faults counted. The instance of the first
//! may serve later hooks of the request; members give theirs back after each call.
//!
//! A chain and a vote ask in a row: a request has one thread, and a Rust policy costs less
//! than waking a second. A hedge is for a policy that costs much more, so it works on a
//! thread of its own while its stand-in answers ([`crate::session`]).

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use homeostat_hooks::{Classification, Decision, Verdict};
use serde::{Deserialize, Serialize};

use crate::call::Policy;
use crate::shadow::Kind;

/// How the answers of several policies become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// The first that neither fails nor abstains, in the order given.
    Chain,
    /// The members answer, in their order until one does, while the component itself works;
    /// it has its deadline, and its answer wins if it comes in time. For slow policies with a
    /// fast stand-in.
    Hedge,
    /// The commonest kind of answer (class, tiers, verdict); among equals the first given.
    Vote,
}

/// `[compose]` in the `.toml` beside a component.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Compose {
    /// How.
    pub mode: Mode,
    /// Other components, relative to the policies' folder; not named after a hook, or they
    /// would be loaded by themselves. Each may have a `.toml` beside it.
    pub members: Vec<PathBuf>,
}

/// Most members besides the component itself: each may take its deadline.
pub(crate) const MEMBERS_MAX: usize = 4;

/// The admitted members.
pub(crate) struct Ensemble {
    pub mode: Mode,
    pub members: Vec<Member>,
}

pub(crate) struct Member {
    pub policy: Arc<Policy>,
    calls: AtomicU64,
    faults: AtomicU64,
    answered: AtomicU64,
}

/// One member of a generation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MemberStats {
    /// Name of its policy.
    pub policy: String,
    /// Calls.
    pub calls: u64,
    /// Of those, the ones that ended as a fault.
    pub faults: u64,
    /// Of those, the ones whose answer was the generation's.
    pub answered: u64,
}

impl Member {
    pub fn new(policy: Arc<Policy>) -> Self {
        Self {
            policy,
            calls: AtomicU64::new(0),
            faults: AtomicU64::new(0),
            answered: AtomicU64::new(0),
        }
    }

    fn stats(&self) -> MemberStats {
        MemberStats {
            policy: self.policy.name().to_string(),
            calls: self.calls.load(Relaxed),
            faults: self.faults.load(Relaxed),
            answered: self.answered.load(Relaxed),
        }
    }
}

/// Has nothing to say, which is not a fault.
pub(crate) trait Abstain {
    fn abstains(&self) -> bool;
}

impl Abstain for Classification {
    fn abstains(&self) -> bool {
        self.confidence == 0.0
    }
}

impl Abstain for Decision {
    fn abstains(&self) -> bool {
        false
    }
}

impl Abstain for Verdict {
    fn abstains(&self) -> bool {
        matches!(self, Self::Undecided)
    }
}

impl Ensemble {
    pub fn stats(&self) -> Vec<MemberStats> {
        self.members.iter().map(Member::stats).collect()
    }

    /// The answer of all. `ask` asks one policy; `main` is the component itself.
    pub fn answer<T: Kind + Abstain, E>(
        &self,
        main: &Arc<Policy>,
        mut ask: impl FnMut(&Arc<Policy>) -> Result<T, E>,
    ) -> Result<T, E> {
        match self.mode {
            Mode::Chain => {
                let mut given = ask(main);
                for member in &self.members {
                    if given.as_ref().is_ok_and(|answer| !answer.abstains()) {
                        return given;
                    }
                    if let Some(answer) = member.ask(&mut ask)
                        && (given.is_err() || !answer.abstains())
                    {
                        member.answered.fetch_add(1, Relaxed);
                        given = Ok(answer);
                    }
                }
                given
            }
            Mode::Hedge => {
                let stand_in = self.stand_in(&mut ask);
                self.hedged(ask(main), stand_in)
            }
            Mode::Vote => {
                let first = ask(main);
                let (mut ballots, error) = match first {
                    Ok(answer) => (vec![(None, answer)], None),
                    Err(error) => (Vec::new(), Some(error)),
                };
                for member in &self.members {
                    ballots.extend(member.ask(&mut ask).map(|answer| (Some(member), answer)));
                }
                match (elected(&ballots), error) {
                    (Some(winner), _) => {
                        let (member, answer) = ballots.swap_remove(winner);
                        if let Some(member) = member {
                            member.answered.fetch_add(1, Relaxed);
                        }
                        Ok(answer)
                    }
                    (None, Some(error)) => Err(error),
                    (None, None) => unreachable!("without an error there is the first ballot"),
                }
            }
        }
    }
}

impl Ensemble {
    /// The first member that neither fails nor abstains.
    pub fn stand_in<T: Abstain, E>(
        &self,
        mut ask: impl FnMut(&Arc<Policy>) -> Result<T, E>,
    ) -> Option<(&Member, T)> {
        self.members.iter().find_map(|member| {
            let answer = member.ask(&mut ask).filter(|a| !a.abstains())?;
            Some((member, answer))
        })
    }

    /// What counts of the component's answer and its stand-in's.
    pub fn hedged<T: Abstain, E>(
        &self,
        given: Result<T, E>,
        stand_in: Option<(&Member, T)>,
    ) -> Result<T, E> {
        match (given, stand_in) {
            (Ok(answer), None) => Ok(answer),
            (Ok(answer), Some(_)) if !answer.abstains() => Ok(answer),
            (_, Some((member, answer))) => {
                member.answered.fetch_add(1, Relaxed);
                Ok(answer)
            }
            (Err(error), None) => Err(error),
        }
    }
}

impl Member {
    fn ask<T, E>(&self, ask: &mut impl FnMut(&Arc<Policy>) -> Result<T, E>) -> Option<T> {
        self.calls.fetch_add(1, Relaxed);
        let answer = ask(&self.policy).ok();
        if answer.is_none() {
            self.faults.fetch_add(1, Relaxed);
        }
        answer
    }
}

/// The first ballot of the commonest kind. Abstentions count only among themselves.
fn elected<T: Kind + Abstain>(ballots: &[(Option<&Member>, T)]) -> Option<usize> {
    let kinds: Vec<(bool, String)> = ballots
        .iter()
        .map(|(_, answer)| (!answer.abstains(), answer.kind()))
        .collect();
    let votes = |i: usize| kinds.iter().filter(|k| **k == kinds[i]).count();
    // Of equals, `max_by_key` takes the last, so the order is turned.
    (0..ballots.len())
        .rev()
        .max_by_key(|i| (kinds[*i].0, votes(*i)))
}

#[cfg(test)]
mod tests;
