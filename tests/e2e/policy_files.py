"""Policies as files: built from `policies/` by the command a user would type, or broken on
purpose."""

import functools
import pathlib
import subprocess

from homeostat_process import ROOT, TARGET

SOURCES = pathlib.Path(__file__).resolve().parent / "policies"
BUILT = TARGET / "e2e-policies"
NAMES = [
    "answers-a",
    "answers-b",
    "asks-models",
    "climbs",
    "cool-below-90",
    "counts",
    "falls-often",
    "follows",
    "stops-at-eighty",
]

CORE_MODULE = b"\0asm\x01\0\0\0"


@functools.cache
def build() -> dict[str, bytes]:
    """Compiles all test policies at once; cargo skips what has not changed."""
    BUILT.mkdir(parents=True, exist_ok=True)
    (TARGET / "policies").mkdir(exist_ok=True)
    if not (BUILT / "target").exists():
        # The folder of the default policies: the standard library is compiled there already.
        (BUILT / "target").symlink_to(TARGET / "policies")
    command = ["cargo", "run", "--release", "--locked", "-p", "homeostat-componentize"]
    command += ["--example", "componentize", "--", BUILT, *(SOURCES / name for name in NAMES)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {name: (BUILT / f"{name}.wasm").read_bytes() for name in NAMES}


def component(*, imports: str, exports: str | None = None) -> bytes:
    """The smallest component that imports the (empty) instance `imports` and, if named,
    exports it again as `exports`."""
    type_section = b"\x01\x42\x00"  # one instance type without items
    import_section = b"\x01\x00" + _name(imports) + b"\x05\x00"
    parts = [_section(7, type_section), _section(10, import_section)]
    if exports:
        parts.append(_section(11, b"\x01\x00" + _name(exports) + b"\x05\x00\x00"))
    return b"\0asm\x0d\0\x01\0" + b"".join(parts)


def _name(text: str) -> bytes:
    raw = text.encode()
    assert len(raw) < 128, "lengths above need more than one byte of LEB128"
    return bytes([len(raw)]) + raw


def _section(kind: int, content: bytes) -> bytes:
    assert len(content) < 128
    return bytes([kind, len(content)]) + content


def variant(component: bytes, number: int) -> bytes:
    """The same component with another digest: a custom section more, which nobody reads."""
    return component + _section(0, _name("variant") + str(number).encode())
