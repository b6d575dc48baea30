//! What a host was worth while something happened: in the heat, on battery, in a crowd.
//!
//! A figure of a whole day hides its worst hour. Requests count where they came, energy and
//! slowness where they fell. It refuses to say what an event has caused: two may overlap.

use serde::Serialize;

use super::day::{Day, Span};
use super::life::{Ended, Lived};
use super::machine::{Seen, TICK_MS};

/// Sums of one kind of event.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct During {
    /// Length, s.
    pub seconds: f64,
    /// Requests that came.
    pub requests: f64,
    /// Whose whole answer was right and in time.
    pub correct: f64,
    /// Whose whole answer the large tier gave.
    pub by_large: f64,
    /// All energy of the machine.
    pub joules: f64,
    /// Money for it.
    pub usd: f64,
    /// Time in which the hardware slowed itself down.
    pub throttled_s: f64,
    /// Time without power.
    pub off_s: f64,
}

/// Sums of each kind of event, by its name.
pub type Events = Vec<(&'static str, During)>;

impl During {
    fn add(&mut self, other: &Self) {
        self.seconds += other.seconds;
        self.requests += other.requests;
        self.correct += other.correct;
        self.by_large += other.by_large;
        self.joules += other.joules;
        self.usd += other.usd;
        self.throttled_s += other.throttled_s;
        self.off_s += other.off_s;
    }
}

/// Counts along while a day is lived.
pub struct Watch(Vec<(&'static str, Span, During)>);

impl Watch {
    /// Over everything that happens on a day.
    pub fn over(day: &Day) -> Self {
        let events = day.events().into_iter();
        Self(
            events
                .map(|(name, span)| (name, span, During::default()))
                .collect(),
        )
    }

    /// A tick that ended at this time.
    pub fn add(&mut self, now_ms: u64, seen: &Seen) {
        for (_, span, during) in &mut self.0 {
            if span.holds_ms(now_ms - TICK_MS) {
                during.seconds += TICK_MS as f64 / 1e3;
                during.joules += seen.added.joules;
                during.usd += seen.added.usd;
                during.throttled_s += seen.added.throttled_s;
                during.off_s += seen.added.off_s;
            }
        }
    }

    /// With the requests that came meanwhile.
    pub fn close(mut self, ended: &[Ended]) -> Events {
        for (_, span, during) in &mut self.0 {
            for one in ended.iter().filter(|e| span.holds_ms(e.at_ms)) {
                during.requests += 1.0;
                during.correct += f64::from(u8::from(one.is_right));
                during.by_large += f64::from(u8::from(one.tier == Some(1)));
            }
        }
        self.0
            .into_iter()
            .map(|(name, _, all)| (name, all))
            .collect()
    }
}

/// The same of several days of one host, each kind of event once.
pub fn together(lived: &[Lived]) -> Events {
    let mut all = Events::new();
    for (name, during) in lived.iter().flat_map(|day| &day.events) {
        match all.iter_mut().find(|(known, _)| known == name) {
            Some((_, sum)) => sum.add(during),
            None => all.push((*name, *during)),
        }
    }
    all
}

/// Prints what each of these hosts was worth during each kind of event.
pub fn print(hosts: &[(&str, Events)]) {
    let Some((_, first)) = hosts.first() else {
        return;
    };
    println!(
        "\nwhile something happened: share right, large share, W, USD, s slowed down, s without \
         power"
    );
    for (event, during) in first {
        println!("  {event}, {:.1} h in all", during.seconds / 3_600.0);
        for (host, events) in hosts {
            let Some((_, sum)) = events.iter().find(|(name, _)| name == event) else {
                continue;
            };
            let share = |part: f64, whole: f64| match whole > 0.0 {
                true => format!("{:.3}", part / whole),
                false => "–".to_owned(),
            };
            println!(
                "    {host:<38}{:>8}{:>8}{:>8}{:>10.4}{:>8.0}{:>8.0}",
                share(sum.correct, sum.requests),
                share(sum.by_large, sum.requests),
                share(sum.joules, sum.seconds),
                sum.usd,
                sum.throttled_s,
                sum.off_s,
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use homeostat_hooks::MetabolicState;

    use super::super::machine::Sums;
    use super::*;

    #[test]
    fn what_falls_into_an_event_counts_there_and_nothing_else_does() {
        let span = |from_h, to_h| Span { from_h, to_h };
        let day = Day {
            outage: Some(span(0.5, 1.0)),
            crowd: Some((span(0.75, 2.0), 3.0)),
            ..Day::default()
        };
        let seen = Seen {
            watts: 20.0,
            celsius: 50.0,
            requests: 0,
            state: MetabolicState::Nominal,
            added: Sums {
                joules: 2.0,
                off_s: 0.1,
                ..Sums::default()
            },
        };
        let mut watch = Watch::over(&day);
        for tick in 1..=2 * 36_000 {
            watch.add(tick * TICK_MS, &seen);
        }
        let ended = |hour: f64, is_right| Ended {
            at_ms: (hour * 3.6e6) as u64,
            tier: Some(1),
            is_right,
            ttft_ms: None,
            total_ms: 1,
            tokens: 1,
            steps: 1,
            joules: None,
        };
        let all = watch.close(&[ended(0.2, true), ended(0.9, true), ended(1.5, false)]);
        let [("crowd", crowd), ("battery", battery)] = &all[..] else {
            panic!("{all:?}");
        };
        assert_eq!(
            (crowd.requests, crowd.correct, crowd.by_large),
            (2.0, 1.0, 2.0)
        );
        assert_eq!((battery.requests, battery.correct), (1.0, 1.0));
        let near = |found: f64, expected: f64| assert!((found - expected).abs() < 1e-6, "{found}");
        near(battery.seconds, 1_800.0);
        near(crowd.joules, 2.0 * 45_000.0);
        near(battery.off_s, 1_800.0);
    }
}
