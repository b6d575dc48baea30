"""How fast, how large and how exact is the engine, beside others on the same file?

Every measure runs on ours and on each peer in turn, round after round, in one run, so that
whatever else the machine does falls on all of them. Prints one table; the raw results go to
tests/bench/results/<date>-<machine>.json.

    make bench                       three rounds, one and two threads
    make bench BENCH="--quick"       one round, two threads, nothing is kept
"""

import argparse
import datetime
import json
import os
import pathlib
import platform
import signal
import subprocess
import sys

import numpy

import prompts
import table
from worker import Failed, Worker

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")).resolve()
EXAMPLES = TARGET / "release" / "examples"
MODEL = "models/smollm2-135m-instruct/SmolLM2-135M-Instruct.Q4_1.gguf"
KV_BYTES = 128 << 20
# For the memory row, where all of it is filled.
KV_BYTES_FILLED = 64 << 20
# Above this load somebody else is at work, and the figures are theirs as well.
QUIET_LOAD = 1.5


def say(text: str):
    print(f"· {text}", file=sys.stderr, flush=True)


def default_model() -> pathlib.Path:
    env = os.environ
    if env.get("HOMEOSTAT_CACHE"):
        return pathlib.Path(env["HOMEOSTAT_CACHE"]) / MODEL
    if env.get("XDG_CACHE_HOME"):
        return pathlib.Path(env["XDG_CACHE_HOME"]) / "homeostat" / MODEL
    return pathlib.Path.home() / ".cache" / "homeostat" / MODEL


def ours(model, threads, *, kv_bytes=KV_BYTES, prefix_cache=False) -> Worker:
    settings = {
        "model": str(model),
        "threads": threads,
        "kv_bytes": kv_bytes,
        "prefix_cache": prefix_cache,
    }
    return Worker("ours", [EXAMPLES / "bench", json.dumps(settings)])


def llama(model, threads, context) -> Worker:
    script = HERE / "llama_peer.py"
    return Worker("llama.cpp", [sys.executable, script, model, threads, context])


def candle(model, threads) -> Worker:
    counts = {"CANDLE_NUM_THREADS": str(threads), "RAYON_NUM_THREADS": str(threads)}
    return Worker("candle", [EXAMPLES / "bench_candle", "speed", model], counts)


def mistralrs(model, threads) -> Worker:
    counts = {"CANDLE_NUM_THREADS": str(threads), "RAYON_NUM_THREADS": str(threads)}
    counts["RUST_LOG"] = "error"
    return Worker("mistral.rs", [sys.executable, HERE / "mistralrs_peer.py", model], counts)


