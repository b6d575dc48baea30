"""Settings of this policy. Needs `import wasi:config/store@0.2.0-rc.1;` in world.wit and
the grant "config"."""

from wit_world.imports import config as store


def config(key: str) -> str | None:
    """A setting; None when the operator has not set it."""
    return store.get(key)
