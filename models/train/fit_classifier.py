"""Fits the weights of plugins/classify-lexical and reports how good they are.

    python3 -m venv .venv && .venv/bin/pip install numpy scipy
    .venv/bin/python models/train/fit_classifier.py [DATA]

DATA defaults to ../shared/data/routing beside the checkout. Writes
plugins/classify-lexical/weights.bin and weights.txt; the same data give the same bytes.

Rows are split by the first byte of sha256(prompt), modulo 5: remainder 0 is the REPORT
part, on which nothing is fitted or chosen; 1 to 4 are the FIT part. Strength and label
smoothing are chosen by 5-fold cross-validation inside the FIT part.

Two readers, since the two benchmarks have nothing in common:

* Multiple-choice questions: hashed 1-2-gram logistic with two heads, P(weak right) and
  P(strong right). Labels are drawn towards the mean of their subject: one row says right
  or wrong, but its subject says how often, which is most of what can be learned.
* Everything else: the same two heads over 13 shape features (lengths, numbers, words for
  fractions, comparison and time), fitted on GSM8K.

The tokeniser and the hash work on bytes, so that Rust and Python cannot differ; the file
`agreement.tsv` beside the weights lets a Rust test prove that they do not.
"""

import hashlib
import json
import math
import re
import struct
import sys
from datetime import date
from pathlib import Path

import numpy as np
import scipy.sparse as sp
from scipy.optimize import minimize

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT.parent / "shared/data/routing"
OUT = ROOT / "plugins/classify-lexical"
BITS = 16
BUCKETS = 1 << BITS
SEED = 20261120
TOKENS_MAX = 2000
TEXT_BYTES_MAX = 16384
PARTS = 5
TRAFFIC = (0.55, 0.15)  # shares of simple and complex requests that ordinary traffic has

# ---- features: keep in step with plugins/classify-lexical/src/features.rs -------------

TOKEN = re.compile(rb"[a-z\x80-\xff]+|[0-9]+|[^a-z0-9\x80-\xff\s]")
NUMBER = re.compile(rb"[0-9]+(?:[.,][0-9]+)*")
CHOICES = re.compile(rb"^[A-D][.)] ", re.M)
SHAPE_WORDS = [
    b"half third quarter fifth twice thrice times double triple".split(),
    b"if then after before until when".split(),
    b"more less fewer than older younger".split(),
    b"each every per".split(),
    b"hour minute day week month year hours minutes days weeks months years".split(),
]
SHAPES = 13


def tokens(text: bytes) -> list[bytes]:
    found = TOKEN.findall(text.lower())[:TOKENS_MAX]
    return [b"0" * min(len(t), 4) if t[:1].isdigit() else t for t in found]


def mix(data: bytes) -> int:
    value = 2166136261
    for byte in data:
        value = ((value ^ byte) * 16777619) & 0xFFFFFFFF
    value ^= value >> 16
    value = (value * 0x85EBCA6B) & 0xFFFFFFFF
    return value ^ (value >> 13)


KEPT: dict[bytes, int] = {}


def hashed(key: bytes) -> int:
    if key not in KEPT:
        KEPT[key] = mix(key)
    return KEPT[key]


def grams(words: list[bytes]) -> dict[int, float]:
    """Hash of every 1-gram and 2-gram with its weight; the whole has unit length."""
    count: dict[int, int] = {}
    keys = [b"1" + w for w in words] + [b"2" + a + b" " + b for a, b in zip(words, words[1:])]
    for key in keys:
        h = hashed(key)
        count[h] = count.get(h, 0) + 1
    value = {h: 1 + math.log(c) for h, c in count.items()}
    norm = math.sqrt(sum(v * v for v in value.values())) or 1.0
    return {h: v / norm for h, v in value.items()}


def shape(text: bytes) -> list[float]:
    words = tokens(text)
    numbers = [float(n.replace(b",", b"")) if n.count(b".") < 2 else 0.0 for n in NUMBER.findall(text)]
    written = NUMBER.findall(text)
    ends = sum(1 for i, c in enumerate(text) if c in b".?!" and text[i + 1 : i + 2] in (b"", b" ", b"\n"))
    lists = [sum(w in ws for w in words) for ws in SHAPE_WORDS]
    return [
        math.log1p(len(text)),
        math.log1p(len(numbers)),
        ends / 5,
        math.log1p(min(max(numbers, default=0.0), 1e9)),
        float(b"%" in text or b"percent" in text.lower()),
        text.count(b"$") / 5,
        lists[0] / 3,
        lists[1] / 3,
        lists[2] / 3,
        lists[3] / 3,
        lists[4] / 3,
        float(any(b"." in n for n in written)),
        sum(len(w) >= 8 for w in words) / 10,
    ]


