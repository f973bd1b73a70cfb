"""Damaged files of every kind that amc reads: each must be read, or refused with one clear error.

    nice -n 10 python -m benchmarks.fuzz --mutations 20000

Mutations change bytes (flipped, cut, doubled, swapped, numbers of 400 digits, nesting of 50,000
brackets) or, within a container that stays sound, the values of its document, its tensors, rows or
members. They are the same for the same seed. Files are read in child processes, so that one that
hangs or takes all memory is counted and ends nothing. The hand-made hostile files of
tests/hostile are read first.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from benchmarks.provenance import print_table, provenance, write_csv
from tests.hostile.attempts import OTHER, READ, REFUSED, Attempt, Reader
from tests.hostile.handmade import HANDMADE
from tests.hostile.kinds import KINDS

LARGEST_MB = 1500
_MORE_BYTES = 8 * 2**30  # of address space that a child may take beside what it starts with
_PAGES = Path("/proc/self/statm")  # on Linux: how many pages of address space a process has
_SHOWN = 5
_PATIENCE = 10  # times the limit that an answer may take on a busy machine


def arguments() -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--mutations", type=int, default=20_000, help="over all kinds together")
    parser.add_argument("--kinds", nargs="*", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--limit-s", type=float, default=5.0, help="of processor time for a file")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


@dataclass
class Tally:
    """What came of the files of one kind."""

    outcomes: Counter[str] = field(default_factory=Counter)
    others: list[str] = field(default_factory=list)
    files: int = 0
    hangs: int = 0
    slowest_s: float = 0.0
    peak_mb: float = 0.0

    def add(self, attempt: Attempt, peak_mb: float, what: str) -> None:
        """Count one file that came to an end."""
        self.outcomes[attempt.outcome] += 1
        self.slowest_s = max(self.slowest_s, attempt.seconds)
        self.peak_mb = max(self.peak_mb, peak_mb)
        if attempt.outcome == OTHER:
            self.others.append(f"{what}: {attempt.said[:300]}")

    @property
    def is_clean(self) -> bool:
        """Whether every file was read or refused, in time and memory."""
        return not self.hangs and not self.outcomes[OTHER] and self.peak_mb < LARGEST_MB


Job = tuple[str, int | str]
"""A kind, and the number of a mutation or the name of a hand-made file."""


def read_all(jobs: Sequence[Job], seed: int, end: Connection) -> None:
    """In a child: read one file after the other, and say what came of each."""
    torch.set_num_threads(1)
    if _PAGES.is_file():
        most = int(_PAGES.read_text().split()[0]) * resource.getpagesize() + _MORE_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    reader = Reader(jobs[0][0])
    reader.attempt(reader.sound)  # what is imported at the first time is imported now
    end.send(None)
    for _, job in jobs:
        if isinstance(job, int):
            content = reader.mutated(seed, job)
        else:
            content = HANDMADE[job].make(reader.sound)
        end.send((reader.attempt(content), _peak_mb()))


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def attempts(jobs: Sequence[Job], seed: int, limit_s: float) -> Tally:
    """Read the files of one kind in children, each until its end or until one of them hangs."""
    tally, done = Tally(), 0
    context = multiprocessing.get_context("fork")
    while done < len(jobs):
        end, given = context.Pipe(duplex=False)
        child = context.Process(target=read_all, args=(jobs[done:], seed, given))
        child.start()
        given.close()
        done += _follow(child, end, jobs[done:], limit_s, tally)
    return tally


def _follow(
    child: BaseProcess, end: Connection, jobs: Sequence[Job], limit_s: float, tally: Tally
) -> int:
    """Count what a child says; gives how many files it is through with."""
    ready = False
    for number, (_, job) in enumerate(jobs):
        tally.files += 1
        try:
            if not ready:
                end.recv()
                ready = True
            if not end.poll(_PATIENCE * limit_s):
                raise TimeoutError
            attempt, peak_mb = end.recv()
        except (TimeoutError, EOFError) as error:
            ended = "hangs" if isinstance(error, TimeoutError) else "ended the process"
            child.kill()
            child.join()
            tally.hangs += 1
            tally.others.append(f"{job}: {ended}")
            return number + 1
        tally.add(attempt, peak_mb, str(job))
        if attempt.seconds > limit_s:
            tally.hangs += 1
            tally.others.append(f"{job}: takes {attempt.seconds:.1f} s")
    child.join()
    return len(jobs)


def row(kind: str, tally: Tally) -> dict[str, object]:
    """A line of the table."""
    return {
        "kind": kind,
        "file": KINDS[kind].file.rpartition("/")[2],
        "files": tally.files,
        REFUSED: tally.outcomes[REFUSED],
        "read all the same": tally.outcomes[READ],
        "other exceptions": tally.outcomes[OTHER],
        "hangs": tally.hangs,
        "slowest CPU s": f"{tally.slowest_s:.2f}",
        "peak MB": round(tally.peak_mb),
    }


def main() -> None:
    """All kinds, the table, the CSV; exit code 1 if anything but AmcError came of a file."""
    options = arguments()
    each = -(-options.mutations // len(options.kinds))
    rows, clean = [], True
    with tempfile.TemporaryDirectory() as cache:
        os.environ["AMC_CACHE"] = cache
        for kind in options.kinds:
            jobs: list[Job] = [(kind, name) for name, h in HANDMADE.items() if h.kind == kind]
            jobs += [(kind, number) for number in range(each)]
            tally = attempts(jobs, options.seed, options.limit_s)
            rows.append(row(kind, tally))
            clean &= tally.is_clean
            print(rows[-1], *tally.others[:_SHOWN], sep="\n  ", file=sys.stderr)
    print_table(rows, list(rows[0]))
    print(write_csv("fuzz", [one | provenance(options.seed) for one in rows]))
    sys.exit(not clean)


if __name__ == "__main__":
    main()
