"""Five rules, each as one reading that changes and a decision that changes with it.

The decision is that of the default router. Why it came out so is asked of `homeostat explain`,
which also decides again as if the reading were the old one: then it must be the old decision.
"""

import asyncio

import settings
from homeostat_process import ADMIN_TOKEN, run_cli, wait_until
from prometheus_client.parser import text_string_to_metric_families
from test_heat import HARD, Gpu, empty, library, snapshot  # noqa: F401  (library: fixture)

# A machine that lacks nothing, for `explain --set`.
CALM = {"metabolism.state": "nominal", "metabolism.risk": 0, "metabolism.degrade-ratio": 0}
SEQUENCES = 8


def config(**telemetry) -> str:
    tier = dict(threads=1, max_sequences=SEQUENCES)
    text = settings.server() + settings.no_encoder() + settings.record()
    # One file serves as both, so what the larger one takes more has to be stated.
    text += settings.local_tier("small", joules_per_token=0.5, **tier)
    large = dict(rank=1, quality=settings.LARGE_QUALITY, joules_per_token=1.0)
    text += settings.local_tier("large", **large, **tier)
    return text + settings.telemetry(**telemetry)


def decided(server) -> tuple[str, list[dict]]:
    """Asks, and returns the request's id and the steps of its plan."""
    response = server.ask(HARD, max_tokens=4)
    assert response.status_code == 200, response.text
    request_id = response.headers["x-request-id"]
    decision = server.record(request_id)["decision"]
    assert decision["by"]["by"] == "component", decision
    return request_id, decision["value"]["plan"]["steps"]


def tiers(steps: list[dict]) -> list[str]:
    return [step["tier"] for step in steps]


def explained(server, request_id: str, **changed) -> str:
    path = f"/admin/v1/decisions/{request_id}/explanation"
    wait_until(path, lambda: server.http.get(path).status_code == 200)
    sets = [part for key, value in changed.items() for part in ("--set", f"{key}={value}")]
    command = ["explain", request_id, *sets, "--host", server.url, "--token", ADMIN_TOKEN]
    # Long reasons are broken into lines.
    return " ".join(run_cli(*command).stdout.split())


def felt(server, cause: str, *states: str):
    def feels():
        metabolism = snapshot(server)["metabolism"]
        return metabolism["causes"][cause] and metabolism["state"] in states and metabolism

    return wait_until(f"the host feels {cause}", feels)


def write(file, text: str):
    """In one step, as the kernel's files change."""
    file.parent.mkdir(parents=True, exist_ok=True)
    fresh = file.with_name(file.name + ".new")
    fresh.write_text(text)
    fresh.rename(file)


def test_near_throttling_a_smaller_tier_answers(start, library, tmp_path):  # noqa: F811
    gpu = Gpu(tmp_path)
    gpu.set(temperature=50)
    machine = config(nvml=library, sysfs_root=empty(tmp_path))
    server = start(machine, env={"FAKE_NVML_STATE": str(gpu.file)})
    assert tiers(decided(server)[1])[0] == "large"

    gpu.set(temperature=86)
    felt(server, "thermal", "constrained", "critical")
    request_id, steps = decided(server)
    assert tiers(steps) == ["small"]

    why = explained(server, request_id)
    assert "gpu.0 at 86 °C, margin 1 °C → state" in why and "(thermal)" in why, why
    cool = explained(server, request_id, **CALM, **{"metabolism.causes.thermal": "false"})
    assert 'plan.steps.0.tier: "small" -> "large"' in cool, cool


def test_with_headroom_it_speculates(start, library, tmp_path):  # noqa: F811
    gpu = Gpu(tmp_path)
    gpu.set(temperature=80)
    machine = config(nvml=library, sysfs_root=empty(tmp_path))
    server = start(machine, env={"FAKE_NVML_STATE": str(gpu.file)})

    def margin():
        devices = {device["id"]: device for device in snapshot(server)["devices"]}
        sample = devices["gpu.0"]["thermal_margin_celsius"]
        return sample and sample["value"]

    wait_until("little headroom", lambda: margin() == 7)
    assert [step["max_draft_tokens"] for step in decided(server)[1]][0] == 0

    gpu.set(temperature=50)
    wait_until("headroom", lambda: margin() == 37)
    wait_until("it is foreseen", lambda: snapshot(server)["metabolism"]["speculation"] == "prefer")
    request_id, steps = decided(server)
    assert steps[0]["max_draft_tokens"] > 0

    assert "headroom 37 °C" in explained(server, request_id)
    changed = {"metabolism.speculation": "neutral", "gpu.0.thermal-margin-celsius": 7}
    tight = explained(server, request_id, **changed)
    assert f"plan.steps.0.max-draft-tokens: {steps[0]['max_draft_tokens']} -> 0" in tight, tight


