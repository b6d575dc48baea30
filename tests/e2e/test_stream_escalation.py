"""A stream that is left in its middle: what the client saw is what the small tier had sent and
what the large tier said next, byte by byte, whoever the large tier is."""

import http.server
import json
import threading
import time

import httpx
import pytest

import figures
import policy_files
import settings
from homeostat_process import LIMIT_S, text_of, wait_until

QUESTION = "Write a long story about a lighthouse."
MAX_TOKENS = 72
# SmolLM2's own way of writing a conversation.
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WRITTEN_OUT = f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n"


class Upstream:
    """A server of the test's own, until it is stopped."""

    def __init__(self, handler: type[http.server.BaseHTTPRequestHandler]):
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def stop(self):
        self.server.shutdown()
        self.server.server_close()


class Listener(Upstream):
    """Stands between Homeostat and llama.cpp's server and writes down what both say."""

    def __init__(self, url: str):
        self.asked: list[dict] = []
        self.said: list[str] = []
        listener = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                answer = httpx.get(url + self.path.removeprefix("/v1"), timeout=LIMIT_S)
                self.send_response(answer.status_code)
                self.end_headers()
                self.wfile.write(answer.content)

            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"]))
                path = url + self.path.removeprefix("/v1")
                headers = {"content-type": "application/json"}
                with httpx.stream(
                    "POST", path, content=body, headers=headers, timeout=LIMIT_S
                ) as answer:
                    self.send_response(answer.status_code)
                    self.send_header("content-type", answer.headers["content-type"])
                    self.end_headers()
                    raw = b""
                    for piece in answer.iter_raw():
                        raw += piece
                        self.wfile.write(piece)
                # Chats are not listened to.
                if answer.status_code == 200 and self.path == "/v1/completions":
                    listener.asked.append(json.loads(body) | {"path": self.path})
                    listener.said.append(text_in(raw.decode()))

            def log_message(self, *_):
                pass

        super().__init__(Handler)


BOXES = "How many pens are in 17 boxes of 23?"
# A token each. The client is eight behind, so it has the first line when the second has ended.
SAID = ["Let", " us", " see", " how", " many", " pens", " there", " are", " in", " all", " the"]
SAID += [" boxes", ":", "\n", "17", " *", " 23", " =", " 401", ".\n"]
# A server whose answer nobody leaves ends it after this time, and the test fails.
UNLEFT_S = 60.0


class Speaker(Upstream):
    """An OpenAI-compatible server that computes wrongly, and waits to be left for it."""

    def __init__(self):
        self.left = threading.Event()
        speaker = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(200)
                self.end_headers()

            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"])).decode()
                self.send_response(200)
                self.send_header("content-type", "text/event-stream")
                self.end_headers()
                try:
                    if BOXES in body:
                        for text in SAID:
                            self.say({"content": text})
                        speaker.left.wait(UNLEFT_S)
                    self.say({"content": "So."})
                    self.say({}, finish_reason="stop")
                except OSError:
                    pass  # it was left

            def say(self, delta: dict, finish_reason=None):
                choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
                self.wfile.write(f"data: {json.dumps({'choices': [choice]})}\n\n".encode())

            def log_message(self, *_):
                pass

        super().__init__(Handler)

    def stop(self):
        self.left.set()
        super().stop()


def text_in(stream: str) -> str:
    """The text of a stream of completions."""
    data = [l.removeprefix("data: ") for l in stream.splitlines() if l.startswith("data: ")]
    chunks = [json.loads(d) for d in data if d.strip() != "[DONE]"]
    return "".join(c["choices"][0]["text"] for c in chunks if c.get("choices"))


@pytest.fixture
def listener(llama):
    listener = Listener(llama.url)
    yield listener
    listener.stop()


@pytest.fixture
def speaker():
    speaker = Speaker()
    yield speaker
    speaker.stop()


class Seen:
    """A stream as its client saw it: pieces with their times, and what came last."""

    def __init__(self, server, **fields):
        self.pieces: list[tuple[float, str]] = []
        self.last: dict = {}
        self.finish = None
        body = {
            "model": "auto",
            "messages": [{"role": "user", "content": QUESTION}],
            "temperature": 0,
            "max_tokens": MAX_TOKENS,
            "stream": True,
            "stream_options": {"include_usage": True},
        } | fields
        began = time.monotonic()
        with server.http.stream("POST", "/v1/chat/completions", json=body) as response:
            assert response.status_code == 200
            self.headers = response.headers
            for line in response.iter_lines():
                if not line.startswith("data: ") or line == "data: [DONE]":
                    continue
                chunk = json.loads(line.removeprefix("data: "))
                assert "error" not in chunk, chunk
                for choice in chunk["choices"]:
                    if text := choice["delta"].get("content"):
                        self.pieces.append((time.monotonic() - began, text))
                    self.finish = choice["finish_reason"] or self.finish
                if chunk.get("usage"):
                    self.last = chunk
        self.seconds = time.monotonic() - began
        self.record = server.record(self.headers["x-request-id"])

    @property
    def text(self) -> str:
        return "".join(text for _, text in self.pieces)

    def time_at(self, byte: int) -> float:
        """When the client had more than so many bytes."""
        had = 0
        for seconds, text in self.pieces:
            had += len(text.encode())
            if had > byte:
                return seconds
        raise AssertionError(f"the client never had {byte} bytes: {self.text!r}")


