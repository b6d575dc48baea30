//! A day that does not exist: how warm the air is, what electricity costs, when the grid and
//! a thermometer fail, and how many people ask.
//!
//! A day is a value: the same day is lived by every host that is compared; one can be written
//! down as TOML. It refuses to know what a host does about it.

use homeostat_telemetry::plant::Random;
use serde::{Deserialize, Serialize};

/// Price of a kilowatt-hour without a spike, USD: an ordinary household's.
pub const USD_PER_KWH: f64 = 0.30;

/// Longest day, h: what one file can ask of a computer.
const HOURS_MAX: f64 = 72.0;

/// From one hour of the day to another.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Span {
    /// Begin, hours after midnight.
    pub from_h: f64,
    /// End.
    pub to_h: f64,
}

impl Span {
    fn holds(self, hour: f64) -> bool {
        (self.from_h..self.to_h).contains(&hour)
    }

    /// Whether a moment lies within.
    pub fn holds_ms(self, at_ms: u64) -> bool {
        self.holds(hour(at_ms))
    }
}

/// How the thermometer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Thermometer {
    /// As its maker meant it.
    #[default]
    Fine,
    /// It does not answer.
    Silent,
    /// It answers what it answered when this began.
    Stuck,
    /// It answers what cannot be.
    Absurd,
}

/// One day.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Day {
    /// What arrivals and sensors are drawn from.
    pub seed: u64,
    /// How long it is, h.
    pub hours: f64,
    /// Requests per second, mean over the day without the crowd.
    pub requests_per_s: f64,
    /// A heat wave, and how much warmer its middle is than the season, K.
    pub heat: Option<(Span, f64)>,
    /// The thermometer does not answer.
    pub sensor_loss: Option<Span>,
    /// The thermometer stands still, whatever happens.
    pub sensor_stuck: Option<Span>,
    /// The thermometer answers 255 °C.
    pub sensor_absurd: Option<Span>,
    /// Electricity is dearer, by this factor.
    pub price_spike: Option<(Span, f64)>,
    /// The grid is down.
    pub outage: Option<Span>,
    /// A crowd comes: requests are this many times as frequent.
    pub crowd: Option<(Span, f64)>,
}

/// What surrounds the machine at one moment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Surroundings {
    /// Air.
    pub air_celsius: f64,
    /// Whether the grid gives power.
    pub on_grid: bool,
    /// How the thermometer is.
    pub thermometer: Thermometer,
    /// Price of electricity.
    pub usd_per_kwh: f64,
}

impl Default for Day {
    /// Nothing happens.
    fn default() -> Self {
        Self {
            seed: 1,
            hours: 24.0,
            requests_per_s: 0.0,
            heat: None,
            sensor_loss: None,
            sensor_stuck: None,
            sensor_absurd: None,
            price_spike: None,
            outage: None,
            crowd: None,
        }
    }
}

impl Day {
    /// A day as somebody wrote it down in TOML: `hours = 6`, `outage = { from_h = 1, to_h = 2 }`,
    /// `heat = [{ from_h = 0, to_h = 6 }, 17]`. Seed and rate are this one's where the text has
    /// none; what it does not name does not happen.
    pub fn written(text: &str, seed: u64, requests_per_s: f64) -> Result<Self, String> {
        let table = text.parse::<toml::Table>();
        let mut table = table.map_err(|e| e.to_string())?;
        if !table.contains_key("requests_per_s") {
            table.insert("requests_per_s".into(), toml::Value::Float(requests_per_s));
        }
        let has_seed = table.contains_key("seed");
        let mut day = table.try_into::<Self>().map_err(|e| e.to_string())?;
        if !has_seed {
            day.seed = seed;
        }
        day.check().map(|()| day)
    }

