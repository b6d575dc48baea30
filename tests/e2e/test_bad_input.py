"""What a client or an operator may get wrong. Each gets an answer that says what is wrong
and what to do, and what runs is not disturbed."""

import json
import shutil

import pytest

import settings
from homeostat_process import GENERATIVE, GGUF_NAME, Homeostat, cache_folder, gguf, run_cli, text_of

CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def server(shared):
    """After all of these tests a normal request works."""
    yield shared
    answer = shared.ask("What is the capital of France?", max_tokens=24)
    assert "Paris" in text_of(answer)


def post(server, body: bytes, content_type="application/json", path=CHAT):
    return server.http.post(path, content=body, headers={"content-type": content_type})


def refused(response, status: int, *words: str) -> dict:
    """The answer is an OpenAI error with this status whose message has all of `words`."""
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    for word in words:
        assert word in error["message"], error
    return error


def messages(text="hi"):
    return [{"role": "user", "content": text}]


@pytest.mark.parametrize("path", [CHAT, "/v1/completions", "/v1/embeddings"])
@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"messages": [}', ["JSON", "line 1 column"]),
        (b"", ["empty"]),
        (b"[]", ["array", "object"]),
        (b'{"model": "\xff\xfe"}', ["UTF-8", "byte"]),
        (b"[" * 50_000 + b"]" * 50_000, ["JSON"]),
    ],
    ids=["half", "empty", "array", "utf8", "deep"],
)
def test_a_body_that_is_no_json_object(server, path, body, words):
    refused(post(server, body, path=path), 400, *words)


def test_an_unknown_model_is_answered_with_the_known_ones(server):
    error = refused(server.ask("hi", model="gpt-9"), 404, "gpt-9", "auto", "smollm2")
    assert error["code"] == "model_not_found" and error["param"] == "model"
    answer = server.http.post("/v1/embeddings", json={"model": "gpt-9", "input": "a"})
    refused(answer, 404, "gpt-9", "all-minilm-l6-v2")


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"temperature": 9}, "temperature", ["9", "0", "2"]),
        ({"temperature": "hot"}, "temperature", ["hot", "number"]),
        ({"top_p": 0}, "top_p", ["0"]),
        ({"max_tokens": 0}, "max_tokens", ["0", "1"]),
        ({"max_tokens": -5}, "max_tokens", ["-5"]),
        ({"n": 1000}, "n", ["1000"]),
        ({"stop": [1]}, "stop", ["string"]),
        ({"logit_bias": {"1": 500}}, "logit_bias", ["500", "100"]),
        ({"messages": []}, "messages", ["empty", "at least one"]),
        ({"messages": [{"role": "robot", "content": "a"}]}, "messages[0].role", ["robot"]),
        ({"messages": [{"role": "user", "content": 7}]}, "messages[0].content", ["number"]),
        ({"tools": [{"type": "function"}]}, "tools", ["not supported"]),
    ],
)
def test_impossible_parameters_are_named(server, fields, param, words):
    error = refused(server.ask("hi", **fields), 400, *words)
    assert error["param"] == param


def test_a_token_that_the_model_does_not_have_is_refused(server):
    refused(server.ask("hi", logit_bias={"99999999": 1}), 400, "99999999")


@pytest.mark.parametrize("stream", [False, True])
def test_a_context_that_is_too_long_is_answered_with_both_numbers(server, stream):
    context = 8192
    response = server.ask("word " * 9000, stream=stream)
    error = refused(response, 400, str(context))
    assert error["code"] == "context_length_exceeded"
    numbers = [int(n) for n in "".join(c if c.isdigit() else " " for c in error["message"]).split()]
    assert any(9000 <= n <= 10_000 for n in numbers), error["message"]


def test_a_body_of_ten_megabytes_is_refused(server):
    body = json.dumps({"model": "auto", "messages": messages("x" * 10_000_000)}).encode()
    response = server.http.post(CHAT, content=body, headers={"content-type": "application/json"})
    refused(response, 413, "8388608")


def test_a_body_without_a_length_is_cut_off_at_the_limit(server):
    def pieces():
        for _ in range(160):
            yield b" " * 65_536

    headers = {"content-type": "application/json"}
    response = server.http.post(CHAT, content=pieces(), headers=headers)
    refused(response, 413)


