"""mistral.rs as a peer of run.py, through its Python package.

It takes text instead of tokens and reports its own times; threads are told to it by the
environment (run.py). The answer may end early, so its tokens are counted, not assumed.

    mistralrs_peer.py MODEL
"""

import json
import os
import pathlib
import sys
import threading
import time

# Its log goes to standard output, which belongs to the answers here.
ANSWERS = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)

import mistralrs  # noqa: E402


def generate(runner, texts, new_tokens):
    answers = [None] * len(texts)

    def one(index):
        request = mistralrs.CompletionRequest(
            model="default", prompt=texts[index], max_tokens=new_tokens, temperature=0.0
        )
        answers[index] = runner.send_completion_request(request)

    began = time.perf_counter()
    threads = [threading.Thread(target=one, args=(i,)) for i in range(len(texts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wall = time.perf_counter() - began
    used = [answer.usage for answer in answers]
    return {
        "prompt_tokens": [u.prompt_tokens for u in used],
        "counts": [u.completion_tokens for u in used],
        "first": [u.total_prompt_time_sec for u in used],
        "last": [u.total_prompt_time_sec + u.total_completion_time_sec for u in used],
        "wall": wall,
    }


def main():
    path = pathlib.Path(sys.argv[1])
    which = mistralrs.Which.GGUF(
        tok_model_id=None, quantized_model_id=str(path.parent), quantized_filename=path.name
    )
    runner = mistralrs.Runner(which=which, max_seqs=8, prefix_cache_n=0)
    print(json.dumps({"ready": True}), file=ANSWERS, flush=True)
    for line in sys.stdin:
        command = json.loads(line)
        answer = generate(runner, command["texts"], command["new_tokens"])
        print(json.dumps(answer), file=ANSWERS, flush=True)


if __name__ == "__main__":
    main()
