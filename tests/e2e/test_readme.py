"""The commands of README.md are the ones that work. make itself is not run: it runs us."""

import pathlib
import re
import shlex
import shutil
import subprocess

import pytest

from homeostat_process import ADMIN_TOKEN, LIMIT_S, ROOT, run_cli

README = (ROOT / "README.md").read_text()
DEFAULT_URL = "http://127.0.0.1:8080"
SHELLS = ("", "sh", "bash", "shell", "console")


def blocks() -> list[tuple[str, str]]:
    """Code blocks as (language, text): fenced ones, and those indented by four spaces."""
    found = [
        (m["language"], m["text"])
        for m in re.finditer(r"^```(?P<language>\w*)\n(?P<text>.*?)^```", README, re.M | re.S)
    ]
    without = re.sub(r"^```.*?^```", "", README, flags=re.M | re.S)
    indented = re.finditer(r"(?:^ {4}.*\n?)+", without, re.M)
    return found + [("", re.sub(r"^ {4}", "", m[0], flags=re.M)) for m in indented]


def commands() -> list[str]:
    text = "\n".join(text for language, text in blocks() if language in SHELLS)
    joined = text.replace("\\\n", " ")
    lines = [line.strip().removeprefix("$ ") for line in joined.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def of(*programs: str) -> list[str]:
    def program(command: str) -> str:
        return pathlib.PurePath(command.split()[0]).name

    return [command for command in commands() if program(command) in programs]


def words(command: str) -> list[str]:
    return shlex.split(command, comments=True)


def test_the_first_command_is_make_run():
    assert commands()[0] == "make run"


@pytest.mark.parametrize("command", of("make"))
def test_make_has_the_target(command):
    makefile = (ROOT / "Makefile").read_text()
    for target in words(command)[1:]:
        assert re.search(rf"^{re.escape(target)}:", makefile, re.M), command


@pytest.mark.parametrize("command", of("homeostat"))
def test_the_binary_takes_the_command(command):
    run_cli(*words(command)[1:], "--help")


@pytest.mark.parametrize("command", of("curl"))
def test_curl_gets_an_answer(shared, command):
    if not shutil.which("curl"):
        pytest.skip("this machine has no curl")
    assert DEFAULT_URL.split("//")[1] in command, "the README talks to the default address"
    local = command.replace("127.0.0.1:8080", f"127.0.0.1:{shared.port}")
    token = ["-H", f"Authorization: Bearer {ADMIN_TOKEN}"] if "/admin/" in local else []
    local_words = words(local.split("|")[0])
    done = subprocess.run(
        [*local_words, "--fail-with-body", *token],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("command", of("cp"))
def test_what_is_copied_is_there_or_is_built_by_an_earlier_command(command):
    *sources, _ = [word for word in words(command)[1:] if not word.startswith("-")]
    before = README[: README.index(command.split("  ")[0])]
    for source in sources:
        assert (ROOT / source).exists() or source in before, command


PYTHON = [text for language, text in blocks() if language in ("python", "py")]


@pytest.mark.parametrize("text", PYTHON)
def test_the_python_of_the_readme_runs(shared, text, capsys):
    exec(compile(text.replace(DEFAULT_URL, shared.url), "README.md", "exec"), {})
    assert capsys.readouterr().out.strip(), "it prints an answer"


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)#:]+)\)", README))
def test_links_lead_somewhere(link):
    assert (ROOT / link).exists()
