//! What stands around a policy in these tests: requests, tiers, models that are slow on
//! purpose, and a room with nothing in it.

use std::sync::Arc;
use std::time::Duration;

use homeostat_hooks::{
    Answer, Classification, Decision, GenerateOptions, Generated, HookReply, Message, ModelError,
    Models, Policies, Request, Role, Session, Snapshot, TierView, Verdict,
};
use homeostat_policy::{
    BreakerConfig, Grant, LimitChanges, Offer, PolicyOptions, PolicyRoom, RoomConfig,
};

/// One model, `small`, that takes ten times as long as it may.
pub struct SlowModels;

fn slow<T>(timeout_ms: u32) -> Result<T, ModelError> {
    std::thread::sleep(Duration::from_millis(10 * u64::from(timeout_ms)));
    Err(ModelError::Unavailable("too slow".into()))
}

impl Models for SlowModels {
    fn names(&self) -> Vec<String> {
        vec!["small".into()]
    }

    fn info(&self, name: &str) -> Result<TierView, ModelError> {
        Ok(TierView {
            id: name.into(),
            ..TierView::default()
        })
    }

    fn count_tokens(&self, _: &str, text: &str) -> Result<u32, ModelError> {
        Ok(text.split_whitespace().count() as u32)
    }

    fn embed(&self, _: &str, _: &str, timeout_ms: u32) -> Result<Vec<f32>, ModelError> {
        slow(timeout_ms)
    }

    fn score(
        &self,
        _: Option<&str>,
        _: &str,
        _: &str,
        _: &str,
        timeout_ms: u32,
    ) -> Result<Vec<f32>, ModelError> {
        slow(timeout_ms)
    }

    fn generate(
        &self,
        _: Option<&str>,
        _: &str,
        _: &str,
        _: &GenerateOptions,
        timeout_ms: u32,
    ) -> Result<Generated, ModelError> {
        slow(timeout_ms)
    }
}

/// A room without a breaker, so that every request meets the policy itself.
pub fn room() -> PolicyRoom {
    room_with(RoomConfig::default())
}

/// The same with another configuration.
pub fn room_with(config: RoomConfig) -> PolicyRoom {
    room_of(config, Arc::new(SlowModels))
}

/// The same with other models.
pub fn room_of(config: RoomConfig, models: Arc<dyn Models>) -> PolicyRoom {
    let breaker = BreakerConfig {
        faults: u32::MAX,
        ..config.breaker
    };
    let config = RoomConfig { breaker, ..config };
    PolicyRoom::new(config, models).expect("a room opens")
}

/// A component with all grants, as an operator who trusts it would put it.
pub fn offer(name: &str, bytes: &[u8]) -> Offer {
    Offer {
        name: name.into(),
        bytes: bytes.to_vec(),
        options: PolicyOptions {
            grants: Some(vec![Grant::Models, Grant::Keyvalue, Grant::Config]),
            ..PolicyOptions::default()
        },
        ..Offer::default()
    }
}

/// The same with limits of its own.
pub fn limited(name: &str, bytes: &[u8], limits: LimitChanges) -> Offer {
    let mut offer = offer(name, bytes);
    offer.options.limits = limits;
    offer
}

/// A request whose only message is this.
pub fn asking(id: &str, text: &str) -> Arc<Request> {
    Arc::new(Request {
        id: id.into(),
        messages: vec![Message {
            role: Role::User,
            content: text.into(),
        }],
        ..Request::default()
    })
}

/// Two tiers that are ready.
pub fn tiers() -> Vec<TierView> {
    ["small", "large"]
        .into_iter()
        .enumerate()
        .map(|(rank, id)| TierView {
            id: id.into(),
            rank: rank as u32,
            ready: true,
            context_tokens: 2048,
            ..TierView::default()
        })
        .collect()
}

/// A good answer of the last step.
pub fn answer() -> Answer {
    Answer {
        tier: "small".into(),
        text: "Paris is the capital of France.".into(),
        logprobs: vec![-0.1; 8],
        ..Answer::default()
    }
}

/// What one request got from its three hooks.
#[derive(Debug)]
pub struct Replies {
    /// From `classify`.
    pub classify: HookReply<Classification>,
    /// From `route`.
    pub route: HookReply<Decision>,
    /// From `validate`.
    pub validate: HookReply<Verdict>,
}

/// Takes one request through all hooks, as the cascade does.
pub fn serve(policies: &dyn Policies, request: Arc<Request>) -> Replies {
    let mut session = policies.begin(request, Arc::new(Snapshot::default()));
    serve_in(&mut *session)
}

/// The same in a session that has begun.
pub fn serve_in(session: &mut dyn Session) -> Replies {
    let classify = session.classify();
    let route = session.route(&classify.value, &tiers());
    let validate = session.validate(&answer());
    Replies {
        classify,
        route,
        validate,
    }
}

/// Memory of this process that is in RAM, in bytes.
pub fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux tells about a process");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|l| l.split_whitespace().next()?.parse::<u64>().ok());
    kib.expect("VmRSS is a number of KiB") << 10
}
