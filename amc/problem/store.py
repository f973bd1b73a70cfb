"""Evaluations remembered: by this search, by later ones, and by jobs that run beside it.

One SQLite file. Every row is written in one transaction, so a process may be killed at any
moment and any number of them may write at once; the first to write a row wins. Numbers are
kept as text (``repr``): SQLite's own reals lose the sign of -0.0 and every NaN.

A store saves time and holds nothing that cannot be computed again. So a search is not stopped
by one that cannot be written: it warns once and goes on without. A file that is no store is an
error before the search starts.
"""

from __future__ import annotations

import logging
import os
import sqlite3
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from amc.errors import AmcError, ArtifactError, ConfigError, StorageError
from amc.problem.evaluate import Evaluation
from amc.problem.rows import scores_of, text_of
from amc.problem.server import ServerStore
from amc.strategy import Strategy
from amc.utils.conditions import COMPUTING, machine_and_libraries, sources
from amc.utils.database import IN_USE, Database, code_of
from amc.utils.files import fingerprint, storage_error
from amc.utils.machine import cache_folder
from amc.utils.urls import is_url

log = logging.getLogger("amc")

FILE_NAME = "evaluations.sqlite"
_ADVICE = "Remove the file: it is made anew, and only saves time (search.store=false: none)."
# amc's rooms
_EVALUATING = (
    "compress",
    "decisions",
    "graph",
    "layers",
    "objectives",
    "problem/candidate.py",
    "problem/evaluate.py",
    "recovery",
)
_TABLE = """
    CREATE TABLE IF NOT EXISTS scores (
        task TEXT NOT NULL, strategy TEXT NOT NULL,
        scores TEXT NOT NULL, seconds TEXT NOT NULL,
        PRIMARY KEY (task, strategy)
    ) WITHOUT ROWID
"""
# Of versions that knew classification only: what it holds is read, and nothing added.
_FORMER = """
    CREATE TABLE IF NOT EXISTS evaluations (
        task TEXT NOT NULL, strategy TEXT NOT NULL,
        accuracy TEXT NOT NULL, loss TEXT NOT NULL, agreement TEXT NOT NULL,
        seconds TEXT NOT NULL,
        PRIMARY KEY (task, strategy)
    ) WITHOUT ROWID
"""
_INSERT = "INSERT OR IGNORE INTO scores VALUES (?, ?, ?, ?)"
_FORMER_SCORES = ("accuracy", "loss", "agreement")
_NONE = "none"  # in the former table: there are no labels


def default_path() -> Path:
    """The store that all searches of this user share."""
    return cache_folder() / FILE_NAME


