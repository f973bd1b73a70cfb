"""What the tests of the command line share: a folder to work in, and one finished search."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from amc.problem import local
from amc.report.tensorboard import EventWriter
from amc.utils.measure import measure_latency
from tests.cli.command import search


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test works in a folder of its own."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def _logging() -> Iterator[None]:
    """Hydra sets up the process's logging; undone, so that no handler outlives its stream."""
    loggers = [logging.getLogger(), logging.getLogger("amc.run_log")]
    before = [(logger, logger.handlers[:], logger.level, logger.propagate) for logger in loggers]
    yield
    for logger, handlers, level, propagate in before:
        logger.handlers[:], logger.level, logger.propagate = handlers, level, propagate


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A search without pictures, and with one round of timing."""
    monkeypatch.setattr(local, "measure_latency", partial(measure_latency, rounds=1))
    monkeypatch.setattr(EventWriter, "strategy_image", lambda *_: None)
    monkeypatch.setattr("amc.study.result.plot_strategy", lambda *_, **__: None)
    monkeypatch.setattr("amc.study.result.plot_learning_curve", lambda *_, **__: None)


@pytest.fixture(scope="session")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished search, made once with all that a search does; do not change it."""
    folder = tmp_path_factory.mktemp("searched") / "run"
    assert search(f"hydra.run.dir={folder}") == 0
    return folder
