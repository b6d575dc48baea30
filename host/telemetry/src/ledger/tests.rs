//! The invariants of the books: exact sums, nobody charged for what is not theirs, nothing
//! invented, nothing changed once settled.

use super::*;
use crate::plant::Random;
use crate::reading::{Reading, Readings, Signal};

const MS: u64 = 1_000;
const TWO_PROCESSORS: ProcessorPower = ProcessorPower {
    busy_watts: 2.76,
    idle_watts: 1.48,
};
const COST: ModelCost = ModelCost {
    weight_bytes: 16e9,
    kv_bytes_per_token: 131_072.0,
    flops_per_token: 16e9,
    flops_per_context_token: 0.0,
};

fn work(request: u64, phase: Phase, computed_tokens: u32, context_tokens: u32) -> SequenceWork {
    SequenceWork {
        request,
        phase,
        computed_tokens,
        context_tokens,
        rejected_tokens: 0,
    }
}

fn decode(request: u64) -> SequenceWork {
    work(request, Phase::Decode, 1, 500)
}

fn snapshot(readings: &Readings, now_ms: u64) -> Snapshot {
    let devices = readings.devices.iter();
    Snapshot {
        monotonic_ms: now_ms,
        devices: devices
            .filter_map(|(id, device)| device.device(id, now_ms))
            .collect(),
        ..Snapshot::default()
    }
}

/// A ledger over GPUs with energy counters that were seen to change at time 0.
struct Bench {
    ledger: Ledger,
    devices: Vec<DeviceIndex>,
    counters_uj: Vec<u64>,
}

impl Bench {
    fn new(devices: usize) -> Self {
        let mut ledger = Ledger::new(None);
        let devices: Vec<DeviceIndex> = (0..devices)
            .map(|i| ledger.device(&format!("gpu.{i}"), DeviceKind::Gpu))
            .map(|index| index.expect("few"))
            .collect();
        let mut bench = Self {
            ledger,
            counters_uj: vec![1; devices.len()],
            devices,
        };
        for device in 0..bench.devices.len() {
            bench.ledger.counter(bench.devices[device], 0, 0, None);
            bench.ledger.counter(bench.devices[device], 0, 1, None);
        }
        bench
    }

    fn step(&mut self, start_ms: u64, end_ms: u64, sequences: &[SequenceWork]) {
        let devices = Devices::of(&self.devices);
        self.ledger.step(Step {
            start_us: start_ms * MS,
            end_us: end_ms * MS,
            devices,
            cost: Some(COST),
            sequences: sequences.to_vec(),
        });
    }

    /// A window of one device ends.
    fn window(&mut self, device: usize, end_ms: u64, uj: u64) {
        self.counters_uj[device] += uj;
        let raw = self.counters_uj[device];
        self.ledger
            .counter(self.devices[device], end_ms * MS, raw, None);
        self.ledger.advance(end_ms * MS, end_ms * MS);
    }

    fn total(&self, request: u64) -> u64 {
        self.ledger
            .receipt(request)
            .map_or(0, |r| r.prefill_uj + r.decode_uj)
    }

    fn accounts(&self, device: usize) -> Accounts {
        self.ledger.accounts().nth(device).expect("exists").1
    }

    fn balances(&self) {
        for (name, accounts) in self.ledger.accounts() {
            let sum =
                accounts.attributed_uj() + accounts.idle_uj + accounts.unattributed.total_uj();
            assert_eq!(sum, accounts.measured_uj, "{name}: {accounts:?}");
        }
    }
}

