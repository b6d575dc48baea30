"""Short questions are simple."""

from homeostat import Classification, Request, Snapshot, classification, question


class Classifier:
    def classify(self, request: Request, snapshot: Snapshot) -> Classification:
        words = len(question(request).split())
        hard = min(words / 100, 1.0)
        return classification(1 - hard, 0.0, hard)
