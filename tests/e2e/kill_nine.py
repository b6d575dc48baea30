"""Does a host that is killed lose anything that it has acknowledged?

Clients count in the state of a policy while the policy is swapped by the admin API, rolled
back, and replaced by a file copy. At a random moment the process gets SIGKILL. It must
start again, serve the last policy whose swap it acknowledged (or the one that was in
flight), keep what can be rolled back to, and never give a number twice.

    target/venv/bin/python tests/e2e/kill_nine.py --kills 200
"""

import argparse
import hashlib
import pathlib
import random
import tempfile
import threading
import time

import httpx

import figures
import policy_files
import settings
from homeostat_process import Homeostat, free_port, wait_until

HOOK = "/admin/v1/policies/route"
CLIENTS = 3
# One life in so many replaces the policy by a file copy; the others by the admin API.
FILE_EVERY = 5
# Longest life after the start: some swaps and some dozens of counts.
LIFE_S = 0.7
KEPT = 3
# Components that are swapped; compiled before the first kill, so that lives can be short.
VARIANTS = 4


def configuration() -> str:
    return (
        settings.server(embedded_policies=False)
        + settings.no_encoder()
        + settings.remote_tier("nobody", f"http://127.0.0.1:{free_port()}/v1", rank=0)
        + '[policies]\nstate_dir = "state"\n'
        + "[policies.limits]\ndeadline_ms = 60000\n"
        + '[policies.route]\ngrants = ["keyvalue"]\n'
    )


def digest(component: bytes) -> str:
    return hashlib.sha256(component).hexdigest()


class Counts(threading.Thread):
    """Asks for the next number until the server dies. The largest one it has seen is
    acknowledged."""

    def __init__(self, server: Homeostat):
        super().__init__(daemon=True)
        self.server = server
        self.sent, self.seen, self.odd = 0, [], []

    def run(self):
        try:
            while True:
                self.sent += 1
                response = self.server.ask("count")
                if response.status_code != 200:
                    self.odd.append(response.text)
                    continue
                self.seen.append(int(response.json()["choices"][0]["message"]["content"]))
        except httpx.HTTPError:
            return


class Swaps(threading.Thread):
    """Puts and rolls back until the server dies, and knows what must be active then."""

    def __init__(self, server: Homeostat, model: "Model", rng: random.Random):
        super().__init__(daemon=True)
        self.server, self.model, self.rng = server, model, rng
        self.done, self.odd = 0, []

    def run(self):
        try:
            while True:
                if self.model.kept and self.rng.random() < 0.3:
                    self.model.in_flight = self.model.kept[-1]
                    response = self.server.http.post(f"{HOOK}/rollback")
                    self.check(response)
                    self.model.rolled_back()
                else:
                    component = self.model.next()
                    self.model.in_flight = digest(component)
                    response = self.server.http.put(HOOK, content=component)
                    self.check(response)
                    self.model.put(digest(component))
                self.done += 1
        except httpx.HTTPError:
            return

    def check(self, response: httpx.Response):
        if response.status_code != 200:
            self.odd.append(response.text)
            raise httpx.HTTPError("a swap was refused")


class Model:
    """What the host has acknowledged about the hook."""

    def __init__(self):
        base = policy_files.build()["counts"]
        self.variants = [policy_files.variant(base, n) for n in range(VARIANTS)]
        self.made = 0
        self.active: str | None = None
        self.kept: list[str] = []
        self.in_flight: str | None = None

    def next(self) -> bytes:
        self.made += 1
        return self.variants[self.made % VARIANTS]

    def put(self, name: str):
        if self.active:
            self.kept = [*self.kept, self.active][-KEPT:]
        self.active, self.in_flight = name, None

    def rolled_back(self):
        self.active, self.in_flight = self.kept.pop(), None

    def compare(self, slot: dict):
        """The host after a restart is where it was, or one step on if one was in flight."""
        active = slot["active"] and slot["active"]["digest"]
        kept = [k["digest"] for k in reversed(slot["kept"])]
        if self.in_flight is None:
            assert (active, kept) == (self.active, self.kept), "another history than before"
        else:
            assert active in (self.active, self.in_flight), f"{active} was never acknowledged"
        self.active, self.kept, self.in_flight = active, kept, None


def route(server: Homeostat) -> dict:
    response = server.http.get("/admin/v1/policies")
    assert response.status_code == 200, response.text
    return next(h for h in response.json()["policies"] if h["hook"] == "route")


def run(server: Homeostat, kills: int, seed: int) -> dict:
    """The whole experiment; the figures of it."""
    rng = random.Random(seed)
    model = Model()
    acknowledged = sent = swaps = copies = numbers = 0
    starts_ms = []
    server.start()
    for _ in range(VARIANTS):
        component = model.next()
        put = server.http.put(HOOK, content=component)
        assert put.status_code == 200, put.text
        model.put(digest(component))
    server.process.kill()
    server.process.wait()
    for life in range(kills + 1):
        begun = time.perf_counter()
        server.start()
        starts_ms.append((time.perf_counter() - begun) * 1e3)
        where = f"seed {seed}, life {life}"
        try:
            model.compare(route(server))
            if model.active:
                after = int(server.ask("count").json()["choices"][0]["message"]["content"])
                assert after > acknowledged, f"{after} after {acknowledged} was acknowledged"
                assert after <= sent + 1, f"{after} of {sent} requests"
                acknowledged, sent = after, max(sent + 1, after)
        except AssertionError as error:
            raise AssertionError(f"{where}: {error}\n{server.log()}") from error
        if life == kills:
            break
        by_file = model.active is not None and rng.random() < 1 / FILE_EVERY
        clients = [Counts(server) for _ in range(CLIENTS)] if model.active else []
        swapper = None if by_file else Swaps(server, model, rng)
        for thread in clients:
            thread.start()
        if by_file:
            component = model.next()
            model.in_flight = digest(component)
            (server.policies / "route.wasm").write_bytes(component)
            copies += 1
        else:
            swapper.start()
        time.sleep(rng.random() * LIFE_S)
        server.process.kill()
        server.process.wait()
        for thread in [*clients, *([swapper] if swapper else [])]:
            thread.join()
        odd = [text for t in [*clients, *([swapper] if swapper else [])] for text in t.odd]
        assert not odd, f"{where}: {odd[:3]}"
        seen = [n for client in clients for n in client.seen]
        assert len(seen) == len(set(seen)), f"{where}: a number was given twice"
        acknowledged = max([acknowledged, *seen])
        sent += sum(client.sent for client in clients)
        numbers += len(seen)
        swaps += swapper.done if swapper else 0
    return {
        "kills": kills,
        "seed": seed,
        "swaps_acknowledged": swaps,
        "file_copies": copies,
        "numbers_acknowledged": numbers,
        **{
            f"start_ms_{name}": round(figures.percentile(starts_ms, share), 1)
            for name, share in {"p50": 0.5, "p99": 0.99, "max": 1.0}.items()
        },
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        server = Homeostat(pathlib.Path(folder), configuration())
        try:
            found = run(server, asked.kills, asked.seed)
        finally:
            server.stop()
    figures.keep("kill_nine", **found)


if __name__ == "__main__":
    main()