#[test]
fn the_books_of_a_million_random_windows_balance_to_the_microjoule() {
    let mut random = Random::new(1);
    let mut bench = Bench::new(1);
    let (mut now_ms, mut step_end_ms, mut measured) = (0, 0, 0);
    let (mut request, mut finished) = (0u64, 0u64);
    for window in 0..1_000_000u64 {
        let length = 1 + random.below(120);
        // Steps of any length, some across windows, some idle time between them.
        while step_end_ms < now_ms + length {
            let start = step_end_ms + random.below(30) * random.below(2);
            step_end_ms = start + 1 + random.below(80);
            let count = random.below(5) as usize;
            let sequences: Vec<SequenceWork> = (0..count)
                .map(|i| {
                    request += random.below(2);
                    let phase = if random.below(4) == 0 {
                        Phase::Prefill
                    } else {
                        Phase::Decode
                    };
                    let tokens = 1 + random.below(512) as u32;
                    work(
                        request.saturating_sub(i as u64),
                        phase,
                        tokens,
                        random.below(9_000) as u32,
                    )
                })
                .collect();
            bench.step(start, step_end_ms, &sequences);
            // Some before their last step.
            while finished + 2 < request {
                bench.ledger.finish(finished);
                finished += 1;
            }
        }
        now_ms += length;
        if random.below(50) == 0 {
            let ratio = random.unit();
            bench.ledger.set_own_ratio(bench.devices[0], ratio);
        }
        let uj = 1 + (random.bits() >> random.between(30.0, 63.0) as u32);
        measured += uj;
        bench.window(0, now_ms, uj);
        // One window in a thousand by itself, so that a mistake is found where it is made.
        if window % 1_000 == 0 {
            bench.balances();
        }
    }
    bench.balances();
    let accounts = bench.accounts(0);
    assert_eq!(
        (accounts.windows, accounts.measured_uj),
        (1_000_000, measured)
    );
    let parts = accounts.unattributed;
    for part in [
        accounts.prefill_uj,
        accounts.decode_uj,
        accounts.idle_uj,
        parts.foreign_uj,
    ] {
        assert!(part > 0, "{accounts:?}");
    }
    assert!(parts.lost_uj > 0 && parts.late_uj > 0, "{parts:?}");
    println!("1,000,000 windows: {accounts:?}");
}

#[test]
fn receipts_of_two_hundred_concurrent_requests_add_up_to_the_books() {
    let mut random = Random::new(2);
    let mut bench = Bench::new(1);
    for tick in 0..2_000u64 {
        let sequences: Vec<SequenceWork> = (0..200)
            .filter(|_| random.below(10) == 0)
            .map(decode)
            .collect();
        bench.step(tick * 10, tick * 10 + 9, &sequences);
        bench.window(0, tick * 10 + 10, 1_000_000 + random.below(5_000_000));
    }
    (0..200).for_each(|request| bench.ledger.finish(request));
    bench.ledger.advance(30_000 * MS, 30_000 * MS);
    let settled = bench.ledger.newly_settled();
    assert_eq!(settled.len(), 200);
    assert!(
        settled
            .iter()
            .all(|(_, receipt)| receipt.settled && !receipt.incomplete)
    );
    let sum: u64 = settled.iter().map(|(_, receipt)| receipt.total_uj()).sum();
    assert_eq!(sum, bench.accounts(0).attributed_uj());
    bench.balances();
}

#[test]
fn what_policies_ask_is_a_part_of_its_own_and_what_the_host_asks_is_nobody_s() {
    let mut random = Random::new(4);
    let mut bench = Bench::new(1);
    for request in (0..100).step_by(2) {
        bench.ledger.asks(request, 1_000 + request);
    }
    for tick in 0..2_000u64 {
        let mut sequences = Vec::new();
        for request in 0..100 {
            if random.below(10) == 0 {
                sequences.push(decode(request));
            }
            if request % 2 == 0 && random.below(20) == 0 {
                sequences.push(work(1_000 + request, Phase::Prefill, 64, 0));
            }
        }
        if random.below(5) == 0 {
            sequences.push(decode(HOST));
        }
        bench.step(tick * 10, tick * 10 + 9, &sequences);
        bench.window(0, tick * 10 + 10, 1_000_000 + random.below(5_000_000));
    }
    (0..100).for_each(|request| bench.ledger.finish(request));
    bench.ledger.advance(30_000 * MS, 30_000 * MS);
    let settled = bench.ledger.newly_settled();
    assert_eq!(settled.len(), 100, "one receipt for each");
    for (request, receipt) in &settled {
        assert_eq!(receipt.policy_uj > 0, request % 2 == 0, "{request}");
        assert!(receipt.decode_uj > 0 && receipt.prefill_uj == 0);
    }
    let sum = |of: fn(&Receipt) -> u64| -> u64 { settled.iter().map(|(_, r)| of(r)).sum() };
    let accounts = bench.accounts(0);
    assert_eq!(sum(Receipt::total_uj), accounts.attributed_uj());
    assert_eq!(sum(|r| r.policy_uj), accounts.policy_uj);
    assert!(accounts.unattributed.host_uj > 0, "{accounts:?}");
    assert!(bench.ledger.receipt(HOST).is_none());
    bench.balances();
}

