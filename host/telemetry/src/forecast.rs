//! Where a device's temperature is going, given the power that it is about to draw.
//!
//! Heat leaves through a die in seconds and through a sink in minutes, so the temperature
//! follows a few averages of power with fixed time constants. How much each of them weighs
//! is learned online (non-negative least squares, slow forgetting). To look ahead, the
//! averages are rolled forward under the *planned* power: without a plan nobody can know
//! more at 30 s than that things stay as they are, which is why whoever schedules work
//! should say what it will draw.
//!
//! It forecasts the margin, the distance to the first slowdown. A fit that is young, has
//! seen no change of power or predicts worse than "it stays as it is" is not used: then the
//! slope of the last half minute speaks, fading out, and without enough readings for that
//! nobody does. Every forecast carries the error that its own past forecasts turned out to
//! have. It refuses to learn from a thermometer that stands still while the power moves.

use std::collections::{BTreeMap, VecDeque};

use homeostat_hooks::{Forecast, Profile};

use crate::filter::GAP_MS;
use crate::least_squares::LeastSquares;
use crate::reading::{DeviceReadings, Readings, Signal};

/// How far ahead forecasts are published: the time in which running answers end.
pub const HORIZON_S: usize = 20;
/// How far ahead a slowdown is looked for.
pub const LOOKOUT_S: usize = 300;

/// Time constants of the power averages for fans and heat sinks, s.
const COOLED_TAUS_S: [f64; 3] = [2.0, 15.0, 60.0];
/// The same for devices that only lose heat through their skin.
const PASSIVE_TAUS_S: [f64; 3] = [5.0, 60.0, 500.0];
/// Weight that an observation keeps per second: the past counts for about half an hour.
const KEEP: f64 = 0.9995;
/// A fit younger than this has not seen the sink warm up.
const TRAINED_S: u64 = 300;
/// Power must have moved by this much (standard deviation, share of its mean), or the fit
/// cannot know what power does.
const MOVED_RATIO: f64 = 0.05;
/// While every average agrees within this share there is nothing to learn, and forgetting
/// would only lose what changes of power had taught.
const STEADY_RATIO: f64 = 0.02;
/// A fit may be this much worse than expecting no change before it is not used any more.
const WORSE_RATIO: f64 = 1.25;
/// Forgetting of the forecast errors: as long as a fit stays the same.
const SCORE_KEEP: f64 = 1.0 - 1.0 / 600.0;
/// Present difference between the fit and the thermometer, averaged over this time: long
/// against the steps of an integer thermometer, short against what the fit does not know.
const BIAS_TAU_S: f64 = 3.0;
/// Readings that the slope is taken over, one a second.
const SLOPE_READINGS: usize = 30;
const SLOPE_READINGS_MIN: usize = 3;
/// A slope is believed to fade with this time constant; a straight line is wrong by more
/// than ten degrees after half a minute.
const SLOPE_FADES_S: f64 = 8.0;
/// After a gap the averages know nothing of the past; learning waits for the slowest.
const SETTLE_TAUS: f64 = 2.0;

/// Planned power: means over the coming seconds, W; after the last one it stays. Empty = as
/// in the last second.
pub type Plan = [f64];

/// Who made a forecast.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// The learned power averages.
    FilterBank,
    /// The last half minute's slope.
    Slope,
}

/// What is expected of one device.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Outlook {
    /// Who says so.
    pub method: Method,
    /// Margin after [`HORIZON_S`], °C.
    pub margin_celsius: f64,
    /// When the margin is used up, if within [`LOOKOUT_S`], s. The filter bank's alone: a
    /// slope cannot know.
    pub time_to_throttle_s: Option<u32>,
    /// Power that could be drawn for ever with this air and this cooling, W.
    pub sustainable_watts: Option<f64>,
    /// Root mean square error that this method's forecasts turned out to have; `None` until
    /// one could be checked.
    pub rmse_celsius: Option<f64>,
    /// Seconds of readings behind it.
    pub trained_s: u64,
}

