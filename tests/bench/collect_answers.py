"""Asks a running host the first GSM8K questions of a routing data folder, and writes its answers
with their log-probabilities: rows for `homeostat bench validate --answers FILE`.

Whether an answer is right is told by its last number, against the last number of a recorded
answer that is known to be right; questions that neither recorded model got right are left out.
An answer that was cut at the token limit says so (`finish`), and is shown to the validator as cut.

    python tests/bench/collect_answers.py --data shared/data/routing --out answers.jsonl --count 200
    homeostat bench validate --answers answers.jsonl --svg validate.svg
"""

import argparse
import json
import os
import pathlib
import re
import sys
import urllib.error
import urllib.request

NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def last_number(text: str) -> float | None:
    """The number that an answer ends with; thousands may have commas."""
    found = NUMBER.findall(text)
    return float(found[-1].replace(",", "")) if found else None


def questions(folder: pathlib.Path) -> list[tuple[str, float]]:
    """Prompts with their right number, in the order of the file."""
    asked = []
    for line in (folder / "gsm8k.jsonl").read_text().splitlines():
        row = json.loads(line)
        # The weak model marks its result; the strong one usually ends with it.
        right = [row[f"{who}_response"] for who in ("weak", "strong") if row[who]]
        numbers = [last_number(text) for text in right if text]
        numbers = [number for number in numbers if number is not None]
        if numbers:
            asked.append((row["prompt"], numbers[0]))
    return asked


def ask(host: str, model: str, prompt: str, max_tokens: int) -> dict:
    """One chat completion, greedy, with log-probabilities."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "temperature": 0,
        "max_tokens": max_tokens,
        "logprobs": True,
    }
    headers = {"Content-Type": "application/json"}
    if key := os.environ.get("HOMEOSTAT_API_KEY"):
        headers["Authorization"] = f"Bearer {key}"
    url = f"{host.rstrip('/')}/v1/chat/completions"
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=600) as reply:
        return json.load(reply)


def row(prompt: str, gold: float, reply: dict) -> dict:
    """What `bench validate` reads, and what a person wants to see beside it."""
    choice = reply["choices"][0]
    answer = choice["message"]["content"] or ""
    tokens = (choice.get("logprobs") or {}).get("content") or []
    said = last_number(answer)
    return {
        "prompt": prompt,
        "answer": answer,
        "right": said is not None and abs(said - gold) < 1e-6,
        "logprobs": [token["logprob"] for token in tokens],
        "gold": gold,
        "model": reply.get("model"),
        "finish": choice.get("finish_reason"),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=pathlib.Path, required=True, help="folder with gsm8k.jsonl")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="file to write")
    parser.add_argument("--host", default="http://127.0.0.1:8080", help="base URL of the host")
    parser.add_argument("--model", default="auto", help="a tier's name asks that tier alone")
    parser.add_argument("--count", type=int, default=100, help="questions")
    parser.add_argument("--max-tokens", type=int, default=256, help="longest answer")
    given = parser.parse_args()
    asked = questions(given.data)[: given.count]
    right = silent = cut = 0
    with given.out.open("w") as out:
        for number, (prompt, gold) in enumerate(asked, 1):
            try:
                reply = ask(given.host, given.model, prompt, given.max_tokens)
            except urllib.error.HTTPError as refused:
                why = refused.read().decode(errors="replace")
                print(f"question {number}: the host refused it: {why}", file=sys.stderr)
                return 1
            except OSError as error:
                print(f"no answer from {given.host}: {error}; does it run?", file=sys.stderr)
                return 1
            one = row(prompt, gold, reply)
            right += one["right"]
            silent += not one["logprobs"]
            cut += one["finish"] == "length"
            out.write(json.dumps(one) + "\n")
            out.flush()
            print(f"{number} of {len(asked)}: {right} right", file=sys.stderr)
    if silent:
        print(f"falls short: {silent} answers came without log-probabilities", file=sys.stderr)
    if cut:
        print(f"falls short: {cut} answers were cut at {given.max_tokens} tokens", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
