"""Fits the head of validate-facts that reads worked answers, and reports how good it is.

    python3 -m venv .venv && .venv/bin/pip install numpy==2.4.6
    .venv/bin/python models/train/fit_answers.py [--data DIR]

DIR defaults to ../shared/data/routing beside the checkout. Writes src/worked/weights.rs, worked.txt
and worked.tsv in plugins/validate-facts; the same data on the same machine give the same bytes, but
for the date. Needs Python 3.11.

Rows are split by the first byte of sha256(prompt), modulo 5: remainder 0 is the REPORT part, on
which nothing is fitted or chosen; 1 to 4 are the FIT part. What was chosen was chosen by 5-fold
cross-validation inside the FIT part, both answers to a prompt in the same fold.

The head is one logistic regression over named features of question and answer, fitted to the
answers of both models, each with an intercept of its own: between the two, style tells who speaks,
and that is no sign of truth. The intercept that ships is the weak model's, as everything in this
validator is set for tiers that may be wrong.

The recorded labels come from a program that compares the last number of an answer, as text, with
the right one. It calls "$6.00" wrong where 6 is right, and "50 miles in 7 hours" where 50 is. For
the fit such answers count as right, where the right number is known: where the other model is
right. A head fitted to the labels as they are would learn that program's mistakes. Figures are
given for both kinds of labels.
"""

import argparse
import ast
import hashlib
import json
import math
import re
from datetime import date
from fractions import Fraction
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parents[2] / "plugins/validate-facts"
SEED = 20261126
PARTS = 5
PENALTY = 20.0
# Constants of plugins/validate-facts: ARITHMETIC in src/checks.rs, the others in src/confidence.rs.
ARITHMETIC = -3.0
BLIND = 0.5
WORKED_MAX = 2.5
# Confidence from which route-metabolic accepts: mcu, edge, datacenter.
THRESHOLDS = (0.4, 0.55, 0.7)

# ---- reading: keep in step with plugins/validate-facts/src/worked/read.rs ---------------

NUMERALS = {
    "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9,
    "ten": 10, "eleven": 11, "twelve": 12, "fifteen": 15, "twenty": 20, "thirty": 30, "forty": 40,
    "fifty": 50, "sixty": 60, "hundred": 100, "thousand": 1000, "dozen": 12, "twice": 2, "double": 2,
    "couple": 2, "half": 2, "triple": 3, "thrice": 3, "third": 3, "quarter": 4,
}
LARGEST = 1e15
TOKENS_MAX = 1500
NUMBERS_MAX = 13
WORDS_MAX = 125
CHOICES_MIN = 3
STEPS_MAX = 64
OPERANDS_MAX = 6
ASKS = {"how", "what", "what's", "what’s", "calculate", "compute", "determine", "find"}
BLANKS = " \t\r\u00a0\u2009\u202f"
NO_LETTERS = "×÷≈−–’“”€£¢·⋅√\u00a0\u2009\u202f"


def is_letter(c):
    return c.isascii() and c.isalpha() or not c.isascii() and c not in NO_LETTERS


def is_digit(c):
    return "0" <= c <= "9"


def lower(word):
    return "".join(c.lower() if c.isascii() else c for c in word)


def number_length(text, at):
    """A comma belongs to a number before exactly three digits, a point before one."""
    digits = lambda start: next((i for i in range(start, len(text)) if not is_digit(text[i])), len(text)) - start
    end = at + digits(at)
    while text[end : end + 1] == "," and digits(end + 1) == 3:
        end += 4
    if text[end : end + 1] == "." and digits(end + 1) > 0:
        end += 1 + digits(end + 1)
    return end - at