impl Outlook {
    /// As hooks see it; `None` while its error is not known.
    pub fn published(&self) -> Option<Forecast> {
        Some(Forecast {
            horizon_ms: HORIZON_S as u32 * 1_000,
            margin_celsius: self.margin_celsius as f32,
            time_to_throttle_ms: self.time_to_throttle_s.map(|s| s * 1_000),
            rmse_celsius: self.rmse_celsius? as f32,
        })
    }
}

/// Sums over the readings of the current second.
#[derive(Debug, Clone, Copy, Default)]
struct Second {
    start_ms: u64,
    margin: f64,
    watts: f64,
    powered: u32,
    count: u32,
}

/// How wrong a method's forecasts are: those still open, and the mean square of the rest.
#[derive(Debug, Clone, Default)]
struct Score {
    open: VecDeque<(u64, f64)>,
    square: f64,
    weight: f64,
}

/// What the fit said once, rolled forward under the power that really came: how good the fit
/// is, whatever was planned.
#[derive(Debug, Clone, Copy)]
struct Hindcast {
    due_s: u64,
    averages: [f64; 3],
    coefficients: [f64; 4],
    bias: f64,
}

impl Score {
    fn issue(&mut self, due_s: u64, margin: f64) {
        self.open.push_back((due_s, margin));
    }

    /// Checks the forecasts for this second.
    fn check(&mut self, now_s: u64, margin: f64) {
        while let Some(&(due, expected)) = self.open.front()
            && due <= now_s
        {
            self.open.pop_front();
            if due == now_s {
                self.add(expected - margin);
            }
        }
    }

    fn add(&mut self, error: f64) {
        self.square = SCORE_KEEP * self.square + error * error;
        self.weight = SCORE_KEEP * self.weight + 1.0;
    }

    fn rmse(&self) -> Option<f64> {
        (self.weight > 0.0).then(|| (self.square / self.weight).sqrt())
    }
}

/// Learns one device.
#[derive(Debug, Clone)]
pub struct Forecaster {
    taus_s: [f64; 3],
    averages: Option<[f64; 3]>,
    fit: LeastSquares<4>,
    /// Constant, then kelvin per watt of each average; of the margin's negative.
    coefficients: Option<[f64; 4]>,
    bias: f64,
    second: Second,
    last_ms: Option<u64>,
    /// Whole seconds observed; the clock of this forecaster.
    now_s: u64,
    settled_s: u64,
    recent: VecDeque<(u64, f64)>,
    power_mean: f64,
    power_square: f64,
    power_weight: f64,
    /// The thermometer stands still while the power moves: told from outside.
    stuck: bool,
    hindcasts: VecDeque<Hindcast>,
    fit_alone: Score,
    bank: Score,
    slope: Score,
    stay: Score,
    was_valid: bool,
}

impl Forecaster {
    /// Knows nothing yet. `passive`: cooled by its skin alone.
    pub fn new(passive: bool) -> Self {
        Self {
            taus_s: match passive {
                true => PASSIVE_TAUS_S,
                false => COOLED_TAUS_S,
            },
            averages: None,
            fit: LeastSquares::new(KEEP, 1),
            coefficients: None,
            bias: 0.0,
            second: Second::default(),
            last_ms: None,
            now_s: 0,
            settled_s: 0,
            recent: VecDeque::new(),
            power_mean: 0.0,
            power_square: 0.0,
            power_weight: 0.0,
            stuck: false,
            hindcasts: VecDeque::new(),
            fit_alone: Score::default(),
            bank: Score::default(),
            slope: Score::default(),
            stay: Score::default(),
            was_valid: false,
        }
    }

