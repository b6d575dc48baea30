"""An answer without text is no answer."""

from homeostat import Answer, Request, Snapshot, Verdict, accept, escalate, finding


class Validator:
    def validate(self, request: Request, answer: Answer, snapshot: Snapshot) -> Verdict:
        passed = bool(answer.text.strip())
        findings = [finding("not-empty", passed)]
        return accept(0.5, findings) if passed else escalate(0.0, findings)