def is_choice(text: bytes) -> bool:
    return len(CHOICES.findall(text)) >= 3


def matrix(texts: list[bytes]) -> sp.csr_matrix:
    starts, columns, values = [0], [], []
    for text in texts:
        row = grams(tokens(text))
        columns += [h & (BUCKETS - 1) for h in row]
        values += row.values()
        starts.append(len(columns))
    x = sp.csr_matrix((values, columns, starts), shape=(len(texts), BUCKETS))
    x.sum_duplicates()
    return x


# ---- fitting ------------------------------------------------------------------------


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def logistic(x, y, strength):
    """Weights and bias of an L2-penalised logistic regression; the bias is free."""
    transposed = x.T.tocsr()

    def loss(v):
        z = x @ v[:-1] + v[-1]
        value = np.sum(np.logaddexp(0, z) - y * z) + 0.5 * strength * np.sum(v[:-1] ** 2)
        slope = sigmoid(z) - y
        return value, np.append(transposed @ slope + strength * v[:-1], slope.sum())

    start = np.zeros(x.shape[1] + 1)
    start[-1] = math.log(y.mean() / (1 - y.mean()))
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 150, "maxcor": 8})
    return found.x[:-1], found.x[-1]


def smoothed(y, subjects, own):
    """Labels drawn towards their subject's mean, itself drawn towards the mean of all."""
    result = y.copy()
    for subject in sorted(set(subjects)):
        rows = subjects == subject
        mean = (y[rows].sum() + 20 * y.mean()) / (rows.sum() + 20)
        result[rows] = own * y[rows] + (1 - own) * mean
    return result


def gain_of(x, heads):
    (weak, weak_bias), (strong, strong_bias) = heads
    return sigmoid(x @ strong + strong_bias) - sigmoid(x @ weak + weak_bias)


def fit_choice(x, weak, strong, subjects, strength, own):
    return tuple(logistic(x, smoothed(y, subjects, own), strength) for y in (weak, strong))


# ---- judging (notes/llm-routers.md §3) ------------------------------------------------


def apgr(score, weak, strong, ties=0):
    """Average performance gap recovered: area over ten equal steps of the strong share."""
    n = len(score)
    order = np.lexsort((np.random.default_rng(ties).random(n), -score))
    gained = np.concatenate([[0], np.cumsum((strong - weak)[order])]) / n
    curve = weak.mean() + gained[[round(n * i / 10) for i in range(11)]]
    return (np.trapezoid(curve, dx=0.1) - weak.mean()) / (strong.mean() - weak.mean())


def interval(scores, weak, strong, rounds=2000):
    """95 % percentile bootstrap of each score's APGR and of its lead over the last one."""
    rng = np.random.default_rng(SEED)
    drawn = []
    for _ in range(rounds):
        rows = rng.integers(0, len(weak), len(weak))
        if strong[rows].mean() - weak[rows].mean() > 0.01:
            drawn.append([apgr(s[rows], weak[rows], strong[rows]) for s in scores])
    drawn = np.array(drawn)
    return np.percentile(drawn, [2.5, 97.5], axis=0).T, np.percentile(
        drawn - drawn[:, -1:], [2.5, 97.5], axis=0
    ).T


def folds(keys):
    return np.array([hashlib.sha256(b"fold" + k).digest()[0] % 5 for k in keys])


def cross_validated(x, weak, strong, subjects, fold, strength, own):
    score = np.zeros(len(weak))
    for k in range(5):
        train, test = fold != k, fold == k
        heads = fit_choice(x[train], weak[train], strong[train], subjects[train], strength, own)
        score[test] = gain_of(x[test], heads)
    return score


# ---- the run ------------------------------------------------------------------------


def load(name):
    rows = [json.loads(line) for line in open(DATA / name, encoding="utf-8")]
    for row in rows:
        whole = row["prompt"].encode()
        row["text"] = whole[:TEXT_BYTES_MAX]
        row["part"] = hashlib.sha256(whole).digest()[0] % PARTS
    return rows


