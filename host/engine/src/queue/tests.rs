//! The queue against a model that sorts a plain list, and its promises one by one.

use std::cmp::Reverse;

use super::*;
use crate::events::{Closed, Event, Sink};
use crate::random::SplitMix;
use crate::sampler::SamplingParams;
use crate::sequence::{Order, Purpose};

struct Nobody;

impl Sink for Nobody {
    fn event(&mut self, _: Event) -> Result<(), Closed> {
        Err(Closed)
    }
}

fn seconds(s: u64) -> Duration {
    Duration::from_secs(s)
}

fn sequence(id: u64, tenant: u64, arrived: Duration) -> Sequence {
    let mut sequence = Sequence::new(Order {
        id: SequenceId(id),
        tokens: vec![1],
        purpose: Purpose::Generate { end: 2 },
        params: SamplingParams::default(),
        default_seed: 0,
        stops: Vec::new(),
        arrived,
        sink: Box::new(Nobody),
    });
    sequence.tenant = tenant;
    sequence
}

fn of_class(priority: i8, mut sequence: Sequence) -> Sequence {
    sequence.priority = priority;
    sequence
}

fn due(at: u64, mut sequence: Sequence) -> Sequence {
    sequence.deadline = Some(seconds(at));
    sequence
}

fn ids(sequences: impl IntoIterator<Item = Sequence>) -> Vec<u64> {
    sequences.into_iter().map(|s| s.id.0).collect()
}

fn drain(queue: &mut FairQueue, now: Duration) -> Vec<u64> {
    ids(std::iter::from_fn(|| queue.pop(now)))
}

#[test]
fn one_tenant_of_one_class_is_served_in_order_of_arrival() {
    let mut queue = FairQueue::default();
    assert!(queue.is_empty() && queue.peek(seconds(0)).is_none());
    for id in 0..5 {
        queue.push(sequence(id, 0, seconds(id)));
    }
    assert_eq!(drain(&mut queue, seconds(5)), [0, 1, 2, 3, 4]);
}

#[test]
fn lower_priorities_go_first_and_urgency_inside_a_tenant_is_by_deadline() {
    let mut queue = FairQueue::default();
    let at = seconds(1);
    queue.push(of_class(5, due(2, sequence(0, 1, at))));
    queue.push(of_class(0, sequence(1, 1, at)));
    queue.push(of_class(0, due(30, sequence(2, 1, at))));
    queue.push(of_class(0, due(20, sequence(3, 1, at))));
    // Later than LENIENCE after arrival: as if it had none.
    queue.push(of_class(0, due(900, sequence(4, 1, at))));
    queue.push(of_class(-3, sequence(5, 1, at)));
    assert_eq!(drain(&mut queue, at), [5, 3, 2, 1, 4, 0]);
}

#[test]
fn tenants_take_turns_however_much_one_of_them_sends() {
    let mut queue = FairQueue::default();
    for id in 0..10 {
        queue.push(sequence(id, 1, seconds(0)));
    }
    queue.push(sequence(10, 2, seconds(1)));
    queue.push(sequence(11, 2, seconds(1)));
    let order: Vec<u64> = (0..5)
        .map(|_| {
            let next = queue.pop(seconds(1)).expect("ten wait");
            queue.charge(next.tenant, 0, 100);
            next.tenant
        })
        .collect();
    assert_eq!(order, [1, 2, 1, 2, 1]);
}

#[test]
fn sequences_past_their_deadline_are_handed_out_unless_they_had_begun() {
    let mut queue = FairQueue::default();
    queue.push(due(5, sequence(0, 1, seconds(0))));
    queue.push(due(3, sequence(1, 2, seconds(0))));
    queue.push(due(9, sequence(2, 2, seconds(0))));
    queue.push(sequence(3, 2, seconds(0)));
    queue.push_preempted(due(1, sequence(4, 2, seconds(0))));
    assert!(queue.expired(seconds(2)).is_empty());
    assert_eq!(ids(queue.expired(seconds(5))), [1, 0]);
    assert_eq!(ids(queue.expired(seconds(100))), [2]);
    assert_eq!(queue.len(), 2);
    assert_eq!(drain(&mut queue, seconds(100)), [4, 3]);
}