def put(server):
    """The policies of these tests, and a small tier that is alone until they serve."""
    policies = policy_files.build()
    (server.policies / "validate.wasm").write_bytes(policies["stops-at-eighty"])
    (server.policies / "route.wasm").write_bytes(policies["follows"])
    wait_until_both_follow(server, check="length")


def wait_until_both_follow(server, check: str):
    """Until the router serves, both tiers are ready, and the validator makes this check."""

    def serve():
        answer = server.ask("ping", max_tokens=2)
        record = server.record(answer.headers["x-request-id"])
        steps = record["decision"]["value"].get("plan", {}).get("steps", [])
        verdict = record["steps"][-1]["verdict"] if record["steps"] else None
        behind = len(steps) == 2 and all(s["hold_back_tokens"] == 8 for s in steps)
        return behind and verdict is not None and check in json.dumps(verdict)

    wait_until("the policies serve and both tiers are ready", serve)


def tell(what: str, seen: Seen, cut: dict, taken: float | None = None):
    reused, dropped = cut["sent_tokens"], cut["dropped_tokens"]
    seam_s = seen.time_at(cut["seam_bytes"])
    text = seen.text.encode()
    figures.keep(
        what,
        first_text_s=round(seen.pieces[0][0], 3),
        left_s=cut["at_ms"] / 1000,
        first_text_of_next_tier_s=round(seam_s, 3),
        all_s=round(seen.seconds, 3),
        reused_tokens=reused,
        dropped_tokens=dropped,
        dropped_bytes=cut["dropped_bytes"],
        bytes_said_again=cut["repeated_bytes"],
        before_the_seam=text[: cut["seam_bytes"]].decode(),
        after_it=text[cut["seam_bytes"] :].decode(),
        draft_tokens_accepted=taken,
    )


def the_cut(seen: Seen, why: str = "bytes") -> dict:
    """Checks what holds of every stream that was left once, and returns where."""
    first, second = seen.record["steps"]
    cut = first["cut"]
    assert cut["by"] == "validator" and why in cut["why"], cut
    assert cut["sent_tokens"] > 0 and cut["dropped_tokens"] >= 8, cut
    assert first["sent"] and second["sent"]
    assert first["finish"] == "unfinished" and first["verdict"]["value"]["escalate"]
    assert seen.headers["x-homeostat-tier"] == "small"
    assert seen.record["tier"] == "large"
    about, usage = seen.last["homeostat"], seen.last["usage"]
    assert about["cuts"] == [cut] and about["tier"] == "large" and about["escalations"] == 1
    assert usage["completion_tokens"] == cut["sent_tokens"] + second["completion_tokens"]
    assert usage["completion_tokens"] <= MAX_TOKENS
    assert second["continued_tokens"] == cut["sent_tokens"]
    assert usage["energy"]["joules"] > 0
    return cut


def test_a_stream_that_is_doubted_in_its_middle_goes_on_at_llama_cpp(start, listener, tmp_path):
    template = tmp_path / "chatml.jinja"
    template.write_text(CHATML)
    config = settings.server() + settings.no_encoder() + settings.local_tier("small")
    by_text = dict(prefill="completions", chat_template=str(template))
    server = start(config + settings.remote_tier("large", listener.url, **by_text))
    put(server)
    alone = text_of(server.ask(QUESTION, model="small", max_tokens=MAX_TOKENS))
    listener.asked.clear()
    listener.said.clear()
    seen = Seen(server)
    cut = the_cut(seen)
    tell("llama.cpp goes on", seen, cut)
    prefix = seen.text.encode()[: cut["seam_bytes"]].decode()
    assert alone.startswith(prefix), "what was sent is what the small tier says"
    # What llama.cpp was asked is the conversation and what the client had by then, no more.
    # The listener is done a moment after its client.
    wait_until("what was said is heard", lambda: listener.said)
    [asked], [said] = listener.asked, listener.said
    assert asked["path"] == "/v1/completions"
    shown = prefix.rstrip()
    assert asked["prompt"] == WRITTEN_OUT + shown
    assert asked["max_tokens"] == MAX_TOKENS - cut["sent_tokens"]
    # White space at the seam stood in neither's way.
    for space in prefix[len(shown) :]:
        if not said.startswith(space):
            break
        said = said.removeprefix(space)
    assert said, "llama.cpp went on"
    assert seen.text.encode() == prefix.encode() + said.encode()


