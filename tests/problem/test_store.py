from __future__ import annotations

import copy
import json
import logging
import math
import pickle
import random
import sqlite3
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from amc.cost.budget import Budget
from amc.data import DataSet
from amc.errors import ArtifactError, ConfigError, StorageError
from amc.problem import task as task_module
from amc.problem.evaluate import Evaluation
from amc.problem.problem import Problem
from amc.problem.space import SearchSpace
from amc.problem.store import _FORMER, EvaluationStore, default_path, evaluation_code, open_store
from amc.problem.task import CompressionTask
from amc.recovery.settings import RecoverySettings
from amc.strategy import IDENTITY, Bits, Strategy
from amc.utils import conditions
from benchmarks.store import killed_in_the_middle, nothing_wrong
from tests.conftest import TINY_CLASSES, TINY_SHAPE, classified

HALF = Strategy({"conv1": 0.5}, {"conv2": Bits(8, 8)})
FOUND = classified(1 / 3, 0.1 + 0.2, -1e-300, seconds=0.7)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "evaluations.sqlite"


@pytest.fixture
def store(path: Path) -> EvaluationStore:
    return EvaluationStore(path)


# -- what is remembered --------------------------------------------------------------------


def test_what_was_put_is_found_again_by_another_process_in_its_place(
    store: EvaluationStore, path: Path
) -> None:
    assert store.get("task", HALF) is None
    store.put("task", HALF, FOUND)
    store.close()
    assert EvaluationStore(path).get("task", HALF) == FOUND


@pytest.mark.parametrize(
    "number", [0.1 + 0.2, -0.0, 0.0, 5e-324, 1.7976931348623157e308, math.inf, -math.inf, 1.0]
)
def test_numbers_come_back_to_the_bit(number: float, store: EvaluationStore) -> None:
    store.put("task", HALF, classified(number, number, number, seconds=number))
    found = store.get("task", HALF)
    assert found is not None
    for value in (found.accuracy, found.loss, found.agreement, found.seconds):
        assert (value, math.copysign(1, value)) == (number, math.copysign(1, number))


def test_not_a_number_comes_back_as_such(store: EvaluationStore) -> None:
    store.put("task", HALF, replace(FOUND, scores={**FOUND.scores, "loss": math.nan}))
    found = store.get("task", HALF)
    assert found is not None
    assert math.isnan(found.loss)


def test_first_evaluation_of_a_strategy_stays_and_is_not_doubled(store: EvaluationStore) -> None:
    store.put("task", HALF, FOUND)
    store.put("task", HALF, replace(FOUND, scores={"accuracy": 0.9}))
    assert len(store) == 1
    assert store.get("task", HALF) == FOUND


def test_tasks_and_strategies_are_kept_apart(store: EvaluationStore) -> None:
    store.put("task", HALF, FOUND)
    assert store.get("other", HALF) is None
    assert store.get("task", IDENTITY) is None
    store.put("other", HALF, replace(FOUND, scores={"accuracy": 0.9}))
    assert store.get("task", HALF) == FOUND


def test_equal_strategies_are_one_whatever_their_order(store: EvaluationStore) -> None:
    store.put("task", Strategy({"a": 0.5, "b": 0.25}, {}), FOUND)
    assert store.get("task", Strategy({"b": 0.25, "a": 0.5}, {})) == FOUND


def test_store_goes_to_another_process_as_its_path(store: EvaluationStore) -> None:
    store.put("task", HALF, FOUND)
    for other in (pickle.loads(pickle.dumps(store)), copy.deepcopy(store)):
        assert other.get("task", HALF) == FOUND


def test_file_holds_text_only(store: EvaluationStore, path: Path) -> None:
    store.put("task", HALF, FOUND)
    (row,) = sqlite3.connect(path).execute("SELECT * FROM scores").fetchall()
    scores = {"accuracy": repr(1 / 3), "loss": repr(0.1 + 0.2), "agreement": "-1e-300"}
    assert row == ("task", HALF.to_json(), json.dumps(scores), "0.7")


def test_scores_of_any_objective_are_remembered(store: EvaluationStore) -> None:
    found = Evaluation({"mean_iou": 1 / 3, "agreement": -0.0}, seconds=0.7)
    store.put("task", HALF, found)
    assert store.get("task", HALF) == found


