"""mistral.rs as a peer of run.py, through its Python package.

It takes text instead of tokens and reports its own times; threads are told to it by the
environment (run.py). The answer may end early, so its tokens are counted, not assumed.

    mistralrs_peer.py MODEL
"""

import json
import os
import pathlib
import sys
import time

# Its log goes to standard output, which belongs to the answers here.
ANSWERS = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)

import mistralrs  # noqa: E402


def generate(runner, texts, new_tokens):
    if len(texts) > 1:
        return together(runner, texts, new_tokens)
    began = time.perf_counter()
    request = mistralrs.CompletionRequest(
        model="default", prompt=texts[0], max_tokens=new_tokens, temperature=0.0
    )
    used = runner.send_completion_request(request).usage
    return {
        "prompt_tokens": [used.prompt_tokens],
        "counts": [used.completion_tokens],
        "first": [used.total_prompt_time_sec],
        "last": [used.total_prompt_time_sec + used.total_completion_time_sec],
        "wall": time.perf_counter() - began,
    }


def together(runner, texts, new_tokens):
    """The binding lends its runner to one call at a time; only a call for a stream, which it has
    for chats alone, comes back at once. Each piece of a stream is a token. The streams are read
    one after another while all of them are written."""
    began = time.perf_counter()
    streams = []
    for text in texts:
        request = mistralrs.ChatCompletionRequest(
            model="default",
            messages=[{"role": "user", "content": text}],
            max_tokens=new_tokens,
            temperature=0.0,
            stream=True,
        )
        streams.append(runner.send_chat_completion_request(request))
    times = [[time.perf_counter() - began for _ in stream] for stream in streams]
    return {
        "counts": [len(t) for t in times],
        "first": [times[0][0]],
        "last": [times[-1][-1]],
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