#[test]
fn a_question_is_expected_until_it_is_booked_and_one_that_comes_too_late_is_nobody_s() {
    let mut bench = Bench::new(1);
    bench.ledger.asks(1, 1_001);
    bench.step(0, 100, &[decode(1)]);
    bench.window(0, 100, 10_000_000);
    bench.step(100, 200, &[work(1_001, Phase::Prefill, 100, 0)]);
    bench.ledger.finish(1);
    bench.ledger.advance(150 * MS, 150 * MS);
    let open = bench.ledger.receipt(1).expect("known");
    assert_eq!((open.policy_uj, open.settled), (0, false));
    assert!(open.policy_pending_uj > 0);
    assert_eq!(open.pending_uj, open.policy_pending_uj);
    bench.window(0, 200, 20_000_000);
    let settled = bench.ledger.receipt(1).expect("known");
    let parts = (settled.decode_uj, settled.policy_uj, settled.pending_uj);
    assert_eq!(parts, (10_000_000, 20_000_000, 0));
    assert!(settled.settled);
    bench.step(210, 290, &[decode(1_001)]);
    bench.window(0, 300, 10_000_000);
    assert_eq!(bench.ledger.receipt(1), Some(settled));
    assert_eq!(bench.accounts(0).unattributed.late_uj, 8_000_000);
    assert!(bench.ledger.receipt(1_001).is_none(), "it is no request");
    bench.balances();
}

#[test]
fn twins_get_the_same_and_who_waits_gets_nothing() {
    let mut bench = Bench::new(1);
    for tick in 0..500u64 {
        bench.step(tick * 20, tick * 20 + 20, &[decode(1), decode(2)]);
        bench.window(0, tick * 20 + 20, 5_000_001);
    }
    bench.ledger.finish(3);
    bench.ledger.advance(20_000 * MS, 20_000 * MS);
    // An odd micro-joule cannot be halved; it always falls to the same one of them.
    let (a, b) = (bench.total(1), bench.total(2));
    assert!(a.abs_diff(b) <= 500 && a + b == bench.accounts(0).attributed_uj());
    assert_eq!(bench.total(3), 0);
}

#[test]
fn a_second_without_work_is_nobody_s() {
    let mut bench = Bench::new(1);
    bench.step(0, 100, &[decode(1)]);
    bench.window(0, 100, 30_000_000);
    let before = bench.total(1);
    bench.window(0, 1_100, 110_000_000);
    assert_eq!(bench.total(1), before);
    assert_eq!(bench.accounts(0).idle_uj, 110_000_000);
}

#[test]
fn a_request_alone_on_a_device_gets_all_that_is_not_idle() {
    let mut bench = Bench::new(1);
    bench.step(0, 60, &[work(1, Phase::Prefill, 400, 0)]);
    bench.step(60, 100, &[decode(1)]);
    bench.window(0, 100, 40_000_000);
    bench.step(100, 150, &[decode(1)]);
    bench.window(0, 200, 30_000_000);
    let accounts = bench.accounts(0);
    assert_eq!(bench.total(1) + accounts.idle_uj, 70_000_000);
    assert_eq!(
        accounts.idle_uj, 15_000_000,
        "half of the second window, by time"
    );
    let receipt = bench.ledger.receipt(1).expect("known");
    assert!(receipt.prefill_uj > 0 && receipt.decode_uj > 0);
}

#[test]
fn two_windows_or_one_make_the_same_totals() {
    let sequences = [decode(1), work(2, Phase::Prefill, 300, 0), decode(3)];
    let mut one = Bench::new(1);
    one.step(0, 100, &sequences);
    one.window(0, 100, 50_000_000);
    let mut two = Bench::new(1);
    two.step(0, 100, &sequences);
    two.window(0, 40, 20_000_000);
    two.window(0, 100, 30_000_000);
    assert_eq!(
        one.accounts(0).attributed_uj(),
        two.accounts(0).attributed_uj()
    );
    for request in 1..=3 {
        assert!(one.total(request).abs_diff(two.total(request)) <= 2);
    }
}

