"""Evaluations remembered in a database server, which jobs of many machines share.

A file will not do there: SQLite's is for the processes of one machine. Any database that SQLAlchemy
has a driver for will; rows are as in the file (`amc.problem.store`), and the first to write one
wins.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from amc.errors import ArtifactError, ConfigError, StorageError
from amc.problem.evaluate import Evaluation
from amc.problem.rows import scores_of, text_of
from amc.strategy import Strategy

TABLE = "amc_scores"
_MOST_CHARACTERS = 2**26  # of a text that is read
_WAIT_S = 30  # for a connection


class ServerStore:
    """What strategies were evaluated at, in a table of a database."""

    writable = True

    def __init__(self, url: str) -> None:
        """
        Args:
            url: As SQLAlchemy takes it: ``dialect+driver://user@host/database``.

        Raises:
            ConfigError: SQLAlchemy or the driver is not installed, or the URL is none.
            StorageError: The server cannot be reached, or refuses.
        """
        try:
            import sqlalchemy as sql
        except ImportError:
            raise ConfigError(
                "A store in a database server needs SQLAlchemy and a driver: "
                "pip install 'amc-compress[server]'."
            ) from None
        self._sql, self._url = sql, url
        try:
            self.path = sql.make_url(url).render_as_string(hide_password=True)
            self._engine = sql.create_engine(url, pool_pre_ping=True, pool_timeout=_WAIT_S)
        except (sql.exc.ArgumentError, ImportError) as error:
            raise ConfigError(
                f"search.store={url.partition('://')[0]}://... names no database that can be used "
                f"here: {error}. Expected a URL such as postgresql+psycopg://user@host/database, "
                "and its driver (pip install 'amc-compress[server]' has that of PostgreSQL)."
            ) from error
        self._table = sql.Table(
            TABLE,
            sql.MetaData(),
            sql.Column("key", sql.String(64), primary_key=True),
            sql.Column("task", sql.String(128), index=True, nullable=False),
            sql.Column("strategy", sql.Text, nullable=False),
            sql.Column("scores", sql.Text, nullable=False),
            sql.Column("seconds", sql.String(32), nullable=False),
        )
        with self._explaining():
            try:
                self._table.create(self._engine, checkfirst=True)
            except sql.exc.DBAPIError:  # another job has just made it
                if not sql.inspect(self._engine).has_table(TABLE):
                    raise

    def get(self, task_key: str, strategy: Strategy) -> Evaluation | None:
        """What the strategy was evaluated at, to the bit; None if it was not.

        Raises:
            ArtifactError: The row is damaged.
            StorageError: The server cannot be reached, or refuses.
        """
        text = strategy.to_json()
        columns = self._table.c
        query = self._sql.select(columns.strategy, columns.scores, columns.seconds)
        for other, scores, seconds in self._rows(query.where(columns.key == _key(task_key, text))):
            if other == text:
                return self._evaluation(scores, seconds)
        return None

    def all(self, task_key: str) -> list[tuple[Strategy, Evaluation]]:
        """Every strategy of a task that was evaluated, in an order of their own.

        Raises:
            ArtifactError, StorageError: As `get`.
        """
        columns = self._table.c
        query = self._sql.select(columns.strategy, columns.scores, columns.seconds)
        rows = self._rows(query.where(columns.task == task_key))
        return [
            (Strategy.from_json(strategy), self._evaluation(scores, seconds))
            for strategy, scores, seconds in sorted(rows)
        ]

    def _evaluation(self, scores: str, seconds: str) -> Evaluation:
        try:
            return Evaluation(scores_of(scores, self._wrong), seconds=float(seconds))
        except ValueError as error:
            raise self._wrong(f"{error}") from error

    def _wrong(self, said: str) -> ArtifactError:
        return ArtifactError(
            f"Table {TABLE} of {self.path} is damaged: what it holds {said}. Drop the table: it is "
            "made anew, and only saves time."
        )

    def put(self, task_key: str, strategy: Strategy, evaluation: Evaluation) -> None:
        """Remember an evaluation; one that is there already stays as it is.

        Raises:
            StorageError: The server cannot be reached, or refuses.
        """
        text = strategy.to_json()
        row = {
            "key": _key(task_key, text),
            "task": task_key,
            "strategy": text,
            "scores": text_of(evaluation.scores),
            "seconds": repr(float(evaluation.seconds)),
        }
        with self._explaining():
            try:
                with self._engine.begin() as connection:
                    connection.execute(self._table.insert().values(row))
            except self._sql.exc.IntegrityError:  # another was first
                return

    def _rows(self, query: Any) -> list[tuple[str, str, str]]:
        with self._explaining(), self._engine.connect() as connection:
            found = [tuple(map(str, row)) for row in connection.execute(query)]
        if any(len(text) > _MOST_CHARACTERS for row in found for text in row):
            raise self._wrong(f"has texts of more than {_MOST_CHARACTERS:,} characters")
        return found  # type: ignore[return-value]

    def __len__(self) -> int:
        """Evaluations remembered, of all tasks."""
        query = self._sql.select(self._sql.func.count()).select_from(self._table)
        with self._explaining(), self._engine.connect() as connection:
            return int(connection.execute(query).scalar_one())

    @contextmanager
    def _explaining(self) -> Iterator[None]:
        try:
            yield
        except self._sql.exc.SQLAlchemyError as error:
            said = str(getattr(error, "orig", None) or error).strip().partition("\n")[0]
            raise StorageError(
                f"The store {self.path} cannot be used: {said}. Check that the server runs and "
                "lets this user make and write tables (search.store=true: a file of this machine)."
            ) from error

    def close(self) -> None:
        """Let the connections go."""
        self._engine.dispose()

    def __reduce__(self) -> tuple[Any, ...]:
        return ServerStore, (self._url,)  # a connection belongs to its process


def _key(task_key: str, strategy: str) -> str:
    """Of a row: whole texts are too long for the indices of some databases."""
    return hashlib.sha256(f"{task_key}\0{strategy}".encode()).hexdigest()
