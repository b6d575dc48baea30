//! Behaviour A: the direct answer "A", model answers of at most 3 tokens.

use homeostat_sdk::*;

struct AnswersA;

impl Router for AnswersA {
    fn route(
        request: &Request,
        _: &Classification,
        tiers: &[Tier],
        _: &Snapshot,
    ) -> Result<Decision> {
        answer::decide("A", 3, request, tiers)
    }
}

export_router!(AnswersA);