#[test]
fn the_order_of_the_sequences_does_not_matter() {
    let mut sequences = vec![
        decode(4),
        work(2, Phase::Prefill, 300, 0),
        decode(3),
        decode(1),
        work(5, Phase::Decode, 5, 4_000),
    ];
    let mut run = |turn: usize| {
        sequences.rotate_left(turn);
        let mut bench = Bench::new(1);
        for tick in 0..50u64 {
            bench.step(tick * 10, tick * 10 + 10, &sequences);
            bench.window(0, tick * 10 + 10, 3_333_333 + tick);
        }
        (1..=5)
            .map(|request| bench.total(request))
            .collect::<Vec<_>>()
    };
    assert_eq!(run(0), run(2));
}

#[test]
fn a_request_that_was_cancelled_in_its_prompt_keeps_what_it_burned() {
    let mut bench = Bench::new(1);
    bench.step(0, 50, &[work(1, Phase::Prefill, 512, 0)]);
    bench.ledger.finish(1);
    bench.step(50, 100, &[decode(2)]);
    bench.window(0, 100, 40_000_000);
    let cancelled = bench.ledger.receipt(1).expect("known");
    assert!(cancelled.settled && cancelled.prefill_uj > 0);
    assert_eq!(cancelled.decode_uj, 0);
}

#[test]
fn what_is_settled_never_changes_and_what_comes_later_is_nobody_s() {
    let mut bench = Bench::new(1);
    bench.step(0, 100, &[decode(1)]);
    bench.ledger.finish(1);
    bench.window(0, 100, 10_000_000);
    let settled = bench.ledger.receipt(1).expect("known");
    assert!(settled.settled);
    // One step too late for its window, one for a request that had said goodbye.
    bench.step(20, 90, &[decode(1)]);
    bench.step(110, 190, &[decode(1)]);
    bench.window(0, 200, 10_000_000);
    assert_eq!(bench.ledger.receipt(1), Some(settled));
    let accounts = bench.accounts(0);
    assert_eq!(accounts.late_steps, 1);
    assert_eq!(accounts.unattributed.late_uj, 8_000_000);
    bench.balances();
    assert_eq!(bench.ledger.newly_settled().len(), 1);
    assert_eq!(bench.ledger.newly_settled().len(), 0, "told once");
}

#[test]
fn a_request_is_settled_when_the_window_of_its_last_step_is_booked_and_not_before() {
    let mut bench = Bench::new(1);
    bench.step(0, 150, &[decode(1)]);
    bench.window(0, 100, 10_000_000);
    bench.ledger.finish(1);
    bench.ledger.advance(160 * MS, 160 * MS);
    assert!(!bench.ledger.receipt(1).expect("known").settled);
    bench.window(0, 200, 10_000_000);
    assert!(bench.ledger.receipt(1).expect("known").settled);
}

#[test]
fn a_window_waits_for_the_steps_of_its_time() {
    let mut bench = Bench::new(1);
    bench.counters_uj[0] += 10_000_000;
    bench
        .ledger
        .counter(bench.devices[0], 100 * MS, bench.counters_uj[0], None);
    // A step has been running since 30 ms.
    bench.ledger.advance(30 * MS, 110 * MS);
    assert_eq!(bench.accounts(0).measured_uj, 0);
    bench.step(30, 120, &[decode(1)]);
    bench.ledger.advance(120 * MS, 120 * MS);
    assert!(bench.total(1) > 0);
}

