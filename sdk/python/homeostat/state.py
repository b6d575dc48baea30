"""State that outlives requests, reloads and swaps. Needs `import
wasi:keyvalue/store@0.2.0-draft;` and `import wasi:keyvalue/atomics@0.2.0-draft;` in
world.wit and the grant "keyvalue"."""

from wit_world.imports import atomics, keyvalue


def get(key: str) -> bytes | None:
    """The bytes under a key."""
    return keyvalue.open("").get(key)


def set(key: str, value: bytes) -> None:
    """Stores bytes under a key."""
    keyvalue.open("").set(key, value)


def increment(key: str, delta: int) -> int:
    """Adds to a counter and returns the sum; no other request can come between."""
    return atomics.increment(keyvalue.open(""), key, delta)
