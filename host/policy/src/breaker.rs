//! Leaves a policy alone that keeps failing.
//!
//! After some faults in a row the fallback answers at once, for a pause that doubles from
//! a second to a minute. When a pause is over, one request tries the policy again while
//! all others still get the fallback. A swap makes a new generation with a new breaker.
//!
//! Time comes from outside, in milliseconds.

use std::sync::{Mutex, MutexGuard, PoisonError};

use homeostat_hooks::Fault;

use crate::config::BreakerConfig;

/// The breaker of one generation.
#[derive(Debug)]
pub(crate) struct Breaker {
    config: BreakerConfig,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    faults: u32,
    last: Option<Fault>,
    /// Open until then; the pause that led there.
    open: Option<(u64, u64)>,
    trial: bool,
}

impl Breaker {
    pub fn new(config: BreakerConfig) -> Self {
        Self {
            config,
            state: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// May the policy be called?
    ///
    /// # Errors
    /// The fault to tell while the breaker is open: the kind of the last one, and for how
    /// long.
    pub fn ask(&self, now_ms: u64) -> Result<(), Fault> {
        let mut state = self.lock();
        let Some((until, _)) = state.open else {
            return Ok(());
        };
        if now_ms >= until && !state.trial {
            state.trial = true;
            return Ok(());
        }
        let Some(last) = state.last.clone() else {
            return Ok(());
        };
        let left = until.saturating_sub(now_ms);
        Err(Fault::new(
            last.kind,
            format!(
                "left alone for {left} ms more after {} faults in a row; the last: {}",
                state.faults, last.detail
            ),
        ))
    }

    /// The policy has answered.
    pub fn succeeded(&self) {
        let mut state = self.lock();
        if state.faults > 0 {
            *state = State::default();
        }
    }

    /// The policy has failed.
    pub fn failed(&self, fault: &Fault, now_ms: u64) {
        let mut state = self.lock();
        state.faults = state.faults.saturating_add(1);
        state.last = Some(fault.clone());
        let pause = match state.open {
            // Requests that began before the breaker opened do not lengthen the pause.
            Some(_) if !state.trial => return,
            Some((_, pause)) => (pause * 2).min(self.config.max_pause_ms),
            None if state.faults < self.config.faults => return,
            None => self.config.pause_ms,
        };
        state.trial = false;
        state.open = Some((now_ms + pause, pause));
    }

    /// The trial ended without a verdict on the policy (no instance was free).
    pub fn undecided(&self) {
        self.lock().trial = false;
    }

    /// Whether it is open.
    pub fn is_open(&self) -> bool {
        self.lock().open.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use homeostat_hooks::FaultKind;

    fn fail(breaker: &Breaker, now: u64) {
        breaker.failed(&Fault::new(FaultKind::Trap, "boom"), now);
    }

    fn opened() -> Breaker {
        let breaker = Breaker::new(BreakerConfig::default());
        for _ in 0..5 {
            assert_eq!(breaker.ask(0), Ok(()));
            fail(&breaker, 0);
        }
        breaker
    }

    #[test]
    fn five_faults_in_a_row_open_it_and_the_fault_says_why() {
        let breaker = opened();
        let told = breaker.ask(999).unwrap_err();
        assert_eq!(told.kind, FaultKind::Trap);
        assert!(told.detail.contains("boom") && told.detail.contains("1 ms"));
    }

    #[test]
    fn an_answer_between_faults_starts_the_count_anew() {
        let breaker = Breaker::new(BreakerConfig::default());
        for _ in 0..20 {
            for _ in 0..4 {
                fail(&breaker, 0);
            }
            breaker.succeeded();
        }
        assert_eq!(breaker.ask(0), Ok(()));
    }

    #[test]
    fn after_the_pause_one_request_tries_and_the_others_wait() {
        let breaker = opened();
        assert_eq!(breaker.ask(1000), Ok(()));
        assert!(breaker.ask(1000).is_err());
        breaker.succeeded();
        assert_eq!(breaker.ask(1001), Ok(()));
        assert!(!breaker.is_open());
    }

    #[test]
    fn the_pause_doubles_up_to_a_minute() {
        let breaker = opened();
        let (mut now, mut pause) = (0, 1000);
        for _ in 0..12 {
            now += pause;
            assert!(breaker.ask(now - 1).is_err(), "{pause}");
            assert_eq!(breaker.ask(now), Ok(()), "{pause}");
            fail(&breaker, now);
            pause = (pause * 2).min(60_000);
        }
        assert_eq!(pause, 60_000);
    }

    #[test]
    fn a_trial_without_a_verdict_may_be_tried_again() {
        let breaker = opened();
        assert_eq!(breaker.ask(1000), Ok(()));
        breaker.undecided();
        assert_eq!(breaker.ask(1000), Ok(()));
    }
}