#[test]
fn a_device_that_falls_silent_leaves_an_incomplete_receipt_and_not_an_open_one() {
    let mut bench = Bench::new(1);
    bench.step(0, 50, &[decode(1)]);
    bench.window(0, 60, 10_000_000);
    bench.step(60, 150, &[decode(1)]);
    bench.ledger.finish(1);
    bench.ledger.advance(5_100 * MS, 5_100 * MS);
    assert!(!bench.ledger.receipt(1).expect("known").settled);
    bench.ledger.advance(5_200 * MS, 5_200 * MS);
    let receipt = bench.ledger.receipt(1).expect("known");
    assert!(receipt.settled && receipt.incomplete);
    // What the device tells later is booked, but changes no receipt.
    bench.window(0, 5_300, 10_000_000);
    assert_eq!(bench.ledger.receipt(1), Some(receipt));
    bench.balances();
}

#[test]
fn a_counter_that_began_anew_marks_the_requests_that_ran_meanwhile() {
    let mut bench = Bench::new(1);
    let device = bench.devices[0];
    bench.step(0, 100, &[decode(1)]);
    bench.window(0, 100, 10_000_000);
    bench.step(100, 190, &[decode(1), decode(2)]);
    for (at_ms, raw) in [(150, 5), (200, 10), (250, 1_000_000)] {
        bench.ledger.counter(device, at_ms * MS, raw, None);
    }
    bench.step(200, 250, &[decode(3)]);
    bench.ledger.advance(250 * MS, 250 * MS);
    bench.balances();
    assert_eq!(bench.accounts(0).faults.resets, 1);
    assert!(bench.ledger.receipt(1).expect("known").incomplete);
    assert!(!bench.ledger.receipt(3).expect("known").incomplete);
}

#[test]
fn a_window_over_a_gap_keeps_its_energy_and_says_that_it_is_coarse() {
    let mut bench = Bench::new(1);
    bench.step(0, 90, &[decode(1)]);
    bench.window(0, 100, 10_000_000);
    let fine = bench.ledger.receipt(1).expect("known").relative_error;
    bench.step(100, 190, &[decode(2)]);
    bench.window(0, 9_000, 900_000_000);
    let coarse = bench.ledger.receipt(2).expect("known");
    assert!(coarse.relative_error > 2.0 * fine, "{coarse:?}");
    bench.balances();
    assert_eq!(bench.accounts(0).measured_uj, 910_000_000);
}

#[test]
fn each_device_of_a_group_balances_for_itself_and_the_request_pays_their_sum() {
    let mut bench = Bench::new(2);
    for tick in 0..100u64 {
        bench.step(tick * 10, tick * 10 + 9, &[decode(1), decode(2)]);
        bench.window(0, tick * 10 + 10, 3_000_001);
        bench.window(1, tick * 10 + 10, 2_000_003);
    }
    bench.balances();
    let (first, second) = (bench.accounts(0), bench.accounts(1));
    assert_eq!(
        (first.measured_uj, second.measured_uj),
        (300_000_100, 200_000_300)
    );
    let requests = bench.total(1) + bench.total(2);
    assert_eq!(requests, first.attributed_uj() + second.attributed_uj());
}

#[test]
fn a_sum_is_worth_its_weakest_part() {
    use Origin::*;
    for (a, b, sum) in [
        (Measured, Measured, Measured),
        (Measured, Derived, Derived),
        (Modelled, Derived, Modelled),
        (Simulated, Modelled, Simulated),
    ] {
        assert_eq!(a.max_weakness(b), sum);
        assert_eq!(b.max_weakness(a), sum);
    }
    let mut ledger = Ledger::new(Some(TWO_PROCESSORS));
    let gpu = ledger.device("gpu.0", DeviceKind::Gpu).expect("first");
    let cpu = ledger.device("cpu", DeviceKind::Cpu).expect("second");
    for tick in 0..10u64 {
        ledger.step(Step {
            start_us: tick * 100 * MS,
            end_us: (tick * 100 + 100) * MS,
            devices: Devices::of(&[gpu, cpu]),
            cost: None,
            sequences: vec![decode(1)],
        });
        let at_us = (tick + 1) * 100 * MS;
        ledger.counter(gpu, at_us, tick * 10_000_000, None);
        ledger.advance(at_us, at_us);
    }
    let receipt = ledger.receipt(1).expect("known");
    assert_eq!(
        (receipt.origin, receipt.method),
        (Measured, SplitMethod::Tokens)
    );
    for tick in 0..10u64 {
        ledger.processor_time(cpu, tick * 100 * MS, tick * 150 * MS, 1.0);
    }
    ledger.advance(1_000 * MS, 1_000 * MS);
    let receipt = ledger.receipt(1).expect("known");
    assert_eq!(receipt.origin, Modelled);
    assert_eq!(receipt.boundary.to_string(), "accelerator+cpu");
}

