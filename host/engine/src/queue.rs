//! Which waiting sequence is computed next.
//!
//! It exists because a queue in order of arrival belongs to whoever sends most. The order here:
//!
//! 1. **Class**: the lower `priority` goes first, as for vLLM.
//! 2. Inside a class, sequences that were **preempted**, in the order in which they were first
//!    admitted: their readers have seen a beginning.
//! 3. Then the **tenant** that has received least: start-time fair queueing (Goyal, Vin, Cheng:
//!    "Start-time Fair Queuing", 1996) over virtual service time, which grows by rows divided by
//!    the tenant's weight. Costs are charged when they are known, as in the Virtual Token Counter
//!    (Sheng et al.: "Fairness in Serving Large Language Models", 2024). Ties go to the tenant
//!    that has waited longest for its turn.
//! 4. Inside a tenant, the **earliest deadline**. A sequence without one is ordered as if it
//!    expired [`LENIENCE`] after its arrival, and one with a later deadline likewise.
//!
//! Nothing starves. A lower class whose oldest member has waited [`PATIENCE`] gets every
//! [`AGEING_TURN`]th admission, so priority means "sooner", never "instead of". A tenant that
//! returns starts at the clock of its class, which advances with the service of the class: it
//! banks no credit for the time it was away, and an endless row of new tenants cannot keep an old
//! one waiting. A later arrival of the same tenant overtakes only those younger than `LENIENCE`.
//!
//! The module refuses to look at a clock, at blocks or at what runs, and to drop anything.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use crate::sequence::{Sequence, SequenceId, State};

/// How long a class waits behind others before every [`AGEING_TURN`]th admission is its own: a
/// reader's patience, so that a lower class is noticed before its clients leave.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// One admission in this many goes to an overdue class: an eighth is enough for progress and
/// little enough that the higher class keeps what it was promised.
pub const AGEING_TURN: u32 = 8;

/// The deadline by which sequences without one are ordered among their tenant's others.
pub const LENIENCE: Duration = Duration::from_secs(60);

/// Largest weight of a tenant.
pub const MAX_TENANT_WEIGHT: u32 = 1 << 20;

/// Virtual time is service in rows times this, over the weight, so that every weight divides a row
/// without losing it. 2^44 rows fit, a century of a fast CPU.
const ROW: u64 = MAX_TENANT_WEIGHT as u64;

/// Accounts of absent tenants that are kept before they are looked through.
const ACCOUNTS_SLACK: usize = 64;

/// The sequences that wait, and what their tenants have received.
#[derive(Default)]
pub struct FairQueue {
    classes: BTreeMap<i8, Class>,
    /// Where each waiting sequence stands.
    places: HashMap<SequenceId, Place>,
    /// Of new arrivals that have one, earliest first.
    deadlines: BTreeSet<(Duration, SequenceId)>,
    /// Shares of tenants other than 1.
    weights: HashMap<u64, u32>,
    /// Numbers arrivals and turns.
    ticks: u64,
    /// Admissions since an overdue class had its turn.
    passed_over: u32,
}

/// The sequences of one priority.
#[derive(Default)]
struct Class {
    /// By first admission, then by id.
    preempted: BTreeMap<(Duration, SequenceId), Sequence>,
    accounts: BTreeMap<u64, Account>,
    /// All of them, oldest first.
    arrivals: BTreeSet<(Duration, SequenceId)>,
    /// Virtual time at which a tenant that was away begins.
    clock: u64,
    /// Sum of the weights of the tenants that wait.
    waiting_weight: u64,
}

/// What one tenant has received in one class, and what it still waits for.
#[derive(Default)]
struct Account {
    virtual_time: u64,
    /// When it began to wait or had its last turn, in ticks.
    since: u64,
    waiting: BTreeMap<Turn, Sequence>,
}

/// The order inside a tenant: deadline, then arrival.
type Turn = (Duration, u64);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    class: i8,
    lane: Lane,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lane {
    Preempted(Duration, SequenceId),
    Fresh(u64, Turn),
}

impl FairQueue {
    /// `weights` are the shares of tenants, from 1 to [`MAX_TENANT_WEIGHT`]; who is not named has 1.
    pub fn new(weights: HashMap<u64, u32>) -> Self {
        Self {
            weights,
            ..Self::default()
        }
    }

    fn weight(&self, tenant: u64) -> u64 {
        u64::from(self.weights.get(&tenant).copied().unwrap_or(1)).clamp(1, ROW)
    }

