"""What the engines are asked: the same token ids for all of them."""

import json
import pathlib

# Beside the checkout; a linked worktree says where with HOMEOSTAT_DATA.
ROOT = pathlib.Path(__file__).resolve().parents[2]

# Spec-Bench's kinds by its categories; the first eight are MT-Bench's conversations.
CHAT = "writing roleplay reasoning math coding extraction stem humanities".split()
KINDS = ["chat", "translation", "summarization", "qa", "math_reasoning", "rag", "editing"]
# The kinds whose answers repeat their prompts.
COPYING = {"summarization", "rag", "editing"}

STORY = (
    "The history of bread is long, and most of it was baked before anybody wrote it down. "
    "A miller in the valley kept a ledger of every sack, with the weather beside it. "
    "When the river froze, the wheel stood still and the price rose by a third. "
    "Travellers brought rye from the north and told of ovens as large as houses. "
)


def recorded(folder: pathlib.Path) -> list[dict]:
    """Spec-Bench's prompts, or nothing where they are not at hand."""
    file = folder / "prompts" / "spec_bench.jsonl"
    if not file.exists():
        return []
    return [json.loads(line) for line in file.read_text().splitlines()]


def by_kind(rows: list[dict], count: int) -> dict[str, list[str]]:
    """The first `count` prompts of every kind."""
    kinds = {kind: [] for kind in KINDS}
    for row in rows:
        kind = "chat" if row["category"] in CHAT else row["category"]
        if len(kinds[kind]) < count:
            kinds[kind].append(row["turns"][0])
    # Spec-Bench edits nothing: the documents to be summarised, to be copied with one change.
    documents = [row["turns"][0] for row in rows if row["category"] == "summarization"]
    changes = [("and", "&"), ("said", "claimed"), ("the", "THE"), ("of", "from")]
    for i, document in enumerate(documents[-count:]):
        old, new = changes[i % len(changes)]
        text = document.split(":", 1)[-1].strip()[:900].rsplit(".", 1)[0] + "."
        kinds["editing"].append(
            f'Copy the following text. Change only the word "{old}", which becomes "{new}". '
            f"Answer with the text and nothing else.\n\n{text}"
        )
    return kinds


def accuracy(rows: list[dict], count: int) -> list[str]:
    """Texts of all kinds, spread over the file."""
    texts = [row["turns"][0] for row in rows] or [STORY]
    step = max(1, len(texts) // count)
    return texts[::step][:count]
