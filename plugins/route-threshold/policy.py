"""Two tiers and a threshold between them, in the manner of RouteLLM: what is probably too hard
for the weak tier goes to the strong one at once.

Where the threshold lies is no opinion: `homeostat policy calibrate` finds it from recorded
requests, for a share of traffic that the strong tier may have or for a share of wrong answers that
one accepts.
"""

from homeostat import (
    Classification,
    Decision,
    Refusal,
    Request,
    Snapshot,
    Tier,
    Value_Integer,
    Value_Number,
    plan,
    reject,
)
from homeostat.config import config, number

# When to try again, if nothing is ready.
RETRY_MS = 1000


def hardness(simple: float, medium: float, hard: float) -> float:
    """How much speaks for the strong tier, 0 to 1: half of what takes a medium one."""
    return hard + medium / 2


def score(classification: Classification) -> float | None:
    """How much speaks for the strong tier: hardness, or an attribute that the operator names and
    that another classifier may not give."""
    key = config("score")
    if key is None:
        c = classification
        return hardness(c.p_simple, c.p_medium, c.p_complex)
    for name, value in classification.attributes:
        if name == key and isinstance(value, (Value_Integer, Value_Number)):
            return value.value
    return None


def named(key: str, tiers: list[Tier], default: Tier) -> Tier:
    """The tier that a setting names, if it is among the candidates of this request."""
    name = config(key)
    return next((tier for tier in tiers if tier.id == name), default)


class Router:
    def route(
        self,
        request: Request,
        classification: Classification,
        tiers: list[Tier],
        snapshot: Snapshot,
    ) -> Decision:
        threshold = number("threshold", 0.5, -1e9, 1e9)
        ready = [t for t in tiers if t.ready]
        if not ready:
            return reject(Refusal.OVERLOADED, "no tier is ready", RETRY_MS)
        weak = named("weak", tiers, ready[0])
        strong = named("strong", tiers, ready[-1])
        found = score(classification)
        # Of what nobody knows the strong tier knows more.
        hard = found is None or found >= threshold
        wanted, other = (strong, weak) if hard else (weak, strong)
        if found is None:
            reason = f"there is no score: {wanted.id}"
        else:
            relation = "at or above" if hard else "below"
            reason = f"{found:.3f} is {relation} {threshold:g}: {wanted.id}"
        if wanted.ready:
            return plan([wanted.id], reason)
        if other.ready:
            return plan([other.id], f"{reason}, which is not ready: {other.id}")
        return reject(Refusal.OVERLOADED, f"neither {weak.id} nor {strong.id} is ready", RETRY_MS)