    /// A new arrival.
    pub fn push(&mut self, sequence: Sequence) {
        let arrived = sequence.milestones.arrived;
        let lenient = arrived.saturating_add(LENIENCE);
        let due = sequence.deadline.map_or(lenient, |d| d.min(lenient));
        let turn = (due, self.tick());
        let place = Place {
            class: sequence.priority,
            lane: Lane::Fresh(sequence.tenant, turn),
        };
        if let Some(deadline) = sequence.deadline {
            self.deadlines.insert((deadline, sequence.id));
        }
        let weight = self.weight(sequence.tenant);
        let class = self.enter(&sequence, place);
        let start = class.start();
        let account = class.accounts.entry(sequence.tenant).or_default();
        if account.waiting.is_empty() {
            account.virtual_time = account.virtual_time.max(start);
            account.since = turn.1;
            class.waiting_weight += weight;
        }
        account.waiting.insert(turn, sequence);
    }

    /// A sequence that gave way while it ran. It stands before the new arrivals of its class, and
    /// its deadline is met: what a reader sees must not depend on a preemption.
    pub fn push_preempted(&mut self, sequence: Sequence) {
        // Preempted before its first step: behind those that have shown something.
        let started = sequence.milestones.started.unwrap_or(Duration::MAX);
        let place = Place {
            class: sequence.priority,
            lane: Lane::Preempted(started, sequence.id),
        };
        let class = self.enter(&sequence, place);
        class.preempted.insert((started, sequence.id), sequence);
    }

    fn tick(&mut self) -> u64 {
        self.ticks += 1;
        self.ticks
    }

    /// Writes a sequence into everything but its lane.
    fn enter(&mut self, sequence: &Sequence, place: Place) -> &mut Class {
        debug_assert_eq!(sequence.state, State::Waiting);
        let before = self.places.insert(sequence.id, place);
        assert!(before.is_none(), "sequence {} waits twice", sequence.id.0);
        let class = self.classes.entry(place.class).or_default();
        let arrived = sequence.milestones.arrived;
        class.arrivals.insert((arrived, sequence.id));
        class
    }

    /// The sequence that [`FairQueue::pop`] would give at the same time. Looks at every tenant of
    /// one class, at no sequence twice.
    pub fn peek(&self, now: Duration) -> Option<&Sequence> {
        let priority = self.next_class(now)?;
        let class = &self.classes[&priority];
        match class.first()? {
            Lane::Preempted(started, id) => class.preempted.get(&(started, id)),
            Lane::Fresh(tenant, turn) => class.accounts[&tenant].waiting.get(&turn),
        }
    }

    /// Takes the next sequence out. Charge what it is given in this step before asking again, or
    /// the next one will be the same tenant's.
    pub fn pop(&mut self, now: Duration) -> Option<Sequence> {
        let priority = self.next_class(now)?;
        let first = self.first_class()?;
        self.passed_over = match self.overdue_class(now, first) {
            Some(_) if priority == first => self.passed_over + 1,
            _ => 0,
        };
        let lane = self.classes[&priority].first()?;
        let tick = self.tick();
        let class = self.classes.get_mut(&priority)?;
        if let Lane::Fresh(tenant, _) = lane
            && let Some(account) = class.accounts.get_mut(&tenant)
        {
            account.since = tick;
            class.clock = class.clock.max(account.virtual_time);
        }
        let place = Place {
            class: priority,
            lane,
        };
        Some(self.leave(place))
    }

    /// Takes a sequence out, if it waits here.
    pub fn remove(&mut self, id: SequenceId) -> Option<Sequence> {
        let place = *self.places.get(&id)?;
        Some(self.leave(place))
    }

    /// Takes those out that never ran and whose deadline is not after `now`, earliest first: an
    /// answer that has not begun by then would come too late.
    pub fn expired(&mut self, now: Duration) -> Vec<Sequence> {
        let mut expired = Vec::new();
        while let Some(&(deadline, id)) = self.deadlines.first()
            && deadline <= now
        {
            expired.extend(self.remove(id));
        }
        expired
    }

    fn leave(&mut self, place: Place) -> Sequence {
        let class = self.classes.get_mut(&place.class);
        let class = class.expect("a place names a class that is there");
        let (sequence, served) = match place.lane {
            Lane::Preempted(started, id) => (class.preempted.remove(&(started, id)), None),
            Lane::Fresh(tenant, turn) => {
                let account = class.accounts.get_mut(&tenant);
                let account = account.expect("a tenant that waits has an account");
                let sequence = account.waiting.remove(&turn);
                (sequence, account.waiting.is_empty().then_some(tenant))
            }
        };
        let sequence = sequence.expect("a place names a sequence that is there");
        class
            .arrivals
            .remove(&(sequence.milestones.arrived, sequence.id));
        self.places.remove(&sequence.id);
        if let Some(deadline) = sequence.deadline {
            self.deadlines.remove(&(deadline, sequence.id));
        }
        if let Some(tenant) = served {
            let weight = self.weight(tenant);
            let class = self.classes.get_mut(&place.class);
            let class = class.expect("it was there a moment ago");
            class.waiting_weight -= weight;
            class.forget_settled();
        }
        sequence
    }

