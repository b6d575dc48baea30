"""What was decided can be explained, asked again with one value changed, and judged by
another policy, from recordings that outlive the host."""

import json

import pytest

import policy_files
import settings
from homeostat_process import ADMIN_TOKEN, run_cli, wait_until
from test_heat import Gpu, empty, library  # noqa: F401  (fixtures)

QUESTION = "What is the capital of France?"


@pytest.fixture
def server(start, library, tmp_path):  # noqa: F811
    gpu = Gpu(tmp_path)
    gpu.set(temperature=50)
    config = settings.server() + settings.no_encoder() + settings.record()
    config += settings.local_tier("small", threads=1)
    config += settings.local_tier("large", rank=1, quality=settings.LARGE_QUALITY, threads=1)
    config += settings.telemetry(nvml=library, sysfs_root=empty(tmp_path))
    running = start(config, env={"FAKE_NVML_STATE": str(gpu.file)})
    put = running.http.put(
        "/admin/v1/policies/route?name=cool", content=policy_files.build()["cool-below-90"]
    )
    assert put.status_code == 200, put.text

    def measured():
        devices = running.http.get("/admin/v1/telemetry").json()["devices"]
        sample = {d["id"]: d for d in devices}["gpu.0"]["temperature_celsius"]
        return sample and sample["value"] == 50

    wait_until("the GPU has 50 °C", measured)
    return running


def explain(server, *arguments, check=True):
    return run_cli("explain", *arguments, "--host", server.url, "--token", ADMIN_TOKEN, check=check)


def asked(server) -> str:
    response = server.ask(QUESTION, max_tokens=4)
    assert response.headers["x-homeostat-tier"] == "large", response.text
    request_id = response.headers["x-request-id"]
    path = f"/admin/v1/decisions/{request_id}/explanation"
    wait_until(path, lambda: server.http.get(path).status_code == 200)
    return request_id


def test_a_decision_is_explained_asked_again_hotter_and_judged_by_another_policy(server, tmp_path):
    ids = [asked(server) for _ in range(3)]
    text = explain(server, ids[0]).stdout
    for words in (QUESTION, "route by cool@", "temperature-celsius", "replay: the same"):
        assert words in text, text

    hot = explain(server, ids[0], "--set", "gpu.0.temperature-celsius=95").stdout
    assert "changed   snapshot.devices.gpu.0.temperature-celsius = 95" in hot
    assert 'first difference: plan.steps.0.tier: "large" -> "small"' in hot, hot

    wrong = explain(server, ids[0], "--set", "gpu.0.temprature-celsius=95", check=False)
    assert wrong.returncode == 1 and "gpu.0.temperature-celsius" in wrong.stderr, wrong.stderr
    unknown = explain(server, "chatcmpl-nobody", check=False)
    assert unknown.returncode == 1 and "chatcmpl-nobody" in unknown.stderr

    # The folder alone is enough, also after the host has gone.
    log = server.folder / "recordings"
    server.stop()
    again = run_cli("explain", ids[1], "--log", log, "--set", "gpu.0.temperature-celsius=95")
    assert '"large" -> "small"' in again.stdout

    candidate = tmp_path / "climbs.wasm"
    candidate.write_bytes(policy_files.build()["climbs"])
    report = run_cli("policy", "replay", "--candidate", candidate, "--log", log).stdout
    assert "3 requests, 3 calls: 0 the same, 3 changed, 0 misses, 0 faults" in report, report
    assert "large -> small > large (every tier in turn)" in report, report
    asked_again = run_cli("policy", "replay", "--candidate", candidate, "--log", log, "--json")
    moves = json.loads(asked_again.stdout)["moves"]
    assert moves["route"]["large"]["small > large"] == 3

    # What both decisions are worth, from the models themselves.
    execute = ["policy", "replay", "--candidate", candidate, "--log", log, "--execute", "2"]
    report = run_cli(*execute, "--config", server.config_path).stdout
    assert "executed 2 of 3 moved routes" in report, report
    assert "  recorded  large: 4 tokens" in report, report
    assert "  candidate small > large: " in report, report
    real = json.loads(run_cli(*execute, "--json", "--config", server.config_path).stdout)
    for run in real["executed"]["runs"]:
        assert run["recorded"]["real"]["tokens"] == 4 and run["id"] in ids, run
        assert run["recorded"]["predicted"]["tokens"] == 4, run
        assert run["candidate"]["real"]["milliseconds"] > 0, run
    elsewhere = run_cli(*execute, check=False)
    assert elsewhere.returncode == 1 and "--config" in elsewhere.stderr, elsewhere.stderr

    same = tmp_path / "same.wasm"
    same.write_bytes(policy_files.build()["cool-below-90"])
    report = run_cli("policy", "replay", "--candidate", same, "--log", log, "--hook", "route").stdout
    assert "3 calls: 3 the same, 0 changed" in report, report


def test_a_policy_that_would_decide_recorded_traffic_otherwise_is_refused(start):
    policies = policy_files.build()
    config = settings.basic() + settings.no_encoder() + settings.record() + settings.replay()
    server = start(config)
    put = lambda name: server.http.put(  # noqa: E731
        f"/admin/v1/policies/route?name={name}", content=policies[name]
    )
    first = put("answers-a")
    assert first.status_code == 200 and "policies.replay.dir" in first.text, first.text
    who = "Which policy routes you?"  # which it answers itself
    request_id = server.ask(who).headers["x-request-id"]
    path = f"/admin/v1/decisions/{request_id}/explanation"
    wait_until(path, lambda: server.http.get(path).status_code == 200)
    refused = put("climbs")
    assert refused.status_code == 422, refused.text
    assert "refused_at_replay" in refused.text and "max_changed" in refused.text, refused.text
    assert put("answers-a").json()["replay"]["calls"] == 1
    assert server.ask(who).headers["x-homeostat-tier"] == "direct", "the running one is untouched"


def test_without_recordings_the_story_is_told_and_says_what_is_missing(shared):
    response = shared.ask(QUESTION, max_tokens=2)
    request_id = response.headers["x-request-id"]
    shared.record(request_id)
    told = explain(shared, request_id).stdout
    assert "ending    sent" in told and "policies.record.dir is not set" in told, told
    refused = explain(shared, request_id, "--set", "metabolism.state=critical", check=False)
    assert refused.returncode == 1 and "policies.record.dir" in refused.stderr
