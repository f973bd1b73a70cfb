from __future__ import annotations

import csv
import multiprocessing
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agents.searcher import SEARCHERS
from amc.cli import compare as recipe
from amc.cli import workers
from amc.comparison import cells, comparison
from amc.comparison.bench import Bench, Failure
from amc.errors import AmcError, StorageError
from amc.study.artifact import RunRecord
from amc.utils.processes import deaf_to_ctrl_c
from envs.observation import FEATURES
from tests.cli.command import NETWORK, REPAIR, amc

Output = pytest.CaptureFixture[str]
SMALL = (
    NETWORK,
    "data=digits",
    "device=roofline_phone",
    "agents=[random,uniform]",
    "seeds=[0,1]",
    "reward=agreement",
    "search.evaluations=3",
    "search.final_candidates=1",
    "search.bfloat16=false",  # in processes of their own too
    *REPAIR,
)
FILES = {
    ".hydra",
    "cells",
    "compare.log",
    "comparison.csv",
    "comparison.md",
    "curves.csv",
    "curves.png",
    "report.html",
    "result.json",
    "run.json",
}


def compare(*arguments: str) -> int:
    """A small comparison; what is given comes after ``SMALL`` and so before it."""
    return amc("compare", *SMALL, *arguments)


def _numbers(folder: str) -> list[dict[str, str]]:
    """The rows of a comparison without its times."""
    with Path(folder, "comparison.csv").open() as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        del row["agent_seconds"], row["seconds"]
    return rows


