"""Does a swap of the routing policy disturb anybody?

Clients stream without a pause while the policy is swapped between two behaviours. Every
answer must be whole and must be the answer of one of the two; both must be seen.

    target/venv/bin/python tests/e2e/swap_under_load.py --swaps 1000 --clients 8
"""

import argparse
import collections
import json
import pathlib
import statistics
import tempfile
import threading
import time

import httpx

import figures
import policy_files
import settings
from homeostat_process import LIMIT_S, Homeostat, wait_until

WHO = "Which policy routes you?"
STORY = "Tell me about the sea."
# What each behaviour looks like from outside: see policies/.
DIRECT = {"A", "B"}
TOKENS = {3: "A", 6: "B"}


class Client(threading.Thread):
    """Streams one answer after the other. Even clients ask the model, odd ones the policy."""

    def __init__(self, server: Homeostat, number: int, stop: threading.Event):
        super().__init__(daemon=True)
        self.server, self.stop_event = server, stop
        self.model = number % 2 == 0
        self.seen = collections.Counter()
        self.failures: list[str] = []
        self.fallbacks = 0

    def run(self):
        with httpx.Client(base_url=self.server.url, timeout=LIMIT_S) as http:
            while not self.stop_event.is_set():
                if not self.model:
                    time.sleep(0.01)  # or four direct clients would be all the load
                try:
                    self.seen[self.ask(http)] += 1
                except Exception as error:
                    self.failures.append(repr(error))

    def ask(self, http: httpx.Client) -> str:
        body = {
            "model": "auto",
            "messages": [{"role": "user", "content": STORY if self.model else WHO}],
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        text, usage, done = "", None, False
        with http.stream("POST", "/v1/chat/completions", json=body) as response:
            if response.status_code != 200:
                raise AssertionError(f"{response.status_code}: {response.read().decode()}")
            self.fallbacks += "x-homeostat-fallback" in response.headers
            for line in response.iter_lines():
                if not line.startswith("data: "):
                    continue
                if line == "data: [DONE]":
                    done = True
                    continue
                chunk = json.loads(line.removeprefix("data: "))
                if "error" in chunk:
                    raise AssertionError(line)
                text += "".join(c["delta"].get("content") or "" for c in chunk["choices"])
                usage = chunk["usage"] or usage
        if not done:
            raise AssertionError(f"the stream ended early after {text!r}")
        return self.behaviour(text, usage)

    def behaviour(self, text: str, usage: dict) -> str:
        if self.model:
            if not text or usage["completion_tokens"] not in TOKENS:
                raise AssertionError(f"neither A nor B answers {text!r} with {usage}")
            return TOKENS[usage["completion_tokens"]]
        if text not in DIRECT:
            raise AssertionError(f"neither A nor B answers {text!r}")
        return text


class Memory(threading.Thread):
    """Resident memory of the server, some times a second, with the swaps done by then."""

    def __init__(self, server: Homeostat, swapper: "Swapper", stop: threading.Event):
        super().__init__(daemon=True)
        self.status = pathlib.Path(f"/proc/{server.process.pid}/status")
        self.swapper, self.stop_event = swapper, stop
        self.samples: list[tuple[int, float]] = []

    def run(self):
        while not self.stop_event.wait(0.2):
            line = next(s for s in self.status.read_text().splitlines() if s.startswith("VmRSS"))
            self.samples.append((self.swapper.count, int(line.split()[1]) / 1024))

    def growth(self) -> dict:
        """The median of the last quarter of the swaps beside that of the second: the first
        fills pools and caches."""
        total = self.swapper.count
        quarter = lambda low, high: [  # noqa: E731
            mib for swaps, mib in self.samples if low * total <= swaps < high * total
        ]
        early, late = quarter(0.25, 0.5), quarter(0.75, 1.01)
        if not early or not late:
            return {}
        early, late = statistics.median(early), statistics.median(late)
        return {"rss_mib_early": round(early, 1), "rss_mib_late": round(late, 1)}


class Swapper:
    """Swaps between A and B: up by the admin API or by copying a file, which admits a
    component, down by rolling back, which takes a kept one. Each swap changes sides."""

    # What the host keeps for rollback: `policies.keep_generations`.
    KEPT = 3

    def __init__(self, server: Homeostat):
        self.server = server
        policies = policy_files.build()
        self.components = [policies["answers-a"], policies["answers-b"]]
        self.count = 0
        self.depth = 0
        self.rising = True
        self.put_ms: list[float] = []
        self.swap_ms: list[float] = []
        self.rollback_ms: list[float] = []
        self.copy_ms: list[float] = []

    def next(self) -> tuple[str, bytes]:
        which = self.count % 2
        self.count += 1
        return "AB"[which], self.components[which]

    def swap(self):
        self.put() if self.rising else self.roll_back()
        self.rising = self.depth == 0 or (self.rising and self.depth < self.KEPT)

    def put(self):
        _, component = self.next()
        begun = time.perf_counter()
        response = self.server.http.put("/admin/v1/policies/route", content=component)
        self.put_ms.append((time.perf_counter() - begun) * 1e3)
        assert response.status_code == 200, response.text
        self.swap_ms.append(response.json()["swap_micros"] / 1e3)
        self.depth = min(self.depth + 1, self.KEPT)

    def roll_back(self):
        self.next()
        begun = time.perf_counter()
        response = self.server.http.post("/admin/v1/policies/route/rollback")
        self.rollback_ms.append((time.perf_counter() - begun) * 1e3)
        assert response.status_code == 200, response.text
        self.depth -= 1

    def copy(self):
        name, component = self.next()
        begun = time.perf_counter()
        (self.server.policies / "route.wasm").write_bytes(component)
        wait_until(f"{name} routes", lambda: self.routes(name))
        self.copy_ms.append((time.perf_counter() - begun) * 1e3)
        self.depth = min(self.depth + 1, self.KEPT)

    def routes(self, name: str) -> bool:
        answer = self.server.ask(WHO).json()
        return answer["choices"][0]["message"]["content"] == name


def run(server: Homeostat, swaps: int, copies: int, clients: int) -> dict:
    """The whole experiment; the figures of it."""
    swapper = Swapper(server)
    swapper.copy()
    swapper.depth = 0  # below it lies the policy that the host came with
    stop = threading.Event()
    crowd = [Client(server, number, stop) for number in range(clients)]
    memory = Memory(server, swapper, stop)
    for thread in [memory, *crowd]:
        thread.start()
    # Odd, so that copies alternate as well: the watcher takes a file when it has changed.
    every = (swaps // max(1, copies)) - 1 | 1
    for i in range(swaps):
        swapper.copy() if copies and i % every == 0 else swapper.swap()
    stop.set()
    for thread in [memory, *crowd]:
        thread.join()
    seen = sum((client.seen for client in crowd), collections.Counter())
    streamed = sum((client.seen for client in crowd if client.model), collections.Counter())
    failures = [failure for client in crowd for failure in client.failures]
    return {
        "swaps": swaps,
        "by_put": len(swapper.put_ms),
        "by_rollback": len(swapper.rollback_ms),
        "by_file_copy": len(swapper.copy_ms) - 1,
        "clients": clients,
        "answers": sum(seen.values()),
        "answers_of_a": seen["A"],
        "answers_of_b": seen["B"],
        "model_answers_of_a": streamed["A"],
        "model_answers_of_b": streamed["B"],
        "fallbacks": sum(client.fallbacks for client in crowd),
        "failures": len(failures),
        "first_failures": failures[:3],
        **memory.growth(),
        **percentiles("put_ms", swapper.put_ms),
        **percentiles("swap_ms", swapper.swap_ms),
        **percentiles("rollback_ms", swapper.rollback_ms),
        **percentiles("file_copy_to_effect_ms", swapper.copy_ms),
    }


def percentiles(name: str, values: list[float]) -> dict:
    if not values:
        return {}
    shares = {"p50": 0.5, "p99": 0.99, "max": 1.0}
    return {f"{name}_{k}": round(figures.percentile(values, s), 3) for k, s in shares.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--swaps", type=int, default=1000)
    parser.add_argument("--copies", type=int, default=20, help="how many of them by file copy")
    parser.add_argument("--clients", type=int, default=8)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        config = settings.basic() + settings.no_encoder()
        server = Homeostat(pathlib.Path(folder), config).start()
        try:
            found = run(server, asked.swaps, asked.copies, asked.clients)
        finally:
            server.stop()
    figures.keep("swap_under_load", **found)
    ok = not found["failures"] and found["answers_of_a"] and found["answers_of_b"]
    raise SystemExit(0 if ok else 1)


if __name__ == "__main__":
    main()
