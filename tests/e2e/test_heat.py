"""Heat moves requests to smaller tiers; what has no sensor is absent, never 0."""

import json
import subprocess

import pytest

import settings
from homeostat_process import ROOT, TARGET, run_cli, wait_until

# Hard enough that a cool machine asks the large tier.
HARD = (
    "Prove that the square root of 2 is irrational, then explain step by step, with a worked "
    "example in Python, how the proof generalises to the n-th root of any prime p, and compare "
    "it with the argument by infinite descent. Do not use more than 400 words."
)


@pytest.fixture(scope="module")
def library():
    """NVIDIA's library as `tests/fake-nvml` plays it."""
    command = ["cargo", "build", "--release", "--locked", "-p", "homeostat-fake-nvml"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return TARGET / "release" / "libhomeostat_fake_nvml.so"


class Gpu:
    """The state of the fake GPU, rewritten in one step as the library rereads it."""

    def __init__(self, folder):
        self.file = folder / "gpu.state"

    def set(self, **values):
        text = "".join(f"{key}={value}\n" for key, value in values.items())
        fresh = self.file.with_suffix(".new")
        fresh.write_text(text)
        fresh.rename(self.file)


@pytest.fixture
def gpu(tmp_path):
    return Gpu(tmp_path)


@pytest.fixture
def server(start, library, gpu, tmp_path):
    gpu.set(temperature=50)
    config = settings.server() + settings.no_encoder()
    config += settings.local_tier("small", threads=1)
    config += settings.local_tier("large", rank=1, quality=settings.LARGE_QUALITY, threads=1)
    config += settings.telemetry(nvml=library, sysfs_root=empty(tmp_path))
    return start(config, env={"FAKE_NVML_STATE": str(gpu.file)})


def empty(tmp_path):
    folder = tmp_path / "empty"
    folder.mkdir(exist_ok=True)
    return folder


def snapshot(server) -> dict:
    response = server.http.get("/admin/v1/telemetry")
    assert response.status_code == 200, response.text
    return response.json()


def devices(server) -> dict[str, dict]:
    return {device["id"]: device for device in snapshot(server)["devices"]}


def temperature(server) -> float | None:
    sample = devices(server)["gpu.0"]["temperature_celsius"]
    return sample and sample["value"]


def tier_of(server, **fields) -> str:
    response = server.ask(HARD, max_tokens=4, **fields)
    assert response.status_code == 200, response.text
    return response.headers["x-homeostat-tier"]


def test_at_86_degrees_the_same_request_goes_to_a_smaller_tier_than_at_50(server, gpu):
    wait_until("the GPU has 50 °C", lambda: temperature(server) == 50)
    assert snapshot(server)["metabolism"]["state"] == "nominal"
    assert tier_of(server) == "large"

    gpu.set(temperature=86)
    wait_until("the GPU has 86 °C", lambda: temperature(server) == 86)

    def hot():
        metabolism = snapshot(server)["metabolism"]
        return metabolism["state"] in ("constrained", "critical") and metabolism

    metabolism = wait_until("the host feels the heat", hot)
    assert metabolism["causes"]["thermal"] is True
    wait_until("the risk has grown", lambda: snapshot(server)["metabolism"]["risk"] > 0.8)
    response = server.ask(HARD, max_tokens=4)
    assert response.headers["x-homeostat-tier"] == "small"
    # The record holds what the policies saw.
    record = server.record(response.headers["x-request-id"])
    seen = {d["id"]: d for d in record["snapshot"]["devices"]}["gpu.0"]
    assert seen["temperature_celsius"]["value"] == 86
    assert seen["temperature_celsius"]["origin"] == "measured"


def test_the_readings_of_the_gpu_are_those_of_the_driver(server, gpu):
    gpu.set(temperature=61, power_mw=250_000, power_average_mw=250_000, gpu_util=40, name="Fake")
    wait_until("the GPU has 61 °C", lambda: temperature(server) == 61)
    device = devices(server)["gpu.0"]
    assert device["kind"] == "gpu" and device["health"] == "ok" and device["model"]
    assert device["power_watts"]["value"] == pytest.approx(250, rel=0.2)
    assert device["power_limit_watts"]["value"] == 700
    assert device["thermal_margin_celsius"]["value"] == pytest.approx(26, abs=1)
    assert device["memory_total_bytes"] == 140 << 30


def test_a_lost_gpu_is_a_lost_sensor_and_requests_go_on(server, gpu):
    wait_until("the GPU has 50 °C", lambda: temperature(server) == 50)
    assert server.ask("hi", max_tokens=2).status_code == 200
    gpu.set(temperature=50, fault="gpu_lost")

    def lost():
        metabolism = snapshot(server)["metabolism"]
        return metabolism["causes"]["sensor"] and metabolism

    wait_until("the sensor counts as lost", lost)
    wait_until("the device is lost", lambda: devices(server)["gpu.0"]["health"] == "lost")
    for _ in range(3):
        assert server.ask("hi", max_tokens=2).status_code == 200
    # A reading that is not renewed grows old, and then is absent; it never becomes 0.
    sample = devices(server)["gpu.0"]["temperature_celsius"]
    assert sample is None or (sample["value"] == 50 and sample["age_ms"] > 0)


def test_a_driver_that_hangs_holds_no_request(server, gpu):
    wait_until("the GPU has 50 °C", lambda: temperature(server) == 50)
    gpu.set(temperature=50, fault="hang")
    # Now its thread is inside a call that does not return; nobody waits for it.
    assert server.ask("hi", max_tokens=2).status_code == 200
    wait_until("the device is lost", lambda: devices(server)["gpu.0"]["health"] == "lost")
    assert server.ask("hi", max_tokens=2).status_code == 200
    sequence = snapshot(server)["sequence"]
    wait_until("the sampler goes on", lambda: snapshot(server)["sequence"] > sequence)
    gpu.set(temperature=51)
    wait_until("the GPU is back", lambda: devices(server)["gpu.0"]["health"] == "ok")
    assert temperature(server) == 51


def test_a_bare_machine_says_absent_and_never_0(start, tmp_path):
    config = settings.server() + settings.no_encoder()
    bare = empty(tmp_path)
    config += settings.telemetry(nvml="off", sysfs_root=bare, procfs_root=bare)
    server = start(config)
    assert server.ask("What is the capital of France?", max_tokens=2).status_code == 200
    seen = snapshot(server)
    assert [d for d in seen["devices"] if d["kind"] == "gpu"] == []
    for device in seen["devices"]:
        readings = {k: v for k, v in device.items() if k not in ("id", "kind", "model", "health")}
        assert all(value is None for value in readings.values()), device
    assert seen["supply"] is None
    # The occupation of the KV cache is the engine's own knowledge and needs no sensor.
    pressure = {k: v for k, v in seen["pressure"].items() if k != "kv_used_ratio"}
    assert all(value is None for value in pressure.values()), pressure
    assert seen["metabolism"]["state"] == "nominal"
    assert not any(seen["metabolism"]["causes"].values())
    assert seen["simulated"] is False
    assert "hw_" not in server.metrics(), "a sensor that does not exist has no metric"


def test_a_recording_holds_every_raw_call_and_the_snapshots(built, library, gpu, tmp_path):
    gpu.set(temperature=63, power_mw=250_000)
    config = tmp_path / "homeostat.toml"
    config.write_text(settings.telemetry(nvml=library, sysfs_root=empty(tmp_path)))
    out = tmp_path / "trace.jsonl"
    env = {"FAKE_NVML_STATE": str(gpu.file)}
    command = ["telemetry", "record", "--out", out, "--seconds", 1, "--period-ms", 50]
    run_cli(*command, "--config", config, env=env)
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert lines[0]["header"]["format"] == 1 and lines[0]["header"]["period_ms"] == 50
    calls = [line["call"] for line in lines if "call" in line]
    assert {"init", "energy", "fields", "temperature"} <= {call["call"] for call in calls}
    assert all(call["took_ns"] > 0 for call in calls)
    ticks = [line["tick"] for line in lines if "tick" in line]
    assert len(ticks) > 5
    device = ticks[-1]["snapshot"]["devices"][-1]
    assert device["temperature_celsius"]["value"] == 63
    assert device["power_watts"]["value"] == 250
    shown = run_cli("telemetry", "probe", "--times", 5, "--watch-ms", 5, "--config", config, env=env)
    assert "field 186" in shown.stdout and "no answer: not_supported" in shown.stdout


def test_what_a_power_strip_pushes_is_in_the_next_snapshots(server):
    strip = {"id": "strip", "power_watts": 412.5, "period_ms": 60_000}
    pushed = server.http.post("/admin/v1/telemetry", json={"devices": [strip]})
    assert pushed.status_code == 200 and pushed.json() == {"readings": 1}
    device = wait_until("the strip is there", lambda: devices(server).get("external.strip"))
    assert device["power_watts"]["value"] == 412.5
    refused = server.http.post("/admin/v1/telemetry", json={"devices": [{**strip, "watts": 1}]})
    assert refused.status_code == 400 and "watts" in refused.text


def test_on_this_machine_what_is_measured_is_plausible(shared):
    seen = snapshot(shared)
    assert seen["sequence"] > 0
    pressure = seen["pressure"]
    assert 0 < pressure["memory_used_bytes"] < pressure["memory_limit_bytes"]
    for device in seen["devices"]:
        sample = device["temperature_celsius"]
        assert sample is None or -40 < sample["value"] < 150
