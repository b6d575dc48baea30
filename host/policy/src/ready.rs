//! Instances that are made before they are asked for.
//!
//! A fresh instance of a Rust policy costs microseconds; one of Python or JavaScript, with
//! an interpreter's heap and thousands of table entries, costs hundreds. Where admission
//! and the calls since have measured that a policy is dear, one thread keeps a few of its
//! instances ready and takes the used ones to pieces, so that a request pays the call
//! alone. An instance is still used by one request and no other. Where requests are recorded,
//! notes are taken from the first moment on, since what an instance asks while it is made
//! belongs to the recording; a request that is not chosen drops them. Of a policy that asks
//! for the snapshot while it is made none is kept: there is none yet.
//!
//! Bounds: `policies.ready_instances` over all policies, each within its memory limit; the
//! pool has slots for them besides those of the requests. When a policy leaves the table,
//! its ready instances go.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::call::{Instance, Policy};
use crate::host::Asked;
use crate::limit::Permit;
use crate::tape::Tape;

/// Makes instances, and takes them to pieces.
pub(crate) struct Filler {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    work: Condvar,
    most: usize,
    dear_nanos: u64,
    /// Bytes of notes that an instance may come with; none = nothing is recorded.
    notes: Option<usize>,
}

#[derive(Default)]
struct State {
    pools: Vec<Pool>,
    used: Vec<Instance>,
    stopped: bool,
    taken: u64,
}

struct Pool {
    policy: Arc<Policy>,
    ready: Vec<Instance>,
}

impl Filler {
    /// Starts the thread; it ends with the filler. `notes` is how many bytes of notes an
    /// instance may come with, where requests are recorded.
    pub fn start(most: u32, dear_micros: u64, notes: Option<usize>) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            work: Condvar::new(),
            most: most as usize,
            dear_nanos: dear_micros.saturating_mul(1000),
            notes,
        });
        let worker = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("policy-filler".into())
            .spawn(move || worker.run())?;
        Ok(Self { shared })
    }

    /// Whether instances of this policy are kept ready.
    pub fn is_for(&self, policy: &Policy) -> bool {
        self.shared.is_for(policy)
    }

    /// These policies serve from now on, and no others.
    pub fn serve(&self, policies: &[&Arc<Policy>]) {
        let mut state = self.shared.lock();
        let (kept, gone): (Vec<Pool>, Vec<Pool>) = std::mem::take(&mut state.pools)
            .into_iter()
            .partition(|pool| policies.iter().any(|p| Arc::ptr_eq(p, &pool.policy)));
        state.pools = kept;
        state.used.extend(gone.into_iter().flat_map(|p| p.ready));
        for policy in policies {
            if !state.pools.iter().any(|p| Arc::ptr_eq(&p.policy, policy)) {
                state.pools.push(Pool {
                    policy: Arc::clone(policy),
                    ready: Vec::new(),
                });
            }
        }
        drop(state);
        self.shared.work.notify_one();
    }

    /// An instance that is ready, if there is one.
    pub fn take(&self, policy: &Arc<Policy>) -> Option<Instance> {
        let mut state = self.shared.lock();
        let pool = state
            .pools
            .iter_mut()
            .find(|pool| Arc::ptr_eq(&pool.policy, policy));
        let taken = pool.and_then(|pool| pool.ready.pop());
        state.taken += u64::from(taken.is_some());
        drop(state);
        self.shared.work.notify_one();
        taken
    }

    /// Takes a used instance to pieces, later. Its request does not pay until then.
    pub fn retire(&self, mut instance: Instance) {
        instance.leave_request();
        self.shared.lock().used.push(instance);
        self.shared.work.notify_one();
    }

    /// How often one was there.
    pub fn taken(&self) -> u64 {
        self.shared.lock().taken
    }

    /// Instances that are ready now.
    pub fn ready(&self) -> usize {
        let state = self.shared.lock();
        state.pools.iter().map(|pool| pool.ready.len()).sum()
    }
}

impl Drop for Filler {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        *state = State {
            stopped: true,
            ..State::default()
        };
        drop(state);
        self.shared.work.notify_one();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Lists are complete before and after each change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_for(&self, policy: &Policy) -> bool {
        let powers = &policy.powers;
        self.most > 0 && policy.cost.nanos() >= self.dear_nanos && !powers.asks_early.load(Relaxed)
    }

    /// A policy that has fewer ready instances than its share of the bound. What others have
    /// above theirs is used up first.
    fn wanting(&self, state: &mut State) -> Option<Arc<Policy>> {
        let dear = |pool: &Pool| self.is_for(&pool.policy);
        let each = self.most / state.pools.iter().filter(|p| dear(p)).count().max(1);
        let mut wanting = None;
        for pool in &mut state.pools {
            let share = if dear(pool) { each } else { 0 };
            let surplus = pool.ready.len().saturating_sub(share);
            state.used.extend(pool.ready.drain(..surplus));
            if pool.ready.len() < share && wanting.is_none() {
                wanting = Some(Arc::clone(&pool.policy));
            }
        }
        wanting
    }

    /// An instance that has heard of no request.
    fn make(&self, policy: &Arc<Policy>) -> Option<Instance> {
        let nobody = Arc::new(Asked::new(Arc::default(), Arc::default()));
        let tape = self.notes.map(|bytes| Tape::recording(0, bytes));
        let deadline = policy.deadline();
        let made = Instance::taped(policy, &nobody, Permit::spare(), deadline, tape, None);
        made.ok().filter(|_| self.is_for(policy))
    }

