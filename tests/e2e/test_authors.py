"""A new author's path in every language: a folder, an edit, a build, a test, a signature, a copy
into a running host that takes signed policies only, a changed decision, its explanation, and
the way back."""

import json
import pathlib
import zipfile

import pytest

import settings
from homeostat_process import ADMIN_TOKEN, ROOT, TARGET, Homeostat, run_cli, wait_until

LANGUAGES = ["rust", "js", "ts", "python", "c"]
SOURCE = {
    "rust": "src/lib.rs",
    "js": "policy.js",
    "ts": "policy.ts",
    "python": "policy.py",
    "c": "policy.c",
}
THERMAL = ROOT / "plugins" / "route-thermal"


def share_target(folder: pathlib.Path):
    """Rust's standard library was compiled for the default policies already."""
    (folder / "target").mkdir(exist_ok=True)
    (TARGET / "policies").mkdir(exist_ok=True)
    link = folder / "target" / "policy"
    if not link.exists():
        link.symlink_to(TARGET / "policies")


def new(place: pathlib.Path, language: str, hook: str) -> pathlib.Path:
    name = f"{hook}-in-{language}"
    run_cli("policy", "new", "--lang", language, "--hook", hook, name, cwd=place)
    folder = place / name
    if language == "rust":
        share_target(folder)
    return folder


@pytest.fixture(scope="module")
def key(built, tmp_path_factory) -> pathlib.Path:
    """An author's secret key."""
    name = tmp_path_factory.mktemp("keys") / "author"
    run_cli("policy", "keygen", name)
    return name.with_suffix(".key")


@pytest.fixture(scope="module")
def server(key, tmp_path_factory):
    folder = tmp_path_factory.mktemp("authors")
    public = key.with_suffix(".pub").read_text().strip()
    config = settings.basic() + settings.no_encoder() + settings.signed_by(author=public)
    server = Homeostat(folder, config + settings.record()).start()
    yield server
    server.stop()


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_new_author_changes_what_the_host_decides_and_changes_it_back(
    language, server, key, tmp_path
):
    folder = new(tmp_path, language, "route")
    source = folder / SOURCE[language]
    text = source.read_text()
    assert "always the smallest" in text
    source.write_text(text.replace("always the smallest", f"as {language} says"))

    component = tmp_path / f"route-{language}.wasm"
    run_cli("policy", "build", folder, "-o", component)
    cases = folder / "cases.toml"
    tested = run_cli("policy", "test", component, "--cases", cases, "--seed", 7)
    assert "2 cases, 4 properties (--seed 7): all hold" in tested.stdout, tested.stdout
    if language != "python":  # which takes seconds to compile, and the host will do it again
        checked = run_cli("policy", "check", component)
        assert "homeostat:policy/types@0.1.0" in checked.stdout, checked.stdout

    def policy(response) -> str:
        assert response.status_code == 200, response.text
        return response.headers["x-homeostat-policy"]

    def ask():
        return server.ask("Tell me something.", max_tokens=2)

    assert "route-metabolic@" in policy(ask())
    if language == "c":
        unsigned = server.policies / component.name
        unsigned.write_bytes(component.read_bytes())
        told = wait_until(
            "whoever forgets to sign is told so",
            lambda: "refused at signature" in (listed := listing(server)) and listed,
        )
        assert "route-metabolic@" in told, told
        unsigned.unlink()
    run_cli("policy", "sign", component, "--key", key, "--revision", 1)
    run_cli("policy", "pack", component, "-o", tmp_path / "signed.policy")
    watched = server.policies / f"route-{language}.policy"
    watched.write_bytes((tmp_path / "signed.policy").read_bytes())
    response = wait_until(
        "the author's policy routes",
        lambda: (r := ask()) and f"route-{language}@" in policy(r) and r,
    )
    told = explained(server, response.headers["x-request-id"])
    assert f"as {language} says" in told, told

    receipt = response.headers["x-homeostat-receipt"]
    assert f"receipt   {receipt}" in told, told

    run_cli("policy", "rollback", "route", *at(server))
    assert "route-metabolic@" in policy(ask())
    watched.unlink()


def explained(server, request_id: str) -> str:
    """The whole story; a request is recorded when it has been closed."""
    path = f"/admin/v1/decisions/{request_id}/explanation"
    wait_until(path, lambda: server.http.get(path).status_code == 200)
    return run_cli("explain", request_id, *at(server)).stdout


def listing(server) -> str:
    return run_cli("policy", "list", *at(server)).stdout


def at(server) -> list[str]:
    return ["--host", server.url, "--token", ADMIN_TOKEN]


@pytest.mark.parametrize("language", ["rust", "js", "python", "c"])
def test_one_router_decides_alike_in_all_languages(language):
    folder = THERMAL / language
    if language == "rust":
        share_target(folder)
    tested = run_cli("policy", "test", folder, "--cases", THERMAL / "cases.toml", "--seed", 1)
    assert "11 cases, 4 properties (--seed 1): all hold" in tested.stdout, tested.stdout


# JavaScript and Python take their other hooks in turns: a build of theirs takes seconds.
@pytest.mark.parametrize(
    ("language", "hook"),
    [
        ("rust", "classify"),
        ("rust", "validate"),
        ("js", "classify"),
        ("ts", "validate"),
        ("python", "validate"),
        ("c", "classify"),
        ("c", "validate"),
    ],
)
def test_the_templates_of_the_other_hooks_hold_their_cases(language, hook, tmp_path):
    folder = new(tmp_path, language, hook)
    tested = run_cli("policy", "test", folder)
    assert "2 cases, 3 properties" in tested.stdout, tested.stdout


