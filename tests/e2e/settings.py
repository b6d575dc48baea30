"""homeostat.toml for the tests: the one place that knows its keys."""

from homeostat_process import ADMIN_TOKEN, GENERATIVE

# Qualities of a small and a large tier that differ enough for any router to care.
SMALL_QUALITY = [0.9, 0.3, 0.1]
LARGE_QUALITY = [0.97, 0.9, 0.8]


def server(**extra) -> str:
    return _table("server", admin_token=ADMIN_TOKEN, **extra)


def basic() -> str:
    """The defaults, and an admin token."""
    return server()


def local_tier(id: str, rank: int = 0, quality=SMALL_QUALITY, **extra) -> str:
    if "path" not in extra:
        extra.setdefault("model", GENERATIVE)
    return _table("[tiers]", id=id, kind="local", rank=rank, quality=quality, **extra)


def remote_tier(id: str, url: str, rank: int = 1, quality=LARGE_QUALITY, **extra) -> str:
    fields = dict(model="smollm2-remote", url=url, context_tokens=2048) | extra
    return _table("[tiers]", id=id, kind="remote", rank=rank, quality=quality, **fields)


def telemetry(**fields) -> str:
    return _table("telemetry", **fields)


def energy(**fields) -> str:
    return _table("energy", **fields)


def budgets(**fields) -> str:
    return _table("budgets", **fields)


def budget(name: str, **fields) -> str:
    return _table(f"budgets.limits.{name}", **fields)


def record(dir: str = "recordings", **fields) -> str:
    return _table("policies.record", dir=dir, **fields)


def signed_by(**keys) -> str:
    """Policies that one of these public keys has signed, and no others."""
    return _table("policies", signature="required") + _table("policies.trusted_keys", **keys)


def replay(dir: str = "recordings", **fields) -> str:
    return _table("policies.replay", dir=dir, **fields)


def no_encoder() -> str:
    """For servers that only chat: half the memory and a quicker start."""
    return _table("encoder", enabled=False)


def _table(name: str, **fields) -> str:
    lines = [f"[{name}]", *(f"{key} = {_value(value)}" for key, value in fields.items())]
    return "\n".join(lines) + "\n"


def _value(value) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return "[" + ", ".join(_value(v) for v in value) + "]"
    if isinstance(value, dict):
        return "{ " + ", ".join(f'"{k}" = {_value(v)}' for k, v in value.items()) + " }"
    if isinstance(value, (int, float)):
        return repr(value)
    return '"' + str(value).replace("\\", "\\\\").replace('"', '\\"') + '"'
