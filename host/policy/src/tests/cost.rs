//! Costs, budgets, and what an upgrade asks for.

use super::*;
use crate::Budget;

fn with_budget(budget: Budget) -> PolicyRoom {
    room_with(RoomConfig {
        instances: 8,
        budget,
        ..RoomConfig::default()
    })
}

#[test]
fn a_cost_card_has_every_hook_and_a_check_counts_fuel_the_same_twice() {
    let room = room();
    let all = offer("all", guests::all_hooks());
    let put = room.put(all.clone()).unwrap();
    assert_eq!(
        put.cost.calls.keys().copied().collect::<Vec<_>>(),
        ["classify", "route", "validate"]
    );
    assert!(put.cost.runs >= 5);
    assert!(put.cost.instantiate.p50_micros <= put.cost.instantiate.p99_micros);
    assert_eq!(
        put.cost.fuel, None,
        "a second compilation that nobody asked for"
    );
    let first = room.check(&all).unwrap().cost.fuel.unwrap();
    assert!(first.values().all(|fuel| *fuel > 0), "{first:?}");
    assert_eq!(first.len(), 3);
    assert_eq!(room.check(&all).unwrap().cost.fuel.unwrap(), first);
}

#[test]
fn a_policy_over_the_budget_is_refused_with_the_number_that_failed() {
    let spin = r#"(local $n i32)
      (loop $l
        (local.set $n (i32.add (local.get $n) (i32.const 1)))
        (br_if $l (i32.lt_u (local.get $n) (i32.const 2000000))))"#;
    // At every id, those of the probes included.
    let text = guests::classifier_text("", "", "");
    let slow = text.replace(
        "#classify\") (param i32) (result i32)",
        &format!("#classify\") (param i32) (result i32) {spin}"),
    );
    assert_ne!(slow, text);
    let slow = guests::component("classify-policy", &slow);
    let fast = guests::classifier("", "", "");
    let budget = |set: fn(&mut Budget)| {
        let mut budget = Budget::default();
        set(&mut budget);
        budget
    };
    for (budget, words) in [
        (
            budget(|b| b.call_p99_micros = Some(100)),
            "policies.budget.call_p99_micros",
        ),
        (
            budget(|b| b.fuel = Some(1_000_000)),
            "the fuel of one classify",
        ),
    ] {
        let room = with_budget(budget);
        room.put(offer("fast", fast.clone())).unwrap();
        let refusal = refused(&room, offer("slow", slow.clone()));
        assert_eq!(refusal.stage, Stage::Budget, "{refusal}");
        assert!(refusal.text.contains(words), "{refusal}");
        assert!(is_component(&classify(&room, 7)), "the one before serves");
        assert_eq!(room.status()[0].active.as_ref().unwrap().policy, "fast");
    }
    let tight = with_budget(budget(|b| b.memory_bytes = Some(1 << 16)));
    let refusal = refused(&tight, offer("two-pages", fast.clone()));
    assert!(
        refusal.text.contains("is 131072, budget 65536"),
        "{refusal}"
    );
    let impossible = with_budget(budget(|b| b.instantiate_p99_micros = Some(0)));
    let refusal = refused(&impossible, offer("instant", fast));
    assert!(refusal.text.contains("instantiate_p99_micros"), "{refusal}");
}

/// A classifier whose instances touch so many pages of WebAssembly (64 KiB) at every call.
fn touches(pages: u32) -> Vec<u8> {
    let text = guests::classifier_text("", "", "");
    let memory = format!("(memory (export \"memory\") {})", pages + 2);
    let text = text.replace("(memory (export \"memory\") 2)", &memory);
    let bytes = pages * 65536;
    let fill = format!("(memory.fill (i32.const 131072) (i32.const 1) (i32.const {bytes}))");
    let call = "#classify\") (param i32) (result i32)";
    let filled = text.replace(call, &format!("{call} {fill}"));
    assert!(filled.contains(&memory) && filled.contains(&fill));
    guests::component("classify-policy", &filled)
}

