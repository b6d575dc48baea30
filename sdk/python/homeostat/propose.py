"""Provisional answers: what was proposed last is used when the deadline comes first. Needs
`import homeostat:policy/propose@0.1.0;` in world.wit."""

from wit_world.imports.propose import propose_classification as classification
from wit_world.imports.propose import propose_decision as decision
from wit_world.imports.propose import propose_verdict as verdict

__all__ = ["classification", "decision", "verdict"]
