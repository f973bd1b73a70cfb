"""Searches killed with -9 and resumed, against the one that nothing stopped.

    python -m benchmarks.resume --runs 10

A search of a small network on the embedded digits, by a learning agent, through the command
line. Killed at moments drawn at random over its duration, in the middle of writing the agent's
state, or in the middle of a transaction of the journal; resumed, perhaps killed again, until it
ends. Then strategy.json must be the same bytes, trials.csv the same but for its clocks.
"""

from __future__ import annotations

import argparse
import csv
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from agents.trial import Trial
from amc.cli.main import main as amc
from amc.study import journal
from amc.study.artifact import TRIALS_FILE
from amc.utils import sealed
from amc.utils.files import write_tensors
from amc.utils.runs import STRATEGY_FILE
from benchmarks.provenance import print_table, provenance, write_csv

CLOCKS = ("agent/agent_seconds", "evaluation_seconds")
OPTIONS = (
    "network=lenet_5",
    "data=digits",
    "device=roofline_phone",
    "search.final_candidates=1",
    "search.images=100",
    "recovery.images=64",
    "recovery.batch_norm_images=32",
    "search.checkpoint_every=2",
    "agent.hidden=[64,64]",
    "search.store=false",  # else a resumed search could find its evaluations there
)
LOG = Path("searches.log")
_FORK = multiprocessing.get_context("fork")  # what is imported once serves all searches


def arguments() -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--agents", nargs="+", default=["ddpg"])
    parser.add_argument("--evaluations", type=int, default=30)
    parser.add_argument("--kills", type=int, default=3, help="at most so many in one run")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


# -- where a search is killed --------------------------------------------------------------


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _in_checkpoint(countdown: int) -> None:
    """Kill this process when half of the countdown-th state is written."""
    write = write_tensors
    left = [countdown]

    def killed(path: Path, *rest: object) -> None:
        left[0] -= 1
        if left[0] == 0:
            write(path, *rest)  # type: ignore[arg-type]
            half = path.read_bytes()[: path.stat().st_size // 2]
            path.with_name(f".{path.name}.abcd1234").write_bytes(half)
            _die()
        write(path, *rest)  # type: ignore[arg-type]

    setattr(sealed, "write_tensors", killed)  # noqa: B010  # a name that it imported


def _in_journal(countdown: int) -> None:
    """Kill this process between the countdown-th insertion and its commit."""
    left = [countdown]

    def killed(self: journal.Journal, trial: Trial) -> None:
        left[0] -= 1
        with self._database.transaction():
            self._database.execute(journal._APPEND, *journal._row(trial))
            if left[0] == 0:
                _die()

    journal.Journal.append = killed  # type: ignore[method-assign]


WAYS: dict[str, Callable[[int], None]] = {
    "at any time": lambda _: None,
    "writing the state": _in_checkpoint,
    "in a transaction": _in_journal,
}


def _search(given: tuple[str, ...], way: str, countdown: int, log: Path) -> None:
    with log.open("a") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
    WAYS[way](countdown)
    amc(["search", *given])


def _run(given: tuple[str, ...], way: str, countdown: int, kill_after_s: float | None) -> int:
    """Exit code of a search; below 0 if it was killed."""
    process = _FORK.Process(target=_search, args=(given, way, countdown, LOG))
    process.start()
    process.join(kill_after_s)
    if process.is_alive():
        process.kill()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


# -- one comparison ------------------------------------------------------------------------


def trials_of(folder: Path) -> list[dict[str, str]]:
    """The rows of a run's trials.csv without the columns that hold wall-clock times."""
    with (folder / TRIALS_FILE).open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [{key: row[key] for key in row if key not in CLOCKS} for row in rows]


def killed_and_resumed(
    folder: Path, start: tuple[str, ...], duration_s: float, most: int, draw: random.Random
) -> list[str]:
    """Kill a search, once at least, and resume it until it ends; says how it was killed."""
    killed: list[str] = []
    code = -1
    while code != 0 or not killed:
        way = draw.choice(list(WAYS)) if len(killed) < most else "at any time"
        timed = way == "at any time" and len(killed) < most
        begun = (folder / "run.json").exists() and code != 0  # else it ended too soon
        given = (f"resume={folder}",) if begun else (*start, f"hydra.run.dir={folder}")
        if not begun:
            shutil.rmtree(folder, ignore_errors=True)  # nothing of a run was written yet
        limit = draw.uniform(0.2, 0.9) * duration_s if timed else None
        code = _run(given, way, draw.randint(1, 3), limit)
        if code > 0:
            raise SystemExit(f"A search failed:\n{LOG.read_text()[-2000:]}")
        if code < 0:
            known = trials_known(folder)
            killed.append(f"{way} ({known})")
    return killed


def trials_known(folder: Path) -> int:
    """Evaluations that the journal of a killed run holds."""
    if not (folder / "journal.sqlite").exists():
        return 0
    copy = folder.with_name("copy")
    shutil.copytree(folder, copy)
    opened = journal.Journal(copy, resume=True)
    opened.close()
    shutil.rmtree(copy)
    return len(opened.trials)


def compare(agent: str, options: argparse.Namespace) -> list[dict[str, object]]:
    """A row for every run of an agent."""
    start = (*OPTIONS, f"agent={agent}", f"search.evaluations={options.evaluations}")
    started = time.perf_counter()
    whole = Path(f"{agent}-whole")
    if _run((*start, f"hydra.run.dir={whole}"), "at any time", 0, None) != 0:
        raise SystemExit(f"A search failed:\n{LOG.read_text()[-2000:]}")
    duration_s = time.perf_counter() - started
    draw = random.Random(options.seed)
    rows: list[dict[str, object]] = []
    for run in range(1, options.runs + 1):
        folder = Path(f"{agent}-{run}")
        killed = killed_and_resumed(folder, start, duration_s, options.kills, draw)
        same = (folder / STRATEGY_FILE).read_bytes() == (whole / STRATEGY_FILE).read_bytes()
        row = {
            "agent": agent,
            "run": run,
            "evaluations": options.evaluations,
            "kills": len(killed),
            "killed, trials kept": "; ".join(killed),
            "strategy": "same bytes" if same else "DIFFERENT",
            "trials": "same" if trials_of(folder) == trials_of(whole) else "DIFFERENT",
        }
        rows.append(row)
        print(*row.values(), sep="  ", flush=True)
    return rows


def main() -> None:
    """Compare, print the table, write the CSV; exit code 1 if anything differs."""
    options = arguments()
    here = Path.cwd()
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            for agent in options.agents:
                rows += compare(agent, options)
        finally:
            os.chdir(here)
    print_table(rows, list(rows[0]))
    print(write_csv("resume", [row | provenance(options.seed) for row in rows]))
    sys.exit(any("DIFFERENT" in row.values() for row in rows))


if __name__ == "__main__":
    main()