def read(text):
    """Tokens as (kind, value, whether a blank stands before): w word, n number, s sign, e end of a
    sentence, l end of a line, o a calculator's note that does not end. Whole notes are left out."""
    tokens, at, spaced = [], 0, False
    while at < len(text):
        c = text[at]
        if text.startswith("<<", at):
            end = text.find(">>", at)
            if end < 0:
                tokens.append(("o", "<<", spaced))
                break
            at = end + 2
            continue
        if c in BLANKS:
            at, spaced = at + 1, True
            continue
        if is_digit(c):
            length = number_length(text, at)
            value = float(text[at : at + length].replace(",", ""))
            tokens.append(("n", min(value, LARGEST), spaced))
        elif is_letter(c):
            length = 1
            while at + length < len(text):
                after = text[at + length : at + length + 2]
                if is_letter(after[0]):
                    length += 1
                elif after[0] in "'’" and len(after) == 2 and is_letter(after[1]):
                    length += 2
                else:
                    break
            tokens.append(("w", lower(text[at : at + length]), spaced))
        else:
            length = 1
            ends = c in ".!?" and (text[at + 1 : at + 2] or " ") in BLANKS + "\n\"”)*"
            tokens.append(("l" if c == "\n" else "e" if ends else "s", c, spaced))
        at, spaced = at + length, False
    return tokens


def same(a, b):
    return abs(a - b) <= 1e-6 * max(1.0, abs(a), abs(b))


def among(value, values):
    return any(same(value, other) for other in values)


def is_fraction(value):
    return not same(value, math.floor(value + 0.5))


def last_sentence(tokens):
    end = len(tokens)
    closes = lambda t: t[0] in "el" or t[0] == "s" and t[1] in '*")”]}\\$'
    while end > 0 and closes(tokens[end - 1]):
        end -= 1
    start = end
    while start > 0 and tokens[start - 1][0] not in "el":
        start -= 1
    return tokens[start:end]


def asked(tokens):
    """The last sentence with a question mark, or else the last one."""
    marks = [i for i, (kind, value, _) in enumerate(tokens) if kind == "e" and value == "?"]
    return last_sentence(tokens[: marks[-1]] if marks else tokens)


def offers_choices(tokens):
    """It is of multiple choice: at least three lines such as "A) 12"."""
    starts = [0] + [i + 1 for i, (kind, _, _) in enumerate(tokens) if kind == "l"]
    pairs = [tokens[i : i + 2] for i in starts if i + 1 < len(tokens)]
    letter = lambda t: t[0] == "w" and len(t[1]) == 1 and t[1].isascii()
    return sum(letter(a) and b[0] in "es" and b[1] in ".)" for a, b in pairs) >= CHOICES_MIN


def steps(tokens):
    """Of every equals sign after two numbers: the numbers left of it, nearest first, and the number
    right of it."""
    found = []
    for at, (kind, value, _) in enumerate(tokens):
        if kind != "s" or value not in "=≈" or len(found) == STEPS_MAX:
            continue
        operands = []
        for kind, value, _ in reversed(tokens[:at]):
            if len(operands) == OPERANDS_MAX or kind in "el" or kind == "s" and value in "=≈:;":
                break
            if kind == "n":
                operands.append(value)
        if len(operands) < 2:
            continue
        result, sign = None, 1.0
        for kind, value, _ in tokens[at + 1 :]:
            if kind == "n":
                result = sign * value
            elif kind == "s" and value in "-−":
                sign = -1.0
                continue
            elif kind == "s" and value in "$€£\\*{(~" or kind == "w" and value == "boxed":
                continue
            break
        found.append((operands, result))
    return found


def breaks_off(tokens):
    """It ends within an expression."""
    ends = [t for t in tokens if t[0] != "l"][-4:]
    kind, value, spaced = ends[-1] if ends else ("l", "\n", False)
    before = ends[:-1]
    operand = lambda t: bool(t) and (t[-1][0] == "n" or t[-1][0] == "s" and t[-1][1] in ")%")
    if kind == "o":
        return True
    if kind == "s":
        sign = value in "+-−–×÷/" or value == "*" and spaced
        return value in "=≈(," or sign and operand(before)
    if kind == "w":
        return value == "x" and spaced and operand(before)
    if kind != "n":
        return False
    # Of "36,000" a part.
    if len(before) >= 2 and before[-1] == ("s", ",", False) and before[-2][0] == "n" and not spaced:
        return value == 0
    if before and before[-1][0] == "s" and before[-1][1] in "$€£\\":
        before = before[:-1]
    if not before or before[-1][0] != "s":
        return False
    sign = before[-1][1] in "+−×÷*" or before[-1][1] in "-–" and before[-1][2]
    return sign and operand(before[:-1])