#[test]
fn preempted_sequences_come_back_before_their_peers_oldest_admission_first() {
    let mut queue = FairQueue::default();
    queue.push(sequence(0, 1, seconds(0)));
    queue.push(of_class(-1, sequence(1, 1, seconds(9))));
    for (id, started) in [(2, Some(4)), (3, Some(2)), (4, None), (5, Some(3))] {
        let mut sequence = sequence(id, 7, seconds(1));
        sequence.milestones.started = started.map(seconds);
        queue.push_preempted(sequence);
    }
    assert_eq!(drain(&mut queue, seconds(9)), [1, 3, 5, 2, 4, 0]);
}

#[test]
fn who_was_away_has_no_claim_on_what_others_received_meanwhile() {
    let mut queue = FairQueue::default();
    let mut id = 0;
    let mut push = |queue: &mut FairQueue, tenant| {
        id += 1;
        queue.push(sequence(id, tenant, seconds(0)));
    };
    for _ in 0..200 {
        push(&mut queue, 1);
    }
    for _ in 0..100 {
        let next = queue.pop(seconds(0)).expect("200 wait");
        queue.charge(next.tenant, 0, 1_000);
    }
    for _ in 0..100 {
        push(&mut queue, 2);
    }
    let served = (0..20).filter(|_| {
        let next = queue.pop(seconds(0)).expect("200 wait");
        queue.charge(next.tenant, 0, 1_000);
        next.tenant == 2
    });
    assert!((9..=11).contains(&served.count()), "an equal share");
}

/// Slots that run one request each, a step at a time, as the engine does.
struct Server {
    queue: FairQueue,
    running: Vec<(Sequence, usize)>,
    slots: usize,
    received: HashMap<u64, u64>,
}

const STEP_ROWS: usize = 16;

impl Server {
    fn step(&mut self, now: Duration, mut cost: impl FnMut(&Sequence) -> usize) {
        while self.running.len() < self.slots {
            let Some(sequence) = self.queue.pop(now) else {
                break;
            };
            let rows = cost(&sequence);
            self.running.push((sequence, rows));
            self.give(self.running.len() - 1);
        }
        // The newcomers have had their rows; the loop is the next step's.
        for index in 0..self.running.len() {
            self.give(index);
        }
        self.running.retain(|(_, left)| *left > 0);
    }

    fn give(&mut self, index: usize) {
        let (sequence, left) = &mut self.running[index];
        let rows = STEP_ROWS.min(*left);
        *left -= rows;
        self.queue.charge(sequence.tenant, sequence.priority, rows);
        *self.received.entry(sequence.tenant).or_default() += rows as u64;
    }
}

#[test]
fn tenants_that_always_wait_never_differ_by_more_than_what_runs_at_once() {
    for seed in 0..60 {
        let mut random = SplitMix::new(seed);
        let slots = [1, 1, 2, 8][random.below(4)];
        let largest = 1 + random.below(2_000);
        let weights = [1 + random.below(4) as u32, 1 + random.below(4) as u32];
        let mut server = Server {
            queue: FairQueue::new(HashMap::from([(1, weights[0]), (2, weights[1])])),
            running: Vec::new(),
            slots,
            received: HashMap::new(),
        };
        let mut id = 0;
        // Tenant 1 asks for much each time, tenant 2 for whatever, others come and go.
        let sizes: Vec<usize> = (0..4_096).map(|_| 1 + random.below(largest)).collect();
        for step in 0..3_000 {
            let mut push = |queue: &mut FairQueue, tenant| {
                id += 1;
                queue.push(sequence(id, tenant, seconds(step)));
            };
            for tenant in [1, 2] {
                while server.queue.iter().filter(|s| s.tenant == tenant).count() <= slots {
                    push(&mut server.queue, tenant);
                }
            }
            if random.below(10) == 0 {
                push(&mut server.queue, 3 + random.below(20) as u64);
            }
            server.step(seconds(step), |s| match s.tenant {
                1 => largest,
                _ => sizes[s.id.0 as usize % sizes.len()],
            });
            let [one, two] = [1u64, 2].map(|tenant| {
                let rows = server.received.get(&tenant).copied().unwrap_or(0);
                rows as f64 / f64::from(weights[tenant as usize - 1])
            });
            let bound = (slots * largest + STEP_ROWS) as f64;
            assert!(
                (one - two).abs() <= bound,
                "seed {seed}, step {step}: {one} and {two} differ by more than {bound}"
            );
        }
    }
}

