"""What a run ended with beside its table: a file from which reports are made again, without code.

``result.json`` says how the scores are called, what every layer was and is, and what the user
should know; the table of numbers is in ``comparison.csv`` beside it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from amc.errors import ArtifactError
from amc.objectives import NamedScore
from amc.report.plots import LayerRow
from amc.utils.documents import (
    OBJECT,
    SWITCH,
    TEXT,
    WHOLE,
    Fault,
    Kind,
    check_fields,
    fault,
    is_number,
    list_of,
    object_of,
    or_null,
)
from amc.utils.files import read_document, write_text

RESULT_FILE = "result.json"
FORMAT_VERSION = 1
_ADVICE = "The report goes without it."


@dataclass(frozen=True)
class ResultRecord:
    """What a search, an applied policy or a comparison of searchers ended with.

    Attributes:
        title: Network and budget.
        about: What was compressed, for what, where: name -> words.
        reward: What the search maximised.
        levels: Rewards to compare a curve with, by name.
        scores: The objective's.
        primary: Of these, what networks are ranked by.
        original: The original's scores on the test split.
        notes: What the user should know.
        versions: Of amc and of what it computes with.
        metric, unit: What the budget bounds.
        layers: Before and after, costs in the budget's unit; none of a comparison.
        elsewhere: What is not in a layer costs, before and after: conversions, additions.
        warmup: First evaluations that were not chosen by what was learned.
        asked: Of a comparison, the searches asked for: agent -> its seeds.
    """

    title: str
    about: Mapping[str, str]
    reward: str
    levels: Mapping[str, float]
    scores: Sequence[NamedScore]
    primary: str
    original: Mapping[str, float]
    notes: Sequence[str]
    versions: Mapping[str, str]
    metric: str = ""
    unit: str = ""
    layers: Sequence[LayerRow] = ()
    elsewhere: tuple[float, float] = (0.0, 0.0)
    warmup: int = 0
    asked: Mapping[str, Sequence[int]] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write ``result.json``.

        Raises:
            StorageError: The folder cannot be written.
        """
        document = {"format": "amc-result", "version": FORMAT_VERSION, **asdict(self)}
        write_text(folder / RESULT_FILE, json.dumps(document, indent=1) + "\n")

    @classmethod
    def read(cls, folder: Path) -> ResultRecord | None:
        """Read it; None where there is none: of earlier versions, or of what did not end.

        Raises:
            ArtifactError: It is damaged.
        """
        path = folder / RESULT_FILE
        if not path.is_file():
            return None
        document = read_document(
            path, "Result", "amc-result", FORMAT_VERSION, _FIELDS, advice=_ADVICE
        )
        wrong = fault(str(path), ArtifactError, _ADVICE)
        found = {name: document[name] for name in _FIELDS}
        found["scores"] = [score_of(part, wrong) for part in found["scores"]]
        found["layers"] = [_checked(LayerRow, part, _LAYER, wrong) for part in found["layers"]]
        found["elsewhere"] = tuple(found["elsewhere"])
        if found["primary"] not in {score.name for score in found["scores"]}:
            raise wrong("is damaged: 'primary' must be one of the scores")
        return cls(**found)

    @property
    def named(self) -> NamedScore:
        """The primary score."""
        return next(score for score in self.scores if score.name == self.primary)


def score_of(part: Mapping[str, Any], wrong: Fault) -> NamedScore:
    """A score as `asdict` wrote it."""
    score: NamedScore = _checked(NamedScore, part, _SCORE, wrong)
    return score


def _checked(
    kind: type[Any], part: Mapping[str, Any], fields: dict[str, Kind], wrong: Fault
) -> Any:
    check_fields(part, fields, wrong)
    return kind(**{name: part[name] for name in fields})


FINITE: Kind = (lambda value: is_number(value) and math.isfinite(value), "a finite number")
_STRING: Kind = (lambda value: isinstance(value, str), "text")
_SCORE: dict[str, Kind] = {
    "name": TEXT,
    "heading": _STRING,
    "needs_targets": or_null(SWITCH),
    "is_fraction": SWITCH,
    "more_is_better": SWITCH,
}
_LAYER: dict[str, Kind] = {
    "name": TEXT,
    **dict.fromkeys(("channels_before", "channels_after", "weight_bits", "activation_bits"), WHOLE),
    **dict.fromkeys(("cost_before", "cost_after"), FINITE),
    "others": object_of(FINITE),
}
_FIELDS: dict[str, Kind] = {
    "title": TEXT,
    "about": object_of(_STRING),
    "reward": _STRING,
    "levels": object_of(FINITE),
    "scores": list_of(OBJECT),
    "primary": TEXT,
    "original": object_of(FINITE),
    "notes": list_of(_STRING),
    "versions": object_of(_STRING),
    "metric": _STRING,
    "unit": _STRING,
    "layers": list_of(OBJECT),
    "elsewhere": (
        lambda value: isinstance(value, list) and len(value) == 2 and all(map(FINITE[0], value)),
        "two numbers",
    ),
    "warmup": WHOLE,
    "asked": object_of(list_of(WHOLE)),
}
