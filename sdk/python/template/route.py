"""Always the smallest tier that is ready."""

from homeostat import Classification, Decision, Request, Snapshot, Tier, fail, plan


class Router:
    def route(
        self,
        request: Request,
        classification: Classification,
        tiers: list[Tier],
        snapshot: Snapshot,
    ) -> Decision:
        for tier in tiers:
            if tier.ready:
                return plan([tier.id], "always the smallest")
        fail("no tier is ready")