@pytest.fixture(autouse=True)
def _no_picture(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    if "picture" not in request.node.name:
        monkeypatch.setattr(comparison, "plot_curves", lambda *_, **__: None)


# -- what a comparison leaves --------------------------------------------------------------


def test_comparison_leaves_record_table_numbers_curves_and_picture(capsys: Output) -> None:
    assert compare("hydra.run.dir=out") == 0
    assert {path.name for path in Path("out").iterdir()} == FILES
    assert len(_numbers("out")) == 4
    record = RunRecord.read(Path("out"))
    assert record.kind == "compare"
    assert record.settings["agents"] == ["random", "uniform"]
    assert record.settings["seeds"] == [0, 1]
    shown = capsys.readouterr()
    assert shown.out.startswith("Tiny: latency_ms at most 0.6 of the original, 3 evaluations\n")
    assert shown.out.splitlines()[-1] == f"written to {Path.cwd() / 'out'}"
    assert "note: Original: test accuracy " in shown.out
    assert "comparing: 12/12" in shown.err
    assert shown.err.count("repairing: ") == 1  # the uniform strategy's, before the searches


def test_all_agents_are_compared_unless_some_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def no_more(_problem: object, **options: Any) -> None:
        asked.append(options["agents"])
        raise StorageError("no more")

    monkeypatch.setattr(recipe, "compare", no_more)
    assert compare("agents=null", "hydra.run.dir=out") == 1
    assert asked == [list(SEARCHERS)]
    assert RunRecord.read(Path("out")).settings["agents"] == list(SEARCHERS)


def _cells_of_experiment(name: str, monkeypatch: pytest.MonkeyPatch) -> list[cells.Cell]:
    found: list[cells.Cell] = []

    def noted(*arguments: Any) -> list[cells.Cell]:
        found.extend(cells.cells_of(*arguments))
        raise AmcError("no more")

    monkeypatch.setattr(recipe, "cells_of", noted)
    assert amc("compare", f"experiment={name}", "seeds=[0]") == 2
    return found


def test_shipped_experiment_takes_one_part_of_the_search_away_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole, *parts = (cell.entry for cell in _cells_of_experiment("ablation", monkeypatch))
    assert (whole.label, whole.settings, whole.evaluations) == ("ddpg", {}, 100)
    assert {entry.name for entry in parts} == {"ddpg"}
    assert all(entry.settings for entry in parts)
    seen = {entry.label: len(entry.observation) for entry in parts}
    assert seen["no_belief"] == len(FEATURES)
    assert seen["sees_plain"] < seen["sees_plain_errors"] < seen["no_belief"]


def test_shipped_experiment_compares_ddpg_with_the_way_of_amc(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = _cells_of_experiment("amc_features", monkeypatch)
    ours, few, amcs = (cell.entry for cell in found)
    assert (ours.name, ours.observation) == ("ddpg", tuple(FEATURES))
    assert (few.name, few.label, few.settings) == ("ddpg", "ddpg_amc_features", {})
    assert len(few.observation) == 11  # He et al. 2018, eq. 1
    assert (amcs.name, amcs.label, amcs.observation) == ("ddpg", "ddpg_amc", few.observation)
    assert (amcs.settings["anchor"], amcs.settings["noise_share"]) == ("none", 1.0)


# -- jobs ----------------------------------------------------------------------------------


def test_number_of_jobs_changes_no_result(capsys: Output) -> None:
    agents = "agents=[{name:ddpg,hidden:[8],warmup:1,warm_start:none}]"
    assert compare(agents, "jobs=2", "hydra.run.dir=two") == 0
    assert "comparing: 6/6" in capsys.readouterr().err
    assert compare(agents, "jobs=1", "search.store=false", "hydra.run.dir=one") == 0
    assert _numbers("two") == _numbers("one")
    assert multiprocessing.active_children() == []


class _Pool:
    """In the place of processes: what the processes do, in this one."""

    fault: BaseException | None = None

    def __init__(self, count: int, context: Any, prepare: Any, arguments: tuple[Any, ...]) -> None:
        self._arguments = arguments

    def submit(self, search: Any, cell: cells.Cell) -> workers.Future[Any]:
        future: workers.Future[Any] = workers.Future()
        if self.fault is not None:
            future.set_exception(self.fault)
        elif cell.seed == 0:
            future.set_result(Failure(cell, "no"))
            self._arguments[1].value += 3
        return future

    def shutdown(self, cancel_futures: bool) -> None:
        assert cancel_futures


def _run_in(pool: type[_Pool], monkeypatch: pytest.MonkeyPatch, stop: threading.Event) -> Any:
    monkeypatch.setattr(workers, "ProcessPoolExecutor", pool)
    told: list[int] = []
    record = RunRecord("compare", {}, {}, {}, {}, {})
    asked = cells.cells_of(["random"], [0, 1], 3)
    found = []
    for outcome in workers.in_parallel(record, 2)(asked, told.append, stop):
        found.append(outcome.cell.seed)
        stop.set()
    return found, sum(told)


def test_ctrl_c_leaves_out_searches_that_had_not_begun_in_a_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert _run_in(_Pool, monkeypatch, threading.Event()) == ([0], 3)


def test_a_process_that_dies_is_said_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_Pool, "fault", workers.BrokenProcessPool())
    with pytest.raises(AmcError, match="Run with fewer than jobs=2: what had ended is kept"):
        _run_in(_Pool, monkeypatch, threading.Event())


@pytest.mark.parametrize(
    ("error", "said", "details"),
    [
        (AmcError("no room\nfor the data"), "no room for the data", ""),
        (MemoryError("9 GB"), "MemoryError: 9 GB", "Traceback"),
    ],
)
def test_what_ends_a_process_in_its_preparation_is_each_of_its_searches_failure(
    error: Exception, said: str, details: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(record: RunRecord) -> Any:
        raise error

    monkeypatch.setattr(workers, "_here", {})
    monkeypatch.setattr(workers.recipe, "problem_of", failing)
    monkeypatch.setattr(workers, "limit_threads", lambda threads: None)
    done, ended = multiprocessing.Value("q", 0), threading.Event()
    workers._build(RunRecord("compare", {}, {}, {}, {}, {"threads": 1}), done, ended)
    (cell,) = cells.cells_of(["random"], [0], 3)
    outcome = workers._search(cell)
    assert isinstance(outcome, Failure)
    assert (outcome.cell, outcome.message) == (cell, said)
    assert outcome.details.startswith(details)
    assert bool(outcome.details) == bool(details)
    assert done.value == 3  # none of them is waited for


@pytest.fixture
def listening() -> Iterator[None]:
    """Ctrl-C raises, also where the tests were started in the background, deaf to it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("listening")
def test_processes_never_see_ctrl_c_and_their_parent_does_afterwards() -> None:
    pending: set[int] = set()

    def start() -> None:
        with deaf_to_ctrl_c():
            signal.raise_signal(signal.SIGINT)
            pending.update(signal.sigpending())

    with pytest.raises(KeyboardInterrupt):
        start()
    assert pending == {signal.SIGINT}
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


# -- resume --------------------------------------------------------------------------------


def test_resumed_comparison_does_what_is_left_with_the_options_of_its_run(
    monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    assert compare("hydra.run.dir=out") == 0
    before = _numbers("out")
    Path("out/cells/uniform-seed1.json").unlink()
    searched: list[str] = []
    run = Bench.run

    def noted(self: Bench, cell: Any, go_on: Any) -> Any:
        searched.append(str(cell))
        return run(self, cell, go_on)

    monkeypatch.setattr(Bench, "run", noted)
    confirmed = ("network=tests.cli.nets:tiny",)
    assert amc("compare", "resume=out", *confirmed) == 0
    assert searched == ["uniform, seed 1"]
    assert _numbers("out") == before
    assert {path.name for path in Path("out").iterdir()} == FILES - {"curves.png"}
    assert not Path("outputs").exists()
    capsys.readouterr()
    assert amc("compare", "resume=out") == 2
    assert "add network=tests.cli.nets:tiny" in capsys.readouterr().err
    assert amc("compare", "resume=out", *confirmed, "seeds=[7]") == 2
    assert "seeds=[7] cannot stand beside resume" in capsys.readouterr().err
    assert amc("search", "resume=out") == 2
    assert "holds a run of amc compare: amc search cannot" in capsys.readouterr().err


# -- failures and Ctrl-C -------------------------------------------------------------------


def test_a_failing_agent_is_in_the_table_and_makes_the_exit_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    def missing() -> Any:
        raise AmcError("agent=gp needs a library: pip install it")

    monkeypatch.setitem(SEARCHERS, "gp", missing)
    assert compare("agents=[gp,uniform]", "hydra.run.dir=out") == 2
    shown = capsys.readouterr()
    assert "note: gp failed (seed 0, 1): agent=gp needs a library: pip install it" in shown.out
    assert "0 of 2" in shown.out
    assert shown.err.count("error: ") == 1
    assert "error: 2 of 4 searches failed: gp." in shown.err
    assert [row["agent"] for row in _numbers("out")] == ["uniform", "uniform"]


def test_ctrl_c_ends_with_the_searches_that_are_whole(
    monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    run = Bench.run

    def interrupted(self: Bench, cell: Any, go_on: Any) -> Any:
        if str(cell) == "uniform, seed 0":
            signal.raise_signal(signal.SIGINT)
        return run(self, cell, go_on)

    monkeypatch.setattr(Bench, "run", interrupted)
    assert compare("hydra.run.dir=out", "agents=[random,uniform,sac]") == 0
    shown = capsys.readouterr()
    assert "ended early by Ctrl-C with" in shown.out
    assert "the rest: amc compare resume=" in shown.out
    assert "1 of 2" in shown.out
    assert _numbers("out")[0]["agent"] == "random"


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("agents=[dpg]", "Unknown agent 'dpg'. Did you mean 'ddpg'"),
        ("agents=[]", "agents must be a list of at least one name"),
        ("agents=ddpg", "agents must be a list, [one,another], or null, got 'ddpg'"),
        ("agents=[ddpg,ddpg]", "Two agents of the comparison are called 'ddpg'"),
        ("seeds=[1,1]", "seeds must differ, got [1, 1]"),
        ("seeds=[-1]", "got seed=-1"),
        ("seeds=3", "seeds must be a list, [one,another], got 3"),
        ("search.evaluations=0", "search.evaluations must be a whole number from 1, got 0"),
        ("jobs=0", "jobs must be a whole number from 1, got 0"),
        ("threads=two", "threads must be a whole number from 1, got 'two'"),
        ("reward=acuracy", "Did you mean 'accuracy'"),
        ("~device", "latency_ms needs a device"),
        ("search.images=0", "search.images must be a whole number from 1"),
        ("seed=1", "no such option. Did you mean 'seeds'?"),
    ],
)
def test_a_mistaken_option_is_said_in_one_message(argument: str, said: str, capsys: Output) -> None:
    assert compare(argument) == 2
    shown = capsys.readouterr().err
    assert said in shown
    assert shown.startswith("error: ")
    assert "Traceback" not in shown