@pytest.mark.parametrize("read_only", [False, True])
def test_store_of_an_earlier_version_is_read_and_added_to(
    read_only: bool, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.parent.mkdir()
    database = sqlite3.connect(path)
    database.execute(_FORMER)
    rows = [("task", "0.25", "inf"), ("bare", "none", "none")]
    for task, accuracy, loss in rows:
        row = (task, HALF.to_json(), accuracy, loss, "-0.0", "0.7")
        database.execute("INSERT INTO evaluations VALUES (?, ?, ?, ?, ?, ?)", row)
    database.commit()
    database.close()
    if read_only:
        _read_only(monkeypatch)
    store = EvaluationStore(path)
    assert store.writable is not read_only
    assert store.get("task", HALF) == classified(0.25, math.inf, -0.0, seconds=0.7)
    assert store.get("bare", HALF) == Evaluation({"agreement": -0.0}, seconds=0.7)
    store.put("task", IDENTITY, FOUND)
    assert store.get("task", IDENTITY) == (None if read_only else FOUND)
    assert len(store) == (2 if read_only else 3)


@pytest.mark.parametrize(
    "scores", ["[]", "{", "[" * 9999, '{"accuracy": 0.5}', '{"accuracy": "high"}']
)
def test_row_that_holds_no_scores_is_refused(
    scores: str, store: EvaluationStore, path: Path
) -> None:
    store._database.execute(
        "INSERT INTO scores VALUES ('task', ?, ?, '0.7')", HALF.to_json(), scores
    )
    with pytest.raises(ArtifactError, match=r"is damaged.*Remove the file"):
        store.get("task", HALF)


@pytest.mark.parametrize(("writers", "killed", "least"), [(2, 1, 100), (8, 3, 200)])
def test_writers_of_which_some_are_killed_lose_and_double_nothing(
    path: Path, writers: int, killed: int, least: int
) -> None:
    path.parent.mkdir()
    options = Namespace(writers=writers, killed=killed, strategies=200, within=0.05)
    found = killed_in_the_middle(str(path), options, random.Random(0))
    assert int(str(found["rows"])) >= least  # of two the survivor writes half, of eight all
    assert nothing_wrong(found, killed), found


# -- what cannot be used -------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"not a database, by far" * 50, b"SQLite format 3\0" * 99])
def test_file_that_is_no_store_is_left_alone_and_said_to_be_removed(
    content: bytes, path: Path
) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"evaluations.sqlite is damaged.*Remove the file"):
        EvaluationStore(path)
    assert path.read_bytes() == content


def test_table_of_another_version_is_refused(path: Path) -> None:
    path.parent.mkdir()
    database = sqlite3.connect(path)
    database.execute("CREATE TABLE evaluations (task TEXT, strategy TEXT)")
    database.close()
    with pytest.raises(ArtifactError, match=r"holds 'table' 'evaluations', which is none.*Remove"):
        EvaluationStore(path)


def test_folder_that_cannot_be_made_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="Could not write"):
        EvaluationStore(tmp_path / "file" / "evaluations.sqlite")


def _read_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """As for a user without permission; the one who runs the tests may be root."""
    connect = sqlite3.connect

    def connected(path: str, **options: Any) -> sqlite3.Connection:
        uri = path if path.startswith("file:") else f"{Path(path).as_uri()}?mode=ro"
        return connect(uri, **{**options, "uri": True})

    monkeypatch.setattr(sqlite3, "connect", connected)


def test_store_without_permission_to_write_is_read_and_not_added_to(
    store: EvaluationStore,
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    store.put("task", HALF, FOUND)
    store.close()
    _read_only(monkeypatch)
    found = open_store(path)
    assert found is not None
    assert "cannot be written: it is read, and nothing is added" in caplog.text
    found.put("task", IDENTITY, FOUND)
    assert found.get("task", HALF) == FOUND
    assert found.get("task", IDENTITY) is None


def test_cache_that_cannot_be_made_is_done_without_and_one_given_by_name_is_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("AMC_CACHE", str(tmp_path / "file" / "cache"))
    assert open_store(True) is None
    assert "Searching without it" in caplog.text
    with pytest.raises(StorageError):
        open_store(default_path())


def test_full_disk_is_said(store: EvaluationStore) -> None:
    pages = store._database.rows("PRAGMA page_count")[0][0]
    store._database.execute(f"PRAGMA max_page_count={pages}")  # SQLite's own way to be full
    large = Strategy({f"group{number}": 0.5 for number in range(2000)}, {})  # many pages
    with pytest.raises(StorageError, match="no space left on the disk"):
        store.put("task", large, FOUND)
    assert len(store) == 0


def test_file_in_use_for_too_long_is_said(
    store: EvaluationStore, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store._database.execute("PRAGMA busy_timeout=10")
    other = sqlite3.connect(path)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StorageError, match="in use by another process"):
        store.put("task", HALF, FOUND)


def test_store_may_be_named_left_out_or_the_users_own(path: Path) -> None:
    assert open_store(False) is None
    assert open_store(str(path)).path == path  # type: ignore[union-attr]
    assert open_store(True).path == default_path()  # type: ignore[union-attr]


def test_store_that_is_no_path_is_refused() -> None:
    with pytest.raises(ConfigError, match="store must be true, false, the path of a file, or"):
        open_store(3)  # type: ignore[arg-type]


# -- what a task keeps there ---------------------------------------------------------------


@pytest.fixture(scope="module")
def data() -> DataSet:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (200, *TINY_SHAPE), dtype=torch.uint8, generator=generator)
    return DataSet.from_tensors(images, torch.arange(200) % TINY_CLASSES)


