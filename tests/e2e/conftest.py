"""Servers for the tests: one that most tests share, and as many special ones as needed."""

import pathlib
import subprocess
import sys

import httpx
import pytest

import settings
from homeostat_process import BINARY, Homeostat, free_port, gguf, wait_until


@pytest.fixture(scope="session", autouse=True)
def built():
    assert BINARY.exists(), f"{BINARY} is missing: run `make build` first"
    assert gguf().exists(), f"{gguf()} is missing: run `make models` first"


@pytest.fixture(scope="session")
def shared(built, tmp_path_factory):
    """The default configuration. Tests that use it must leave it as it was."""
    server = Homeostat(tmp_path_factory.mktemp("shared"), settings.basic()).start()
    yield server
    server.stop()


@pytest.fixture
def start(built, tmp_path):
    """Starts servers of one's own; all are stopped, and must end cleanly."""
    running = []

    def start_one(config: str | None = None, env: dict | None = None) -> Homeostat:
        folder = tmp_path / f"server-{len(running)}"
        folder.mkdir()
        server = Homeostat(folder, settings.basic() if config is None else config, env)
        running.append(server)
        return server.start()

    yield start_one
    for server in running:
        server.stop()


class LlamaServer:
    """llama.cpp's OpenAI-compatible server with the same model file."""

    def __init__(self, log_path):
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/v1"
        script = pathlib.Path(__file__).with_name("llama_server.py")
        command = [sys.executable, script, "--model", gguf()]
        command += ["--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--n_ctx", "2048", "--n_threads", "1", "--n_threads_batch", "1"]
        command += ["--model_alias", "smollm2-remote"]
        with log_path.open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)

        def answers():
            assert self.process.poll() is None, log_path.read_text()[-4000:]
            try:
                return httpx.get(f"{self.url}/models").status_code == 200
            except httpx.TransportError:
                return False

        wait_until("llama.cpp's server", answers)

    def kill(self):
        self.process.kill()
        self.process.wait()


@pytest.fixture
def llama(tmp_path):
    server = LlamaServer(tmp_path / "llama.log")
    yield server
    server.kill()
