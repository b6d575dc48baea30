"""A policy that never ends, while its client leaves or the host is told to stop."""

import signal

import httpx
import pytest

import policy_files
import settings
from homeostat_process import LIMIT_S, free_port, wait_until
from test_life_cycle import gauge

# Longer than a client waits, shorter than a drain.
DEADLINE_MS = 3000


@pytest.fixture
def server(start):
    server = start(
        settings.server(embedded_policies=False)
        + settings.no_encoder()
        + settings.remote_tier("nobody", f"http://127.0.0.1:{free_port()}/v1", rank=0)
        + f'[policies.route]\ngrants = ["keyvalue"]\nlimits = {{ deadline_ms = {DEADLINE_MS} }}\n'
    )
    put = server.http.put("/admin/v1/policies/route", content=policy_files.build()["counts"])
    assert put.status_code == 200, put.text
    return server


def leave_during_the_call(server):
    """Asks what is never answered, and hangs up."""
    body = {"model": "auto", "messages": [{"role": "user", "content": "loop"}]}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=0.5)


def test_a_client_that_leaves_during_a_policy_call_gives_its_slot_back(server):
    for _ in range(3):
        leave_during_the_call(server)
    assert gauge(server, "policy_instances") > 0
    wait_until("all slots are free", lambda: gauge(server, "policy_instances") == 0)
    assert server.ask("count").json()["choices"][0]["message"]["content"] == "1"


def test_a_shutdown_waits_for_a_policy_call_and_no_longer_than_it_may(server):
    leave_during_the_call(server)
    assert gauge(server, "policy_instances") > 0
    server.process.send_signal(signal.SIGTERM)
    # The fixture's stop checks that it has ended by itself, with 0 and without a panic.
    server.process.wait(LIMIT_S)
