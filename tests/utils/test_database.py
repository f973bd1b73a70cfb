"""Databases of amc's own: whatever a file makes SQLite say is one clear error."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from amc.errors import ArtifactError, StorageError
from amc.utils.database import Database

TABLE = "CREATE TABLE numbers (number INTEGER PRIMARY KEY, text TEXT)"


def opened(path: Path, **options: bool) -> Database:
    return Database(path, [TABLE], "Remove the file.", **options)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    database = opened(tmp_path / "d.sqlite")
    with database.transaction():
        database.execute(TABLE)
        database.execute_many("INSERT INTO numbers VALUES (?, ?)", [(1, "one"), (2, "two")])
    database.close()
    return tmp_path / "d.sqlite"


def test_rows_come_back_and_the_schema_is_known_whatever_its_spaces(path: Path) -> None:
    spaced = Database(path, [TABLE.replace(" ", "\n  ")], "")
    assert spaced.check_schema()
    assert spaced.rows("SELECT * FROM numbers WHERE number < ?", 3) == [(1, "one"), (2, "two")]
    assert not Database(None, [TABLE], "").check_schema()


def test_transaction_that_fails_leaves_nothing(path: Path) -> None:
    database = opened(path)

    def fail() -> None:
        with database.transaction():
            database.execute("DELETE FROM numbers")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert len(database.rows("SELECT * FROM numbers")) == 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("CREATE TABLE more (a)", "holds 'table' 'more', which is none of amc's"),
        ("CREATE INDEX i ON numbers (text)", "holds 'index' 'i'"),
        ("CREATE VIEW v AS SELECT 1", "holds 'view' 'v'"),
        ("ALTER TABLE numbers ADD COLUMN c", "holds 'table' 'numbers'"),
    ],
)
def test_schema_with_anything_else_is_refused(change: str, said: str, path: Path) -> None:
    database = sqlite3.connect(path)
    database.execute(change)
    database.close()
    with pytest.raises(ArtifactError, match=rf"d\.sqlite is damaged.*{said}.*Remove the file\."):
        opened(path).check_schema()


@pytest.mark.parametrize("error", [UnicodeDecodeError("utf-8", b"\xff", 0, 1, "x"), TypeError("x")])
def test_errors_of_other_kinds_become_the_same_one(error: Exception, path: Path) -> None:
    with (
        pytest.raises(ArtifactError, match=r"is damaged.*Remove the file"),
        opened(path).explaining(),
    ):
        raise error


def test_text_that_is_none_is_an_error(path: Path) -> None:
    database = sqlite3.connect(path)
    with database:
        database.execute("UPDATE numbers SET text = CAST(X'ff' AS TEXT)")
    database.close()
    with pytest.raises(ArtifactError, match="Could not decode"):
        opened(path).rows("SELECT * FROM numbers")


def test_more_rows_than_a_file_has_room_for_are_refused(path: Path) -> None:
    endless = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT x FROM n"
    with pytest.raises(ArtifactError, match="hold more than its bytes can"):
        opened(path).rows(endless)


def test_file_that_may_only_be_read_is_read(path: Path) -> None:
    database = opened(path, read_only=True)
    assert database.check_schema()
    with pytest.raises(StorageError, match="no permission to write"):
        database.execute("DELETE FROM numbers")
