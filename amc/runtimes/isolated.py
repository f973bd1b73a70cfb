"""Operators timed in a process of their own: where one ends that process, only it is lost.

The process is Python with this module, which is told by pickles on its standard input which runtime
it is to be, and then, part by part, what to sample. It is started where the first sample is asked
for, and again where it has died: then halves of what it was asked tell which operator it was.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from amc.errors import AmcError
from amc.graph.whole import Whole
from amc.runtimes.request import Request
from amc.runtimes.runtime import NO_WHOLES, Runtime, Sampler

LOST = float("nan")  # the sample of an operator that ended the process


@contextmanager
def isolated_timing(
    runtime: Runtime, batch: int, threads: int, wholes: Mapping[str, Whole] = NO_WHOLES
) -> Iterator[Sampler]:
    """As `Runtime.timing`, with `LOST` as the sample of every operator that ends the process.

    A runtime, or a call of a network, that cannot be sent to another process is timed in this one.
    """
    try:
        task = pickle.dumps((runtime, batch, threads, dict(wholes)))
    except Exception:  # of many kinds: whatever a class of someone else's raises
        with runtime.timing(batch, threads, wholes) as sample:
            yield sample
        return
    process = _Process(task)
    lost: set[Request] = set()

    def sampled(requests: Sequence[Request]) -> list[float]:
        taken = process.sample(requests)
        if taken is not None:
            return taken
        if len(requests) == 1:
            lost.update(requests)
            return [LOST]
        half = len(requests) // 2
        return sampled(requests[:half]) + sampled(requests[half:])

    def sample_all(requests: Sequence[Request]) -> Iterator[float]:
        # All at once: runtimes time many side by side.
        left = [request for request in requests if request not in lost]
        taken = dict(zip(left, sampled(left), strict=True)) if left else {}
        yield from (taken.get(request, LOST) for request in requests)

    try:
        yield sample_all
    finally:
        process.end()


class _Process:
    """The other process."""

    def __init__(self, task: bytes) -> None:
        self._task = task
        self._running: subprocess.Popen[bytes] | None = None

    def sample(self, requests: Sequence[Request]) -> list[float] | None:
        """A sample of each; None: the process has died.

        Raises:
            AmcError: As the runtime.
        """
        running = self._running or self._started()
        assert running.stdin is not None
        assert running.stdout is not None
        try:
            pickle.dump(list(requests), running.stdin)
            running.stdin.flush()
            answer = pickle.load(running.stdout)
        except (EOFError, BrokenPipeError, pickle.UnpicklingError):
            self.end()
            return None
        if isinstance(answer, BaseException):
            raise answer
        found: list[float] = answer
        return found

    def _started(self) -> subprocess.Popen[bytes]:
        paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
        self._running = subprocess.Popen(
            [sys.executable, "-m", "amc.runtimes.isolated"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": paths},
        )
        assert self._running.stdin is not None
        self._running.stdin.write(self._task)
        return self._running

    def end(self) -> None:
        """Stop it, if it runs."""
        if self._running is not None:
            self._running.kill()
            self._running.communicate()
            self._running = None


def main() -> None:
    """The other process: reads a runtime, and then requests until there are none left."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that asks sees to it
    given, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a runtime prints is no answer
    runtime, batch, threads, wholes = pickle.load(given)
    with runtime.timing(batch, threads, wholes) as sample:
        while True:
            try:
                requests = pickle.load(given)
            except EOFError:
                return
            pickle.dump(_answer(sample, requests), answers)
            answers.flush()


def _answer(sample: Sampler, requests: Sequence[Request]) -> Any:
    try:
        return [float(ms) for ms in sample(requests)]
    except AmcError as error:
        return error


if __name__ == "__main__":
    main()