#[test]
fn without_a_sensor_the_receipt_is_modelled_or_measured_only_none() {
    for (power, modelled) in [(Some(TWO_PROCESSORS), true), (None, false)] {
        let mut ledger = Ledger::new(power);
        let cpu = ledger.device("cpu", DeviceKind::Cpu).expect("first");
        ledger.processor_time(cpu, 0, 0, 1.0);
        ledger.step(Step {
            start_us: 0,
            end_us: 100 * MS,
            devices: Devices::of(&[cpu]),
            cost: None,
            sequences: vec![decode(1)],
        });
        ledger.finish(1);
        ledger.processor_time(cpu, 100 * MS, 200 * MS, 1.0);
        ledger.advance(100 * MS, 6_000 * MS);
        let receipt = ledger.receipt(1);
        assert_eq!(receipt.is_some(), modelled, "{receipt:?}");
        if let Some(receipt) = receipt {
            let off = receipt.total_uj().abs_diff(700_000);
            assert!(off <= 1, "two processors busy for 100 ms: {receipt:?}");
            assert_eq!(receipt.origin, Origin::Modelled);
            assert!(receipt.relative_error >= 0.6);
            assert_eq!(receipt.boundary.to_string(), "cpu");
        }
    }
}

#[test]
fn other_programs_pay_for_themselves_and_the_receipt_says_that_they_were_there() {
    let mut bench = Bench::new(1);
    bench.ledger.set_own_ratio(bench.devices[0], 0.25);
    bench.step(0, 100, &[decode(1)]);
    bench.window(0, 100, 40_000_000);
    assert_eq!(bench.accounts(0).unattributed.foreign_uj, 30_000_000);
    assert_eq!(bench.total(1), 10_000_000);
    assert!(bench.ledger.receipt(1).expect("known").shared);
    bench.balances();
}

#[test]
fn readings_of_the_sampler_are_taken_once_each() {
    let mut readings = Readings::default();
    let mut ledger = Ledger::new(None);
    for tick in 0..20u64 {
        let gpu = readings.device("gpu.0", DeviceKind::Gpu);
        let energy = Reading::instant(tick as f64 * 12.5, tick * 100, 100);
        gpu.record(Signal::Energy, energy).expect("plausible");
        ledger.sense(&snapshot(&readings, tick * 100));
        // Nothing new since: the same reading, older.
        ledger.sense(&snapshot(&readings, tick * 100 + 50));
        ledger.advance(tick * 100 * MS, tick * 100 * MS);
    }
    let (name, accounts) = ledger.accounts().next().expect("one device");
    assert_eq!(name, "gpu.0");
    assert_eq!(accounts.measured_uj, 18 * 12_500_000);
    assert_eq!(
        (accounts.idle_uj, accounts.origin),
        (accounts.measured_uj, Origin::Measured)
    );
}

#[test]
fn simulated_readings_make_simulated_receipts() {
    let mut plant = crate::plant::Plant::new(crate::plant::PlantSpec::linear(), 1);
    let mut readings = Readings::default();
    let mut ledger = Ledger::new(None);
    for tick in 0..20u64 {
        let gpu = readings.device("gpu.0", DeviceKind::Gpu);
        plant.write_to(gpu, 100).expect("plausible");
        ledger.sense(&snapshot(&readings, plant.now_ms()));
        let device = ledger.device("gpu.0", DeviceKind::Gpu).expect("first");
        ledger.step(Step {
            start_us: plant.now_ms() * MS,
            end_us: (plant.now_ms() + 100) * MS,
            devices: Devices::of(&[device]),
            cost: Some(COST),
            sequences: vec![decode(1)],
        });
        plant.advance(100, 200.0);
        ledger.advance(tick * 100 * MS, tick * 100 * MS);
    }
    assert_eq!(ledger.receipt(1).expect("known").origin, Origin::Simulated);
}

