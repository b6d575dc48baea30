//! Profiles are presets of prices, not code; an operator's settings change single ones.

use homeostat_sdk::{Error, Profile, Result};

/// Everything that an operator can turn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Settings {
    /// Which preset the rest began as.
    pub profile: Profile,
    /// Price of the largest tier's effort on a machine that lacks nothing, as the share of
    /// good answers that one gives up to save it.
    pub energy_price: f32,
    /// Price of ten seconds of waiting, in the same currency.
    pub latency_price: f32,
    /// Price of one US dollar per thousand requests, in the same currency.
    pub money_price: f32,
    /// Steps of a plan at most.
    pub steps_max: usize,
    /// Confidence from which an answer is accepted, before pressure lowers it.
    pub accept_threshold: f32,
    /// Whether an operator has set it, perhaps for a risk that was promised to somebody: then
    /// nothing but pressure lowers it.
    pub threshold_is_set: bool,
    /// Share of wrong answers that the validator notices, and of right ones that it doubts. Assumed
    /// until `homeostat policy calibrate` has counted them.
    pub noticed: f32,
    /// See `noticed`.
    pub doubted: f32,
    /// Temperature of the classifier's probabilities: above 1 it is too sure of itself.
    pub temperature: f32,
    /// Of answers as good as those of a plan's last tier, the share that may be doubted and
    /// asked again all the same.
    pub needless_max: f32,
    /// How long a conversation keeps a tier that it has just changed to.
    pub dwell_s: u32,
    /// When drafts are worth trying.
    pub speculation: Speculation,
    /// Whether arithmetic, units and dates are answered without a model.
    pub direct_answers: bool,
}

/// When drafts are worth trying.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speculation {
    /// Unless the host advises against it.
    Always,
    /// With thermal headroom, or when the host advises it.
    Conditional,
    /// Never.
    Off,
}

impl Settings {
    /// The preset of a profile. Datacenter: quality first, deep cascades. Edge: balanced.
    /// MCU: efficiency first, one step, no drafts.
    pub fn preset(profile: Profile) -> Self {
        let edge = Self {
            profile,
            energy_price: 0.25,
            latency_price: 0.05,
            money_price: 0.02,
            steps_max: 2,
            accept_threshold: 0.55,
            threshold_is_set: false,
            noticed: 0.7,
            doubted: 0.15,
            temperature: 1.0,
            needless_max: 0.1,
            dwell_s: 60,
            speculation: Speculation::Conditional,
            direct_answers: true,
        };
        match profile {
            Profile::Edge => edge,
            Profile::Datacenter => Self {
                energy_price: 0.05,
                latency_price: 0.1,
                money_price: 0.005,
                steps_max: 3,
                accept_threshold: 0.7,
                needless_max: 0.2,
                dwell_s: 30,
                speculation: Speculation::Always,
                ..edge
            },
            Profile::Mcu => Self {
                energy_price: 0.7,
                latency_price: 0.02,
                money_price: 0.05,
                steps_max: 1,
                accept_threshold: 0.4,
                needless_max: 0.05,
                dwell_s: 120,
                speculation: Speculation::Off,
                ..edge
            },
        }
    }

    /// The preset of the machine's profile with the operator's settings on top. A setting
    /// that cannot be read is an error: a router that ignored it would seem to obey.
    pub fn read(machine: Profile, config: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let profile = match config("profile").as_deref() {
            None => machine,
            Some("datacenter") => Profile::Datacenter,
            Some("edge") => Profile::Edge,
            Some("mcu") => Profile::Mcu,
            Some(other) => return wrong("profile", other, "datacenter, edge or mcu"),
        };
        let mut settings = Self::preset(profile);
        if let Some(factor) = config("energy-price") {
            settings.energy_price *= match factor.parse::<f32>() {
                Ok(f) if (0.0..=100.0).contains(&f) => f,
                _ => return wrong("energy-price", &factor, "a factor from 0 to 100"),
            };
        }
        if let Some(threshold) = config("accept-threshold") {
            settings.accept_threshold = match threshold.parse::<f32>() {
                Ok(t) if (0.0..=1.0).contains(&t) => t,
                _ => return wrong("accept-threshold", &threshold, "0 to 1"),
            };
            settings.threshold_is_set = true;
        }
        for (key, share) in [
            ("noticed-ratio", &mut settings.noticed),
            ("doubted-ratio", &mut settings.doubted),
        ] {
            if let Some(text) = config(key) {
                *share = match text.parse::<f32>() {
                    Ok(s) if (0.0..=1.0).contains(&s) => s,
                    _ => return wrong(key, &text, "0 to 1"),
                };
            }
        }
        if let Some(temperature) = config("classifier-temperature") {
            settings.temperature = match temperature.parse::<f32>() {
                Ok(t) if (0.1..=10.0).contains(&t) => t,
                _ => return wrong("classifier-temperature", &temperature, "0.1 to 10"),
            };
        }
        if let Some(seconds) = config("dwell-seconds") {
            settings.dwell_s = match seconds.parse() {
                Ok(s) if s <= 3600 => s,
                _ => return wrong("dwell-seconds", &seconds, "0 to 3600"),
            };
        }
        settings.direct_answers = match config("direct-answers").as_deref() {
            None | Some("on") => true,
            Some("off") => false,
            Some(other) => return wrong("direct-answers", other, "on or off"),
        };
        Ok(settings)
    }
}

fn wrong<T>(key: &str, value: &str, expected: &str) -> Result<T> {
    Err(Error::InvalidArgument(format!(
        "setting {key} is {value:?}, expected {expected}"
    )))
}
