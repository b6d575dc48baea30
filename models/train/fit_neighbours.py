"""Makes the neighbours and the clusters of plugins/classify-neighbours and reports how good they are.

    python3 -m venv .venv && .venv/bin/pip install numpy
    target/release/homeostat serve &
    .venv/bin/python models/train/fit_neighbours.py http://127.0.0.1:8080/v1 [DATA]

DATA defaults to ../shared/data/routing beside the checkout: JSON lines of a prompt and of whether
a weak and a strong model answered it well. Put your own there, and the component knows your
requests. Writes neighbours.bin and neighbours.txt, clusters.bin and clusters.txt in
plugins/classify-neighbours.

    .venv/bin/python models/train/fit_neighbours.py clusters [DATA]

makes the clusters anew of the neighbours that are there, which needs no host.

Rows are split by the first byte of sha256(prompt), modulo 5, as for classify-lexical: remainder 0
is the REPORT part, on which nothing is fitted or chosen. Of the others the first COUNT by their
hash are kept; the number of voters is the one with the highest APGR on those that are not, the
number of clusters the one with the highest APGR by cross-validation among the neighbours.
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
CLUSTERS = [8, 16, 32, 64, 128]
FOLDS = 5
TRIES = 5  # seeds of every number of clusters, since one may be lucky
ROUNDS_MAX = 100
KNOWN = (0.25, 0.55)  # of neighbours, as in the policy
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


def centres(vectors, count, seed):
    """Spherical k-means: `count` directions of unit length, and which one each vector is nearest to.

    It begins with k-means++ and ends when nothing moves."""
    rng = np.random.default_rng(seed)
    found = [vectors[rng.integers(len(vectors))]]
    near = vectors @ found[0]
    for _ in range(count - 1):
        far = np.maximum(1 - near, 0)
        found.append(vectors[rng.choice(len(vectors), p=far / far.sum())])
        near = np.maximum(near, vectors @ found[-1])
    found = np.array(found)
    own = (vectors @ found.T).argmax(axis=1)
    for _ in range(ROUNDS_MAX):
        for cluster in range(count):
            middle = vectors[own == cluster].sum(axis=0)
            length = np.linalg.norm(middle)
            if length > 0:  # one that nobody is nearest to stays where it is
                found[cluster] = middle / length
        before, own = own, (vectors @ found.T).argmax(axis=1)
        if (own == before).all():
            break
    return found, own


def counted(own, labels, count):
    """Of every cluster: how many are simple, medium and complex."""
    return np.stack([np.bincount(own[labels == k], minlength=count) for k in range(3)], axis=1)


def cluster_hardness(found, counts, asked):
    """What the policy answers as p-complex + p-medium / 2 by the nearest cluster."""
    votes = counts[(asked @ found.T).argmax(axis=1)] + ORDINARY
    shares = votes / votes.sum(axis=1, keepdims=True)
    return shares[:, 2] + shares[:, 1] / 2


def cross_validated(known, labels, count, seed):
    """Score and similarity of each, by clusters of which it is no member."""
    score, near = np.zeros(len(known)), np.zeros(len(known))
    fold = np.arange(len(known)) % FOLDS
    for held in (fold == f for f in range(FOLDS)):
        found, own = centres(known[~held], count, seed)
        score[held] = cluster_hardness(found, counted(own, labels[~held], count), known[held])
        near[held] = (known[held] @ found.T).max(axis=1)
    return score, near


def written_neighbours():
    """Embeddings and labels, as neighbours.bin has them."""
    raw = (OUT / "neighbours.bin").read_bytes()
    size, count = struct.unpack("<II", raw[8:16])
    labels = np.frombuffer(raw, np.uint8, count, 16).astype(int)
    scale = np.frombuffer(raw, "<f4", count, 16 + count)
    whole = np.frombuffer(raw, np.int8, count * size, 16 + 5 * count).reshape(count, size)
    return whole * scale[:, None], labels


def make_clusters(weak, strong):
    """Writes clusters.bin. Returns the lines of the report, the centres and their counts.

    `weak` and `strong`: what became of the neighbours, in their order."""
    known, labels = written_neighbours()
    told = np.where(weak > 0, 0, np.where(strong > 0, 2, 1))
    assert (told == labels).all(), "neighbours.bin was made of other data"
    tried = {}
    for count in CLUSTERS:
        runs = [cross_validated(known, labels, count, SEED + i) for i in range(TRIES)]
        tried[count] = np.mean([apgr(score, weak, strong) for score, _ in runs])
    count = max(tried, key=tried.get)
    _, near = cross_validated(known, labels, count, SEED)
    others = known @ known.T
    np.fill_diagonal(others, -1)
    ranks = [(others.max(axis=1) < edge).mean() * 100 for edge in KNOWN]

    found, own = centres(known, count, SEED)
    counts = counted(own, labels, count)
    scale, whole = quantised(found)
    (OUT / "clusters.bin").write_bytes(
        b"HCLU0001"
        + struct.pack("<II", found.shape[1], count)
        + counts.astype("<u4").tobytes()
        + scale.astype("<f4").tobytes()
        + whole.tobytes()
    )
    low, high = np.percentile(near, ranks)
    lines = [
        f"Clusters of classify-neighbours: {count} by spherical k-means of the {len(known)} embeddings "
        f"in neighbours.bin,",
        f"of {counts.sum(axis=1).min()} to {counts.sum(axis=1).max()} requests each. Data as in "
        "neighbours.txt; the same neighbours on the same machine give the same clusters.",
        "",
        f"Made {date.today().isoformat()} by models/train/fit_neighbours.py.",
        f"APGR by clusters, {FOLDS}-fold cross-validation among the neighbours, mean of {TRIES} seeds: "
        + ", ".join(f"{k}: {a:.3f}" for k, a in tried.items()),
        f"CLUSTERS_KNOWN of the policy: {low:.2f} to {high:.2f}: as many requests are less like their "
        f"cluster ({ranks[0]:.1f} %, {ranks[1]:.1f} %)",
        f"as are less like their nearest neighbour than {KNOWN[0]} and {KNOWN[1]}.",
    ]
    return lines, found, counts


def clusters_alone():
    """Of the neighbours that are there: no embedding of the REPORT part, so nothing is said of it."""
    rows = [row for digest, _, row in load() if digest[0] % PARTS][: len(written_neighbours()[1])]
    weak = np.array([row["weak"] for row in rows], float)
    strong = np.array([row["strong"] for row in rows], float)
    lines, _, _ = make_clusters(weak, strong)
    return lines


def write_report(name, lines):
    (OUT / name).write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def main():
    if sys.argv[1] == "clusters":
        write_report("clusters.txt", clusters_alone())
        return
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
    write_report("neighbours.txt", report)
    clusters, found, counts = make_clusters(weak[kept], strong[kept])
    for name in FILES:
        part = np.flatnonzero(held)[bench[held] == name]
        score = cluster_hardness(found, counts, vectors[part])
        clusters.append(line(f"{name}, REPORT part", score, length[part], weak[part], strong[part]))
    write_report("clusters.txt", clusters)


if __name__ == "__main__":
    main()