    /// Service that a tenant receives in the class of `priority`: rows that are computed for it,
    /// prompt and answer and drafts alike, also those that are computed again. Charge a step's
    /// rows when they are planned.
    pub fn charge(&mut self, tenant: u64, priority: i8, rows: usize) {
        let weight = self.weight(tenant);
        let class = self.classes.entry(priority).or_default();
        let cost = (rows as u64).saturating_mul(ROW);
        let clock = class.clock;
        let account = class.accounts.entry(tenant).or_insert_with(|| Account {
            virtual_time: clock,
            ..Account::default()
        });
        account.virtual_time = account.virtual_time.saturating_add(cost / weight);
        let absent = if account.waiting.is_empty() {
            weight
        } else {
            0
        };
        // The mean over everybody who shares the service.
        let share = cost / (class.waiting_weight + absent);
        class.clock = class.clock.saturating_add(share);
    }

    /// All of them, in no promised order.
    pub fn iter(&self) -> impl Iterator<Item = &Sequence> {
        self.classes.values().flat_map(|class| {
            let fresh = class.accounts.values().flat_map(|a| a.waiting.values());
            class.preempted.values().chain(fresh)
        })
    }

    /// All of them, in no promised order. What places a sequence must stay as it is: its id,
    /// tenant, priority, deadline and time of arrival.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Sequence> {
        self.classes.values_mut().flat_map(|class| {
            let accounts = class.accounts.values_mut();
            let fresh = accounts.flat_map(|a| a.waiting.values_mut());
            class.preempted.values_mut().chain(fresh)
        })
    }

    pub fn num_preempted(&self) -> usize {
        self.classes.values().map(|c| c.preempted.len()).sum()
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.places.len()
    }

    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    fn first_class(&self) -> Option<i8> {
        let mut waiting = self.classes.iter().filter(|(_, c)| !c.arrivals.is_empty());
        waiting.next().map(|(priority, _)| *priority)
    }

    /// Of the classes below `first`, the one that has waited longest, if that is too long.
    fn overdue_class(&self, now: Duration, first: i8) -> Option<i8> {
        let below = self.classes.range(first.saturating_add(1)..);
        let oldest = below
            .filter_map(|(priority, class)| Some((class.arrivals.first()?.0, *priority)))
            .min()?;
        let overdue = now.saturating_sub(oldest.0) >= PATIENCE && oldest.1 != first;
        overdue.then_some(oldest.1)
    }

    fn next_class(&self, now: Duration) -> Option<i8> {
        let first = self.first_class()?;
        if self.passed_over + 1 < AGEING_TURN {
            return Some(first);
        }
        Some(self.overdue_class(now, first).unwrap_or(first))
    }
}

impl Class {
    /// Where the next of this class stands.
    fn first(&self) -> Option<Lane> {
        if let Some(&(started, id)) = self.preempted.keys().next() {
            return Some(Lane::Preempted(started, id));
        }
        let waiting = self.accounts.iter();
        let waiting = waiting.filter(|(_, account)| !account.waiting.is_empty());
        let (tenant, account) = waiting.min_by_key(|(_, a)| (a.virtual_time, a.since))?;
        Some(Lane::Fresh(*tenant, *account.waiting.keys().next()?))
    }

    /// Where a tenant begins that was away: at the clock, but not outside of what those who wait
    /// have received, so that an arrival never widens the differences between them.
    fn start(&self) -> u64 {
        let waiting = self.accounts.values().filter(|a| !a.waiting.is_empty());
        let (low, high) = waiting.fold((u64::MAX, 0), |(low, high), a| {
            (low.min(a.virtual_time), high.max(a.virtual_time))
        });
        if low > high {
            return self.clock;
        }
        self.clock.clamp(low, high)
    }

    /// Accounts of tenants that are away and would begin at the clock anyway say nothing, so their
    /// number follows that of the sequences.
    fn forget_settled(&mut self) {
        if self.arrivals.is_empty() {
            // The end of a busy period: nobody waits, so nobody has a claim on anybody.
            let latest = self.accounts.values().map(|a| a.virtual_time).max();
            self.clock = self.clock.max(latest.unwrap_or(0));
            self.accounts.clear();
        } else if self.accounts.len() > 2 * self.arrivals.len() + ACCOUNTS_SLACK {
            let clock = self.clock;
            self.accounts
                .retain(|_, a| !a.waiting.is_empty() || a.virtual_time > clock);
        }
    }
}

/// Who gives way when the pool runs dry: the lowest priority, and among those the newest. The
/// oldest of the highest class is never the answer while another one runs, so it always finishes.
/// `running` is oldest admission first and not empty.
pub fn victim(running: &[Sequence]) -> usize {
    let candidates = running.iter().enumerate();
    let victim = candidates.max_by_key(|(index, s)| (s.priority, *index));
    victim.expect("somebody runs, or nobody would need room").0
}

#[cfg(test)]
mod tests;