class Run:
    def __init__(self, options):
        self.options = options
        self.model = options.model
        self.samples = []
        self.notes = []
        self.tenants = 0
        rows = prompts.recorded(options.data)
        if not rows:
            self.note("skipped: no recorded data (speculation; accuracy on one text only)")
        self.recorded = rows
        if options.no_slow_peers:
            self.note("skipped: candle and mistral.rs (--no-slow-peers)")

    def note(self, text: str):
        say(text)
        self.notes.append(text)

    def note_once(self, text: str):
        if text not in self.notes:
            self.note(text)

    def keep(self, measure, engine, threads, round_, **values):
        self.samples.append(
            {"measure": measure, "engine": engine, "threads": threads, "round": round_, **values}
        )

    def attempt(self, start, *arguments):
        """A peer that does not start is left out, and the table says so."""
        try:
            worker = start(*arguments)
            if worker.ready.get("repack") is False:
                self.note_once(
                    "llama.cpp crashes here when it repacks weights for this processor, so it "
                    "runs without (use_extra_bufts = false)"
                )
            return worker
        except (Failed, OSError) as error:
            self.note(f"left out: {error}")
            return None

    def generate(self, worker: Worker, token_lists, new_tokens, *, texts=None, **more) -> dict:
        """One answer to each prompt at once."""
        self.tenants += 1
        if worker.name == "mistral.rs":
            return worker.ask(do="generate", texts=texts, new_tokens=new_tokens)
        command = {"prompts": token_lists, "new_tokens": new_tokens, **more}
        if worker.name == "ours":
            # A tenant of its own: nothing that one run has said may help the next.
            command = {
                "ignore_end": True,
                "draft": False,
                "tenant": str(self.tenants),
                **command,
            }
        return worker.ask(do="generate", **command)

    # ---- speed ---------------------------------------------------------------

    def speed(self, threads: int):
        own = ours(self.model, threads)
        context = KV_BYTES // own.ready["kv_bytes_per_token"]
        peers = [(llama, self.model, threads, context)]
        if not self.options.no_slow_peers:
            peers += [(candle, self.model, threads), (mistralrs, self.model, threads)]
        starts = {peer[0].__name__: peer for peer in peers}
        workers = {name: self.attempt(*start) for name, start in starts.items()}
        workers = {"ours": own, **{name: w for name, w in workers.items() if w}}
        cannot = set()
        story = own.ask(do="tokenize", text=prompts.STORY * 20)["tokens"]
        measures = [
            # name, prompts, new tokens
            ("decode", [story[:16]], 128),
            ("prefill", [story[3:515]], 1),
            ("streams", [story[i : i + 16] for i in range(8)], 128),
        ]
        texts = [
            [own.ask(do="detokenize", tokens=list(p))["text"] for p in token_lists]
            for _, token_lists, _ in measures
        ]
        for worker in workers.values():
            self.generate(worker, [story[:32]], 8, texts=["Once upon a time"])
        for round_ in range(self.options.rounds):
            for (name, token_lists, new), strings in zip(measures, texts):
                for key, worker in list(workers.items()):
                    if (key, name) in cannot:
                        continue
                    try:
                        answer = self.generate(worker, token_lists, new, texts=strings)
                    except Failed as error:
                        # It may do the other measures; what it was asked may have ended it.
                        why = str(error).splitlines()[0]
                        self.note(f"{name}, {threads} threads: left out from here on: {why}")
                        cannot.add((key, name))
                        worker.end()
                        workers[key] = self.attempt(*starts[key])
                        if not workers[key]:
                            del workers[key]
                        continue
                    rate = rate_of(name, token_lists, answer)
                    self.keep(name, worker.name, threads, round_, tokens_per_second=rate)
                    say(f"{name}, {threads} threads, {worker.name}: {rate:.1f} tokens/s")
        for worker in workers.values():
            worker.end()

    def prefix(self, threads: int):
        own = ours(self.model, threads, prefix_cache=True)
        context = KV_BYTES // own.ready["kv_bytes_per_token"]
        peer = self.attempt(llama, self.model, threads, context)
        story = own.ask(do="tokenize", text=prompts.STORY * 40)["tokens"]
        steps = 32
        for round_ in range(self.options.rounds):
            # Another beginning every round, or the first request would be a hit as well.
            prompt = story[round_ : round_ + 1000]
            tenant = f"prefix {round_}"
            cold, hit = (
                self.generate(own, [prompt], steps + 1, tenant=tenant) for _ in range(2)
            )
            step = (hit["last"][0] - hit["first"][0]) / steps
            values = {"cold": cold["first"][0], "hit": hit["first"][0], "step": step}
            if cold["tokens"] != hit["tokens"]:
                self.note("the answer after a prefix hit differs: that is a defect")
            self.keep("prefix", "ours", threads, round_, **values)
            if peer:
                values = peer.ask(do="prefix", prompt=prompt, steps=steps)
                self.keep("prefix", "llama.cpp", threads, round_, **values)
        for worker in filter(None, [own, peer]):
            worker.end()

    # ---- speculation -----------------------------------------------------------

    def speculation(self, threads: int):
        worker = ours(self.model, threads)
        kinds = prompts.by_kind(self.recorded, self.options.prompts)
        for kind, texts in kinds.items():
            token_lists = [worker.ask(do="render", text=text)["tokens"] for text in texts]
            for round_ in range(self.options.rounds):
                seconds = {True: 0.0, False: 0.0}
                count = 0
                for number, tokens in enumerate(token_lists):
                    answers = {}
                    # Who goes first changes, so that neither always has the warmer cache.
                    order = [True, False] if (number + round_) % 2 else [False, True]
                    for draft in order:
                        answer = self.generate(
                            worker, [tokens], 128, ignore_end=False, draft=draft
                        )
                        seconds[draft] += answer["last"][0] - answer["first"][0]
                        answers[draft] = answer["tokens"]
                    count += len(answers[True][0]) - 1
                    if answers[True] != answers[False]:
                        self.note(f"{kind}: an answer with drafts differs: that is a defect")
                values = {"with": seconds[True], "without": seconds[False], "tokens": count}
                self.keep(f"speculation {kind}", "ours", threads, round_, **values)
                say(f"speculation, {kind}: {seconds[False] / max(seconds[True], 1e-9):.2f} ×")
        worker.end()

    # ---- memory ----------------------------------------------------------------

    def memory(self, threads: int):
        """Fresh processes whose whole KV memory is filled."""
        own = ours(self.model, threads, kv_bytes=KV_BYTES_FILLED)
        context = KV_BYTES_FILLED // own.ready["kv_bytes_per_token"] // 256 * 256
        story = own.ask(do="tokenize", text=prompts.STORY * 20)["tokens"]
        each = context // 8 - 32
        token_lists = [story[i : i + each] for i in range(8)]
        wanted = self.model.stat().st_size + KV_BYTES_FILLED
        peer = self.attempt(llama, self.model, threads, context)
        for worker in filter(None, [own, peer]):
            self.generate(worker, token_lists, 2)
            values = worker.ask(do="memory")
            values["before"] = worker.ready.get("before", 0)
            self.keep("memory", worker.name, threads, 0, wanted=wanted, **values)
            worker.end()

    # ---- accuracy --------------------------------------------------------------

    def accuracy(self):
        folder = TARGET / "bench"
        folder.mkdir(parents=True, exist_ok=True)
        worker = ours(self.model, 2)
        texts = prompts.accuracy(self.recorded, self.options.accuracy_prompts)
        token_lists = [worker.ask(do="tokenize", text=text)["tokens"][:48] for text in texts]
        worker.end()
        asked = folder / "prompts.json"
        asked.write_text(json.dumps(token_lists))
        rows = sum(map(len, token_lists))
        logits = {}
        for whose in ["f32", "ours"]:
            out = folder / f"{whose}.f32"
            command = [EXAMPLES / "bench_candle", "logits", self.model, whose, asked, out]
            subprocess.run(command, check=True)
            logits[whose] = out
        peer = self.attempt(llama, self.model, 2, 4096)
        if peer:
            logits["llama.cpp"] = folder / "llama.f32"
            peer.ask(do="logits", prompts=token_lists, out=str(logits["llama.cpp"]))
            peer.end()
        truth = numpy.fromfile(logits.pop("f32"), "<f4").reshape(rows, -1)
        divergences = {}
        for engine, file in logits.items():
            other = numpy.fromfile(file, "<f4").reshape(rows, -1)
            kl, same = divergence(truth, other)
            divergences[engine] = kl
            values = {"kl_mean": float(kl.mean()), "kl_max": float(kl.max()), "positions": rows}
            self.keep("accuracy", engine, 2, 0, top1=same, **values)
        if peer:
            # Position by position: the two means alone do not say whether they differ.
            extra = divergences["ours"] - divergences["llama.cpp"]
            error = float(extra.std(ddof=1) / len(extra) ** 0.5)
            values = {"mean": float(extra.mean()), "standard_error": error}
            self.keep("accuracy difference", "ours", 2, 0, **values)


