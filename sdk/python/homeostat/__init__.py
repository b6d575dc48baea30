"""Pleasant ways to say what the contract asks for.

The records are those of the contract, as componentize-py generates them: dataclasses with
snake_case fields, enums such as Refusal.NOT_ALLOWED, a variant as one class per case.
What a machine cannot measure is None; never read it as 0. The host's powers are modules
of their own (log, config, state, models, propose), each with the line of world.wit that it
needs.
"""

from __future__ import annotations

from typing import NoReturn

from componentize_py_types import Err
from wit_world.imports.types import *  # noqa: F403
from wit_world.imports.types import (
    Amendment,
    Assessment,
    Classification,
    Decision,
    Decision_Answer,
    Decision_Plan,
    Decision_Reject,
    DirectAnswer,
    Error_Other,
    Finding,
    Plan,
    Refusal,
    Rejection,
    Request,
    Role,
    Step,
    Task,
    Verdict,
    Verdict_Accept,
    Verdict_Amend,
    Verdict_Escalate,
    Verdict_Reject,
)


# The host's defaults. Building a record costs a third of dataclasses.replace.
STEP = {
    "max_draft_tokens": 0,
    "max_tokens": None,
    "hold_back_tokens": 0,
    "accept_threshold": 0.5,
}


def plan(tiers: list[str], reason: str, **step) -> Decision:
    """A plan that tries these tiers in order, with the host's defaults and a threshold of
    one half; keyword arguments change fields of every step."""
    fields = STEP | step
    steps = [Step(tier, **fields) for tier in tiers]
    return Decision_Plan(Plan(steps, reason, []))


def answer(text: str, method: str) -> Decision:
    """An answer that needs no model; `method` says how it was found."""
    return Decision_Answer(DirectAnswer(text, method))


def reject(kind: Refusal, message: str, retry_after_ms: int | None = None) -> Decision:
    """Not served; `message` is for the client."""
    return Decision_Reject(Rejection(kind, message, retry_after_ms))


def classification(simple: float, medium: float, hard: float, **rest) -> Classification:
    """How hard a request is. The three probabilities are made to add up to 1; keyword
    arguments change the other fields."""
    total = simple + medium + hard
    fields = {"task": Task.OTHER, "dimensions": [], "confidence": 0.5, "attributes": []} | rest
    return Classification(simple / total, medium / total, hard / total, **fields)


def finding(check: str, passed: bool, detail: str = "") -> Finding:
    """One check of a validator."""
    return Finding(check, passed, detail)


def accept(confidence: float, findings: list[Finding] | None = None) -> Verdict:
    """Send the answer."""
    return Verdict_Accept(Assessment(confidence, findings or []))


def escalate(confidence: float, findings: list[Finding] | None = None) -> Verdict:
    """Ask the next tier."""
    return Verdict_Escalate(Assessment(confidence, findings or []))


def amend(text: str, confidence: float, findings: list[Finding] | None = None) -> Verdict:
    """Send this text instead."""
    return Verdict_Amend(Amendment(text, Assessment(confidence, findings or [])))


def withhold(kind: Refusal, message: str, retry_after_ms: int | None = None) -> Verdict:
    """Send nothing; `message` tells the client why."""
    return Verdict_Reject(Rejection(kind, message, retry_after_ms))


def question(request: Request) -> str:
    """The last message of the person; empty when there is none."""
    said = (m.content for m in reversed(request.messages) if m.role == Role.USER)
    return next(said, "")


def fail(text: str) -> NoReturn:
    """Ends the call with an error: the host's fallback answers."""
    raise Err(Error_Other(text))