def columns(rows):
    return (
        np.array([r["weak"] for r in rows], float),
        np.array([r["strong"] for r in rows], float),
        np.array([r.get("subject", "") for r in rows]),
        np.array([len(r["prompt"]) for r in rows], float),
    )


def line(name, scores, weak, strong, names):
    ranges, leads = interval(scores, weak, strong)
    text = [f"{name} (n = {len(weak)})"]
    for s, n, r, d in zip(scores, names, ranges, leads):
        lead = "" if n == names[-1] else f"   lead over {names[-1]} [{d[0]:+.3f}, {d[1]:+.3f}]"
        text.append(f"  {n:<28} APGR {apgr(s, weak, strong):.3f} [{r[0]:.3f}, {r[1]:.3f}]{lead}")
    print("\n".join(text), flush=True)
    return "\n".join(text)


def quantised(weights):
    scale = float(np.abs(weights).max()) / 127
    return scale, np.round(weights / scale).astype(np.int8)


def calibration(gain):
    """Slope and middle of hardness = sigmoid(slope · (gain − middle)), such that traffic
    like the fitted rows has the shares of simple and complex requests in TRAFFIC."""

    def off(v):
        hard = sigmoid(np.exp(v[0]) * (gain - v[1]))
        return (((1 - hard) ** 2).mean() - TRAFFIC[0]) ** 2 + ((hard**2).mean() - TRAFFIC[1]) ** 2

    found = minimize(off, [math.log(20.0), float(np.median(gain))], method="Nelder-Mead")
    return float(np.exp(found.x[0])), float(found.x[1])