def test_what_a_policy_misses_is_told_and_is_a_failure(tmp_path):
    folder = new(tmp_path, "c", "route")
    source = folder / "policy.c"
    largest = "for (size_t i = len; i-- > 0;)"
    text = source.read_text().replace("for (size_t i = 0; i < len; i++)", largest)
    assert largest in text
    # And it goes up when it is hot.
    cooler = "if (!snapshot->devices.len) i = 0;\n        hs_try(decision, &tiers[i]);"
    text = text.replace("hs_try(decision, &tiers[i]);", cooler)
    source.write_text(text)
    done = run_cli("policy", "test", folder, "--seed", 3, check=False)
    assert done.returncode == 1, done.stdout
    assert "FAIL  hotter-never-larger" in done.stdout, done.stdout
    assert "smallest input" in done.stdout and "°C" in done.stdout, done.stdout
    again = run_cli("policy", "test", folder, "--seed", 3, check=False)
    assert figures(again.stdout) == figures(done.stdout)


def figures(text: str) -> list[str]:
    """All lines but the one that tells times."""
    return [line for line in text.splitlines() if "µs" not in line]


def test_a_build_that_cannot_be_says_what_to_do(tmp_path):
    empty = run_cli("policy", "build", tmp_path, check=False)
    assert empty.returncode == 1 and "policy new" in empty.stderr
    folder = new(tmp_path, "js", "route")
    lonely = {"PATH": str(tmp_path), "HOMEOSTAT_CACHE": str(tmp_path / "cache")}
    without_node = run_cli("policy", "build", folder, env=lonely, check=False)
    assert without_node.returncode == 1, without_node.stdout
    assert "Install Node.js" in without_node.stderr, without_node.stderr
    (folder / "policy.js").write_text("export const router = {{{\n")
    broken = run_cli("policy", "build", folder, check=False)
    assert broken.returncode == 1 and "componentize-qjs" in broken.stderr, broken.stderr
    (folder / "world.wit").unlink()
    worldless = run_cli("policy", "build", folder, check=False)
    assert worldless.returncode == 1 and "world.wit" in worldless.stderr


def test_a_mistake_of_types_is_shown_and_makes_no_component(tmp_path):
    folder = new(tmp_path, "ts", "route")
    source = folder / "policy.ts"
    text = source.read_text()
    source.write_text(text.replace("[tier.id]", "[tier.rank]") + "fetch('elsewhere');\n")
    component = tmp_path / "wrong.wasm"
    wrong = run_cli("policy", "build", folder, "-o", component, check=False)
    assert wrong.returncode == 1 and not component.exists(), wrong.stderr
    assert "policy.ts(8,18): error TS2322" in wrong.stderr, wrong.stderr
    assert "Cannot find name 'fetch'" in wrong.stderr, wrong.stderr
    assert "tsc failed" in wrong.stderr, wrong.stderr


def test_packages_of_npm_and_modules_of_ones_own_are_built_in(tmp_path):
    folder = new(tmp_path, "ts", "route")
    package = folder / "node_modules" / "tiny" / "build"
    package.mkdir(parents=True)
    manifest = {"name": "tiny", "version": "1.0.0", "type": "module", "exports": "./build/a.js"}
    (package.parent / "package.json").write_text(json.dumps(manifest))
    (package / "a.js").write_text("export const most = 9;\n")
    (package / "a.d.ts").write_text("export const most: number;\n")
    (folder / "words.ts").write_text("export const first: string = 'the smallest of ';\n")
    source = folder / "policy.ts"
    text = source.read_text().replace("'always the smallest'", "first + most")
    imports = "import { most } from 'tiny';\nimport { first } from './words.js';\n"
    source.write_text(imports + text)
    assert_reason(folder, "the smallest of 9")


def assert_reason(folder: pathlib.Path, reason: str):
    """The template's first case, with one more fact."""
    cases = folder / "cases.toml"
    told = f'expect = ["kind is plan", "reason is {reason}", '
    cases.write_text(cases.read_text().replace('expect = ["kind is plan", ', told, 1))
    tested = run_cli("policy", "test", folder)
    assert "all hold" in tested.stdout, tested.stdout


def wheel(folder: pathlib.Path, tag: str, word: str) -> str:
    """A package of one module, as pip takes it; its file's name."""
    name = f"tiny-1.0-{tag}.whl"
    files = {
        "tiny.py": f"WORD = {word!r}\n",
        "tiny-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n",
        "tiny-1.0.dist-info/WHEEL": f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n",
    }
    record = "".join(f"{file},,\n" for file in [*files, "tiny-1.0.dist-info/RECORD"])
    with zipfile.ZipFile(folder / name, "w") as archive:
        for file, text in {**files, "tiny-1.0.dist-info/RECORD": record}.items():
            archive.writestr(file, text)
    return name


def test_what_requirements_name_is_built_in_and_machine_code_is_refused(tmp_path):
    folder = new(tmp_path, "python", "route")
    source = folder / "policy.py"
    text = source.read_text().replace('"always the smallest"', "WORD")
    source.write_text(text.replace("from homeostat", "from tiny import WORD\nfrom homeostat"))
    requirements = folder / "requirements.txt"

    requirements.write_text("./" + wheel(folder, "cp311-cp311-manylinux_2_17_x86_64", "native"))
    native = run_cli("policy", "build", folder, check=False)
    assert native.returncode == 1, native.stdout
    assert "manylinux_2_17_x86_64.whl, which is made for other systems" in native.stderr
    assert "Name a package in pure Python" in native.stderr, native.stderr

    requirements.write_text("./" + wheel(folder, "py3-none-any", "from a package"))
    assert_reason(folder, "from a package")