def test_on_battery_efficiency_comes_first(start, tmp_path):
    sysfs = empty(tmp_path)
    battery = sysfs / "class/power_supply/BAT0"

    def set(status: str):
        values = dict(type="Battery", energy_full=50_000_000, energy_now=20_000_000)
        for name, value in {**values, "power_now": 80_000_000, "status": status}.items():
            write(battery / name, f"{value}\n")

    set("Charging")
    server = start(config(nvml="off", sysfs_root=sysfs))
    wait_until("the battery is there", lambda: snapshot(server)["supply"])
    assert tiers(decided(server)[1])[0] == "large"

    set("Discharging")
    felt(server, "battery", "constrained")
    request_id, steps = decided(server)
    assert tiers(steps) == ["small"]

    why = explained(server, request_id)
    assert "on battery, 40 % left, 15 minutes" in why, why
    mains = {"metabolism.causes.battery": "false", "supply.on-battery": "false"}
    plugged = explained(server, request_id, **CALM, **mains)
    assert 'plan.steps.0.tier: "small" -> "large"' in plugged, plugged


def test_over_the_power_budget_the_minimal_tier_answers_briefly(start, tmp_path):
    server = start(config(nvml="off", sysfs_root=empty(tmp_path), power_cap_watts=300))

    def draws(watts: float):
        strip = {"id": "strip", "kind": "host", "power_watts": watts, "period_ms": 60_000}
        pushed = server.http.post("/admin/v1/telemetry", json={"devices": [strip]})
        assert pushed.status_code == 200, pushed.text

        def seen():
            devices = {device["id"]: device for device in snapshot(server)["devices"]}
            sample = devices.get("external.strip", {}).get("power_watts")
            return sample and sample["value"] == watts

        wait_until(f"it draws {watts} W", seen)

    draws(120)
    assert tiers(decided(server)[1])[0] == "large"

    draws(420)
    felt(server, "power", "critical")
    request_id, steps = decided(server)
    assert tiers(steps) == ["small"] and steps[0]["max_tokens"] is not None

    why = explained(server, request_id)
    assert "state critical (power)" in why, why
    below = explained(server, request_id, **CALM, **{"metabolism.causes.power": "false"})
    assert 'plan.steps.0.tier: "small" -> "large"' in below, below


def test_under_memory_pressure_batches_are_smaller_and_no_large_tier_answers(start, tmp_path):
    procfs = tmp_path / "procfs"

    def available(percent: int):
        write(procfs / "meminfo", f"MemTotal: 100000 kB\nMemAvailable: {percent * 1000} kB\n")

    available(70)
    machine = config(nvml="off", sysfs_root=empty(tmp_path), procfs_root=procfs)
    server = start(machine)
    assert tiers(decided(server)[1])[0] == "large"
    assert gauge(server, "max_requests_running") == SEQUENCES

    available(3)
    felt(server, "memory", "constrained")
    request_id, steps = decided(server)
    assert tiers(steps) == ["small"] and steps[0]["max_tokens"] is not None
    wait_until("batches are smaller", lambda: gauge(server, "max_requests_running") == 2)
    asyncio.run(answered_two_at_a_time(server))

    why = explained(server, request_id)
    assert "memory 97 % used" in why and "1 larger left out" in why, why
    room = {"metabolism.causes.memory": "false", "pressure.memory-used-bytes": 30_000 << 10}
    roomy = explained(server, request_id, **CALM, **room)
    assert 'plan.steps.0.tier: "small" -> "large"' in roomy, roomy


async def answered_two_at_a_time(server):
    """More requests than may run: the rest waits, and all are answered."""
    client = server.async_openai()
    messages = [{"role": "user", "content": "Count from one to one hundred."}]
    asked = [
        asyncio.create_task(
            client.chat.completions.create(model="small", messages=messages, max_tokens=100)
        )
        for _ in range(SEQUENCES)
    ]
    has_waited = False
    while not all(task.done() for task in asked):
        assert gauge(server, "num_requests_running") <= 2
        has_waited |= gauge(server, "num_requests_waiting") > 0
        await asyncio.sleep(0.02)
    assert has_waited, "all at once would have been the full batch"
    assert all(answer.choices[0].message.content for answer in await asyncio.gather(*asked))


def gauge(server, name: str) -> float:
    """Of the small tier."""
    (value,) = [
        sample.value
        for family in text_string_to_metric_families(server.metrics())
        for sample in family.samples
        if sample.name == f"homeostat_{name}" and sample.labels.get("model_name") == "small"
    ]
    return value
