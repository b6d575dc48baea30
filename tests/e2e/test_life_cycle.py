"""Starting, stopping, leaving, watching."""

import collections
import json
import signal
import threading

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

import settings
from homeostat_process import ADMIN_TOKEN, GENERATIVE, LIMIT_S, Homeostat, run_cli, wait_until

LONG = {"model": "auto", "temperature": 0, "stream": True, "max_tokens": 400}
STORY = [{"role": "user", "content": "Write a long story about a lighthouse."}]
# Without this a small model may end its story early.
NO_END = {"logit_bias": {"2": -100, "0": -100}}


def gauge(server, name: str) -> float:
    samples = [
        sample.value
        for family in text_string_to_metric_families(server.metrics())
        for sample in family.samples
        if sample.name.endswith(name)
    ]
    assert samples, f"no metric {name} in:\n{server.metrics()}"
    return sum(samples)


def events(response):
    for line in response.iter_lines():
        if line.startswith("data: "):
            yield line.removeprefix("data: ")


def test_with_no_configuration_at_all_it_runs_on_the_embedded_defaults(start):
    server = start("")
    answer = server.ask("What is the capital of France?", max_tokens=24)
    assert "Paris" in answer.json()["choices"][0]["message"]["content"]


def test_a_termination_signal_lets_streams_end_whole(start):
    # However slow this machine is, the stream shall not be cut by the limit of the drain.
    server = start(settings.server(drain_seconds=int(LIMIT_S)))
    with server.http.stream(
        "POST", "/v1/chat/completions", json=LONG | NO_END | {"messages": STORY}
    ) as response:
        pieces = events(response)
        chunks = [json.loads(next(pieces)) for _ in range(3)]
        server.process.send_signal(signal.SIGTERM)
        wait_until("new requests are refused", lambda: refuses(server))
        rest = list(pieces)
    assert rest[-1] == "[DONE]"
    chunks += [json.loads(piece) for piece in rest[:-1]]
    assert not any("error" in chunk for chunk in chunks)
    reasons = [c["choices"][0]["finish_reason"] for c in chunks if c["choices"]]
    assert reasons[-1] in ("stop", "length")
    assert server.process.wait(LIMIT_S) == 0


def refuses(server) -> bool:
    """A draining server either does not accept or says that it is not ready."""
    try:
        return httpx.get(f"{server.url}/readyz").status_code == 503
    except httpx.TransportError:
        return True


def test_a_second_start_on_the_same_folder_works(start):
    server = start()
    assert server.ask("What is 1 + 1?").status_code == 200
    server.stop()
    again = Homeostat(server.folder, settings.basic()).start()
    try:
        assert again.ask("What is 1 + 1?").status_code == 200
    finally:
        again.stop()


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_ends_its_generation(start, stream):
    server = start()
    body = LONG | NO_END | {"messages": STORY, "stream": stream, "max_tokens": 4000}
    leave = threading.Event()

    def ask_and_leave():
        with httpx.Client(timeout=LIMIT_S) as client:
            url = f"{server.url}/v1/chat/completions"
            if stream:
                with client.stream("POST", url, json=body) as response:
                    pieces = events(response)  # dropping it would close the connection
                    next(pieces)
                    leave.wait(LIMIT_S)
            else:
                try:
                    client.post(url, json=body, timeout=2)
                except httpx.ReadTimeout:
                    pass

    client = threading.Thread(target=ask_and_leave, daemon=True)
    client.start()
    wait_until("the request runs", lambda: gauge(server, "num_requests_running") > 0)
    leave.set()
    client.join()
    wait_until("nothing runs", lambda: gauge(server, "num_requests_running") == 0)
    # Its blocks are free again: the next request is served.
    assert server.ask("hi", max_tokens=2).status_code == 200


def test_metrics_are_prometheus_text_and_count(shared):
    before = text_families(shared)
    asked = shared.ask("What is the capital of Spain?", max_tokens=4)
    shared.record(asked.headers["x-request-id"])
    after = text_families(shared)
    assert all(name.startswith(("homeostat_", "hw_")) for name in after), sorted(after)
    grown = {name for name, value in after.items() if value > before[name]}
    for name in ("requests", "prompt_tokens", "generation_tokens", "hook_calls"):
        assert f"homeostat_{name}_total" in grown, grown


def text_families(server) -> collections.Counter:
    response = server.http.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    found = collections.Counter()
    for family in text_string_to_metric_families(response.text):
        for sample in family.samples:
            found[sample.name] += sample.value
    return found


def test_health_and_readiness_answer(shared):
    assert shared.http.get("/healthz").status_code == 200
    assert shared.http.get("/readyz").status_code == 200


# ---- the command line --------------------------------------------------------------------


@pytest.fixture
def host(shared):
    return {"HOMEOSTAT_HOST": shared.url, "HOMEOSTAT_ADMIN_TOKEN": ADMIN_TOKEN}


def test_explain_tells_why_a_request_was_answered_as_it_was(shared, host):
    direct = shared.ask("What is 17 * 23?").headers["x-request-id"]
    model = shared.ask("What is the capital of Italy?", max_tokens=4).headers["x-request-id"]
    shared.record(direct), shared.record(model)
    text = run_cli("explain", direct, env=host).stdout
    assert direct in text and "arithmetic" in text
    text = run_cli("explain", model, env=host).stdout
    assert "smollm2" in text and "route" in text and "classify" in text
    latest = run_cli("explain", env=host).stdout
    assert direct in latest and model in latest
    unknown = run_cli("explain", "no-such-id", env=host, check=False)
    assert unknown.returncode == 1 and "no-such-id" in unknown.stdout + unknown.stderr


def test_policy_list_names_the_three_policies(host):
    text = run_cli("policy", "list", env=host).stdout
    for name in ("classify-lexical", "route-metabolic", "validate-facts"):
        assert name in text


def test_a_command_without_its_host_says_so(shared):
    env = {"HOMEOSTAT_HOST": "http://127.0.0.1:9"}
    done = run_cli("policy", "list", env=env, check=False)
    assert done.returncode == 1
    assert "127.0.0.1:9" in done.stderr


def test_models_list_names_the_models_and_where_they_are():
    text = run_cli("models", "list").stdout
    assert GENERATIVE in text and "all-minilm-l6-v2" in text


def test_the_printed_configuration_is_accepted(tmp_path):
    file = tmp_path / "homeostat.toml"
    file.write_text(run_cli("config", "print").stdout)
    run_cli("config", "check", "--config", file)
    file.write_text("[server]\nlisten_at = 1\n")
    wrong = run_cli("config", "check", "--config", file, check=False)
    assert wrong.returncode == 2 and "listen_at" in wrong.stderr


def test_logs_are_json_when_asked(start):
    server = start(settings.basic() + '[log]\nformat = "json"\n')
    server.ask("What is 1 + 1?")
    lines = [line for line in server.log().splitlines() if line.strip()]
    assert lines and all(isinstance(json.loads(line), dict) for line in lines)
