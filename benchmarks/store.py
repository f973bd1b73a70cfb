"""Processes that write the store of evaluations at once, some of them killed with -9.

    python -m benchmarks.store --rounds 10
    python -m benchmarks.store --rounds 1 --writers 8 --killed 3 --strategies 20000 --within 20
    python -m benchmarks.store --url postgresql+psycopg://user@host/database

Those that are killed write all strategies, half of the survivors every other one, each in an order
of its own. They say after every ``put`` that it is done, so that what the killed ones had written
is known. Afterwards the store must be readable, hold all that was said to be written (and at most
one for each that had no time to speak of it), each once, and every number to the bit.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import sqlite3
import sys
import tempfile
import time
from multiprocessing.connection import Connection, wait
from pathlib import Path

from amc.problem.evaluate import Evaluation
from amc.problem.store import Store, open_store
from amc.strategy import Strategy
from amc.utils.urls import is_url
from benchmarks.provenance import print_table, provenance, write_csv

TASK = "benchmark"
Row = dict[str, object]


def arguments() -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--url", help="of a database; default: a new file")
    parser.add_argument("--writers", type=int, default=2)
    parser.add_argument("--killed", type=int, default=1, help="of the writers")
    parser.add_argument("--strategies", type=int, default=2000)
    parser.add_argument("--within", type=float, default=0.5, help="seconds until the last kill")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def strategy_of(number: int) -> Strategy:
    """A strategy of its own for every number."""
    return Strategy({"group": 1 / (1 + number)}, {})


def opened(where: str) -> Store:
    """A store that is there."""
    store = open_store(where)
    assert store is not None
    return store


def evaluation_of(number: int) -> Evaluation:
    """Numbers with all their digits; every process finds the same, but for the seconds."""
    scores = {"accuracy": number / 7, "loss": 1 / (3 + number), "agreement": -0.0}
    return Evaluation(scores, seconds=time.monotonic())


def write(where: str, task: str, numbers: list[int], done: Connection) -> None:
    """Put one evaluation after the other, and say so."""
    store = opened(where)
    for number in numbers:
        store.put(task, strategy_of(number), evaluation_of(number))
        done.send(number)
    done.close()


def killed_in_the_middle(where: str, options: argparse.Namespace, draw: random.Random) -> Row:
    """One round, on a file or a database; gives what it held and what of it was wrong."""
    task = f"{TASK} {time.time_ns()}"  # a database may hold those of earlier rounds
    context = multiprocessing.get_context("fork")
    processes, ends = [], []
    for writer in range(options.writers):
        step = 1 if writer < options.killed else 1 + writer % 2
        share = range(0, options.strategies, step)
        end, given = context.Pipe(duplex=False)
        order = draw.sample(share, len(share))
        process = context.Process(target=write, args=(where, task, order, given))
        process.start()
        given.close()
        processes.append(process)
        ends.append(end)
    begun, said = time.monotonic(), [set[int]() for _ in ends]
    moments = sorted(draw.uniform(0, options.within) for _ in range(options.killed))
    for process, moment in zip(processes, moments, strict=False):
        _listen(ends, said, begun + moment)
        process.kill()
    _listen(ends, said, None)
    seconds = time.monotonic() - begun
    for process in processes:
        process.join()
    written = sum(map(len, said))
    return {
        "writers": options.writers,
        "killed after s": ", ".join(f"{moment:.2f}" for moment in moments),
        "said": written,
        "a second": round(written / seconds),
        **check(where, task, set().union(*said)),
    }


def _listen(ends: list[Connection], said: list[set[int]], until: float | None) -> None:
    """Take what processes say until a moment, or until all of them have ended."""
    left = dict(zip(ends, said, strict=True))
    while left and (until is None or time.monotonic() < until):
        for end in wait(list(left), None if until is None else 0.01):
            assert isinstance(end, Connection)
            try:
                left[end].add(end.recv())
            except (EOFError, OSError):
                del left[end]


def check(where: str, task: str, written: set[int]) -> Row:
    """What is lost, doubled or changed of what was said to be written."""
    store = opened(where)
    lost = changed = 0
    for number in written:
        found, expected = store.get(task, strategy_of(number)), evaluation_of(number)
        lost += found is None
        if found is not None:
            pair = ((e.accuracy, e.loss, repr(e.agreement)) for e in (found, expected))
            changed += len(set(pair)) != 1
    held = [strategy for strategy, _ in store.all(task)]
    store.close()
    return {
        "rows": len(held),
        "unsaid": len(held) - len(written) + lost,
        "lost": lost,
        "doubled": len(held) - len(set(held)),
        "changed": changed,
        "file": "ok" if is_url(where) else _integrity(where),
    }


def _integrity(file: str) -> str:
    database = sqlite3.connect(file)
    ((whole,),) = database.execute("PRAGMA integrity_check")
    database.close()
    return str(whole)


def nothing_wrong(found: Row, killed: int) -> bool:
    """Whether a round lost, doubled and changed nothing."""
    clean = all(found[name] == 0 for name in ("lost", "doubled", "changed"))
    return clean and found["file"] == "ok" and found["unsaid"] in range(killed + 1)


def main() -> None:
    """All rounds, the table, the CSV; exit code 1 if anything was lost, doubled or changed."""
    options = arguments()
    draw = random.Random(options.seed)
    rows: list[Row] = []
    for number in range(options.rounds):
        with tempfile.TemporaryDirectory() as folder:
            where = options.url or str(Path(folder) / "evaluations.sqlite")
            rows.append({"round": number + 1, **killed_in_the_middle(where, options, draw)})
    print_table(rows, list(rows[0]))
    name = "store" if options.writers == 2 else f"store-{options.writers}"
    name += f"-{options.url.partition(':')[0].partition('+')[0]}" if options.url else ""
    print(write_csv(name, [row | provenance(options.seed) for row in rows]))
    sys.exit(not all(nothing_wrong(row, options.killed) for row in rows))


if __name__ == "__main__":
    main()
