"""Makes the neighbours of plugins/classify-neighbours and reports how good they are.

    python3 -m venv .venv && .venv/bin/pip install numpy
    target/release/homeostat serve &
    .venv/bin/python models/train/fit_neighbours.py http://127.0.0.1:8080/v1 [DATA]

DATA defaults to ../shared/data/routing beside the checkout: JSON lines of a prompt and of whether
a weak and a strong model answered it well. Put your own there, and the component knows your
requests. Writes plugins/classify-neighbours/neighbours.bin and neighbours.txt.

Rows are split by the first byte of sha256(prompt), modulo 5, as for classify-lexical: remainder 0
is the REPORT part, on which nothing is fitted or chosen. Of the others the first COUNT by their
hash are kept; the number of voters is the one with the highest APGR on those that are not.
"""

import hashlib
import json
import re
import struct
import subprocess
import sys
import tempfile
import urllib.request
from datetime import date
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(sys.argv[2]) if len(sys.argv) > 2 else ROOT.parent / "shared/data/routing"
OUT = ROOT / "plugins/classify-neighbours"
ENCODER = "all-minilm-l6-v2"
CHARS_MAX = 1000  # as in the policy
COUNT = 2048
PARTS = 5
BATCH = 64
SEED = 20261126
VOTERS = [1, 4, 8, 16, 32, 64, 128, 256]
ORDINARY = np.array([0.55, 0.3, 0.15])
FILES = ("mmlu.jsonl", "gsm8k.jsonl")


def load():
    """All rows, in the order of their hashes: chance, but always the same."""
    rows = []
    for name in FILES:
        for line in open(DATA / name, encoding="utf-8"):
            row = json.loads(line)
            digest = hashlib.sha256(row["prompt"].encode()).digest()
            rows.append((digest, name, row))
    return sorted(rows, key=lambda r: r[0])


def embed(texts, url):
    """One vector a text, by the host's own encoder."""
    found = []
    for at in range(0, len(texts), BATCH):
        body = {"model": ENCODER, "input": [t[:CHARS_MAX] for t in texts[at : at + BATCH]]}
        ask = urllib.request.Request(
            f"{url}/embeddings", json.dumps(body).encode(), {"content-type": "application/json"}
        )
        with urllib.request.urlopen(ask) as answer:
            found += [d["embedding"] for d in json.load(answer)["data"]]
        print(f"\r{len(found)} of {len(texts)} embedded", end="", flush=True)
    print()
    return np.array(found, np.float32)


def quantised(vectors):
    scale = np.abs(vectors).max(axis=1).astype(np.float32) / 127
    return scale, np.round(vectors / scale[:, None]).astype(np.int8)


def hardness(known, labels, asked, voters):
    """What the policy answers as p-complex + p-medium / 2, far requests aside."""
    near = asked @ known.T
    order = np.argsort(-near, axis=1)[:, :voters]
    weight = np.maximum(np.take_along_axis(near, order, axis=1), 0)
    votes = np.stack([(weight * (labels[order] == k)).sum(axis=1) for k in range(3)], axis=1)
    votes += ORDINARY
    shares = votes / votes.sum(axis=1, keepdims=True)
    return shares[:, 2] + shares[:, 1] / 2


def apgr(score, weak, strong):
    """Average performance gap recovered: area over ten equal steps of the strong share."""
    n = len(score)
    order = np.lexsort((np.random.default_rng(0).random(n), -score))
    gained = np.concatenate([[0], np.cumsum((strong - weak)[order])]) / n
    curve = weak.mean() + gained[[round(n * i / 10) for i in range(11)]]
    return (np.trapezoid(curve, dx=0.1) - weak.mean()) / (strong.mean() - weak.mean())


def interval(score, baseline, weak, strong, rounds=2000):
    rng = np.random.default_rng(SEED)
    drawn = []
    for _ in range(rounds):
        rows = rng.integers(0, len(weak), len(weak))
        if strong[rows].mean() - weak[rows].mean() > 0.01:
            own = apgr(score[rows], weak[rows], strong[rows])
            drawn.append((own, own - apgr(baseline[rows], weak[rows], strong[rows])))
    return np.percentile(np.array(drawn), [2.5, 97.5], axis=0).T


def line(name, score, length, weak, strong):
    own, lead = interval(score, length, weak, strong)
    return (
        f"{name} (n = {len(weak)}): APGR {apgr(score, weak, strong):.3f} "
        f"[{own[0]:.3f}, {own[1]:.3f}], lead over prompt length [{lead[0]:+.3f}, {lead[1]:+.3f}]"
    )


