"""Whatever is in a file: it is read, or refused in one clear error, in no time."""

from __future__ import annotations

import pytest

from amc.utils import pickles
from tests.hostile.attempts import OTHER, READ, REFUSED, Reader
from tests.hostile.handmade import HANDMADE
from tests.hostile.kinds import KINDS

MUTATIONS = 20  # of every kind here; `python -m benchmarks.fuzz` does more


@pytest.fixture(scope="module")
def readers() -> dict[str, Reader]:
    return {}


def reader_of(kind: str, readers: dict[str, Reader]) -> Reader:
    if kind not in readers:
        readers[kind] = Reader(kind)
    return readers[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_no_mutation_of_a_file_raises_anything_but_an_error_of_amc(
    kind: str, readers: dict[str, Reader]
) -> None:
    reader = reader_of(kind, readers)
    sound = reader.attempt(reader.sound)
    assert sound.outcome == (REFUSED if kind == "list to measure" else READ), sound.said
    for number in range(MUTATIONS):
        found = reader.attempt(reader.mutated(0, number))
        assert found.outcome != OTHER, f"mutation {number}: {found.said}"
        assert "\n" not in found.said


@pytest.mark.parametrize("name", HANDMADE)
def test_hostile_file_is_refused_in_one_error(
    name: str, readers: dict[str, Reader], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pickles, "MOST_STEPS", 100_000)  # the bound holds at once, not in seconds
    made = HANDMADE[name]
    reader = reader_of(made.kind, readers)
    found = reader.attempt(made.make(reader.sound))
    assert found.outcome == REFUSED, found
    assert made.said in found.said
    assert KINDS[made.kind].file.rpartition("/")[2] in found.said
    assert len(found.said) < 2000