def test_the_default_validator_leaves_a_wrong_sum_before_the_client_has_it(start, speaker):
    config = settings.server() + settings.no_encoder()
    config += settings.remote_tier(
        "small", speaker.url, rank=0, quality=settings.SMALL_QUALITY
    ) + settings.local_tier("large", rank=1, quality=settings.LARGE_QUALITY)
    server = start(config)
    (server.policies / "route.wasm").write_bytes(policy_files.build()["follows"])
    wait_until_both_follow(server, check="log-probabilities")
    seen = Seen(server, messages=[{"role": "user", "content": BOXES}])
    cut = the_cut(seen, why="17 * 23 is 391, not 401")
    tell("a wrong sum is left", seen, cut)
    assert seen.record["steps"][0]["verdict"]["by"]["name"] == "validate-facts"
    prefix = "".join(SAID[: cut["sent_tokens"]])
    assert cut["sent_tokens"] == len(SAID) - 8, "it was left when the sum was complete"
    assert cut["seam_bytes"] == len(prefix) and "401" not in prefix
    assert seen.text.startswith(prefix) and seen.text != prefix, "the large tier goes on"


@pytest.fixture
def twins(start):
    """Two local tiers of one model: the large one would have said what the small one said."""
    config = settings.server() + settings.no_encoder()
    config += settings.local_tier("small") + settings.local_tier(
        "large", rank=1, quality=settings.LARGE_QUALITY
    )
    server = start(config)
    put(server)
    return server


def test_with_equal_tiers_a_stream_that_was_left_is_the_answer_that_was_not(twins):
    alone = text_of(twins.ask(QUESTION, model="small", max_tokens=MAX_TOKENS))
    before = accepted(twins)
    seen = Seen(twins)
    cut = the_cut(seen)
    taken = accepted(twins) - before
    tell("the same model goes on", seen, cut, taken)
    assert taken > 0, "what was dropped is what the next tier says: a draft of it must hold"
    assert seen.text == alone
    assert cut["repeated_bytes"] == cut["dropped_bytes"]


def accepted(server) -> float:
    """Draft tokens that the large tier has accepted so far."""
    name = "homeostat_spec_decode_num_accepted_tokens_total{"
    lines = [l for l in server.metrics().splitlines() if l.startswith(name) and "large" in l]
    return sum(float(l.rsplit(" ", 1)[1]) for l in lines)


def test_several_answers_to_one_question_are_left_and_continued_each_for_itself(twins):
    alone = text_of(twins.ask(QUESTION, model="small", max_tokens=MAX_TOKENS))
    body = {"model": "auto", "messages": [{"role": "user", "content": QUESTION}], "n": 2}
    body |= {"temperature": 0, "max_tokens": MAX_TOKENS, "stream": True, "logprobs": True}
    texts, tokens = ["", ""], [0, 0]
    with twins.http.stream("POST", "/v1/chat/completions", json=body) as response:
        for line in response.iter_lines():
            if line.startswith("data: {"):
                for choice in json.loads(line.removeprefix("data: "))["choices"]:
                    texts[choice["index"]] += choice["delta"].get("content") or ""
                    listed = (choice["logprobs"] or {}).get("content") or []
                    tokens[choice["index"]] += len(listed)
    assert texts == [alone, alone]
    # Every token has its log-probability, on both sides of the seam.
    assert tokens == [MAX_TOKENS, MAX_TOKENS]


def test_a_stop_string_is_found_after_the_seam(twins):
    alone = text_of(twins.ask(QUESTION, model="small", max_tokens=MAX_TOKENS))
    cut = the_cut(Seen(twins))
    rest = alone.encode()[cut["seam_bytes"] :].decode()
    # Words of the second tier's part that occur nowhere before.
    words = rest.split()
    stop = next(" ".join(pair) for pair in zip(words[2:], words[3:]) if alone.count(" ".join(pair)) == 1)
    seen = Seen(twins, stop=[stop])
    assert seen.finish == "stop"
    assert seen.text == alone.split(stop)[0]


def test_when_the_large_tier_is_gone_the_stream_goes_on_where_it_was(start, llama, tmp_path):
    template = tmp_path / "chatml.jinja"
    template.write_text(CHATML)
    config = settings.server() + settings.no_encoder() + settings.local_tier("small")
    by_text = dict(prefill="completions", chat_template=str(template))
    server = start(config + settings.remote_tier("large", llama.url, **by_text))
    put(server)
    alone = text_of(server.ask(QUESTION, model="small", max_tokens=MAX_TOKENS))
    llama.kill()
    seen = Seen(server)
    assert seen.text == alone
    first, second = seen.record["steps"]
    assert second["error"] and first["cut"] is None
    assert any("later step failed" in note for note in seen.record["notes"])
    assert "cuts" not in seen.last["homeostat"]
