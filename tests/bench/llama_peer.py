"""llama.cpp as a peer of run.py: the same commands as host/engine/examples/bench.rs.

It calls llama.cpp's C functions directly. Only the time inside `llama_decode` counts, so
neither Python nor the choice of the next token is held against llama.cpp.

    llama_peer.py MODEL THREADS CONTEXT_TOKENS
"""

import ctypes
import json
import os
import sys
import time

import llama_cpp.llama_cpp as C
import numpy

MAX_STREAMS = 8
MAX_BATCH = 2048


def memory():
    """Resident bytes of this process, now and at most."""
    with open("/proc/self/status") as status:
        lines = dict(line.split(":", 1) for line in status)
    return {
        "resident": int(lines["VmRSS"].split()[0]) * 1024,
        "peak": int(lines["VmHWM"].split()[0]) * 1024,
    }


def can_repack(*arguments) -> bool:
    """Some builds of llama.cpp die on some processors when weights are repacked for them
    (seen with AMX and 0.3.36): a child tries it, so that only the child dies."""
    child = os.fork()
    if child == 0:
        # A dying child's stack trace is no news.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        llama = Llama(*arguments, repack=True)
        llama.generate([[1] * 64] * MAX_STREAMS, 2)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return status == 0


class Llama:
    def __init__(self, path: str, threads: int, context: int, *, repack: bool):
        C.llama_backend_init()
        self.silent = C.llama_log_callback(lambda *_: None)
        C.llama_log_set(self.silent, ctypes.c_void_p(0))
        weights = C.llama_model_default_params()
        weights.use_extra_bufts = repack
        self.model = C.llama_model_load_from_file(path.encode(), weights)
        assert self.model, f"llama.cpp cannot load {path}"
        params = C.llama_context_default_params()
        params.n_ctx = context
        params.n_batch = MAX_BATCH
        params.n_ubatch = 512
        params.n_seq_max = MAX_STREAMS
        params.n_threads = threads
        params.n_threads_batch = threads
        # One pool for all sequences, as ours has.
        params.kv_unified = True
        params.no_perf = True
        self.context = C.llama_init_from_model(self.model, params)
        assert self.context, "llama.cpp cannot make a context"
        self.vocabulary = C.llama_vocab_n_tokens(C.llama_model_get_vocab(self.model))
        self.batch = C.llama_batch_init(MAX_BATCH, 0, MAX_STREAMS)
        self.seconds = 0.0

    def decode(self, rows):
        """`rows` are (token, position, sequence, wants logits). Returns the logits that are
        wanted; the time goes to `self.seconds`."""
        batch = self.batch
        batch.n_tokens = len(rows)
        wanted = []
        for i, (token, position, sequence, logits) in enumerate(rows):
            batch.token[i] = token
            batch.pos[i] = position
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = sequence
            batch.logits[i] = logits
            if logits:
                wanted.append(i)
        began = time.perf_counter()
        code = C.llama_decode(self.context, batch)
        C.llama_synchronize(self.context)
        self.seconds += time.perf_counter() - began
        assert code == 0, f"llama_decode says {code}"
        shape = (self.vocabulary,)
        return [
            numpy.ctypeslib.as_array(C.llama_get_logits_ith(self.context, i), shape=shape)
            for i in wanted
        ]

    def clear(self):
        C.llama_memory_clear(C.llama_get_memory(self.context), True)
        self.seconds = 0.0

    def read(self, prompts):
        """Computes all prompts and returns the first token of each answer."""
        rows = [
            (token, position, sequence, position == len(prompt) - 1)
            for sequence, prompt in enumerate(prompts)
            for position, token in enumerate(prompt)
        ]
        chosen = []
        for start in range(0, len(rows), MAX_BATCH):
            chosen += [int(row.argmax()) for row in self.decode(rows[start : start + MAX_BATCH])]
        return chosen

    def generate(self, prompts, new_tokens):
        self.clear()
        chosen = self.read(prompts)
        first = self.seconds
        tokens = [[token] for token in chosen]
        for step in range(new_tokens - 1):
            rows = [
                (token, len(prompts[i]) + step, i, True) for i, token in enumerate(chosen)
            ]
            chosen = [int(row.argmax()) for row in self.decode(rows)]
            for answer, token in zip(tokens, chosen):
                answer.append(token)
        n = len(prompts)
        return {"first": [first] * n, "last": [self.seconds] * n, "tokens": tokens}

    def prefix(self, prompt, steps):
        """The prompt, then the same again from what is in memory: all but its last token."""
        self.clear()
        self.read([prompt])
        cold, self.seconds = self.seconds, 0.0
        last = len(prompt) - 1
        C.llama_memory_seq_rm(C.llama_get_memory(self.context), 0, last, -1)
        token = int(self.decode([(prompt[last], last, 0, True)])[0].argmax())
        hit, self.seconds = self.seconds, 0.0
        for step in range(steps):
            row = (token, len(prompt) + step, 0, True)
            token = int(self.decode([row])[0].argmax())
        return {"cold": cold, "hit": hit, "step": self.seconds / steps}

    def logits(self, prompts, out):
        with open(out, "wb") as file:
            for prompt in prompts:
                self.clear()
                rows = self.decode([(t, p, 0, True) for p, t in enumerate(prompt)])
                for row in rows:
                    file.write(row.astype("<f4").tobytes())
        return {}


def obey(llama: Llama, command: dict):
    match command["do"]:
        case "generate":
            return llama.generate(command["prompts"], command["new_tokens"])
        case "prefix":
            return llama.prefix(command["prompt"], command["steps"])
        case "logits":
            return llama.logits(command["prompts"], command["out"])
        case "memory":
            return memory()
        case other:
            return {"error": f"llama_peer cannot {other}"}


def main():
    path, threads, context = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    repack = can_repack(path, threads, context)
    before = memory()["resident"]
    llama = Llama(path, threads, context, repack=repack)
    system = C.llama_print_system_info().decode()
    # What Python and its libraries held before is no part of llama.cpp.
    ready = {"before": before, "system": system, "repack": repack}
    print(json.dumps(ready), flush=True)
    for line in sys.stdin:
        print(json.dumps(obey(llama, json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