#[test]
fn a_provisional_receipt_expects_what_is_not_yet_booked() {
    let mut bench = Bench::new(1);
    let mut random = Random::new(3);
    let joules = |seconds: f64, work: &[SequenceWork]| {
        110.0 * seconds + 40e-12 * COST.step_bytes(work) + 0.77e-12 * COST.step_flops(work)
    };
    let mut now_ms = 0;
    for _ in 0..300 {
        let tokens = 1 + random.below(256) as u32;
        let sequences = [decode(1), work(2, Phase::Prefill, tokens, 100)];
        let length = 8 + random.below(20);
        bench.step(now_ms, now_ms + length, &sequences);
        now_ms += length;
        let uj = joules(length as f64 / 1e3, &sequences) * 1e6;
        bench.window(0, now_ms, uj as u64);
    }
    assert!(bench.accounts(0).fit_error.expect("trained") < 0.01);
    bench.step(now_ms, now_ms + 10, &[decode(9)]);
    let receipt = bench.ledger.receipt(9).expect("expected");
    let expected = joules(0.010, &[decode(9)]);
    assert!(
        (receipt.joules() / expected - 1.0).abs() < 0.02,
        "{receipt:?} {expected}"
    );
    assert_eq!((receipt.origin, receipt.settled), (Origin::Modelled, false));
    let idle_expected = bench.accounts(0).coefficients.expect("trained")[0];
    assert!(
        (idle_expected / 110.0 - 1.0).abs() < 0.05,
        "{idle_expected}"
    );
}

#[test]
fn a_device_that_never_tells_anything_does_not_fill_the_memory() {
    let mut ledger = Ledger::new(None);
    let gpu = ledger.device("gpu.0", DeviceKind::Gpu).expect("first");
    for tick in 0..10_000u64 {
        ledger.step(Step {
            start_us: tick * 100 * MS,
            end_us: (tick * 100 + 90) * MS,
            devices: Devices::of(&[gpu]),
            cost: Some(COST),
            sequences: vec![decode(1 + tick)],
        });
        ledger.finish(1 + tick);
        ledger.advance((tick + 1) * 100 * MS, (tick + 1) * 100 * MS);
    }
    assert!(ledger.books[0].steps.len() <= 602);
    assert!(ledger.receipt(5_000).is_none(), "nothing was ever told");
    assert!(ledger.waiting.len() <= 52);
    assert_eq!(ledger.newly_settled().len(), 0);
}

#[test]
fn receipts_of_long_ago_are_forgotten() {
    let mut bench = Bench::new(1);
    let requests = RECEIPTS_KEPT as u64 + 100;
    for request in 0..requests {
        bench.ledger.asks(request, requests + request);
        bench.step(request, request + 1, &[decode(request)]);
        bench.ledger.finish(request);
        bench.window(0, request + 1, 1_000);
    }
    assert!(bench.ledger.receipt(50).is_none());
    assert!(
        bench
            .ledger
            .receipt(requests - 1)
            .is_some_and(|r| r.settled)
    );
    assert_eq!(bench.ledger.requests.len(), RECEIPTS_KEPT);
    assert_eq!(bench.ledger.questions.len(), RECEIPTS_KEPT);
}

#[test]
fn moves_between_two_snapshots_close_windows_of_their_own_and_count_once() {
    let mut readings = Readings::default();
    let mut ledger = Ledger::new(None);
    let moved = |at_us, total_uj| EnergyMove {
        sequence: 0,
        device: "gpu.0".into(),
        at_us,
        total_uj,
    };
    let mut see = |ledger: &mut Ledger, now_ms: u64, joules: f64| {
        let gpu = readings.device("gpu.0", DeviceKind::Gpu);
        gpu.record(Signal::Energy, Reading::instant(joules, now_ms, 100))
            .expect("plausible");
        ledger.sense(&snapshot(&readings, now_ms));
    };
    ledger.moved(&[moved(50_000, 500_000)]);
    see(&mut ledger, 100, 1.0);
    ledger.moved(&[moved(120_300, 3_000_000), moved(180_700, 7_000_000)]);
    // The reading that shows the last move, and one in which nothing moved.
    see(&mut ledger, 180, 7.0);
    see(&mut ledger, 300, 7.0);
    ledger.moved(&[moved(340_000, 9_000_000)]);
    see(&mut ledger, 400, 9.0);
    ledger.advance(400 * MS, 400 * MS);
    let accounts = ledger.accounts().next().expect("one").1;
    assert_eq!(accounts.faults.resets, 0);
    // What was used before the first change that was seen is not ours to count.
    assert_eq!(accounts.measured_uj, 9_000_000 - 3_000_000);
    assert_eq!(accounts.idle_uj, accounts.measured_uj);
}

