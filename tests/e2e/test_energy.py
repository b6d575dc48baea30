"""Every answer says what it cost in joules, how that is known, and how well."""

import asyncio

from prometheus_client.parser import text_string_to_metric_families

import settings
from homeostat_process import wait_until

CONCURRENT = 200


def config(tmp_path, encoder=False, **energy) -> str:
    """One tier on a machine without sensors, so that every machine gives the same kind of number."""
    empty = tmp_path / "empty"
    empty.mkdir()
    parts = [settings.server(), settings.local_tier("small", threads=1)]
    parts += [] if encoder else [settings.no_encoder()]
    parts += [settings.telemetry(sysfs_root=empty, nvml="off"), settings.energy(**energy)]
    return "".join(parts)


def settled(server, id: str) -> dict:
    def receipt():
        response = server.http.get(f"/v1/requests/{id}/energy")
        assert response.status_code == 200, response.text
        energy = response.json()["energy"]
        return energy if energy["settled"] else None

    return wait_until(f"the energy of {id} is settled", receipt)


def joules(server, name: str) -> dict[tuple, float]:
    return {
        tuple(sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(server.metrics())
        for sample in family.samples
        if sample.name == name
    }


def first_window(server):
    """Until the books have seen some time, nothing can be expected of an answer."""

    def seen():
        return any(joules(server, "homeostat_energy_idle_joules_total").values())

    wait_until("the first window", seen)


def microjoules(value: float) -> int:
    return round(value * 1e6)


def test_a_receipt_says_what_it_knows_and_settles(start, tmp_path):
    server = start(config(tmp_path))
    first_window(server)
    answer = server.ask("Count from one to twenty.", max_tokens=48).json()
    energy = answer["usage"]["energy"]
    assert energy["joules"] > 0
    assert (energy["origin"], energy["boundary"]) == ("modelled", "cpu")
    assert energy["relative_error"] >= 0.6
    final = settled(server, answer["id"])
    assert final["joules"] > 0 and final["pending_joules"] == 0
    parts = [final[f"{part}_joules"] for part in ("prefill", "decode", "policy")]
    assert microjoules(final["joules"]) == sum(map(microjoules, parts))
    assert settled(server, answer["id"]) == final


def test_a_stream_carries_its_receipt_with_the_usage(start, tmp_path):
    server = start(config(tmp_path))
    first_window(server)
    chunks = list(
        server.openai().chat.completions.create(
            model="auto",
            messages=[{"role": "user", "content": "Count from one to twenty."}],
            max_tokens=48,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    energy = chunks[-1].usage.model_extra["energy"]
    assert energy["origin"] == "modelled" and energy["joules"] > 0
    assert settled(server, chunks[-1].id)["joules"] > 0


def test_receipts_of_two_hundred_concurrent_requests_add_up_to_the_books(start, tmp_path):
    server = start(config(tmp_path))

    async def ask_all():
        client = server.async_openai()
        asked = [
            client.chat.completions.create(
                model="auto",
                messages=[{"role": "user", "content": f"Say something about the number {i}."}],
                max_tokens=8 + i % 9,
            )
            for i in range(CONCURRENT)
        ]
        return [answer.id for answer in await asyncio.gather(*asked)]

    ids = asyncio.run(ask_all())
    receipts = [settled(server, id) for id in ids]
    sum_of_receipts = sum(microjoules(receipt["joules"]) for receipt in receipts)
    attributed = joules(server, "homeostat_energy_attributed_joules_total")
    assert sum_of_receipts == sum(map(microjoules, attributed.values()))
    count = joules(server, "homeostat_request_energy_joules_count")
    assert list(count.values()) == [CONCURRENT]


def test_the_books_of_every_device_balance(start, tmp_path):
    server = start(config(tmp_path))
    server.ask("Count from one to twenty.", max_tokens=16)

    def balance() -> bool:
        """Read in one piece, so a moment is a moment."""
        text = server.metrics()
        sums = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name.startswith("homeostat_energy_") and sample.name.endswith("_total"):
                    kind = sample.name.split("_")[2]
                    sums[kind] = sums.get(kind, 0) + microjoules(sample.value)
        parts = sums["attributed"] + sums["idle"] + sums["unattributed"]
        assert sums["measured"] == parts, sums
        return sums["attributed"] > 0

    wait_until("something was attributed", balance)


def test_the_parts_of_the_books_say_where_they_come_from_and_how_far_they_go(start, tmp_path):
    server = start(config(tmp_path))
    first_window(server)
    for part in ("measured", "attributed", "idle", "unattributed"):
        for labels in joules(server, f"homeostat_energy_{part}_joules_total"):
            assert ("origin", "modelled") in labels, (part, labels)
    suspect = joules(server, "homeostat_energy_meter_suspect")
    assert list(suspect.values()) == [0], suspect


def test_an_answer_without_a_model_took_nothing_and_says_so(start, tmp_path):
    server = start(config(tmp_path))
    answer = server.ask("What is 17 * 23?")
    assert answer.headers["x-homeostat-tier"] == "direct"
    energy = answer.json()["usage"]["energy"]
    assert (energy["joules"], energy["method"]) == (0, "direct")
    assert energy["origin"] == "modelled" and energy["settled"]
    assert settled(server, answer.json()["id"]) == energy


def test_texts_that_are_embedded_have_a_receipt(start, tmp_path):
    server = start(config(tmp_path, encoder=True))
    first_window(server)
    texts = ["The cat sat on the mat, and the dog lay beside it."] * 64
    answer = server.http.post("/v1/embeddings", json={"input": texts})
    assert answer.status_code == 200, answer.text
    final = settled(server, answer.headers["x-request-id"])
    assert final["joules"] > 0 and final["decode_joules"] == 0
    assert (final["origin"], final["boundary"]) == ("modelled", "cpu")
    # What is not booked yet is expected.
    assert answer.json()["usage"]["energy"]["joules"] > 0


def test_measured_only_gives_no_number_where_nothing_measures(start, tmp_path):
    server = start(config(tmp_path, mode="measured-only"))
    answer = server.ask("Hello.", max_tokens=4).json()
    assert "energy" not in answer["usage"]
    response = server.http.get(f"/v1/requests/{answer['id']}/energy")
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "energy_unknown"
