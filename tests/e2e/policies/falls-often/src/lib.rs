//! Behaviour B, except for one request in five, told by its id: there it panics.

use homeostat_sdk::*;

struct FallsOften;

impl Router for FallsOften {
    fn route(
        request: &Request,
        _: &Classification,
        tiers: &[Tier],
        _: &Snapshot,
    ) -> Result<Decision> {
        let sum: u32 = request.id.bytes().map(u32::from).sum();
        // Admission asks with an id of its own, which shall not be the fifth.
        assert!(sum % 5 != 0 || request.id == "probe", "the fifth");
        answer::decide("B", 6, request, tiers)
    }
}

export_router!(FallsOften);
