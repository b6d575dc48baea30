"""One line to the host's log. Needs `import wasi:logging/logging@0.1.0-draft;` in world.wit."""

from wit_world.imports import logging

Level = logging.Level


def log(level: Level, message: str) -> None:
    logging.log(level, "policy", message)
