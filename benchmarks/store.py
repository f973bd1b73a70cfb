"""Two processes that write the store of evaluations at once, one of them killed with -9.

    python -m benchmarks.store --rounds 10

The one that is killed writes all strategies, the survivor every other one, each in an order of
its own. They say after every ``put`` that it is done, so that what the killed one had written is
known. Afterwards the store must be readable, hold all that was said to be written (and at most
the one that it had no time to speak of), each once, and every number to the bit.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import sqlite3
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

from amc.problem.evaluate import Evaluation
from amc.problem.store import EvaluationStore
from amc.strategy import Strategy
from benchmarks.provenance import print_table, provenance, write_csv

TASK = "benchmark"


def arguments() -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--strategies", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def strategy_of(number: int) -> Strategy:
    """A strategy of its own for every number."""
    return Strategy({"group": 1 / (1 + number)}, {})


def evaluation_of(number: int) -> Evaluation:
    """Numbers with all their digits; every process finds the same, but for the seconds."""
    scores = {"accuracy": number / 7, "loss": 1 / (3 + number), "agreement": -0.0}
    return Evaluation(scores, seconds=time.monotonic())


def write(path: Path, numbers: list[int], done: Connection) -> None:
    """Put one evaluation after the other, and say so."""
    store = EvaluationStore(path)
    for number in numbers:
        store.put(TASK, strategy_of(number), evaluation_of(number))
        done.send(number)
    done.close()


def killed_in_the_middle(
    path: Path, strategies: int, kill_after_s: float, draw: random.Random
) -> dict[str, object]:
    """One round; gives what the store held and what of it was wrong."""
    context = multiprocessing.get_context("fork")
    processes, ends = [], []
    for share in (range(strategies), range(0, strategies, 2)):
        order = draw.sample(share, len(share))
        end, given = context.Pipe(duplex=False)
        process = context.Process(target=write, args=(path, order, given))
        process.start()
        given.close()
        processes.append(process)
        ends.append(end)
    said = [_read_until(ends[0], kill_after_s)]
    processes[0].kill()
    said[0] |= _read_until(ends[0], None)
    said.append(_read_until(ends[1], None))
    for process in processes:
        process.join()
    return {"said": len(said[0]), "survivor": len(said[1]), **check(path, said[0] | said[1])}


def _read_until(end: Connection, seconds: float | None) -> set[int]:
    """What a process says within so many seconds, or until it ends."""
    said: set[int] = set()
    stop = None if seconds is None else time.monotonic() + seconds
    while stop is None or time.monotonic() < stop:
        try:
            if end.poll(0.01 if stop is not None else None):
                said.add(end.recv())
        except (EOFError, OSError):
            break
    return said


def check(path: Path, written: set[int]) -> dict[str, object]:
    """What is lost, doubled or changed of what was said to be written."""
    store = EvaluationStore(path)
    lost = changed = 0
    for number in written:
        found, expected = store.get(TASK, strategy_of(number)), evaluation_of(number)
        lost += found is None
        if found is not None:
            pair = ((e.accuracy, e.loss, repr(e.agreement)) for e in (found, expected))
            changed += len(set(pair)) != 1
    rows = len(store)
    store.close()
    database = sqlite3.connect(path)
    ((whole,),) = database.execute("PRAGMA integrity_check")
    ((distinct,),) = database.execute("SELECT COUNT(DISTINCT strategy) FROM scores")
    database.close()
    return {
        "rows": rows,
        "unsaid": rows - len(written) + lost,
        "lost": lost,
        "doubled": rows - distinct,
        "changed": changed,
        "file": whole,
    }


def nothing_wrong(found: dict[str, object]) -> bool:
    """Whether a round lost, doubled and changed nothing."""
    clean = all(found[name] == 0 for name in ("lost", "doubled", "changed"))
    return clean and found["file"] == "ok" and found["unsaid"] in (0, 1)


def main() -> None:
    """All rounds, the table, the CSV; exit code 1 if anything was lost, doubled or changed."""
    options = arguments()
    draw = random.Random(options.seed)
    rows: list[dict[str, object]] = []
    for number in range(options.rounds):
        with tempfile.TemporaryDirectory() as folder:
            path, after_s = Path(folder) / "evaluations.sqlite", draw.uniform(0, 0.5)
            found = killed_in_the_middle(path, options.strategies, after_s, draw)
            rows.append({"round": number + 1, "killed after s": f"{after_s:.3f}", **found})
    print_table(rows, list(rows[0]))
    print(write_csv("store", [row | provenance(options.seed) for row in rows]))
    sys.exit(not all(map(nothing_wrong, rows)))


if __name__ == "__main__":
    main()