#[test]
fn a_low_class_is_served_under_an_endless_load_of_higher_ones() {
    for seed in 0..20 {
        let mut random = SplitMix::new(seed);
        let mut queue = FairQueue::default();
        let low = 30u64;
        for id in 0..low {
            let class = 1 + random.below(100) as i8;
            queue.push(of_class(class, sequence(id, id % 7, seconds(0))));
        }
        let mut served = Vec::new();
        let mut pops = 0u64;
        while served.len() < low as usize {
            // One a second arrives, one a second is served: without ageing the low never are.
            queue.push(sequence(low + pops, 1, seconds(pops)));
            let next = queue.pop(seconds(pops)).expect("somebody waits");
            queue.charge(next.tenant, next.priority, 1 + random.below(100));
            if next.id.0 < low {
                assert!(
                    pops >= PATIENCE.as_secs(),
                    "seed {seed}: priority is strict"
                );
                served.push(next.id.0);
            }
            pops += 1;
            let bound = PATIENCE.as_secs() + u64::from(AGEING_TURN) * low;
            assert!(pops <= bound, "seed {seed}: starved after {pops}");
        }
    }
}

#[test]
fn an_endless_row_of_new_tenants_cannot_keep_an_old_one_waiting() {
    let mut queue = FairQueue::default();
    // The old tenant has received far more than its share before the others come.
    for id in 0..50 {
        queue.push(sequence(id, 1, seconds(0)));
    }
    queue.push(sequence(50, 2, seconds(0)));
    queue.charge(1, 0, 5_000);
    let mut waited = 0;
    for id in 51..5_000 {
        queue.push(sequence(id, id, seconds(0)));
        let next = queue.pop(seconds(0)).expect("somebody waits");
        queue.charge(next.tenant, 0, 100);
        if next.tenant == 1 {
            return assert!(waited > 10, "its debt counted for something");
        }
        waited += 1;
    }
    panic!("starved behind {waited} newcomers");
}

#[test]
fn accounts_of_tenants_that_are_gone_are_forgotten() {
    let mut queue = FairQueue::default();
    for id in 0..20_000 {
        queue.push(sequence(id, id, seconds(0)));
        if id >= 10 {
            let next = queue.pop(seconds(0)).expect("ten wait");
            queue.charge(next.tenant, 0, 1 + id as usize % 50);
        }
    }
    let accounts = queue.classes[&0].accounts.len();
    assert!(
        accounts < 200,
        "{accounts} accounts for {} who wait",
        queue.len()
    );
}

#[test]
fn the_lowest_priority_gives_way_first_and_then_the_newest() {
    let running = |priorities: &[i8]| -> Vec<Sequence> {
        let numbered = priorities.iter().zip(0..);
        numbered
            .map(|(p, id)| of_class(*p, sequence(id, 0, seconds(0))))
            .collect()
    };
    assert_eq!(victim(&running(&[0])), 0);
    assert_eq!(victim(&running(&[0, 0, 0])), 2);
    assert_eq!(victim(&running(&[3, 3, -1, 0])), 1);
    assert_eq!(victim(&running(&[-1, -5, -5])), 0);
}

/// What the queue should do, by sorting a list.
#[derive(Default)]
struct Model {
    entries: Vec<Entry>,
    /// Of a class and tenant: virtual time, and since when it waits or waits again.
    accounts: HashMap<(i8, u64), (u64, u64)>,
    clocks: HashMap<i8, u64>,
    weights: HashMap<u64, u32>,
    ticks: u64,
    passed_over: u32,
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Entry {
    id: u64,
    tenant: u64,
    class: i8,
    arrived: Duration,
    deadline: Option<Duration>,
    number: u64,
    /// `Some` for one that was preempted.
    started: Option<Duration>,
}

impl Model {
    fn weight(&self, tenant: u64) -> u64 {
        u64::from(*self.weights.get(&tenant).unwrap_or(&1))
    }

