"""Raw samples in, one markdown table out.

    python tests/bench/table.py tests/bench/results/<file>.json
"""

import json
import pathlib
import statistics
import sys

from prompts import COPYING, KINDS

PEERS = ["llama.cpp", "candle", "mistral.rs"]
SPEEDS = [
    ("decode", "decode, 1 stream, 128 tokens", "≥ 3 × llama.cpp", lambda rate, ratio: ratio >= 3),
    ("prefill", "prefill, 512 tokens", "≥ 6 × llama.cpp", lambda rate, ratio: ratio >= 6),
    ("streams", "decode, 8 streams together", "≥ 900 tokens/s", lambda rate, ratio: rate >= 900),
]


def spread(values: list[float], form: str = "{:.0f}") -> str:
    """Median and range."""
    if not values:
        return "–"
    middle = form.format(statistics.median(values))
    if len(values) == 1:
        return middle
    return f"{middle} ({form.format(min(values))}–{form.format(max(values))})"


def verdict(hit: bool | None) -> str:
    return "–" if hit is None else "hit" if hit else "**missed**"


class Samples:
    def __init__(self, samples: list[dict]):
        self.all = samples

    def of(self, measure: str, engine: str, threads: int | None = None) -> list[dict]:
        return [
            s
            for s in self.all
            if s["measure"] == measure
            and s["engine"] == engine
            and threads in (None, s["threads"])
        ]

    def threads(self) -> list[int]:
        return sorted({s["threads"] for s in self.all if s["measure"] in ("decode", "prefix")})


def ratios(mine: list[dict], theirs: list[dict], value) -> list[float]:
    """Round by round: what disturbs the machine disturbs both."""
    by_round = {s["round"]: value(s) for s in theirs}
    return [value(s) / by_round[s["round"]] for s in mine if s["round"] in by_round]


def speed_rows(samples: Samples):
    def rate(sample):
        return sample["tokens_per_second"]

    for measure, name, goal, reached in SPEEDS:
        for threads in samples.threads():
            mine = samples.of(measure, "ours", threads)
            if not mine:
                continue
            theirs = {peer: samples.of(measure, peer, threads) for peer in PEERS}
            ratio = ratios(mine, theirs["llama.cpp"], rate)
            middle = statistics.median(map(rate, mine))
            known = measure == "streams" or ratio
            hit = reached(middle, statistics.median(ratio) if ratio else 0) if known else None
            yield [
                f"{name}, {threads} thread{'s' * (threads > 1)} (tokens/s)",
                goal,
                spread([rate(s) for s in mine]),
                *(spread([rate(s) for s in theirs[peer]]) for peer in PEERS),
                spread(ratio, "{:.2f} ×"),
                verdict(hit),
            ]


def prefix_rows(samples: Samples):
    for threads in samples.threads():
        mine = samples.of("prefix", "ours", threads)
        if not mine:
            continue
        theirs = samples.of("prefix", "llama.cpp", threads)

        def steps(sample):
            return sample["hit"] / sample["step"]

        yield [
            f"1,000-token prompt again, {threads} thread{'s' * (threads > 1)} (decode steps)",
            "≤ 2 steps",
            spread([steps(s) for s in mine], "{:.2f}"),
            spread([steps(s) for s in theirs], "{:.2f}"),
            "–",
            "–",
            spread([s["cold"] / s["hit"] for s in mine], "{:.0f} × sooner than cold"),
            verdict(statistics.median(map(steps, mine)) <= 2),
        ]


def speculation_rows(samples: Samples):
    for kind in KINDS:
        mine = samples.of(f"speculation {kind}", "ours")
        if not mine:
            continue
        gain = [s["without"] / s["with"] for s in mine]
        rate = [s["tokens"] / s["with"] for s in mine]
        least = 2 if kind in COPYING else 0.97
        yield [
            f"speculation, {kind} (tokens/s)",
            f"≥ {least} × without",
            spread(rate),
            "–",
            "–",
            "–",
            spread(gain, "{:.2f} × without"),
            verdict(statistics.median(gain) >= least),
        ]


def memory_rows(samples: Samples):
    mine, theirs = samples.of("memory", "ours"), samples.of("memory", "llama.cpp")
    if not mine:
        return

    def share(sample, what):
        return (sample[what] - sample["before"]) / sample["wanted"]

    for what, name in [("resident", "steady"), ("peak", "peak")]:
        yield [
            f"resident memory, {name} (of weights + KV)",
            "≤ 1.3",
            spread([share(s, what) for s in mine], "{:.2f}"),
            spread([share(s, what) for s in theirs], "{:.2f}"),
            "–",
            "–",
            spread([share(m, what) / share(t, what) for m, t in zip(mine, theirs)], "{:.2f} ×"),
            verdict(share(mine[0], what) <= 1.3),
        ]


def accuracy_rows(samples: Samples):
    mine, theirs = samples.of("accuracy", "ours"), samples.of("accuracy", "llama.cpp")
    if not mine:
        return
    kl = [s["kl_mean"] for s in mine + theirs]
    difference = samples.of("accuracy difference", "ours")
    apart = "".join(
        f", apart by {d['mean']:+.5f} ± {d['standard_error']:.5f}" for d in difference
    )
    yield [
        f"KL to the f32 model, mean of {mine[0]['positions']} positions (nats)",
        "≤ llama.cpp's",
        f"{kl[0]:.5f}",
        f"{kl[1]:.5f}" if theirs else "–",
        "–",
        "–",
        f"{kl[0] / kl[1]:.2f} ×{apart}" if theirs else "–",
        verdict(kl[0] <= kl[1] if theirs else None),
    ]
    same = [f"{100 * s['top1']:.1f} %" for s in mine + theirs]
    yield ["same likeliest token as f32", "", *(same + ["–"])[:2], "–", "–", "–", "–"]


def render(result: dict) -> str:
    machine = result["machine"]
    samples = Samples(result["samples"])
    rows = [["what", "goal", "ours", *PEERS, "ours ÷ llama.cpp", "goal"]]
    for part in [speed_rows, prefix_rows, speculation_rows, memory_rows, accuracy_rows]:
        rows.extend(part(samples))
    lines = [f"| {' | '.join(row)} |" for row in rows]
    lines.insert(1, "|---" * len(rows[0]) + "|")
    load = ", ".join(f"{x:.1f}" for x in machine["load_before"])
    packages = ", ".join(f"{k} {v}" for k, v in machine["packages"].items())
    head = (
        f"{machine['date']} · {machine['cpu']}, {machine['cores']} cores · load before {load} · "
        f"{machine['model']} · commit {machine['commit'][:12]}"
        f"{' with changes' if machine['uncommitted_changes'] else ''} · {packages}\n"
        "Medians (least–greatest) over the rounds; ratios are taken within a round."
    )
    notes = [f"- {note}" for note in result["notes"]]
    return "\n".join([head, "", *lines, *([""] if notes else []), *notes])


if __name__ == "__main__":
    print(render(json.loads(pathlib.Path(sys.argv[1]).read_text())))