# ---- features: keep in step with plugins/validate-facts/src/worked/features.rs ----------

REASONS = {"since", "because"}
TURNS = {
    "however", "but", "although", "though", "actually", "wait", "sorry", "apologize", "mistake", "instead", "incorrect",
}
NAMES = [
    ("question-words", "words of the question, ln(1 + n)"),
    ("asked-words", "words of the sentence that asks, ln(1 + n)"),
    ("question-numbers", "distinct numbers of the question, in digits or words, ln(1 + n)"),
    ("unused-numbers", "share of the question's numbers that the answer does not have"),
    ("breaks-off", "it ends within an expression"),
    ("unused-results", "results that neither a later step nor the end uses, ln(1 + n)"),
    ("reasons", "since, because, ln(1 + n)"),
    ("turns", "however, but, actually, sorry and the like, ln(1 + n)"),
    ("broken-results", "results on the way that are no whole numbers, ln(1 + n)"),
]


def features(question, answer):
    """One number for every name; `None` where the head has nothing to say."""
    q, a = read(question), read(answer)
    words = [value for kind, value, _ in q if kind == "w"]
    digits, known = [], []
    for kind, value, _ in q:
        if kind == "n" and not among(value, digits):
            digits.append(value)
    for value in digits + [float(NUMERALS[w]) for w in words if w in NUMERALS]:
        if not among(value, known):
            known.append(value)
    asks = [value for kind, value, _ in asked(q) if kind == "w"]
    worked = steps(a)
    numbers = sum(kind == "n" for kind, _, _ in q)
    if max(len(q), len(a)) > TOKENS_MAX or numbers > NUMBERS_MAX or len(words) > WORDS_MAX:
        return None
    if len(known) < 2 or not worked or not ASKS & set(asks) or offers_choices(q) or "`" in question + answer:
        return None
    said = [value for kind, value, _ in a if kind == "n"]
    spoken = [value for kind, value, _ in a if kind == "w"]
    results = [result for _, result in worked if result is not None]
    ends = [value for kind, value, _ in last_sentence(a) if kind == "n"]
    end = next((v for v in reversed(ends) if among(v, results)), ends[-1] if ends else None)
    is_end = lambda v: end is not None and same(abs(v), end)
    unused = sum(not among(v, said) and not among(v / 100, said) for v in digits)
    idle = 0
    for at, (_, result) in enumerate(worked[:-1]):
        later = [v for operands, _ in worked[at + 1 :] for v in operands]
        idle += result is not None and not among(abs(result), later) and not is_end(result)
    log = math.log1p
    return [
        log(len(words)),
        log(len(asks)),
        log(len(known)),
        unused / max(1, len(digits)),
        float(breaks_off(a)),
        log(idle),
        log(sum(w in REASONS for w in spoken)),
        log(sum(w in TURNS for w in spoken)),
        log(sum(is_fraction(r) and not is_end(r) for r in results)),
    ]


# ---- arithmetic: what plugins/arithmetic would find, as far as the fit needs it ----------

PIECE = re.compile(r"(\d+(?:,\d{3})*(?:\.\d+)?|\.\d+)|([-−–+*/×·÷()x%])|[$€£\s]+|(.)", re.S)
SIGNS = str.maketrans("−–×·÷x", "--**/*")
STATED = re.compile(
    r"\s*\$?(-?)\s*\$?((?>\d+(?:,\d{3})*(?:\.(\d+))?))"
    r"(?![A-Za-z]|\s*(?:[-+−–*×·÷/^(%]|x |times|million|thousand|hundred))"
)


def exact(node):
    if isinstance(node, ast.Expression):
        return exact(node.body)
    if isinstance(node, ast.Constant):
        return Fraction(str(node.value))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -exact(node.operand)
    if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Add, ast.Sub, ast.Mult, ast.Div)):
        left, right = exact(node.left), exact(node.right)
        match node.op:
            case ast.Add():
                return left + right
            case ast.Sub():
                return left - right
            case ast.Mult():
                return left * right
        return left / right
    raise ValueError("no arithmetic")


