"""`homeostat models`: what is here, what it is, what memory it takes."""

import json
import re

import pytest
from prometheus_client.parser import text_string_to_metric_families as parse

import settings
from homeostat_process import GENERATIVE, gguf, run_cli

GIB = 1 << 30

#: The published configuration of Llama 3 70B, as far as it bears on memory.
LLAMA_3_70B = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "max_position_embeddings": 8192,
    "model_type": "llama",
    "num_attention_heads": 64,
    "num_hidden_layers": 80,
    "num_key_value_heads": 8,
    "torch_dtype": "bfloat16",
    "vocab_size": 128256,
}


def models(*arguments, **options) -> str:
    return run_cli("models", *arguments, **options).stdout


def told(*arguments, **options):
    return json.loads(models(*arguments, "--json", **options))


def test_list_tells_size_state_and_place():
    listed = {m["name"]: m for m in told("list")["models"]}
    model = listed[GENERATIVE]
    assert model["state"] == "ready" and model["bytes"] == gguf().stat().st_size
    assert str(gguf().parent) == str(model["folder"]).removesuffix(f"/{gguf().name}")
    assert re.search(rf"^{GENERATIVE}  generative  98.4 MB .* ready in ", models("list"), re.M)


def test_list_tells_how_to_fetch_what_is_not_here(tmp_path):
    text = models("list", env={"HOMEOSTAT_CACHE": str(tmp_path)})
    assert f"not fetched: homeostat models pull {GENERATIVE}" in text


@pytest.mark.parametrize("which", [GENERATIVE, gguf()])
def test_inspect_takes_names_and_files(which):
    model = told("inspect", which)
    assert model["architecture"] == "llama" and model["quantization"] == "Q4_1"
    assert model["parameters"] == 134_515_008
    assert model["kv_bytes_per_token"] == 23_040
    assert model["weight_bytes"] == sum(t["bytes"] for t in model["tensors"].values())
    text = models("inspect", which)
    assert "23040 (22.5 KiB, f16)" in text and "context  batch" in text


def test_inspect_of_a_config_alone_tells_the_kv_cache_of_a_70b_model(tmp_path):
    config = tmp_path / "config.json"
    config.write_text(json.dumps(LLAMA_3_70B))
    model = told("inspect", config, "--context", "128k,4k,2k,32k", "--batch", "1,8,32,64")
    assert model["kv_bytes_per_token"] == 320 << 10
    assert model["parameters"] is None
    kv = {(row["context_tokens"], row["batch"]): row["kv_bytes"] for row in model["memory"]}
    for context, batch, gib in [(128, 1, 40), (4, 32, 40), (2, 64, 40), (32, 8, 80)]:
        assert kv[context << 10, batch] == gib * GIB
    text = models("inspect", tmp_path, "--context", "4k", "--batch", "32")
    assert "40.0 GiB" in text and "there are no weights here" in text


def test_inspect_of_what_is_no_model_says_so(tmp_path):
    file = tmp_path / "noise.gguf"
    file.write_bytes(b"not a model at all")
    for what in [file, tmp_path, "nobody-knows-this"]:
        done = run_cli("models", "inspect", what, check=False)
        assert done.returncode in (1, 2) and "panicked" not in done.stderr
        assert str(what) in done.stderr


def test_plan_tells_what_fits_and_what_to_write(tmp_path):
    plan = told("plan", GENERATIVE, "--memory", "1GiB", "--contexts", "2k,16k", "--batches", "1,64")
    assert plan["memory"] == {"total_bytes": GIB, "available_bytes": GIB}
    (model,) = plan["models"]
    rows = {(row["context_tokens"], row["batch"]): row for row in model["fits"]}
    small = rows[2048, 1]
    assert small["fits"] and small["settings"]["kv_bytes"] == 2048 * 23_040
    large = rows[2048, 64]
    assert not large["fits"] and large["lacking_bytes"] == large["total_bytes"] - GIB
    assert rows[16_384, 1]["beyond_context"] == 8192 and not rows[16_384, 1]["fits"]
    text = models("plan", GENERATIVE, "--memory", "1GiB", "--batches", "1,64")
    assert "fits: kv_bytes = 47185920" in text and "more are needed" in text


def test_the_settings_of_a_plan_are_accepted_and_suffice(start):
    plan = told("plan", GENERATIVE, "--memory", "2GiB", "--contexts", "1k", "--batches", "4")
    (row,) = plan["models"][0]["fits"]
    config = settings.server() + settings.no_encoder()
    server = start(config + settings.local_tier("small", **row["settings"]))
    response = server.ask("Name a colour.", model="small", max_tokens=900)
    assert response.status_code == 200, response.text


def test_plan_without_names_looks_at_this_machine():
    plan = told("plan")
    assert 0 < plan["memory"]["available_bytes"] <= plan["memory"]["total_bytes"]
    assert GENERATIVE in [m["model"] for m in plan["models"]]
    assert models("plan").startswith("memory ")


def test_plan_respects_the_memory_limit_of_a_container(tmp_path):
    group = tmp_path / "sys" / "fs" / "cgroup"
    group.mkdir(parents=True)
    (group / "memory.max").write_text(f"{300 << 20}\n")
    (group / "memory.current").write_text(f"{100 << 20}\n")
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "self" / "cgroup").write_text("0::/\n")
    (tmp_path / "proc" / "meminfo").write_text("MemTotal: 8388608 kB\nMemAvailable: 8000000 kB\n")
    config = tmp_path / "homeostat.toml"
    roots = {"sysfs_root": tmp_path / "sys", "procfs_root": tmp_path / "proc"}
    config.write_text(settings.telemetry(**roots))
    plan = told("plan", GENERATIVE, "--config", config, "--contexts", "8k", "--batches", "1")
    assert plan["memory"] == {"total_bytes": 300 << 20, "available_bytes": 200 << 20}
    assert not plan["models"][0]["fits"][0]["fits"]


def test_plan_of_a_config_alone_says_that_weights_are_missing(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_3_70B))
    done = run_cli("models", "plan", tmp_path, check=False)
    assert done.returncode == 1 and "no weights" in done.stderr


def test_metrics_have_the_names_of_vllm(shared):
    response = shared.ask("Name a colour.", model="smollm2", max_tokens=4)
    shared.record(response.headers["x-request-id"])
    families = {family.name for family in parse(shared.metrics())}
    for name in [
        "num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "prefix_cache_queries",
        "prefix_cache_hits", "num_preemptions", "prompt_tokens", "generation_tokens", "request_success",
        "time_to_first_token_seconds", "request_time_per_output_token_seconds",
        "inter_token_latency_seconds", "e2e_request_latency_seconds", "request_queue_time_seconds",
        "request_prompt_tokens", "request_generation_tokens", "iteration_tokens_total", "spec_decode_num_drafts",
        "spec_decode_num_draft_tokens", "spec_decode_num_accepted_tokens",
        "spec_decode_num_accepted_tokens_per_pos",
    ]:  # fmt: skip
        assert f"homeostat_{name}" in families, name
