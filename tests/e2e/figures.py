"""Figures that the tests measure on the way: printed, and kept in target/e2e-figures.json."""

import json

from homeostat_process import TARGET

FILE = TARGET / "e2e-figures.json"


def keep(name: str, **values):
    print(f"{name}: " + ", ".join(f"{k} = {v}" for k, v in values.items()))
    known = json.loads(FILE.read_text()) if FILE.exists() else {}
    known[name] = values
    FILE.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")


def percentile(values: list[float], share: float) -> float:
    """Nearest rank."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
