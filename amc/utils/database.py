"""SQLite files that are amc's own: opened, checked to be what they should, and read within bounds.

Everything that such a file makes SQLite say, in whatever way, becomes one clear error here. A file
is a stranger's until its schema is word for word the one that amc writes: a view or a trigger in
it would be a program that runs when it is read.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from amc.errors import AmcError, ArtifactError, StorageError

_MOST_ROW_BYTES = 64 * 2**20
_ROW_BYTES = 8  # beside a row's texts; pages that point at each other hold more than the file


class Database:
    """A connection that waits for other processes, and may be used from any thread.

    Transactions begin where `transaction` or ``BEGIN`` says so.
    """

    def __init__(
        self,
        path: Path | None,
        tables: Sequence[str],
        advice: str,
        *,
        busy_s: float = 30.0,
        read_only: bool = False,
    ) -> None:
        """Open a file, or make it; its tables are for the caller to make.

        Args:
            path: None: in memory.
            tables: The ``CREATE TABLE`` statements that the schema may consist of.
            advice: What to do about a file that is damaged.
            busy_s: How long one process waits for another's write, seconds.
            read_only: Open a file that cannot be written.

        Raises:
            ArtifactError, StorageError: As `explaining`.
        """
        self.path, self._advice = path, advice
        self._tables = {_words(statement) for statement in tables}
        where = ":memory:" if path is None else str(path)
        if path is not None and read_only:
            # immutable: otherwise SQLite wants to write beside the file even to read it.
            where = f"{path.resolve().as_uri()}?mode=ro&immutable=1"
        with self.explaining():
            self._connection = sqlite3.connect(
                where, timeout=busy_s, check_same_thread=False, uri=read_only
            )
            self._connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _MOST_ROW_BYTES)

    @contextmanager
    def explaining(self) -> Iterator[None]:
        """Turns whatever SQLite, or a value of the wrong kind, raises within it into one error.

        Raises:
            ArtifactError: The file is damaged.
            StorageError: It cannot be read or written: says why.
        """
        try:
            yield
        # ValueError: a message or a text that is no UTF-8; RecursionError: JSON in a row
        except (sqlite3.Error, ValueError, TypeError, OverflowError) as error:
            raise self.explained(error) from error

    def explained(self, error: Exception) -> AmcError:
        """The one clear message for a database that does not do as it should."""
        name = self.path or "the database in memory"
        said = _STORAGE.get(code_of(error))
        if said is not None:
            return StorageError(f"{name}: {said}")
        return self.damaged(str(error))

    def damaged(self, said: str) -> ArtifactError:
        """The error of a file that is not what it should be."""
        name = self.path or "the database in memory"
        return ArtifactError(
            f"{name} is damaged, or not a file of this amc: {said}. {self._advice}"
        )

    def check_schema(self) -> bool:
        """Whether the file has any tables.

        Raises:
            ArtifactError: It has others than it should have, or something else.
        """
        found = self.rows("SELECT type, name, sql FROM sqlite_master")
        for kind, name, statement in found:
            made_by_sqlite = kind == "index" and statement is None
            if not made_by_sqlite and _words(str(statement)) not in self._tables:
                raise self.damaged(f"it holds {kind!a} {str(name)[:80]!a}, which is none of amc's")
        return bool(found)

    def rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        """All rows of a query, as many as the file has room for.

        Raises:
            ArtifactError, StorageError: As `explaining`.
        """
        found, left = [], self._bytes()
        with self.explaining():
            for row in self._connection.execute(query, values):
                texts = sum(len(value) for value in row if isinstance(value, (str, bytes)))
                left -= _ROW_BYTES + texts
                if left < 0:
                    raise self.damaged("its pages hold more than its bytes can")
                found.append(row)
        return found

    def execute(self, statement: str, *values: object) -> None:
        """Run a statement that gives no rows.

        Raises:
            ArtifactError, StorageError: As `explaining`.
        """
        with self.explaining():
            self._connection.execute(statement, values).close()

    def execute_many(self, statement: str, rows: Sequence[tuple[object, ...]]) -> None:
        """Run a statement for each of these rows.

        Raises:
            ArtifactError, StorageError: As `explaining`.
        """
        with self.explaining():
            self._connection.executemany(statement, rows)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All statements within it are done, or none of them.

        Raises:
            ArtifactError, StorageError: As `explaining`.
        """
        with self.explaining(), self._connection:
            yield

    def close(self) -> None:
        """Let the file go."""
        self._connection.close()

    def _bytes(self) -> int:
        if self.path is None:
            return 2**40
        names = (self.path, f"{self.path}-wal", f"{self.path}-journal")
        return 4096 + sum(os.path.getsize(name) for name in names if os.path.exists(name))


def _words(statement: str) -> str:
    """A statement as SQLite keeps it, whatever the spaces and line ends in it."""
    return " ".join(statement.replace("IF NOT EXISTS ", "").split())


def code_of(error: BaseException | None) -> int:
    """SQLite's code of an error, without what kind of it; -1 where it has none."""
    return int(getattr(error, "sqlite_errorcode", -1)) & 0xFF


IN_USE = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
_STORAGE = {
    sqlite3.SQLITE_FULL: "no space left on the disk. Free some, run again.",
    sqlite3.SQLITE_READONLY: "no permission to write. Fix its mode, or choose another folder.",
    sqlite3.SQLITE_PERM: "no permission. Fix its mode, or choose another folder.",
    sqlite3.SQLITE_CANTOPEN: "cannot be opened. Fix its mode or its folder's, or choose another.",
    sqlite3.SQLITE_IOERR: "cannot be read or written. Check the disk, and that it is not full.",
    sqlite3.SQLITE_BUSY: "in use by another process. Wait for it to end, or end that process.",
    sqlite3.SQLITE_LOCKED: "in use by another process. Wait for it to end, or end that process.",
}