    /// Virtual times of the tenants that wait for a first admission.
    fn waiting(&self, class: i8) -> BTreeMap<u64, u64> {
        let fresh = self.entries.iter().filter(|e| e.class == class);
        let fresh = fresh.filter(|e| e.started.is_none());
        fresh
            .map(|e| (e.tenant, self.accounts[&(class, e.tenant)].0))
            .collect()
    }

    fn push(&mut self, mut entry: Entry) {
        self.ticks += 1;
        entry.number = self.ticks;
        let waiting = self.waiting(entry.class);
        if !waiting.contains_key(&entry.tenant) {
            let clock = *self.clocks.entry(entry.class).or_default();
            let low = waiting.values().min().copied().unwrap_or(clock);
            let high = waiting.values().max().copied().unwrap_or(clock);
            let account = self.accounts.entry((entry.class, entry.tenant));
            let account = account.or_default();
            *account = (account.0.max(clock.clamp(low, high)), self.ticks);
        }
        self.entries.push(entry);
    }

    fn charge(&mut self, tenant: u64, class: i8, rows: u64) {
        let waiting = self.waiting(class);
        let mut sharers: BTreeSet<u64> = waiting.keys().copied().collect();
        sharers.insert(tenant);
        let sum: u64 = sharers.iter().map(|t| self.weight(*t)).sum();
        let weight = self.weight(tenant);
        let clock = self.clocks.entry(class).or_default();
        let account = self.accounts.entry((class, tenant)).or_insert((*clock, 0));
        account.0 += rows * ROW / weight;
        *clock += rows * ROW / sum;
    }

    /// The index of the next entry and the class that would be overdue.
    fn next(&self, now: Duration) -> Option<(usize, Option<i8>)> {
        let first = self.entries.iter().map(|e| e.class).min()?;
        let lower = self.entries.iter().filter(|e| e.class > first);
        let oldest = lower.min_by_key(|e| (e.arrived, e.class));
        let overdue = oldest.filter(|e| now.saturating_sub(e.arrived) >= PATIENCE);
        let overdue = overdue.map(|e| e.class);
        let class = match overdue {
            Some(class) if self.passed_over + 1 >= AGEING_TURN => class,
            _ => first,
        };
        let candidates = self.entries.iter().enumerate();
        let best = candidates
            .filter(|(_, e)| e.class == class)
            .min_by_key(|(_, e)| {
                let lenient = e.arrived + LENIENCE;
                let due = e.deadline.map_or(lenient, |d| d.min(lenient));
                match e.started {
                    Some(started) => (Reverse(true), started, e.id, 0, Duration::ZERO, 0),
                    None => {
                        let (time, since) = self.accounts[&(class, e.tenant)];
                        let never = Duration::ZERO;
                        (Reverse(false), never, time, since, due, e.number)
                    }
                }
            });
        best.map(|(index, _)| (index, overdue))
    }

    fn pop(&mut self, now: Duration) -> Option<Entry> {
        let first = self.entries.iter().map(|e| e.class).min()?;
        let (index, overdue) = self.next(now)?;
        let entry = self.entries[index];
        self.passed_over = match overdue {
            Some(_) if entry.class == first => self.passed_over + 1,
            _ => 0,
        };
        self.ticks += 1;
        if entry.started.is_none() {
            let account = self.accounts.get_mut(&(entry.class, entry.tenant));
            let account = account.expect("it was pushed");
            account.1 = self.ticks;
            let clock = self.clocks.entry(entry.class).or_default();
            *clock = account.0.max(*clock);
        }
        self.take(index);
        Some(entry)
    }