def expression(line):
    """The longest expression that ends where `line` ends, as Python writes it."""
    pieces, start = [], 0
    for match in PIECE.finditer(line):
        number, sign, other = match.groups()
        if other or sign == "x" and not (pieces and pieces[-1][-1] in "0123456789)"):
            pieces = []
        elif number or sign:
            start = start if pieces else match.start()
            pieces.append((number or sign).replace(",", "").translate(SIGNS))
    before = line[:start].rstrip(" $")
    word = re.split(r"[\W_]", before)[-1]
    if not pieces or pieces[0][0] not in "(.0123456789" or len(word) == 1 and word not in "aA":
        return None
    if start > 0 and line[start - 1].isalnum() or not any(p in "+-*/" for p in pieces):
        return None
    return " ".join("/ 100" if p == "%" else p.lstrip("0") or "0" if p.isdigit() else p for p in pieces)


def miscalculates(answer):
    """Whether some equation is wrong, roundings forgiven."""
    for equals in re.finditer("[=≈]", answer):
        stated = STATED.match(answer, equals.end())
        written = expression(re.split("[\n=<>:;≈]", answer[: equals.start()])[-1])
        if not stated or not written:
            continue
        try:
            value = exact(ast.parse(written, mode="eval"))
        except (SyntaxError, ValueError, ZeroDivisionError):
            continue
        place = Fraction(1, 10 ** len(stated[3] or ""))
        gap = abs(value - Fraction(stated[1] + stated[2].replace(",", "")))
        # A calculator's sixteen digits are as many as it has.
        if gap != 0 if value.denominator == 1 and place == 1 else gap >= max(place, abs(value) / 10**12):
            return True
    return False


# ---- fitting ---------------------------------------------------------------------------


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def load(file):
    """Rows of both models, first all of the weak one."""
    rows = [json.loads(line) for line in open(file, encoding="utf-8")]
    keys = ("prompt", "part", "fold", "strong", "recorded", "right", "length", "wrong", "features")
    keep = {key: [] for key in keys}
    for whose, other in (("weak", "strong"), ("strong", "weak")):
        for row in rows:
            prompt, answer = row["prompt"], row[f"{whose}_response"]
            digest = hashlib.sha256(prompt.encode()).digest()
            right = row[whose]
            if not right and row[other]:
                said = [v for kind, v, _ in read(row[f"{other}_response"]) if kind == "n"]
                ends = [v for kind, v, _ in last_sentence(read(answer)) if kind == "n"]
                right = bool(said) and among(said[-1], ends)
            keep["prompt"].append(prompt)
            keep["part"].append(digest[0] % PARTS)
            keep["fold"].append(hashlib.sha256(b"fold" + prompt.encode()).digest()[0] % 5)
            keep["strong"].append(whose == "strong")
            keep["recorded"].append(bool(row[whose]))
            keep["right"].append(bool(right))
            keep["length"].append(len(answer))
            keep["wrong"].append(miscalculates(answer))
            keep["features"].append(features(prompt, answer) or [math.nan] * len(NAMES))
    return {key: np.array(values) for key, values in keep.items()}


class Head:
    """Weights of the features, and what is added to them. A feature counts as far as it went in fitting:
    beyond that nobody has seen what it means."""

    def __init__(self, data, rows, penalty, used):
        rows = rows & ~np.isnan(data["features"][:, 0])
        x = data["features"][rows]
        self.mean, self.least, self.most = x.mean(0).round(4), x.min(0).round(4), x.max(0).round(4)
        self.spread = x.std(0) + 1e-6
        groups = [g for g in (~data["strong"][rows], data["strong"][rows]) if g.any()]
        z = np.column_stack([self.moved(x) / self.spread * used] + groups).astype(float)
        right, offset = data["right"][rows].astype(float), ARITHMETIC * data["wrong"][rows]
        ridge = np.r_[np.full(x.shape[1], penalty), np.full(len(groups), 1e-9)]
        w = np.zeros(z.shape[1])
        for _ in range(50):
            p = sigmoid(z @ w + offset)
            slope = z.T @ (p - right) + ridge * w
            w -= np.linalg.solve((z * (p * (1 - p))[:, None]).T @ z + np.diag(ridge), slope)
        assert abs(slope).max() < 1e-6, "the fit must have come to rest"
        self.weights = (w[: x.shape[1]] / self.spread * used).round(4)
        self.intercept = w[x.shape[1]].round(4)

    def moved(self, x):
        return np.clip(x, self.least, self.most) - self.mean

    def odds(self, x):
        """What is added to BLIND; nothing where there are no features."""
        return np.nan_to_num(self.moved(x) @ self.weights + self.intercept - BLIND)


