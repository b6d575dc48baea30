"""`homeostat models pull hf:…` against a hub on this machine that can misbehave."""

import hashlib
import json
import os
import pathlib
import random
import resource
import struct
import subprocess

import pytest

import settings
from fake_hub import Hub, Repository
from homeostat_process import BINARY, LIMIT_S, free_port, gguf, run_cli, text_of

GGUF = random.Random(7).randbytes(3_000_000)
SHA256 = hashlib.sha256(GGUF).hexdigest()


def safetensors() -> bytes:
    """One tensor of 2 × 2 floats."""
    header = {"w": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(16)


CONFIG = {
    "model_type": "llama",
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_size": 64,
    "intermediate_size": 128,
    "max_position_embeddings": 512,
    "vocab_size": 100,
}


@pytest.fixture
def hub():
    hub = Hub()
    hub.repositories["acme/one"] = Repository(
        {"README.md": b"# one", "one.Q4_0.gguf": GGUF}, large={"one.Q4_0.gguf"}
    )
    yield hub
    hub.close()


class Cli:
    """The command with a cache of its own and this hub's address."""

    def __init__(self, hub: Hub, cache: pathlib.Path):
        self.cache = cache
        self.env = {
            "HF_ENDPOINT": hub.url,
            "HF_TOKEN": "",
            "HF_HOME": str(cache / "hf-home"),
            "HOMEOSTAT_CACHE": str(cache),
        }

    def __call__(self, *arguments, **env):
        return run_cli("models", *arguments, env=self.env | env, check=False)

    def pulled(self, *arguments, **env) -> pathlib.Path:
        """A pull that must succeed; where the model lies."""
        done = self("pull", *arguments, **env)
        assert done.returncode == 0, done.stderr
        return pathlib.Path(done.stdout.strip().rsplit(", ", 1)[1])

    def refused(self, *arguments, **env) -> str:
        """A pull that must fail with 1, and what it says."""
        done = self("pull", *arguments, **env)
        assert done.returncode == 1, (done.returncode, done.stdout, done.stderr)
        assert "panicked" not in done.stderr
        return done.stderr

    def files(self) -> list[str]:
        """Everything in the cache but records."""
        found = (p for p in self.cache.rglob("*") if p.is_file())
        return sorted(p.name for p in found if p.name != "homeostat-hub.json")


@pytest.fixture
def cli(hub, tmp_path):
    return Cli(hub, tmp_path)


def test_the_only_gguf_is_pulled_listed_and_not_pulled_again(hub, cli):
    place = cli.pulled("hf:acme/one")
    assert place.name == "one.Q4_0.gguf" and place.read_bytes() == GGUF
    assert cli.files() == ["one.Q4_0.gguf"]
    listed = json.loads(cli("list", "--json").stdout)["models"]
    (model,) = [m for m in listed if m["source"] == "hub"]
    assert model["name"] == "hf:acme/one" and model["state"] == "ready"
    assert model["loadable"] == ["hf:acme/one/one.Q4_0.gguf"]
    assert model["bytes"] == len(GGUF)
    assert "ready in" in cli("list").stdout
    fetched = len(hub.asked("resolve"))
    assert "already there" in cli("pull", "hf:acme/one").stdout
    assert len(hub.asked("resolve")) == fetched


def test_the_commit_of_the_list_is_the_one_that_is_fetched(hub, cli):
    hub.repositories["acme/one"].revision = "v2"
    cli.pulled("hf:acme/one@v2")
    (path,) = {seen[1] for seen in hub.asked("resolve")}
    assert f"/resolve/{hub.repositories['acme/one'].commit}/" in path
    assert "404" in cli.refused("hf:acme/one@v3")


def test_a_file_that_was_changed_in_the_cache_is_noticed_and_fetched_anew(hub, cli):
    place = cli.pulled("hf:acme/one")
    place.write_bytes(GGUF[:-1] + b"x")
    assert "damaged" in cli("list").stdout
    assert cli.pulled("hf:acme/one").read_bytes() == GGUF


def test_a_new_version_on_the_hub_replaces_the_old_one(hub, cli):
    cli.pulled("hf:acme/one")
    hub.repositories["acme/one"].files["one.Q4_0.gguf"] = GGUF[::-1]
    assert cli.pulled("hf:acme/one").read_bytes() == GGUF[::-1]
    assert cli.files() == ["one.Q4_0.gguf"]


def test_among_several_gguf_files_one_must_be_named(hub, cli):
    files = {"a.Q4_0.gguf": GGUF, "b/b.Q8_0.gguf": b"eight"}
    hub.repositories["acme/two"] = Repository(files, large=set(files))
    error = cli.refused("hf:acme/two")
    assert "a.Q4_0.gguf (3.0 MB)" in error and "b/b.Q8_0.gguf" in error
    assert "homeostat models pull hf:acme/two/a.Q4_0.gguf" in error
    assert cli.pulled("hf:acme/two/b/b.Q8_0.gguf").read_bytes() == b"eight"
    assert "a.Q4_0.gguf" in cli.refused("hf:acme/two/c.gguf")


def test_safetensors_come_with_config_and_tokenizer_and_can_be_inspected(hub, cli):
    hub.repositories["acme/safe"] = Repository(
        {
            "README.md": b"#",
            "config.json": json.dumps(CONFIG).encode(),
            "model.safetensors": safetensors(),
            "pytorch_model.bin": b"never",
            "tokenizer.json": b"{}",
            "tokenizer_config.json": b"{}",
        },
        large={"model.safetensors", "pytorch_model.bin"},
    )
    folder = cli.pulled("hf:acme/safe")
    expected = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    assert folder.is_dir() and cli.files() == expected
    told = json.loads(cli("inspect", "hf:acme/safe", "--json").stdout)
    assert told["parameters"] == 4 and told["weight_bytes"] == 16
    # 2 (keys, values) · 2 layers · 2 heads · 16 · 2 bytes.
    assert told["kv_bytes_per_token"] == 256


def test_a_repository_without_anything_to_load_is_refused_with_what_it_has(hub, cli):
    hub.repositories["acme/none"] = Repository({"model.onnx": b"x"})
    assert "it has: model.onnx" in cli.refused("hf:acme/none")


# ---- interruptions ---------------------------------------------------------------------


def test_a_broken_connection_is_taken_up_where_it_broke(hub, cli):
    hub.cuts["one.Q4_0.gguf"] = [1_000_000, 500_000]
    assert cli.pulled("hf:acme/one").read_bytes() == GGUF
    ranges = [headers.get("range") for role, _, headers in hub.seen if role == "storage"]
    assert ranges == [None, "bytes=1000000-", "bytes=1500000-"]


def test_a_connection_that_keeps_breaking_leaves_what_it_brought_for_the_next_pull(hub, cli):
    hub.cuts["one.Q4_0.gguf"] = [1_000_000, 0, 0, 0, 0]
    error = cli.refused("hf:acme/one")
    assert "1000000 bytes are kept" in error and "run the same command" in error
    (part,) = cli.files()
    assert part.endswith(".part")
    assert "hf:acme/one" not in cli("list").stdout
    hub.cuts.clear()
    hub.seen.clear()
    assert cli.pulled("hf:acme/one").read_bytes() == GGUF
    assert [h.get("range") for role, _, h in hub.seen if role == "storage"] == ["bytes=1000000-"]
    assert cli.files() == ["one.Q4_0.gguf"]


def test_a_killed_pull_goes_on_where_it_was(hub, cli):
    hub.cuts["one.Q4_0.gguf"] = [2_000_000]
    hub.stall = True
    env = os.environ | cli.env
    process = subprocess.Popen([BINARY, "models", "pull", "hf:acme/one"], env=env)
    assert hub.stalled.wait(LIMIT_S)
    process.kill()
    process.wait(LIMIT_S)
    hub.release.set()
    hub.seen.clear()
    assert cli.pulled("hf:acme/one").read_bytes() == GGUF
    (asked,) = [h.get("range") for role, _, h in hub.seen if role == "storage"]
    # The kernel may have had bytes that the process had not written yet.
    assert asked is None or int(asked.removeprefix("bytes=").rstrip("-")) <= 2_000_000


def test_a_server_without_ranges_sends_everything_anew(hub, cli):
    hub.knows_ranges = False
    hub.cuts["one.Q4_0.gguf"] = [1_000_000]
    assert cli.pulled("hf:acme/one").read_bytes() == GGUF


def test_a_hub_that_is_busy_for_a_moment_is_asked_again(hub, cli):
    hub.statuses = [503, 429]
    assert cli.pulled("hf:acme/one").read_bytes() == GGUF


# ---- wrong bytes -----------------------------------------------------------------------


def test_a_wrong_checksum_is_told_with_both_and_leaves_nothing(hub, cli):
    wrong = GGUF[:-1] + bytes([GGUF[-1] ^ 1])
    hub.wrong["one.Q4_0.gguf"] = wrong
    error = cli.refused("hf:acme/one")
    assert SHA256 in error and hashlib.sha256(wrong).hexdigest() in error
    assert cli.files() == []


def test_a_part_that_was_damaged_meanwhile_is_thrown_away_and_all_is_fetched(hub, cli):
    hub.cuts["one.Q4_0.gguf"] = [1_000_000, 0, 0, 0, 0]
    cli.refused("hf:acme/one")
    (part,) = cli.cache.rglob("*.part")
    part.write_bytes(b"x" * 1_000_000)
    hub.cuts.clear()
    assert cli.pulled("hf:acme/one").read_bytes() == GGUF
    assert cli.files() == ["one.Q4_0.gguf"]


@pytest.mark.parametrize("served", [GGUF + b"more", GGUF[:-5]])
def test_another_length_than_the_list_says_is_refused(hub, cli, served):
    hub.wrong["one.Q4_0.gguf"] = served
    assert f"announced {len(GGUF)} bytes and sends {len(served)}" in cli.refused("hf:acme/one")


@pytest.mark.parametrize("target", ["", "file:///etc/passwd", "//other/x", "nonsense"])
def test_a_redirect_that_leads_nowhere_is_the_servers_fault(hub, cli, target):
    hub.redirect_target = target
    error = cli.refused("hf:acme/one")
    assert "a redirect to" in error and "server's fault" in error


def test_a_redirect_in_a_circle_ends(hub, cli):
    hub.redirect_target = f"/acme/one/resolve/{hub.repositories['acme/one'].commit}/one.Q4_0.gguf"
    assert "redirects" in cli.refused("hf:acme/one")


def test_a_hub_cannot_choose_where_files_are_written(hub, cli):
    evil = {"../../../evil.gguf": b"x", "/evil.gguf": b"x", ".hidden.gguf": b"x"}
    hub.repositories["acme/evil"] = Repository(evil)
    assert "no files" in cli.refused("hf:acme/evil")
    hub.repositories["acme/one"].commit = "../../evil"
    assert "is no commit" in cli.refused("hf:acme/one")
    assert cli.files() == []


# ---- who may, and what there is --------------------------------------------------------


def test_a_gated_model_wants_a_token_and_the_storage_never_sees_it(hub, cli):
    hub.repositories["acme/one"].token = "hf_secret"
    error = cli.refused("hf:acme/one")
    assert "set HF_TOKEN" in error and "restricted" in error
    error = cli.refused("hf:acme/one", HF_TOKEN="hf_wrong")
    assert "refuses this token" in error and "hf_wrong" not in error
    hub.seen.clear()
    assert cli.pulled("hf:acme/one", HF_TOKEN="hf_secret").read_bytes() == GGUF
    tokens = {role: headers.get("authorization") for role, _, headers in hub.seen}
    assert tokens == {"hub": "Bearer hf_secret", "storage": None}


def test_a_token_that_was_saved_by_a_login_is_used(hub, cli):
    hub.repositories["acme/one"].token = "hf_saved"
    home = pathlib.Path(cli.env["HF_HOME"])
    home.mkdir()
    (home / "token").write_text("hf_saved\n")
    assert cli.pulled("hf:acme/one").read_bytes() == GGUF


def test_what_does_not_exist_is_told_so(hub, cli):
    error = cli.refused("hf:acme/nothing")
    assert "do not exist" in error and "hf:acme/nothing" in error
    done = cli("pull", "hf:acme")
    assert done.returncode == 2 and "hf:OWNER/REPO" in done.stderr


def test_without_a_network_the_address_is_in_question(cli):
    error = cli.refused("hf:acme/one", HF_ENDPOINT=f"http://127.0.0.1:{free_port()}")
    assert "no connection" in error and "HF_ENDPOINT" in error


def test_without_room_on_the_disk_the_rest_can_be_fetched_later(hub, cli):
    def small_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))

    done = subprocess.run(
        [BINARY, "models", "pull", "hf:acme/one"],
        env=os.environ | cli.env,
        preexec_fn=small_files,
        # Python ignores SIGXFSZ; so must the child, to see the error and not the signal.
        restore_signals=False,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert done.returncode == 1, done.stderr
    assert "no more room" in done.stderr and "panicked" not in done.stderr
    assert cli.pulled("hf:acme/one").read_bytes() == GGUF


# ---- use -------------------------------------------------------------------------------


def test_a_model_of_a_hub_serves(hub, start, tmp_path):
    cli = Cli(hub, tmp_path / "cache")
    hub.repositories["acme/real"] = Repository({"m.gguf": gguf().read_bytes()}, large={"m.gguf"})
    cli.pulled("hf:acme/real")
    tier = settings.local_tier("hub", model="hf:acme/real", system="")
    server = start(settings.server() + settings.no_encoder() + tier, env=cli.env)
    response = server.ask("What is the capital of France?", model="hub", temperature=0)
    assert "Paris" in text_of(response)
    assert response.headers["x-homeostat-tier"] == "hub"
