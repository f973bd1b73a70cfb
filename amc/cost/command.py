"""A command that is talked to in lines: what goes in, what comes out, and that it ends."""

from __future__ import annotations

import contextlib
import os
import queue
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import IO

from amc.errors import DeviceError

MOST_BYTES = 16 * 2**20  # of all lines that come out
_CHUNK = 2**16
_WAITING = 16  # chunks that were read and not yet looked at
_TAIL = 2000  # bytes of what the command says beside its answers
_LAST_LINES = 5
_POLL_S = 0.1


class Command:
    """A running command: lines are written to it at once, and read from it one by one.

    Used as a context: what still runs at its end is ended, with all that it started.
    """

    def __init__(self, words: list[str], said: bytes) -> None:
        """Start a command.

        Args:
            words: The program and its arguments; no shell reads them.
            said: What it is given to read, to the end.

        Raises:
            DeviceError: It cannot be started.
        """
        self.shown = shlex.join(words)
        self._lines: list[bytes] = []  # complete, not given out yet
        self._begun = b""  # a line whose end has not come yet
        self._chunks: queue.Queue[bytes] = queue.Queue(_WAITING)
        self._left, self._tail, self._is_over = MOST_BYTES, b"", threading.Event()
        try:
            self._process = subprocess.Popen(
                words,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                start_new_session=True,  # Ctrl-C is ours: we end it when all is kept
            )
        except (OSError, ValueError) as error:
            raise DeviceError(f"The command {self.shown!r} cannot be started: {error}.") from error
        works = (lambda pipe: self._say(pipe, said)), self._read, self._listen
        pipes = self._process.stdin, self._process.stdout, self._process.stderr
        threads = [
            threading.Thread(target=_until_closed, args=pair, daemon=True)
            for pair in zip(works, pipes, strict=True)
        ]
        for thread in threads:
            thread.start()
        self._listener = threads[-1]

    def __enter__(self) -> Command:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._is_over.set()
        if self._process.returncode is not None:
            return  # it was seen to end; its number may be another's by now
        if hasattr(os, "killpg"):
            with contextlib.suppress(OSError):
                os.killpg(self._process.pid, signal.SIGKILL)
        else:
            self._process.kill()
        self._process.wait()

    def line(self, until: float) -> str | None:
        """The next line; None where there are no more.

        Args:
            until: On the clock of `time.monotonic`.

        Raises:
            TimeoutError: No line came until then.
            DeviceError: More came than any answer is long.
        """
        while not self._lines:
            try:
                chunk = self._chunks.get(timeout=max(until - time.monotonic(), 0))
            except queue.Empty:
                raise TimeoutError from None
            self._left -= len(chunk)
            if self._left < 0:
                raise DeviceError(
                    f"The command {self.shown!r} put out more than {MOST_BYTES // 2**20} MiB: "
                    "expected a line for each operator."
                )
            if not chunk:
                self._chunks.put(b"")  # whoever asks again is told again
                last, self._begun = self._begun, b""
                return last.decode("utf-8", "replace") if last else None
            *lines, self._begun = (self._begun + chunk).split(b"\n")
            self._lines = lines[::-1]
        return self._lines.pop().decode("utf-8", "replace")

    def fault(self, patience_s: float) -> str:
        """Says how the command ended, where it ended badly; waits for its end."""
        try:
            code = self._process.wait(patience_s)
        except subprocess.TimeoutExpired:
            return "it closed its output and did not end"
        if code == 0:
            return ""
        how = f"it was ended by signal {-code}" if code < 0 else f"it ended with exit code {code}"
        return how + self.said()

    def said(self) -> str:
        """The last lines of what it wrote to its standard error, to be put behind a message."""
        self._listener.join(_POLL_S)  # it may still have to read the last of it
        lines = self._tail.decode("utf-8", "replace").strip().splitlines()[-_LAST_LINES:]
        return "; it said: " + " | ".join(lines) if lines else ""

    # -- in threads of their own --------------------------------------------------------------

    def _say(self, pipe: IO[bytes], said: bytes) -> None:
        for start in range(0, len(said), _CHUNK):
            pipe.write(said[start : start + _CHUNK])

    def _read(self, pipe: IO[bytes]) -> None:
        chunk = b"-"
        while chunk and not self._is_over.is_set():
            chunk = pipe.read(_CHUNK)
            while not self._is_over.is_set():
                with contextlib.suppress(queue.Full):
                    self._chunks.put(chunk, timeout=_POLL_S)
                    break

    def _listen(self, pipe: IO[bytes]) -> None:
        while chunk := pipe.read(_CHUNK):
            self._tail = (self._tail + chunk)[-_TAIL:]


def _until_closed(work: Callable[[IO[bytes]], None], pipe: IO[bytes] | None) -> None:
    """Read or write until there is no one at the other end."""
    assert pipe is not None
    with contextlib.suppress(OSError, ValueError), pipe:
        work(pipe)