def rate_of(name: str, token_lists, answer: dict) -> float:
    """Tokens per second: of the prompt while it is read, else of all answers while they are
    written, from the last first token to the last one."""
    if name == "prefill":
        read = answer.get("prompt_tokens", [len(p) for p in token_lists])
        return sum(read) / max(answer["first"])
    counts = answer.get("counts") or [len(t) for t in answer["tokens"]]
    writing = max(answer["last"]) - max(answer["first"])
    if "wall" in answer:
        writing = answer["wall"] - max(answer["first"])
    return sum(n - 1 for n in counts) / writing


def divergence(truth, other):
    """KL(truth ‖ other) at each position, in nats, and the share of equal likeliest tokens."""

    def log_softmax(x):
        x = x.astype(numpy.float64)
        x -= x.max(axis=1, keepdims=True)
        return x - numpy.log(numpy.exp(x).sum(axis=1, keepdims=True))

    kl, same = [], 0
    for start in range(0, len(truth), 64):
        p = log_softmax(truth[start : start + 64])
        q = log_softmax(other[start : start + 64])
        kl.append((numpy.exp(p) * (p - q)).sum(axis=1))
        same += int((p.argmax(axis=1) == q.argmax(axis=1)).sum())
    return numpy.concatenate(kl), same / len(truth)


