"""Reading one changed file after the other, and what comes of it."""

from __future__ import annotations

import shutil
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from random import Random

from amc.errors import AmcError
from tests.hostile.kinds import KINDS

REFUSED, READ, OTHER = "AmcError", "read", "other"
_MEMORY = Path("/dev/shm")  # a folder in memory, where there is one


@dataclass(frozen=True)
class Attempt:
    """What reading a file came to.

    Attributes:
        outcome: `REFUSED`, `READ` or `OTHER`.
        said: By the exception; empty where there was none.
        seconds: Of processor time: what a busy machine adds is not the file's.
    """

    outcome: str
    said: str
    seconds: float


class Reader:
    """Reads changed files of one kind, each in a folder as a sound one would be."""

    def __init__(self, kind: str) -> None:
        self._kind = KINDS[kind]
        with _folder() as folder, _quiet():
            self._kind.make(folder)
            self._files = {
                path.relative_to(folder): path.read_bytes()
                for path in folder.rglob("*")
                if path.is_file()
            }
        self.sound = self._files[Path(self._kind.file)]

    def mutated(self, seed: int, index: int) -> bytes:
        """The file after the mutation of this number: always the same."""
        draw = Random(f"{seed} {self._kind.file} {index}")
        content = self.sound
        for _ in range(draw.choice((1, 1, 1, 2, 3))):
            try:
                content = draw.choice(self._kind.mutations)(content, draw)
            except Exception:  # an earlier change broke the form that this one would keep
                content = draw.choice(self._kind.mutations[:3])(content or b"\0", draw)
            content = content or b"\0"
        return content

    def attempt(self, content: bytes) -> Attempt:
        """Read the file with this content."""
        with _folder() as folder, _quiet():
            for path, sound in self._files.items():
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                (folder / path).write_bytes(sound)
            (folder / self._kind.file).write_bytes(content)
            start = time.process_time()
            try:
                self._kind.read(folder)
                outcome, said = READ, ""
            except AmcError as error:
                outcome, said = REFUSED, str(error)
            except Exception as error:
                outcome, said = OTHER, f"{type(error).__name__}: {error}"
            return Attempt(outcome, said, time.process_time() - start)


@contextmanager
def _folder() -> Iterator[Path]:
    place = str(_MEMORY) if _MEMORY.is_dir() else None
    name = tempfile.mkdtemp(dir=place, prefix="amc-hostile-")
    try:
        yield Path(name)
    finally:
        shutil.rmtree(name, ignore_errors=True)


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        warnings.simplefilter("ignore")
        yield