    fn check(&self) -> Result<(), String> {
        if !(self.hours > 0.0 && self.hours <= HOURS_MAX) {
            return Err(format!("hours must be above 0 and at most {HOURS_MAX}"));
        }
        if !(self.requests_per_s.is_finite() && self.requests_per_s >= 0.0) {
            return Err("requests_per_s must be a rate".into());
        }
        let backwards = |(_, span): &(&str, Span)| !(span.from_h >= 0.0 && span.from_h < span.to_h);
        if let Some((name, span)) = self.events().into_iter().find(backwards) {
            let Span { from_h, to_h } = span;
            return Err(format!("{name}: from {from_h} h to {to_h} h is no span"));
        }
        let sizes = [self.heat, self.price_spike, self.crowd];
        let wrong = |size: &f64| !(0.0..=1_000.0).contains(size);
        let mut sizes = sizes.into_iter().flatten().map(|(_, size)| size);
        match sizes.find(wrong) {
            Some(size) => Err(format!("{size} is no factor and no warming")),
            None => Ok(()),
        }
    }

    /// The day of the picture: everything happens, one thing after another.
    pub fn eventful(seed: u64, requests_per_s: f64) -> Self {
        let span = |from_h, to_h| Span { from_h, to_h };
        Self {
            seed,
            hours: 24.0,
            requests_per_s,
            crowd: Some((span(8.5, 9.25), 8.0)),
            heat: Some((span(11.0, 17.0), 17.0)),
            sensor_loss: Some(span(14.5, 15.0)),
            price_spike: Some((span(17.5, 20.0), 4.0)),
            outage: Some(span(20.75, 22.75)),
            ..Self::default()
        }
    }

    /// A day drawn from its seed: each of the five things may happen, at its usual hour.
    pub fn drawn(seed: u64, requests_per_s: f64) -> Self {
        let mut random = Random::new(seed ^ 0xda1);
        let mut span = |earliest_h: f64, latest_h: f64, shortest_h: f64, longest_h: f64| {
            let from_h = random.between(earliest_h, latest_h);
            let to_h = from_h + random.between(shortest_h, longest_h);
            let chance = random.unit();
            let size = random.unit();
            (Span { from_h, to_h }, chance, size)
        };
        let heat = span(9.0, 12.0, 4.0, 7.0);
        let loss = span(0.0, 23.0, 0.25, 0.75);
        let price = span(16.0, 19.0, 1.5, 3.0);
        let outage = span(0.0, 21.0, 0.5, 2.5);
        let crowd = span(7.0, 20.0, 0.3, 0.8);
        Self {
            seed,
            hours: 24.0,
            requests_per_s,
            heat: Some((heat.0, 17.0 * heat.2)),
            sensor_loss: (loss.1 < 0.3).then_some(loss.0),
            price_spike: (price.1 < 0.5).then_some((price.0, 1.5 + 3.5 * price.2)),
            outage: (outage.1 < 0.3).then_some(outage.0),
            crowd: (crowd.1 < 0.5).then_some((crowd.0, 3.0 + 7.0 * crowd.2)),
            ..Self::default()
        }
    }

    /// Its length, ms.
    pub fn ms(&self) -> u64 {
        (self.hours * 3_600_000.0) as u64
    }

    /// Requests per second that are expected at this time. Nights are quiet.
    pub fn requests_per_s(&self, at_ms: u64) -> f64 {
        let hour = hour(at_ms);
        let awake = (std::f64::consts::PI * (hour - 6.0) / 17.0).sin().max(0.0);
        // Its mean over 24 hours is 1.
        let usual = self.requests_per_s * (0.25 + 1.663 * awake);
        match self.crowd {
            Some((span, times)) if span.holds(hour) => usual * times,
            _ => usual,
        }
    }

    /// The most that [`Self::requests_per_s`] becomes.
    pub fn most_requests_per_s(&self) -> f64 {
        let times = self.crowd.map_or(1.0, |(_, times)| times);
        self.requests_per_s * 1.913 * times.max(1.0)
    }

    /// What surrounds the machine at this time.
    pub fn surroundings(&self, at_ms: u64) -> Surroundings {
        let hour = hour(at_ms);
        let season = 26.0 + 4.0 * (std::f64::consts::TAU * (hour - 9.0) / 24.0).sin();
        let wave = match self.heat {
            Some((span, kelvin)) if span.holds(hour) => {
                let share = (hour - span.from_h) / (span.to_h - span.from_h);
                kelvin * (std::f64::consts::PI * share).sin().powi(2)
            }
            _ => 0.0,
        };
        let times = match self.price_spike {
            Some((span, times)) if span.holds(hour) => times,
            _ => 1.0,
        };
        Surroundings {
            air_celsius: season + wave,
            on_grid: !self.outage.is_some_and(|span| span.holds(hour)),
            thermometer: self.thermometer(hour),
            usd_per_kwh: USD_PER_KWH * times,
        }
    }

