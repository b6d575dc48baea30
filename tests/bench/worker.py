"""An engine in a process of its own, that obeys one JSON line after another.

Between its turns a worker is stopped (SIGSTOP): an engine whose threads spin while they wait
would take time from the one that is measured.
"""

import atexit
import json
import os
import select
import signal
import subprocess

# Nothing that is measured takes longer; only a hang does.
PATIENCE_S = 300


class Failed(Exception):
    """The worker does not answer, or says why it cannot."""


class Worker:
    def __init__(self, name: str, command: list, env: dict | None = None):
        self.name = name
        self.process = subprocess.Popen(
            [str(word) for word in command],
            env={**os.environ, **(env or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        # A stopped process would outlive a benchmark that is interrupted.
        atexit.register(self.end)
        self.ready = self._read()
        self._signal(signal.SIGSTOP)

    def ask(self, **command) -> dict:
        self._signal(signal.SIGCONT)
        try:
            self.process.stdin.write(json.dumps(command).encode() + b"\n")
            self.process.stdin.flush()
            answer = self._read()
        except BrokenPipeError:
            raise Failed(f"{self.name} has ended") from None
        self._signal(signal.SIGSTOP)
        if "error" in answer:
            raise Failed(f"{self.name}: {answer['error']}")
        return answer

    def _read(self) -> dict:
        out, err = self.process.stdout, self.process.stderr
        open_files = [out, err]
        said = b""
        while open_files:
            readable, _, _ = select.select(open_files, [], [], PATIENCE_S)
            if not readable:
                self.end()
                raise Failed(f"{self.name} did not answer within {PATIENCE_S} s")
            if err in readable:
                # Kept moving, or a talkative peer would stand still.
                text = os.read(err.fileno(), 1 << 16)
                said = (said + text)[-2000:]
                if not text:
                    open_files.remove(err)
            if out in readable:
                line = out.readline()
                if not line:
                    break
                return json.loads(line)
        self.end()
        raise Failed(f"{self.name} has ended: {said.decode(errors='replace').strip()}")

    def _signal(self, which):
        if self.process.poll() is None:
            self.process.send_signal(which)

    def end(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        atexit.unregister(self.end)
