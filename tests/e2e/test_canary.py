"""Candidates on live traffic: a bad one falls by itself, a good one takes over by itself."""

import re
import time

import pytest
from prometheus_client.parser import text_string_to_metric_families

import figures
import policy_files
import settings
from homeostat_process import ADMIN_TOKEN, run_cli, text_of, wait_until

WHO = "Which policy routes you?"
ROUTE = "/admin/v1/policies/route"
# All ask the same, so only a hash of the request can deal them out. The tolerance is wider
# than the default to keep the test short.
CANARY = '[policies.canary]\nshare = 0.5\nstick_to = "request"\ntolerance = 0.15\n'
REQUESTS_MAX = 10_000


@pytest.fixture
def server(start):
    server = start(settings.basic() + settings.no_encoder() + CANARY)
    put = server.http.put(f"{ROUTE}?name=answers-a", content=policy_files.build()["answers-a"])
    assert put.status_code == 200, put.text
    return server


def command(server, *words, check=True):
    env = {"HOMEOSTAT_HOST": server.url, "HOMEOSTAT_ADMIN_TOKEN": ADMIN_TOKEN}
    return run_cli("policy", *words, env=env, check=check)


def trial(server, mode: str) -> dict:
    response = server.http.get(f"{ROUTE}/{mode}")
    assert response.status_code == 200, response.text
    return response.json()


def active(server) -> str:
    hooks = server.http.get("/admin/v1/policies").json()["policies"]
    return next(h for h in hooks if h["hook"] == "route")["active"]["policy"]


def serve_until_the_end(server, name: str) -> tuple[list[str], dict]:
    """Requests until the canary has ended by itself; every one of them must be answered. Keeps
    how many it took, how long, one after the other, and how many of them were the candidate's."""
    answers = []
    began = time.monotonic()
    while len(answers) < REQUESTS_MAX:
        answers.append(text_of(server.ask(WHO)))
        assert answers[-1] in ("A", "B")
        found = trial(server, "canary")
        if found["ended"]:
            measures = {m["measure"]: m for m in found["canary"]["measures"]}
            figures.keep(
                name,
                requests=len(answers),
                candidate_calls=measures["fault"]["candidate_of"],
                seconds=round(time.monotonic() - began, 3),
                trial_seconds=(found["ended"]["unix_ms"] - found["since_unix_ms"]) / 1000,
                reason=found["ended"]["reason"],
            )
            return answers, found
    raise AssertionError(f"no end after {REQUESTS_MAX} requests: {found}")


def test_a_bad_canary_is_rolled_back_by_itself_and_a_good_one_promoted(server, tmp_path):
    policies = policy_files.build()
    for name in ("falls-often", "answers-b"):
        (tmp_path / f"{name}.wasm").write_bytes(policies[name])

    command(server, "canary", "start", "route", tmp_path / "falls-often.wasm")
    answers, found = serve_until_the_end(server, "a bad canary is rolled back")
    assert found["ended"]["how"] == "rolled-back", found
    assert found["ended"]["reason"].startswith("fault: "), found
    assert active(server) == "answers-a"
    assert "B" in answers, "the candidate never served"
    assert {text_of(server.ask(WHO)) for _ in range(20)} == {"A"}
    shown = command(server, "canary", "status", "route").stdout
    assert "falls-often" in shown and "rolled-back" in shown

    command(server, "canary", "start", "route", tmp_path / "answers-b.wasm")
    answers, found = serve_until_the_end(server, "a good canary is promoted")
    assert found["ended"]["how"] == "promoted", found
    assert active(server) == "answers-b"
    assert {text_of(server.ask(WHO)) for _ in range(20)} == {"B"}

    ended = {
        sample.labels["how"]: sample.value
        for family in text_string_to_metric_families(server.metrics())
        for sample in family.samples
        if sample.name == "homeostat_policy_trials_ended" and sample.labels["hook"] == "route"
    }
    assert ended["rolled-back"] == 1 and ended["promoted"] == 1

    # And back, by number.
    listed = command(server, "list").stdout
    number = re.search(r"kept: answers-a@(\d+)", listed).group(1)
    command(server, "rollback", "route", "--to", number)
    assert active(server) == "answers-a"
    refused = command(server, "rollback", "route", "--to", "999", check=False)
    assert refused.returncode == 1 and "999" in refused.stderr


def test_the_record_of_a_request_says_that_a_canary_answered_it(server):
    put = server.http.put(
        f"{ROUTE}/canary?name=answers-b", content=policy_files.build()["answers-b"]
    )
    assert put.status_code == 200, put.text
    seen = set()
    while len(seen) < 2:
        response = server.ask(WHO)
        by = server.record(response.headers["x-request-id"])["decision"]["by"]
        assert by.get("candidate", False) == (text_of(response) == "B"), by
        seen.add(text_of(response))
    stopped = server.http.delete(f"{ROUTE}/canary")
    assert stopped.json()["ended"]["how"] == "stopped", stopped.text
    assert server.http.delete(f"{ROUTE}/canary").status_code == 404


def test_a_shadow_counts_differences_and_serves_nobody(server):
    put = server.http.put(f"{ROUTE}/shadow", content=policy_files.build()["answers-b"])
    assert put.status_code == 200, put.text
    conflict = server.http.put(f"{ROUTE}/canary", content=policy_files.build()["answers-b"])
    assert conflict.status_code == 409, conflict.text
    for _ in range(10):
        assert text_of(server.ask(WHO)) == "A"

    def counted():
        shadow = trial(server, "shadow")["shadow"]
        dropped = shadow["dropped_full"] + shadow["dropped_busy"]
        return shadow if shadow["calls"] + dropped == 10 else None

    shadow = wait_until("the shadow has been asked", counted)
    # Both answer without a model: the kind of the decision is the same.
    assert shadow["calls"] and shadow["same"] == shadow["calls"], shadow
    assert "shadow of route" in command(server, "shadow", "status").stdout
    command(server, "shadow", "promote", "route")
    assert text_of(server.ask(WHO)) == "B"


def test_a_trial_takes_what_lies_beside_its_file(server, tmp_path):
    component = tmp_path / "asks-models.wasm"
    component.write_bytes(policy_files.build()["asks-models"])
    refused = command(server, "shadow", "start", "route", component, check=False)
    assert refused.returncode == 1 and "grants" in refused.stderr, refused.stderr
    (tmp_path / "asks-models.toml").write_text('grants = ["models"]\n')
    command(server, "shadow", "start", "route", component)
    command(server, "shadow", "stop", "route")
    command(server, "canary", "start", "route", component)


@pytest.mark.parametrize(
    "query, words",
    [
        ("share=0.9", ["0.9", "0.5"]),
        ("share=many", ["many"]),
        ("stick_to=luck", ["luck", "conversation"]),
    ],
)
def test_wrong_numbers_are_refused_in_words(server, query, words):
    put = server.http.put(
        f"{ROUTE}/canary?{query}", content=policy_files.build()["answers-b"]
    )
    assert put.status_code == 400, put.text
    message = put.json()["error"]["message"]
    assert all(word in message for word in words), message
