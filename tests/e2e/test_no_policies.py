"""A host without any policy still answers."""

import settings
from homeostat_process import text_of, wait_until

HOOKS = ("classify", "route", "validate")


def answered_by(server) -> dict[str, str]:
    """Who answered each hook of a fresh request."""
    response = server.ask("What is the capital of France?", max_tokens=24)
    assert "Paris" in text_of(response)
    record = server.record(response.headers["x-request-id"])
    return {
        "classify": record["classification"]["by"]["by"],
        "route": record["decision"]["by"]["by"],
        "validate": record["steps"][-1]["verdict"]["by"]["by"],
        "header": response.headers["x-homeostat-policy"],
    }


BUILT_IN = dict.fromkeys(HOOKS, "built-in")


def is_built_in(found: dict[str, str]) -> bool:
    assert "built-in" in found["header"], found
    return {hook: found[hook] for hook in HOOKS} == BUILT_IN


def test_without_the_embedded_policies_the_built_in_answers_serve(start):
    server = start(settings.server(embedded_policies=False))
    assert is_built_in(answered_by(server))
    # Arithmetic is a policy's talent: the built-in router asks the model.
    response = server.ask("What is 17 * 23?")
    assert response.headers["x-homeostat-tier"] == "smollm2"


def test_unloading_all_three_policies_leaves_a_working_server(start):
    server = start()
    before = answered_by(server)
    assert all(before[hook] == "component" for hook in HOOKS), before
    for hook in HOOKS:
        response = server.http.delete(f"/admin/v1/policies/{hook}")
        assert response.status_code in (200, 204), response.text
    assert is_built_in(answered_by(server))
    restored = server.http.post("/admin/v1/policies/route/rollback")
    assert restored.status_code == 200, restored.text
    wait_until("route is a component again", lambda: answered_by(server)["route"] == "component")
