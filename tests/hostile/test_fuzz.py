"""The benchmark counts what it should find: exceptions, processes that end, files that hang."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from amc.errors import StrategyError
from benchmarks.fuzz import attempts, row
from tests.hostile import attempts as attempts_module
from tests.hostile.attempts import OTHER, READ, REFUSED, Reader
from tests.hostile.kinds import FileKind


def _kind(behave: Callable[[bytes], None]) -> FileKind:
    def make(folder: Path) -> None:
        (folder / "file").write_bytes(b"sound")

    def read(folder: Path) -> None:
        content = (folder / "file").read_bytes()
        if content != b"sound":
            behave(content)

    return FileKind("file", make, read)


def _refuse(content: bytes) -> None:
    raise StrategyError("no")


def _fail(content: bytes) -> None:
    raise KeyError("model")


def _end(content: bytes) -> None:
    os._exit(1)


def _hang(content: bytes) -> None:
    time.sleep(60)


@pytest.mark.parametrize(
    ("behave", "outcome", "hangs"),
    [(_refuse, REFUSED, 0), (_fail, OTHER, 0), (_end, None, 2), (_hang, None, 2)],
)
def test_what_comes_of_a_file_is_counted(
    behave: Callable[[bytes], None],
    outcome: str | None,
    hangs: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(attempts_module, "KINDS", {"made up": _kind(behave)})
    tally = attempts([("made up", 0), ("made up", 1)], 0, 0.05)
    assert tally.files == 2
    assert tally.hangs == hangs
    assert dict(tally.outcomes) == ({} if outcome is None else {outcome: 2})
    assert tally.is_clean == (outcome == REFUSED)


@pytest.mark.parametrize("kind", ["policy", "journal", "checkpoint, .pt", "training state"])
def test_mutations_are_the_same_for_the_same_seed(kind: str) -> None:
    reader = Reader(kind)
    drawn = [reader.mutated(0, number) for number in range(40)]
    assert drawn == [Reader(kind).mutated(0, number) for number in range(40)]
    assert len(set(drawn)) > 30
    assert drawn != [reader.mutated(1, number) for number in range(40)]


def test_line_of_the_table_says_the_file_and_what_came_of_it() -> None:
    tally = attempts([("strategy", "ratio of 400 digits"), ("strategy", 0)], 0, 5.0)
    found = row("strategy", tally)
    assert (found["file"], found["files"], found["hangs"]) == ("strategy.json", 2, 0)
    assert found[REFUSED] == 2 - tally.outcomes[READ]
    assert tally.peak_mb > 0
