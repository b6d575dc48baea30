"""How often does an answer that nothing is wrong with trip the watch on surprisal?

    target/release/homeostat serve &
    python3 tests/bench/surprisal.py http://127.0.0.1:8080/v1 DATA [--every 4]

DATA: the folder with Spec-Bench's prompts, as for run.py. What is usual for the tier is learned
from every second answer, and on the others the sum of host/cascade/src/surprisal.rs runs with its
own constants, over each answer from 0, as in the host. Every trip is false as far as the model is
always itself; after one the sum begins anew, where the host would leave the answer. Greedy and
sampled answers are counted apart, since the host learns them apart.
"""

import argparse
import json
import math
import pathlib
import re
import urllib.error
import urllib.request

import prompts

SOURCE = pathlib.Path(__file__).resolve().parents[2] / "host/cascade/src/surprisal.rs"


def constant(name: str) -> float:
    return float(re.search(rf"^const {name}: f64 = ([\d_.]+);", SOURCE.read_text(), re.M)[1])


def surprisals(url: str, model: str, prompt: str, tokens: int, temperature: float) -> list[float]:
    """Of every token of an answer, in nats."""
    body = {"model": model, "messages": [{"role": "user", "content": prompt}], "logprobs": True}
    body |= {"max_tokens": tokens, "temperature": temperature, "seed": 1}
    headers = {"content-type": "application/json"}
    ask = urllib.request.Request(f"{url}/chat/completions", json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(ask) as answer:
            listed = json.load(answer)["choices"][0]["logprobs"]["content"]
    except urllib.error.HTTPError as error:
        if error.code != 400:
            raise
        return []  # longer than the model reads
    return [-token["logprob"] for token in listed]


def trips(answer: list[float], mean: float, deviation: float) -> int:
    allowance, limit, most = map(constant, ("ALLOWANCE", "LIMIT", "MOST_OF_ONE"))
    count, total = 0, 0.0
    for surprisal in answer:
        total = max(0.0, total + min((surprisal - mean) / deviation, most) - allowance)
        if total > limit:
            count, total = count + 1, 0.0
    return count


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("url")
    parser.add_argument("data", type=pathlib.Path)
    parser.add_argument("--model", default="smollm2", help="a tier that gives log-probabilities")
    parser.add_argument("--tokens", type=int, default=256, help="of an answer, at most")
    parser.add_argument("--every", type=int, default=1, help="take every so many prompts")
    options = parser.parse_args()
    asked = [row["turns"][0] for row in prompts.recorded(options.data)[:: options.every]]
    if not asked:
        parser.error(f"{options.data} has no prompts/spec_bench.jsonl")
    for name, temperature in (("greedy", 0.0), ("sampled at 0.7", 0.7)):
        answers = [
            surprisals(options.url, options.model, prompt, options.tokens, temperature)
            for prompt in asked
        ]
        answers = [answer for answer in answers if answer]
        learned = [s for answer in answers[::2] for s in answer]
        mean = sum(learned) / len(learned)
        deviation = math.sqrt(sum((s - mean) ** 2 for s in learned) / len(learned))
        watched = answers[1::2]
        found = [trips(answer, mean, deviation) for answer in watched]
        tokens = sum(map(len, watched))
        print(
            f"{name}: usual {mean:.2f} ± {deviation:.2f} nats of {len(learned)} tokens; "
            f"{sum(found)} trips in {tokens} tokens of {len(watched)} answers: "
            f"{1e4 * sum(found) / tokens:.1f} per 10,000 tokens, "
            f"{sum(1 for f in found if f)} answers left"
        )
        # Twice the surprisal is what the watch is for: it should not last long.
        doubled = [trips([2 * s for s in answer], mean, deviation) for answer in watched]
        print(f"  with doubled surprisal: {1e4 * sum(doubled) / tokens:.1f} per 10,000 tokens")


if __name__ == "__main__":
    main()