def test_a_wrong_content_type_is_named(server):
    body = json.dumps({"messages": messages()}).encode()
    refused(post(server, body, "text/plain"), 415, "text/plain", "application/json")


def test_unknown_paths_and_methods_are_answered_in_the_same_shape(server):
    refused(server.http.get("/v1/chat"), 404, "/v1/chat")
    wrong = server.http.get(CHAT)
    refused(wrong, 405, "GET", CHAT)
    assert "POST" in wrong.headers["allow"]


def test_the_admin_api_wants_its_token(server):
    for headers in ({"authorization": "Bearer wrong"}, {"authorization": ""}):
        response = server.http.get("/admin/v1/policies", headers=headers)
        refused(response, 401, "token")


def test_a_field_that_nobody_reads_is_reported_and_not_fatal(server):
    response = server.ask("hi", temprature=1, max_tokens=2)
    assert response.status_code == 200
    assert "temprature" in response.headers["x-homeostat-ignored"]


# ---- what an operator may get wrong ------------------------------------------------------


def fails_to_start(tmp_path, config: str, *words: str, env=None) -> str:
    server = Homeostat(tmp_path, config)
    done = run_cli("serve", "--config", server.config_path, cwd=tmp_path, env=env, check=False)
    output = done.stdout + done.stderr
    assert done.returncode in (1, 2), output
    assert "panicked" not in output
    for word in words:
        assert word in output, output
    return output


def test_a_misspelt_setting_is_answered_with_the_nearest_one(tmp_path):
    config = settings.server(max_boddy_bytes=1)
    output = fails_to_start(tmp_path, config, "max_boddy_bytes", "max_body_bytes", "line 3")
    assert "homeostat.toml" in output


@pytest.mark.parametrize("damage", ["truncated", "empty", "garbage", "flipped"])
def test_a_corrupt_gguf_is_refused_by_name(tmp_path, damage):
    whole = gguf().read_bytes()
    broken = {
        "truncated": whole[: len(whole) // 3],
        "empty": b"",
        "garbage": b"GGUF" + bytes(range(256)) * 64,
        # The count of tensors: an absurd number must not be believed.
        "flipped": whole[:8] + b"\xff" * 8 + whole[16:100_000],
    }[damage]
    path = tmp_path / "broken.gguf"
    path.write_bytes(broken)
    config = settings.server() + settings.no_encoder()
    config += settings.local_tier("small", path=path)
    fails_to_start(tmp_path, config, "broken.gguf")


@pytest.fixture
def damaged_cache(tmp_path):
    """A cache whose generative model is truncated, as by a broken download."""
    cache = tmp_path / "cache"
    folder = cache / "models" / GENERATIVE
    folder.mkdir(parents=True)
    encoder = "all-minilm-l6-v2"
    (cache / "models" / encoder).symlink_to(cache_folder() / "models" / encoder)
    with gguf().open("rb") as whole, (folder / GGUF_NAME).open("wb") as part:
        shutil.copyfileobj(whole, part, 1 << 20)
        part.truncate(50_000_000)
    return cache


def test_a_truncated_model_in_the_cache_is_refused_by_name(tmp_path, damaged_cache):
    env = {"HOMEOSTAT_CACHE": str(damaged_cache)}
    words = [GGUF_NAME, "50000000", "98362432", "homeostat models pull"]
    fails_to_start(tmp_path, settings.basic(), *words, env=env)
    listed = run_cli("models", "list", cwd=tmp_path, env=env).stdout
    line = next(line for line in listed.splitlines() if GENERATIVE in line)
    healthy = run_cli("models", "list", cwd=tmp_path).stdout
    assert line not in healthy.splitlines(), "the list does not tell a damaged model"


def test_a_model_that_was_never_fetched_is_asked_for_by_name(tmp_path):
    env = {"HOMEOSTAT_CACHE": str(tmp_path / "nothing")}
    fails_to_start(tmp_path, settings.basic(), "homeostat models pull", env=env)


def test_a_port_that_is_taken_is_named(tmp_path, shared):
    config = settings.server(listen=f"127.0.0.1:{shared.port}")
    fails_to_start(tmp_path, config, str(shared.port))
