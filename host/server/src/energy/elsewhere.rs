//! Energy of answers that no engine of this host made.
//!
//! A remote tier's energy is what its configuration states of a token, and modelled for that
//! reason. An answer without a model took none. So a receipt tells "nothing was used" from "nobody
//! knows". It refuses to guess a rate: of a tier that states none no number is known, and an answer
//! that it has only a part in is incomplete.

use std::collections::{HashMap, VecDeque};

use homeostat_hooks::Origin;
use homeostat_telemetry::ledger::{Boundary, Receipt, SplitMethod};

/// Answers that are kept for whoever asks later: as many as the ledger keeps.
const KEPT: usize = 10_000;
/// Error of a rate that was stated for a machine which nobody here can see: what the ledger
/// expects of a table.
const STATED_ERROR: f64 = 0.60;

/// What is known of one answer beside the ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Elsewhere {
    /// By remote tiers that state a rate, µJ.
    pub stated_uj: Option<u64>,
    /// A remote tier that states none had a part in it.
    pub is_unknown: bool,
    /// No model was asked.
    pub is_direct: bool,
}

impl Elsewhere {
    /// Two as one: parts of an answer, or answers to one question.
    pub fn plus(self, other: Self) -> Self {
        let sum = |a: Option<u64>, b: Option<u64>| match (a, b) {
            (Some(a), Some(b)) => Some(a.saturating_add(b)),
            (one, other) => one.or(other),
        };
        Self {
            stated_uj: sum(self.stated_uj, other.stated_uj),
            is_unknown: self.is_unknown || other.is_unknown,
            is_direct: self.is_direct || other.is_direct,
        }
    }

    /// What was stated, as a receipt. It is settled: nobody will say more.
    pub fn receipt(self) -> Option<Receipt> {
        Some(Receipt {
            prefill_uj: 0,
            decode_uj: self.stated_uj?,
            policy_uj: 0,
            wasted_uj: 0,
            pending_uj: 0,
            policy_pending_uj: 0,
            origin: Origin::Modelled,
            relative_error: STATED_ERROR,
            boundary: Boundary::Host,
            method: SplitMethod::Tokens,
            shared: false,
            incomplete: false,
            settled: true,
        })
    }
}

/// The newest of them, by account.
#[derive(Debug, Default)]
pub struct Answers {
    known: HashMap<u64, Elsewhere>,
    order: VecDeque<u64>,
}

impl Answers {
    /// One more part of an answer.
    pub fn add(&mut self, account: u64, part: Elsewhere) {
        let before = self.known.get(&account).copied();
        if before.is_none() {
            self.order.push_back(account);
        }
        self.known
            .insert(account, before.unwrap_or_default().plus(part));
        while self.order.len() > KEPT
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
    }

    /// What is known of this answer; nothing, if no other than this host's engines made it.
    pub fn of(&self, account: u64) -> Elsewhere {
        self.known.get(&account).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_an_answer_add_up_and_an_unknown_part_stays_unknown() {
        let mut answers = Answers::default();
        let stated = |uj| Elsewhere {
            stated_uj: Some(uj),
            ..Elsewhere::default()
        };
        answers.add(1, stated(200));
        answers.add(1, stated(50));
        assert_eq!(answers.of(1), stated(250));
        let receipt = answers.of(1).receipt().expect("stated");
        assert_eq!(
            (receipt.total_uj(), receipt.origin),
            (250, Origin::Modelled)
        );
        answers.add(
            1,
            Elsewhere {
                is_unknown: true,
                ..Elsewhere::default()
            },
        );
        assert_eq!(answers.of(1).stated_uj, Some(250));
        assert!(answers.of(1).is_unknown);
        assert_eq!(answers.of(2), Elsewhere::default());
        assert!(answers.of(2).receipt().is_none());
    }

    #[test]
    fn the_oldest_answers_are_forgotten() {
        let mut answers = Answers::default();
        let direct = Elsewhere {
            is_direct: true,
            ..Elsewhere::default()
        };
        (0..=KEPT as u64).for_each(|account| answers.add(account, direct));
        assert_eq!(answers.of(0), Elsewhere::default());
        assert_eq!(answers.of(1), direct);
        assert_eq!(answers.known.len(), KEPT);
    }
}