    /// Takes one set of readings: the margin, the power where the device tells it, and what
    /// is planned from now on. Returns whether a second became complete, which is when
    /// anything was learned. A gap in the readings makes the past worthless, not the fit.
    pub fn observe(&mut self, margin: f64, watts: Option<f64>, plan: &Plan, now_ms: u64) -> bool {
        let gap = self
            .last_ms
            .is_none_or(|last| now_ms.saturating_sub(last) > GAP_MS);
        self.last_ms = Some(now_ms);
        if gap {
            self.begin_anew(now_ms);
        }
        self.second.margin += margin;
        self.second.count += 1;
        if let Some(watts) = watts {
            self.second.watts += watts;
            self.second.powered += 1;
        }
        let elapsed_ms = now_ms.saturating_sub(self.second.start_ms);
        if elapsed_ms < 1_000 {
            return false;
        }
        let second = std::mem::take(&mut self.second);
        self.second.start_ms = now_ms;
        let margin = second.margin / f64::from(second.count);
        let watts = (second.powered > 0).then(|| second.watts / f64::from(second.powered));
        self.learn(margin, watts, elapsed_ms as f64 / 1000.0);
        self.issue(plan);
        true
    }

    fn begin_anew(&mut self, now_ms: u64) {
        self.second = Second {
            start_ms: now_ms,
            ..Second::default()
        };
        self.averages = None;
        self.hindcasts.clear();
        self.recent.clear();
        for score in [&mut self.bank, &mut self.slope, &mut self.stay] {
            score.open.clear();
        }
        self.settled_s = match self.fit.observations() {
            // The first time there is nothing that an unknown past could spoil for long.
            0 => self.now_s,
            _ => self.now_s + (SETTLE_TAUS * self.taus_s[2]) as u64,
        };
    }

    fn learn(&mut self, margin: f64, watts: Option<f64>, elapsed_s: f64) {
        self.now_s += 1;
        for score in [&mut self.bank, &mut self.slope, &mut self.stay] {
            score.check(self.now_s, margin);
        }
        self.recent.push_back((self.now_s, margin));
        while self.recent.len() > SLOPE_READINGS {
            self.recent.pop_front();
        }
        let Some(watts) = watts else {
            self.averages = None;
            self.hindcasts.clear();
            return;
        };
        let averages = self.averages.get_or_insert([watts; 3]);
        let weights = self.taus_s.map(|tau| 1.0 - (-elapsed_s / tau).exp());
        let open = self.hindcasts.iter_mut().map(|h| &mut h.averages);
        for averages in open.chain([&mut *averages]) {
            for (average, weight) in averages.iter_mut().zip(weights) {
                *average += (watts - *average) * weight;
            }
        }
        let inputs = [1.0, averages[0], averages[1], averages[2]];
        self.check_hindcasts(margin);
        if self.stuck || self.now_s < self.settled_s {
            return;
        }
        let steady = inputs[1..]
            .iter()
            .all(|average| (average - watts).abs() <= STEADY_RATIO * watts);
        if !steady || self.fit.observations() < TRAINED_S {
            self.power_mean = KEEP * self.power_mean + watts;
            self.power_square = KEEP * self.power_square + watts * watts;
            self.power_weight = KEEP * self.power_weight + 1.0;
            self.fit.observe(&inputs, -margin, 1.0);
            self.coefficients = self.fit.solve();
        }
        if let Some(fitted) = self.fitted(&inputs) {
            let keep = (-elapsed_s / BIAS_TAU_S).exp();
            self.bias = keep * self.bias + (1.0 - keep) * (-margin - fitted);
        }
    }

    fn fitted(&self, inputs: &[f64; 4]) -> Option<f64> {
        let coefficients = self.coefficients.as_ref()?;
        Some(inputs.iter().zip(coefficients).map(|(x, c)| x * c).sum())
    }

    fn check_hindcasts(&mut self, margin: f64) {
        while let Some(then) = self.hindcasts.front().copied()
            && then.due_s <= self.now_s
        {
            self.hindcasts.pop_front();
            let [constant, gains @ ..] = then.coefficients;
            let warmth: f64 = then.averages.iter().zip(gains).map(|(x, g)| x * g).sum();
            self.fit_alone.add(constant + warmth + then.bias + margin);
        }
    }

