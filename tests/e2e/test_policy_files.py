"""Policies are replaced by copying files; whatever is not a policy changes nothing."""

import time

import pytest

import policy_files
import settings
from homeostat_process import text_of, wait_until

WHO = "Which policy routes you?"


@pytest.fixture
def server(start):
    return start(settings.basic() + settings.no_encoder())


def hook(server, name="route") -> dict:
    """What the admin API says about one hook."""
    response = server.http.get("/admin/v1/policies")
    assert response.status_code == 200, response.text
    return next(h for h in response.json()["policies"] if h["hook"] == name)


def routes_as(server, answer: str) -> bool:
    response = server.ask(WHO)
    return response.headers["x-homeostat-tier"] == "direct" and text_of(response) == answer


def routed_by_default(server) -> bool:
    response = server.ask("What is 17 * 23?")
    return response.headers["x-homeostat-tier"] == "direct" and "391" in text_of(response)


def test_a_copied_file_changes_the_next_answers_and_deleting_it_changes_them_back(server):
    policies = policy_files.build()
    assert routed_by_default(server)
    file = server.policies / "route.wasm"
    file.write_bytes(policies["answers-a"])
    wait_until("A routes", lambda: routes_as(server, "A"))
    assert not routed_by_default(server), "A knows no arithmetic"
    file.write_bytes(policies["answers-b"])
    wait_until("B routes", lambda: routes_as(server, "B"))
    response = server.ask("Tell me something.", max_tokens=16)
    assert response.json()["usage"]["completion_tokens"] <= 6
    record = server.record(response.headers["x-request-id"])
    assert record["decision"]["by"]["by"] == "component"
    assert record["decision"]["value"]["plan"]["reason"] == "as B does"
    file.unlink()
    wait_until("the default routes", lambda: routed_by_default(server))


def test_a_file_that_is_written_slowly_is_not_read_half(server):
    whole = policy_files.build()["answers-a"]
    file = server.policies / "route.wasm"
    with file.open("wb") as out:
        step = len(whole) // 6 + 1
        for at in range(0, len(whole), step):
            out.write(whole[at : at + step])
            out.flush()
            assert routed_by_default(server)
            time.sleep(0.5)  # longer than the folder is left alone, so that halves are seen
    wait_until("A routes", lambda: routes_as(server, "A"))


BROKEN = {
    "half": (lambda: policy_files.build()["answers-b"][:20_000], ["incomplete"]),
    "empty": (lambda: b"", ["empty"]),
    "core-module": (lambda: policy_files.CORE_MODULE, ["core module", "component"]),
    "text": (lambda: b"I am a policy.\n", ["not WebAssembly"]),
    "foreign-import": (
        lambda: policy_files.component(
            imports="wasi:sockets/tcp@0.2.0", exports="homeostat:policy/router@0.1.0"
        ),
        ["wasi:sockets/tcp@0.2.0"],
    ),
    "not-granted": (lambda: policy_files.build()["asks-models"], ["homeostat:policy/models", "grants"]),
    "other-version": (
        lambda: policy_files.component(
            imports="homeostat:policy/types@0.9.0", exports="homeostat:policy/router@0.9.0"
        ),
        ["0.9.0", "0.1.0"],
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_policy_leaves_the_running_one_and_says_why(server, name):
    make, words = BROKEN[name]
    server.policies.joinpath("route.wasm").write_bytes(policy_files.build()["answers-a"])
    wait_until("A routes", lambda: routes_as(server, "A"))
    before = hook(server)

    put = server.http.put("/admin/v1/policies/route", content=make())
    assert put.status_code == 422, put.text
    says(put.json()["error"]["message"], words)
    assert routes_as(server, "A")

    copied = time.time() * 1000
    (server.policies / "route.wasm").write_bytes(make())

    def refused():
        assert routes_as(server, "A"), "the running policy was disturbed"
        now = hook(server)
        assert now["active"] == before["active"]
        attempt = now["last_attempt"]
        return not attempt["accepted"] and attempt["unix_ms"] >= copied and attempt["text"]

    says(wait_until("the refusal is reported", refused), words)
    # And a good file after a bad one is taken.
    (server.policies / "route.wasm").write_bytes(policy_files.build()["answers-b"])
    wait_until("B routes", lambda: routes_as(server, "B"))


def says(text: str, words: list[str]):
    missing = [word for word in words if word.lower() not in text.lower()]
    assert not missing, text


def test_rollback_restores_the_last_good_policy(server):
    policies = policy_files.build()
    for name in ("answers-a", "answers-b"):
        put = server.http.put("/admin/v1/policies/route", content=policies[name])
        assert put.status_code == 200, put.text
    assert routes_as(server, "B")
    assert server.http.post("/admin/v1/policies/route/rollback").status_code == 200
    assert routes_as(server, "A")


def test_a_granted_power_is_given(start):
    text = settings.basic() + settings.no_encoder() + '[policies.route]\ngrants = ["models"]\n'
    server = start(text)
    put = server.http.put(
        "/admin/v1/policies/route", content=policy_files.build()["asks-models"]
    )
    assert put.status_code == 200, put.text
    response = server.ask("hi", max_tokens=2)
    record = server.record(response.headers["x-request-id"])
    assert record["decision"]["value"]["plan"]["reason"] == "1 models"


def test_an_unknown_hook_is_refused_by_name(server):
    put = server.http.put("/admin/v1/policies/router", content=policy_files.CORE_MODULE)
    assert put.status_code == 404, put.text
    assert "classify, route, validate" in put.json()["error"]["message"].replace(" or ", ", ")
