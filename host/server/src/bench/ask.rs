//! Policies of a bench, asked as a host asks them: through the policy room.

use std::path::Path;
use std::sync::Arc;

use homeostat_hooks::{
    Answer, Classification, Finish, Hook, HookReply, Policies, Request, Verdict,
};
use homeostat_policy::{BreakerConfig, Limits, PolicyRoom, RoomConfig};

use crate::commands::room_with;
use crate::config::Config;
use crate::tiers::HostModels;
use crate::{Failure, embedded};

/// Deadline of a call: a busy machine must not change what is measured.
const DEADLINE_MS: u32 = 10_000;

/// One policy in a room of its own.
pub struct Asked {
    room: Arc<PolicyRoom>,
    /// What it is called in tables.
    pub name: String,
    micros: Vec<u64>,
}

impl Asked {
    /// The component of a file or folder, or else the one that comes with the host.
    pub fn open(component: Option<&Path>, hook: Hook) -> Result<Self, Failure> {
        let room = match component {
            Some(path) => room_with(path, hook)?,
            None => embedded_room(&Config::default())?,
        };
        Self::of(Arc::new(room), hook)
    }

    /// The one that stands in a room.
    pub fn of(room: Arc<PolicyRoom>, hook: Hook) -> Result<Self, Failure> {
        let active = room.status().into_iter().find(|slot| slot.hook == hook);
        let active = active.and_then(|slot| slot.active);
        let name = active.map(|generation| generation.policy).ok_or_else(|| {
            Failure::Failed(format!("no policy was admitted for {}", hook.as_str()))
        })?;
        Ok(Self {
            room,
            name,
            micros: Vec::new(),
        })
    }

    pub fn classify(&mut self, request: Request) -> Result<Classification, Failure> {
        let mut session = self.room.begin(Arc::new(request), Arc::default());
        let reply = session.classify();
        self.own(reply)
    }

    /// How sure a validator is that this answer, which ended for this reason, is right, 0 to 1, if
    /// it is the first of two steps.
    pub fn confidence(
        &mut self,
        request: Request,
        text: &str,
        logprobs: &[f32],
        finish: Finish,
    ) -> Result<f64, Failure> {
        let answer = Answer {
            text: text.to_owned(),
            finish,
            logprobs: logprobs.to_vec(),
            steps_left: 1,
            accept_threshold: 0.5,
            ..Answer::default()
        };
        let mut session = self.room.begin(Arc::new(request), Arc::default());
        let reply = session.validate(&answer);
        Ok(confidence_of(&self.own(reply)?))
    }

    /// Its own answer: a fallback's would be measured as if it were the policy's.
    fn own<T>(&mut self, reply: HookReply<T>) -> Result<T, Failure> {
        if let Some(fault) = reply.fault {
            let name = &self.name;
            return Err(Failure::Failed(format!(
                "{name} failed on a recorded row: {fault}"
            )));
        }
        self.micros.push(reply.micros);
        Ok(reply.value)
    }

    /// Time of a call in whole microseconds, median and 99 of 100.
    pub fn micros(&self) -> (u64, u64) {
        let mut sorted = self.micros.clone();
        sorted.sort_unstable();
        let at = |share: f64| {
            let place = (sorted.len() as f64 * share) as usize;
            sorted
                .get(place.min(sorted.len().saturating_sub(1)))
                .copied()
                .unwrap_or(0)
        };
        (at(0.5), at(0.99))
    }
}

/// A validator that has nothing to say is of two minds.
fn confidence_of(verdict: &Verdict) -> f64 {
    match verdict {
        Verdict::Accept(assessment) | Verdict::Escalate(assessment) => {
            f64::from(assessment.confidence)
        }
        Verdict::Amend(amendment) => f64::from(amendment.assessment.confidence),
        Verdict::Reject(_) => 0.0,
        Verdict::Undecided => 0.5,
    }
}

/// The policies that come with the host, in a room in which a busy computer changes no answer.
pub fn embedded_room(config: &Config) -> Result<PolicyRoom, Failure> {
    let room = RoomConfig {
        breaker: BreakerConfig {
            faults: u32::MAX,
            ..BreakerConfig::default()
        },
        limits: Limits {
            deadline_ms: DEADLINE_MS,
            ..Limits::default()
        },
        ..RoomConfig::default()
    };
    let models = HostModels::new(Vec::new(), Vec::new(), None).map_err(Failure::failed)?;
    let room = PolicyRoom::new(room, Arc::new(models)).map_err(Failure::failed)?;
    embedded::load(&room, config);
    Ok(room)
}
