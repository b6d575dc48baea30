"""Settings of this policy. Needs `import wasi:config/store@0.2.0-rc.1;` in world.wit and
the grant "config"."""

from typing import NoReturn

from componentize_py_types import Err
from wit_world.imports import config as store
from wit_world.imports.types import Error_InvalidArgument


def config(key: str) -> str | None:
    """A setting; None when the operator has not set it."""
    return store.get(key)


def number(key: str, fallback: float, least: float, most: float) -> float:
    """A setting that is a number between two others; `fallback` when it is not set. Anything
    else ends the call: a policy that ignored a setting would seem to obey."""
    text = config(key)
    if text is None:
        return fallback
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    return value if least <= value <= most else wrong(key, text, f"{least:g} to {most:g}")


def wrong(key: str, value: str, expected: str) -> NoReturn:
    """Ends the call, since a setting cannot be read."""
    raise Err(Error_InvalidArgument(f'setting {key} is "{value}", expected {expected}'))