    fn run(&self) {
        let mut state = self.lock();
        while !state.stopped {
            let wanting = self.wanting(&mut state);
            let used = std::mem::take(&mut state.used);
            if used.is_empty() && wanting.is_none() {
                state = self
                    .work
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            drop(state);
            drop(used);
            let made = wanting.map(|policy| (self.make(&policy), policy));
            state = self.lock();
            match made {
                Some((Some(instance), policy)) => {
                    let pools = &mut state.pools;
                    match pools.iter_mut().find(|p| Arc::ptr_eq(&p.policy, &policy)) {
                        Some(pool) => pool.ready.push(instance),
                        None => state.used.push(instance),
                    }
                }
                // The request that needs one tells the fault; until one can be made there
                // again, it is left to the requests.
                Some((None, policy)) => policy.cost.forget(),
                None => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use homeostat_hooks::{Hook, Policies, Request, Snapshot};

    use crate::guests::{self, FakeModels};
    use crate::{Offer, PolicyRoom, RoomConfig};

    /// Everything is dear here, so that small guests will do.
    fn room(ready_instances: u32) -> PolicyRoom {
        let config = RoomConfig {
            instances: 4,
            ready_instances,
            ready_above_micros: 0,
            ..RoomConfig::default()
        };
        PolicyRoom::new(config, Arc::new(FakeModels)).unwrap()
    }

    fn put(room: &PolicyRoom, name: &str, bytes: Vec<u8>) {
        let offer = Offer {
            name: name.into(),
            bytes,
            ..Offer::default()
        };
        room.put(offer).unwrap_or_else(|e| panic!("{e}"));
    }

    fn wait_for(room: &PolicyRoom, ready: usize) {
        while room.stats().ready != ready {
            std::thread::yield_now();
        }
    }

    /// Answers with the first byte of the id, as a confidence, plus 0.01 a call.
    fn first_byte_and_calls() -> Vec<u8> {
        let cases = "(drop (call $good))
            (f32.store (i32.const 1052) (f32.add (f32.load (i32.const 1052))
              (f32.div (f32.convert_i32_u (i32.load8_u (i32.load (local.get 0)))) (f32.const 256))))
            (return (i32.const 1024))";
        guests::classifier("", "", cases)
    }

    #[test]
    fn a_ready_instance_is_fresh_and_knows_the_request_that_it_is_given() {
        let room = room(2);
        put(&room, "p", first_byte_and_calls());
        for byte in b'0'..=b'z' {
            wait_for(&room, 2);
            let request = Request {
                id: char::from(byte).to_string().repeat(7),
                ..Request::default()
            };
            let mut session = room.begin(Arc::new(request), Arc::new(Snapshot::default()));
            let confidence = session.classify().value.confidence;
            let expected = f32::from(byte) / 256.0 + 0.01;
            assert!(
                (confidence - expected).abs() < 1e-4,
                "{confidence} {expected}"
            );
        }
    }

    #[test]
    fn what_does_not_serve_is_not_kept_ready_and_the_bound_holds_over_all() {
        let room = room(2);
        put(&room, "c", first_byte_and_calls());
        put(&room, "r", guests::router("r"));
        wait_for(&room, 2);
        room.unload(Hook::Route);
        room.unload(Hook::Classify);
        wait_for(&room, 0);
        assert_eq!(room.stats().instances, 0);
    }

    /// Looks at the snapshot while it is made, and answers whether it told of a device.
    fn looks_around_first() -> Vec<u8> {
        let head = r#"(import "homeostat:policy/telemetry@0.1.0" "current"
            (func $current (param i32)))"#;
        // The devices follow two times and the profile: their number is at 24.
        let extra = r#"(global $devices (mut i32) (i32.const 0))
            (func (export "_initialize")
              (call $current (i32.const 4096))
              (global.set $devices (i32.load (i32.const 4120))))"#;
        let cases = "(drop (call $good))
            (f32.store (i32.const 1052) (f32.convert_i32_u (global.get $devices)))
            (return (i32.const 1024))";
        guests::classifier(head, extra, cases)
    }

    #[test]
    fn a_policy_that_looks_around_while_it_is_made_sees_the_requests_machine() {
        let room = room(2);
        put(&room, "p", looks_around_first());
        let snapshot = Arc::new(Snapshot {
            devices: vec![homeostat_hooks::Device::default()],
            ..Snapshot::default()
        });
        for _ in 0..20 {
            let mut session = room.begin(guests::request(7), Arc::clone(&snapshot));
            let reply = session.classify();
            assert_eq!((reply.value.confidence, reply.fault), (1.0, None));
        }
        assert_eq!((room.stats().ready, room.stats().ready_taken), (0, 0));
    }

    #[test]
    fn with_none_kept_ready_every_request_makes_its_own() {
        let room = room(0);
        put(&room, "r", guests::router("r"));
        let request = guests::request(7);
        let mut session = room.begin(request, Arc::new(Snapshot::default()));
        let reply = session.route(&Default::default(), &[]);
        assert!(reply.by != homeostat_hooks::AnsweredBy::BuiltIn);
        assert_eq!(room.stats().ready, 0);
    }
}