    /// Writes down what each method says now, to be checked when its time has come.
    fn issue(&mut self, plan: &Plan) {
        let due_s = self.now_s + HORIZON_S as u64;
        if let Some(&(_, margin)) = self.recent.back() {
            self.stay.issue(due_s, margin);
        }
        // What a young fit says is not published, so it is not held against it either.
        if self.fit.observations() >= TRAINED_S
            && let Some(margin) = self.margin_by_bank(HORIZON_S, plan)
        {
            self.bank.issue(due_s, margin);
            if let (Some(averages), Some(coefficients)) = (self.averages, self.coefficients) {
                self.hindcasts.push_back(Hindcast {
                    due_s,
                    averages,
                    coefficients,
                    bias: self.bias,
                });
            }
        }
        if let Some(margin) = self.margin_by_slope(HORIZON_S) {
            self.slope.issue(due_s, margin);
        }
        self.was_valid |= self.is_valid();
    }

    /// The margin after so many seconds under a plan, by the fit, whether or not it is
    /// good enough to be used.
    pub fn margin_by_bank(&self, after_s: usize, plan: &Plan) -> Option<f64> {
        let rolled = self.roll(plan)?.nth(after_s.max(1) - 1)?;
        Some(-self.fitted(&rolled)? - self.bias)
    }

    /// The margin after so many seconds if the last half minute's slope fades out.
    pub fn margin_by_slope(&self, after_s: usize) -> Option<f64> {
        let count = self.recent.len();
        if count < SLOPE_READINGS_MIN {
            return None;
        }
        let mean_at = self.recent.iter().map(|r| r.0 as f64).sum::<f64>() / count as f64;
        let mean = self.recent.iter().map(|r| r.1).sum::<f64>() / count as f64;
        let (mut along, mut across) = (0.0, 0.0);
        for &(at, margin) in &self.recent {
            let from_mean = at as f64 - mean_at;
            along += from_mean * from_mean;
            across += from_mean * (margin - mean);
        }
        let reach = SLOPE_FADES_S * (1.0 - (-(after_s as f64) / SLOPE_FADES_S).exp());
        let last = self.recent.back()?.1;
        Some(last + across / along * reach)
    }

    /// The inputs of the fit in one, two, … seconds.
    fn roll<'a>(&self, plan: &'a Plan) -> Option<impl Iterator<Item = [f64; 4]> + 'a> {
        let mut averages = self.averages?;
        // What the fastest average says is as near to the power now as matters.
        let mut watts = averages[0];
        let weights = self.taus_s.map(|tau| 1.0 - (-1.0 / tau).exp());
        let mut planned = plan.iter();
        Some(std::iter::repeat_with(move || {
            if let Some(next) = planned.next() {
                watts = *next;
            }
            for (average, weight) in averages.iter_mut().zip(weights) {
                *average += (watts - *average) * weight;
            }
            [1.0, averages[0], averages[1], averages[2]]
        }))
    }

    /// Whether the fit may be used: old enough, taught by changes, with a living
    /// thermometer, and, under the power that came, not worse than expecting no change.
    pub fn is_valid(&self) -> bool {
        let mean = self.power_mean / self.power_weight;
        let variance = self.power_square / self.power_weight - mean * mean;
        let moved = variance.max(0.0).sqrt() > MOVED_RATIO * mean;
        let better = match (self.fit_alone.rmse(), self.stay.rmse()) {
            // Both may be right within the steps of the thermometer.
            (Some(bank), Some(stay)) => bank <= WORSE_RATIO * stay.max(1.0),
            _ => true,
        };
        self.fit.observations() >= TRAINED_S
            && moved
            && better
            && !self.stuck
            && self.now_s >= self.settled_s
            && self.averages.is_some()
            && self.coefficients.is_some()
    }

    /// There was a valid fit, and now what it needs is gone although the device still
    /// answers: its power, or a thermometer that moves.
    pub fn is_lost(&self) -> bool {
        let blind = self.stuck || self.averages.is_none();
        self.was_valid && blind && self.now_s >= self.settled_s
    }

    /// What is expected under a plan; `None` while nobody can tell.
    pub fn outlook(&self, plan: &Plan) -> Option<Outlook> {
        if self.is_valid()
            && let Some(margin_celsius) = self.margin_by_bank(HORIZON_S, plan)
        {
            return Some(Outlook {
                method: Method::FilterBank,
                margin_celsius,
                time_to_throttle_s: self.time_to_throttle_s(plan),
                sustainable_watts: self.sustainable_watts(),
                rmse_celsius: self.bank.rmse(),
                trained_s: self.fit.observations(),
            });
        }
        if self.stuck {
            return None;
        }
        Some(Outlook {
            method: Method::Slope,
            margin_celsius: self.margin_by_slope(HORIZON_S)?,
            time_to_throttle_s: None,
            sustainable_watts: None,
            rmse_celsius: self.slope.rmse(),
            trained_s: self.recent.len() as u64,
        })
    }

    fn time_to_throttle_s(&self, plan: &Plan) -> Option<u32> {
        let [constant, gains @ ..] = self.coefficients?;
        let hot = self.roll(plan)?.take(LOOKOUT_S).position(|inputs| {
            let warmth: f64 = inputs[1..].iter().zip(gains).map(|(x, g)| x * g).sum();
            constant + warmth + self.bias >= 0.0
        })?;
        Some(hot as u32 + 1)
    }

    /// Power under which the margin would in the end be used up exactly.
    fn sustainable_watts(&self) -> Option<f64> {
        let [constant, gains @ ..] = self.coefficients?;
        let gain: f64 = gains.iter().sum();
        (gain > 0.0).then(|| ((-constant - self.bias) / gain).max(0.0))
    }
}