    fn take(&mut self, index: usize) -> Entry {
        let entry = self.entries.remove(index);
        let class = entry.class;
        let ended = entry.started.is_none() && self.entries.iter().all(|e| e.class != class);
        if ended {
            let accounts = self.accounts.iter().filter(|((c, _), _)| *c == class);
            let latest = accounts.map(|(_, a)| a.0).max().unwrap_or(0);
            let clock = self.clocks.entry(class).or_default();
            *clock = latest.max(*clock);
            self.accounts.retain(|(c, _), _| *c != class);
        }
        entry
    }
}

#[test]
fn random_histories_give_what_sorting_a_list_gives() {
    for seed in 0..150 {
        let mut random = SplitMix::new(seed);
        let weights: HashMap<u64, u32> = (0..3).map(|t| (t, 1 + random.below(3) as u32)).collect();
        let mut queue = FairQueue::new(weights.clone());
        let mut model = Model {
            weights,
            ..Model::default()
        };
        let mut now = seconds(0);
        let crowd = 1 + random.below(12);
        for id in 0..400u64 {
            now += Duration::from_millis(random.below(1_500) as u64);
            match random.below(8) {
                0..3 => arrive(&mut queue, &mut model, &mut random, id, now, crowd),
                3..6 => {
                    let peeked = queue.peek(now).map(|s| s.id.0);
                    let popped = queue.pop(now);
                    let expected = model.pop(now);
                    let got = popped.as_ref().map(|s| s.id.0);
                    assert_eq!(got, expected.map(|e| e.id), "seed {seed}, event {id}");
                    assert_eq!(peeked, got, "seed {seed}, event {id}: peek is pop");
                    if let Some(sequence) = popped {
                        let rows = random.below(300);
                        queue.charge(sequence.tenant, sequence.priority, rows);
                        model.charge(sequence.tenant, sequence.priority, rows as u64);
                    }
                }
                6 => {
                    let pick = random.below(model.entries.len() + 1);
                    let wanted = model.entries.get(pick).map_or(id, |e| e.id);
                    let removed = queue.remove(SequenceId(wanted)).map(|s| s.id.0);
                    let expected = (pick < model.entries.len()).then(|| model.take(pick).id);
                    assert_eq!(removed, expected, "seed {seed}, event {id}");
                }
                _ => {
                    let mut expected = Vec::new();
                    let past =
                        |e: &Entry| e.started.is_none() && e.deadline.is_some_and(|d| d <= now);
                    while let Some(index) = (0..model.entries.len())
                        .filter(|i| past(&model.entries[*i]))
                        .min_by_key(|i| (model.entries[*i].deadline, model.entries[*i].id))
                    {
                        expected.push(model.take(index).id);
                    }
                    let expired = ids(queue.expired(now));
                    assert_eq!(expired, expected, "seed {seed}, event {id}");
                }
            }
            let mut there: Vec<u64> = queue.iter().map(|s| s.id.0).collect();
            assert_eq!(there.len(), queue.len(), "seed {seed}");
            assert_eq!(queue.iter_mut().count(), queue.len(), "seed {seed}");
            let mut expected: Vec<u64> = model.entries.iter().map(|e| e.id).collect();
            there.sort_unstable();
            expected.sort_unstable();
            assert_eq!(there, expected, "seed {seed}, event {id}");
        }
    }
}

fn arrive(
    queue: &mut FairQueue,
    model: &mut Model,
    random: &mut SplitMix,
    id: u64,
    now: Duration,
    crowd: usize,
) {
    let mut new = sequence(id, random.below(crowd) as u64, now);
    new.priority = [0, 0, 0, 1, -1, 100, -128, 127][random.below(8)];
    let wish = Duration::from_millis(random.below(90_000) as u64);
    new.deadline = (random.below(3) == 0).then_some(now + wish);
    let entry = Entry {
        id,
        tenant: new.tenant,
        class: new.priority,
        arrived: now,
        deadline: new.deadline,
        number: 0,
        started: None,
    };
    if random.below(5) == 0 {
        let started = now.saturating_sub(wish);
        new.milestones.started = Some(started);
        queue.push_preempted(new);
        model.entries.push(Entry {
            started: Some(started),
            ..entry
        });
    } else {
        queue.push(new);
        model.push(entry);
    }
}