def confidence(data, odds):
    """As src/confidence.rs has it where there are no log-probabilities."""
    odds = np.clip(odds, -WORKED_MAX, WORKED_MAX)
    odds = np.where(data["wrong"], np.minimum(odds, 0.0), odds)
    return sigmoid(BLIND + odds + ARITHMETIC * data["wrong"])


def crossed(data, train, penalty=PENALTY, without=()):
    """The head's odds for every FIT row, by heads that saw no answer to its prompt."""
    used = np.array([name not in without for name, _ in NAMES], float)
    odds = np.zeros(len(data["part"]))
    for fold in range(5):
        held = data["fold"] == fold
        odds[held] = Head(data, train & ~held, penalty, used).odds(data["features"][held])
    return odds


# ---- judging: the definitions of `homeostat bench` -------------------------------------


def auroc(score, right):
    """How often a wrong answer has a lower score than a right one."""
    _, at, count = np.unique(score, return_inverse=True, return_counts=True)
    rank = (np.cumsum(count) - (count - 1) / 2)[at]
    n, m = right.sum(), (~right).sum()
    return (rank[right].sum() - n * (n + 1) / 2) / (n * m)


def ece(said, right):
    """Ten bins of as many rows; rows with the same probability stay together."""
    order = np.argsort(-said, kind="stable")
    said, right, total, gap, begin = said[order], right[order], len(said), 0.0, 0
    ends = np.flatnonzero(np.append(np.diff(said) != 0, True)) + 1
    for end in ends:
        due = (math.floor(begin / total * 10 + 1e-9) + 1) * total / 10
        if end >= due - 1e-9 or end == total:
            gap += (end - begin) * abs(said[begin:end].mean() - right[begin:end].mean())
            begin = end
    return gap / total


def inside(values):
    low, high = np.percentile(values, [2.5, 97.5])
    return low, high