    fn thermometer(&self, hour: f64) -> Thermometer {
        let faults = [
            (self.sensor_loss, Thermometer::Silent),
            (self.sensor_absurd, Thermometer::Absurd),
            (self.sensor_stuck, Thermometer::Stuck),
        ];
        let holds = |(span, _): &(Option<Span>, _)| span.is_some_and(|span| span.holds(hour));
        let fault = faults.into_iter().find(holds);
        fault.map_or(Thermometer::Fine, |(_, fault)| fault)
    }

    /// What happens, for a picture: name and span.
    pub fn events(&self) -> Vec<(&'static str, Span)> {
        let named = [
            ("crowd", self.crowd.map(|(span, _)| span)),
            ("heat", self.heat.map(|(span, _)| span)),
            ("no thermometer", self.sensor_loss),
            ("absurd thermometer", self.sensor_absurd),
            ("stuck thermometer", self.sensor_stuck),
            ("price", self.price_spike.map(|(span, _)| span)),
            ("battery", self.outage),
        ];
        let happens = |(name, span): (_, Option<Span>)| span.map(|span| (name, span));
        named.into_iter().filter_map(happens).collect()
    }
}

fn hour(at_ms: u64) -> f64 {
    at_ms as f64 / 3_600_000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mean_of_a_quiet_day_is_what_was_asked_for() {
        let day = Day {
            crowd: None,
            ..Day::eventful(1, 0.1)
        };
        let minutes = 24 * 60;
        let rates = (0..minutes).map(|m| day.requests_per_s(m * 60_000));
        let mean = rates.sum::<f64>() / minutes as f64;
        assert!((mean - 0.1).abs() < 0.001, "{mean}");
    }

    #[test]
    fn no_moment_is_busier_than_the_most_and_events_have_an_end() {
        for seed in 0..50 {
            let day = Day::drawn(seed, 0.05);
            let most = day.most_requests_per_s();
            let busy = (0..288).map(|at| day.requests_per_s(at * 300_000));
            assert!(busy.fold(0.0, f64::max) <= most, "{seed}");
            assert!(
                day.surroundings(23 * 3_600_000 + 3_599_000).on_grid,
                "{seed}"
            );
            assert_eq!(day, Day::drawn(seed, 0.05));
        }
        let day = Day::eventful(1, 0.05);
        let at = |hour: f64| day.surroundings((hour * 3.6e6) as u64);
        assert!(at(14.0).air_celsius > 45.0 && at(4.0).air_celsius < 27.0);
        assert!(!at(21.0).on_grid && at(14.7).thermometer == Thermometer::Silent);
        assert_eq!(at(18.0).usd_per_kwh, 4.0 * USD_PER_KWH);
        assert_eq!(day.events().len(), 5);
    }
    #[test]
    fn a_day_is_written_down_as_toml_and_what_cannot_be_is_refused() {
        let text = "hours = 6\noutage = { from_h = 1, to_h = 2.5 }\n\
                    heat = [{ from_h = 0, to_h = 6 }, 17]\nsensor_stuck = { from_h = 3, to_h = 4 }";
        let day = Day::written(text, 9, 0.2).expect("a day");
        assert_eq!((day.seed, day.requests_per_s, day.hours), (9, 0.2, 6.0));
        let at = |hour: f64| day.surroundings((hour * 3.6e6) as u64);
        assert!(!at(2.0).on_grid && at(3.5).thermometer == Thermometer::Stuck);
        assert!(at(3.0).air_celsius > 35.0 && at(4.5).thermometer == Thermometer::Fine);
        let named = Day::written("seed = 3\nrequests_per_s = 1", 9, 0.2).expect("a day");
        assert_eq!((named.seed, named.requests_per_s), (3, 1.0));
        for wrong in [
            "hours = 0",
            "hours = 1000",
            "requests_per_s = -1",
            "outage = { from_h = 2, to_h = 1 }",
            "crowd = [{ from_h = 1, to_h = 2 }, -3]",
            "flood = 1",
        ] {
            assert!(Day::written(wrong, 1, 0.1).is_err(), "{wrong}");
        }
    }
}