def task_of(network: nn.Module, data: DataSet, **options: object) -> CompressionTask:
    budget = options.pop("budget", Budget("macs", fraction=0.5))
    given = {"recovery": RecoverySettings(images=32), "search_images": 20} | options
    store = given.pop("store", None)
    return CompressionTask(Problem(network, data, None, budget, **given), store)  # type: ignore[arg-type]


def _not_built(*_: object) -> None:
    raise AssertionError("a candidate was built")


def test_strategy_seen_before_is_not_built_again_under_another_budget_and_space(
    tiny_net: nn.Module, data: DataSet, store: EvaluationStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = task_of(tiny_net, data, store=store)
    found = first.evaluate(HALF)
    other = task_of(
        copy.deepcopy(tiny_net),
        data,
        store=store,
        budget=Budget("params", fraction=0.7),
        space=SearchSpace(min_preserve_ratio=0.4),
    )
    monkeypatch.setattr(other.compressor, "apply", _not_built)
    assert other.evaluate(HALF) == found
    assert other.fingerprint() != first.fingerprint()


def test_key_changes_with_all_that_an_evaluation_depends_on_and_with_nothing_else(
    tiny_net: nn.Module, data: DataSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Squared(nn.Module):
        """The same layers, and another function between them."""

        def __init__(self, network: nn.Module) -> None:
            super().__init__()
            self.__dict__["_modules"] = network._modules

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.relu(self.bn1(self.conv1(x))) ** 2
            x = torch.relu(self.bn2(self.conv2(x)))
            x = torch.relu(self.bn3(self.conv3(x)) + x)
            return self.linear(x.mean((2, 3)))

    changed = copy.deepcopy(tiny_net)
    changed.conv1.weight.data[0, 0, 0, 0] += 1e-3
    base = task_of(tiny_net, data).evaluation_key()
    keys = [
        base,
        task_of(changed, data).evaluation_key(),
        task_of(Squared(tiny_net).eval(), data).evaluation_key(),
        task_of(tiny_net, data, search_images=21).evaluation_key(),
        task_of(tiny_net, data, bfloat16=True).evaluation_key(),
        task_of(tiny_net, data, recovery=RecoverySettings(images=33)).evaluation_key(),
    ]
    monkeypatch.setattr(task_module, "evaluation_code", lambda: "other code")
    keys.append(task_of(tiny_net, data).evaluation_key())
    assert len(set(keys)) == len(keys)
    monkeypatch.undo()
    assert task_of(tiny_net, data, budget=Budget("params", 0.7)).evaluation_key() == base


def test_code_of_an_evaluation_counts_threads_libraries_and_files(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    now = evaluation_code()
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        assert evaluation_code() != now
    finally:
        torch.set_num_threads(threads)
    assert evaluation_code() == now
    with monkeypatch.context() as patch:
        patch.setattr(conditions, "_version", lambda library: f"{library} of tomorrow")
        assert evaluation_code() != now
    assert evaluation_code() == now
    (tmp_path / "room").mkdir()
    (tmp_path / "room" / "a.py").write_text("x = 1\n")
    before = conditions.sources(tmp_path / "room")
    (tmp_path / "room" / "a.py").write_text("x = 2\n")
    after = conditions.sources(tmp_path / "room")
    assert list(before) == list(after) == ["room/a.py"]
    assert before != after


def test_store_that_fails_in_the_middle_does_not_end_the_search(
    tiny_net: nn.Module,
    data: DataSet,
    store: EvaluationStore,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    task = task_of(tiny_net, data, store=store)
    expected = task_of(tiny_net, data).evaluate(HALF)

    def full(*_: object) -> None:
        raise StorageError("no space left on the disk.")

    monkeypatch.setattr(store, "put", full)
    caplog.set_level(logging.WARNING)
    assert replace(task.evaluate(HALF), seconds=0) == replace(expected, seconds=0)
    task.evaluate(IDENTITY)
    assert caplog.text.count("Going on without it") == 1
