"""Searches resumed from what a kill -9 at some moment leaves in their folder.

The folder is copied while the search runs: a copy is what would be there, had the process been
killed at that moment.
"""

from __future__ import annotations

import copy
import csv
import errno
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from agents.trial import Trial
from amc import api
from amc.compress.verify import graph_of
from amc.cost.choices import choices_for, requests_for
from amc.cost.device import Measurement, TableDevice, TableHeader
from amc.data import DataSet
from amc.errors import ArtifactError, ConfigError, StorageError
from amc.graph.types import Signature
from amc.problem import candidate
from amc.recovery.settings import RecoverySettings
from amc.runtimes.request import Request
from amc.strategy import FLOAT, IDENTITY, Strategy
from amc.study import checkpoint
from amc.study import recorder as recording
from amc.study.checkpoint import CheckpointFile
from amc.study.journal import Journal
from amc.study.result import SearchResult
from amc.utils import conditions, files, sealed
from amc.utils.files import write_tensors
from tests.conftest import TINY_CLASSES, TINY_SHAPE, classified, fixed_tiny_net, random_images

CLOCKS = ("agent/agent_seconds", "evaluation_seconds")
DDPG = {"name": "ddpg", "hidden": [8], "warmup": 2, "warm_start": "none", "batch_size": 8}
EVALUATIONS = 7
Find = Callable[..., SearchResult]


pytestmark = pytest.mark.usefixtures("quick_end")


@pytest.fixture(scope="module")
def data() -> DataSet:
    return random_images()


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return fixed_tiny_net()


@pytest.fixture(scope="module")
def find(network: nn.Module, data: DataSet) -> Find:
    """A small search that shares no evaluations with others."""

    def run(folder: Path | None, **options: Any) -> SearchResult:
        given = {
            "network": network,
            "agent": DDPG,
            "reward": "accuracy",
            "evaluations": EVALUATIONS,
            "search_images": 20,
            "final_candidates": 1,
            "recovery": RecoverySettings(images=20, batch_norm_images=10),
            "checkpoint_every": 2,
            "store": False,
        } | options
        budget = {"metric": "macs", "fraction": 0.5}
        return api.search(given.pop("network"), data, None, budget, folder=folder, **given)

    return run


@dataclass(frozen=True)
class Watched:
    """A search that ended, and copies of its folder from on the way: moment -> folder."""

    folder: Path
    result: SearchResult
    copies: dict[str, Path]

    def killed(self, moment: str, place: Path) -> Path:
        """A folder to resume in, as it would be had the search been killed at that moment."""
        return shutil.copytree(self.copies[moment], place / "killed")


def watched(folder: Path, search: Callable[[Path], SearchResult]) -> Watched:
    copies: dict[str, Path] = {}

    def keep(moment: str) -> None:
        copies[moment] = folder.with_name(f"{folder.name} {moment}")
        shutil.copytree(folder, copies[moment])

    append, save = Journal.append, files.save_file

    def appending(self: Journal, trial: Any) -> None:
        keep(f"before {trial.index}")
        append(self, trial)
        keep(f"after {trial.index}")

    def saving(tensors: Any, path: Path, header: Any) -> None:
        save(tensors, path, header)
        if "checkpoint" in path.name:
            whole = path.read_bytes()
            path.write_bytes(whole[: len(whole) // 2])
            trials = json.loads(json.loads(header["amc-checkpoint"])["document"])["trials"]
            keep(f"writing the state after {trials}")
            path.write_bytes(whole)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Journal, "append", appending)
        patch.setattr(files, "save_file", saving)
        return Watched(folder, search(folder), copies)


@pytest.fixture(scope="module")
def whole(find: Find, tmp_path_factory: pytest.TempPathFactory) -> Watched:
    """The search that nothing stops."""
    return watched(tmp_path_factory.mktemp("whole") / "run", find)


def trials_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "trials.csv").open(newline="") as file:
        return [{k: row[k] for k in row if k not in CLOCKS} for row in csv.DictReader(file)]


def outcomes(result: SearchResult) -> list[Trial]:
    """The trials without the time that their evaluations took."""
    return [
        replace(trial, evaluation=replace(trial.evaluation, seconds=0.0)) for trial in result.trials
    ]


def same_run(first: Path, second: Path) -> bool:
    names = ("strategy.json", "compressed.safetensors", "compressed.json")
    names += ("policy.safetensors",) if (first / "policy.safetensors").exists() else ()
    same = all((first / name).read_bytes() == (second / name).read_bytes() for name in names)
    return same and trials_of(first) == trials_of(second)


