"""A small local tier, llama.cpp's server as the large one, and answers that are doubted."""

import json

import pytest

import policy_files
import settings
from homeostat_process import text_of, wait_until

QUESTION = "Name three colours."


def config(llama) -> str:
    text = settings.server() + settings.no_encoder()
    text += settings.local_tier("small")
    return text + settings.remote_tier("large", llama.url)


@pytest.fixture
def server(start, llama):
    server = start(config(llama))
    (server.policies / "route.wasm").write_bytes(policy_files.build()["climbs"])
    wait_for_route(server, "climbs")
    wait_until_ready(server, "large")
    return server


def wait_for_route(server, reason: str):
    def routed():
        answer = server.ask("ping", max_tokens=1)
        decision = server.record(answer.headers["x-request-id"])["decision"]
        return decision["by"]["by"] == "component" and "every tier" in json.dumps(decision)

    wait_until(f"route is answered by {reason}", routed)


def wait_until_ready(server, tier: str):
    def ready():
        answer = server.ask("ping", max_tokens=1)
        tiers = server.record(answer.headers["x-request-id"])["tiers"]
        return next(t for t in tiers if t["id"] == tier)["ready"]

    wait_until(f"tier {tier} is ready", ready)


def test_a_doubted_answer_is_escalated_and_the_record_tells_the_story(server):
    response = server.ask(QUESTION)
    assert text_of(response)
    assert response.headers["x-homeostat-tier"] == "large"
    assert response.json()["homeostat"]["escalations"] == 1
    record = server.record(response.headers["x-request-id"])
    assert record["ending"] == "sent" and record["tier"] == "large"
    first, second = record["steps"]
    assert (first["tier"], first["sent"]) == ("small", False)
    assert (second["tier"], second["sent"]) == ("large", True)
    verdict = first["verdict"]["value"]
    assert "escalate" in verdict, verdict
    assert 0 <= verdict["escalate"]["confidence"] < 1
    assert verdict["escalate"]["findings"], "a verdict gives its reasons"
    assert all(f["check"] and f["detail"] for f in verdict["escalate"]["findings"])
    assert first["completion_tokens"] > 0 and second["completion_tokens"] > 0
    usage = response.json()["usage"]
    assert usage["completion_tokens"] == second["completion_tokens"]
    everything = first["completion_tokens"] + second["completion_tokens"]
    assert record["usage"]["generated_tokens_all_steps"] == everything


def test_an_escalated_stream_shows_only_the_answer_that_counts(server):
    chunks = []
    request_id = None
    body = {"model": "auto", "messages": [{"role": "user", "content": QUESTION}]}
    body |= {"temperature": 0, "max_tokens": 16, "stream": True}
    with server.http.stream("POST", "/v1/chat/completions", json=body) as response:
        assert response.status_code == 200
        assert response.headers["x-homeostat-tier"] == "large"
        request_id = response.headers["x-request-id"]
        for line in response.iter_lines():
            if line.startswith("data: ") and line != "data: [DONE]":
                chunks.append(json.loads(line.removeprefix("data: ")))
    text = "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks if c["choices"])
    record = server.record(request_id)
    first, second = record["steps"]
    assert not first["sent"] and second["sent"]
    assert len(text.encode()) == second["bytes"] > 0
    assert {c["model"] for c in chunks} == {"large"}
    assert [c["choices"][0]["delta"].get("role") for c in chunks if c["choices"]].count(
        "assistant"
    ) == 1


def test_an_answer_that_is_not_the_json_asked_for_is_doubted(server):
    # Cut off before its end.
    response = server.ask(QUESTION, response_format={"type": "json_object"}, max_tokens=3)
    assert response.status_code == 200
    record = server.record(response.headers["x-request-id"])
    verdict = record["steps"][0]["verdict"]["value"]
    failed = [f["check"] for f in verdict["escalate"]["findings"] if not f["passed"]]
    assert "json" in " ".join(failed), verdict


def test_the_client_may_name_a_tier_and_is_not_escalated(server):
    response = server.ask(QUESTION, model="small")
    assert response.headers["x-homeostat-tier"] == "small"
    response = server.ask(QUESTION, model="large")
    assert response.headers["x-homeostat-tier"] == "large"
    assert response.json()["homeostat"]["escalations"] == 0


def test_when_the_remote_server_dies_nothing_hangs(server, llama):
    assert server.ask(QUESTION).headers["x-homeostat-tier"] == "large"
    llama.kill()
    for stream in (False, True):
        response = server.ask(QUESTION, stream=stream)
        assert response.status_code == 200, response.text
        assert response.headers["x-homeostat-tier"] == "small"
        record = server.record(response.headers["x-request-id"])
        assert record["ending"] == "sent" and record["steps"][0]["sent"]
    named = server.ask(QUESTION, model="large")
    assert named.status_code == 503, named.text
    assert "large" in named.json()["error"]["message"]
    assert "retry-after" in named.headers
