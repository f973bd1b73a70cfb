"""What fine-tuning made of a run's network: a file from which reports are made, without code."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from amc.errors import ArtifactError
from amc.objectives import NamedScore
from amc.report.record import FINITE, score_of
from amc.utils.documents import OBJECT, WHOLE, Kind, fault, list_of, or_null
from amc.utils.files import read_document, write_text

FINETUNED_FILE = "finetuned.json"
FORMAT_VERSION = 1
_ADVICE = "The report goes without it; amc finetune writes it anew."


@dataclass(frozen=True)
class FinetunedRecord:
    """What `amc finetune` ended with.

    Attributes:
        score: What networks are judged by.
        before, after, original: On the test split: the compressed network, the same fine-tuned,
            and the original.
        best_epoch: Whose weights are kept, from 1; 0: none was better than the start.
        losses: Mean training loss of each epoch.
        searched: The score on the search split after each epoch.
    """

    score: NamedScore
    before: float
    after: float
    original: float
    best_epoch: int
    losses: Sequence[float]
    searched: Sequence[float | None]

    def write(self, folder: Path) -> None:
        """Write ``finetuned.json``.

        Raises:
            StorageError: The folder cannot be written.
        """
        document = {"format": "amc-finetuned", "version": FORMAT_VERSION, **asdict(self)}
        write_text(folder / FINETUNED_FILE, json.dumps(document, indent=1) + "\n")

    @classmethod
    def read(cls, folder: Path) -> FinetunedRecord | None:
        """Read it; None where there is none.

        Raises:
            ArtifactError: It is damaged.
        """
        path = folder / FINETUNED_FILE
        if not path.is_file():
            return None
        document = read_document(
            path, "Fine-tuning", "amc-finetuned", FORMAT_VERSION, _FIELDS, advice=_ADVICE
        )
        wrong = fault(str(path), ArtifactError, _ADVICE)
        found = {name: document[name] for name in _FIELDS}
        if len(found["losses"]) != len(found["searched"]):
            raise wrong("is damaged: 'losses' and 'searched' must have a number for each epoch")
        found["score"] = score_of(found["score"], wrong)
        return cls(**found)


_FIELDS: dict[str, Kind] = {
    "score": OBJECT,
    "before": FINITE,
    "after": FINITE,
    "original": FINITE,
    "best_epoch": WHOLE,
    "losses": list_of(FINITE),
    "searched": list_of(or_null(FINITE)),
}