def built(monkeypatch: pytest.MonkeyPatch) -> list[Strategy]:
    """The strategies that are built from now on."""
    strategies: list[Strategy] = []
    apply = candidate.Compressor.apply

    def applying(self: candidate.Compressor, strategy: Strategy) -> Any:
        strategies.append(strategy)
        return apply(self, strategy)

    monkeypatch.setattr(candidate.Compressor, "apply", applying)
    return strategies


# -- the same end --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("moment", "known"),
    [("before 1", 0), ("after 3", 3), ("writing the state after 4", 4), ("before 6", 5)],
)
def test_killed_search_of_a_learning_agent_resumes_to_the_same_end(
    moment: str,
    known: int,
    find: Find,
    whole: Watched,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, strategies = whole.killed(moment, tmp_path), built(monkeypatch)
    result = find(folder, resume=True)
    assert outcomes(result) == outcomes(whole.result)
    assert same_run(whole.folder, folder)
    assert not {trial.strategy for trial in result.trials[:known]} & set(strategies)
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_search_killed_again_and_again_ends_the_same(
    find: Find, whole: Watched, tmp_path: Path
) -> None:
    first = whole.killed("after 3", tmp_path)
    again = watched(first, lambda folder: find(folder, resume=True))
    assert set(again.copies) == {
        *(f"{when} {index}" for when in ("before", "after") for index in range(4, 8)),
        *(f"writing the state after {index}" for index in (4, 6)),
    }
    second = again.copies["writing the state after 6"]
    find(second, resume=True)
    assert same_run(whole.folder, second)


@pytest.mark.parametrize("agent", ["random", "evolution"])
def test_searcher_without_a_state_walks_through_its_evaluations_again(
    agent: str, find: Find, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = watched(tmp_path / "run", lambda folder: find(folder, agent=agent))
    folder, strategies = run.copies["after 5"], built(monkeypatch)
    result = find(folder, agent=agent, resume=True)
    assert outcomes(result) == outcomes(run.result)
    assert same_run(run.folder, folder)
    assert not {trial.strategy for trial in result.trials[:5]} & set(strategies)


def test_removed_checkpoint_costs_the_learning_only(
    find: Find, whole: Watched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = whole.killed("after 5", tmp_path)
    (folder / "checkpoint.safetensors").unlink()
    strategies = built(monkeypatch)
    result = find(folder, resume=True)
    assert same_run(whole.folder, folder)
    assert not {trial.strategy for trial in result.trials[:5]} & set(strategies)


def _press_ctrl_c_after(evaluation: int, monkeypatch: pytest.MonkeyPatch) -> None:
    note = recording.Recorder._note

    def noted(self: recording.Recorder, trial: Any, *rest: Any) -> None:
        note(self, trial, *rest)
        if trial.index >= evaluation:
            self._stop.set()

    monkeypatch.setattr(recording.Recorder, "_note", noted)


def test_search_ended_by_ctrl_c_is_finished_by_resuming_it(
    find: Find, whole: Watched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        _press_ctrl_c_after(3, patch)
        early = find(tmp_path / "run")
    assert early.interrupted
    assert len(early.trials) == 3
    find(tmp_path / "run", resume=True)
    assert same_run(whole.folder, tmp_path / "run")


def test_resumed_search_is_not_ended_before_what_is_known(
    find: Find, whole: Watched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _press_ctrl_c_after(1, monkeypatch)
    folder = whole.killed("after 5", tmp_path)
    assert len(find(folder, resume=True).trials) == 5
    assert len(trials_of(folder)) == 5


def test_events_of_a_resumed_run_have_every_step_once(
    find: Find, whole: Watched, tmp_path: Path
) -> None:
    folder = whole.killed("before 6", tmp_path)  # its events hold step 6 already
    find(folder, resume=True)
    events = EventAccumulator(str(folder)).Reload()
    assert [event.step for event in events.Scalars("reward")] == list(range(1, 8))
    assert len(list(folder.glob("events.out.tfevents.*"))) == 2


# -- what is refused -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"seed": 1}, "config changed: seed 0 -> 1"),
        ({"agent": {**DDPG, "actor_lr": 1e-3}}, r"agent.actor_lr 0.0001 -> 0.001"),
        ({"evaluations": 9, "reward": "agreement"}, "evaluations 7 -> 9, reward accuracy -> agr"),
        ({"search_images": 21}, "task changed: search images 20 -> 21"),
    ],
)
def test_what_changed_is_named_and_nothing_touched(
    options: dict[str, Any], said: str, find: Find, whole: Watched, tmp_path: Path
) -> None:
    folder = whole.killed("after 4", tmp_path)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ArtifactError, match=said):
        find(folder, resume=True, **options)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_changed_code_is_named(
    find: Find, whole: Watched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = conditions.sources
    monkeypatch.setattr(
        conditions, "sources", lambda place: sources(place) | {"amc/api.py": "0" * 16}
    )
    with pytest.raises(ArtifactError, match=r"started otherwise: code changed: amc/api\.py\."):
        find(whole.killed("after 4", tmp_path), resume=True)


def test_changed_network_is_named_and_evaluated_anew_where_resuming_is_forced(
    find: Find,
    whole: Watched,
    network: nn.Module,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, other = whole.killed("after 3", tmp_path), copy.deepcopy(network)
    other.linear.bias.data += torch.arange(TINY_CLASSES)
    with pytest.raises(ArtifactError, match="task changed: network"):
        find(folder, network=other, resume=True)
    strategies = built(monkeypatch)
    result = find(folder, network=other, resume=True, resume_force=True)
    assert len(result.trials) == EVALUATIONS
    # The third trial is walked to again from the state after the second, by the errors as they
    # now are, and built again: what the other network made of it is not taken over.
    assert strategies[0] == result.trials[2].strategy
    assert [t.strategy for t in result.trials[:2]] == [t.strategy for t in whole.result.trials[:2]]


# A cached table has 1 ms and more for every row of TinyNet, and gets rows for other networks.
TABLE = TableHeader("board", "none", 1, 1, 2, (FLOAT,))
OTHERS = {
    Request(Signature("conv2d", (5, 5)), 8, 8, FLOAT): Measurement(9.0, 0.1, 7),
    Request(Signature("linear"), 6, 99, FLOAT): Measurement(9.0, 0.1, 7),  # of a larger TinyNet
}


def search_on(rows: dict[Request, Measurement], options: dict[str, Any]) -> SearchResult:
    return api.search(
        device=TableDevice(TABLE, rows),
        budget={"metric": "latency_ms", "fraction": 0.9},
        agent="random",
        evaluations=3,
        search_images=20,
        final_candidates=1,
        recovery=RecoverySettings(images=20, batch_norm_images=10),
        store=False,
        **options,
    )


@pytest.fixture(scope="module")
def rows(network: nn.Module) -> dict[Request, Measurement]:
    graph = graph_of(network, TINY_SHAPE)
    wanted = requests_for(graph, choices_for(graph, [FLOAT], channel_step=2), FLOAT)
    return {r: Measurement(1.0 + r.in_channels * r.out_channels, 0.1, 7) for r in wanted}


@pytest.fixture(scope="module")
def on_table(
    network: nn.Module,
    data: DataSet,
    rows: dict[Request, Measurement],
    tmp_path_factory: pytest.TempPathFactory,
) -> Watched:
    given = {"network": network, "data": data}
    folder = tmp_path_factory.mktemp("table") / "run"
    return watched(folder, lambda path: search_on(rows, given | {"folder": path}))


def test_search_is_resumed_though_its_table_got_rows_for_another_network(
    on_table: Watched,
    network: nn.Module,
    data: DataSet,
    rows: dict[Request, Measurement],
    tmp_path: Path,
) -> None:
    folder = on_table.killed("after 2", tmp_path)
    again = {"network": network, "data": data, "folder": folder, "resume": True}
    assert search_on(rows | OTHERS, again).strategy == on_table.result.strategy


def test_search_whose_prices_changed_is_not_resumed(
    on_table: Watched,
    network: nn.Module,
    data: DataSet,
    rows: dict[Request, Measurement],
    tmp_path: Path,
) -> None:
    folder = on_table.killed("after 2", tmp_path)
    again = {"network": network, "data": data, "folder": folder, "resume": True}
    last = max(rows, key=lambda request: rows[request].latency_ms)
    with pytest.raises(ArtifactError, match="task changed: device"):
        search_on(rows | {last: Measurement(99.0, 0.1, 7)}, again)


def test_evaluation_that_comes_out_differently_is_said_and_the_run_kept(
    find: Find, whole: Watched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = whole.killed("after 3", tmp_path)
    names = ("journal.sqlite", "trials.csv", "strategy.json")
    before = [(folder / name).read_bytes() for name in names]
    monkeypatch.setattr(
        Journal, "evaluations", lambda self: {t.strategy: classified(0, 9, -9) for t in self.trials}
    )
    with pytest.raises(ArtifactError, match=r"Evaluation 3 of the run .* came out differently"):
        find(folder, resume=True)
    assert before == [(folder / name).read_bytes() for name in names]


def test_finished_search_is_left_alone(find: Find, whole: Watched) -> None:
    with pytest.raises(ArtifactError, match="is finished: nothing to resume"):
        find(whole.folder, resume=True)
    with pytest.raises(ArtifactError, match="already holds a search"):
        find(whole.folder)
    assert not (whole.folder / "checkpoint.safetensors").exists()


def test_resume_needs_a_folder_and_starts_where_there_is_no_search(
    find: Find, whole: Watched, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="resume=True needs the folder"):
        find(None, resume=True)
    with pytest.raises(ConfigError, match="checkpoint_every must be at least 1, got 0"):
        find(tmp_path, checkpoint_every=0)
    find(tmp_path / "new", resume=True)
    assert same_run(whole.folder, tmp_path / "new")


# -- the checkpoint's file -----------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"x" * 99])
def test_damaged_checkpoint_says_that_it_may_be_removed(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "checkpoint.safetensors").write_bytes(content)
    journal = Journal(None)
    journal.trials = [Trial(1, IDENTITY, classified(0.5, 1.0, 0.0), 0.5)]
    with pytest.raises(ArtifactError, match=r"not a readable safetensors.*Remove it: the search"):
        CheckpointFile(tmp_path, journal, 1).load()


def test_changed_bit_in_a_checkpoint_is_found_by_its_checksum(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    checkpoint._SEALED.write(path, {"x": torch.zeros(1)}, {"trials": 0, "numbers": {}})
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    journal = Journal(None)
    journal.trials = [Trial(1, IDENTITY, classified(0.5, 1.0, 0.0), 0.5)]
    with pytest.raises(ArtifactError, match=r"does not have its checksum\. Remove it: the search"):
        CheckpointFile(tmp_path, journal, 1).load()


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (
            {},
            "is not the checkpoint of a search of this version of amc: it has no 'amc-checkpoint'",
        ),
        ({"format": "amc-checkpoint", "version": "1"}, "is not the checkpoint of a search of this"),
        ({"amc-checkpoint": "3"}, "has version 3, this amc reads 2"),
        ({"amc-checkpoint": '{"version": 2}'}, "'checksum' must be text, and is missing"),
        (
            {"amc-checkpoint": '{"version": 2, "checksum": "0", "document": "{}"}'},
            "does not have its checksum",
        ),
    ],
)
def test_checkpoint_of_another_kind_is_refused(
    header: dict[str, str], said: str, tmp_path: Path
) -> None:
    file = CheckpointFile(tmp_path, Journal(None), 1)
    write_tensors(tmp_path / "checkpoint.safetensors", {"x": torch.zeros(1)}, header)
    with pytest.raises(ArtifactError, match=f"{said}.*Remove it: the search"):
        file.load()


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({"trials": 1, "numbers": {}}, "from after evaluation 1, the journal ends with 0"),
        ({"trials": -1, "numbers": {}}, "'trials' must be a whole number from 0, got -1"),
        ({"trials": 1}, "'numbers' must be an object, and is missing"),
        ([], "expected an object"),
    ],
)
def test_checkpoint_of_another_run_or_with_another_content_is_refused(
    document: dict[str, object], said: str, tmp_path: Path
) -> None:
    file = CheckpointFile(tmp_path, Journal(None), 1)
    path, tensors = tmp_path / "checkpoint.safetensors", {"x": torch.zeros(1)}
    text = json.dumps(document)
    seal = {"version": 2, "document": text, "checksum": sealed._checksum(tensors, text)}
    write_tensors(path, tensors, {"amc-checkpoint": json.dumps(seal)})
    with pytest.raises(ArtifactError, match=f"{said}.*Remove it: the search"):
        file.load()


# -- a disk that is full -------------------------------------------------------------------


def test_a_disk_that_is_full_at_the_very_end_costs_nothing_but_the_end(
    find: Find, whole: Watched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = files.save_file

    def full(tensors: Any, path: Path, header: Any) -> None:
        if "compressed" in path.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(tensors, path, header)

    monkeypatch.setattr(files, "save_file", full)
    with pytest.raises(StorageError) as raised:
        find(tmp_path / "run")
    assert str(raised.value) == (
        f"No space left on the disk while writing {tmp_path / 'run' / 'compressed.safetensors'}. "
        "Free some, run again. What was done is kept. To go on instead of beginning anew: "
        "amc.search(..., folder=..., resume=True)."
    )
    monkeypatch.setattr(files, "save_file", save)
    found = find(tmp_path / "run", resume=True)
    assert found.strategy == whole.result.strategy
    assert len(found.trials) == EVALUATIONS
