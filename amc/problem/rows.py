"""Scores as stores keep them: as text, for a database's own numbers lose -0.0 and NaN."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

from amc.errors import AmcError
from amc.utils.documents import TEXT, check_fields, object_of, parse_json


def text_of(scores: Mapping[str, float]) -> str:
    """Scores with all their digits."""
    return json.dumps({name: repr(float(score)) for name, score in scores.items()})


def scores_of(text: str, wrong: Callable[[str], AmcError]) -> dict[str, float]:
    """The inverse of `text_of`.

    Args:
        wrong: Makes the error that is raised where the text is none.
    """
    found = {"scores": parse_json(text, wrong)}
    check_fields(found, {"scores": object_of(TEXT)}, wrong)
    return {name: float(score) for name, score in found["scores"].items()}
