//! Hosts that are compared at equal watts: the setting of a host at which these very days cost
//! a given mean power, found with hindsight. No operator could find a better one.
//!
//! It refuses to pass off what it did not reach: how far the watts are from those asked for
//! comes back with every setting.

use super::compare::{Busy, Scene, total};
use super::judgement::{By, FRUGAL_DRAFT_TOKENS, Judgement};
use super::life::Lived;
use crate::Failure;

/// How near the mean watts must come to those asked for, as a share.
pub const EQUAL: f64 = 0.005;
/// Settings that are tried at most.
const TRIED: usize = 10;
/// The most that a joule may cost a router that is tuned by its price.
const PRICE_MAX: f64 = 6.0;
/// What the chip draws at most, W: a cap above it is none.
const CHIP_WATTS: f64 = 120.0;

/// A setting that was found, and the days lived with it.
pub struct Tuned {
    /// What was set.
    pub setting: f64,
    /// Mean watts over those asked for, less one.
    pub off: f64,
    /// The days.
    pub lived: Vec<Lived>,
}

impl Tuned {
    /// What is wrong with calling it equal; `None` if nothing is.
    pub fn unequal(&self) -> Option<f64> {
        (self.off.abs() > EQUAL).then_some(self.off)
    }
}

/// The cap under which these days cost this mean power. `None` where the host draws no more than
/// that without a cap: then nothing is lived again.
pub fn under_cap(
    scene: &Scene,
    days: &[Busy],
    judgement: Judgement,
    uncapped_watts: f64,
    target_watts: f64,
) -> Result<Option<Tuned>, Failure> {
    if uncapped_watts <= target_watts * (1.0 + EQUAL) {
        return Ok(None);
    }
    // A cap at the target is too low, since the machine is not always busy.
    let ends = [(target_watts, 0.0), (CHIP_WATTS, uncapped_watts)];
    search(scene, days, |cap| (judgement, cap), ends, target_watts).map(Some)
}

/// The threshold at which these days cost this mean power: a static router that somebody tuned
/// with hindsight, over what the classifier says of the very rows that are asked.
pub fn tuned_threshold(
    scene: &Scene,
    days: &[Busy],
    by: By,
    target_watts: f64,
) -> Result<Tuned, Failure> {
    let host = |share: f64| (frugal_threshold(scene, by, share), f64::INFINITY);
    // By the share of requests that the large tier gets: watts grow with it nearly evenly.
    let mut found = search(scene, days, host, [(0.0, 0.0), (1.0, 0.0)], target_watts)?;
    found.setting = f64::from(scene.threshold(by, found.setting));
    Ok(found)
}

/// A static router that gives the large tier this share of the requests, as few drafts as take
/// the least energy.
pub fn frugal_threshold(scene: &Scene, by: By, share: f64) -> Judgement {
    Judgement::Threshold {
        by,
        least: scene.threshold(by, share),
        drafts: FRUGAL_DRAFT_TOKENS,
    }
}

/// The price of energy at which a metabolic host, perhaps without a part, costs this mean power.
pub fn tuned_price(
    scene: &Scene,
    days: &[Busy],
    of: impl Fn(f64) -> Judgement,
    target_watts: f64,
) -> Result<Tuned, Failure> {
    // More watts with a lower price.
    let host = |thrift: f64| (of(PRICE_MAX - thrift), f64::INFINITY);
    let ends = [(0.0, 0.0), (PRICE_MAX, 0.0)];
    let mut found = search(scene, days, host, ends, target_watts)?;
    found.setting = PRICE_MAX - found.setting;
    Ok(found)
}

/// Finds the setting of a host at which these days cost this mean power, between two ends of
/// which the first gives too little: by false position where the watts of both ends are known
/// (not 0), every other time by halves, since a curve may be bent.
fn search(
    scene: &Scene,
    days: &[Busy],
    host: impl Fn(f64) -> (Judgement, f64),
    [mut low, mut high]: [(f64, f64); 2],
    target_watts: f64,
) -> Result<Tuned, Failure> {
    let mut best: Option<Tuned> = None;
    for tried in 0..TRIED {
        let known = low.1 > 0.0 && high.1 > low.1;
        let share = match known && tried.is_multiple_of(2) {
            true => (target_watts - low.1) / (high.1 - low.1),
            false => 0.5,
        };
        let setting = low.0 + (high.0 - low.0) * share.clamp(0.05, 0.95);
        let lived = scene
            .live(days, &[host(setting)])?
            .pop()
            .unwrap_or_default();
        let watts = total(&lived, days).watts();
        let off = watts / target_watts - 1.0;
        if best.as_ref().is_none_or(|best| off.abs() < best.off.abs()) {
            best = Some(Tuned {
                setting,
                off,
                lived,
            });
        }
        match (off.abs() <= EQUAL, off < 0.0) {
            (true, _) => break,
            (false, true) => low = (setting, watts),
            (false, false) => high = (setting, watts),
        }
    }
    best.ok_or_else(|| Failure::Failed("nothing was tried".into()))
}