def main():
    mmlu, gsm = load("mmlu.jsonl"), load("gsm8k.jsonl")
    report = [f"Fitted {date.today().isoformat()} by models/train/fit_classifier.py, seed {SEED}."]
    fit = [r for r in mmlu if r["part"]]
    held = [r for r in mmlu if not r["part"]]
    weak, strong, subjects, length = columns(fit)
    x = matrix([r["text"] for r in fit])
    by_prompt = folds([r["text"] for r in fit])
    by_subject = folds([s.encode() for s in subjects])

    tried = []
    for strength, own in [(1, 0.3), (2, 0.3), (4, 0.3), (2, 0.15), (2, 0.5)]:
        a, b = (
            apgr(cross_validated(x, weak, strong, subjects, f, strength, own), weak, strong)
            for f in (by_prompt, by_subject)
        )
        tried.append((a + b, strength, own))
        print(f"strength {strength} own label {own}: in domain {a:.3f}, unseen subjects {b:.3f}", flush=True)
    _, strength, own = max(tried)
    report.append(f"Choice reader: L2 strength {strength}, own label's share {own} (cross-validated).")

    heads = fit_choice(x, weak, strong, subjects, strength, own)
    scales = [quantised(w) for w, _ in heads]
    kept = tuple((q * scale, bias) for (scale, q), (_, bias) in zip(scales, heads))
    w2, s2, _, l2 = columns(held)
    report.append(
        line("MMLU in domain, REPORT part", [gain_of(matrix([r["text"] for r in held]), kept),
             np.random.default_rng(SEED).random(len(held)), l2], w2, s2,
             ["classify-lexical", "random", "prompt length"])
    )

    # Unseen subjects: every fold's subjects are judged by heads that saw none of them, on
    # rows of both parts; strength and smoothing were chosen with the FIT part's rows.
    allx, (aw, as_, asub, alen) = matrix([r["text"] for r in mmlu]), columns(mmlu)
    fold = folds([s.encode() for s in asub])
    part = np.array([r["part"] for r in mmlu])
    score = np.zeros(len(mmlu))
    for k in range(5):
        train = (fold != k) & (part != 0)
        h = fit_choice(allx[train], aw[train], as_[train], asub[train], strength, own)
        score[fold == k] = gain_of(allx[fold == k], h)
    rows = part == 0
    report.append(
        line("MMLU unseen subjects, REPORT part", [score[rows], np.random.default_rng(SEED).random(rows.sum()),
             alen[rows]], aw[rows], as_[rows], ["classify-lexical", "random", "prompt length"])
    )

    gfit, gheld = [r for r in gsm if r["part"]], [r for r in gsm if not r["part"]]
    gw, gs, _, _ = columns(gfit)
    raw = np.array([shape(r["text"]) for r in gfit])
    mean, spread = raw.mean(0), raw.std(0) + 1e-6
    z = lambda rows: np.clip((np.array([shape(r["text"]) for r in rows]) - mean) / spread, -3, 3)
    gheads = tuple(logistic(sp.csr_matrix(z(gfit)), y, 30.0) for y in (gw, gs))
    hw, hs, _, hl = columns(gheld)
    report.append(
        line("GSM8K, REPORT part", [gain_of(z(gheld), gheads), np.random.default_rng(SEED).random(len(gheld)), hl],
             hw, hs, ["classify-lexical", "random", "prompt length"])
    )

    middle = [calibration(gain_of(x, kept)), calibration(gain_of(z(gfit), gheads))]
    known = bytearray(BUCKETS // 8)
    seen: dict[int, int] = {}
    for r in fit + gfit:
        for word in set(tokens(r["text"])):
            if not word[:1].isdigit() and word.isalpha():
                h = hashed(b"1" + word) & (BUCKETS - 1)
                seen[h] = seen.get(h, 0) + 1
    for h, count in seen.items():
        if count >= 2:
            known[h >> 3] |= 1 << (h & 7)

    with open(OUT / "weights.bin", "wb") as f:
        f.write(b"HLEX0001")
        f.write(struct.pack("<8f", scales[0][0], heads[0][1], scales[1][0], heads[1][1], *middle[0], *middle[1]))
        f.write(struct.pack("<2f", gheads[0][1], gheads[1][1]))
        for i in range(SHAPES):
            f.write(struct.pack("<4f", mean[i], spread[i], gheads[0][0][i], gheads[1][0][i]))
        f.write(known)
        f.write(scales[0][1].tobytes())
        f.write(scales[1][1].tobytes())
    agreement(mmlu, gsm, kept, gheads, z)
    write_story(report, fit, held, gfit, gheld)


def agreement(mmlu, gsm, kept, gheads, z):
    """Gains of synthetic prompts, for the test that Rust computes the same."""
    texts = [
        "What is the capital of France?\nA. Paris\nB. Rome\nC. Bern\nD. Oslo\nAnswer:",
        "Find the degree for the field extension Q(sqrt(2)) over Q.\nA. 0\nB. 4\nC. 2\nD. 6\nAnswer:",
        "The the THE the cell CELL.\nA. x\nB. y\nC. zé\nD. 12345\nAnswer:",
        "Anna has 3 boxes with 12.5 apples each. If she sells half of them for $1,200, how much more does she have per day?",
        "Write a poem.",
        "",
    ]
    with open(OUT / "agreement.tsv", "w", encoding="utf-8") as f:
        f.write("# prompt (JSON), gain as models/train/fit_classifier.py computes it\n")
        for text in texts:
            data = text.encode()
            gain = gain_of(matrix([data]), kept) if is_choice(data) else gain_of(z([{"text": data}]), gheads)
            f.write(f"{json.dumps(text)}\t{float(gain[0]):.6f}\n")


def write_story(report, fit, held, gfit, gheld):
    size = (OUT / "weights.bin").stat().st_size
    head = f"""Weights of classify-lexical, version HLEX0001, {size} bytes.

Layout (little endian): "HLEX0001"; f32 scale and bias of the weak head, of the strong
head; slope and middle of the hardness curve for choice questions, for all others; biases
of the two shape heads; 13 x (mean, spread, weak, strong) of the shape features; a bitmap
of 2^16 known words; 2^16 i8 weights of the weak head; 2^16 of the strong head.

Data: RouteLLM evaluation outcomes (Apache-2.0) of Mixtral-8x7B-Instruct (weak) and
GPT-4-1106-preview (strong): MMLU {len(fit)} rows fitted, {len(held)} reported; GSM8K {len(gfit)}
fitted, {len(gheld)} reported. Split by sha256(prompt)[0] mod 5, remainder 0 reported.
APGR with 95 % bootstrap intervals (2000 rounds); 0.5 is a random router.
"""
    (OUT / "weights.txt").write_text(head + "\n" + "\n".join(report) + "\n", encoding="utf-8")


main()
