//! Behaviour B: the direct answer "B", model answers of at most 6 tokens.

use homeostat_sdk::*;

struct AnswersB;

impl Router for AnswersB {
    fn route(
        request: &Request,
        _: &Classification,
        tiers: &[Tier],
        _: &Snapshot,
    ) -> Result<Decision> {
        answer::decide("B", 6, request, tiers)
    }
}

export_router!(AnswersB);