class EvaluationStore:
    """What strategies were evaluated at, by the key of all that an evaluation depends on.

    Costs are not kept: they follow from the strategy and the device, at no cost.

    Attributes:
        path: The file.
        writable: False where the file may be read but not written: `put` then does nothing.
    """

    def __init__(self, path: Path) -> None:
        """Open the store, or make it.

        Raises:
            ArtifactError: The file is not a store of evaluations, or is damaged.
            StorageError: It cannot be made or read.
        """
        self.path, self.writable = path, True
        try:
            self._open()
        except AmcError as error:
            cause = error.__cause__
            denied = isinstance(cause, (sqlite3.OperationalError, OSError))
            if not denied or not path.is_file() or code_of(cause) in IN_USE:
                raise
            self._open_read_only()

    def _open(self) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise storage_error(self.path, error) from error
        self._database = Database(self.path, [_TABLE, _FORMER], _ADVICE)
        with suppress(StorageError):  # another process is just doing the same
            self._database.execute("PRAGMA journal_mode=WAL")
        self._database.execute("PRAGMA synchronous=NORMAL")
        self._database.check_schema()
        with self._database.transaction():
            self._database.execute(_TABLE)
            self._database.execute("DELETE FROM scores WHERE 0")  # fails if read-only
        self._tables = self._table_names()

    def _open_read_only(self) -> None:
        """What may only be read is still worth reading."""
        self.writable = False
        self._database = Database(self.path, [_TABLE, _FORMER], _ADVICE, read_only=True)
        self._database.check_schema()
        self._tables = self._table_names()
        for table in self._tables:
            self._database.rows(f"SELECT * FROM {table} LIMIT 1")

    def _table_names(self) -> set[str]:
        rows = self._database.rows("SELECT name FROM sqlite_master WHERE type = 'table'")
        return {str(name) for (name,) in rows}

    def get(self, task_key: str, strategy: Strategy) -> Evaluation | None:
        """What the strategy was evaluated at, to the bit; None if it was not.

        Raises:
            ArtifactError: The file is damaged.
        """
        key = task_key, strategy.to_json()
        with self._database.explaining():
            for table, read in (("scores", self._read), ("evaluations", _read_former)):
                query = f"SELECT * FROM {table} WHERE task = ? AND strategy = ?"
                rows = self._database.rows(query, *key) if table in self._tables else []
                for _, _, *scores, seconds in rows:
                    return Evaluation(read(*scores), seconds=float(seconds))
        return None

    def all(self, task_key: str) -> list[tuple[Strategy, Evaluation]]:
        """Every strategy of a task that was evaluated, in an order of their own.

        Raises:
            ArtifactError: The file is damaged.
        """
        query = "SELECT strategy, scores, seconds FROM scores WHERE task = ? ORDER BY strategy"
        with self._database.explaining():
            rows = self._database.rows(query, task_key) if "scores" in self._tables else []
            return [
                (Strategy.from_json(strategy), Evaluation(self._read(scores), seconds=float(taken)))
                for strategy, scores, taken in rows
            ]

    def _read(self, text: str) -> dict[str, float]:
        return scores_of(text, self._wrong)

    def _wrong(self, said: str) -> ArtifactError:
        return self._database.damaged(f"what it holds {said}")

    def put(self, task_key: str, strategy: Strategy, evaluation: Evaluation) -> None:
        """Remember an evaluation; one that is there already stays as it is.

        Raises:
            StorageError: The disk is full, or another process keeps the file locked.
            ArtifactError: The file is damaged.
        """
        if not self.writable:
            return
        scores = text_of(evaluation.scores)
        row = task_key, strategy.to_json(), scores, repr(float(evaluation.seconds))
        with self._database.transaction():
            self._database.execute(_INSERT, *row)

    def __len__(self) -> int:
        """Evaluations remembered, of all tasks."""
        counts = (self._database.rows(f"SELECT COUNT(*) FROM {table}") for table in self._tables)
        return sum(int(count) for ((count,),) in counts)

    def close(self) -> None:
        """Let the file go."""
        self._database.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return EvaluationStore, (self.path,)  # a connection belongs to its process


def _read_former(*texts: str) -> dict[str, float]:
    named = zip(_FORMER_SCORES, texts, strict=True)
    return {name: float(text) for name, text in named if text != _NONE}


Store = EvaluationStore | ServerStore
"""Where evaluations are remembered: a file of this machine, or a table of a database server."""


def open_store(store: bool | str | Path) -> Store | None:
    """The store of a search: True is the user's own, False none, else the file or URL given.

    Raises:
        ConfigError: It is none of these, or the URL of no database that can be used here.
        ArtifactError: The file is not a store of evaluations, or is damaged.
        StorageError: What was given by name cannot be made or read. Where the user's own
            cannot, there is none, and a warning.
    """
    if store is False:
        return None
    if store is not True and not isinstance(store, (str, os.PathLike)):
        raise ConfigError(
            "store must be true, false, the path of a file, or the URL of a database, got "
            f"{store!r}."
        )
    if is_url(store):
        return ServerStore(str(store))
    path = default_path() if store is True else Path(store).expanduser()
    try:
        found = EvaluationStore(path)
    except StorageError as error:
        if store is not True:
            raise
        log.warning("%s Searching without it.", error)
        return None
    if not found.writable:
        log.warning("%s cannot be written: it is read, and nothing is added.", path)
    return found


# -- what an evaluation depends on, beside network, data and settings ----------------------


def evaluation_code() -> str:
    """Changes with the code that an evaluation runs through, with its libraries, and the CPU."""
    machine = machine_and_libraries(COMPUTING)
    return fingerprint(_evaluating_sources(), repr(machine))


@cache
def _evaluating_sources() -> str:
    home = Path(__file__).parents[1]
    found = [sources(home / name) for name in _EVALUATING]
    return fingerprint(*(part for digests in found for item in digests.items() for part in item))