def about_the_machine(model: pathlib.Path) -> dict:
    cpu = platform.processor() or "unknown"
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            cpu = line.split(":", 1)[1].strip()
            break
    git = ["git", "-C", str(ROOT)]
    commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True)
    changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True)
    listed = [sys.executable, "-m", "pip", "list", "--format=json", "--disable-pip-version-check"]
    packages = json.loads(subprocess.run(listed, capture_output=True, text=True).stdout or "[]")
    peers = {"llama_cpp_python", "llama-cpp-python", "mistralrs", "numpy"}
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "load_before": os.getloadavg(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": commit.stdout.strip(),
        "uncommitted_changes": bool(changed.stdout.strip()),
        "model": model.name,
        "model_bytes": model.stat().st_size,
        "python": platform.python_version(),
        "packages": {p["name"]: p["version"] for p in packages if p["name"] in peers},
    }


def machine_word(machine: dict) -> str:
    """As the benchmark of hook calls names it: cores and processor."""
    word = "".join(c if c.isalnum() else " " for c in machine["cpu"].lower())
    return "-".join([f"{machine['cores']}-cores", *word.split()])


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one round, two threads, not kept")
    parser.add_argument("--no-slow-peers", action="store_true", help="llama.cpp only")
    parser.add_argument("--model", type=pathlib.Path, default=default_model())
    data = os.environ.get("HOMEOSTAT_DATA", ROOT.parent / "shared" / "data")
    parser.add_argument("--data", type=pathlib.Path, default=pathlib.Path(data))
    parser.add_argument("--only", nargs="*", help="speed prefix speculation memory accuracy")
    chosen = parser.parse_args()
    quick = chosen.quick
    chosen.rounds = 1 if quick else 3
    chosen.threads = [2] if quick else [1, 2]
    chosen.prompts = 2 if quick else 5
    chosen.accuracy_prompts = 4 if quick else 32
    return chosen


def main():
    # As for Ctrl-C: the workers are ended.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    chosen = options()
    if not chosen.model.exists():
        sys.exit(f"{chosen.model} is missing: run `make models` first, or say --model FILE")
    machine = about_the_machine(chosen.model)
    run = Run(chosen)
    if machine["load_before"][0] > QUIET_LOAD:
        run.note(
            f"the load was {machine['load_before'][0]:.1f} before the start: others were at "
            "work, so read the ratios and not the rates"
        )
    wanted = chosen.only or ["speed", "prefix", "speculation", "memory", "accuracy"]
    for threads in chosen.threads:
        if "speed" in wanted:
            run.speed(threads)
        if "prefix" in wanted:
            run.prefix(threads)
    if "speculation" in wanted and run.recorded:
        run.speculation(max(chosen.threads))
    if "memory" in wanted:
        run.memory(max(chosen.threads))
    if "accuracy" in wanted:
        run.accuracy()
    machine["load_after"] = os.getloadavg()
    result = {"machine": machine, "notes": run.notes, "samples": run.samples}
    print(table.render(result))
    if not chosen.quick and not chosen.only:
        name = f"{machine['date'][:10]}-{machine_word(machine)}.json"
        file = HERE / "results" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(result, indent=1) + "\n")
        say(f"kept in {file.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
