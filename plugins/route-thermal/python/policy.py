"""A small router by heat and difficulty. The same in four languages: see the README one
folder up."""

from homeostat import (
    Classification,
    Decision,
    MetabolicState,
    Refusal,
    Request,
    Snapshot,
    SpeculationHint,
    Tier,
    plan,
    reject,
)

# Distances to the first slowdown, in °C, from which a device counts as hot or warm.
HOT_CELSIUS = 5.0
WARM_CELSIUS = 15.0
# Draft tokens where speculation is allowed.
DRAFT_TOKENS = 4
# When to try again, if nothing is ready.
RETRY_MS = 1000


def heat(snapshot: Snapshot) -> str:
    margins = (d.thermal_margin_celsius for d in snapshot.devices)
    margin = min((m.value for m in margins if m is not None), default=float("inf"))
    state = snapshot.metabolism.state
    if state in (MetabolicState.CONSTRAINED, MetabolicState.CRITICAL) or margin <= HOT_CELSIUS:
        return "hot"
    if state == MetabolicState.ELEVATED or margin <= WARM_CELSIUS:
        return "warm"
    return "cool"


class Router:
    def route(
        self,
        request: Request,
        classification: Classification,
        tiers: list[Tier],
        snapshot: Snapshot,
    ) -> Decision:
        ready = [t for t in tiers if t.ready]
        if not ready:
            return reject(Refusal.OVERLOADED, "no tier is ready", RETRY_MS)
        if classification.p_simple >= 0.5:
            wanted, word = 0, "smallest"
        elif classification.p_complex >= 0.5:
            wanted, word = len(ready) - 1, "largest"
        else:
            wanted, word = len(ready) // 2, "middle"
        now = heat(snapshot)
        smaller = max(wanted - 1, 0)
        asked, reason = {
            "hot": (ready[:1], "hot: only the smallest"),
            "warm": (ready[smaller : smaller + 1], "warm: one size smaller"),
            "cool": (ready[wanted:], f"cool: from the {word}"),
        }[now]
        guess = now != "hot" and snapshot.metabolism.speculation != SpeculationHint.AVOID
        decision = plan([t.id for t in asked], reason)
        for step, tier in zip(decision.value.steps, asked):
            step.max_draft_tokens = DRAFT_TOKENS if guess and tier.can_speculate else 0
        return decision