#[test]
fn a_component_that_touches_more_gets_a_pool_that_keeps_more_and_shares_it() {
    let room = room_with(RoomConfig {
        instances: 4,
        keep_resident_bytes: 64 << 10,
        keep_resident_max_bytes: 8 << 20,
        ..RoomConfig::default()
    });
    let put = |name: &str, pages| room.put(offer(name, touches(pages))).unwrap();
    let kept = |report: &crate::Report| report.keep_resident_bytes.expect("there is a pool");
    let small = put("small", 0);
    if kept(&small) == 0 {
        return; // The kernel cannot tell which pages were touched.
    }
    assert_eq!(kept(&small), 64 << 10);
    let large = put("large", 40);
    assert_eq!(kept(&large), 4 << 20, "40 pages are 2.5 MiB");
    assert!(large.cost.page_faults.unwrap() < 16, "{:?}", large.cost);
    assert_eq!(kept(&put("as-large", 50)), 4 << 20);
    let huge = put("huge", 200);
    assert_eq!(kept(&huge), 8 << 20, "what the configuration allows");
    let told = |w: &String| w.contains("policies.keep_resident_max_bytes = 16777216");
    assert!(huge.warnings.iter().any(told), "{:?}", huge.warnings);
    for _ in 0..20 {
        assert!(is_component(&classify(&room, 7)));
    }
    room.rollback(Hook::Classify).unwrap();
    assert!(is_component(&classify(&room, 7)));
}

const CONFIG: &str = r#"(import "wasi:config/store@0.2.0-rc.1" "get"
  (func $get (param i32 i32 i32)))"#;

#[test]
fn an_upgrade_tells_what_it_asks_for_beyond_the_one_before() {
    let room = room();
    let plain = guests::classifier("", "", "");
    let first = room.put(offer("old", plain.clone())).unwrap();
    assert_eq!(first.changes, [], "nobody served before");
    let models = guests::classifier_when(7, MODELS, "", "(call $names (i32.const 4096))");
    let report = room.put(granted("new", models, &[Grant::Models])).unwrap();
    let [change] = &report.changes[..] else {
        panic!("{:?}", report.changes)
    };
    assert_eq!(
        (change.hook, &*change.from, change.from_generation),
        (Hook::Classify, "old", 1)
    );
    assert_eq!(change.new_imports, ["homeostat:policy/models@0.1.0"]);
    assert_eq!(change.new_grants, ["models"]);
    assert!(!change.same_component && change.removed_imports.is_empty());
    assert!(
        report
            .warnings
            .iter()
            .any(|w| w.contains("asks for more than old"))
    );
    let back = room.check(&offer("old", plain)).unwrap();
    assert_eq!(
        back.changes[0].removed_imports,
        ["homeostat:policy/models@0.1.0"]
    );
    assert_eq!(back.changes[0].removed_grants, ["models"]);
    assert!(!back.warnings.iter().any(|w| w.contains("asks for more")));
}

#[test]
fn a_power_that_is_never_used_is_named_after_enough_calls() {
    let room = room();
    let head = format!("{MODELS} {CONFIG}");
    let uses_one = guests::classifier_when(7, &head, "", "(call $names (i32.const 4096))");
    room.put(granted(
        "g",
        uses_one,
        &[Grant::Models, Grant::Config, Grant::Keyvalue],
    ))
    .unwrap();
    let active = || room.status()[0].active.clone().unwrap();
    assert!(is_component(&classify(&room, 7)));
    assert_eq!(active().uses["homeostat:policy/models"], 1);
    assert_eq!(active().uses["wasi:config"], 0);
    assert!(active().hints.is_empty(), "one call says nothing");
    for _ in 0..1_000 {
        classify(&room, 8);
    }
    assert_eq!(
        active().hints,
        [
            "granted config, never called in 1001 calls",
            "granted keyvalue, not imported"
        ]
    );
}