def threshold(scores, good, *wanted):
    """What `homeostat policy calibrate` finds for route-threshold; None where it finds nothing."""
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as log:
        for score, right in zip(scores.tolist(), good.tolist()):
            log.write(json.dumps({"score": score, "right": bool(right)}) + "\n")
        log.flush()
        command = [ROOT / "target/release/homeostat", "policy", "calibrate", log.name]
        command += ["--policy", "route-threshold", *map(str, wanted)]
        done = subprocess.run(command, capture_output=True, text=True)
    found = re.search(r'threshold = "(.+?)"', done.stdout)
    return float(found[1]) if found else None


def calibrated(fitted, score, good_fitted, good):
    """Thresholds of route-threshold, found on one part and checked on another."""
    lines = ["route-threshold on these scores, calibrated on the same rows, REPORT part:"]
    for share in (0.2, 0.3, 0.5):
        found = threshold(fitted, good_fitted, "--share", share)
        lines.append(f"  --share {share}: {(score >= found).mean():.3f} go to the strong tier")
    for risk in (0.15, 0.2, 0.25, 0.3):
        found = threshold(fitted, good_fitted, "--risk", risk)
        if found is None:
            lines.append(f"  --risk {risk}: no threshold can be shown to keep it")
            continue
        kept = score < found
        lines.append(
            f"  --risk {risk}: {kept.mean():.3f} stay with the weak tier, which is wrong in "
            f"{1 - good[kept].mean():.3f} of them"
        )
    return lines


def main():
    rows = load()
    vectors = embed([row["prompt"] for _, _, row in rows], sys.argv[1])
    weak = np.array([row["weak"] for _, _, row in rows], float)
    strong = np.array([row["strong"] for _, _, row in rows], float)
    length = np.array([len(row["prompt"]) for _, _, row in rows], float)
    bench = np.array([name for _, name, _ in rows])
    labels = np.where(weak > 0, 0, np.where(strong > 0, 2, 1))
    held = np.array([digest[0] % PARTS == 0 for digest, _, _ in rows])
    fit = np.flatnonzero(~held)
    kept, rest = fit[:COUNT], fit[COUNT:]

    scale, whole = quantised(vectors[kept])
    known = whole * scale[:, None]
    tried = {
        voters: apgr(hardness(known, labels[kept], vectors[rest], voters), weak[rest], strong[rest])
        for voters in VOTERS
    }
    voters = max(tried, key=tried.get)
    (OUT / "neighbours.bin").write_bytes(
        b"HNEI0001"
        + struct.pack("<II", known.shape[1], len(kept))
        + labels[kept].astype(np.uint8).tobytes()
        + scale.astype("<f4").tobytes()
        + whole.tobytes()
    )

    report = [
        f"Neighbours of classify-neighbours: {len(kept)} requests, {known.shape[1]} dimensions, "
        f"labels {np.bincount(labels[kept]).tolist()} (simple, medium, complex).",
        "",
        "Data: RouteLLM evaluation outcomes (Apache-2.0) of Mixtral-8x7B-Instruct (weak) and",
        "GPT-4-1106-preview (strong) on MMLU and GSM8K; only embeddings and labels are kept. Split",
        "by sha256(prompt)[0] mod 5, remainder 0 reported. APGR with 95 % bootstrap intervals",
        "(2000 rounds); 0.5 is a random router.",
        "",
        f"Made {date.today().isoformat()} by models/train/fit_neighbours.py with {ENCODER}.",
        f"APGR by voters, on the {len(rest)} rows of the fitted part that are no neighbours: "
        + ", ".join(f"{v}: {a:.3f}" for v, a in tried.items()),
        f"VOTERS of the policy: {voters}.",
    ]
    nearest = (vectors[held] @ known.T).max(axis=1)
    for name in FILES:
        part = np.flatnonzero(held)[bench[held] == name]
        score = hardness(known, labels[kept], vectors[part], voters)
        report.append(line(f"{name}, REPORT part", score, length[part], weak[part], strong[part]))
    both = [hardness(known, labels[kept], vectors[part], voters) for part in (rest, held)]
    report += calibrated(*both, weak[rest] > 0, weak[held] > 0)
    shares = np.percentile(nearest, [5, 50, 95])
    report.append(
        "Similarity of the nearest, REPORT part: 5 % below "
        f"{shares[0]:.2f}, half below {shares[1]:.2f}, 95 % below {shares[2]:.2f}."
    )
    (OUT / "neighbours.txt").write_text("\n".join(report) + "\n")
    print("\n".join(report))


if __name__ == "__main__":
    main()