#[test]
fn requests_outlive_the_sensor_of_their_processor_and_their_receipts_say_so() {
    let mut ledger = Ledger::new(Some(TWO_PROCESSORS));
    let cpu = ledger.device("cpu.0", DeviceKind::Cpu).expect("first");
    ledger.set_own_ratio(cpu, 0.25);
    for tick in 0..300u64 {
        let at_us = tick * 100 * MS;
        // As in the server: first the processor time of now, then what the sensor said last.
        ledger.processor_time(cpu, at_us + 30 * MS, tick * 150 * MS, 1.0);
        if !(50..150).contains(&tick) {
            ledger.counter(cpu, at_us, tick * 2_000_000, None);
        }
        // Ten steps for each request; nobody is idle after the first change.
        let request = tick / 10;
        ledger.step(Step {
            start_us: at_us.saturating_sub(100 * MS),
            end_us: at_us,
            devices: Devices::of(&[cpu]),
            cost: Some(COST),
            sequences: vec![decode(request)],
        });
        if tick % 10 == 9 {
            ledger.finish(request);
        }
        ledger.advance(at_us, at_us + 30 * MS);
    }
    for request in 1..=28 {
        let receipt = ledger.receipt(request).expect("booked");
        assert!(
            receipt.settled && !receipt.incomplete,
            "{request}: {receipt:?}"
        );
        let sensor_left = (5..=15).contains(&request);
        let origin = match sensor_left {
            true => Origin::Modelled,
            false => Origin::Measured,
        };
        assert_eq!(receipt.origin, origin, "{request}");
        // Nobody else is in what is modelled of this process.
        let alone = (5..=14).contains(&request);
        assert_eq!(receipt.shared, !alone, "{request}");
        let expected = match alone {
            true => 1_000_000.0 * (1.5 * TWO_PROCESSORS.busy_watts + TWO_PROCESSORS.idle_watts),
            false if sensor_left => continue,
            false => 5_000_000.0,
        };
        let off = (receipt.total_uj() as f64 - expected).abs();
        assert!(off <= 20.0, "{request}: {receipt:?}");
    }
    let accounts = ledger.accounts().next().expect("one").1;
    // From the first change to 4.9 s, and from 15.5 s.
    let measured_uj = (48 + 144) * 2_000_000;
    assert_eq!(accounts.unattributed.foreign_uj, measured_uj / 4 * 3);
    let sum = accounts.attributed_uj() + accounts.idle_uj + accounts.unattributed.total_uj();
    assert_eq!(sum, accounts.measured_uj);
    assert_eq!(accounts.idle_uj, 0);
    assert_eq!((accounts.faults.freezes, accounts.faults.gap_us), (1, 0));
}

#[test]
fn processors_of_one_machine_are_modelled_once_together() {
    let mut ledger = Ledger::new(Some(TWO_PROCESSORS));
    let devices = ["cpu", "cpu.0", "cpu.1"];
    let devices = devices.map(|name| ledger.device(name, DeviceKind::Cpu).expect("few"));
    for tick in 0..=100u64 {
        let at_us = tick * 100 * MS;
        for (device, part) in devices.iter().zip([1.0, 0.5, 0.5]) {
            ledger.processor_time(*device, at_us, tick * 70 * MS, part);
        }
        ledger.advance(at_us, at_us);
    }
    let told: Vec<u64> = ledger.accounts().map(|(_, a)| a.measured_uj).collect();
    assert!(told[0] > 0);
    assert!(told[0].abs_diff(told[1] + told[2]) <= 2, "{told:?}");
}
