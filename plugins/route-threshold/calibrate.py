"""Finds the threshold of route-threshold from recorded requests.

    python3 calibrate.py --share 0.3 decisions.jsonl
    python3 calibrate.py --risk 0.1 outcomes.jsonl

A line is `{"score": 0.42}`, or a decision record as the host's admin API answers it
(`/admin/v1/decisions/ID`); for `--risk` it also says whether the weak tier's answer was good:
`{"score": 0.42, "weak": true}`. What is printed goes into the settings of the policy.
"""

import json
import math
import sys

# Thresholds that are tried: more would differ by a few requests.
GRID = 100
# Steps of it from which a search begins. They are fixed beforehand, or the search would look
# for a lucky beginning; each has its part of the doubt.
STARTS = (10, 25, 50)


def hardness(simple: float, medium: float, hard: float) -> float:
    """How much speaks for the strong tier, 0 to 1: half of what takes a medium one."""
    return hard + medium / 2


def for_share(scores: list[float], share: float) -> float:
    """The threshold that sends this share of such requests to the strong tier: the quantile
    that RouteLLM uses. Of equal scores all go or none, whichever is nearer."""
    if not scores or not 0 <= share <= 1:
        raise ValueError("a share from 0 to 1, and at least one score")
    ordered = sorted(set(scores), reverse=True)
    # Nobody reaches what lies above the highest.
    best, nearest = math.nextafter(ordered[0], math.inf), share
    for threshold in ordered:
        distance = abs(sum(s >= threshold for s in scores) / len(scores) - share)
        if distance < nearest:
            best, nearest = threshold, distance
    return best


def for_risk(outcomes: list[tuple[float, bool]], risk: float, doubt: float = 0.1) -> float | None:
    """The highest threshold below which the weak tier is wrong in at most this share of its
    answers, except with a probability of `doubt`; None where no threshold can be shown to do so.

    Learn then test: from each start thresholds are tried upwards, and the first that could as
    well be too risky ends that search. So the guarantee needs no assumption about the scores,
    only that the requests to come are like those that were recorded."""
    if not 0 < risk < 1 or not 0 < doubt < 1:
        raise ValueError("risk and doubt lie between 0 and 1")
    ordered = sorted(score for score, _ in outcomes)
    best = None
    for start in STARTS:
        for step in range(start, GRID + 1):
            last = len(ordered) * step // GRID - 1
            if last < 0:
                break
            threshold = math.nextafter(ordered[last], math.inf)
            kept = [good for score, good in outcomes if score < threshold]
            if at_most(kept.count(False), len(kept), risk) > doubt / len(STARTS):
                break
            best = threshold if best is None else max(best, threshold)
    return best


def at_most(wrong: int, of: int, risk: float) -> float:
    """The probability of no more than so many wrong answers, if each were wrong with the
    probability `risk`."""
    total = 0.0
    for k in range(wrong + 1):
        ways = math.lgamma(of + 1) - math.lgamma(k + 1) - math.lgamma(of - k + 1)
        total += math.exp(ways + k * math.log(risk) + (of - k) * math.log1p(-risk))
    return min(total, 1.0)


def score_of(line: dict) -> float:
    """The score in a line of either kind."""
    if "score" in line:
        return float(line["score"])
    found = line["classification"]["value"]
    return hardness(found["p_simple"], found["p_medium"], found["p_complex"])


def main(arguments: list[str]) -> None:
    if len(arguments) != 3 or arguments[0] not in ("--share", "--risk"):
        sys.exit(__doc__)
    with open(arguments[2], encoding="utf-8") as file:
        lines = [json.loads(line) for line in file if line.strip()]
    wanted = float(arguments[1])
    if arguments[0] == "--share":
        threshold = for_share([score_of(line) for line in lines], wanted)
    else:
        threshold = for_risk([(score_of(line), bool(line["weak"])) for line in lines], wanted)
        if threshold is None:
            sys.exit("no threshold can be shown to keep this risk: more requests, or more risk")
    above = sum(score_of(line) >= threshold for line in lines)
    print(f'settings = {{ threshold = "{threshold!r}" }}')
    print(f"# {above} of {len(lines)} recorded requests would go to the strong tier")


if __name__ == "__main__":
    main(sys.argv[1:])