/// The forecasters of all devices that have a thermometer.
#[derive(Debug, Clone, Default)]
pub struct Forecasters {
    passive: bool,
    devices: BTreeMap<String, (Forecaster, Option<Outlook>)>,
}

impl Forecasters {
    /// For machines of a profile: only the smallest have no fan.
    pub fn new(profile: Profile) -> Self {
        Self {
            passive: profile == Profile::Mcu,
            devices: BTreeMap::new(),
        }
    }

    /// Takes one set of readings and what is planned for each device.
    pub fn observe(
        &mut self,
        readings: &Readings,
        plans: &BTreeMap<String, Vec<f64>>,
        now_ms: u64,
    ) {
        for (id, device) in &readings.devices {
            let Some(margin) = fresh(device, Signal::ThermalMargin, now_ms) else {
                // Silent: what was expected is not repeated.
                if let Some((_, outlook)) = self.devices.get_mut(id) {
                    *outlook = None;
                }
                continue;
            };
            if !self.devices.contains_key(id) {
                let unknown = (Forecaster::new(self.passive), None);
                self.devices.insert(id.clone(), unknown);
            }
            let watts = fresh(device, Signal::Power, now_ms);
            let plan = plans.get(id).map_or(&[][..], Vec::as_slice);
            let Some((forecaster, outlook)) = self.devices.get_mut(id) else {
                continue;
            };
            forecaster.stuck = device.suspect;
            if forecaster.observe(margin, watts, plan, now_ms) {
                *outlook = forecaster.outlook(plan);
            }
        }
    }

    /// What is expected of a device.
    pub fn outlook(&self, id: &str) -> Option<&Outlook> {
        self.devices.get(id)?.1.as_ref()
    }

    /// What is expected of every device that had a thermometer once; `None` where nobody can
    /// tell now.
    pub fn outlooks(&self) -> impl Iterator<Item = (&str, Option<&Outlook>)> {
        let devices = self.devices.iter();
        devices.map(|(id, (_, outlook))| (id.as_str(), outlook.as_ref()))
    }

    /// Whether a device that could be forecast no longer can.
    pub fn is_lost(&self, id: &str) -> bool {
        self.devices.get(id).is_some_and(|(f, _)| f.is_lost())
    }
}

fn fresh(device: &DeviceReadings, signal: Signal, now_ms: u64) -> Option<f64> {
    let reading = device.last(signal).filter(|r| r.is_fresh(now_ms))?;
    (!device.lost).then_some(reading.value)
}
