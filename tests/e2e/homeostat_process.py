"""Runs the built server the way a user does: a config file, a process, signals.

Nothing here knows how Homeostat works inside. Limits on waiting only keep a broken server
from hanging the tests; no test depends on how fast the machine is.
"""

import os
import pathlib
import signal
import socket
import subprocess
import time

import httpx
from openai import AsyncOpenAI, OpenAI

ROOT = pathlib.Path(__file__).resolve().parents[2]
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")).resolve()
BINARY = TARGET / "release" / "homeostat"

# Generous: a cold machine that compiles components while other tests run.
LIMIT_S = 300.0
ADMIN_TOKEN = "end-to-end"
GENERATIVE = "smollm2-135m-instruct"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"


def cache_folder() -> pathlib.Path:
    """The user's model cache, found by the rules of the server."""
    env = os.environ
    if env.get("HOMEOSTAT_CACHE"):
        return pathlib.Path(env["HOMEOSTAT_CACHE"])
    if env.get("XDG_CACHE_HOME"):
        return pathlib.Path(env["XDG_CACHE_HOME"]) / "homeostat"
    return pathlib.Path.home() / ".cache" / "homeostat"


def gguf() -> pathlib.Path:
    """The generative model of the default configuration."""
    return cache_folder() / "models" / GENERATIVE / GGUF_NAME


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_until(what: str, condition, limit_s: float = LIMIT_S):
    """Poll `condition` until it returns something true; that is returned."""
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        if result := condition():
            return result
        time.sleep(0.02)
    raise AssertionError(f"waited {limit_s:.0f} s in vain: {what}")


def run_cli(*arguments, cwd=None, env=None, check=True) -> subprocess.CompletedProcess:
    """One `homeostat` command that ends by itself."""
    done = subprocess.run(
        [BINARY, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    if check:
        assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"
    return done


class Homeostat:
    """A running server in a folder of its own."""

    def __init__(self, folder: pathlib.Path, config: str = "", env: dict | None = None):
        self.folder = folder
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.policies = folder / "policies"
        self.policies.mkdir(parents=True, exist_ok=True)
        self.log_path = folder / "homeostat.log"
        self.config_path = folder / "homeostat.toml"
        self.config_path.write_text(config)
        self.env = {**os.environ, **(env or {})}
        self.process: subprocess.Popen | None = None
        self.http = httpx.Client(
            base_url=self.url,
            timeout=LIMIT_S,
            headers={"authorization": f"Bearer {ADMIN_TOKEN}"},
        )

    def start(self) -> "Homeostat":
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [BINARY, "serve", "--config", self.config_path, "--listen", f"127.0.0.1:{self.port}"],
                cwd=self.folder,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        wait_until(f"{self.url}/readyz", self._ready)
        return self

    def _ready(self) -> bool:
        assert self.process.poll() is None, f"the server ended while starting:\n{self.log()}"
        try:
            return self.http.get("/readyz").status_code == 200
        except httpx.TransportError:
            return False

    def stop(self):
        """SIGTERM; a clean server drains, exits with 0 and has never panicked."""
        if self.process is None:
            return
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"the server ignored SIGTERM:\n{self.log()}")
        finally:
            self.process = None
            self.http.close()
        log = self.log()
        assert code == 0, f"the server exited with {code}:\n{log}"
        assert "panicked at" not in log, log

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")[-20_000:]

    # ---- what clients and operators do -----------------------------------------------

    def openai(self) -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=LIMIT_S)

    def async_openai(self) -> AsyncOpenAI:
        url = f"{self.url}/v1"
        return AsyncOpenAI(base_url=url, api_key="none", max_retries=0, timeout=LIMIT_S)

    def ask(self, question: str, **fields) -> httpx.Response:
        """One chat request without any client library, so that headers are in sight."""
        body = {
            "model": "auto",
            "messages": [{"role": "user", "content": question}],
            "temperature": 0,
            "max_tokens": 16,
            **fields,
        }
        return self.http.post("/v1/chat/completions", json=body)

    def record(self, request_id: str) -> dict:
        """The decision record of a request; written shortly after the answer was sent."""
        path = f"/admin/v1/decisions/{request_id}"

        def fetch():
            response = self.http.get(path)
            return response.json() if response.status_code == 200 else None

        return wait_until(path, fetch, limit_s=30)

    def metrics(self) -> str:
        response = self.http.get("/metrics")
        assert response.status_code == 200, response.text
        return response.text


def text_of(response: httpx.Response) -> str:
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]["message"]["content"]