def figures(name, data, rows, odds, label="recorded", rounds=2000):
    """Two lines: AUROC, how far it leads length and the validator without the head; ECE and Brier."""
    rng = np.random.default_rng(SEED)
    right, prompts = data[label][rows], np.unique(data["prompt"][rows], return_inverse=True)[1]
    bare = confidence(data, odds * 0)[rows]
    scores = [confidence(data, odds)[rows], -data["length"][rows].astype(float), bare]
    found = [auroc(score, right) for score in scores]
    members = [np.flatnonzero(prompts == i) for i in range(prompts.max() + 1)]
    drawn = []
    for _ in range(rounds):
        r = np.concatenate([members[i] for i in rng.integers(0, len(members), len(members))])
        drawn.append([auroc(s[r], right[r]) for s in scores] + [ece(s[r], right[r]) for s in (scores[0], bare)])
    drawn = np.array(drawn).T
    span = lambda values, form: "[{}, {}]".format(*(form.format(v) for v in inside(values)))
    lead = lambda k: f"{found[k]:.3f}, lead {found[0] - found[k]:+.3f} {span(drawn[0] - drawn[k], '{:+.3f}')}"
    brier = lambda said: f"Brier {((said - right) ** 2).mean():.3f}"
    # Few rows in a bin differ from what they say even where every probability is true.
    chance = np.mean([ece(scores[0], rng.random(len(right)) < scores[0]) for _ in range(rounds // 4)])
    lines = [
        f"  {name:<38} n {rows.sum():>4}, wrong {(~right).sum():>3}"
        f"  AUROC {found[0]:.3f} {span(drawn[0], '{:.3f}')}  length {lead(1)}  without the head {lead(2)}",
        f"  {'':<38} ECE {ece(scores[0], right):.3f} {span(drawn[3], '{:.3f}')}, {chance:.3f} by chance alone,"
        f" {brier(scores[0])}  without the head ECE {ece(bare, right):.3f} {span(drawn[4], '{:.3f}')}, {brier(bare)}",
    ]
    print("\n".join(lines), flush=True)
    return lines


def noticed(name, data, rows, odds, label="recorded"):
    """Share of the wrong answers below each threshold, and of the right ones."""
    right = data[label][rows]
    pairs = lambda said: "   ".join(
        f"{t:.2f}: {(said[~right] < t).mean():.3f} / {(said[right] < t).mean():.3f}" for t in THRESHOLDS
    )
    lines = [
        f"  {name:<40} {pairs(confidence(data, odds)[rows])}",
        f"  {'  without the head':<40} {pairs(confidence(data, odds * 0)[rows])}",
    ]
    print("\n".join(lines), flush=True)
    return lines


def table(data, part, seen, by_weak, by_strong):
    """Figures of the rows of one part: by the head fitted on both models' answers, and by those
    fitted on the other model's only."""
    weak, strong = part & ~data["strong"], part & data["strong"]
    lines = figures("weak model's answers", data, weak, seen)
    lines += figures("  fitted on the strong model's only", data, weak, by_strong)
    lines += figures("strong model's answers", data, strong, seen)
    lines += figures("  fitted on the weak model's only", data, strong, by_weak)
    lines += figures("  labels corrected", data, strong, seen, "right")
    lines += figures("  labels corrected, fitted on the weak", data, strong, by_weak, "right")
    lines += figures("both models' answers", data, part, seen)
    lines.append("  Wrong answers below a threshold / right ones below it, without log-probabilities:")
    lines += noticed("weak model's answers", data, weak, seen)
    lines += noticed("strong model's answers", data, strong, seen)
    return lines


def left_out(data, fit):
    """What each group of features is worth, by cross-validation."""
    weak, strong = fit & ~data["strong"], fit & data["strong"]
    names = [name for name, _ in NAMES]
    groups = {
        "nothing": [],
        "the question (3 features)": names[:3],
        "the answer (6 features)": names[3:],
        "breaks-off": ["breaks-off"],
        "numbers and results unused": ["unused-numbers", "unused-results"],
        "reasons, turns": ["reasons", "turns"],
        "broken-results": ["broken-results"],
    }
    lines = ["  left out                        weak    strong, corrected, by weak    weak, by strong"]
    for what, without in groups.items():
        said = [confidence(data, crossed(data, train, without=without)) for train in (fit, weak, strong)]
        pairs = zip(said, (weak, strong, weak), ("recorded", "right", "recorded"))
        both, by_weak, by_strong = (auroc(each[rows], data[label][rows]) for each, rows, label in pairs)
        lines.append(f"  {what:<30}  {both:.3f}   {by_weak:.3f}                         {by_strong:.3f}")
    print("\n".join(lines), flush=True)
    return lines


# ---- writing ---------------------------------------------------------------------------

QUESTION = "Anna has 3 boxes with 12 apples each and gives 20 apples to Ben. How many apples does she have left?"
PRICES = "A coat costs $1,200.50, a hat half as much. There is 10% off. What's the total?\nThink step by step."
AGREEMENT = [
    (QUESTION, "She has 3 * 12 = <<3*12=36>>36 apples.\nThen 36 - 20 = 16 are left.\n#### 16"),
    (QUESTION, "Since she has 3 x 12 = 36 apples, but gives some away, 36 / 5 = 7.2 are left."),
    (QUESTION, "She has 3 * 12 = <<3*12=36>>36 apples. Then there are <<36-2"),
    (QUESTION, "She has 3 * 12 = 36 apples, so they are 36 - 20"),
    (QUESTION, "She has 30 + 6 = 36 apples, so they are 36,00"),
    (QUESTION, "She has 3 * 12 = 36 apples, so she has 36 x "),
    (QUESTION, "\\[ 3 \\times 12 = 36 \\]\n\\[ 36 - 20 = \\boxed{16} \\]\n\n**Answer: 16**"),
    (QUESTION, "36 - 20 = -\u00a016 = 16 ≈ 16 *"),
    (QUESTION, "16"),
    (PRICES, "Hat: $1,200.50 / 2 = $600.25. Together 1200.50 + 600.25 = $1,800.75; 0.1 × 1,800.75 ≈ 180.08."),
    (PRICES, "Actually, I’m sorry: however, it’s half, because 1 + 1 = 2 (that’s all), 2 + 2 = 4 and 4 + 4 = ("),
    (PRICES.replace(" ", "\u00a0"), "600\u00a0+\u00a01,200 = −5.5. WAIT, Since 3 + 4 = 7 it is 5.5!"),
    ("Who won in 1954 and 1958?", "1954 + 4 = 1958, so Germany and Brazil won."),
    ("Was there more in 1954 or in 1958?", "1954 + 4 = 1958, so it was 1958."),
    ("How many apples are 3 boxes of 12?\nA) 24\nB) 36\nC) 48", "3 * 12 = 36, so it is B."),
    ("What is the date 10 days after 2024-05-17?", "17 + 10 = 27, so the date is 2024-05-27"),
    ("A ticket costs 12,50. How much are 3 of them?", "3 * 12,50 = 37,50"),
    ("What does `add(2, 3) == 5` give?", "2 + 3 = 5, so it gives true."),
    ("", ""),
]


def write_agreement(head):
    with open(HERE / "worked.tsv", "w", encoding="utf-8") as f:
        f.write("# question, answer (⏎ for a new line), features, score: as models/train/fit_answers.py has them\n")
        for question, answer in AGREEMENT:
            seen = features(question, answer)
            told = ["-", "-"]
            if seen:
                score = head.moved(np.array(seen)) @ head.weights
                told = [" ".join(f"{v:.6f}" for v in seen), f"{score:.6f}"]
            f.write("\t".join([t.replace("\n", "⏎") for t in (question, answer)] + told) + "\n")


def write_weights(head):
    lines = [
        "//! The fitted weights. Written by `models/train/fit_answers.py`; `worked.txt` tells how, from",
        "//! what, when, and how good they are.",
        "",
        "/// A feature.",
        "pub(crate) struct Feature {",
        "    pub(crate) name: &'static str,",
        "    pub(crate) mean: f64,",
        "    /// The range that it had in fitting; beyond it nobody has seen what it means.",
        "    pub(crate) least: f64,",
        "    pub(crate) most: f64,",
        "    /// Log-odds of a right answer, for one more.",
        "    pub(crate) weight: f64,",
        "}",
        "",
        "/// How many there are.",
        f"pub(crate) const COUNT: usize = {len(NAMES)};",
        "",
        "/// Log-odds of an answer whose features are all at their mean, where nothing else is known.",
        f"pub(crate) const INTERCEPT: f64 = {head.intercept};",
        "",
        "pub(crate) const FEATURES: [Feature; COUNT] = [",
    ]
    for (name, what), *numbers in zip(NAMES, head.mean, head.least, head.most, head.weights):
        lines += [f"    // {what[0].upper()}{what[1:]}.", "    Feature {", f'        name: "{name}",']
        lines += [f"        {key}: {value}," for key, value in zip(("mean", "least", "most", "weight"), numbers)]
        lines.append("    },")
    text = "\n".join(lines + ["];"]) + "\n"
    (HERE / "src/worked/weights.rs").write_text(text, encoding="utf-8")


def write_story(head, data, fit, report):
    weak, strong = fit & ~data["strong"], fit & data["strong"]
    silent = np.isnan(data["features"][fit, 0]).sum()
    changed = lambda rows: (data["right"] & ~data["recorded"])[rows].sum()
    names = "\n".join(
        f"  {name:<17} {weight:+.3f} x ({what}; mean {mean:.3f}, {least:.2f} to {most:.2f})"
        for (name, what), mean, least, most, weight in zip(NAMES, head.mean, head.least, head.most, head.weights)
    )
    wrong = lambda rows: (~data["recorded"])[rows].sum()
    head_text = f"""Head of validate-facts for worked answers: those that work with numbers, to questions that ask for one.

Log-odds of a right answer = {head.intercept} + the sum of weight x (feature - mean), each feature within the range that
it had in fitting:
{names}

It says nothing of a question with fewer than two numbers, or without how, what, calculate, compute,
determine or find in the sentence that asks; of a question with choices, with more than {NUMBERS_MAX} numbers or
{WORDS_MAX} words; of an answer without an equals sign after two numbers; where there is code (a backtick) in
either; of what is longer than {TOKENS_MAX} tokens. So it is silent of {silent} of {fit.sum()} answers fitted on.

Data: RouteLLM evaluation outcomes (Apache-2.0) on GSM8K (MIT), answers of Mixtral-8x7B-Instruct (weak)
and GPT-4-1106-preview (strong): {weak.sum()} prompts fitted, {(~fit).sum() // 2} reported, both answers to each. Split by
sha256(prompt)[0] mod 5, remainder 0 reported. Wrong as recorded: {wrong(weak)} and {wrong(strong)} of those fitted on; {changed(weak)} and
{changed(strong)} of these count as right in the fit, since the right number stands in their last sentence ("$6.00" for
6); read by hand, one of the 30 is really wrong. AUROC of finding wrong answers with 95 % bootstrap intervals (2000 rounds over prompts, paired); 0.5 is
chance. "Without the head" is what validate-facts makes of the same texts by its checks alone.

Fitted {date.today().isoformat()} by models/train/fit_answers.py, seed {SEED}, numpy {np.__version__}. Ridge penalty {PENALTY:.0f}, one
intercept for each model; the weak model's is the one above.

What it is not: it reads how an answer was worked out, not whether it is true. It was fitted on one set of
school problems in English. Answers with log-probabilities were not there to fit on, so how both add up
(src/confidence.rs) is set by hand. Of the strong model's answers reported it knows less than their
length does, and calls them too unsure; of the weak model's its ECE is no better than without it, its
Brier score is. Every answer that breaks off is a weak one of at most 211 characters. The record has no
finish reason: where a tier says that a limit ended it, the head is not asked. Right answers that leave
out numbers of the question, or write them otherwise (1.5 million, 3/4 as 0.75, 17:30 as 17.5), and those
that reckon with fractions on the way, are doubted more than they should be.

"""
    (HERE / "worked.txt").write_text(head_text + "\n".join(report) + TRIED, encoding="utf-8")


TRIED = """
Tried by the same cross-validation, on the weak model's answers / on the strong model's with corrected
labels, fitted on the weak model's / on the weak model's, fitted on the strong model's:
  answer length                                                         .593 / .687 / .593
  80 features, logistic                                                 .790 / .686 / .723
  the same, 300 extremely randomised trees                              .808 / .752 / .702
  42 features, logistic                                                 .787 / .728 / .738
  what is here, each feature within 3 standard deviations               .777 / .770 / .746
  the same and where the answer ends (other number than its last step,
  its size, no whole number)                                            .777 / .775 / .747
  what is here                                                          .782 / .770 / .754
  what is here, penalty 10; 80                                          .781 / .769 / .753; .784 / .772 / .743
The REPORT part was looked at twice: for what is here, and before that with each feature within 3 standard
deviations (weak model's answers: AUROC .726, at 0.55 noticed .425, doubted .114).
Not taken though it helps: that the last number is no whole number. In GSM8K every right answer is
one; elsewhere $8.50 may be right.
"""


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--data", type=Path, default=HERE.parents[2] / "shared/data/routing")
    data = load(arguments.parse_args().data / "gsm8k.jsonl")
    fit, held, every = data["part"] != 0, data["part"] == 0, np.ones(len(NAMES))
    weak, strong = fit & ~data["strong"], fit & data["strong"]
    report = ["FIT part, 5-fold cross-validation (each answer by a head that saw no answer to its prompt):"]
    report += table(data, fit, *(crossed(data, train) for train in (fit, weak, strong)))
    report += left_out(data, fit)
    head = Head(data, fit, PENALTY, every)
    report.append("REPORT part (nothing fitted or chosen on it):")
    whole = [Head(data, train, PENALTY, every).odds(data["features"]) for train in (fit, weak, strong)]
    report += table(data, held, *whole)
    write_weights(head)
    write_agreement(head)
    write_story(head, data, fit, report)


if __name__ == "__main__":
    main()
